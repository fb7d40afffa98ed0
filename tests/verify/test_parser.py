r"""Whole answers: which kind of value a text is read as."""

from __future__ import annotations

import pytest
import sympy

from verify.parser import (
    Congruence,
    Group,
    Matrix,
    Measured,
    Numeral,
    Ratio,
    Relation,
    Words,
    is_inequality,
    read,
    region_of,
)
from verify.regions import REALS, Interval, Region, merged

x = sympy.Symbol("x", real=True)
N = sympy.Integer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", N(5)),
        ("1 1/2", sympy.Rational(3, 2)),
        ("(5)", N(5)),
        ("1, 2", Group("list", (N(1), N(2)))),
        (r"1 \text{ and } 2", Group("list", (N(1), N(2)))),
        (r"\{1, 2\}", Group("set", (N(1), N(2)))),
        ("(1, 2, 3)", Group("tuple", (N(1), N(2), N(3)))),
        (r"\langle 1, 2\rangle", Group("tuple", (N(1), N(2)))),
        ("(1, 2]", Interval(N(1), N(2), True, False)),
        (r"5 \pm 1", Group("list", (N(6), N(4)))),
        (r"\{1, 2, \ldots, 4\}", Group("set", (N(1), N(2), N(3), N(4)))),
        ("x = 5", Relation((x, N(5)), ("=",), names=True)),
        ("2x = 6", Relation((2 * x, N(6)), ("=",), names=False)),
        ("1 < x", Relation((N(1), x), ("<",))),
        ("3:4", Ratio((N(3), N(4)), clock=False)),
        ("204_5", Numeral("204", 5)),
        ("x \\equiv 10 \\pmod{7}", Congruence("x", N(3), N(7))),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", Matrix(((N(1),), (N(2),)))),
        (r"\text{blue}", Words("blue")),
        (r"\mathbb{R}", REALS),
        (r"\text{all real numbers}", REALS),
        (r"5\text{ cm}", Measured(N(5), "cm")),
        (r"\emptyset", Group("set", ())),
    ],
)
def test_kind(text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    "text", ["", "5 +", "(1, 2", r"\foo{1}", "f(x)=ax, where a is any number with \\mho(a)=0", "1" * 6_000]
)
def test_what_is_not_read_whole_is_not_read_at_all(text):
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x > 3", [(3, "oo", True, True)]),
        ("-2x > 6", [("-oo", -3, True, True)]),
        ("1 < x \\le 2", [(1, 2, True, False)]),
        ("|x - 1| < 2", [(-1, 3, True, True)]),
        ("1 < |x|", [("-oo", -1, True, True), (1, "oo", True, True)]),
        ("x^2 \\ge 4", [("-oo", -2, True, False), (2, "oo", False, True)]),
        ("x \\ne 2", [("-oo", 2, True, True), (2, "oo", True, True)]),
        ("x^2 \\le 0", [(0, 0, False, False)]),
        (r"\mathbb{R} - \{0\}", [("-oo", 0, True, True), (0, "oo", True, True)]),
        (r"[0,4] \setminus (1,2)", [(0, 1, False, False), (2, 4, False, False)]),
    ],
)
def test_regions(text, parts):
    value = read(text)
    expected = [
        Interval(*(sympy.oo if e == "oo" else -sympy.oo if e == "-oo" else N(e) for e in p[:2]), *p[2:]) for p in parts
    ]
    assert merged(region_of(value)) == expected


def test_an_inequality_has_no_equals_sign():
    assert is_inequality(read("x < 3"))
    assert not is_inequality(read("x = 3"))


def test_plus_and_minus_stand_together_where_both_signs_are_used():
    assert read(r"\pm 1 \mp i") == Group("list", (1 - sympy.I, -1 + sympy.I))
    assert len(read(r"\pm 1 \pm i").items) == 4


def test_a_union_keeps_its_parts():
    assert read(r"(1,2) \cup \{5\}") == Region((Interval(N(1), N(2), True, True), Interval(N(5), N(5), False, False)))
