r"""Do two final answers mean the same? Compared by meaning, kind by kind, the gold answer deciding what is asked for.

Cheap tests come first: the same text, the same number. Numbers are compared exactly, or to 50 digits; expressions in
variables at fixed points of several sizes and signs; equations by the ratio of their sides; intervals as regions of
the number line. Nothing here calls `simplify` or `solve`, whose time has no bound.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction

import sympy
from sympy.core.function import AppliedUndef

from verify.expression import ANY_INTEGER
from verify.parser import (
    TURNED,
    Congruence,
    Group,
    Matrix,
    Measured,
    Numeral,
    Ratio,
    Relation,
    Value,
    Words,
    expressions,
    is_inequality,
    read,
    read_spelling,
    region_of,
)
from verify.regions import Interval, Region, merged
from verify.text import MAX_LENGTH, THOUSANDS, Unreadable, tidy

NUMBER = re.compile(r"[-+]?\d{1,1000}(?:\.\d{1,1000})?", re.ASCII)
DIGITS = 60  # of a number that is no fraction; two numbers agree where 50 of them do
MAX_DIGITS = 700  # that may cancel in a difference, before it counts as 0


def is_equivalent(answer: str, gold: str, *, rel_tol: float = 0.0) -> bool:
    """Do two answers mean the same? Decimals are exact; `rel_tol` allows a relative difference of numbers."""
    if answer.strip() == gold.strip():
        return bool(tidy(gold[:MAX_LENGTH])) and balanced(gold)
    if max(len(answer), len(gold)) > MAX_LENGTH:
        return False
    answer, gold = tidy(answer), tidy(gold)
    if not answer or not gold or not balanced(answer) or not balanced(gold):
        return False
    if answer == gold:
        return True
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold) and rel_tol == 0:
        return Fraction(answer) == Fraction(gold)
    if re.fullmatch(r"(?:[Oo]ption |[Cc]hoice )?\(?[A-J]\)?|\([A-J]\) .*", words_of(gold)):
        return choice_of(answer) == choice_of(gold)
    if equivalent_spelling(answer, gold, rel_tol):
        return True
    if (THOUSANDS.fullmatch(answer) and ", " in gold) or (THOUSANDS.fullmatch(gold) and ", " in answer):
        one, other = (spelling.replace(", ", ",").replace(",", ", ") for spelling in (answer, gold))
        return one.count(",") == other.count(",") and equivalent_spelling(one, other, rel_tol)  # a list: 101, 112
    if ("%" in answer) != ("%" in gold):
        return equivalent_spelling(re.sub(r"\\?%", "", answer), re.sub(r"\\?%", "", gold), rel_tol)
    return False


def equivalent_spelling(answer: str, gold: str, rel_tol: float) -> bool:
    left, right = read_spelling(answer), read_spelling(gold)
    if left is None or right is None or isinstance(left, Words) or isinstance(right, Words):
        one, other = words_of(answer), words_of(gold)
        if isinstance(left, Words) or isinstance(right, Words):
            one, other = one.casefold(), other.casefold()
        return one == other and len(one) > 1 and not one.isdigit()
    try:
        return same(left, right, rel_tol)
    except Exception:  # Unreadable, and whatever sympy raises where it cannot decide
        return False


def readable(gold: str) -> bool:
    """Can answers be compared with this gold by meaning? Words and the letters of choices can."""
    return len(gold) <= MAX_LENGTH and balanced(gold) and read(gold) is not None


def balanced(text: str) -> bool:
    """Is every brace closed, and none before it is opened?"""
    depth = 0
    for match in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def words_of(text: str) -> str:
    r"""The text without \text{} around it, spaces and closing full stop made plain."""
    text = re.sub(r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s*,\s*(?:and )?| and ", ",", " ".join(text.split())).strip(" .")


def choice_of(answer: str) -> str | None:
    """The letter of a choice: B, (B), B., (B) 12, Option B. None where there are several."""
    words = words_of(tidy(answer))
    found = re.match(r"(?:option|choice|answer)?\s*(?:\(([A-J])\)|([A-J])(?=$|[.):]))", words, re.I)
    if not found or re.search(r"(?:,|/|\bor\b|&)\s*\(?[A-J]\b", words[found.end() :]):
        return None
    return (found[1] or found[2]).upper()


def same(left: Value, right: Value, rel_tol: float) -> bool:
    """Do two values mean the same? `right` is the gold, and decides where a form can be read in two ways."""
    try:
        return same_value(left, right, rel_tol)
    except Unreadable:  # one of them is not of the kind that the other one asks for
        return False


def same_value(left: Value, right: Value, rel_tol: float) -> bool:
    if isinstance(left, Measured) or isinstance(right, Measured):
        one, other = (left, right) if isinstance(left, Measured) else (right, left)
        assert isinstance(one, Measured)
        if isinstance(other, sympy.Expr) and one.product is not None and same(one.product, other, rel_tol):
            return True
        units = [value.unit for value in (left, right) if isinstance(value, Measured)]
        if sorted(units) == ["cent", "dollar"]:
            left, right = (in_cents(value) for value in (left, right))
            return same_expression(left, right, rel_tol)
        left = left.value if isinstance(left, Measured) else left
        right = right.value if isinstance(right, Measured) else right
        return len(set(units)) == 1 and same(left, right, rel_tol)
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return same_expression(left, right, rel_tol)
    if isinstance(left, Relation) or isinstance(right, Relation):
        return same_relation(left, right, rel_tol)
    if isinstance(left, Numeral | Words) or isinstance(right, Numeral | Words):
        return left == right
    if isinstance(left, Congruence) or isinstance(right, Congruence):
        return same_congruence(left, right)
    if isinstance(left, Ratio) or isinstance(right, Ratio):
        return same_ratio(left, right, rel_tol)
    if isinstance(left, Region) or isinstance(right, Region):
        return same_region(region_of(left), region_of(right), rel_tol)
    if isinstance(left, Interval) and isinstance(right, Interval):
        return same_interval(left, right, rel_tol)
    if isinstance(left, Matrix) and isinstance(right, Matrix):
        if len(left.rows) != len(right.rows) or len(left.rows[0]) != len(right.rows[0]):
            return False
        cells = zip(sum(left.rows, ()), sum(right.rows, ()), strict=True)
        return all(same_expression(a, b, rel_tol) for a, b in cells)
    if isinstance(left, Group) and isinstance(right, Group) and left.joint != right.joint and several_names(left):
        return False  # a = 0 and b = 0 is not a = 0 or b = 0
    left, right = as_point(left, right), as_point(right, left)
    a, b = sequence(left), sequence(right)
    if a is not None and b is not None and "tuple" in (kind_of(left), kind_of(right)):
        return len(a) == len(b) and all(same(x, y, rel_tol) for x, y in zip(a, b, strict=True))
    if isinstance(left, Group) or isinstance(right, Group):
        return same_members(members(left), members(right), rel_tol)
    return False


def in_cents(amount: Value) -> sympy.Expr:
    """Raises Unreadable where it is no number."""
    if not isinstance(amount, Measured) or not isinstance(amount.value, sympy.Expr):
        raise Unreadable
    return amount.value * (100 if amount.unit == "dollar" else 1)


def kind_of(value: Value) -> str:
    return value.kind if isinstance(value, Group) else "tuple" if isinstance(value, Interval | Matrix) else "value"


def sequence(value: Value) -> tuple[Value, ...] | None:
    """The entries of a tuple, a point (a, b), a vector, or a list written without brackets."""
    if isinstance(value, Group) and value.kind in ("tuple", "list"):
        return value.items
    if isinstance(value, Interval) and value.low_open and value.high_open:
        return (value.low, value.high)
    if isinstance(value, Matrix) and 1 in (len(value.rows), len(value.rows[0])):
        return tuple(cell for cells in value.rows for cell in cells)
    return None


def several_names(value: Group) -> bool:
    """Is it a list of relations on different variables?"""
    relations = [item for item in value.items if isinstance(item, Relation)]
    sides = [side for item in relations for side in item.sides if isinstance(side, sympy.Expr)]
    return len(relations) == len(value.items) and len(set().union(*(side.free_symbols for side in sides))) > 1


def as_point(value: Value, other: Value) -> Value:
    """y = 2, x = 1 as the point (1, 2), or in the order as written beside a list, where the other side names nothing.

    x_1 = 1, x_2 = 2 are two values of the same unknown, in no order.
    """
    others = other.items if isinstance(other, Group) else ()
    if not isinstance(value, Group) or value.kind != "list" or any(isinstance(item, Relation) for item in others):
        return value
    named = {str(item.sides[0]): item for item in value.items if isinstance(item, Relation) and item.names}
    if len(named) < max(2, len(value.items)) or len({name.partition("_")[0] for name in named}) == 1:
        return value
    listed = isinstance(other, Group) and other.kind == "list"
    return Group("tuple", tuple(named[name] for name in (named if listed else sorted(named))))


def members(value: Value) -> tuple[Value, ...]:
    return value.items if isinstance(value, Group) and value.kind != "tuple" else (value,)


def same_members(left: tuple[Value, ...], right: tuple[Value, ...], rel_tol: float) -> bool:
    """Without order, and a repeated member counts once."""
    numbers = [{item for item in items if isinstance(item, sympy.Rational)} for items in (left, right)]
    if numbers[0] != numbers[1] and rel_tol == 0 and all(isinstance(item, sympy.Rational) for item in (*left, *right)):
        return False
    left, right = (tuple(item for item in items if item not in numbers[0] & numbers[1]) for items in (left, right))
    if len(left) > 30 or len(right) > 30:
        return False
    return all(any(same(a, b, rel_tol) for b in right) for a in left) and all(
        any(same(a, b, rel_tol) for a in left) for b in right
    )


def same_congruence(left: Value, right: Value) -> bool:
    """The same class; a bare number is the remainder that it gives."""
    if isinstance(left, Congruence) and isinstance(right, Congruence):
        same_name = left.name == right.name or "" in (left.name, right.name)
        return same_name and (left.value, left.modulus) == (right.value, right.modulus)
    numbers = [value.value if isinstance(value, Congruence) else value for value in (left, right)]
    return isinstance(numbers[0], sympy.Expr) and numbers[0] == numbers[1]


def same_ratio(left: Value, right: Value, rel_tol: float) -> bool:
    if not (isinstance(left, Ratio) and isinstance(right, Ratio)) or len(left.parts) != len(right.parts):
        return False
    first, second = left.parts[0], right.parts[0]
    clock = left.clock and right.clock
    if clock or any(part == 0 for part in (*left.parts, *right.parts)):
        first = second = sympy.Integer(1)  # a time of day such as 5:00 is no proportion
    return all(same_expression(a * second, b * first, rel_tol) for a, b in zip(left.parts, right.parts, strict=True))


def assigned(value: Value) -> Value | None:
    """What `x = ...` or `f(x) = ...` gives to its left side, or what a chain of equal numbers is; else None."""
    if not isinstance(value, Relation) or set(value.signs) != {"="}:
        return None
    if value.names:  # but in x = y = 2 there is more than the last value
        return None if any(isinstance(side, sympy.Symbol) for side in value.sides[1:-1]) else value.sides[-1]
    if all(isinstance(side, sympy.Expr) and side.is_number for side in value.sides):
        last = value.sides[-1]
        return last if all(same(side, last, 0.0) for side in value.sides) else None
    return None


def same_relation(left: Value, right: Value, rel_tol: float) -> bool:
    if isinstance(left, Relation) and isinstance(right, Relation):
        if is_inequality(left) != is_inequality(right):
            return False
        if is_inequality(left):
            return same_inequality(left, right, rel_tol)
        return same_equation(left, right, rel_tol)
    relation, other = (left, right) if isinstance(left, Relation) else (right, left)
    if isinstance(relation, Relation) and is_inequality(relation):
        return same_region(region_of(relation), region_of(other), rel_tol)
    value = assigned(relation)
    return value is not None and same(value, other, rel_tol)


def same_equation(left: Relation, right: Relation, rel_tol: float) -> bool:
    """The same assignment, or the same curve: left sides minus right sides with a constant ratio that is not 0."""
    a, b = assigned(left), assigned(right)
    if a is not None and b is not None and left.sides[0] == right.sides[0] and same(a, b, rel_tol):
        return True
    if len(left.signs) != len(right.signs):
        return False
    if len(left.signs) > 1:
        return same_members(left.sides, right.sides, rel_tol)
    if left.signs != right.signs:
        return False
    sides = expressions((*left.sides, *right.sides))
    return constant_ratio(sides[0] - sides[1], sides[2] - sides[3], rel_tol) not in (None, 0)


def same_inequality(left: Relation, right: Relation, rel_tol: float) -> bool:
    """The same region of the same variable; else side by side; else turned into each other by a constant factor."""
    sides = expressions((*left.sides, *right.sides))
    middle = len(left.sides)
    names = [set().union(*(side.free_symbols for side in part)) for part in (sides[:middle], sides[middle:])]
    if names[0] != names[1]:
        return False
    try:
        return same_region(region_of(left), region_of(right), rel_tol)
    except Unreadable:
        pass
    turned = Relation(right.sides[::-1], tuple(TURNED[sign] for sign in right.signs[::-1]))
    for other in (right, turned):
        if left.signs == other.signs and all(same(a, b, rel_tol) for a, b in zip(left.sides, other.sides, strict=True)):
            return True
    if len(left.signs) != 1 or len(right.signs) != 1:
        return False
    ratio = constant_ratio(sides[0] - sides[1], sides[2] - sides[3], rel_tol)
    if ratio in (None, 0):
        return False
    return left.signs[0] == (right.signs[0] if ratio > 0 else TURNED[right.signs[0]])


def constant_ratio(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> sympy.Expr | None:
    """left/right where it is the same real number at every point; None where it is not."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols or left.free_symbols != right.free_symbols:
        return None
    ratios = []
    for values in places(symbols):
        a, b = computed(left, values), computed(right, values)
        if a.is_Float and b.is_Float and b != 0:
            ratios.append(a / b)
    if len(ratios) < 3 or any(not close(ratio, ratios[0], rel_tol) for ratio in ratios):
        return None
    return ratios[0]


