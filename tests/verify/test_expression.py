r"""Expressions: each form against a value computed by Python or sympy itself, and the limits on their cost."""

from __future__ import annotations

import math
import time

import pytest
import sympy

from verify.expression import MAX_DEPTH, expression, power_of, root_of
from verify.text import Unreadable, tidy, tokens_of

x, y = sympy.symbols("x y", real=True)
R = sympy.Rational


def value(text: str) -> sympy.Expr:
    return expression(tokens_of(tidy(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3*4", 14),
        ("2-3-4", -5),
        ("12/2/3", 2),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2^{-1}", R(1, 2)),
        (r"\frac12", R(1, 2)),
        (r"\frac1{12}", R(1, 12)),
        (r"2\frac12", R(5, 2)),
        (r"-2\frac12", R(-5, 2)),
        (r"2\cdot\frac12", 1),
        (r"x\frac12", x / 2),
        (r"{1 \over 3}", R(1, 3)),
        ("0.1\\overline{36}", R(3, 22)),
        ("0.(3)", R(1, 3)),
        ("1.23e-2", R(123, 10_000)),
        ("25\\%", R(1, 4)),
        ("5!", 120),
        ("3^2!", math.factorial(9)),
        ("6!!", 48),
        ("x^12", x**12),
        ("x^{12}", x**12),
        (r"\sqrt[3]{-27}", -3),
        (r"\sqrt2x", sympy.sqrt(2) * x),
        (r"|-3|", 3),
        (r"\lfloor -1.5 \rfloor", -2),
        (r"\lceil 1.2 \rceil", 2),
        (r"\binom{5}{7}", 0),
        (r"\sum_{k=1}^{10} k^2", sum(k**2 for k in range(1, 11))),
        (r"\prod_{i=1}^{4} i", 24),
        (r"\sum_{k=0}^{3} 2^k", 15),
        (r"\gcd(12, 18)", math.gcd(12, 18)),
        (r"\text{lcm}(4, 6)", math.lcm(4, 6)),
        (r"\max\{3, 7, 5\}", 7),
        (r"17 \bmod 5", 2),
        (r"\Gamma(\frac12)", sympy.sqrt(sympy.pi)),
        (r"\sin 30^\circ", R(1, 2)),
        (r"\sin^2 x", sympy.sin(x) ** 2),
        (r"\sin x^2", sympy.sin(x**2)),
        (r"\sin 2x \cos y", sympy.sin(2 * x) * sympy.cos(y)),
        (r"\sin^{-1} 1", sympy.pi / 2),
        (r"\log_{2} 8", 3),
        (r"\lg 1000", 3),
        ("i^2", -1),
        (r"\mathrm{e}^{0}", 1),
        (r"\overline{3+4i}", 3 - 4 * sympy.I),
        ("xy", x * y),
        ("x'", sympy.Symbol("x'", real=True)),
        ("x_{12}", sympy.Symbol("x_12", real=True)),
        ("f(0)", sympy.Function("f")(0)),
        (r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}", -2),
    ],
)
def test_value(text, expected):
    assert sympy.simplify(value(text) - expected) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "1 2",
        "(1",
        "1)",
        r"\frac{1}",
        r"\frac{1}{0}",
        "0^0",
        r"\sqrt[0]{2}",
        r"\foo",
        "x+",
        "(-1)!",
        r"\log_1 5",
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(Unreadable):
        value(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
        "9" * 4_001,
        "1e9999",
        "9^{9^9}",
        "3001!",
        r"\binom{9999}{2}",
        r"\sum_{k=1}^{1000} k",
        r"\sin(10^{10^{x}})",
        r"\ln\ln\ln\ln\ln 9",
        "x^{x^{x^x}}",
    ],
)
def test_what_would_cost_too_much_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(Unreadable):
        value(text)
    assert time.perf_counter() - start < 0.5


def test_roots_are_real():
    assert root_of(sympy.Integer(-8), 3) == -2
    assert root_of(sympy.Integer(16), 4) == 2


def test_powers_of_matrices():
    matrix = sympy.ImmutableMatrix([[1, 2], [3, 4]])
    assert power_of(matrix, sympy.Integer(-1)) * matrix == sympy.eye(2)
    assert power_of(matrix, sympy.Symbol("T", real=True)) == matrix.T
    with pytest.raises(Unreadable):
        power_of(matrix, sympy.Integer(99))
