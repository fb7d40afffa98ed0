r"""Read a final answer, LaTeX or plain, into values that can be compared: sympy expressions, groups, intervals, words.

The parser builds sympy objects itself from an allow-list of forms. Nothing is evaluated as code, and no string is
handed to sympy. Length, depth, digits and exponents are bounded before sympy computes anything, so that every text is
read, or refused, in milliseconds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import sympy

MAX_LENGTH = 5_000  # characters; a longer answer is compared as text
MAX_TOKENS = 1_500
MAX_DEPTH = 60  # nested brackets
MAX_POWER_BITS = 20_000  # bits of a number that a power may have
MAX_FACTORIAL = 3_000


class Unreadable(Exception):
    """The text is outside of the forms that the parser knows, or over its limits."""


@dataclass(frozen=True)
class Group:
    """Several values. `tuple` is ordered, `list` (from commas, `and`, ±) and `set` (from braces) are not."""

    kind: str
    items: tuple[Value, ...]


@dataclass(frozen=True)
class Interval:
    low: sympy.Expr
    high: sympy.Expr
    low_open: bool
    high_open: bool


@dataclass(frozen=True)
class Region:
    """A union of intervals and single numbers, or all of it without them."""

    parts: tuple[Interval, ...]
    without: tuple[sympy.Expr, ...] = ()


@dataclass(frozen=True)
class Relation:
    """A chain such as 1 < x ≤ 3 or y = 2x: n + 1 sides and n signs, of = < > ≤ ≥ ≠."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]


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


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Measured:
    """A value with a unit, which counts only where the other side has one too."""

    value: Value
    unit: str


Value: TypeAlias = "sympy.Expr | Group | Interval | Region | Relation | Matrix | Numeral | Ratio | Words | Measured"

# ---------------------------------------------------------------------------------------------------------------------
# Spelling
# ---------------------------------------------------------------------------------------------------------------------

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/",
    "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "ø": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp ",
    "ℝ": r"\mathbb{R}",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ",
    "φ": r"\phi ", "∧": r"\land ", "∨": r"\lor ", "’": "'", "′": "'", "∣": "|", "〈": r"\langle ", "〉": r"\rangle ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "∖": r"\setminus ", "：": ":", "∶": ":", "₀": "_0", "₁": "_1", "₂": "_2",
    "₃": "_3", "₄": "_4", "₅": "_5", "₆": "_6", "₇": "_7", "₈": "_8", "₉": "_9",
}  # fmt: skip
INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
NOISE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr|bigg|Bigg|middle)"
    r"(?![a-zA-Z])\.?"
)
SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|\\(?:quad|qquad|enspace|thinspace)(?![a-zA-Z])|~|\\\\\s*$")
WRAPPERS = re.compile(r"\\(?:underline|boldsymbol|mathbf|bm|boxed|fbox|mathit|mathsf|ensuremath)\s*(?=\{)")
FAMILIAR = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|operatorname\*?|mathtt)\s*\{([^{}]*)\}")
BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"  # with one more pair inside
UNIT_EXPONENT = r"(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|\d))?"


