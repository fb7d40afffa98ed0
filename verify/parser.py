r"""Read a final answer, LaTeX or plain, into a value that can be compared: an expression, a set, an interval, words.

`read` is the way in. What stands outside of all brackets decides the kind: commas make a list, `=` and `<` a relation,
`\cup` a region, a colon a ratio; what is left is an expression (expression.py). Text that fits no kind is not
read, and is compared as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import sympy
from sympy.matrices.matrixbase import MatrixBase

from verify.expression import UNIT_VECTORS, expression, rational
from verify.regions import (
    MAX_MEMBERS,
    REALS,
    Interval,
    Region,
    breaks,
    complement,
    intersection,
    is_zero,
    where,
    whole_numbers,
)
from verify.text import (
    FAMILIAR,
    GREEK,
    LETTER_UNITS,
    MAX_LENGTH,
    OPENING,
    PARTS_OF_NAMES,
    TEXT_COMMAND,
    WORDS_OF_MATHS,
    Unreadable,
    matching,
    split,
    tidy,
    tokens_of,
    without_thousands,
    without_unit,
)


@dataclass(frozen=True)
class Group:
    """Several values. `tuple` is ordered, `list` (from commas, `and`, ±) and `set` (from braces) are not."""

    kind: str
    items: tuple[Value, ...]
    joint: str = ""  # "or" where that stands between them


@dataclass(frozen=True)
class Relation:
    """A chain such as 1 < x ≤ 3 or y = 2x: n + 1 sides and n signs, of = < > ≤ ≥ ≠."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]
    names: bool = False  # the first side only names what the last one is: f(x), AB, (x, y), ∠ABC


@dataclass(frozen=True)
class Congruence:
    """A class of whole numbers: x ≡ 3 (mod 7); without a name also 3 (mod 7)."""

    name: str
    value: sympy.Expr
    modulus: sympy.Expr


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[sympy.Expr, ...], ...]


@dataclass(frozen=True)
class Numeral:
    """Digits in a base: 204_5."""

    digits: str
    base: int


@dataclass(frozen=True)
class Ratio:
    """3 : 4, or a time of day, in order."""

    parts: tuple[sympy.Expr, ...]
    clock: bool = False


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Measured:
    """A value with a unit, which counts only where the other side has one too."""

    value: Value
    unit: str
    product: sympy.Expr | None = None  # where one letter after a number may be a variable: 2 h


Value: TypeAlias = (
    "sympy.Expr | Group | Interval | Region | Relation | Congruence | Matrix | Numeral | Ratio | Words | Measured"
)

SYSTEMS = {rf"\begin{{{name}}}" for name in ("aligned", "align", "align*", "gathered", "split", "array")}
SHORT_ANSWERS = {"yes", "no", "odd", "even", "none", "true", "false", "both", "all"}
COMPARED = {"=", "<", ">", "≤", "≥", "≠"}
TURNED = {">": "<", "≥": "≤", "<": ">", "≤": "≥", "≠": "≠", "=": "="}
BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Whole answers
# ---------------------------------------------------------------------------------------------------------------------


def read(text: str) -> Value | None:
    """The value of an answer; None where it cannot be read."""
    return None if len(text) > MAX_LENGTH else read_spelling(tidy(text))


@lru_cache(maxsize=64)  # a gold is read to see whether it can be, and again for each answer of its group
def read_spelling(text: str) -> Value | None:
    """The value of an answer that is tidy already."""
    try:
        return read_tidy(text)
    except Exception:  # Unreadable, and whatever sympy raises for matrices that do not fit or signs it cannot decide
        return None


