r"""What a text was taken to answer: the answer as it is written there, and the value that it was read as.

    read_answer(r"so \boxed{\frac{2}{4}}")    # Reading(extracted='\\frac{2}{4}', read='1/2')

Answers that read the same have the same meaning. The reverse does not hold: (x+1)² and x²+2x+1 read differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from verify.equality import assigned
from verify.extraction import chosen, extract_answer
from verify.parser import Congruence, Group, Matrix, Measured, Numeral, Ratio, Relation, Value, Words, read
from verify.regions import Interval, Region

UNIT = " (unit "  # between a value and its unit


@dataclass(frozen=True)
class Reading:
    """Of one text. Both are None where it gives no answer."""

    extracted: str | None  # as it is written
    read: str | None  # the value, or the letter of a choice; None where it cannot be read


def read_answer(text: str, choices: Sequence[str] | None = None) -> Reading:
    """What a text answers, and as what that was read. Milliseconds; nothing in a text makes it raise."""
    extracted = extract_answer(text)
    if choices:
        letter = chosen(text, choices)
        return Reading(extracted or letter, letter)
    if extracted is None:
        return Reading(None, None)
    value = read(extracted)
    try:
        return Reading(extracted, None if value is None else shown(value))
    except Exception:  # whatever sympy raises for a chain of equations that it cannot compare
        return Reading(extracted, None)


def vote(reading: Reading) -> str | None:
    """What two answers of one question must have in common to count as the same: the value, whatever its unit."""
    if reading.read is None:
        return reading.extracted
    return reading.read.partition(UNIT)[0]


def shown(value: Value) -> str:
    """A value as text: sets in order of their members' texts, what only names a value as that value."""
    named = assigned(value)
    if named is not None:
        return shown(named)
    match value:
        case Words(text=text):
            return text.casefold()
        case Numeral(digits=digits, base=base):
            return f"{digits} (base {base})"
        case Ratio(parts=parts):
            return " : ".join(map(written, parts))
        case Congruence(value=rest, modulus=modulus):
            return f"{written(rest)} (mod {written(modulus)})"
        case Measured(value=inner, unit=unit):
            return f"{shown(inner)}{UNIT}{unit})"
        case Matrix(rows=rows):
            return "[" + ", ".join("[" + ", ".join(map(written, row)) + "]" for row in rows) + "]"
        case Interval():
            return interval(value)
        case Region(parts=parts):
            return " ∪ ".join(map(interval, parts)) or "{}"
        case Relation(sides=sides, signs=signs):
            led = (f"{shown(side)} {sign} " for side, sign in zip(sides, signs, strict=False))
            return "".join(led) + shown(sides[-1])
        case Group(kind="tuple", items=items):
            return "(" + ", ".join(map(shown, items)) + ")"
        case Group(items=items):
            return "{" + ", ".join(sorted(set(map(shown, items)))) + "}"
    return written(value)


def interval(value: Interval) -> str:
    opening, closing = "(" if value.low_open else "[", ")" if value.high_open else "]"
    return f"{opening}{written(value.low)}, {written(value.high)}{closing}"


def written(expression: sympy.Expr) -> str:
    try:
        return str(expression)
    except ValueError:  # more digits than Python writes
        return f"a number of {expression.count_ops()} operations"
