"""What the study compares: its variants, what each of them may spend, and what a cell is made from."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.config import EXAMPLE, Config, configure
from study import tasks
from study.arms import ARMS
from study.tables import TASKS, task_of
from study.tasks import Question


@dataclass(frozen=True)
class Budget:
    """What every cell may spend. Counts of questions are per benchmark, or per level of training and validation."""

    steps: int
    questions: int  # per step
    group_size: int
    training_each: int  # FULL: 480 questions, so that each comes once in 20 steps
    validation_each: int
    benchmark_each: int
    samples: int  # completions of each benchmark question: the k of avg@k
    eval_every: int  # steps between evaluations on the validation set
    learning_rates: tuple[float, ...]
    grid_seeds: tuple[int, ...]  # others than those of `run`, so that no cell was chosen for its own luck
    settings_seeds: tuple[int, ...]  # the same holds for them
    seeds: tuple[int, ...]
    further_seeds: tuple[int, ...]  # a second set for REPEATED: does what the first one showed hold?


# 20 steps: after 30, DaGRPO was at 98 % on the validation set (one seed, 2e-4), where no difference could show.
FULL = Budget(
    steps=20, questions=24, group_size=8, training_each=80, validation_each=40, benchmark_each=300, samples=8,
    eval_every=4, learning_rates=(1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3), grid_seeds=(100, 101),
    settings_seeds=tuple(range(102, 106)), seeds=tuple(range(8)), further_seeds=tuple(range(8, 16)),
)  # fmt: skip
QUICK = Budget(
    steps=2, questions=4, group_size=4, training_each=4, validation_each=1, benchmark_each=2, samples=2,
    eval_every=1, learning_rates=(1e-4, 2e-4), grid_seeds=(100,), settings_seeds=(102,), seeds=(0,), further_seeds=(1,),
)  # fmt: skip
# The comparison of study/fresh.py. Smaller sets in place of fewer seeds; curves are not looked at.
FRESH = replace(
    FULL, benchmark_each=75, samples=4, eval_every=20, learning_rates=(2e-4, 4e-4, 8e-4), grid_seeds=(120, 121),
    seeds=tuple(range(400, 416)), further_seeds=(),
)  # fmt: skip
QUICK_RATE = 2e-4  # where --quick has no grid
MAX_NEW_TOKENS = 160  # the longest right completion has about 120
TERSE_SHARE = {"": 0.0, "-mixed": 0.5, "-terse": 1.0}  # of the solutions, by task
TEMPERATURE = 0.6  # of validation and benchmark completions

BASE = "base"
ONE_UPDATE = {"updates": 1}  # per batch, as the other methods have it
WITH_SOLUTIONS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "group_size": 1},  # one sequence per question: its anchor
    "luffy": {"method": "luffy", **ONE_UPDATE},
    "dagrpo": {},
}
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},  # the embedded model as it is: what there was to gain
    # The baselines, as harness.config.METHODS has them.
    "sft": WITH_SOLUTIONS["sft"],
    "grpo": {"method": "grpo"},
    "dr_grpo": {"method": "dr_grpo"},
    "dapo": {"method": "dapo", **ONE_UPDATE, "overlong": 0.0},
    "luffy": WITH_SOLUTIONS["luffy"],
    "luffy-gamma-0.03": {
        "method": "luffy",
        **ONE_UPDATE,
        "gamma": 0.03,
    },  # with DaGRPO's γ, which was picked after LUFFY's
    "dagrpo": WITH_SOLUTIONS["dagrpo"],
    # As their papers have them: several updates per batch, and DAPO's penalty for long completions.
    "dapo-4-updates": {"method": "dapo"},
    "luffy-2-updates": {"method": "luffy"},
    # Without one of its two mechanisms, or both: what does each add?
    "dagrpo-no-mask": {"rectify": "none"},
    "dagrpo-no-anchors": {"anchors": None},
    "dagrpo-neither": {"rectify": "none", "anchors": None},  # GRPO with the loss norm of DaGRPO
    # The two loss norms differ by a factor per step. With every gradient scaled to one norm they are the same method.
    "grpo-equal-norms": {"method": "grpo", "max_grad_norm": 0.01},
    # Does it matter how distinctiveness is scored, and what is masked?
    "dagrpo-state": {"scorer": "state"},
    "dagrpo-token": {"scorer": "token"},
    "dagrpo-token-rectify": {"rectify": "token", "metric": "gradient"},
    **{f"dagrpo-threshold-{value}": {"threshold": value} for value in (0.2, 0.45)},
    "dagrpo-threshold-auto": {"rectify": "pair", "metric": "gradient"},
    # The other tasks. What learns from no solution is the same in all of them, and is not run again.
    **{f"{method}{task}": flags for task in TASKS if task for method, flags in WITH_SOLUTIONS.items()},
}
WITH_OWN_RATE = ("dapo-4-updates", "luffy-2-updates")  # searched anew: several updates are several steps
# Only in the comparison with fresh seeds: fine-tuning first, on questions that the rest does not get then, and GRPO
# without the completions that are worse than their group.
SFT_THEN_GRPO = {f"sft-grpo-{n}-{20 - n}{task}": n / 20 for task in TASKS for n in (10, 5)}  # share of the steps
SFT_THEN_DAGRPO = {"sft-dagrpo-5-15": 5 / 20}
SFT_SHARE = SFT_THEN_GRPO | SFT_THEN_DAGRPO
POSITIVES = "positives"
HALF_NEGATIVES = "dagrpo-half-negatives"  # completions that are worse than their group have half the weight
FRESH_FLAGS: dict[str, dict[str, Any]] = {
    POSITIVES: {"method": "grpo", "loss_norm": "constant", **ARMS[POSITIVES].flags},
    **{variant: {"method": "grpo"} for variant in SFT_THEN_GRPO},
    **{variant: {} for variant in SFT_THEN_DAGRPO},
    HALF_NEGATIVES: {"negative_weight": 0.5},
}
REPEATED = ("sft", "grpo", "dagrpo-neither", "dagrpo")  # with further seeds

# The search for DaGRPO's defaults, on the validation set: from START, one setting changed at a time, then together what
# was better alone.
START_NAME = "start"
START: dict[str, Any] = {"scorer": "gradient", "gamma": 0.1, "loss_norm": "token"}
CHANGES: dict[str, dict[str, Any]] = {
    START_NAME: {},
    **{f"threshold {value}": {"threshold": value} for value in (0.2, 0.3, 0.45)},
    "threshold auto": {"rectify": "pair", "metric": "gradient"},
    **{f"scorer {name}": {"scorer": name} for name in ("state", "token")},
    "scorer none": {"rectify": "none"},
    "scorer state 0.3": {"scorer": "state", "threshold": 0.3},
    "rectify token": {"rectify": "token", "metric": "gradient"},
    **{f"hard-below {value}": {"hard_below": value} for value in (0.125, 0.25)},
    **{f"gamma {value}": {"gamma": value} for value in (0.01, 0.03, 0.3, 1.0)},
    "anchor-objective sft": {"anchor_objective": "sft"},
    "scale none": {"scale": "none"},
    "loss-norm constant": {"loss_norm": "constant"},
    **{
        f"constant gamma 0.03 scorer {name}": {"loss_norm": "constant", "gamma": 0.03, "scorer": name}
        for name in ("gradient", "state")
    },
    "constant gamma 0.03 scorer none": {"loss_norm": "constant", "gamma": 0.03, "rectify": "none"},
    "constant gamma 0.03 scorer state scale none": {
        "loss_norm": "constant", "gamma": 0.03, "scorer": "state", "scale": "none",
    },
    "constant gamma 0.01 scorer state": {"loss_norm": "constant", "gamma": 0.01, "scorer": "state"},
    **{
        f"constant gamma 0.03 negative-weight {value}": {
            "loss_norm": "constant", "gamma": 0.03, "negative_weight": value,
        }
        for value in (0.0, 0.25, 0.5)
    },
    **{
        f"constant gamma 0.03 hard-below {value}": {"loss_norm": "constant", "gamma": 0.03, "hard_below": value}
        for value in (0.25, 0.5)
    },
}  # fmt: skip
SETTINGS = {name: {**START, **changes} for name, changes in CHANGES.items()}
FLAGS = {**VARIANTS, **FRESH_FLAGS, **SETTINGS}


@dataclass(frozen=True)
class Request:
    """A cell that is wanted. Kind `run` is measured on the benchmarks too, any other on the validation set alone, so
    that what is chosen by them is not chosen on the benchmarks."""

    kind: str
    variant: str
    seed: int
    rate: float
    budget: Budget

    @property
    def benchmarks(self) -> bool:
        return self.kind == "run"

    @property
    def name(self) -> str:
        """For messages: what tells the cell from others of its kind."""
        rate = f"-{self.rate:g}" if self.kind == "grid" else ""
        return f"{self.variant.replace(' ', '-')}{rate}-seed{self.seed}"


def method_of(variant: str) -> str:
    """The value of --method."""
    return FLAGS[variant].get("method", "dagrpo")


def grid_of(variant: str) -> str:
    """The variant whose learning rate is searched for it: its method with its solutions."""
    if variant in WITH_OWN_RATE or (variant in FRESH_FLAGS and variant != HALF_NEGATIVES):
        return variant
    return START_NAME if variant in SETTINGS else method_of(variant) + task_of(variant)


def sft_steps(request: Request) -> int:
    """How many of the steps are fine-tuning, before the others."""
    share = SFT_SHARE.get(request.variant, 0.0)
    return max(1, round(share * request.budget.steps)) if share else 0


def configuration(request: Request, folder: Path) -> Config:
    """The run of a cell, on the questions in `folder`. On a CPU everywhere, so that cells of one study compare.

    Where some steps are fine-tuning, this is the run of the others, but for model, questions and number of steps.
    """
    budget = request.budget
    return configure(
        **{
            "model": str(EXAMPLE), "data": [str(folder / "training.jsonl")],
            "eval_data": [str(folder / "validation.jsonl")],
            "out": str(folder / "run"), "device": "cpu", "seed": request.seed, "learning_rate": request.rate,
            "steps": budget.steps, "questions": budget.questions, "group_size": budget.group_size,
            "max_new_tokens": MAX_NEW_TOKENS, "eval_every": budget.eval_every, "eval_samples": 4,
            "eval_temperature": TEMPERATURE, **FLAGS[request.variant],
        }
    )  # fmt: skip


def made_from(request: Request) -> dict[str, Any]:
    """What a cell depends on: its configuration without paths, how it is measured, and a hash of model and data."""
    configured = configuration(request, Path())
    config = asdict(configured)
    config["threshold"] = configured.resolved_threshold if configured.rectify == "threshold" else None
    for path in ("model", "data", "eval_data", "out"):
        del config[path]
    if request.variant == BASE:  # nothing is trained
        config = {"seed": request.seed, "max_new_tokens": MAX_NEW_TOKENS, "eval_samples": config["eval_samples"]}
    if request.variant in SFT_SHARE:
        config["sft_steps"] = sft_steps(request)
    if request.variant == POSITIVES:
        config["arm"] = POSITIVES
    config |= {"samples": request.budget.samples if request.benchmarks else 0, "sample_temperature": TEMPERATURE}
    return {"configuration": config, "data": data_hash(request.budget, task_of(request.variant))}


@functools.cache
def question_sets(budget: Budget, task: str) -> dict[str, list[Question]]:
    """Questions by name of the set, those of the training set with the solutions of the task."""
    sets = tasks.draw_sets(budget.benchmark_each, budget.training_each, budget.validation_each)
    sets["training"] = tasks.with_terse_solutions(sets["training"], TERSE_SHARE[task])
    return sets


@functools.cache
def data_hash(budget: Budget, task: str) -> str:
    """Of the embedded model, its tokenizer, and every question."""
    digest = hashlib.sha256(json.dumps(question_sets(budget, task), sort_keys=True).encode())
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((EXAMPLE / name).read_bytes())
    return digest.hexdigest()[:16]