def read_tidy(text: str) -> Value:
    """A numeral in a base, words, or a list with or without a unit. Raises Unreadable."""
    if not text:
        raise Unreadable
    text = re.sub(r"^\\text\s*\{([0-9A-Z]+)\}_", r"\1_", text)
    if numeral := re.fullmatch(r"\(?(-?[0-9A-Z]+)\)?_\s*\{?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}?", text):
        base = BASES.get(numeral[2].lower(), int(numeral[2]) if numeral[2].isdigit() else 0)
        if 2 <= base <= 36 and any(c.isdigit() for c in numeral[1]):
            return Numeral(numeral[1].lstrip("0") or "0", base)
    if re.fullmatch(TEXT_COMMAND + r"\s*\{[^{}]*\}", text):
        inner = FAMILIAR.sub(r"\1", text).strip().rstrip(".").strip()
        if re.search(r"\d", inner) or len(inner) == 1:  # \text{5 apples}
            try:
                return read_tidy(inner)
            except Unreadable:
                pass
        return words(inner)
    text, unit = without_unit(text)
    value = read_list(text)
    if not unit:
        return value
    letter = unit in LETTER_UNITS and isinstance(value, sympy.Expr)
    return Measured(value, unit, value * sympy.Symbol(unit, real=True) if letter else None)


def words(text: str) -> Value:
    """Words, but for the ones that name a set of numbers."""
    everything = re.fullmatch(r"(?:the set of )?(?:all )?(?:the )?(?:real numbers?|reals)", text.strip().lower())
    return REALS if everything else Words(text)


def read_list(text: str) -> Value:
    """One value, or several between commas, semicolons, `and`, `or`."""
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    text = without_thousands(text)
    spelled = text.replace("-", " ").split()
    is_text = re.fullmatch(r"[A-Za-z][A-Za-z' -]{3,}", text) and any(len(word) > 3 for word in spelled)
    if is_text and not set(spelled) & set(WORDS_OF_MATHS):
        return words(text)
    if text.lower() in SHORT_ANSWERS or re.fullmatch(r"[A-Z]{3,}", text):  # no product of letters
        return Words(text)
    if mixed := re.fullmatch(r"(-?)\s*(\d{1,9}) (\d{1,9})\s*/\s*(\d{1,9})", text):
        value = Fraction(int(mixed[2])) + Fraction(int(mixed[3]), int(mixed[4]))
        return rational(value * (-1 if mixed[1] else 1))
    if re.search(r"(?<![\d_])\d+ \d", re.sub(r"\\frac\s*\d\s*\d", "", text)):
        raise Unreadable  # two numbers side by side are no product
    tokens = tokens_of(text)
    parts, _ = split(tokens, {";"})
    if len(parts) > 1 and all("=" in part and "," in part for part in parts):  # p = 5, q = 2; p = 7, q = 2
        return Group("list", tuple(as_tuple(read_pieces(part)) for part in parts))
    return read_pieces(tokens)


def as_tuple(value: Value) -> Value:
    return Group("tuple", value.items) if isinstance(value, Group) and value.kind == "list" else value


def read_pieces(tokens: list[str]) -> Value:
    """What stands between commas, `and` and `or`: one value, one region from several inequalities, or a list."""
    if tokens and tokens[0] == "{" and matching(tokens, 0) == len(tokens) - 1 and "," in tokens:
        return read_pieces(tokens[1:-1])
    pieces, joints = split(tokens, {",", ";", "and", "or"})
    if "or" in joints or "and" in joints:
        pieces = [piece for piece in pieces if piece]
    pieces, domains = without_domains(pieces)
    if len(pieces) == 1 and domains and set(pieces[0]) & set("<>≤≥"):  # 1 ≤ n ≤ 5, n ∈ ℤ
        return Group("set", whole_numbers(region_of(read_item(pieces[0]))))
    pieces = [[domains.get(token, token) for token in piece] for piece in pieces]
    if len(pieces) == 1:
        return read_item(pieces[0])
    items = spread(pieces)
    if all(isinstance(item, Relation) and is_inequality(item) for item in items) and (
        regions := regions_in_one_variable(items)
    ):
        common = regions[0]
        for region in regions[1:]:
            common = intersection(common, region)
        if "or" not in joints and (common.parts or "and" in joints):  # x > 3, x < 5; but x < 3, x > 5 are alternatives
            return common
        return Region(tuple(part for region in regions for part in region.parts))
    return Group("list", items, "or" if "or" in joints else "")


