"""What a text was taken to answer: equal values read the same, and what cannot be read is told as it stands there."""

from __future__ import annotations

import time

import pytest

import verify
from verify.reading import vote

READ = {
    r"\frac{2}{4}": "1/2",
    "50\\%": "1/2",
    "x = 5": "5",
    r"5 \text{ cm}": "5 (unit cm)",
    r"\{3, 1, 2\}": "{1, 2, 3}",
    "2, 1": "{1, 2}",
    "(2, 1)": "(2, 1)",
    "[2, 5)": "[2, 5)",
    "2 \\le x < 5": "2 ≤ x < 5",
    r"(-\infty, 1) \cup (2, 3]": "(-oo, 1) ∪ (2, 3]",
    "204_5": "204 (base 5)",
    "3 : 4": "3 : 4",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": "[[1], [2]]",
    "x^2 + y^2 = 25": "x**2 + y**2 = 25",
    r"\text{Yes}": "yes",
    r"\sqrt{8}": "2*sqrt(2)",
    "5 +": None,
}


@pytest.mark.parametrize("answer", READ)
def test_an_answer_reads_as_its_value(answer):
    assert verify.read_answer(rf"so \boxed{{{answer}}}.") == verify.Reading(answer, READ[answer])


def test_a_text_without_an_answer_reads_as_nothing():
    assert verify.read_answer("I cannot tell.") == verify.Reading(None, None)


def test_a_choice_reads_as_its_letter_whatever_stands_there():
    cities = ["Paris", "Rome"]
    assert verify.read_answer(r"\boxed{(B) Rome}", cities) == verify.Reading("(B) Rome", "B")
    assert verify.read_answer(r"\boxed{Rome}", cities) == verify.Reading("Rome", "B")
    assert verify.read_answer(r"\boxed{Milan}", cities) == verify.Reading("Milan", None)
    assert verify.read_answer("", cities) == verify.Reading(None, None)


def test_answers_vote_together_where_they_read_the_same_but_for_a_unit():
    def voted(answer):
        return vote(verify.read_answer(rf"\boxed{{{answer}}}"))

    assert voted("0.5") == voted(r"\frac12") == voted(r"\frac{1}{2} \text{ cm}") != voted("0.51")
    assert voted("5 +") == "5 +" and vote(verify.read_answer("")) is None


@pytest.mark.parametrize("answer", ["9" * 100_000, "2^{20000}", "3000!", "2^{19999}", "((" * 500, r"\frac{1}{" * 300])
def test_no_answer_takes_long_or_raises(answer):
    start = time.perf_counter()
    verify.read_answer(rf"\boxed{{{answer}}}")
    assert time.perf_counter() - start < 2
