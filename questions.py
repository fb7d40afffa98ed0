"""Questions: their files and Hub sets, gold answers, rewards, splits, and the order in which a run takes them.

Data is JSONL, one question a line:

    {"problem": "...", "answer": "72", "solution": "optional, the anchor", "choices": ["optional", ...]}

With `choices`, `answer` is a letter. Further fields (`id`, `source`, `level`, ...) are kept. Nothing here prints: what
there is to say comes back as `notes`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import verify
from policy.model import position_limit
from rollout import PLAIN, PromptStyle, Rollouts, encode_prompt, noise_key, render_prompt

Question = dict[str, Any]  # with "where" naming the file and line that it came from
Key = tuple[str, ...]
Reward = Callable[[list[str], list[Question]], list[float]]  # N completions, the question of each -> N rewards


class DataError(ValueError):
    """Data that cannot be used; the message names file and line, or flag, the fault, and what is expected."""


# ---------------------------------------------------------------------------------------------------------------------
# Files and Hub sets
# ---------------------------------------------------------------------------------------------------------------------


def read_questions(sources: list[str]) -> list[Question]:
    """The questions of JSONL files and Hub data sets (`name` or `name:split`), in order.

    Raises DataError at the first line that cannot be used, and for a source that does not exist.
    """
    questions: list[Question] = []
    for source in sources:
        questions += read_jsonl(Path(source)) if Path(source).is_file() else read_hub(source)
    return questions


def read_jsonl(path: Path) -> list[Question]:
    questions = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: this line is not JSON ({error}). Each line holds one object.") from None
            questions.append(checked(fields, where))
    if not questions:
        raise DataError(f"{path}: the file has no questions.")
    return questions


def checked(fields: object, where: str) -> Question:
    """The question with `where` added. Raises DataError where a field is missing or of the wrong kind."""
    if not isinstance(fields, dict):
        raise DataError(f"{where}: this line holds a {type(fields).__name__}; it must hold an object with `problem`.")
    for name in ("problem", "answer"):
        if name not in fields:
            there = ", ".join(fields) or "no fields"
            raise DataError(f"{where}: the field `{name}` is missing; the line has {there}.")
        if not isinstance(fields[name], str) or not fields[name].strip():
            raise DataError(f"{where}: `{name}` is {fields[name]!r}; it must be a string that is not empty.")
    if not isinstance(fields.get("solution"), str | None):
        raise DataError(f"{where}: `solution` is {fields['solution']!r}; it must be a string, null, or left out.")
    choices = fields.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"{where}: `choices` must be a list of strings.")
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        if choices and fields["answer"].strip() not in letters:
            raise DataError(f"{where}: with `choices`, `answer` must be one of {', '.join(letters)}.")
    return {**fields, "where": where}


def read_hub(source: str) -> list[Question]:
    """A Hub data set, name[/configuration][:split], through the optional `datasets` package.

    `question` is read as `problem`, and GSM8K's `####`. Of several configurations one must be named, unless one of them
    is called main or default. Raises DataError where it is not, with their names.
    """
    path, _, split = source.partition(":")
    name, configuration = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
    if source.endswith((".jsonl", ".json")) or path.startswith((".", "/")):
        raise DataError(f"--data {source}: there is no such file.")
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"--data {source}: there is no such file, and to read a Hub data set one more package is needed. "
            "Run: pip install datasets"
        )
    import datasets

    configurations = datasets.get_dataset_config_names(name)
    usual = [each for each in configurations if each in ("main", "default")] or configurations
    if configuration not in configurations and (configuration or len(usual) > 1):
        what = f"there is no configuration {configuration!r}" if configuration else "it has several configurations"
        listed = ", ".join(f"{name}/{each}" for each in configurations)
        raise DataError(f"--data {source}: {what}; name one of {listed}.")
    configuration = configuration or usual[0]
    table = datasets.load_dataset(name, configuration, split=split or "train")
    return [checked(from_hub(dict(fields)), f"{source}:{number}") for number, fields in enumerate(table, start=1)]


def from_hub(fields: dict[str, Any]) -> Question:
    """A line of a Hub set in this project's fields: `question` -> `problem`; `text #### 72` -> `solution`, `answer`."""
    if "problem" not in fields and "question" in fields:
        fields["problem"] = fields.pop("question")
    if isinstance(fields.get("answer"), str) and "####" in fields["answer"]:
        text, _, answer = fields["answer"].rpartition("####")
        fields["answer"] = answer.strip().replace(",", "")
        # The calculator notes <<48/2=24>> are not part of the text; the closing line shows the form of an answer.
        text = re.sub(r"<<[^<>]*>>", "", text).strip()
        fields["solution"] = f"{text}\nThe answer is \\boxed{{{fields['answer']}}}."
    return fields


def key_of(question: Question) -> Key:
    """What makes two questions the same: problem and choices. Many multiple-choice questions share their problem."""
    return question["problem"].strip(), *(question.get("choices") or ())


def prompt_of(tokenizer: PreTrainedTokenizerBase, question: Question, style: PromptStyle = PLAIN) -> str:
    """The rendered prompt of a question. Raises DataError for a style without a chat template to read it."""
    if style != PLAIN and tokenizer.chat_template is None:
        raise DataError(
            "--system and --enable-thinking are for a chat template, and the tokenizer has none: leave them out."
        )
    return render_prompt(tokenizer, question["problem"], question.get("choices"), style)


# ---------------------------------------------------------------------------------------------------------------------
# Rewards
# ---------------------------------------------------------------------------------------------------------------------


def correctness(texts: list[str], questions: list[Question]) -> list[float]:
    """The reward: 1.0 where the verifier finds the completion right, else 0.0; 0.0 where the gold is unreadable."""
    golds, choices = gold_answers(questions)
    return [float(verdict is True) for verdict in verify.grade(texts, golds, choices)]