def without_domains(pieces: list[list[str]]) -> tuple[list[list[str]], dict[str, str]]:
    r"""The pieces without those that say what a letter stands for (n \in \mathbb{Z}), and what to put for the letters.

    Only for a free letter, as in x = π/4 + nπ: in a_n = 2n + 1 each n has a value of its own.
    """
    kept: list[list[str]] = []
    domains: dict[str, str] = {}
    for piece in pieces:
        declared = len(piece) >= 3 and piece[1:2] == [r"\in"] and piece[2] in (r"\integers", r"\naturals")
        if declared and len(pieces) > 1 and set(piece[3:]) <= set("^*+_{}0"):
            domains[piece[0]] = r"\integer" if piece[2:] == [r"\integers"] else r"\natural"
        else:
            kept.append(piece)
    named = {token for piece in kept if "=" in piece for token in piece[: piece.index("=")]}
    return kept, {letter: symbol for letter, symbol in domains.items() if letter not in named}


def spread(pieces: list[list[str]]) -> tuple[Value, ...]:
    r"""The members of a list: those of ± one by one, and 1, 2, \ldots, 10 written out."""
    items: list[Value] = []
    for place, piece in enumerate(pieces):
        if piece == [r"\ldots"]:
            before, after = items[-2:], pieces[place + 1 : place + 2]
            if len(before) == 2 and after and len(pieces) == place + 2:
                items += progression(before[0], before[1], read_item(after[0]))
                return tuple(items)
            items.append(Words("..."))
            continue
        item = read_item(piece)
        items += item.items if isinstance(item, Group) and item.kind == "list" else [item]
    return tuple(items)


def progression(first: Value, second: Value, last: Value) -> list[Value]:
    """What follows `first, second` up to and with `last`, in equal steps. Raises Unreadable."""
    before, start, end = expressions((first, second, last))
    step = start - before
    if not (before.is_Integer and start.is_Integer and end.is_Integer) or step == 0 or (end - start) % step != 0:
        raise Unreadable
    if not 0 < (end - start) / step <= MAX_MEMBERS:
        raise Unreadable
    return [start + step * count for count in range(1, int((end - start) / step) + 1)]


def read_item(tokens: list[str]) -> Value:
    """One answer without commas outside of brackets: a relation, a region, a ratio, or a value; both ones of ±."""
    if (r"\pm" in tokens or r"\mp" in tokens) and "\\{" not in tokens:
        values = [read_item(chosen) for chosen in sign_choices(tokens)]
        relations = [value for value in values if isinstance(value, Relation) and value.names]
        if len(relations) == len(values):  # x = 1 ± 2 gives x both values
            both = Group("list", tuple(relation.sides[-1] for relation in relations))
            return Relation((relations[0].sides[0], both), ("=",), True)
        return Group("list", tuple(values))
    if r"\equiv" in tokens or (tokens[-1:] == [")"] and r"\mod" in tokens):
        return congruence(tokens)
    sides, signs = split(tokens, {*COMPARED, r"\approx"})
    if r"\approx" in signs:
        first = signs.index(r"\approx")
        if first == 0 and (not sides[0] or is_name(sides[0])):
            tokens, sides, signs = sides[1], sides[1:2], []
        else:
            tokens, sides, signs = sides[first], sides[: first + 1], signs[:first]
    if not tokens:
        raise Unreadable
    if signs:
        names = set(signs) == {"="} and is_name(sides[0])
        if set(signs) <= set("<>≤≥"):
            return Relation(tuple(read_bound(side) for side in sides), tuple(signs))
        return Relation((read_side(sides[0], names), *(read_item(side) for side in sides[1:])), tuple(signs), names)
    members, found = split(tokens, {r"\in"})
    if found:
        if len(members) != 2 or not is_name(members[0]):
            raise Unreadable
        return read_item(members[1])
    if (value := read_set_operation(tokens)) is not None:
        return value
    parts, colons = split(tokens, {":"})
    if colons:
        clock = all(len(part) == 1 and part[0].isdigit() for part in parts) and len(parts[1][0]) == 2
        return Ratio(tuple(expression(part) for part in parts), clock and int(parts[1][0]) < 60)
    if tokens[0] == r"\reals":
        return reals(tokens)
    if len(tokens) == 1 and tokens[0] in (r"\integers", r"\naturals", r"\rationals", r"\complexes"):
        return Words(tokens[0])
    if tokens == [r"\emptyset"] or tokens == ["\\{", "\\}"]:
        return Group("set", ())
    if tokens[0] in SYSTEMS and matching(tokens, 0) == len(tokens) - 1 and set(tokens) & COMPARED:
        lines, _ = split([token for token in tokens[1:-1] if token != "&"], {r"\\"})
        lines = [line[matching(line, 0) + 1 :] if line[0] == "{" else line for line in lines if line]
        return Group("list", tuple(read_item(line) for line in lines))
    if tokens[0] == r"\begin{cases}" and matching(tokens, 0) == len(tokens) - 1:
        return cases(tokens[1:-1])
    if tokens[0] in OPENING and matching(tokens, 0) == len(tokens) - 1:
        return bracketed(tokens)
    return single(tokens)