def tidy(text: str) -> str:
    """The same answer in one spelling: plain Unicode, no dollar signs, sizes, colours or closing full stop."""
    text = INVISIBLE.sub("", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("√\\s*(\\d+|[a-zA-Z])", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = unicodedata.normalize("NFKC", "".join(CHARACTERS.get(c, c) for c in text))
    text = re.sub(r"\\\(|\\\)|\\\[|\\\]|(?<!\\)\$|\*\*(?=\s*$)|^\s*\*\*", " ", text)
    text = re.sub(r"\\color\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}", "", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\!,|,\\!|\\,|\\ )(?=\d{3}(?!\d))", "", text)
    text = SPACES.sub(" ", NOISE.sub("", text))
    text = WRAPPERS.sub("", text)
    text = re.sub(r"\\text\s*\{\s*([:.])\s*\}", r"\1", text)
    text = re.sub(r"\\text\s*\{\s*(and|or)\s*\}", r" \1 ", text)
    return re.sub(r"\s+", " ", text).strip().removesuffix(".").strip()


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------

TOKEN = re.compile(
    r"\d+\.(?!\d)|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![a-zA-Z\d])|\d+\.\d+|\.\d+|\d+"
    r"|\\begin\{[a-z]+\*?\}|\\end\{[a-z]+\*?\}|\\mathbb\s*\{?\s*R\s*\}?|\\[a-zA-Z]+|\\[{}|%$\\]"
    r"|[a-zA-Z]+|\*\*|<=|>=|!=|==|[^\s]"
)
WORDS_OF_MATHS = {
    "sqrt": r"\sqrt", "pi": r"\pi", "sin": r"\sin", "cos": r"\cos", "tan": r"\tan", "log": r"\log", "ln": r"\ln",
    "exp": r"\exp", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "arcsin": r"\arcsin",
    "arccos": r"\arccos", "arctan": r"\arctan",
    "or": "or", "and": "and", "cot": r"\cot", "sec": r"\sec", "csc": r"\csc", "abs": "abs",
    "U": r"\cup", "theta": r"\theta", "alpha": r"\alpha", "beta": r"\beta", "union": r"\cup",
}  # fmt: skip
SAME = {
    r"\leq": "≤", r"\le": "≤", "<=": "≤", r"\leqslant": "≤", r"\geq": "≥", r"\ge": "≥", ">=": "≥", r"\geqslant": "≥",
    r"\lt": "<", r"\gt": ">", r"\neq": "≠", r"\ne": "≠", "!=": "≠", "==": "=", r"\times": "*", r"\cdot": "*",
    r"\ast": "*", r"\div": "/", "**": "^", r"\{": "\\{", r"\lbrace": "\\{", r"\rbrace": "\\}", r"\lbrack": "[",
    r"\rbrack": "]", r"\vert": "|", r"\lvert": "|", r"\rvert": "|", r"\|": "|", r"\varnothing": r"\emptyset",
    r"\mid": "|", r"\%": "%", r"\lor": "or", r"\vee": "or", r"\land": "and", r"\wedge": "and", r"\colon": ":",
    r"\degree": r"\circ", r"\backslash": r"\setminus", r"\infin": r"\infty",
}  # fmt: skip


def tokens_of(text: str) -> list[str]:
    tokens: list[str] = []
    for token in TOKEN.findall(text):
        if token.isalpha() and token.isascii():
            if token in WORDS_OF_MATHS and not (token == "U" and len(text) < 4):
                tokens.append(WORDS_OF_MATHS[token])
            else:
                tokens += list(token)
        elif token.startswith(r"\mathbb"):
            tokens.append(r"\reals")
        else:
            tokens.append(SAME.get(token, token))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable
    return tokens


OPENING = {"(", "[", "{", "\\{", r"\langle", r"\lfloor", r"\lceil"}
CLOSING = {")", "]", "}", "\\}", r"\rangle", r"\rfloor", r"\rceil"}


def split(tokens: list[str], separators: set[str]) -> tuple[list[list[str]], list[str]]:
    """The pieces between separators outside of brackets and environments, and the separators."""
    pieces: list[list[str]] = [[]]
    found = []
    depth = 0
    for token in tokens:
        depth += (token in OPENING or token.startswith(r"\begin")) - (token in CLOSING or token.startswith(r"\end"))
        if depth == 0 and token in separators:
            pieces.append([])
            found.append(token)
        else:
            pieces[-1].append(token)
    if depth != 0:
        raise Unreadable
    return pieces, found


def matching(tokens: list[str], start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(tokens)):
        depth += (tokens[place] in OPENING) - (tokens[place] in CLOSING)
        if depth == 0:
            return place
    raise Unreadable


# ---------------------------------------------------------------------------------------------------------------------
# Whole answers
# ---------------------------------------------------------------------------------------------------------------------


def read(text: str) -> Value | None:
    """The value of an answer; None where it cannot be read."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        return read_tidy(tidy(text))
    except (Unreadable, RecursionError, ZeroDivisionError, OverflowError, ValueError, TypeError, AttributeError):
        return None


def read_tidy(text: str) -> Value:
    if not text:
        raise Unreadable
    if numeral := re.fullmatch(r"([0-9A-Z]+)_\{?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}?", text):
        names = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
        base = names.get(numeral[2].lower(), int(numeral[2]) if numeral[2].isdigit() else 0)
        if 2 <= base <= 36 and any(c.isdigit() for c in numeral[1]):
            return Numeral(numeral[1], base)
    if re.fullmatch(r"(?:\\text\w*|\\mathrm|\\mbox)\s*\{[^{}]*\}", text):
        inner = FAMILIAR.sub(r"\1", text).strip().rstrip(".").strip()
        return read_tidy(inner) if re.fullmatch(r"[-+\d.,/ ()%]+", inner) else Words(inner)
    if re.fullmatch(r"\$?-?\\?\$?\s*[\d.,]+\s*(?:dollars?|cents?|euros?)?", text) and ("$" in text or "dollar" in text):
        text = re.sub(r"\\?\$|dollars?", "", text).strip()
    text, unit = without_unit(text)
    value = read_list(text)
    return Measured(value, unit) if unit else value


def without_unit(text: str) -> tuple[str, str]:
    r"""(the answer, its unit): a closing \text{...} or \mathrm{...}, or plain words after a number."""
    text = re.sub(r"^\\text\s*\{[^{}]*\}\s*(?=[-\d\\(\[$])", "", text)
    text = re.sub(r"\\?\$(?=\s*[\d.])", "", text)
    if found := re.search(r"(?:\\(?:text|textrm|mbox|mathrm|textbf)\s*" + BRACES + UNIT_EXPONENT + r"\s*)+$", text):
        letters = FAMILIAR.sub(r"\1", found[0]).strip()
        if text[: found.start()].strip() and letters not in ("i", "e"):
            value = re.sub(r"\^\s*\{?\s*\\circ\s*\}?\s*$", "", text[: found.start()])
            return value.strip(), re.sub(r"[\s{}.]+", "", letters).lower()
    if found := re.fullmatch(r"(-?[\d.,/ ]*\d)\s+([a-zA-Z][a-zA-Z /]*[a-zA-Z])(?:\^\{?\d\}?)?", text):
        words = found[2].split()
        if not set(words) & {"or", "and", "U", "pi", "sqrt"} and (len(words) > 1 or len(words[0]) > 2):
            return found[1].strip(), " ".join(words).lower()
    return FAMILIAR.sub(r"\1", text) if r"\text" not in text else text, ""


def read_list(text: str) -> Value:
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*%?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    words = text.replace("-", " ").split()
    is_text = re.fullmatch(r"[A-Za-z][A-Za-z' -]{3,}", text) and any(len(word) > 3 for word in words)
    if is_text and not set(words) & set(WORDS_OF_MATHS):
        return Words(text)
    if mixed := re.fullmatch(r"(-?)\s*(\d{1,9}) (\d{1,9})\s*/\s*(\d{1,9})", text):
        value = Fraction(int(mixed[2])) + Fraction(int(mixed[3]), int(mixed[4]))
        return rational(value * (-1 if mixed[1] else 1))
    if re.search(r"(?<![\d_])\d+ \d", re.sub(r"\\frac\s*\d\s*\d", "", text)):
        raise Unreadable  # two numbers side by side are no product
    tokens = tokens_of(text)
    pieces, commas = split(tokens, {",", ";", "and", "or"})
    if "or" in commas or "and" in commas:
        pieces = [piece for piece in pieces if piece]
    if len(pieces) == 1:
        return read_item(pieces[0])
    items = [read_item(piece) for piece in pieces]
    if "or" in commas and all(isinstance(item, Relation) and inequality(item) for item in items):
        return Region(tuple(part for item in items for part in region_of(item).parts))
    flat: list[Value] = []
    for item in items:
        flat += item.items if isinstance(item, Group) and item.kind == "list" else [item]
    return Group("list", tuple(flat))


def inequality(relation: Relation) -> bool:
    return all(sign in "<>≤≥" for sign in relation.signs)


def read_item(tokens: list[str]) -> Value:
    """One answer without commas outside of brackets: a relation, a region, a ratio, or a value."""
    if not tokens:
        raise Unreadable
    if r"\in" in tokens:
        sides, _ = split(tokens, {r"\in"})
        if len(sides) != 2 or len(sides[0]) > 6:
            raise Unreadable
        return read_item(sides[1])
    sides, signs = split(tokens, {"=", "<", ">", "≤", "≥", "≠", r"\approx"})
    if r"\approx" in signs:
        first = signs.index(r"\approx")
        sides, signs = sides[: first + 1], signs[:first]
    if signs:
        return Relation(tuple(read_item(side) for side in sides), tuple(signs))
    pieces, cups = split(tokens, {r"\cup"})
    if cups:
        return Region(tuple(part for piece in pieces for part in region_of(read_item(piece)).parts))
    pieces, minus = split(tokens, {r"\setminus"})
    if len(minus) == 1:
        whole, removed = region_of(read_item(pieces[0])), read_item(pieces[1])
        if not isinstance(removed, Group):
            raise Unreadable
        return Region(whole.parts, tuple(x for x in removed.items if isinstance(x, sympy.Expr)))
    parts, colons = split(tokens, {":"})
    if colons:
        return Ratio(tuple(expression(part) for part in parts))
    if tokens == [r"\reals"]:
        return Region((Interval(-sympy.oo, sympy.oo, True, True),))
    if tokens == [r"\emptyset"] or tokens in (["\\{", "\\}"],):
        return Group("set", ())
    if tokens[0].startswith(r"\begin") and tokens[-1].startswith(r"\end"):
        return matrix(tokens)
    if tokens[0] in OPENING and matching(tokens, 0) == len(tokens) - 1:
        return bracketed(tokens)
    return plus_minus(tokens)


def plus_minus(tokens: list[str]) -> Value:
    if r"\pm" not in tokens and r"\mp" not in tokens:
        return expression(tokens)
    plus = [{r"\pm": "+", r"\mp": "-"}.get(token, token) for token in tokens]
    minus = [{r"\pm": "-", r"\mp": "+"}.get(token, token) for token in tokens]
    return Group("list", (expression(plus), expression(minus)))


def bracketed(tokens: list[str]) -> Value:
    """What stands in one pair of brackets: a set, a tuple, an interval, or a value in parentheses."""
    opening, closing, inner = tokens[0], tokens[-1], tokens[1:-1]
    if opening == "\\{" and closing == "\\}":
        if "|" in inner or ":" in inner:
            parts, _ = split(inner, {"|", ":"})
            return region_of(read_item(parts[-1])) if len(parts) == 2 else expression(tokens)
        pieces, _ = split(inner, {",", ";"})
        items: list[Value] = []
        for piece in pieces:
            item = read_item(piece)
            items += item.items if isinstance(item, Group) and item.kind == "list" else [item]
        return Group("set", tuple(items))
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
    return plus_minus(tokens) if opening not in "([{" else read_item(inner)


def region_of(value: Value) -> Region:
    """A value as a region of the number line. Raises Unreadable where it is none."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Interval):
        return Region((value,))
    if isinstance(value, Group) and value.kind != "tuple":
        return Region(tuple(Interval(x, x, False, False) for x in value.items if isinstance(x, sympy.Expr)))
    if isinstance(value, Relation) and inequality(value):
        return relation_region(value)
    raise Unreadable


def expressions(values: tuple[Value, ...]) -> list[sympy.Expr]:
    """The values, all of them expressions. Raises Unreadable otherwise."""
    found = [value for value in values if isinstance(value, sympy.Expr)]
    if len(found) < len(values):
        raise Unreadable
    return found


def relation_region(relation: Relation) -> Region:
    """x ≤ 3, 1 < x < 2 and the like, with one variable alone on one side; −x > −1 by turning the sign."""
    sides, signs = expressions(relation.sides), list(relation.signs)
    if signs[0] in ">≥":
        sides, signs = sides[::-1], [{">": "<", "≥": "≤", "<": ">", "≤": "≥"}[s] for s in signs[::-1]]
    if not all(sign in "<≤" for sign in signs):
        raise Unreadable
    low, high, low_open, high_open = -sympy.oo, sympy.oo, True, True
    if len(sides) == 3:
        low, middle, high = sides
        low_open, high_open = signs[0] == "<", signs[1] == "<"
    elif sides[0].free_symbols:
        middle, high = sides
        high_open = signs[0] == "<"
    else:
        low, middle = sides
        low_open = signs[0] == "<"
    if len(middle.free_symbols) != 1 or low.free_symbols or high.free_symbols:
        raise Unreadable
    symbol = next(iter(middle.free_symbols))
    slope = middle.coeff(symbol, 1)
    shift = middle.coeff(symbol, 0)
    if not slope.is_Rational or slope == 0 or middle != slope * symbol + shift:
        raise Unreadable
    low, high = (low - shift) / slope, (high - shift) / slope
    if slope < 0:
        low, high, low_open, high_open = high, low, high_open, low_open
    return Region((Interval(low, high, low_open, high_open),))


def matrix(tokens: list[str]) -> Value:
    if tokens[0] != tokens[-1].replace("end", "begin") or any(t.startswith(r"\begin") for t in tokens[1:]):
        raise Unreadable
    name = tokens[0][7:-1]
    if name not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "array", "smallmatrix"):
        raise Unreadable
    inner = tokens[1:-1]
    if name == "array" and inner and inner[0] == "{":
        inner = inner[matching(inner, 0) + 1 :]
    rows, _ = split(inner, {r"\\"})
    read_rows = tuple(tuple(expression(cell) for cell in split(row, {"&"})[0]) for row in rows if row)
    if not read_rows or len({len(row) for row in read_rows}) != 1 or len(read_rows) * len(read_rows[0]) > 400:
        raise Unreadable
    if name == "vmatrix":
        if len(read_rows) != len(read_rows[0]) or len(read_rows) > 4:
            raise Unreadable
        return sympy.Matrix([list(row) for row in read_rows]).det()
    return Matrix(read_rows)


# ---------------------------------------------------------------------------------------------------------------------
# Expressions
# ---------------------------------------------------------------------------------------------------------------------


def rational(value: Fraction) -> sympy.Expr:
    return sympy.Rational(value.numerator, value.denominator)


def expression(tokens: list[str]) -> sympy.Expr:
    """A number or an expression in variables. Raises Unreadable."""
    parser = Parser(tokens)
    value = parser.sum()
    if parser.place != len(tokens) or value.has(sympy.nan, sympy.zoo):
        raise Unreadable
    return value.subs(sympy.Symbol("degree"), 1)  # outside of trigonometry the degree sign is a unit


FUNCTIONS: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    r"\sin": sympy.sin, r"\cos": sympy.cos, r"\tan": sympy.tan, r"\cot": sympy.cot, r"\sec": sympy.sec,
    r"\csc": sympy.csc, r"\arcsin": sympy.asin, r"\arccos": sympy.acos, r"\arctan": sympy.atan, r"\sinh": sympy.sinh,
    r"\cosh": sympy.cosh, r"\tanh": sympy.tanh, r"\ln": sympy.log, r"\exp": sympy.exp, r"\log": sympy.log,
    "abs": sympy.Abs,
}  # fmt: skip
INVERSE = {r"\sin": sympy.asin, r"\cos": sympy.acos, r"\tan": sympy.atan}
GREEK = {
    r"\alpha", r"\beta", r"\gamma", r"\delta", r"\epsilon", r"\theta", r"\lambda", r"\mu", r"\nu", r"\rho", r"\sigma",
    r"\tau", r"\phi", r"\varphi", r"\psi", r"\omega", r"\Omega", r"\Delta", r"\ell", r"\hbar", r"\eta", r"\xi",
    r"\zeta", r"\kappa", r"\chi", r"\varepsilon", r"\Gamma", r"\Phi", r"\Lambda", r"\Sigma",
}  # fmt: skip
ENDS = {
    "+",
    "-",
    "*",
    "/",
    ",",
    ")",
    "]",
    "}",
    "\\}",
    "^",
    "=",
    "!",
    "|",
    r"\rangle",
    r"\rfloor",
    r"\rceil",
    "&",
    "%",
    ":",
}


