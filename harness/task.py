"""What a run is to learn: its questions, anchors and reward, read and checked, with what is left out said."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anchors import Anchors, verified
from harness.config import Config
from harness.report import say
from questions import Question, Reward, fitting, load_reward, read_questions, split_questions


@dataclass(frozen=True)
class Task:
    """What is to be learned: questions to train on and others to measure on, anchors, and the reward."""

    questions: list[Question]
    held_out: list[Question]
    anchor_source: list[Question]  # whose solutions may become anchors
    anchors: Anchors
    reward: Reward


def read_task(config: Config) -> Task:
    """The task as its files have it. Raises DataError for what cannot be used in them."""
    reward = load_reward(config.reward)
    split = split_questions(config.data, config.eval_data, config.hold_out, check_golds=not config.reward)
    for note in split.notes:
        say(note)
    source = split.training if config.anchors in ("data", None) else read_questions([config.anchors])
    return Task(split.training, split.held_out, source, Anchors(), reward)


def verified_task(task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> Task:
    """The task with what the model has room for, and with its anchors. Raises DataError where nothing is left."""
    limit = config.max_new_tokens
    questions, notes = fitting(model, tokenizer, task.questions, limit)
    held_out, further = fitting(model, tokenizer, task.held_out, limit)
    notes, solutions = notes + further, task.anchors
    if config.anchors is not None:
        needed = config.anchors_per_group if config.every_group else int(not config.rollouts)
        solutions, questions, further = verified(
            questions, task.anchor_source,
            needed=needed, reward=task.reward, tokenizer=tokenizer, max_new_tokens=limit,
        )  # fmt: skip
        notes += further
    for note in notes:
        say(note)
    return replace(task, questions=questions, held_out=held_out, anchors=solutions)
