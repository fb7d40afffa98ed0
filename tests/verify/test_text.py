r"""One spelling for many: what `tidy` removes, and the tokens that are left."""

from __future__ import annotations

import pytest

from verify.text import (
    MAX_TOKENS,
    Unreadable,
    matching,
    split,
    tidy,
    tokens_of,
    unit_name,
    without_thousands,
    without_unit,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("$x$", "x"),
        (r"\( x \)", "x"),
        (r"\left(1,\, 2\right)", "(1, 2)"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        ("x².", "x^{2}"),
        ("−3", "-3"),
        ("5\u200b", "5"),
        ("１２", "12"),
        (r"\mathbf{x}", "x"),
        (r"\color{red}5", "5"),
        (r"1{,}234", "1234"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),  # escaped twice
        (r"\operatorname{lcm}(4,6)", r"\lcm (4,6)"),
        (r"9\text{ min}", r"9\text{ min}"),  # a unit, not the function
        (r"50 \text{ percent}", r"50 \%"),
        ("f^{\\prime}", "f'"),
        ("{5}", "5"),
        ("{1}{2}", "{1}{2}"),
        ("", ""),
    ],
)
def test_tidy(text, plain):
    assert tidy(text) == plain


def test_tidy_of_a_tidy_text_changes_nothing():
    for text in (r"\frac{1}{2}", "x^{2}", r"9\text{ min}", r"\{1, 2\}", r"[1, \infty)", "2 h"):
        assert tidy(tidy(text)) == tidy(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1,234x", "1234x"), (r"\frac{1,000}{3}", r"\frac{1000}{3}"), ("1,234, 5", "1,234, 5"), ("(1,234)", "(1,234)")],
)
def test_a_comma_between_members_of_a_list_is_kept(text, plain):
    assert without_thousands(text) == plain


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"15\text{ cm}^2", "15", "cm^2"),
        ("15 square inches", "15", "in^2"),
        (r"9.8 \mathrm{m s^{-2}}", "9.8", "m/s^2"),
        ("60 miles per hour", "60", "mi/h"),
        ("8:34 p.m", "8:34", "pm"),
        (r"x \in \text{R}", r"x \in \text{R}", ""),  # no unit follows \in
        ("3 or 5", "3 or 5", ""),
    ],
)
def test_units(text, value, unit):
    assert without_unit(text) == (value, unit)


def test_units_of_one_size_have_one_name():
    assert unit_name("square feet") == unit_name("sq. ft") == unit_name("ft^2") == unit_name("feet^{2}") == "ft^2"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("2x+1", ["2", "x", "+", "1"]),
        ("1.5x", ["1.5", "x"]),
        ("4.4e7", ["4.4e7"]),
        ("2e", ["2", "e"]),
        (r"x \leq 3", ["x", "≤", "3"]),
        ("x <= 3", ["x", "≤", "3"]),
        ("sinx", [r"\sin", "x"]),
        ("ab", ["a", "b"]),
        (r"\mathbb{R}", [r"\reals"]),
        (r"\{1\}", [r"\{", "1", r"\}"]),
    ],
)
def test_tokens(text, tokens):
    assert tokens_of(text) == tokens


def test_too_many_tokens_are_refused():
    with pytest.raises(Unreadable):
        tokens_of("x" * (MAX_TOKENS + 1))


def test_split_cuts_outside_of_brackets_only():
    assert split(["(", "1", ",", "2", ")", ",", "3"], {","}) == ([["(", "1", ",", "2", ")"], ["3"]], [","])
    with pytest.raises(Unreadable):
        split(["(", "1", ",", "2"], {","})


def test_matching_finds_the_bracket_that_closes():
    assert matching(["{", "{", "}", "}", "x"], 0) == 3
    with pytest.raises(Unreadable):
        matching(["{", "x"], 0)
