"""Questions as TRL takes them: a data set of prompts, and rewards that know the question of each completion.

A row is the prompt and the number of its question; what else there is to know of a question stays in a list beside.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from anchors import Anchors
from harness.config import Config, ConfigError
from harness.prompting import Contents
from harness.report import tell
from harness.task import Task, distances_of, read_task, verified_task
from policy.model import load_tokenizer, named
from questions import (
    DataError,
    OwnReward,
    Question,
    Reward,
    drop_unreadable,
    first_line,
    load_reward,
    prompt_of,
    read_questions,
)
from rollout import PromptStyle, turns_of

TrlReward = Callable[..., list[float]]
AS_IT_IS = "prompt of TRL"  # a field of questions in TRL's format; in this project's format, `prompt` means nothing


def described(model: str, trust_remote_code: bool) -> Any:
    """A model as its configuration alone tells of it: enough to know what fits into it, and what ends a completion.

    Raises ModelError where there is none.
    """
    with named(f"--model {model}: its configuration"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    try:
        generation_config = GenerationConfig.from_pretrained(model)
    except OSError:  # it has none beside its configuration
        generation_config = GenerationConfig.from_model_config(config)
    return SimpleNamespace(config=config, generation_config=generation_config)


def read_tokenizer(model: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer as TRL wants it: padding on the left. Raises ModelError where there is none."""
    options = {"padding_side": "left", "truncation_side": "left", "trust_remote_code": trust_remote_code}
    return load_tokenizer(model, f"--model {model}", options)


def read_any(config: Config, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False) -> Task:
    """What is to be learned, from data in this project's format or in TRL's. Raises DataError for both at once."""
    model = described(config.model, trust_remote_code)
    sources = [*config.data, *config.eval_data]
    of_trl = [source for source in sources if in_trl_format(source)]
    if not of_trl:
        return verified_task(read_task(config), model, tokenizer, config)
    if len(of_trl) < len(sources):
        raise DataError(f"--data {of_trl[0]}: it is in TRL's format (`prompt`), and other data is not; give one kind.")
    return read_prompts_as_task(config, model, tokenizer)


def as_dataset(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, style: PromptStyle, first: int = 0
) -> Dataset:
    """Rows of `prompt` and `question`, the number of the question, counted from `first` on.

    A prompt is messages where the tokenizer has a chat template, which TRL then applies, and text where it has none.
    """
    prompts: list[Any] = []
    for question in questions:
        text = prompt_of(tokenizer, question, style)  # complains of what the chat template does not know
        turns = turns_of(question["problem"], question.get("choices"), style)
        prompts.append(question.get(AS_IT_IS) or (text if tokenizer.chat_template is None else turns))
    return Dataset.from_dict({"prompt": prompts, "question": list(range(first, first + len(questions)))})


# ---------------------------------------------------------------------------------------------------------------------
# TRL's format
# ---------------------------------------------------------------------------------------------------------------------


def in_trl_format(source: str) -> bool:
    """Do the rows of a file or Hub set hold a `prompt`, and no `problem`?"""
    if Path(source).is_file():
        with Path(source).open(encoding="utf-8") as file:
            try:
                first = json.loads(next((line for line in file if line.strip()), ""))
            except ValueError:
                return False  # no JSONL, or none in UTF-8: whoever reads this project's format says what it is
        return isinstance(first, dict) and "prompt" in first and "problem" not in first
    columns = columns_of_hub(source)
    return "prompt" in columns and not {"problem", "question"} & columns


def columns_of_hub(source: str) -> set[str]:
    """The columns of a Hub set, name[/configuration][:split]; none where there is no such set."""
    name = source.partition(":")[0].split("/")
    try:
        described = load_dataset_builder("/".join(name[:2]), "/".join(name[2:]) or None).info
    except Exception:  # of the library: whoever reads this project's format says what is wrong
        return set()
    return set(described.features or ())


