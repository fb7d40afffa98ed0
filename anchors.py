"""Questions, their rewards, and the verified solutions (anchors) that join the group of a hard question: equation (6).

Data is JSONL, one question a line:

    {"problem": "...", "answer": "72", "solution": "optional, the anchor", "choices": ["optional", ...]}

With `choices`, `answer` is a letter. Further fields (`id`, `source`, `level`, ...) are kept.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import verify
from flags import ConfigError
from report import say
from rollout import Answer, Rollouts, answers_of, assemble, encode_prompt, noise_key, render_prompt

Row = dict[str, Any]  # one question, with "where" naming the file and line it came from
Reward = Callable[[list[str], list[Row]], list[float]]


class DataError(ValueError):
    """A line of a data file that cannot be used; the message names file, line, fault and what is expected."""


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def read_questions(sources: list[str]) -> list[Row]:
    """The questions of JSONL files and Hub data sets (`name` or `name:split`), in order.

    Raises DataError at the first line that cannot be used, and for a source that does not exist.
    """
    rows: list[Row] = []
    for source in sources:
        rows += read_jsonl(Path(source)) if Path(source).is_file() else read_hub(source)
    return rows


def read_jsonl(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: this line is not JSON ({error}). Each line holds one object.") from None
            rows.append(checked(row, where))
    if not rows:
        raise DataError(f"{path}: the file has no questions.")
    return rows


def checked(row: object, where: str) -> Row:
    """The row with `where` added. Raises DataError where a field is missing or of the wrong kind."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: this line holds a {type(row).__name__}; it must hold an object with `problem`.")
    for name in ("problem", "answer"):
        if name not in row:
            raise DataError(f"{where}: the field `{name}` is missing; the line has {', '.join(row) or 'no fields'}.")
        if not isinstance(row[name], str) or not row[name].strip():
            raise DataError(f"{where}: `{name}` is {row[name]!r}; it must be a string that is not empty.")
    if not isinstance(row.get("solution"), str | None):
        raise DataError(f"{where}: `solution` is {row['solution']!r}; it must be a string, null, or left out.")
    choices = row.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"{where}: `choices` must be a list of strings.")
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        if choices and row["answer"].strip() not in letters:
            raise DataError(f"{where}: with `choices`, `answer` must be one of {', '.join(letters)}.")
    return {**row, "where": where}


def read_hub(source: str) -> list[Row]:
    """A Hub data set through the optional `datasets` package; `question` is read as `problem`, and GSM8K's `####`."""
    name, _, split = source.partition(":")
    if source.endswith((".jsonl", ".json")) or name.startswith((".", "/")):
        raise DataError(f"--data {source}: there is no such file.")
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"--data {source}: there is no such file, and to read a Hub data set one more package is needed. "
            "Run: pip install datasets"
        )
    import datasets

    configurations = datasets.get_dataset_config_names(name)
    configuration = "main" if "main" in configurations else configurations[0]
    table = datasets.load_dataset(name, configuration, split=split or "train")
    return [checked(from_hub(dict(row)), f"{source}:{number}") for number, row in enumerate(table, start=1)]


def from_hub(row: Row) -> Row:
    """A Hub row in this project's fields: `question` -> `problem`; `text #### 72` -> `solution` and `answer`."""
    if "problem" not in row and "question" in row:
        row["problem"] = row.pop("question")
    if isinstance(row.get("answer"), str) and "####" in row["answer"]:
        text, _, answer = row["answer"].rpartition("####")
        row["answer"] = answer.strip().replace(",", "")
        # The calculator notes <<48/2=24>> are not part of the text; the closing line shows the form of an answer.
        text = re.sub(r"<<[^<>]*>>", "", text).strip()
        row["solution"] = f"{text}\nThe answer is \\boxed{{{row['answer']}}}."
    return row


