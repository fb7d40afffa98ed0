"""Regions of the number line: unions of intervals, what they have in common, and where an inequality holds.

Inequalities are solved by the points at which their sides can cross, and the sign between them, for what school
mathematics has: polynomials up to the second degree, and up to two absolute values of such.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import sympy

from verify.text import Unreadable

MAX_MEMBERS = 1_000  # of {1, 2, …, 100} written out


@dataclass(frozen=True)
class Interval:
    low: sympy.Expr
    high: sympy.Expr
    low_open: bool
    high_open: bool


@dataclass(frozen=True)
class Region:
    """A union of intervals; a single number is an interval closed at both ends."""

    parts: tuple[Interval, ...]


REALS = Region((Interval(-sympy.oo, sympy.oo, True, True),))


def merged(region: Region) -> list[Interval]:
    """The region as intervals in order, none of which touch."""
    parts = []
    for part in region.parts:
        if not (part.low.is_extended_real and part.high.is_extended_real):
            raise Unreadable
        if part.low < part.high or (part.low == part.high and not part.low_open and not part.high_open):
            low_open, high_open = part.low_open or part.low == -sympy.oo, part.high_open or part.high == sympy.oo
            parts.append(Interval(part.low, part.high, low_open, high_open))
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


def complement(region: Region) -> Region:
    gaps, low, low_open = [], -sympy.oo, True
    for part in merged(region):
        gaps.append(Interval(low, part.low, low_open, not part.low_open))
        low, low_open = part.high, not part.high_open
    gaps.append(Interval(low, sympy.oo, low_open, True))
    return Region(tuple(merged(Region(tuple(gaps)))))


def intersection(left: Region, right: Region) -> Region:
    return complement(Region(complement(left).parts + complement(right).parts))


def whole_numbers(region: Region) -> tuple[sympy.Expr, ...]:
    """The whole numbers of a bounded region. Raises Unreadable where it has no bounds."""
    found: list[sympy.Expr] = []
    for part in region.parts:
        if not (part.low.is_finite and part.high.is_finite) or part.high - part.low > MAX_MEMBERS:
            raise Unreadable
        first, last = sympy.ceiling(part.low), sympy.floor(part.high)
        first, last = first + (part.low_open and first == part.low), last - (part.high_open and last == part.high)
        found += [sympy.Integer(k) for k in range(int(first), int(last) + 1)]
    return tuple(found)


def where(difference: sympy.Expr, sign: str) -> Region:
    """The region in which an expression in one variable is < 0, ≤ 0, > 0, ≥ 0 or ≠ 0: its sign between its breaks."""
    points = breaks(difference)
    ends = [-sympy.oo, *points, sympy.oo]
    parts = []
    for low, high in pairwise(ends):
        inside = high - 1 if low == -sympy.oo else low + 1 if high == sympy.oo else (low + high) / 2
        if fulfilled(difference, sympy.Integer(0) if inside.has(sympy.oo) else inside, sign):
            parts.append(Interval(low, high, True, True))
    parts += [Interval(point, point, False, False) for point in points if fulfilled(difference, point, sign)]
    return Region(tuple(merged(Region(tuple(parts)))))


def fulfilled(difference: sympy.Expr, point: sympy.Expr, sign: str) -> bool:
    if is_zero(difference, point):
        return sign in "≤≥="
    positive = difference.subs(symbol_of(difference), point).evalf(30) > 0
    return bool(sign == "≠" or (positive if sign in ">≥" else not positive))


def is_zero(difference: sympy.Expr, point: sympy.Expr) -> bool:
    return bool(abs(difference.subs(symbol_of(difference), point).evalf(40)) < sympy.Float("1e-25"))


def symbol_of(value: sympy.Expr) -> sympy.Symbol:
    """The only variable of an expression. Raises Unreadable where there are none or several."""
    if len(value.free_symbols) != 1:
        raise Unreadable
    return next(iter(value.free_symbols))


def breaks(difference: sympy.Expr) -> list[sympy.Expr]:
    """The real points, in order, at which an expression in one variable can change its sign.

    Read for what school inequalities have: polynomials up to the second degree, and up to two absolute values of such.
    """
    symbol = symbol_of(difference)
    if difference.has(sympy.oo):
        raise Unreadable
    bars = sorted(difference.atoms(sympy.Abs), key=str)
    if len(bars) > 2 or sympy.count_ops(difference) > 40:
        raise Unreadable
    polynomials = [bar.args[0] for bar in bars]
    for signs in product((1, -1), repeat=len(bars)):
        polynomials.append(difference.subs({bar: sign * bar.args[0] for bar, sign in zip(bars, signs, strict=True)}))
    points: list[sympy.Expr] = []
    for polynomial in polynomials:
        for root in roots(polynomial, symbol):
            if not any(abs((root - point).evalf(40)) < sympy.Float("1e-25") for point in points):
                points.append(root)
    return sorted(points, key=lambda point: point.evalf(40))


def roots(polynomial: sympy.Expr, symbol: sympy.Symbol) -> list[sympy.Expr]:
    """The real roots of a polynomial up to the second degree."""
    powers = [power for power in polynomial.atoms(sympy.Pow) if power.has(symbol)]
    if not polynomial.is_polynomial(symbol) or any(power.exp != 2 or power.base.has(sympy.Pow) for power in powers):
        raise Unreadable
    coefficients = sympy.Poly(polynomial, symbol).all_coeffs()
    if len(coefficients) == 1:
        return []
    if len(coefficients) == 2:
        return [-coefficients[1] / coefficients[0]]
    if len(coefficients) > 3:
        raise Unreadable
    a, b, c = coefficients
    discriminant = b**2 - 4 * a * c
    if discriminant < 0:
        return []
    return [(-b - sympy.sqrt(discriminant)) / (2 * a), (-b + sympy.sqrt(discriminant)) / (2 * a)]