def read_prompts(sources: list[str]) -> list[Question]:
    """The questions of files and Hub sets in TRL's format: `prompt`, a text or messages, and the gold in `answer`.

    A `solution` beside an `answer` is worked out, and may become an anchor; by itself it is the gold, as TRL's own
    rewards have it. Raises DataError for a row without a prompt or a gold.
    """
    return [of_trl(row, f"{source}:{n}") for source in sources for n, row in enumerate(table_of(source), start=1)]


def table_of(source: str) -> Dataset:
    """The rows of a JSONL file, or of a Hub set, name[/configuration][:split]. Raises DataError where it has none."""
    path, _, split = source.partition(":")
    name = path.split("/")
    try:
        if Path(source).is_file():
            return load_dataset("json", data_files=source, split="train")
        return load_dataset("/".join(name[:2]), "/".join(name[2:]) or None, split=split or "train")
    except Exception as error:  # of the library, for what it cannot read
        raise DataError(f"--data {source}: it cannot be read ({first_line(error)}).") from error


def of_trl(row: dict[str, Any], where: str) -> Question:
    """The question of a row; its problem is the text of the whole prompt."""
    prompt, answer, solution = (row.get(name) for name in ("prompt", "answer", "solution"))
    if answer is None:
        answer, solution = solution, None
    turns = prompt if isinstance(prompt, list) else [{"content": prompt}]
    texts: list[Any] = [turn.get("content") if isinstance(turn, dict) else None for turn in turns]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: `prompt` must be a text, or messages whose `content` is text.")
    problem = "\n\n".join(texts)
    if answer is None or not str(answer).strip():
        raise DataError(f"{where}: the row has no gold; it must be in `answer`, or in `solution`.")
    question = {**row, "problem": problem, "answer": str(answer), "where": where, AS_IT_IS: prompt}
    return {**question, "solution": solution} if solution else {k: v for k, v in question.items() if k != "solution"}


def read_prompts_as_task(config: Config, model: Any, tokenizer: PreTrainedTokenizerBase) -> Task:
    """What is to be learned from data in TRL's format. Held out are the questions of --eval-data, or none.

    Raises ConfigError for flags of prompts and lines, which are taken as they are.
    """
    for name in ("system", "prompt_file", "examples", "hold_out", "skip_bad"):
        if getattr(config, name) != getattr(Config(), name):
            raise ConfigError(f"--{name}: data in TRL's format (`prompt`) are taken as they are; leave it out.")
    questions, held_out = read_prompts(config.data), read_prompts(config.eval_data)
    if not config.reward:
        questions, unreadable = drop_unreadable(questions)
        if unreadable:
            tell(f"{len(unreadable)} questions left out: their gold answer cannot be read.")
    if not questions:
        raise DataError(f"--data {', '.join(config.data)}: no question has an answer that the verifier can read.")
    source = questions if config.anchors == "data" else []
    if config.anchors not in ("data", None):
        source = read_questions([config.anchors], "--anchors")
    if isinstance(questions[0][AS_IT_IS], str):  # TRL writes no template around a text
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = None
    solved = [question for question in source if question.get("solution")]
    task = Task(questions, held_out or questions, solved, Anchors(), load_reward(config.reward), distances_of(config))
    as_they_are = replace(config, prompt_contents=Contents("{problem}").record())
    task = verified_task(task, model, tokenizer, as_they_are)
    return task if held_out else replace(task, held_out=[])


def trl_rewards(
    reward: Reward, questions: list[Question], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TrlReward], list[float]]:
    """The verifier, or each function of --reward by itself, as TRL calls rewards; and their weights.

    `questions` are those that the column `question` of the data counts.
    """
    parts: list[tuple[str, Reward, float]]
    if isinstance(reward, OwnReward):
        parts = [(part.name, part.values, part.weight) for part in reward.parts]
    else:
        parts = [("correctness", reward, 1.0)]

    def as_trl(name: str, values: Reward) -> TrlReward:
        def function(completion_ids: list[list[int]], question: list[int], **_: Any) -> list[float]:
            texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
            return values(texts, [questions[number] for number in question])

        function.__name__ = name  # by which TRL logs it
        return function

    return [as_trl(name, values) for name, values, _ in parts], [weight for _, _, weight in parts]
