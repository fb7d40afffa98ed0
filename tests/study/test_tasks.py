"""The questions of the study: disjoint, right, readable by the model, and different where they are meant to be."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import rollout
from harness.config import EXAMPLE
from questions import correctness, read_questions
from study import tasks
from study.variants import MAX_NEW_TOKENS


@pytest.fixture(scope="module")
def sets():
    return tasks.draw_sets(30, 5, 5)


def test_no_question_is_in_two_sets_or_was_held_out_of_pretraining(sets):
    assert list(sets) == ["training", "validation", *tasks.BENCHMARKS]
    problems = [question["problem"] for questions in sets.values() for question in questions]
    example = {question["problem"] for name in ("train", "held_out") for question in example_questions(name)}
    assert len(problems) == len(set(problems)) == 11 * 30
    assert {question["problem"] for question in sets["training"]} == example & set(problems)


def example_questions(name: str) -> list[dict]:
    return read_questions([str(EXAMPLE / f"{name}.jsonl")])


def test_the_answers_are_what_the_problems_say(sets):
    for questions in sets.values():
        for question in questions:
            *quantities, asked = question["problem"].rstrip(".").split(". ")
            values = dict(map(value_of, quantities))
            assert sum(values[name] for name in asked.removeprefix("Find ").split(" + ")) == int(question["answer"])


def value_of(sentence: str) -> tuple[str, int]:
    """`Let x = 7, add 5` -> (x, 12)"""
    first, *operations = sentence.removeprefix("Let ").split(", ")
    name, start = first.split(" = ")
    value = int(start)
    for operation in operations:
        word, number = operation.split(" ")
        value = {"add": value + int(number), "subtract": value - int(number), "times": value * int(number)}[word]
    return name, value


def test_the_model_can_read_every_question_and_has_room_to_answer(sets):
    model, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    for questions in sets.values():
        for question in questions:
            ids = tokenizer(question["problem"])["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) + 1 + MAX_NEW_TOKENS <= model.config.max_position_embeddings


def test_the_questions_out_of_distribution_differ_from_training_as_they_are_meant_to(sets):
    training = example_questions("train")
    assert max(map(operations_of, training)) < min(map(operations_of, sets["longer"]))
    assert not set(map(asked_of, training)) & set(map(asked_of, sets["reordered"]))
    two = [question for question in training if question["level"] in (3, 4)]
    assert max(map(largest_result, two)) < min(map(largest_result, sets["larger"]))


def operations_of(question: dict) -> int:
    return len(re.findall("add|subtract|times", question["problem"]))


def asked_of(question: dict) -> str:
    return question["problem"][question["problem"].index("Find") :]


def largest_result(question: dict) -> int:
    """The largest value of a quantity after any of its operations, read from the text."""
    largest = 0
    for sentence in question["problem"].split(". ")[:-1]:
        parts = sentence.split(", ")
        largest = max(largest, *(value_of(", ".join(parts[:n]))[1] for n in range(1, len(parts) + 1)))
    return largest


def test_terse_solutions_are_right_and_take_half_the_steps(sets):
    for worked, terse in zip(sets["training"], tasks.with_terse_solutions(sets["training"], 1.0), strict=True):
        assert {**worked, "solution": ""} == {**terse, "solution": ""}
        assert correctness([terse["solution"]], [terse]) == [1.0]
        operations = [len(sentence.split(", ")) - 1 for sentence in worked["problem"].split(". ")[:-1]]
        single, taken = sum(operations), sum(map(math.ceil, np.array(operations) / 2))
        sums = len(operations) - 1  # of the quantities
        assert worked["solution"].count(" = ") == single + sums
        assert terse["solution"].count(" = ") == taken + sums
        for left, right in re.findall(r"([\d(][\d +*()-]*) = (\d+)\.", terse["solution"]):
            assert eval(left) == int(right)


def test_a_question_can_be_read_back_as_the_problem_that_it_was_made_from(sets):
    for questions in sets.values():
        for question in questions:
            problem = tasks.as_problem(question["problem"])
            assert problem.answer == int(question["answer"])
            if question["problem"].endswith(f"Find {' + '.join(problem.names)}."):  # not reordered
                assert problem.text == question["problem"]


def test_the_seeds_alone_fix_the_questions(sets):
    assert tasks.draw_sets(30, 5, 5) == sets
