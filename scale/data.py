"""Questions as TRL takes them: a data set of prompts, and rewards that know the question of each completion.

A row is the prompt and the number of its question; what else there is to know of a question stays in a list beside.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from harness.config import Config
from harness.rewards import OwnReward
from harness.task import Task, read_task, verified_task
from policy.model import load_tokenizer, named
from questions import Question, Reward, prompt_of, style_of
from rollout import PromptStyle, turns_of

TrlReward = Callable[..., list[float]]


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
    """What is to be learned, from data as dagrpo.py reads it, TRL's own format among it."""
    return verified_task(read_task(config), described(config.model, trust_remote_code), tokenizer, config)


def as_dataset(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, style: PromptStyle, first: int = 0
) -> Dataset:
    """Rows of `prompt` and `question`, the number of the question, counted from `first` on.

    A prompt is messages where the tokenizer has a chat template, which TRL then applies, and text where it has none.
    """
    prompts: list[Any] = []
    for question in questions:
        text = prompt_of(tokenizer, question, style)  # complains of what the chat template does not know
        turns = turns_of(question["problem"], question.get("choices"), style_of(question, style))
        prompts.append(turns if tokenizer.chat_template is not None else text)
    return Dataset.from_dict({"prompt": prompts, "question": list(range(first, first + len(questions)))})


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
