"""Which masked pairs help, and which cost? GRPO with DaGRPO's loss norm and parts of its mask, without anchors.

    python -m study.masks             8 seeds of each part: about half an hour
    python -m study.masks --quick     a tiny version

Each part of the mask is trained with for 20 steps, as the variant dagrpo-no-anchors of study/run.py is, and
compared on the study's validation set with no mask at all:

    all        every right/wrong pair that --scorer gradient finds too alike
    at once    of these, the pairs of two completions that write no step, such as `I get \\boxed{30}`
    worked     of these, the pairs of two completions that write steps
    chance     as many right/wrong pairs of the group as `all`, of each kind as many, but drawn by chance

A pair of one completion of either kind is hardly ever masked; the second table says how often. The seeds are others
than those of the study, which had shown that the mask costs accuracy here.

A run is kept as one line of --json FILE, study/masks.jsonl without it, and is run again only where its
configuration or the questions have changed. Each takes one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import dagrpo
import scoring
from rollout import Rollouts
from scoring import Rectification, Rectified
from study import tasks
from study.arms import by_chance
from study.cells import FILE as CELLS
from study.cells import append_kept, commit, is_made_from, learning_rates, read_kept, silenced
from study.tables import last_validation, mean, mean_validation, number, paired_differences, table, with_interval
from study.tasks import ROOT, read_lines
from study.variants import FULL, QUICK, QUICK_RATE, Budget, Request, configuration, made_from, question_sets

VARIANT = "dagrpo-no-anchors"
SEEDS = tuple(range(200, 208))
PARTS = ("none", "all", "at once", "worked", "chance")
KINDS = ("at once", "worked", "one of each")
FILE = ROOT / "study" / "masks.jsonl"
QUICK_FILE = ROOT / "runs" / "masks-quick.jsonl"

Counts = dict[str, list[int]]  # by kind of pair: the right/wrong pairs of each step


def kinds_of_pairs(texts: list[str], group_size: int) -> dict[str, torch.Tensor]:
    """Which pairs of a group are of a kind. N texts -> (P, G, G) bool each"""
    worked = torch.tensor([" = " in text for text in texts]).view(-1, group_size)  # (N,) -> (P, G)
    left, right = worked[:, :, None], worked[:, None, :]
    return {"at once": ~left & ~right, "worked": left & right, "one of each": left ^ right}


def rectify_in_part(part: str, seed: int, pairs: Counts, masked_pairs: Counts) -> Callable[..., Any]:
    """`scoring.rectify` with a part of its mask; counts the pairs, and those that the whole mask drops, by kind."""
    whole = scoring.rectify
    generator = torch.Generator().manual_seed(seed)

    def rectify(model: Any, rollouts: Rollouts, rewards: torch.Tensor, how: Rectification, *rest: Any) -> Rectified:
        rectified = whole(model, rollouts, rewards, how, *rest)
        differ = rewards[:, :, None] != rewards[:, None, :]
        masked = ~rectified.pair_mask & differ
        kinds = kinds_of_pairs(rollouts.texts, rollouts.group_size)
        for kind, members in kinds.items():
            pairs[kind].append(int((differ & members).sum()) // 2)
            masked_pairs[kind].append(int((masked & members).sum()) // 2)
        if part == "none":
            masked = torch.zeros_like(masked)
        elif part == "chance":
            drawn = [by_chance(masked & members, differ & members, generator) for members in kinds.values()]
            masked = torch.stack(drawn).any(0)
        elif part != "all":
            masked &= kinds[part]
        advantages = scoring.rectified_advantages(rewards, ~masked, scale=how.scale)
        return replace(rectified, pair_mask=~masked, advantages=advantages)

    return rectify


def request_of(seed: int, rate: float, budget: Budget) -> Request:
    """What every part of the mask is trained with."""
    return Request("masks", VARIANT, seed, rate, budget)


def measure(part: str, seed: int, rate: float, budget: Budget) -> dict[str, Any]:
    """One run: accuracy on the validation set by evaluation, and the pairs of each step by kind."""
    pairs: Counts = {kind: [] for kind in KINDS}
    masked_pairs: Counts = {kind: [] for kind in KINDS}
    request = request_of(seed, rate, budget)
    with tempfile.TemporaryDirectory() as name, silenced():
        folder = Path(name)
        tasks.write_sets(folder, question_sets(budget, ""))
        config = configuration(request, folder)
        with mock.patch.object(scoring, "rectify", rectify_in_part(part, seed, pairs, masked_pairs)):
            dagrpo.train(config)
        evaluations = read_lines(Path(config.out) / "evaluations.jsonl")
    return {
        "part": part,
        "seed": seed,
        "commit": commit(),
        "validation": {"accuracy": [round(evaluation["accuracy"], 5) for evaluation in evaluations]},
        "pairs": pairs,
        "masked_pairs": masked_pairs,
        **made_from(request),
    }


def accuracy_table(runs: list[dict[str, Any]]) -> str:
    """By part: validation accuracy in percent, at the end and as the mean of the curve; differences to no mask and to
    chance in points, paired by seed."""
    by_part = {part: {run["seed"]: run for run in runs if run["part"] == part} for part in PARTS}
    measures = {"at the end": last_validation, "mean of the curve": mean_validation}
    rows = []
    for part, by_seed in by_part.items():
        row = [part, str(len(by_seed))]
        for measured in measures.values():
            values = measured(by_seed)
            row.append(number(100 * mean(list(values.values()))))
            for other in ("none", "chance"):
                differences = paired_differences(values, measured(by_part[other]))
                row.append("–" if part == other else with_interval(differences))
        rows.append(row)
    head = ["mask", "seeds"]
    for name in measures:
        head += [name, "minus none (95 %)", "minus chance (95 %)"]
    return table(head, rows)


def kind_table(runs: list[dict[str, Any]]) -> str:
    """What the whole mask leaves out in the runs with it: by kind of pair, in both halves of the training."""
    with_all = [run for run in runs if run["part"] == "all"]
    rows = []
    for kind in KINDS:
        pairs, masked = (  # (runs, S) each
            np.array([run[name][kind] for run in with_all]) for name in ("pairs", "masked_pairs")
        )
        row = [kind]
        for half in (slice(None, pairs.shape[1] // 2), slice(pairs.shape[1] // 2, None)):
            there, left_out = pairs[:, half].sum(), masked[:, half].sum()
            row += [f"{there / len(with_all):.0f}", number(100 * left_out / there if there else np.nan)]
        rows.append(row)
    return table(
        [
            "two answers",
            *(f"{half} half: {what}" for half in ("first", "second") for what in ("pairs a run", "masked %")),
        ],
        rows,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, help=f"{SEEDS[0]} to {SEEDS[-1]} without this flag")
    parser.add_argument("--json", type=Path, help="where runs are kept")
    parser.add_argument("--quick", action="store_true", help="a tiny version")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    commit()  # kept from now on: the code that was loaded, whatever is committed while it runs
    budget = QUICK if options.quick else FULL
    file = options.json or (QUICK_FILE if options.quick else FILE)
    rate = QUICK_RATE if options.quick else learning_rates(budget, CELLS, ["dagrpo"])["dagrpo"]
    seeds = options.seeds or (SEEDS[:1] if options.quick else SEEDS)
    runs = {}
    for run in read_kept(file):
        if is_made_from(run, made_from(request_of(run["seed"], rate, budget))):
            runs[run["part"], run["seed"]] = run
    missing = [(part, seed) for seed in seeds for part in PARTS if (part, seed) not in runs]
    for part, seed in tqdm(missing, desc="runs", unit="run", file=sys.stderr):
        runs[part, seed] = measure(part, seed, rate, budget)
        append_kept(file, runs[part, seed])
    asked = [run for run in runs.values() if run["seed"] in seeds]
    print("Validation accuracy in percent, differences in points\n", accuracy_table(asked), sep="\n")
    print("\nRight/wrong pairs in the runs with the whole mask\n", kind_table(asked), sep="\n")


if __name__ == "__main__":
    main()
