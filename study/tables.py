"""What the cells of the study say: statistics paired by seed, and tables as Markdown.

A cell is the dict that study/cells.py keeps for one (variant, seed). All figures of accuracy are shares in 0..1 here
and percent or percentage points in tables. A figure that is not known is NaN, and a table shows it as –.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import mpmath
import numpy as np

from study.tasks import BENCHMARKS, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION

Cell = dict[str, Any]
Cells = dict[str, dict[int, Cell]]  # by variant and seed
REFERENCE = "grpo"
METHODS = ("sft", "grpo", "dr_grpo", "dapo", "luffy", "dagrpo")
BASELINES = METHODS[:-1]
ORIGINALS = {"dapo": "dapo-4-updates", "luffy": "luffy-2-updates"}  # as their papers have them
WITHOUT_SOLUTIONS = (
    "base", "grpo", "grpo-equal-norms", "dr_grpo", "dapo", "dapo-4-updates", "dagrpo-no-anchors", "dagrpo-neither",
    "positives",
)  # fmt: skip
# What the solutions of a variant are, by the ending of its name.
TASKS = {"": "Worked solutions", "-mixed": "Half of the solutions terse", "-terse": "Terse solutions"}
# What is added, or what takes the place of what: a variant with it, and the one without.
PAIRS = {
    "masks": ("dagrpo", "dagrpo-no-mask"),
    "masks where there are no anchors": ("dagrpo-no-anchors", "dagrpo-neither"),
    "anchors": ("dagrpo", "dagrpo-no-anchors"),
    "anchors where there are no masks": ("dagrpo-no-mask", "dagrpo-neither"),
    "masks and anchors": ("dagrpo", "dagrpo-neither"),
    "its loss norm, in GRPO": ("dagrpo-neither", "grpo"),
    "gradients of one norm, in GRPO": ("grpo-equal-norms", "grpo"),
    "γ, in LUFFY": ("luffy-gamma-0.03", "luffy"),
    "DaGRPO rather than GRPO": ("dagrpo", "grpo"),
    "DaGRPO rather than SFT": ("dagrpo", "sft"),
    "DaGRPO rather than LUFFY": ("dagrpo", "luffy"),
    "DaGRPO rather than LUFFY with its γ": ("dagrpo", "luffy-gamma-0.03"),
    "DaGRPO rather than Dr. GRPO": ("dagrpo", "dr_grpo"),
    "DaGRPO rather than DAPO": ("dagrpo", "dapo"),
    "DaGRPO rather than DAPO with 4 updates": ("dagrpo", "dapo-4-updates"),
    "DaGRPO rather than LUFFY with 2 updates": ("dagrpo", "luffy-2-updates"),
    "the scorer gradient rather than state": ("dagrpo", "dagrpo-state"),
    "the scorer gradient rather than token": ("dagrpo", "dagrpo-token"),
    "masking pairs rather than tokens": ("dagrpo", "dagrpo-token-rectify"),
    "the threshold 0.35 rather than 0.2": ("dagrpo", "dagrpo-threshold-0.2"),
    "the threshold 0.35 rather than 0.45": ("dagrpo", "dagrpo-threshold-0.45"),
    "the threshold 0.35 rather than auto": ("dagrpo", "dagrpo-threshold-auto"),
}
ENOUGH_SEEDS = 8
MEANS = {"mean of six": IN_DISTRIBUTION, "mean of three": OUT_OF_DISTRIBUTION, "mean of nine": BENCHMARKS}

# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def spikes(norms: list[float], factor: float = 10.0, at_least: int = 5) -> int:
    """How many gradient norms exceed `factor` times the median of all before them, after the first `at_least`."""
    return sum(norms[n] > factor * float(np.median(norms[:n])) for n in range(at_least, len(norms)))


def norm_summary(norms: list[float]) -> dict[str, float]:
    """p50, p99, largest and spikes of a run's gradient norms. A step on nothing has norm 0 and is left out.

    So is one that is not finite, but it counts as a spike.
    """
    broken = sum(not math.isfinite(norm) for norm in norms)
    norms = [norm for norm in norms if norm > 0 and math.isfinite(norm)]
    if not norms:
        return {"p50": math.nan, "p99": math.nan, "max": math.nan, "spikes": broken}
    p50, p99 = np.quantile(norms, [0.5, 0.99]).tolist()
    return {"p50": p50, "p99": p99, "max": max(norms), "spikes": broken + spikes(norms)}


def norm_growth(norms: list[float], count: int = 5) -> float:
    """Mean gradient norm of the last `count` steps over that of the first; steps of norm 0 are left out."""
    norms = [norm for norm in norms if norm > 0]
    return mean(norms[-count:]) / mean(norms[:count]) if norms else math.nan


def paired_differences(ours: dict[int, float], others: dict[int, float]) -> np.ndarray:
    """ours − others for every seed in both, in order of the seeds; where either is NaN the seed is left out."""
    differences = np.array([ours[seed] - others[seed] for seed in sorted(ours.keys() & others.keys())])
    return differences[~np.isnan(differences)]


@functools.cache
def student_t(freedom: int) -> float:
    """What Student's t with so many degrees of freedom exceeds, in size, with a chance of 5 %."""

    def excess(t: float) -> Any:
        return mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) - 0.05

    return float(mpmath.findroot(excess, (1.9, 13.0), solver="anderson"))


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds, by Student's t; one value has no interval, and no value no mean: NaN.

    A bootstrap of so few values is too narrow: tests/study/test_tables.py has how often it misses.
    """
    middle = float(values.mean()) if len(values) else math.nan
    if len(values) < 2:
        return middle, math.nan, math.nan
    half = student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def of_unequal_seeds(by_name: dict[str, dict[int, Any]]) -> str:
    """What a reader of means and differences has to know where not all have the same seeds; else nothing."""
    if len({frozenset(by_seed) for by_seed in by_name.values()}) < 2:
        return ""
    return "Not all have the same seeds: a mean is over the seeds of its line, a difference over those that both have."


def mean(values: list[float]) -> float:
    """The mean of the values that are not NaN; NaN if all are."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def task_of(variant: str) -> str:
    """The ending of the variant's name, as TASKS has it."""
    return next((ending for ending in TASKS if ending and variant.endswith(ending)), "")


