"""Cells that were never run: with figures that can be computed by hand, or with what a request asks for."""

from __future__ import annotations

import math
from pathlib import Path

from study import tasks
from study.cells import append_kept
from study.variants import QUICK, Request, made_from

NAN = math.nan


def cell(variant: str, seed: int, accuracy: float, validation: float, **changes: object) -> dict:
    """A cell with the same sampled accuracy on all benchmarks; greedy is 0.1 more."""
    return {
        "kind": "run", "variant": variant, "seed": seed, "learning_rate": 1e-4, "commit": "abc", "data": "d",
        "configuration": {"samples": 8, "sample_temperature": 0.6, "steps": 30},
        "validation": {"steps": [0, 5], "accuracy": [0.1, validation], "right_length": [NAN, 30.0]},
        "gradient_norm": {"p50": 1.0, "p99": 4.0, "max": 5.0, "spikes": 1},
        "curves": {
            name: [0.5, 0.25]
            for name in ("grad_norm", "no_signal", "masked_pairs", "skipped", "entropy", "seconds")
        },
        "sampled_tokens": 1000,
        "benchmarks": {name: {"sampled": accuracy, "greedy": accuracy + 0.1} for name in tasks.BENCHMARKS},
        **changes,
    }  # fmt: skip


def by_seed(variant: str, accuracies: list[float], validation: float) -> dict[int, dict]:
    return {seed: cell(variant, seed, accuracy, validation) for seed, accuracy in enumerate(accuracies)}


def four_methods() -> dict[str, dict[int, dict]]:
    """By variant and seed. LUFFY is the best baseline on validation, DAPO on the benchmarks."""
    return {
        "grpo": by_seed("grpo", [0.4, 0.6], 0.5),
        "dapo": by_seed("dapo", [0.9, 0.9], 0.3),
        "luffy": by_seed("luffy", [0.5, 0.5], 0.8),
        "dagrpo": by_seed("dagrpo", [0.5, 0.8], 0.9),
    }


def finished(request: Request, **changes: object) -> dict:
    """What tells that the cell of the request is there."""
    found_by = {"variant": request.variant, "seed": request.seed, "learning_rate": request.rate}
    return {"kind": request.kind, **found_by, **made_from(request), **changes}


def write_grid(file: Path, variant: str, accuracies: tuple[float, float]) -> None:
    """The two cells of a tiny grid."""
    for rate, accuracy in zip(QUICK.learning_rates, accuracies, strict=True):
        request = Request("grid", variant, 100, rate, QUICK)
        append_kept(file, finished(request, validation={"accuracy": [0.9, accuracy]}))
