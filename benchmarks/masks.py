"""Which masked pairs help, and which cost? GRPO with DaGRPO's loss norm and parts of its mask, without anchors.

    python benchmarks/masks.py             8 seeds of each part: about half an hour of one core
    python benchmarks/masks.py --quick     a tiny version

Each part of the mask is trained with on the questions of benchmarks/study.py, as its variant dagrpo-no-anchors is, and
compared on the validation set with no mask at all:

    all        every pair that the scorer finds too alike, as --scorer gradient does
    at once    of these, the pairs of two answers that write no step, such as `I get \\boxed{30}`
    worked     of these, the pairs of two answers that write steps
    chance     as many right/wrong pairs of the group as `all` would mask, but drawn by chance

A run is kept as one line of --json FILE, benchmarks/masks.jsonl without it, and is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import study
import study_tasks
import torch
from study_report import mean, number, paired_differences, table, with_interval
from tqdm import tqdm

import dagrpo
import scoring
from rollout import Rollouts

VARIANT = "dagrpo-no-anchors"
PARTS = ("none", "all", "at once", "worked", "chance")
KINDS = ("at once", "worked", "one of each")
FILE = study.ROOT / "benchmarks" / "masks.jsonl"
QUICK_FILE = study.ROOT / "runs" / "masks-quick.jsonl"

Counts = dict[str, list[int]]  # by kind of pair: the right/wrong pairs of each step


def kinds_of_pairs(texts: list[str], group_size: int) -> dict[str, torch.Tensor]:
    """Which pairs of a group are of a kind. N texts -> (P, G, G) bool each"""
    worked = torch.tensor([" = " in text for text in texts]).view(-1, group_size)  # (N,) -> (P, G)
    left, right = worked[:, :, None], worked[:, None, :]
    return {"at once": ~left & ~right, "worked": left & right, "one of each": left ^ right}


def by_chance(masked: torch.Tensor, differ: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many pairs of each group as are masked, drawn from those whose rewards differ. (P, G, G) bool each"""
    drawn = torch.zeros_like(masked)
    for p in range(len(masked)):
        pairs = differ[p].triu().nonzero()
        count = int(masked[p].triu().sum())
        i, j = pairs[torch.randperm(len(pairs), generator=generator)[:count]].T
        drawn[p, i, j] = drawn[p, j, i] = True
    return drawn


def rectify_in_part(part: str, seed: int, pairs: Counts, masked_pairs: Counts) -> Callable[..., Any]:
    """`dagrpo.rectify` with a part of its mask; counts the pairs, and those that the whole mask leaves out, by kind."""
    whole = dagrpo.rectify
    generator = torch.Generator().manual_seed(seed)

    def rectify(
        model: Any, rollouts: Rollouts, rewards: torch.Tensor, config: dagrpo.Config
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mask, d, _ = whole(model, rollouts, rewards, config)
        differ = rewards[:, :, None] != rewards[:, None, :]
        masked = ~mask & differ
        kinds = kinds_of_pairs(rollouts.texts, rollouts.group_size)
        for kind, members in kinds.items():
            pairs[kind].append(int((differ & members).sum()) // 2)
            masked_pairs[kind].append(int((masked & members).sum()) // 2)
        if part == "none":
            masked = torch.zeros_like(masked)
        elif part == "chance":
            masked = by_chance(masked, differ, generator)
        elif part != "all":
            masked &= kinds[part]
        return ~masked, d, scoring.rectified_advantages(rewards, ~masked, scale=config.scale)

    return rectify


def measure(part: str, seed: int, rate: float, budget: study.Budget) -> dict[str, Any]:
    """One run: accuracy on the validation set by evaluation, and the pairs of each step by kind."""
    pairs: Counts = {kind: [] for kind in KINDS}
    masked_pairs: Counts = {kind: [] for kind in KINDS}
    printed = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        folder = Path(name)
        study_tasks.write_sets(folder, study.questions(budget, ""))
        config = study.configuration(VARIANT, seed, rate, budget, folder)
        with mock.patch.object(dagrpo, "rectify", rectify_in_part(part, seed, pairs, masked_pairs)):
            dagrpo.train(config)
        evaluations = study.read_lines(Path(config.out) / "evaluations.jsonl")
    return {
        "part": part,
        "seed": seed,
        "learning_rate": rate,
        "commit": study.commit(),
        "accuracy": [round(evaluation["accuracy"], 5) for evaluation in evaluations],
        "pairs": pairs,
        "masked_pairs": masked_pairs,
    }


def accuracy_table(runs: list[dict[str, Any]]) -> str:
    """By part: validation accuracy at the end and as the mean of the curve, and differences to no mask."""
    measures = {
        "at the end": lambda run: run["accuracy"][-1],
        "mean of the curve": lambda run: mean(run["accuracy"][1:]),
    }
    rows = []
    for part in PARTS:
        own = [run for run in runs if run["part"] == part]
        row = [part, str(len(own))]
        for measured in measures.values():
            values, others = (
                {run["seed"]: measured(run) for run in runs if run["part"] == name} for name in (part, "none")
            )
            row += [number(100 * mean(list(values.values()))), with_interval(paired_differences(values, others))]
        rows.append(row)
    head = ["mask", "seeds"] + [column for name in measures for column in (name, "minus none (95 %)")]
    return table(head, rows)


def kind_table(runs: list[dict[str, Any]]) -> str:
    """What the whole mask leaves out in the runs with it: by kind of pair, in both halves of the training."""
    own = [run for run in runs if run["part"] == "all"]
    rows = []
    for kind in KINDS:
        pairs, masked = (np.array([run[name][kind] for run in own]) for name in ("pairs", "masked_pairs"))  # (runs, S)
        row = [kind]
        for half in (slice(None, pairs.shape[1] // 2), slice(pairs.shape[1] // 2, None)):
            there, left_out = pairs[:, half].sum(), masked[:, half].sum()
            row += [f"{there / len(own):.0f}", number(100 * left_out / there if there else np.nan)]
        rows.append(row)
    return table(
        [
            "two answers",
            *(f"{half} half: {what}" for half in ("first", "second") for what in ("pairs a run", "masked %")),
        ],
        rows,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, help="those of the study without this flag")
    parser.add_argument("--json", type=Path, help="where runs are kept")
    parser.add_argument("--quick", action="store_true", help="a tiny version")
    options = parser.parse_args(arguments)
    budget = study.QUICK if options.quick else study.FULL
    file = options.json or (QUICK_FILE if options.quick else FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    rate = study.QUICK_RATE if options.quick else study.learning_rates(budget, study.FOLDER, ["dagrpo"])["dagrpo"]
    runs = study.read_lines(file) if file.exists() else []
    kept = {(run["part"], run["seed"]) for run in runs}
    missing = [(part, seed) for seed in options.seeds or budget.seeds for part in PARTS if (part, seed) not in kept]
    for part, seed in tqdm(missing, desc="runs", unit="run", file=sys.stderr):
        runs.append(measure(part, seed, rate, budget))
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(runs[-1]) + "\n")
    print(accuracy_table(runs), kind_table(runs), sep="\n\n")


if __name__ == "__main__":
    main()