def cells_of_task(cells: Cells, ending: str) -> Cells:
    """The variants of one of TASKS, without its ending; those that learn from no solution are in every task.

    Of these, only the seeds that the variants with the ending have, so that their means compare. Empty where only these
    are there.
    """
    of_ending = {name: by_seed for name, by_seed in cells.items() if task_of(name) == ending}
    if not ending or not of_ending:
        return of_ending
    seeds = {seed for by_seed in of_ending.values() for seed in by_seed}
    shared = {
        name: {seed: cell for seed, cell in cells[name].items() if seed in seeds}
        for name in WITHOUT_SOLUTIONS
        if name in cells
    }
    return {**shared, **{name.removesuffix(ending): by_seed for name, by_seed in of_ending.items()}}


def accuracies(cells: dict[int, Cell], name: str, kind: str) -> dict[int, float]:
    """Accuracy by seed on a benchmark, or the mean over those of MEANS. `kind`: sampled or greedy."""
    names = MEANS.get(name, [name])
    return {
        seed: float(np.mean([cell["benchmarks"][benchmark][kind] for benchmark in names]))
        for seed, cell in cells.items()
    }


def last_validation(cells: dict[int, Cell]) -> dict[int, float]:
    return {seed: cell["validation"]["accuracy"][-1] for seed, cell in cells.items()}


def mean_validation(cells: dict[int, Cell]) -> dict[int, float]:
    """Mean accuracy of the evaluations on the validation set, without the one before training."""
    return {seed: mean(cell["validation"]["accuracy"][1:]) for seed, cell in cells.items()}


def best_baseline(cells: Cells, others: tuple[str, ...] = ()) -> str:
    """The baseline with the highest validation accuracy after training; the benchmarks have no say in it."""
    there = [name for name in (*BASELINES, *ORIGINALS.values(), *others) if cells.get(name)]
    return max(there, key=lambda name: mean(list(last_validation(cells[name]).values())), default=REFERENCE)


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, form: str = ".1f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def with_interval(values: np.ndarray, scale: float = 100.0, form: str = "+.1f") -> str:
    """Mean (low to high) in percentage points."""
    middle, low, high = (scale * value for value in mean_and_interval(values))
    return number(middle, form) + ("" if math.isnan(low) else f" ({number(low, form)} to {number(high, form)})")


