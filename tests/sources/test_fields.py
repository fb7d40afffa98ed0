"""The fields of others: what is taken for problem, answer and solution, and what is said of it."""

from __future__ import annotations

import math

import pytest
from conftest import SOLVED, write_questions

import questions
from questions import DataError
from sources.fields import Fields


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "holds a list"),
        ({"answer": "2"}, "`problem` is missing; the line has answer"),
        ({"problem": "1+1?"}, "`answer` is missing"),
        ({"problem": "1+1?", "answer": [2]}, "`answer` is [2]; it must be a string that is not empty, or a number"),
        ({"problem": "1+1?", "answer": True}, "`answer` is True; it must be a string"),
        ({"problem": "1+1?", "answer": "2", "level": ["easy"]}, "`level` is ['easy']; it must be a string, a number"),
        ('{"problem": "\\ud83d?", "answer": "2"}', "`problem` has half a character"),
        ('{"problem": "1+1?", "answer": NaN}', "`answer` is nan; it must be a string that is not empty, or a number"),
        ("[" * 100_000, "too deep to be read"),
        ({"question": "1+1?", "answer": "2"}, "Is it `question` there? Rename that."),
        ({"problem": " ", "answer": "2"}, "`problem` is ' '"),
        ({"problem": "1+1?", "answer": "2", "solution": 5}, "`solution` is 5"),
        ({"problem": "1+1?", "answer": "2", "choices": "AB"}, "`choices` must be a list"),
        ({"problem": "1+1?", "answer": "C", "choices": ["2", "3"]}, "one of A, B"),
    ],
)
def test_a_broken_line_is_named_by_file_line_and_fault(tmp_path, line, fault):
    source = write_questions(tmp_path / "broken.jsonl", [SOLVED, line])
    with pytest.raises(DataError) as error:
        questions.read_questions([source])
    assert f"{source}:2: " in str(error.value) and fault in str(error.value)


def test_gsm8k_rows_of_the_hub_are_mapped():
    question = questions.from_hub({"question": "How many?", "answer": "24+48 = <<24+48=72>>72 clips.\n#### 1,072"})
    assert question == {
        "problem": "How many?",
        "answer": "1072",
        "solution": "24+48 = 72 clips.\nThe answer is \\boxed{1072}.",
    }


def test_the_answer_to_choices_may_have_spaces_around_it(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": " B ", "choices": ["3", "2"]}])
    assert questions.read_questions([source])[0]["answer"] == " B "


def test_the_last_mark_of_a_hub_row_stands_before_its_answer():
    question = questions.from_hub({"question": "?", "answer": "#### is the mark\n#### 7"})
    assert question["answer"] == "7" and question["solution"].startswith("#### is the mark\n")


@pytest.mark.parametrize("tolerance", [-0.1, 1, True, "0.01", [0.01], math.nan])
def test_a_tolerance_that_is_no_share_is_named(tmp_path, tolerance):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, {**SOLVED, "rel_tol": tolerance}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: `rel_tol` is .*; it must be a number of at least 0 and below 1"):
        questions.read_questions([source])
