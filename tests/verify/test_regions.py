"""Unions of intervals: what they have in common, what is outside of them, and where an inequality holds."""

from __future__ import annotations

from itertools import pairwise

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from verify.regions import REALS, Interval, Region, breaks, complement, intersection, merged, where, whole_numbers
from verify.text import Unreadable

x = sympy.Symbol("x", real=True)
N = sympy.Integer

ends = st.integers(-6, 6)
intervals = st.builds(
    lambda a, b, low, high: Interval(N(min(a, b)), N(max(a, b)), low, high), ends, ends, st.booleans(), st.booleans()
)
regions = st.lists(intervals, max_size=4).map(lambda parts: Region(tuple(parts)))
POINTS = [sympy.Rational(k, 2) for k in range(-15, 16)]  # every end, and a point between any two


def holds(region: Region, point: sympy.Expr) -> bool:
    """Membership, by the definition of an interval."""
    return any(
        (part.low < point or (part.low == point and not part.low_open))
        and (point < part.high or (part.high == point and not part.high_open))
        for part in region.parts
    )


@settings(max_examples=100, deadline=None)
@given(regions, regions)
def test_operations_agree_with_membership_at_every_point(left, right):
    both, outside, joined = intersection(left, right), complement(left), Region(tuple(merged(left)))
    for point in POINTS:
        assert holds(both, point) == (holds(left, point) and holds(right, point))
        assert holds(outside, point) != holds(left, point)
        assert holds(joined, point) == holds(left, point)


@settings(max_examples=50, deadline=None)
@given(regions)
def test_merged_intervals_are_in_order_and_do_not_touch(region):
    parts = merged(region)
    for before, after in pairwise(parts):
        assert before.high < after.low or (before.high == after.low and before.high_open and after.low_open)


@pytest.mark.parametrize("sign", ["<", "≤", ">", "≥", "≠"])
@pytest.mark.parametrize(
    "side", [x - 2, 3 - 2 * x, x**2 - 4, x**2 + 1, -(x**2), abs(x) - 3, abs(x - 1) + abs(x + 2) - 5, (x - 1) * (x + 3)]
)
def test_an_inequality_holds_exactly_in_its_region(side, sign):
    region = where(side, sign)
    for point in POINTS:
        at = side.subs(x, point)
        expected = {"<": at < 0, "≤": at <= 0, ">": at > 0, "≥": at >= 0, "≠": at != 0}[sign]
        assert holds(region, point) == bool(expected)


@pytest.mark.parametrize("side", [x**3 - x, sympy.sin(x), 1 / x, sympy.Integer(3)])
def test_what_cannot_be_solved_is_refused(side):
    with pytest.raises(Unreadable):
        breaks(side)


def test_whole_numbers():
    assert whole_numbers(Region((Interval(N(-1), N(2), True, False),))) == (0, 1, 2)
    with pytest.raises(Unreadable):
        whole_numbers(REALS)