def same_region(left: Region, right: Region, rel_tol: float) -> bool:
    try:
        pairs = list(zip(merged(left), merged(right), strict=True))
    except Unreadable:  # ends in variables have no order
        return same_members(left.parts, right.parts, rel_tol)
    except ValueError:  # not as many intervals
        return False
    return all(same_interval(a, b, rel_tol) for a, b in pairs)


def same_interval(left: Interval, right: Interval, rel_tol: float) -> bool:
    ends = (left.low_open, left.high_open) == (right.low_open, right.high_open)
    return ends and same_expression(left.low, right.low, rel_tol) and same_expression(left.high, right.high, rel_tol)


# ---------------------------------------------------------------------------------------------------------------------
# Expressions
# ---------------------------------------------------------------------------------------------------------------------


def same_expression(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> bool:
    """Exact for rational numbers, to 50 digits for other numbers, and at several points for expressions."""
    if left == right:
        return True
    if left.has(sympy.oo) or right.has(sympy.oo):
        return False
    if left.has(ANY_INTEGER) or right.has(ANY_INTEGER):
        return same_family(left, right, rel_tol)
    if left.is_Rational and right.is_Rational:
        if rel_tol == 0:
            return False
        return abs(left - right) <= sympy.Rational(rel_tol) * max(abs(left), abs(right))
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    only = [left.free_symbols - right.free_symbols, right.free_symbols - left.free_symbols]
    counters = [{str(symbol) for symbol in names} for names in only]
    if all(len(names) == 1 and names <= set("nkm") for names in counters):  # the letter of a family does not matter
        return same_family(left, right, rel_tol)
    if not symbols:
        return close(computed(left, {}), computed(right, {}), rel_tol)
    bars = left.has(sympy.Abs) != right.has(sympy.Abs)
    real: list[bool] = []
    others: list[bool] = []
    points = places(symbols)
    if left.has(sympy.floor, sympy.ceiling) or right.has(sympy.floor, sympy.ceiling):
        points += whole_places(symbols)
    for values in points:
        a, b = computed(left, values), computed(right, values)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            continue
        if bars and a.is_Float != b.is_Float:
            return False  # ln x is not ln |x|
        (real if a.is_Float and b.is_Float else others).append(close(a, b, rel_tol))
    # Variables are real: where enough points give real values, complex ones (logarithms of negatives) do not count.
    verdicts = real if len(real) >= 2 else real + others
    return len(verdicts) >= 2 and all(verdicts)


def computed(value: sympy.Expr, values: dict[sympy.Symbol, sympy.Expr]) -> sympy.Expr:
    """The value at a point, to 60 digits. An unknown function has a random value, which depends on its argument."""
    if value.has(AppliedUndef):
        value = value.subs(values)
        while unknown := value.atoms(AppliedUndef):
            inner = min(unknown, key=lambda applied: len(applied.atoms(AppliedUndef)))
            argument = [a.evalf(20) for a in inner.args]
            value = value.subs(inner, sympy.Rational(random.Random(f"{inner.func} {argument}").randrange(1, 10**6), 41))
    return value.evalf(DIGITS, subs=values, maxn=MAX_DIGITS)


def same_family(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> bool:
    """a + bn for all whole numbers n: the same numbers where the steps are equal and the starts whole steps apart."""
    letters = [sympy.Symbol(name, real=True) for name in "nkm"]
    left, right = (
        side if side.has(ANY_INTEGER) else side.subs({letter: ANY_INTEGER for letter in letters})
        for side in (left, right)
    )
    starts, firsts, seconds = ([side.subs(ANY_INTEGER, number) for side in (left, right)] for number in range(3))
    steps = [first - start for start, first in zip(starts, firsts, strict=True)]
    linear = all(
        same_expression(second - first, step, rel_tol)
        for first, second, step in zip(firsts, seconds, steps, strict=True)
    )
    if not linear or 0 in steps:
        number = sympy.Symbol("n", real=True)
        return same_expression(left.subs(ANY_INTEGER, number), right.subs(ANY_INTEGER, number), rel_tol)
    if not same_expression(steps[0], steps[1], rel_tol) and not same_expression(steps[0], -steps[1], rel_tol):
        return False
    apart = ((starts[0] - starts[1]) / steps[0]).evalf(DIGITS)
    return bool(apart.is_real and abs(apart - round(apart)) < sympy.Float("1e-40"))


def places(symbols: list[sympy.Symbol]) -> list[dict[sympy.Symbol, sympy.Expr]]:
    """Points at which expressions in these variables are compared: fixed, in no pattern, of several sizes and signs."""
    ranges = [(-800, 1_200), (-800, 1_200), (-800, 1_200), (41, 1_200), (1, 40), (4_100, 90_000), (-40, 40), (-300, 0)]
    return [
        {symbol: sympy.Rational(random.Random(f"{number} {symbol}").randrange(*span), 41) for symbol in symbols}
        for number, span in enumerate(ranges)
    ]


def whole_places(symbols: list[sympy.Symbol]) -> list[dict[sympy.Symbol, sympy.Expr]]:
    """Points of whole numbers, at which what is rounded takes its steps."""
    return [
        {
            symbol: sympy.Integer((start + place * random.Random(start).randrange(30)) % 41 - 6)
            for place, symbol in enumerate(symbols)
        }
        for start in range(41)
    ]


def close(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> bool:
    """Do two computed numbers agree? 0 agrees with what is 0 as far as it could be computed, not with what is small."""
    if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
        return False
    size = max(abs(left), abs(right))
    if bool(abs(left - right) <= max(rel_tol, 1e-50) * size):
        return True
    return all(part == 0 or part._prec == 1 for number in (left, right) for part in number.as_real_imag())