def sign_choices(tokens: list[str]) -> list[list[str]]:
    """What ± and ∓ stand for: each sign by itself, or, where there is a ∓, all of them together."""
    signs = [place for place, token in enumerate(tokens) if token in (r"\pm", r"\mp")]
    together = r"\mp" in tokens
    if not together and len(signs) > 4:
        raise Unreadable
    choices = [(1,) * len(signs), (-1,) * len(signs)] if together else list(product((1, -1), repeat=len(signs)))
    results = []
    for choice in choices:
        result = list(tokens)
        for place, sign in zip(signs, choice, strict=True):
            result[place] = "+" if (sign == 1) == (tokens[place] == r"\pm") else "-"
        results.append(result)
    return results


def is_name(tokens: list[str]) -> bool:
    r"""Does it only name a quantity: x, f(x), AB, (x, y), a_5, \angle ABC, |AB|, \frac{NO}{BO}, A \cap B, A^{-1}?

    Small letters side by side, or one above the other, are a product or a quotient, and no name; but dy/dx is one.
    """
    text = " ".join(tokens)
    text = re.sub(r"_ (?:\{[^{}]*\}|\\?\w+)|\^ (?:T|\{ T \}|\{ \\circ \})", "", text)
    text = re.sub(r"(?<=[a-zA-Z']) \( (?:- )?(?:[a-zA-Z]|\d+)(?: , (?:[a-zA-Z]|\d+))* \)", "", text)
    text = re.sub(r"\\(?:text|mathrm|operatorname) \{[^{}]*\}|\\frac \{ d (?:[a-z] )?\} \{ d [a-z] \}", "N", text)
    text = re.sub(r"(?<=[A-Z]) \^ \{ - 1 \}", "", text)
    text = re.sub(r"\\(?:sin|cos|tan|cot)(?= (?:\\angle|[A-Z]|\\alpha|\\beta|\\gamma|\\theta))", "", text)
    for part in re.split(r" ?[,:] ?", text):
        names = [token for token in part.split() if token not in PARTS_OF_NAMES]
        several = len(names) > 1 or set(part.split()) & {"|", "/", r"\frac"}
        if any(len(name) > 1 or not name.isalpha() or (several and not name.isupper()) for name in names):
            return False
        if not names and not set(part.split()) & GREEK:
            return False
    return True


def read_side(tokens: list[str], names: bool) -> Value:
    """The first side of a relation; a name that is no expression stays as it is written."""
    try:
        return read_item(tokens)
    except (Unreadable, ArithmeticError, ValueError, TypeError, AttributeError):
        if not names:
            raise
        return Words(" ".join(tokens))


def read_bound(tokens: list[str]) -> Value:
    """A side of an inequality; f(x) is one unknown there."""
    applied = re.fullmatch(r"([a-zA-Z]) \( ([a-zA-Z]) \)", " ".join(tokens))
    return sympy.Symbol(f"{applied[1]}({applied[2]})", real=True) if applied else read_item(tokens)


def congruence(tokens: list[str]) -> Value:
    r"""x \equiv 3 \pmod{7}, 3 (mod 7)."""
    sides, found = split(tokens, {r"\equiv"})
    if found and not is_name(sides[0]):
        raise Unreadable
    pieces, signs = split([token for token in sides[-1] if token not in ("(", ")", "{", "}")], {r"\mod"})
    if len(signs) != 1 or len(found) > 1:
        raise Unreadable
    value, modulus = expression(pieces[0]), expression(pieces[1])
    if not (value.is_Integer and modulus.is_Integer and modulus > 0):
        raise Unreadable
    return Congruence("".join(sides[0]) if found else "", value % modulus, modulus)


