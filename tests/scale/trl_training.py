"""What the tests of scale/ share: a run of a few steps on the embedded model, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from harness.config import EXAMPLE
from questions import Question, read_questions
from rollout import PLAIN
from scale.data import as_dataset, read_tokenizer
from scale.settings import DaGRPOConfig

TOKENIZER = read_tokenizer(str(EXAMPLE))


def questions_of_example(count: int) -> list[Question]:
    return read_questions([str(EXAMPLE / "train.jsonl")])[:count]


def rows(questions: list[Question]) -> Dataset:
    return as_dataset(questions, TOKENIZER, PLAIN)


def digits(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs within nearly every group of the untrained model: the share of digits, in tenths."""
    texts = TOKENIZER.batch_decode(completion_ids, skip_special_tokens=True)
    return [round(10 * sum(c.isdigit() for c in text) / max(1, len(text))) / 10 for text in texts]


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


def trained(trainer_class: Callable[..., Any], args: DaGRPOConfig, dataset: Dataset, **options: Any) -> Any:
    """A trainer of the class, after its steps on the embedded model."""
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32),
        reward_funcs=options.pop("reward_funcs", digits),
        args=args,
        train_dataset=dataset,
        processing_class=TOKENIZER,
        **options,
    )
    trainer.train()
    return trainer
