r"""What two answers have to have in common to mean the same. The tables are the documentation: one line a behaviour."""

from __future__ import annotations

import json
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import verify
from verify.equality import is_equivalent

DATA = Path(__file__).parent / "data"

# kind: ([(answer, gold), ...] that are equal, [(answer, gold), ...] that are not)
TABLE = {
    "numbers": (
        [
            ("72", "072"),
            ("72.", "72"),
            ("+5", "5"),
            ("−5", "-5"),
            ("3.50", "3.5"),
            (".5", "0.5"),
            ("= 5", "5"),
        ],
        [
            ("72", "73"),
            ("9007199254740993", "9007199254740992"),
            ("1 2", "12"),
            ("5", ""),
            ("", "5"),
            ("-5", "5"),
        ],
    ),
    "thousands": (
        [
            ("1,234", "1234"),
            (r"1{,}234", "1234"),
            (r"1\,234", "1234"),
            ("1 234 567", "1234567"),
            ("1,000x", "1000x"),
            (r"11,\! 111", "11111"),
            (r"\frac{1,000}{3}", r"\frac{1000}{3}"),
            ("101, 112", "101,112"),
        ],
        [
            ("1,23", "123"),
            ("(1,234)", "1234"),
            ("81, 256", "81256"),
            ("3,5", "3.5"),
        ],
    ),
    "fractions": (
        [
            ("0.5", r"\frac{1}{2}"),
            ("1/2", r"\dfrac12"),
            (r"\frac{-1}{2}", "-1/2"),
            (r"{7 \over 9}", r"\frac79"),
            ("½", "0.5"),
            (r"\frac{6}{8}", r"\frac{3}{4}"),
            ("1/3 + 1/4", "7/12"),
        ],
        [
            ("1/3", "0.333333"),
            (r"\frac{1}{0}", "1"),
            (r"\frac{1}{3^{60}}", r"\frac{1}{3^{61}}"),
            ("2/1", "1/2"),
        ],
    ),
    "mixed numbers": (
        [
            ("2 1/2", "5/2"),
            (r"2\frac{1}{2}", "2.5"),
            (r"-1\frac{1}{2}", "-1.5"),
            (r"33\frac{1}{3}\%", r"\frac{100}{3}\%"),
            (r"38\frac47^\circ", r"\frac{270}{7}"),
        ],
        [
            (r"2\frac{1}{2}", "1"),
            (r"2\cdot\frac{1}{2}", "2.5"),
        ],
    ),
    "repeating decimals": (
        [
            (r"0.\overline{3}", "1/3"),
            (r"0.1\overline{36}", "3/22"),
            (r"0.\bar3", "1/3"),
            (r"0.\dot{1}\dot{2}", "4/33"),
            ("0.1666...", "1/6"),
            (r".\overline{6}", "2/3"),
        ],
        [
            (r"0.\overline{3}", "0.3"),
            (r"0.\overline{12}", "12/100"),
            ("3.14159...", r"\pi"),
        ],
    ),
    "percent": (
        [
            ("50%", "50"),
            (r"50\%", "0.5"),
            (r"\text{50 percent}", "50\\%"),
        ],
        [
            ("50%", "5"),
            ("700", "7"),
            ("0.5%", "0.5\\cdot 100"),
        ],
    ),
    "scientific notation": (
        [
            ("4.4e7", "44000000"),
            (r"4.4 \times 10^{7}", "4.4e7"),
            ("1e-3", "0.001"),
            ("1e5", "10^5"),
        ],
        [
            ("4.4e7", "4.4e8"),
            ("2e", "2"),
        ],
    ),
    "units and money": (
        [
            (r"72\text{ clips}", "72"),
            (r"\$72", "72"),
            ("15 cm", "15"),
            (r"2\text{ m}^3", "2"),
            (r"90^\circ", "90"),
            (r"864 \mbox{ inches}^2", r"864\text{ square inches}"),
            (r"12\sqrt{13}\text{ feet}", r"\sqrt{1872}\text{ ft}"),
            (r"9.8~\mathrm{m\,s^{-2}}", "9.8"),
            ("2h", "2 h"),
            ("mgh", "m g h"),
        ],
        [
            (r"5\text{ cm}", r"5\text{ m}"),
            (r"5\text{ cm}^2", r"5\text{ cm}^3"),
            (r"\pi r^2 h", r"\pi r^2"),
        ],
    ),
    "times and ratios": (
        [
            ("3:4", "6:8"),
            (r"4\text{:}30", "4:30"),
            ("8:34 p.m.", r"8\!:\!34 \text{ p.m.}"),
            ("2:3:5", "4:6:10"),
        ],
        [
            ("3:4", "4:3"),
            ("5:00", "6:00"),
            ("2:3:5", "2:5:3"),
            ("8:34 a.m.", "8:34 p.m."),
            ("1:2", "1:2:3"),
        ],
    ),
    "numerals in a base": (
        [
            ("204_5", "204_{5}"),
            (r"1011_{\text{two}}", "1011_2"),
            ("(1011)_2", "1011_2"),
            (r"\text{A5}_{11}", "A5_{11}"),
        ],
        [
            ("204_5", "204_6"),
            ("204_5", "2045"),
            ("204_5", "204"),
        ],
    ),
    "roots": (
        [
            (r"2\sqrt{3}", r"\sqrt{12}"),
            (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
            (r"\sqrt[3]{-8}", "-2"),
            ("√2", r"\sqrt2"),
            (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
            ("sqrt(2)/2", r"\frac{1}{\sqrt 2}"),
        ],
        [
            (r"\sqrt[3]{3}", r"\sqrt{3}"),
            (r"\sqrt{2}", "1.41421356237309504880"),
            (r"4\sqrt{2}", "4"),
        ],
    ),
    "powers and factorials": (
        [
            ("2^{10}", "1024"),
            ("4!", "24"),
            (r"\binom{5}{2}", "10"),
            (r"{5 \choose 2}", "10"),
            ("5!!", "15"),
            ("x^12", "x^{12}"),
            ("2^3!", "40320"),
            (r"\frac{2024!}{2023!}", "2024"),
            (r"\sum_{k=1}^{10} k^2", "385"),
            (r"\gcd(12,18)", "6"),
        ],
        [
            ("2^n-1", "2^{n-1}"),
            ("10^{20}+1", "10^{20}"),
            (r"\binom{5}{2}", r"\frac52"),
        ],
    ),
    "logarithms and exponentials": (
        [
            (r"\log_2 8", "3"),
            (r"\ln(ab)", r"\ln a + \ln b"),
            (r"e^{\ln 5}", "5"),
            (r"\frac{\ln 3}{\ln 2}", r"\log_2 3"),
        ],
        [
            (r"\log_2 3", r"\log_3 2"),
            (r"e^{-1000}", "0"),
            (r"e^{\pi\sqrt{163}}", "262537412640768744"),
        ],
    ),
    "trigonometry": (
        [
            (r"\sin 30^\circ", "1/2"),
            (r"\cos\frac{\pi}{3}", "0.5"),
            (r"\tan^{-1} 1", r"\frac{\pi}{4}"),
            (r"\sin^2 x + \cos^2 x", "1"),
            ("sin(x)", r"\sin x"),
            (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"),
        ],
        [
            (r"\sin 30", "1/2"),
            (r"\sin x", r"\cos x"),
            (r"\sin x^2", r"\sin^2 x"),
        ],
    ),
    "complex numbers": (
        [
            (r"\frac{1}{1-i}", r"\frac{1+i}{2}"),
            ("i^2", "-1"),
            (r"e^{i\pi}", "-1"),
            (r"\overline{3+4i}", "3-4i"),
            (r"\operatorname{cis} 90^\circ", "i"),
        ],
        [
            ("1+2i", "1-2i"),
            ("3+4i", "5"),
        ],
    ),
    "expressions": (
        [
            ("(x+1)^2", "x^2+2x+1"),
            ("2(a+b)", "2a + 2b"),
            ("1.5x", r"\frac{3x}{2}"),
            ("3*x**2+1", "3x^2+1"),
            (r"\lfloor\sqrt{n-1}\rfloor + 1", r"1 + \lfloor\sqrt{n-1}\rfloor"),
            (r"\frac13\pi r^2 h", r"\frac{\pi r^2 h}{3}"),
        ],
        [
            ("x+1", "x-1"),
            ("R", "r"),
            ("x_1", "x_2"),
            (r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor\sqrt{n-2}\rfloor"),
            ("|x|", "x"),
            (r"\lfloor \log_2 n \rfloor + 1", "5"),
            ("f(0)e^t", "f(0)(1-e^t)"),
        ],
    ),
    "tuples and points": (
        [
            ("(1, 0.5)", r"(1, \frac{1}{2})"),
            (r"\left(1, 2\right)", "(1,2)"),
            (r"\langle 1,2\rangle", "(1,2)"),
            ("(x,y) = (1,2)", "(1,2)"),
            ("x=1, y=2", "(1,2)"),
            (r"(0, \pm 2)", "(0,2),(0,-2)"),
            (r"3\mathbf{i} - \mathbf{j}", "(3,-1)"),
        ],
        [
            ("(1,2)", "(2,1)"),
            ("(1,2,3)", "(1,2)"),
            ("(1,2)", r"\{1,2\}"),
        ],
    ),
    "lists and sets": (
        [
            ("1, 2", "2, 1"),
            (r"1 \text{ and } 2", "2,1"),
            (r"\{1,2\}", r"\{2,1\}"),
            (r"x=3 \text{ or } x=-2", "-2, 3"),
            ("5", r"\{5\}"),
            (r"\emptyset", r"\varnothing"),
            (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
            (r"\pm 1 \pm i", "1+i,1-i,-1+i,-1-i"),
            (r"\{1,2\} \cup \{3\}", r"\{1,2,3\}"),
            (r"\{1, 2, \ldots, 5\}", r"\{1,2,3,4,5\}"),
            ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
        ],
        [
            ("1, 2", "1"),
            ("5", "5, 6"),
            (r"3 \text{ or } 5", "5"),
            (r"\{1,2\}", r"\{1,2,3\}"),
            (r"5 \pm 1", "5"),
        ],
    ),
    "intervals and regions": (
        [
            (r"[2, 5)", r"2 \le x < 5"),
            (r"(-\infty,-1]\cup[2,\infty)", r"x \le -1 \text{ or } x \ge 2"),
            (r"|x-3| < 2", "(1,5)"),
            (r"\{x \mid -2 \le x < 1\}", "[-2,1)"),
            (r"\mathbb{R}\setminus\{0\}", r"x \ne 0"),
            ("x^2 < 4", "(-2,2)"),
            (r"[0,4]\cap[2,6]", "[2,4]"),
            (r"(1,2)\cup[2,3)", "(1,3)"),
            (r"\mathbb{R}", r"\text{all real numbers}"),
            (r"\{x \in \mathbb{Z} : |x| \le 1\}", r"\{-1,0,1\}"),
            (r"x > -3 \text{ and } x < 7", "(-3, 7)"),
        ],
        [
            ("[0,1)", "[0,1]"),
            ("(0,1)", "(1,0)"),
            ("x>3", "x<3"),
            (r"x \ge 3", "x > 3"),
            (r"(1,2)\cup(2,3)", "(1,3)"),
            (r"(-\infty, 5)", "x > 5"),
        ],
    ),
    "equations and inequalities": (
        [
            ("x = 5", "5"),
            ("5 = x", "x = 5"),
            ("y = 2x+1", "2x - y + 1 = 0"),
            ("2x + 2y = 4", "x + y = 2"),
            ("3 + 4 = 7", "7"),
            ("f(x) = x^2", "x^2"),
            ("-x > -1", "x < 1"),
            (r"\angle ABC = 60^\circ", "60"),
            (r"\frac13 \approx 0.33", r"\frac13"),
            (r"\begin{cases} x=2 \\ y=3 \end{cases}", "x=2, y=3"),
        ],
        [
            ("x^2+y^2=25", "25"),
            ("x + y = 2", "x + y = 3"),
            ("y = 2x+1", "y = 2x-1"),
            ("x = 5", "x = 6"),
            ("3+4 = 8", "8"),
            ("2x = 6", "6"),
        ],
    ),
    "families and congruences": (
        [
            (r"x = \frac{\pi}{4} + k\pi, k \in \mathbb{Z}", r"\frac{\pi}{4} + n\pi, n \in \mathbb{Z}"),
            (r"x \equiv 10 \pmod 7", r"x \equiv 3 \pmod{7}"),
            ("3 (mod 7)", r"x \equiv 3 \pmod{7}"),
        ],
        [
            (r"\frac{\pi}{4} + 2k\pi, k \in \mathbb{Z}", r"\frac{\pi}{4} + n\pi, n \in \mathbb{Z}"),
            (r"x \equiv 3 \pmod 8", r"x \equiv 3 \pmod{7}"),
        ],
    ),
    "matrices": (
        [
            (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
            (r"\frac12\begin{pmatrix} 2 \\ 4 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
            (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
            (r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}", "-2"),
            (
                r"\begin{pmatrix}1&2\\3&4\end{pmatrix} + \begin{pmatrix}1&0\\0&1\end{pmatrix}",
                r"\begin{pmatrix}2&2\\3&5\end{pmatrix}",
            ),
        ],
        [
            (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
            (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ],
    ),
    "words and choices": (
        [
            (r"\text{Monday}", "monday"),
            (r"\text{Monday.}", r"\text{Monday}"),
            ("no solution", r"\text{No solution}"),
            ("(B)", "B"),
            (r"\textbf{(B)}\ 12", "B"),
            (r"\text{Option B}", "B"),
        ],
        [
            (r"\text{listen}", r"\text{silent}"),
            ("B", "C"),
            (r"\text{Monday}", r"\text{Tuesday}"),
            ("BC", "B"),
        ],
    ),
    "malformed answers": (
        [],
        [
            (r"\frac{1}{2", r"\frac{1}{2}"),
            (r"\begin{pmatrix} 5", "5"),
            ("5}", "5"),
            ("(5", "5"),
            ("5 +", "5"),
            (r"\sqrt{}", "0"),
        ],
    ),
}


@pytest.mark.parametrize("kind", TABLE)
def test_equal(kind):
    for answer, gold in TABLE[kind][0]:
        assert is_equivalent(answer, gold), (answer, gold)
        assert is_equivalent(gold, answer), (gold, answer)


@pytest.mark.parametrize("kind", TABLE)
def test_different(kind):
    for answer, gold in TABLE[kind][1]:
        assert not is_equivalent(answer, gold), (answer, gold)


def labelled_cases():
    """The labelled answers, by category; `policy` in the files names the convention that decides a case."""
    for name in ("verify_cases.jsonl", "answer_cases.jsonl"):
        labelled = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
        labelled.sort(key=itemgetter("category"))
        for category, cases in groupby(labelled, key=itemgetter("category")):
            yield pytest.param(list(cases), id=f"{name.split('_')[0]}-{category}")


@pytest.mark.parametrize("cases", list(labelled_cases()))
def test_labelled_cases(cases):
    def decide(case):
        return (verify.is_correct if case["kind"] == "response" else is_equivalent)(case["pred"], case["gold"])

    assert [case["id"] for case in cases if decide(case) is not case["expected"]] == []


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-10_000, 10_000).map(str),
    st.builds(lambda a, b: rf"\frac{{{a}}}{{{b}}}", st.integers(1, 99), st.integers(1, 99)),
    st.builds(lambda a, b: f"{a}.{b:02}", st.integers(0, 99), st.integers(0, 99)),
    st.builds(lambda a, b: rf"{a}\sqrt{{{b}}}", st.integers(1, 9), st.integers(2, 50)),
    st.builds(lambda a: rf"{a}\pi", st.integers(2, 9)),
)
formulas = st.recursive(
    st.one_of(numbers, st.sampled_from(["x", "y", "n"])),
    lambda inner: st.one_of(
        st.builds(lambda a, b: rf"({a}) + ({b})", inner, inner),
        st.builds(lambda a, b: rf"({a})({b})", inner, inner),
        st.builds(lambda a: rf"({a})^{{2}}", inner),
        st.builds(lambda a: rf"\frac{{{a}}}{{7}}", inner),
        st.builds(lambda a: rf"-({a})", inner),
    ),
    max_leaves=4,
)
answers = st.one_of(
    formulas,
    st.lists(numbers, min_size=2, max_size=4).map(lambda items: r"\left\{" + ", ".join(items) + r"\right\}"),
    st.lists(numbers, min_size=2, max_size=3).map(lambda items: r"\left(" + ", ".join(items) + r"\right)"),
    st.builds(lambda a, b: rf"\left[{a}, {a + b}\right)", st.integers(-50, 50), st.integers(1, 50)),
    st.builds(lambda a: f"y = {a}", formulas),
    st.builds(lambda a: f"x > {a}", numbers),
)


@settings(max_examples=100, deadline=None)
@given(answers)
def test_an_answer_equals_itself_in_other_spellings(answer):
    for spelling in (
        answer,
        f"  {answer} ",
        f"${answer}$",
        answer + ".",
        answer.replace(r"\left", "").replace(r"\right", ""),
        answer.replace(r"\frac", r"\dfrac"),
        answer.replace("-", "−"),
        answer.replace("+", r" \, + \; "),
        answer.replace(", ", r",\,\, ") if "{" not in answer[6:] else answer,
    ):
        assert is_equivalent(spelling, answer), (spelling, answer)


@settings(max_examples=100, deadline=None)
@given(answers, answers)
def test_equality_is_symmetric(left, right):
    assert is_equivalent(left, right) == is_equivalent(right, left)


@settings(max_examples=100, deadline=None)
@given(formulas)
def test_the_sign_can_stand_anywhere(formula):
    assert is_equivalent(rf"\frac{{-({formula})}}{{3}}", rf"-\frac{{{formula}}}{{3}}")
    assert is_equivalent(f"-(-({formula}))", formula)


@settings(max_examples=100, deadline=None)
@given(formulas)
def test_one_more_is_another_value(formula):
    assert not is_equivalent(f"({formula}) + 1", formula)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_raises(answer, gold):
    assert is_equivalent(answer, gold) in (True, False)
    assert verify.grade([answer], [gold], workers=0)[0] in (True, False, None)