def shown_rates(cells: dict[int, Cell]) -> str:
    rates = sorted({cell["learning_rate"] for cell in cells.values()})
    return ", ".join(f"{rate:g}" for rate in rates if rate) or "–"


def accuracy_table(cells: Cells) -> str:
    """Every variant on every benchmark: sampled accuracy in percent, mean over seeds."""
    rows = []
    for variant, by_seed in cells.items():
        means = [mean(list(accuracies(by_seed, name, "sampled").values())) for name in [*BENCHMARKS, *MEANS]]
        rows.append(
            [
                variant,
                str(len(by_seed)),
                shown_rates(by_seed),
                number(100 * mean(list(last_validation(by_seed).values()))),
                *(number(100 * value) for value in means),
            ]
        )
    return table(["variant", "seeds", "learning rate", "validation", *BENCHMARKS, *MEANS], rows)


def difference_table(cells: Cells, name: str, samples: int) -> str:
    """Every variant on one benchmark or mean: accuracies in percent, paired differences in points with intervals."""
    best = best_baseline(cells)
    columns = list(dict.fromkeys([REFERENCE, best]))
    rows = []
    for variant, by_seed in cells.items():
        row = [variant, str(len(by_seed))]
        for kind in ("sampled", "greedy"):
            ours = accuracies(by_seed, name, kind)
            row.append(number(100 * mean(list(ours.values()))))
            for other in columns:
                differences = paired_differences(ours, accuracies(cells.get(other, {}), name, kind))
                row.append("–" if variant == other else with_interval(differences))
        rows.append(row)
    head = ["variant", "seeds"]
    for kind in (f"avg@{samples}", "greedy"):
        head += [kind, *(f"{kind} − {other} (95 %)" for other in columns)]
    return table(head, rows)


def pair_table(cells: Cells, samples: int) -> str:
    """What each of PAIRS adds to the mean of nine, in points, paired by seed."""
    rows = []
    for name, (with_it, without_it) in PAIRS.items():
        seeds = cells.get(with_it, {}).keys() & cells.get(without_it, {}).keys()
        if seeds:
            rates = [shown_rates(cells[variant]) for variant in (with_it, without_it)]
            row = [name, f"{with_it} − {without_it}", str(len(seeds)), ", ".join(dict.fromkeys(rates))]
            for kind in ("sampled", "greedy"):
                ours, others = (accuracies(cells[one], "mean of nine", kind) for one in (with_it, without_it))
                row.append(with_interval(paired_differences(ours, others)))
            rows.append(row)
    return table(["what adds", "variants", "seeds", "learning rate", f"avg@{samples} (95 %)", "greedy (95 %)"], rows)


def stability_table(cells: Cells) -> str:
    """Gradient norms, signal, entropy, masking, lengths and cost of the training, means over seeds."""
    rows = []
    for variant, by_seed in cells.items():
        trained = [cell for cell in by_seed.values() if cell["curves"]]
        if not trained:
            continue
        norms = [cell["gradient_norm"] for cell in trained]
        ratios = np.array([norm["p99"] / norm["p50"] for norm in norms])
        curves = [cell["curves"] for cell in trained]
        right = [cell["validation"]["right_length"] for cell in trained]
        seconds = mean([sum(cell["curves"]["seconds"]) for cell in trained])
        row = [variant, str(len(trained))]
        row += [number(mean([norm[name] for norm in norms]), ".3f") for name in ("p50", "p99", "max")]
        row.append(with_interval(ratios[~np.isnan(ratios)], scale=1.0, form=".2f"))
        row.append(number(mean([float(norm["spikes"]) for norm in norms]), ".2f"))
        row.append(number(mean([norm_growth(curve["grad_norm"]) for curve in curves]), ".2f"))
        for name in ("no_signal", "masked_pairs", "skipped"):
            row.append(number(100 * mean([mean(curve[name]) for curve in curves])))
        row += [number(mean([curve["entropy"][n] for curve in curves]), ".2f") for n in (0, -1)]
        row += [number(mean([lengths[n] for lengths in right])) for n in (0, -1)]
        row += [number(mean([float(cell["sampled_tokens"]) for cell in trained]), ",.0f"), number(seconds, ".0f")]
        rows.append(row)
    head = ["variant", "seeds", "grad p50", "p99", "max", "p99/p50 (95 %)", "spikes a run"]
    head += [
        "last five/first five",
        "no signal %",
        "masked %",
        "skipped %",
        "entropy first",
        "last",
        "right length first",
        "last",
        "sampled tokens",
        "seconds",
    ]
    return table(head, rows)