def power_of(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """base^exponent where its value, also at any point where expressions are compared, is small enough to compute."""
    if base.is_Rational and exponent.is_Rational:
        bits = max(abs(base.p).bit_length(), base.q.bit_length())
        if abs(exponent.p) * bits > MAX_POWER_BITS or exponent.q > 100 or (base == 0 and exponent <= 0):
            raise Unreadable
    elif base.is_number and exponent.is_number:
        size = max(abs(complex(base.evalf(15))), 1 / abs(complex(base.evalf(15))))
        if abs(complex(exponent.evalf(15))) * math.log2(size + 1) > MAX_POWER_BITS:
            raise Unreadable
    elif exponent.is_Rational:
        if abs(exponent.p) > 200 or exponent.q > 100:
            raise Unreadable
    elif tower_height(exponent) > 0 or exponent.has(sympy.factorial, sympy.binomial):
        raise Unreadable
    return base**exponent


def tower_height(value: sympy.Expr) -> int:
    """How many powers with a variable in the exponent stand on top of each other: 2 in 2^(3^x)."""
    exponents = [power.as_base_exp()[1] for power in value.atoms(sympy.Pow, sympy.exp)]
    return max((1 + tower_height(exponent) for exponent in exponents if exponent.free_symbols), default=0)


def root_of(value: sympy.Expr, degree: int) -> sympy.Expr:
    """The real root: ∛(−8) = −2."""
    if degree % 2 and value.is_extended_negative:
        return -((-value) ** sympy.Rational(1, degree))
    return value ** sympy.Rational(1, degree)


class Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable
        self.place += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable

    def sum(self) -> sympy.Expr:
        self.deeper()
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        self.depth -= 1
        return value

    def product(self, *, argument: bool = False) -> sympy.Expr:
        """Factors; as the argument of a function without parentheses it ends before the next function."""
        value = self.signed()
        while token := self.peek():
            if token == "*" and not argument:
                self.take()
                value = value * self.signed()
            elif token == "/" and not argument:
                self.take()
                value = self.divide(value, self.signed())
            elif token in ENDS or (argument and token in FUNCTIONS):
                break
            else:
                value = self.beside(value)
        return value

    def beside(self, left: sympy.Expr) -> sympy.Expr:
        """Two factors side by side; a whole number before a fraction of whole numbers is a mixed number."""
        before, start = self.tokens[self.place - 1], self.place
        if self.peek()[0].isdigit() and before[0].isdigit():
            raise Unreadable  # two numbers side by side are no product
        right = self.power()
        piece = self.tokens[start : self.place]
        whole = before.isdigit() and (start < 2 or self.tokens[start - 2] not in ("^", "_", "/", "*"))
        if whole and piece[0] == r"\frac" and all(t in (r"\frac", "{", "}") or t.isdigit() for t in piece):
            return left - right if left.is_extended_negative else left + right
        return left * right

    def signed(self) -> sympy.Expr:
        if self.peek() in ("-", "+"):
            self.deeper()
            value = -self.signed() if self.take() == "-" else self.signed()
            self.depth -= 1
            return value
        return self.power()

    def power(self) -> sympy.Expr:
        base = self.postfix()
        if self.peek() != "^":
            return base
        self.take()
        if self.peek() == r"\circ" or self.tokens[self.place : self.place + 3] == ["{", r"\circ", "}"]:
            self.place += 1 if self.peek() == r"\circ" else 3
            return base * sympy.Symbol("degree")
        self.deeper()
        exponent = self.exponent()
        self.depth -= 1
        value = power_of(base, exponent)
        while self.peek() == "!":
            self.take()
            value = self.factorial(value)
        return value

    def exponent(self) -> sympy.Expr:
        if self.peek() == "{":
            return self.group()
        if self.peek() in ("-", "+"):
            return -self.exponent() if self.take() == "-" else self.exponent()
        if len(self.peek()) > 1 and self.peek().isdigit() and self.place >= 2 and "**" not in self.tokens:
            return rational(Fraction(self.take()))
        return self.power()

    def postfix(self) -> sympy.Expr:
        value = self.atom()
        while self.peek() in ("!", "%"):
            value = self.factorial(value) if self.take() == "!" else value / 100
        return value

    def factorial(self, value: sympy.Expr) -> sympy.Expr:
        if value.is_number and not (value.is_Integer and 0 <= value <= MAX_FACTORIAL):
            raise Unreadable
        large = any(abs(n) > 100 for n in value.atoms(sympy.Rational))
        if value.free_symbols and (large or value.has(sympy.factorial, sympy.Pow)):
            raise Unreadable  # with a variable inside, the value could be beyond all bounds
        return sympy.factorial(value)

    def group(self) -> sympy.Expr:
        self.expect("{")
        value = self.sum()
        self.expect("}")
        return value

    def atom(self) -> sympy.Expr:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self.number(token)
        if token in ("(", "[", "{"):
            value = self.sum()
            self.expect({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token == "|":
            self.deeper()
            value = self.sum()
            self.expect("|")
            self.depth -= 1
            return sympy.Abs(value)
        if token in (r"\lfloor", r"\lceil"):
            value = self.sum()
            self.expect(r"\rfloor" if token == r"\lfloor" else r"\rceil")
            if tower_height(value) > 0 and value.free_symbols:
                raise Unreadable
            return sympy.floor(value) if token == r"\lfloor" else sympy.ceiling(value)
        if token == r"\frac":
            above = self.argument()
            return self.divide(above, self.argument())
        if token in (r"\binom", r"\dbinom", r"\tbinom"):
            n, k = self.argument(), self.argument()
            numbers = n.is_Integer and k.is_Integer and 0 <= k <= n <= MAX_FACTORIAL
            if not numbers and (n.is_number or n.has(sympy.factorial, sympy.Pow) or k.has(sympy.factorial, sympy.Pow)):
                raise Unreadable
            return sympy.binomial(n, k)
        if token == r"\sqrt":
            degree = sympy.Integer(2)
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.expect("]")
            if not degree.is_Integer or not 2 <= degree <= 100:
                raise Unreadable
            value = self.atom() if self.peek() == "(" else self.argument()
            return root_of(value, int(degree))
        if token in FUNCTIONS:
            return self.function(token)
        if token == r"\pi":
            return sympy.pi
        if token == r"\infty":
            return sympy.oo
        if token in (r"\mathrm", r"\text", r"\operatorname", r"\mathit"):
            return self.named()
        if (len(token) == 1 and token.isalpha() and token.isascii()) or token in GREEK:
            return self.variable(token)
        raise Unreadable

    def number(self, token: str) -> sympy.Expr:
        if len(token) > 4_000:
            raise Unreadable
        mantissa, _, exponent = token.lower().partition("e")
        if exponent and abs(int(exponent)) > 3_000:
            raise Unreadable
        value = Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)
        if self.peek() == r"\overline":  # 0.1\overline{36}: the bar repeats
            self.take()
            self.expect("{")
            digits = self.take()
            self.expect("}")
            if not digits.isdigit() or len(digits) > 50 or "." not in token:
                raise Unreadable
            places = len(token.partition(".")[2])
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
        return rational(value)

    def variable(self, token: str) -> sympy.Expr:
        if token == "e":
            return sympy.E
        if token == "i":
            return sympy.I
        name = token
        while self.peek() in ("_", "'"):
            if self.take() == "'":
                name += "'"
                continue
            if self.peek() == "{":
                end = matching(self.tokens, self.place)
                name += "_" + "".join(self.tokens[self.place + 1 : end])
                self.place = end + 1
            else:
                name += "_" + self.take()
        return sympy.Symbol(name, real=True)

    def named(self) -> sympy.Expr:
        self.expect("{")
        letters = ""
        while self.peek() != "}":
            letters += self.take()
        self.take()
        if letters in ("e", "i"):
            return self.variable(letters)
        if letters.isalpha():
            return sympy.Symbol(letters, real=True)
        raise Unreadable

    def argument(self) -> sympy.Expr:
        r"""What follows \frac or \sqrt: a group in braces, a command, or one digit or letter."""
        if self.peek() == "{":
            return self.group()
        if self.peek().startswith("\\"):
            return self.atom()
        token = self.take()
        if token.isdigit() and len(token) > 1:  # \frac12 is one half
            self.place -= 1
            self.tokens[self.place : self.place + 1] = list(token)
            token = self.take()
        if not (token.isdigit() or (len(token) == 1 and token.isalpha())):
            raise Unreadable
        return rational(Fraction(token)) if token.isdigit() else self.variable(token)

    def function(self, token: str) -> sympy.Expr:
        apply, exponent, base = FUNCTIONS[token], None, None
        for _ in range(2):
            if self.peek() == "^":
                self.take()
                exponent = self.group() if self.peek() == "{" else self.signed_atom()
            elif self.peek() == "_" and token == r"\log":
                self.take()
                base = self.argument()
        self.deeper()
        if self.peek() in ("(", "{", "["):
            value = self.atom()
            if self.peek() == "^" and exponent is None and token != r"\ln":
                self.place += 1
                exponent = self.exponent()
        else:
            value = self.product(argument=True)
        self.depth -= 1
        value = value.subs(sympy.Symbol("degree"), sympy.pi / 180)
        if token not in (r"\ln", r"\log", r"\exp", "abs") and tower_height(value) > 0:
            raise Unreadable  # the sine of a huge number needs as many digits of π
        if exponent == -1 and token in INVERSE:
            return INVERSE[token](value)
        if token == r"\exp":
            result = power_of(sympy.E, value)
        elif base is not None:
            if base.is_number and (base <= 0 or base == 1):
                raise Unreadable
            result = sympy.log(value) / sympy.log(base)
        else:
            result = apply(value)
        return result if exponent is None else power_of(result, exponent)

    def signed_atom(self) -> sympy.Expr:
        return -self.atom() if self.peek() == "-" and self.take() else self.atom()

    @staticmethod
    def divide(value: sympy.Expr, by: sympy.Expr) -> sympy.Expr:
        if by == 0:
            raise Unreadable
        return value / by
