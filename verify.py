r"""Is an answer right? Extract the final answer of a text and compare it with the gold answer by meaning.

The conventions, in short: decimals are exact values; a unit or a percent sign on one side only is ignored; sets and
lists have no order, tuples have; (1, 2) is a point or an interval as the gold is; equations agree up to a factor;
variables are real, and R is not r; the last complete box of a text is its answer, and a truncated box is none.

Text that a model wrote is read by answer_parser.py and never evaluated as code.
"""

from __future__ import annotations

import random
import re

import sympy

from answer_parser import (
    MAX_LENGTH,
    Group,
    Interval,
    Matrix,
    Measured,
    Numeral,
    Ratio,
    Region,
    Relation,
    Unreadable,
    Value,
    Words,
    expressions,
    inequality,
    read,
    region_of,
    tidy,
)

TEXT_END = 100_000  # characters searched for an answer, from the end of the text
DIGITS = 60  # of a number that is no fraction; two numbers agree where 50 of them do

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(-?\w+)(?![\w{]))")
BOX_OR_BRACE = re.compile(BOX.pattern + r"|(?<!\\)[{}]")
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?|-?\.\d+")
LEAD = re.compile(r"(?:answer|solution|result)\s*(?:is|are|:|=)+\s*:?\s*(?:\*\*)?\s*", re.IGNORECASE)
LED = re.compile(
    r"\$\$?[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]|\*\*.+?\*\*|[^\n]*?(?=\*\*|\.(?:\s|$)|\n|$)"
)  # what follows "the answer is": a formula, bold text, or the rest of the sentence

# ---------------------------------------------------------------------------------------------------------------------
# Extraction
# ---------------------------------------------------------------------------------------------------------------------


def extract_answer(text: str) -> str | None:
    r"""The final answer of a text, or None.

    The last complete `\boxed{}` that is not empty; else the last `#### x`, `<answer>x</answer>`, `the answer is x`;
    else the last number of the text's final sentence. A text that ends inside a box or inside its reasoning has none.
    """
    text = text[-TEXT_END:]
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return None
    boxed, truncated = last_box(text)
    if boxed is not None:
        return boxed
    if truncated:
        return None
    if marked := re.findall(r"####\s*(\S[^\n]*)", text):
        return marked[-1].strip()
    if tagged := re.findall(r"<answer>([^<]*)</answer>", text):
        return tagged[-1].strip() or None
    for lead in reversed([match.end() for match in LEAD.finditer(text)][-3:]):
        led = LED.match(text[lead : lead + 1_000])
        answer = led[0].strip().strip("*").strip().rstrip(".").strip() if led else ""
        if answer and (re.search(r"[\d\\$]", answer) or len(answer.split()) <= 3):
            return answer
    sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if s.strip()]
    numbers = NUMBER.findall(sentences[-1]) if sentences else []
    return numbers[-1] if numbers else None


def last_box(text: str) -> tuple[str | None, bool]:
    """(content of the last complete box that is not empty, is there a box that was never closed)."""
    open_braces: list[tuple[bool, int]] = []  # (is it a box, where its content starts)
    boxed = None
    for match in BOX_OR_BRACE.finditer(text):
        if match[0] == "}":
            if open_braces:
                is_box, start = open_braces.pop()
                content = text[start : match.start()].strip()
                if is_box and content:
                    boxed = last_box(content)[0] or content
        elif match[1]:
            boxed = match[1]
        else:
            open_braces.append((match[0] != "{", match.end()))
    return boxed, any(is_box for is_box, _ in open_braces)


def is_correct(text: str, gold: str, choices: list[str] | None = None, *, rel_tol: float = 0.0) -> bool:
    """Does the final answer of the text equal the gold answer? With `choices`, the gold is a letter: A, B, ..."""
    answer = extract_answer(text)
    if choices:
        letter = choice_of(answer or "")
        if letter is None:
            letters = re.findall(r"\b([A-Z])\b", text[-1_000:])
            letter = letters[-1] if letters else None
        return letter == gold.strip().strip("()").upper()
    return answer is not None and is_equivalent(answer, gold, rel_tol=rel_tol)


