"""The embedded example: small, verified, and with nothing of the held-out set in training."""

from __future__ import annotations

import json
import runpy

import pytest

import anchors
import rollout
from harness.config import EXAMPLE
from questions import read_questions


@pytest.fixture(scope="module")
def questions():
    return {name: read_questions([str(EXAMPLE / f"{name}.jsonl")]) for name in ("train", "held_out")}


def test_no_training_question_is_held_out(questions):
    training = {question["problem"] for question in questions["train"]}
    held_out = {question["problem"] for question in questions["held_out"]}
    assert len(training) == len(questions["train"]) and len(held_out) == len(questions["held_out"])
    assert not training & held_out


def test_every_worked_solution_is_verified_and_fits(questions):
    _, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    limit = json.loads((EXAMPLE / "run.json").read_text())["max_new_tokens"]
    for part in questions.values():
        assert not anchors.load(part, tokenizer=tokenizer, max_new_tokens=limit).left_out


def test_every_word_of_the_questions_is_a_token(questions):
    _, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    for question in questions["train"] + questions["held_out"]:
        ids = tokenizer(question["problem"] + "\n" + question["solution"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == question["problem"] + "\n" + question["solution"]


def test_it_stays_small():
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir() if path.is_file()) < 6_000_000


# --- sums, for a language model -----------------------------------------------------------------------------------

SUMS = EXAMPLE.parent / "sums"


@pytest.mark.parametrize("name", ["train", "held_out", "examples"])
def test_sums_are_what_their_script_makes(name):
    script = runpy.run_path(str(SUMS / "make.py"))
    assert (SUMS / f"{name}.jsonl").read_text() == script["as_lines"](script["parts"]()[name])


def test_no_sum_stands_in_two_files_and_each_is_right():
    seen = set()
    for name in ("train", "held_out", "examples"):
        for question in read_questions([str(SUMS / f"{name}.jsonl")]):
            first, sign, second = question["problem"].removeprefix("What is ").removesuffix("?").split()
            value = int(first) + int(second) if sign == "+" else int(first) - int(second)
            assert (
                question["answer"] == str(value)
                and question["solution"] == f"{first} {sign} {second} = \\boxed{{{value}}}"
            )
            assert question["problem"] not in seen
            seen.add(question["problem"])
    assert len(seen) == 18 * 18 + 18 * 19 // 2
