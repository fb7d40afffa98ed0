"""What study/conflict.py measures, summarised: statistics over dependent pairs, and the Markdown tables.

Pairs of a group share completions: their intervals resample groups. Intervals of steps and costs resample repetitions.
All are 95 % bootstrap intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from evaluate import bootstrap

Pairs = dict[str, np.ndarray]  # columns over right/wrong pairs, each (n,)
Estimate = tuple[float, float, float]  # value, and the ends of its 95 % interval; NaN where undefined
Figures = dict[str, Any]

SCORES = {
    "gradient": "output-embedding cosine (`--scorer gradient`)",
    "rule": "the same by rule (5), G_i·G_j/abs(G_i)² (`--rectify pair`)",
    "state": "cosine of gradients of a map before the head (`--scorer state`)",
    "token": "matched tokens (`--scorer token`)",
    "hidden": "cosine of mean hidden states (a foil)",
}
OPTIMIZERS = ("AdamW", "SGD")
FULL = "rule (5) by full gradients"  # too slow to train with
STEPPED = ("none", "gradient 0.35", "state 0.2", "auto", "token 0.1", FULL)  # masks with which a step is taken
MEASURED = ("right, batch", "right, held out", "wrong, held out")  # completions whose log-likelihood is measured
COLLISION = 0.3  # the cosine that the default threshold of 0.35 masks from
PERCENTILES = (5, 25, 50, 75, 95)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks. (n,) -> (n,)"""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN for fewer than two values or where one side is constant. (n,), (n,)"""
    a, b = ranks(a), ranks(b)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))


def area_under_curve(score: np.ndarray, event: np.ndarray) -> float:
    """Chance that a pair with the event scores above one without, ties counting half; NaN without both. (n,), (n,)"""
    happened = int(event.sum())
    others = len(event) - happened
    if not happened or not others:
        return math.nan
    return float((ranks(score)[event].sum() - happened * (happened + 1) / 2) / (happened * others))


def mean_or_nan(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def by_groups(
    statistic: Callable[..., float], columns: list[np.ndarray], groups: np.ndarray, draws: int = 1_000
) -> Estimate:
    """The statistic of all pairs, and its 95 % interval when whole groups are resampled. k times (n,), (n,)

    Draws in which it is undefined are left out; where they are more than one in twenty, the interval is NaN.
    """
    value = statistic(*columns)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if math.isnan(value) or len(members) < 2:
        return value, math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        places = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        drawn.append(statistic(*(column[places] for column in columns)))
    if np.isnan(drawn).mean() > 0.05:  # an event in one or two groups only
        return value, math.nan, math.nan
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def by_repetitions(values: list[float]) -> Estimate:
    """Mean and 95 % interval over repetitions; those without a value are left out."""
    there = np.array([value for value in values if not math.isnan(value)])
    return (mean_or_nan(there), *(bootstrap(there) if len(there) > 1 else (math.nan, math.nan)))


def most_likely_share(trials: int) -> float:
    """Upper end of the one-sided 95 % Clopper-Pearson interval of a share after 0 events; about 3/trials."""
    return 1 - 0.05 ** (1 / trials)


# ---------------------------------------------------------------------------------------------------------------------
# Summaries
# ---------------------------------------------------------------------------------------------------------------------


def summary_of_pairs(pairs: Pairs) -> Figures:
    """What tables 1 and 2 show. Empty where no group has a right and a wrong completion."""
    if not pairs:
        return {"groups": 0, "pairs": 0}
    cosine, displaced, groups = pairs["cosine"], pairs["displaced"], pairs["group"]
    collides = cosine > COLLISION
    return {
        "groups": len(np.unique(groups)),
        "pairs": len(cosine),
        "percentiles": np.percentile(cosine, PERCENTILES).tolist(),
        "collisions": int(collides.sum()),
        "collide": by_groups(mean_or_nan, [collides], groups),
        "displacements": int(displaced.sum()),
        "displace": by_groups(mean_or_nan, [displaced], groups),
        "norms": [float(np.median(pairs[name])) for name in ("right_norm", "wrong_norm")],
        "scores": {
            name: {
                "spearman": by_groups(spearman, [pairs[name], cosine], groups),
                "area_collide": by_groups(area_under_curve, [pairs[name], collides], groups),
                "area_displace": by_groups(area_under_curve, [pairs[name], displaced], groups),
            }
            for name in SCORES
        },
    }


def summary_of_masks(repetitions: list[dict[str, dict[str, float]]]) -> Figures:
    """Means over repetitions with intervals, and differences to no mask within each repetition."""
    summary: Figures = {}
    for name in repetitions[0]:
        masked, plain = [r[name] for r in repetitions], [r["none"] for r in repetitions]
        figures: Figures = {key: by_repetitions([values[key] for values in masked]) for key in masked[0]}
        figures["skipped"] = by_repetitions(
            [1 - a["trained"] / b["trained"] if b["trained"] else math.nan for a, b in zip(masked, plain, strict=True)]
        )
        figures["saved_seconds"] = by_repetitions(
            [b["train_seconds"] - a["train_seconds"] for a, b in zip(masked, plain, strict=True)]
        )
        for key in masked[0]:
            if key.startswith(OPTIMIZERS):
                compared = [a[key] - b[key] for a, b in zip(masked, plain, strict=True)]
                if key.endswith("length"):
                    compared = [a[key] / b[key] if b[key] else math.nan for a, b in zip(masked, plain, strict=True)]
                figures[f"{key}, against none"] = by_repetitions(compared)
        summary[name] = figures
    return summary


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def shown(estimate: Estimate, form: str) -> str:
    """`0.73 (0.70 to 0.76)`; no interval where there is none or where nothing varies, a dash for no value."""
    value, low, high = (format(number, form) for number in estimate)
    if math.isnan(estimate[0]):
        return "–"
    return value if math.isnan(estimate[1]) or estimate[1] == estimate[2] else f"{value} ({low} to {high})"


def shown_share(estimate: Estimate, events: int, groups: int) -> str:
    """A share of pairs; of no event, the bound that counts each group as one trial, since its pairs are dependent."""
    if events == 0:
        return f"0 (in at most {most_likely_share(groups):.1%} of groups)"
    return f"{shown(estimate, '.1%')}, {events} pairs"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pair_tables(checkpoints: list[Figures]) -> str:
    """Tables 1 and 2."""
    collisions, scores = [], []
    for c in checkpoints:
        head = [str(c["steps"]), f"{c['groups']} of {c['questions']}", str(c["pairs"])]
        if not c["pairs"]:
            collisions.append([*head, f"{c['accuracy']:.0%}", f"{c['length']:.0f}", "–", "–", "–", "–"])
            continue
        collisions.append([
            *head, f"{c['accuracy']:.0%}", f"{c['length']:.0f}", " / ".join(f"{v:.2f}" for v in c["percentiles"]),
            shown_share(c["collide"], c["collisions"], c["groups"]),
            shown_share(c["displace"], c["displacements"], c["groups"]),
            " / ".join(f"{norm:.3g}" for norm in c["norms"]),
        ])  # fmt: skip
        for name, label in SCORES.items():
            of_score = c["scores"][name]
            areas = [shown(of_score[key], ".2f") for key in ("spearman", "area_collide", "area_displace")]
            scores.append([*head, label, *areas])
    head = ["steps", "groups with both", "pairs"]
    cosine = f"cosine, percentiles {' / '.join(map(str, PERCENTILES))}"
    first = [*head, "right", "tokens", cosine, f"cosine > {COLLISION}", "displaced (5)", "median norm, right / wrong"]
    second = [*head, "score", "Spearman with the cosine", f"area, cosine > {COLLISION}", "area, displaced (5)"]
    return (
        f"### 1. Full-parameter gradients of right/wrong pairs\n\n{markdown_table(first, collisions)}\n\n"
        f"### 2. Cheap scores against full-parameter gradients\n\n{markdown_table(second, scores)}"
    )


def mask_tables(checkpoints: list[Figures]) -> str:
    """Tables 3 and 4."""
    changes, costs = [], []
    for c in checkpoints:
        for optimizer in OPTIMIZERS:
            for name in STEPPED:
                figures = c["masks"][name]
                line = [str(c["steps"]), optimizer, name, shown(figures[f"{optimizer} length, against none"], ".2f")]
                for what in MEASURED:
                    key = f"{optimizer} {what}" + ("" if name == "none" else ", against none")
                    line.append(shown(figures[key], "+.4f"))
                changes.append([*line, shown(figures[f"{optimizer} lowered"], ".1%")])
        for name, figures in c["masks"].items():
            costs.append([
                str(c["steps"]), name, shown(figures["masked"], ".1%"), shown(figures["skipped"], ".1%"),
                shown(figures["train_seconds"], ".3f"), shown(figures["saved_seconds"], "+.3f"),
                shown(figures["score_seconds"], ".3f"),
            ])  # fmt: skip
    repetitions = checkpoints[0]["repetitions"]
    third = [
        "steps", "optimizer", "mask", "length of the step, unmasked = 1", *(f"log π, {what}" for what in MEASURED),
        "right answers of the batch lowered",
    ]  # fmt: skip
    fourth = [
        "steps", "mask", "right/wrong pairs masked", "sequences skipped", "forward + backward, s", "saved, s",
        "scoring, s",
    ]  # fmt: skip
    return (
        f"### 3. One step: change of the mean log-likelihood of an answer, {repetitions} repetitions\n\n"
        "Without a mask the change itself; with one, the difference to no mask in the same repetition.\n\n"
        f"{markdown_table(third, changes)}\n\n### 4. Masks and their cost, {repetitions} repetitions\n\n"
        "Sequences are those that would be trained on without a mask. Seconds are CPU time, on a GPU wall time.\n\n"
        f"{markdown_table(fourth, costs)}"
    )
