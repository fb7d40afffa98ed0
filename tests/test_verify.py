r"""The verifier: what it extracts, what it takes for equal, and that it is safe."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import verify


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{72}", "72"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),  # the last box wins
        (r"\boxed{2}, and \boxed{3", "2"),  # the last complete one
        (r"\boxed{3", None),  # a truncated box is no answer,
        (r"x = 4, so \boxed{3", None),  # and nothing before it is either
        (r"\boxed{} then \boxed{ }", None),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} as 2 + 3 = 5. Next: 7.", "5"),  # text after the box does not spoil it
        (r"\fbox{8}", "8"),
        ("sum\n#### 1,234", "1,234"),
        ("he has 12 apples and 3.5 pears left", "3.5"),
        ("it costs $1,250 in all.", "1,250"),
        ("none at all", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert verify.extract_answer(text) == answer


CASES = [json.loads(line) for line in (Path(__file__).parent / "data" / "verify_cases.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_labelled_cases(case):
    """377 labelled answers; `category`, `policy` and `note` in the file say what each is about."""
    decide = verify.is_correct if case["kind"] == "response" else verify.is_equivalent
    assert decide(case["pred"], case["gold"]) is case["expected"]


EQUAL = [
    ("72", "72"),
    ("072", "72"),
    ("1,234", "1234"),
    (r"1{,}234", "1234"),
    ("3.50", "3.5"),
    ("0.5", r"\frac{1}{2}"),
    ("1/2", r"\dfrac12"),
    ("2 1/2", "5/2"),
    ("-1/2", r"-\frac{1}{2}"),
    ("72.", "72"),
    (r"\$72", "72"),
    (r"72\text{ clips}", "72"),
    ("50%", "50"),
    (r"90^\circ", "90"),
    ("x = 5", "5"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\frac{\pi}{2}", r"0.5\pi"),
    ("(x+1)^2", "x^2+2x+1"),
    ("2(a+b)", "2a + 2b"),
    (r"\left(1, 2\right)", "(1,2)"),
    ("(1, 0.5)", r"(1, \frac{1}{2})"),
    (r"\text{Monday}", "monday"),
    ("−5", "-5"),
    (r"3 \times 10^2", "300"),
    ("(n-2) 2^{n}+1", "1 + 2^n(n-2)"),
    (r"-\frac{3}{2}", "-3./2"),
    (r"\lfloor\frac{2n-1}{5}\rfloor", r"\left\lfloor \frac{2n - 1}{5} \right\rfloor"),
]

DIFFERENT = [
    ("72", "73"),
    ("1/3", "0.333333"),  # decimals are exact
    ("3.14159", r"\pi"),
    ("9007199254740993", "9007199254740992"),
    ("1 2", "12"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("R", "r"),
    ("x+1", "x-1"),
    (r"\frac{1}{0}", "1"),
    ("", "5"),
    ("5", ""),
    (r"\frac{1}{3^{60}}", r"\frac{1}{3^{61}}"),
    ("k=n+1", "k=n+2"),
    ("5:00", "6:00"),
    (r"\lfloor\frac{2n-1}{5}\rfloor", r"\lfloor\frac{2n-1}{6}\rfloor"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(answer, gold):
    assert verify.is_equivalent(answer, gold) and verify.is_equivalent(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer, gold):
    assert not verify.is_equivalent(answer, gold)


def test_tolerance_is_an_argument():
    assert not verify.is_equivalent("3.14", r"\pi")
    assert verify.is_equivalent("3.14", r"\pi", rel_tol=1e-3)
    assert not verify.is_equivalent("3.14", r"\pi", rel_tol=1e-5)


def test_choices_are_letters():
    choices = ["Paris", "Rome", "12"]
    assert verify.is_correct(r"It is \boxed{B}", "B", choices)
    assert verify.is_correct("The answer is (B).", "B", choices)
    assert not verify.is_correct(r"\boxed{C}", "B", choices)
    assert not verify.is_correct("", "B", choices)


def test_grade_gives_none_where_the_gold_cannot_be_read():
    texts, golds = [r"\boxed{1}"] * 4, ["1", "2", " ", r"\frac{1"]
    assert verify.grade(texts, golds) == [True, False, None, None]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {}')",
        "open('{}', 'w')",
        r"\boxed{{__import__('pathlib').Path('{}').touch()}}",
        "().__class__.__base__.__subclasses__()",
    ],
)
def test_text_of_a_model_is_never_run(text, tmp_path):
    target = tmp_path / "touched"
    code = text.replace("{}", str(target)).replace("{{", "{").replace("}}", "}")
    assert not verify.is_correct(code, "7.25")
    assert not verify.is_equivalent(code, "7.25")
    assert not target.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "10^{10^{10}}",
        "9" * 5_000,
        "(" * 10_000 + "1" + ")" * 10_000,
        "9^9^9^9",
        "((x+y)^12)^12",
        "-" * 900 + "1",
        r"\sqrt{" * 300,
        r"\frac{" * 300,
        "99!" * 50,
        "((5!)!d)!",
        "((x!)!)!",
        r"\binom{(x!)!}{x^x}",
        "x^{x^{x^{x^x}}}",
        "e^{e^{e^{e^x}}}",
        "(a+b+c+d+e+f+g+h)^12*(a+b+c+d+e+f+g+h)^12",
    ],
)
def test_hostile_sizes_end_quickly(answer):
    start = time.perf_counter()
    assert not verify.is_equivalent(answer, "7")
    assert not verify.is_correct(r"\boxed{" + answer + "}", "7")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("piece", [r"\boxed{", "$", "{", "}", r"\[", "1,"])
def test_long_texts_are_read_in_linear_time(piece):
    start = time.perf_counter()
    verify.extract_answer(piece * 100_000)
    assert time.perf_counter() - start < 1