def reals(tokens: list[str]) -> Value:
    r"""\mathbb{R}, and \mathbb{R}^+, \mathbb{R}_{>0} and the like."""
    rest = "".join(token for token in tokens[1:] if token not in "^_{}")
    if rest in ("+", ">0"):
        return Region((Interval(sympy.Integer(0), sympy.oo, True, True),))
    if rest in ("-", "<0"):
        return Region((Interval(-sympy.oo, sympy.Integer(0), True, True),))
    if rest == "≥0":
        return Region((Interval(sympy.Integer(0), sympy.oo, False, True),))
    if rest:
        raise Unreadable
    return REALS


def read_set_operation(tokens: list[str]) -> Value | None:
    r"""Unions, intersections and differences, from left to right; None where there are none."""
    minus = {"-"} if tokens and tokens[0] in (r"\reals", "\\{") else set()
    pieces, signs = split(tokens, {r"\cup", r"\cap", r"\setminus", *minus})
    if not signs:
        return None
    values = [read_item(piece) for piece in pieces]
    if all(isinstance(value, Group) and value.kind == "set" for value in values):
        members = list(values[0].items)  # type: ignore[union-attr]
        for sign, value in zip(signs, values[1:], strict=True):
            others = value.items  # type: ignore[union-attr]
            if sign == r"\cup":
                members += others
            else:
                members = [member for member in members if (member in others) == (sign == r"\cap")]
        return Group("set", tuple(members))
    regions = [region_of(value) for value in values]
    if set(signs) == {r"\cup"}:
        return Region(tuple(part for region in regions for part in region.parts))
    result = regions[0]
    for sign, region in zip(signs, regions[1:], strict=True):
        if sign == r"\cup":
            result = Region(result.parts + region.parts)
        else:
            result = intersection(result, region if sign == r"\cap" else complement(region))
    return result


def cases(tokens: list[str]) -> Value:
    """A system of equations as a list, or a function by cases as a set of (value, condition)."""
    lines = [[cell for cell in split(line, {"&"})[0] if cell] for line in split(tokens, {r"\\"})[0] if line]
    if all(len(cells) == 1 for cells in lines):
        return Group("list", tuple(read_item(cells[0]) for cells in lines))
    pairs: list[Value] = []
    for cells in lines:
        if len(cells) != 2:
            raise Unreadable
        value, condition = cells[0][:-1] if cells[0][-1] == "," else cells[0], cells[1]
        spelled = re.sub(r"^\\text|[{}]", "", "".join(condition))
        condition = condition[2 if spelled.startswith("if") else 3 if spelled.startswith("for") else 0 :]
        otherwise = spelled.startswith("otherwise")
        pairs.append(Group("tuple", (read_item(value), Words("otherwise") if otherwise else read_item(condition))))
    return Group("set", tuple(pairs))


def single(tokens: list[str]) -> Value:
    """An expression, a matrix, or a vector in the unit vectors i, j, k."""
    value = expression(tokens)
    if isinstance(value, MatrixBase):
        return Matrix(tuple(tuple(cells) for cells in value.tolist()))
    if value.free_symbols.intersection(UNIT_VECTORS):  # 3i + 4j
        parts = [value.coeff(vector) for vector in UNIT_VECTORS]
        if value != sympy.Add(*(part * vector for part, vector in zip(parts, UNIT_VECTORS, strict=True))):
            raise Unreadable
        return Group("tuple", tuple(parts if value.has(UNIT_VECTORS[2]) else parts[:2]))
    return value