def settings_table(cells: Cells) -> str:
    """The search for DaGRPO's defaults: validation accuracy in percent, at the end and as the mean of the curve, which
    is higher for what learns sooner. Differences to `start` in points, paired by seed."""
    rows = []
    for setting, by_seed in cells.items():
        curves = [cell["curves"] for cell in by_seed.values()]
        row = [setting, str(len(by_seed))]
        for measure in (last_validation, mean_validation):
            ours = measure(by_seed)
            row.append(number(100 * mean(list(ours.values()))))
            differences = paired_differences(ours, measure(cells.get("start", {})))
            row.append("–" if setting == "start" else with_interval(differences))
        row += [number(100 * mean([mean(curve[name]) for curve in curves])) for name in ("masked_pairs", "skipped")]
        rows.append([*row, number(mean([sum(curve["seconds"]) for curve in curves]), ".0f")])
    head = ["setting", "seeds", "at the end", "end − start (95 %)", "mean of the curve", "curve − start (95 %)"]
    return table([*head, "masked %", "skipped %", "seconds"], rows)


def markdown(cells: Cells) -> str:
    """The whole report."""
    all_cells = [cell for by_seed in cells.values() for cell in by_seed.values()]
    samples = {cell["configuration"]["samples"] for cell in all_cells}
    k, temperature = max(samples), all_cells[0]["configuration"]["sample_temperature"]
    fewest = min(len(by_seed) for by_seed in cells.values())
    commits = sorted({cell["commit"] for cell in all_cells})
    parts = [
        "# Study",
        f"{len(all_cells)} cells, {fewest} or more seeds a variant; made at {', '.join(commits)}. Accuracies in "
        f"percent: mean of {k} answers a question at temperature {temperature:g} (avg@{k}), and the greedy answer. "
        "Differences are in points, paired by seed, with 95 % intervals over seeds, by Student's t: they say how far "
        "another set of seeds could move them, not another set of questions. The variants are many: some of their "
        "intervals leave out zero by chance.",
    ]
    if fewest < ENOUGH_SEEDS:
        few = [f"{variant} ({len(by_seed)})" for variant, by_seed in cells.items() if len(by_seed) < ENOUGH_SEEDS]
        parts.append(f"**Fewer than {ENOUGH_SEEDS} seeds: {', '.join(few)}. Read their intervals with care.**")
    for ending, title in TASKS.items():
        of_task = cells_of_task(cells, ending)
        if of_task:
            parts += [f"## {title}", *task_parts(of_task, k)]
    return "\n\n".join(parts) + "\n"


def task_parts(cells: Cells, k: int) -> list[str]:
    """The tables of one task."""
    parts = [
        f"Best baseline, by its accuracy on the validation set: {best_baseline(cells)}. Learning rates were picked on "
        "the validation set too; a variant of a method takes the rate that was picked for the method.",
        f"### Accuracy, avg@{k}",
        accuracy_table(cells),
    ]
    for name in [*reversed(MEANS), *BENCHMARKS]:
        parts += [f"### {name[0].upper()}{name[1:]}", difference_table(cells, name, k)]
    if any(set(variants) <= cells.keys() for variants in PAIRS.values()):
        parts += ["### What adds how much to the mean of nine", pair_table(cells, k)]
    return [
        *parts,
        "### Stability and cost",
        "Means over steps and seeds. A spike is a gradient norm over 10 times the median of the steps before it. The "
        "p99 of a short run is close to its maximum. Last five/first five: gradient norms of these steps. Right "
        "length: tokens of right answers to the validation "
        "questions, before and after training. Sampled tokens leave out anchors.",
        stability_table(cells),
    ]


def replication(further: Cells, all_cells: Cells) -> str:
    """The pairs that were run again with further seeds: on these alone, and on all seeds."""
    samples = max(cell["configuration"]["samples"] for by_seed in further.values() for cell in by_seed.values())
    return "\n\n".join(
        [
            "## Again, with further seeds",
            "Only these seeds, which had no part in any choice:",
            pair_table(further, samples),
            "All seeds:",
            pair_table(all_cells, samples),
        ]
    )
