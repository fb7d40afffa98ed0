"""The task of a run: which questions, which anchors, which reward."""

from __future__ import annotations

import pytest
from conftest import SOLVED, write_questions

from harness.config import Config
from harness.estimate import Prompts
from harness.task import Task, prompt_lengths, read_task, verified_task

BARE = [{"problem": f"{number}+0?", "answer": str(number)} for number in range(3, 9)]
UNREADABLE = {"problem": "?", "answer": "\\frac{1"}


def task_of(tmp_path, model, tokenizer, questions, **flags):
    flags = {"model": "m", "data": [write_questions(tmp_path / "data.jsonl", questions)], **flags}
    flags["eval_data"] = [write_questions(tmp_path / "held_out.jsonl", [{"problem": "0+0?", "answer": "0"}])]
    config = Config(max_new_tokens=60, group_size=4, **flags)
    return verified_task(read_task(config), model, tokenizer, config)


def problems(task):
    return [question["problem"] for question in task.questions]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ({}, 7),
        ({"anchors": None}, 7),
        ({"every_group": True}, 1),
        ({"rollouts": False, "group_size": 1}, 1),
    ],
    ids=["hard groups", "no anchors", "every group", "imitation"],
)
def test_questions_without_an_anchor_are_left_out_where_each_needs_one(tmp_path, model, tokenizer, flags, left):
    group_size = flags.pop("group_size", 4)
    data = write_questions(tmp_path / "data.jsonl", [SOLVED, *BARE])
    held_out = write_questions(tmp_path / "held_out.jsonl", [{"problem": "0+0?", "answer": "0"}])
    config = Config(model="m", data=[data], eval_data=[held_out], max_new_tokens=60, group_size=group_size, **flags)
    task = verified_task(read_task(config), model, tokenizer, config)
    assert len(task.questions) == left and problems(task)[0] == SOLVED["problem"]
    assert bool(task.anchors.solutions) == ("anchors" not in flags)


def test_every_group_needs_as_many_anchors_as_join_it(tmp_path, model, tokenizer):
    two = [SOLVED, {**SOLVED, "solution": f"So {SOLVED['solution']}"}, {**BARE[0], "solution": "\\boxed{3}"}]
    task = task_of(tmp_path, model, tokenizer, two, every_group=True, anchors_per_group=2)
    assert set(problems(task)) == {SOLVED["problem"]}
    task = task_of(tmp_path, model, tokenizer, two, anchors_per_group=2)
    assert len(task.questions) == 3


def test_anchors_come_from_their_file_where_one_is_named(tmp_path, model, tokenizer):
    source = write_questions(tmp_path / "anchors.jsonl", [{**BARE[0], "solution": "\\boxed{3}"}])
    task = task_of(tmp_path, model, tokenizer, [SOLVED, *BARE], anchors=source)
    assert list(task.anchors.solutions) == [((BARE[0]["problem"],), BARE[0]["answer"])]


def test_golds_that_the_verifier_cannot_read_are_no_matter_to_another_reward(tmp_path, model, tokenizer):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [1.0] * len(texts)\n")
    task = task_of(tmp_path, model, tokenizer, [SOLVED, UNREADABLE], reward=f"{tmp_path / 'mine.py'}:f", right_at=1.0)
    assert len(task.questions) == 2
    assert len(task_of(tmp_path, model, tokenizer, [SOLVED, UNREADABLE]).questions) == 1


def test_solutions_of_another_file_are_graded_against_the_data(tmp_path, model, tokenizer):
    """The file has another answer: what reaches it is wrong here."""
    lines = [{**BARE[0], "answer": "4", "solution": f"\\boxed{{{number}}}"} for number in (3, 4)]
    source = write_questions(tmp_path / "anchors.jsonl", lines)
    task = task_of(tmp_path, model, tokenizer, BARE, anchors=source)
    ((solution, _),) = task.anchors.available(BARE[0])
    assert tokenizer.decode(solution[:-1]) == "\\boxed{3}"


@pytest.mark.parametrize(("right_at", "count"), [(0.5, 1), (0.6, 0)])
def test_a_solution_is_an_anchor_that_earns_what_is_right(tmp_path, model, tokenizer, right_at, count):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [0.5] * len(texts)\n")
    reward = f"{tmp_path / 'mine.py'}:f"
    task = task_of(tmp_path, model, tokenizer, [SOLVED, *BARE], reward=reward, right_at=right_at)
    assert len(task.anchors.available(SOLVED)) == count


def test_whatever_is_left_out_is_said(tmp_path, model, tokenizer, capsys):
    """Of the training questions, of the held-out ones, and of the solutions."""
    long = {"problem": "a" * 250, "answer": "1"}
    data = write_questions(tmp_path / "data.jsonl", [{**SOLVED, "answer": "3"}, long, long | {"problem": "b" * 250}])
    held_out = write_questions(tmp_path / "held_out.jsonl", [{"problem": "0+0?", "answer": "0"}, long])
    config = Config(model="m", data=[data], eval_data=[held_out], max_new_tokens=60, group_size=4)
    verified_task(read_task(config), model, tokenizer, config)
    said = capsys.readouterr().out
    assert said.count("1 questions left out: with a completion they exceed") == 2
    assert "Anchors: 0 of 1 questions have one; 1 solutions left out." in said


def test_the_longest_prompt_is_looked_for_in_the_whole_file(tokenizer):
    """Files are often ordered by level: the first questions alone are the short ones. One token a character."""
    questions = [{"problem": "1" * (1 + number // 100)} for number in range(2_000)]
    task = Task(questions, [], [], None, None)
    lengths = prompt_lengths(task, tokenizer, Config(model="m", data=["d"]))
    assert lengths == Prompts(21, 0), "twenty, and the end of the line"


def test_what_all_prompts_begin_with_is_counted_where_it_is_long_enough_to_be_computed_once(tokenizer):
    """One token a character."""

    def lengths(begin: int) -> Prompts:
        questions = [{"problem": "5" * begin + last} for last in ("1+1", "22", "3")]
        return prompt_lengths(Task(questions, [], [], None, None), tokenizer, Config(model="m", data=["d"]))

    assert lengths(40) == Prompts(44, 40) and lengths(20) == Prompts(24, 0)