def drop_unreadable(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """(questions whose gold answer the verifier can read, those that it cannot): the second are never graded."""
    golds, choices = gold_answers(questions)
    readable = [verdict is not None for verdict in verify.grade([""] * len(questions), golds, choices)]
    pairs = list(zip(questions, readable, strict=True))
    return [question for question, can in pairs if can], [question for question, can in pairs if not can]


def gold_answers(questions: list[Question]) -> tuple[list[str], list[list[str] | None]]:
    return [question["answer"] for question in questions], [question.get("choices") for question in questions]


def load_reward(source: str) -> Reward:
    """The verifier, or the function that --reward file.py:function names. Raises DataError where it is not there."""
    if not source:
        return correctness
    function = load_function("--reward", source)

    def reward(texts: list[str], questions: list[Question]) -> list[float]:
        rewards = [float(value) for value in function(texts, questions)]
        if len(rewards) != len(texts) or not all(map(math.isfinite, rewards)):
            raise ValueError(f"--reward {source}: it must give one finite float for each of the {len(texts)} texts.")
        return rewards

    return reward


def load_function(flag: str, source: str) -> Callable[..., Any]:
    """The function that a flag names as file.py:function. Raises DataError where it is not there."""
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise DataError(f"{flag} {source}: it must be file.py:function, and there is no file {path or source!r}.")
    spec = importlib.util.spec_from_file_location(f"{flag.strip('-')}_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"{flag} {source}: {path} is no Python file; it must be file.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise DataError(f"{flag} {source}: {path} has no function {name!r}.")
    function: Callable[..., Any] = getattr(module, name)
    return function


def overlong_penalty(rollouts: Rollouts, rewards: torch.Tensor, margin: float, limit: int) -> torch.Tensor:
    """What a sampled completion loses that ends in the last `margin` tokens of its limit: up to 1/2, at the limit.

    DAPO takes up to 1 from rewards of 1 and −1, which is as much of the way from right to wrong. A group whose rewards
    are all equal stays without signal: there the penalty alone would make whole advantages.

    N rows, (P, G) -> (P, G)
    """
    over = (rollouts.lengths - (limit - margin)).clamp(min=0) / max(margin, 1)  # (N,)
    by_group = (0.5 * over * ~rollouts.anchor_mask).view(rewards.shape)
    return by_group * (rewards != rewards[:, :1]).any(1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# The questions of a run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Training and held-out questions, none of them in both, and what was left out."""

    training: list[Question]
    held_out: list[Question]
    notes: list[str]


def split_questions(data: list[str], eval_data: list[str], hold_out: int, *, check_golds: bool = True) -> Split:
    """Held out: --eval-data, or else `hold_out` questions of --data, a fifth at most. Training: the rest of --data.

    Questions whose gold answer cannot be read are left out. Raises DataError where too few are left.
    """
    notes = []

    def readable(questions: list[Question]) -> list[Question]:
        kept, unreadable = drop_unreadable(questions) if check_golds else (questions, [])
        for question in unreadable[:3]:
            notes.append(f"{question['where']}: left out, the answer {question['answer']!r} cannot be read")
        if unreadable:
            notes.append(f"{len(unreadable)} questions left out: their gold answer cannot be read.")
        return kept

    questions = readable(read_questions(data))
    if eval_data:
        held_out = readable(read_questions(eval_data))
    else:
        shuffled = sorted(questions, key=lambda question: noise_key("hold out", question["problem"]))
        held_out = shuffled[: min(hold_out, len(questions) // 5)]
        if len(held_out) < hold_out:
            notes.append(f"--hold-out {hold_out}: only {len(held_out)} questions are held out, a fifth of the data.")
    kept_back = {key_of(question) for question in held_out}
    training = [question for question in questions if key_of(question) not in kept_back]
    if eval_data and len(training) < len(questions):
        both = len(questions) - len(training)
        notes.append(f"{both} training questions are held-out ones too: left out of training.")
    if not training or not held_out:
        different = len({key_of(question) for question in questions})
        raise DataError(
            f"{', '.join(data)}: {different} different usable questions are too few to train on and to hold a fifth of "
            "them out: give five or more, or others by --eval-data."
        )
    return Split(training, held_out, notes)


def fitting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    max_new_tokens: int,
    style: PromptStyle = PLAIN,
) -> tuple[list[Question], list[str]]:
    """The questions whose prompt leaves room for a completion in the model's positions, and notes of the others.

    Raises DataError where no question does.
    """
    limit = position_limit(model) or math.inf
    kept = [
        question
        for question in questions
        if len(encode_prompt(tokenizer, prompt_of(tokenizer, question, style))) + max_new_tokens <= limit
    ]
    if not kept:
        raise DataError(f"--max-new-tokens {max_new_tokens}: no question fits the model's {limit} positions.")
    left_out = len(questions) - len(kept)
    if not left_out:
        return kept, []
    return kept, [f"{left_out} questions left out: with a completion they exceed the model's {limit} positions."]


def question_stream(questions: list[Question], seed: int) -> Iterator[Question]:
    """Questions for ever: all of them in a random order, then again in another."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(questions, len(questions))


class Stream:
    """`question_stream`, which knows how many questions were taken from it; a resumed run has taken some before."""

    def __init__(self, questions: list[Question], seed: int, taken: int = 0) -> None:
        self.questions = question_stream(questions, seed)
        self.taken = 0
        for _ in range(taken):
            next(self)

    def __iter__(self) -> Iterator[Question]:
        return self

    def __next__(self) -> Question:
        self.taken += 1
        return next(self.questions)
