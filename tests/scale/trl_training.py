"""What the tests of scale/ share: a run of a few steps on the embedded model, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from harness.config import EXAMPLE
from questions import Question, read_questions
from rollout import PLAIN, Completion, Rollouts, assemble
from scale import groups, trl_dagrpo
from scale.data import as_dataset, read_tokenizer
from scale.groups import Sampled
from scale.settings import DaGRPOConfig
from scoring import Rectified

# A scorer of one's own: completions of nearly the same length are alike.
OWN = "def scores(questions, texts):\n    return [[min(1.0, len(text) / 100) for text in group] for group in texts]\n"

TOKENIZER = read_tokenizer(str(EXAMPLE))


def questions_of_example(count: int) -> list[Question]:
    return read_questions([str(EXAMPLE / "train.jsonl")])[:count]


def rows(questions: list[Question]) -> Dataset:
    return as_dataset(questions, TOKENIZER, PLAIN)


def digits(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs within nearly every group of the untrained model: the share of digits, in tenths."""
    texts = TOKENIZER.batch_decode(completion_ids, skip_special_tokens=True)
    return [round(10 * sum(c.isdigit() for c in text) / max(1, len(text))) / 10 for text in texts]


def arbitrary(completion_ids: list[list[int]], question: list[int], **_: Any) -> list[float]:
    """A reward of which completions are alike and earn 0 and 1, but for those of the first question: all earn 0."""
    return [float(number > 0 and sum(ids) % 2) for ids, number in zip(completion_ids, question, strict=True)]


def settings(folder: Path, **changes: Any) -> DaGRPOConfig:
    """Three steps of two groups of four on a CPU, without warm-up, and fast enough to move the weights."""
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return DaGRPOConfig(**options)


def new(trainer_class: Callable[..., Any], args: DaGRPOConfig, dataset: Dataset, **options: Any) -> Any:
    """A trainer of the class on the embedded model."""
    return trainer_class(
        model=options.pop("model", None) or AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32),
        reward_funcs=options.pop("reward_funcs", digits),
        args=args,
        train_dataset=dataset,
        processing_class=TOKENIZER,
        **options,
    )


def trained(*arguments: Any, **options: Any) -> Any:
    """The same after its steps."""
    trainer = new(*arguments, **options)
    trainer.train()
    return trainer


def one_batch(trainer: Any) -> tuple[dict[str, Any], Sampled, Rectified]:
    """A batch as TRL trains on it, with what it was made of: all questions of the data, in order."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    repeated = [row for row in trainer.train_dataset for _ in range(trainer.num_generations)]
    seen: list[tuple[Sampled, Rectified]] = []

    def spied(*arguments: Any) -> Rectified:
        seen.append((arguments[1], groups.rectified_groups(*arguments)))
        return seen[-1][1]

    with mock.patch.object(trl_dagrpo, "rectified_groups", spied):
        batch = trainer._generate_and_score_completions(repeated)
    return batch, *seen[0]


def as_rollouts(trainer: Any, sampled: Sampled) -> Rollouts:
    """The batch as dagrpo.py has it."""
    rows = zip(sampled.prompts, sampled.completions, sampled.is_anchor, strict=True)
    completions = [Completion(prompt, ids, is_anchor=is_anchor) for prompt, ids, is_anchor in rows]
    return assemble(trainer.model, TOKENIZER, completions, trainer.num_generations)