def bracketed(tokens: list[str]) -> Value:
    """What stands in one pair of brackets: a set, a tuple, an interval, or a value in parentheses."""
    opening, closing, inner = tokens[0], tokens[-1], tokens[1:-1]
    if opening == "\\{" and closing == "\\}":
        bars, _ = split(inner, {":"})
        if len(bars) == 1:
            bar = next((place for place, token in enumerate(inner[:8]) if token == "|" and place > 0), 0)
            bars = [inner[:bar], inner[bar + 1 :]] if bar else bars
        if len(bars) == 2:
            return set_builder(*bars)
        pieces, _ = split(inner, {",", ";"})
        return Group("set", spread(pieces))
    pieces, commas = split(inner, {",", ";"})
    if opening == r"\langle" or (opening == "(" and closing == ")" and len(pieces) != 2 and commas):
        return Group("tuple", tuple(read_item(piece) for piece in pieces))
    if commas and len(pieces) == 2 and opening in "([" and closing in ")]":
        low, high = read_item(pieces[0]), read_item(pieces[1])
        if isinstance(low, sympy.Expr) and isinstance(high, sympy.Expr):
            return Interval(low, high, opening == "(", closing == ")")
        return Group("tuple", (low, high))
    if commas:
        return Group("tuple", tuple(read_item(piece) for piece in pieces))
    return single(tokens) if opening not in "([{" else read_item(inner)


def set_builder(member: list[str], condition: list[str]) -> Value:
    r"""\{x \in \mathbb{R} \mid 1 < x\}: the region, or the numbers, that fulfil a condition on the variable."""
    value = read_pieces(condition)
    domain = member[member.index(r"\in") + 1 :] if r"\in" in member else [r"\reals"]
    variable = expression(member[: member.index(r"\in")] if r"\in" in member else member)
    if isinstance(value, Relation) and set().union(*(s.free_symbols for s in expressions(value.sides))) != {variable}:
        raise Unreadable
    if isinstance(value, Relation) and value.signs == ("=",):
        left, right = expressions(value.sides)
        points = [point for point in breaks(left - right) if is_zero(left - right, point)]
        value = Region(tuple(Interval(point, point, False, False) for point in points))
    region = region_of(value)
    if domain == [r"\integers"]:
        return Group("set", whole_numbers(region))
    if domain[0] != r"\reals":
        raise Unreadable
    return intersection(region_of(reals(domain)), region) if domain != [r"\reals"] else region


def expressions(values: tuple[Value, ...]) -> list[sympy.Expr]:
    """The values, all of them expressions. Raises Unreadable otherwise."""
    found = [value for value in values if isinstance(value, sympy.Expr)]
    if len(found) < len(values):
        raise Unreadable
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Regions of the number line
# ---------------------------------------------------------------------------------------------------------------------


def is_inequality(relation: Relation) -> bool:
    return all(sign in "<>≤≥≠" for sign in relation.signs)


def region_of(value: Value) -> Region:
    """A value as a region of the number line. Raises Unreadable where it is none."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Interval):
        return Region((value,))
    if isinstance(value, Group) and value.kind != "tuple":
        return Region(tuple(Interval(x, x, False, False) for x in expressions(value.items)))
    if isinstance(value, Relation) and is_inequality(value):
        return solutions(value)
    raise Unreadable


def regions_in_one_variable(items: tuple[Value, ...]) -> list[Region]:
    """The regions of inequalities in the same single variable; none where there are others."""
    names = {symbol for item in items if isinstance(item, Relation) for side in item.sides
             for symbol in (side.free_symbols if isinstance(side, sympy.Expr) else {side})}  # fmt: skip
    try:
        return [region_of(item) for item in items] if len(names) == 1 else []
    except Unreadable:
        return []


def solutions(relation: Relation) -> Region:
    """Where an inequality, or a chain of them, in one variable holds. Raises Unreadable."""
    sides = expressions(relation.sides)
    result = REALS
    for left, sign, right in zip(sides, relation.signs, sides[1:], strict=False):
        if (left == -sympy.oo and sign in "<≤") or (right == sympy.oo and sign in "<≤"):
            continue  # −∞ < x
        if (left == sympy.oo and sign in ">≥") or (right == -sympy.oo and sign in ">≥"):
            continue
        result = intersection(result, where(left - right, sign)) if result != REALS else where(left - right, sign)
    if len({symbol for side in sides for symbol in side.free_symbols}) != 1:
        raise Unreadable
    return result