def prompt_of(tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    """The rendered prompt of a question."""
    return render_prompt(tokenizer, row["problem"], row.get("choices"))


# ---------------------------------------------------------------------------------------------------------------------
# Rewards
# ---------------------------------------------------------------------------------------------------------------------


def correctness(texts: list[str], rows: list[Row]) -> list[float]:
    """The reward: 1.0 where the verifier finds the answer right, else 0.0. Also 0.0 where the gold is unreadable."""
    verdicts = verify.grade(texts, [row["answer"] for row in rows], [row.get("choices") for row in rows])
    return [float(verdict is True) for verdict in verdicts]


def drop_unreadable(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(questions whose gold answer the verifier can read, those that it cannot): the second are never graded."""
    verdicts = verify.grade([""] * len(rows), [row["answer"] for row in rows], [row.get("choices") for row in rows])
    kept = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is not None]
    return kept, [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is None]


# ---------------------------------------------------------------------------------------------------------------------
# Anchors
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Anchors:
    """Verified solutions by question."""

    solutions: dict[str, list[tuple[Any, float]]] = field(default_factory=dict)  # problem -> (solution, reward)s
    left_out: list[str] = field(default_factory=list)  # "file:line: why" for each solution that cannot be used

    def available(self, row: Row) -> list[tuple[Any, float]]:
        """(solution, reward) pairs of a question; the solution as token ids, or as text without a tokenizer."""
        return self.solutions.get(row["problem"].strip(), [])


def load(
    path_or_rows: str | list[Row],
    *,
    reward: Reward = correctness,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int | None = None,
) -> Anchors:
    """The `solution` of each row, where it earns a positive reward and fits the answer limit with its EOS.

    With a tokenizer, solutions are kept as token ids that end in EOS; without one, as texts. What is left out is
    named by file and line in `left_out`. Raises DataError for a broken file.
    """
    rows = read_questions([path_or_rows]) if isinstance(path_or_rows, str) else path_or_rows
    rows = [row for row in rows if row.get("solution")]
    anchors = Anchors()
    for row, earned in zip(rows, reward([row["solution"] for row in rows], rows), strict=True):
        where = row.get("where", row["problem"])
        if earned <= 0:
            anchors.left_out.append(f"{where}: the solution does not reach the answer {row['answer']}")
            continue
        solution: list[int] | str = row["solution"]
        if tokenizer is not None:
            solution = tokenizer(row["solution"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            if max_new_tokens is not None and len(solution) > max_new_tokens:
                anchors.left_out.append(
                    f"{where}: the solution has {len(solution)} tokens with its EOS, the limit is {max_new_tokens}"
                )
                continue
        anchors.solutions.setdefault(row["problem"].strip(), []).append((solution, earned))
    return anchors


def is_hard(rewards: torch.Tensor, right: float, hard_below: float) -> torch.Tensor:
    """Is a question's pass rate at or under `hard_below`? An answer passes that earns `right`. Equation (6).

    (..., G) -> (...) bool
    """
    return (rewards >= right).float().mean(-1) <= hard_below


def insert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    rewards: torch.Tensor,
    rows: list[Row],
    anchors: Anchors,
    *,
    count: int,
    hard_below: float,
    every_group: bool,
    rng: random.Random,
) -> tuple[Rollouts, torch.Tensor]:
    """Groups with anchors in place. Equation (6). N rows, (P, G), P questions -> N' rows, (P, G')

    In a hard group min(count, failing, available) anchors replace the last failing answers, so that G' = G. With
    `every_group` (LUFFY), `count` anchors are appended to every group: G' = G + count.
    """
    sampled, all_earned = answers_of(rollouts), rewards.tolist()
    placed: list[Answer] = []
    placed_rewards: list[float] = []
    for p, row in enumerate(rows):
        group = sampled[p * rollouts.group_size : (p + 1) * rollouts.group_size]
        earned = all_earned[p]
        available = anchors.available(row)
        right = min((reward for _, reward in available), default=0.0)  # an answer is right that earns as much
        if every_group:
            for solution, reward in rng.sample(available, count):
                group.append(Answer(group[0].prompt, solution, is_anchor=True))
                earned.append(reward)
        elif available and bool(is_hard(torch.tensor(earned), right, hard_below)):
            failing = [g for g, reward in enumerate(earned) if reward < right]
            chosen = rng.sample(available, min(count, len(failing), len(available)))
            for g, (solution, reward) in zip(failing[len(failing) - len(chosen) :], chosen, strict=True):
                group[g], earned[g] = Answer(group[0].prompt, solution, is_anchor=True), reward
        placed += group
        placed_rewards += earned
    size = len(placed) // len(rows)
    record = assemble(model, tokenizer, placed, size)
    return record, torch.tensor(placed_rewards, device=rewards.device).view(len(rows), size)


def only(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    anchors: Anchors,
    rng: random.Random,
) -> tuple[Rollouts, torch.Tensor]:
    """Groups of one anchor each and no sampled answer, for supervised fine-tuning. P questions -> P rows, (P, 1)"""
    prompts = [encode_prompt(tokenizer, prompt_of(tokenizer, row)) for row in rows]
    chosen = [rng.choice(anchors.available(row)) for row in rows]
    placed = [Answer(prompt, solution, is_anchor=True) for prompt, (solution, _) in zip(prompts, chosen, strict=True)]
    rewards = torch.tensor([[reward] for _, reward in chosen], device=model.device)
    return assemble(model, tokenizer, placed, 1), rewards


# ---------------------------------------------------------------------------------------------------------------------
# Questions, anchors and reward of a run
# ---------------------------------------------------------------------------------------------------------------------


def load_reward(source: str) -> Reward:
    """The verifier, or the function that --reward file.py:function names. Raises ConfigError where it is not there."""
    if not source:
        return correctness
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise ConfigError(f"--reward {source}: it must be file.py:function, and there is no file {path or source!r}.")
    spec = importlib.util.spec_from_file_location("reward", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    if not callable(getattr(module, name, None)):
        raise ConfigError(f"--reward {source}: {path} has no function {name!r}.")
    function = getattr(module, name)

    def reward(texts: list[str], rows: list[Row]) -> list[float]:
        earned = [float(value) for value in function(texts, rows)]
        if len(earned) != len(texts) or not all(map(math.isfinite, earned)):
            raise ValueError(f"--reward {source}: it must give one finite float for each of the {len(texts)} texts.")
        return earned

    return reward


def split_questions(
    data: list[str], eval_data: list[str], hold_out: int, *, check_golds: bool = True
) -> tuple[list[Row], list[Row]]:
    """Training and held-out questions, none of them in both. Questions with an unreadable gold answer are left out."""
    rows = read_questions(data)
    rows, unreadable = drop_unreadable(rows) if check_golds else (rows, [])
    for row in unreadable[:3]:
        say(f"{row['where']}: left out, the answer {row['answer']!r} cannot be read")
    if unreadable:
        say(f"{len(unreadable)} questions left out: their gold answer cannot be read.")
    if eval_data:
        held_out = read_questions(eval_data)
    else:
        shuffled = sorted(rows, key=lambda row: noise_key("hold out", row["problem"]))
        held_out = shuffled[: min(hold_out, len(rows) // 5)]
    kept_back = {row["problem"].strip() for row in held_out}
    training = [row for row in rows if row["problem"].strip() not in kept_back]
    if eval_data and len(training) < len(rows):
        say(f"{len(rows) - len(training)} training questions are held-out ones too: left out of training.")
    if not training or not held_out:
        raise DataError(f"{', '.join(data)}: {len(rows)} usable questions are too few to train and to hold some out.")
    return training, held_out


def fitting(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_new_tokens: int
) -> list[Row]:
    """The questions whose prompt leaves room for an answer in the model's positions. Raises ConfigError if none."""
    limit = getattr(model.config, "max_position_embeddings", None) or math.inf
    kept = []
    for row in rows:
        if len(encode_prompt(tokenizer, prompt_of(tokenizer, row))) + max_new_tokens <= limit:
            kept.append(row)
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} questions left out: with their answer they exceed the model's {limit} positions.")
    if not kept:
        raise ConfigError(f"--max-new-tokens {max_new_tokens}: no question fits the model's {limit} positions.")
    return kept


def verified(
    rows: list[Row],
    source: list[Row],
    *,
    needed: int,
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> tuple[Anchors, list[Row]]:
    """The verified anchors among the source's solutions, and the questions that have at least `needed` of them."""
    known = load(source, reward=reward, tokenizer=tokenizer, max_new_tokens=max_new_tokens)
    for line in known.left_out[:3]:
        say(f"Anchor left out, {line}")
    covered = sum(bool(known.available(row)) for row in rows)
    say(f"Anchors: {covered} of {len(rows)} questions have one; {len(known.left_out)} solutions left out.")
    enough = [row for row in rows if len(known.available(row)) >= needed]
    if len(enough) < len(rows):
        say(f"{len(rows) - len(enough)} questions have fewer than {needed} anchors: left out.")
    if not covered or not enough:
        raise ConfigError("--anchors: no question has enough usable solutions. Use --anchors none, or fewer a group.")
    return known, enough


def question_stream(rows: list[Row], seed: int) -> Iterator[Row]:
    """Questions for ever: all of them in a random order, then again in another."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(rows, len(rows))