def grade(texts: list[str], golds: list[str], choices: list[list[str] | None] | None = None) -> list[bool | None]:
    """For each text: is it right? None where the gold answer itself is empty, malformed or over the limits."""
    options = choices or [None] * len(texts)
    return [
        is_correct(text, gold, option) if readable(gold) else None
        for text, gold, option in zip(texts, golds, options, strict=True)
    ]


def readable(gold: str) -> bool:
    """Can answers be compared with this gold? Words and choices can."""
    return bool(tidy(gold[:MAX_LENGTH])) and len(gold) <= MAX_LENGTH and balanced(gold)


def balanced(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth < 0:
            return False
    return depth == 0


# ---------------------------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------------------------


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
    letter = re.fullmatch(r"\(?([A-J])\)?", words_of(gold))
    if letter:
        return choice_of(answer) == letter[1]
    if equivalent_spelling(answer, gold, rel_tol):
        return True
    if ("%" in answer) != ("%" in gold):
        return equivalent_spelling(re.sub(r"\\?%", "", answer), re.sub(r"\\?%", "", gold), rel_tol)
    return False


def equivalent_spelling(answer: str, gold: str, rel_tol: float) -> bool:
    left, right = read(answer), read(gold)
    if isinstance(left, Words) or isinstance(right, Words) or left is None or right is None:
        words = words_of(answer)
        return len(words) > 1 and words.casefold() == words_of(gold).casefold() and not words.isdigit()
    try:
        return same(left, right, rel_tol)
    except (Unreadable, RecursionError, ZeroDivisionError, OverflowError, ValueError, TypeError, NotImplementedError):
        return False


def words_of(text: str) -> str:
    r"""The text without \text{} around it, spaces and closing full stop made plain."""
    text = re.sub(r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s*,\s*", ",", " ".join(text.split())).strip(" .")


def choice_of(answer: str) -> str | None:
    """The letter of a choice: B, (B), B., (B) 12, Option B."""
    found = re.match(r"(?:option|choice|answer)?\s*(?:\(([A-J])\)|([A-J])(?=$|[.):,\s]))", words_of(tidy(answer)), re.I)
    return (found[1] or found[2]).upper() if found else None


def same(left: Value, right: Value, rel_tol: float) -> bool:
    """Do two values mean the same? `right` is the gold, and decides where a form can be read in two ways."""
    if isinstance(left, Measured) or isinstance(right, Measured):
        units = [value.unit for value in (left, right) if isinstance(value, Measured)]
        left = left.value if isinstance(left, Measured) else left
        right = right.value if isinstance(right, Measured) else right
        return len(set(units)) == 1 and same(left, right, rel_tol)
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return same_expression(left, right, rel_tol)
    if isinstance(left, Numeral) or isinstance(right, Numeral):
        return left == right
    if isinstance(left, Ratio) or isinstance(right, Ratio):
        return same_ratio(left, right, rel_tol)
    if isinstance(left, Relation) or isinstance(right, Relation):
        return same_relation(left, right, rel_tol)
    if isinstance(left, Region) or isinstance(right, Region):
        return same_region(region_of(left), region_of(right), rel_tol)
    if isinstance(left, Interval) and isinstance(right, Interval):
        ends = (left.low_open, left.high_open) == (right.low_open, right.high_open)
        return ends and same(left.low, right.low, rel_tol) and same(left.high, right.high, rel_tol)
    if isinstance(left, Matrix) and isinstance(right, Matrix):
        if len(left.rows) != len(right.rows) or len(left.rows[0]) != len(right.rows[0]):
            return False
        cells = zip(sum(left.rows, ()), sum(right.rows, ()), strict=True)
        return all(same_expression(a, b, rel_tol) for a, b in cells)
    a, b = sequence(left), sequence(right)
    if a is not None and b is not None and "tuple" in (kind_of(left), kind_of(right)):
        return len(a) == len(b) and all(same(x, y, rel_tol) for x, y in zip(a, b, strict=True))
    if isinstance(left, Group) or isinstance(right, Group):
        return same_members(members(left), members(right), rel_tol)
    return False


def kind_of(value: Value) -> str:
    return value.kind if isinstance(value, Group) else "tuple" if isinstance(value, Interval | Matrix) else "value"


def sequence(value: Value) -> tuple[Value, ...] | None:
    """The entries of a tuple, a point (a, b), a column vector, or a list written without brackets."""
    if isinstance(value, Group) and value.kind in ("tuple", "list"):
        return value.items
    if isinstance(value, Interval) and value.low_open and value.high_open:
        return (value.low, value.high)
    if isinstance(value, Matrix) and len(value.rows[0]) == 1:
        return tuple(row[0] for row in value.rows)
    return None


def members(value: Value) -> tuple[Value, ...]:
    return value.items if isinstance(value, Group) and value.kind != "tuple" else (value,)


def same_members(left: tuple[Value, ...], right: tuple[Value, ...], rel_tol: float) -> bool:
    """Without order, and a repeated member counts once."""
    if len(left) > 100 or len(right) > 100:
        return False
    return all(any(same(a, b, rel_tol) for b in right) for a in left) and all(
        any(same(a, b, rel_tol) for a in left) for b in right
    )


def same_ratio(left: Value, right: Value, rel_tol: float) -> bool:
    if not (isinstance(left, Ratio) and isinstance(right, Ratio)) or len(left.parts) != len(right.parts):
        return False
    first, second = left.parts[0], right.parts[0]
    if first == 0 or second == 0 or any(part == 0 for part in (*left.parts, *right.parts)):
        first = second = sympy.Integer(1)  # a time of day such as 5:00 is no proportion
    return all(same_expression(a * second, b * first, rel_tol) for a, b in zip(left.parts, right.parts, strict=True))


def assigned(value: Value) -> Value | None:
    """What `x = ...`, `f(x) = ...` or `(x, y) = ...` gives to its left side; None where it is no assignment."""
    if not isinstance(value, Relation) or set(value.signs) != {"="}:
        return None
    name = value.sides[0]
    if isinstance(name, Interval):
        named = isinstance(name.low, sympy.Symbol) and isinstance(name.high, sympy.Symbol)
    else:
        named = isinstance(name, sympy.Symbol) or (
            isinstance(name, sympy.Mul) and len(name.args) == 2 and all(isinstance(x, sympy.Symbol) for x in name.args)
        )
    return value.sides[-1] if named else None


def same_relation(left: Value, right: Value, rel_tol: float) -> bool:
    if isinstance(left, Relation) and isinstance(right, Relation):
        if inequality(left) != inequality(right):
            return False
        if inequality(left):
            return same_inequality(left, right, rel_tol)
        return same_equation(left, right, rel_tol)
    relation, other = (left, right) if isinstance(left, Relation) else (right, left)
    if isinstance(relation, Relation) and inequality(relation):
        return same_region(region_of(relation), region_of(other), rel_tol)
    value = assigned(relation)
    return value is not None and same(value, other, rel_tol)


def same_equation(left: Relation, right: Relation, rel_tol: float) -> bool:
    """The same assignment, or the same curve: left sides minus right sides with a constant ratio that is not 0."""
    a, b = assigned(left), assigned(right)
    if a is not None and b is not None and left.sides[0] == right.sides[0] and same(a, b, rel_tol):
        return True
    if len(left.signs) > 1 or len(right.signs) > 1 or left.signs != right.signs:
        return False
    sides = expressions((*left.sides, *right.sides))
    return constant_ratio(sides[0] - sides[1], sides[2] - sides[3], rel_tol) not in (None, 0)


def same_inequality(left: Relation, right: Relation, rel_tol: float) -> bool:
    try:
        return same_region(region_of(left), region_of(right), rel_tol)
    except Unreadable:
        pass
    turned = {">": "<", "≥": "≤", "<": ">", "≤": "≥"}
    if len(left.signs) != 1 or len(right.signs) != 1:
        return False
    sides = expressions((*left.sides, *right.sides))
    ratio = constant_ratio(sides[0] - sides[1], sides[2] - sides[3], rel_tol)
    if ratio in (None, 0):
        return False
    return left.signs[0] == (right.signs[0] if ratio > 0 else turned[right.signs[0]])


def constant_ratio(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> sympy.Expr | None:
    """left/right where it is the same real number at every point; None where it is not."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols or left.free_symbols != right.free_symbols:
        return None
    ratios = []
    for values in places(symbols):
        a, b = left.evalf(DIGITS, subs=values), right.evalf(DIGITS, subs=values)
        if a.is_Float and b.is_Float and b != 0:
            ratios.append(a / b)
    if len(ratios) < 3 or any(not close(ratio, ratios[0], rel_tol) for ratio in ratios):
        return None
    return ratios[0]


def same_region(left: Region, right: Region, rel_tol: float) -> bool:
    a, b = merged(left), merged(right)
    if len(a) != len(b):
        return False
    return all(
        (x.low_open, x.high_open) == (y.low_open, y.high_open)
        and same_expression(x.low, y.low, rel_tol)
        and same_expression(x.high, y.high, rel_tol)
        for x, y in zip(a, b, strict=True)
    )


def merged(region: Region) -> list[Interval]:
    """The region as intervals in order, none of which touch."""
    parts = []
    for part in region.parts:
        if not (part.low.is_extended_real and part.high.is_extended_real):
            raise Unreadable
        if part.low < part.high or (part.low == part.high and not part.low_open and not part.high_open):
            low_open, high_open = part.low_open or part.low == -sympy.oo, part.high_open or part.high == sympy.oo
            parts.append(Interval(part.low, part.high, low_open, high_open))
    for point in region.without:
        split_parts = []
        for part in parts:
            if part.low < point < part.high:
                split_parts.append(Interval(part.low, point, part.low_open, True))
                split_parts.append(Interval(point, part.high, True, part.high_open))
            else:
                low_open, high_open = part.low_open or part.low == point, part.high_open or part.high == point
                split_parts.append(Interval(part.low, part.high, low_open, high_open))
        parts = split_parts
    parts.sort(key=lambda part: (float(part.low), part.low_open))
    joined: list[Interval] = []
    for part in parts:
        last = joined[-1] if joined else None
        touches = last is not None and (
            part.low < last.high or (part.low == last.high and not (part.low_open and last.high_open))
        )
        if last is None or not touches:
            joined.append(part)
        elif part.high > last.high or (part.high == last.high and not part.high_open):
            joined[-1] = Interval(last.low, part.high, last.low_open, part.high_open)
    return joined


# ---------------------------------------------------------------------------------------------------------------------
# Expressions
# ---------------------------------------------------------------------------------------------------------------------


def same_expression(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> bool:
    """Exact for rational numbers, to 50 digits for other numbers, and at several points for expressions."""
    if left == right:
        return True
    if left.has(sympy.oo) or right.has(sympy.oo):
        return False
    if left.is_Rational and right.is_Rational:
        if rel_tol == 0:
            return False
        return abs(left - right) <= sympy.Rational(rel_tol) * max(abs(left), abs(right))
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols:
        return close(left.evalf(DIGITS), right.evalf(DIGITS), rel_tol)
    real: list[bool] = []
    others: list[bool] = []
    for values in places(symbols):
        a, b = left.evalf(DIGITS, subs=values), right.evalf(DIGITS, subs=values)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            continue
        (real if a.is_Float and b.is_Float else others).append(close(a, b, rel_tol))
    # Variables are real: where enough points give real values, complex ones (logarithms of negatives) do not count.
    verdicts = real if len(real) >= 2 else real + others
    return len(verdicts) >= 2 and all(verdicts)


def places(symbols: list[sympy.Symbol]) -> list[dict[sympy.Symbol, sympy.Expr]]:
    """Points at which expressions in these variables are compared: fixed, positive and negative, in no pattern."""
    return [
        {symbol: sympy.Rational(random.Random(f"{row} {symbol}").randrange(-799, 1_200, 2), 41) for symbol in symbols}
        for row in range(6)
    ]


def close(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> bool:
    if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
        return False
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= max(rel_tol, 1e-50) * size) or bool(size < sympy.Float("1e-100"))
