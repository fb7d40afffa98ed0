"""DaGRPO beside what the field asks for: fine-tuning, then GRPO, and GRPO without worse completions. On fresh seeds.

    python -m study.fresh grid --workers 2    pick the learning rates that study.run has not picked
    python -m study.fresh run --workers 2     train and measure every variant with every seed that is not finished
    python -m study.fresh report              the tables, as Markdown

The budget is that of study.run: 20 steps of 24 questions × 8 completions from the embedded model. `sft-grpo-10-10`
takes 10 of the steps to fine-tune on the solutions of half of the questions, and then 10 of GRPO on the others, with a
new optimizer; `sft-grpo-5-15` takes 5 and 15, and `sft-dagrpo-5-15` goes on with DaGRPO. `positives` is GRPO with a
constant loss norm that trains on those completions alone that are better than their group; in `dagrpo-half-negatives`
the others have half the weight (--negative-weight 0.5).

What study.run has too has the learning rate that was picked there, and `dagrpo-half-negatives` that of `dagrpo`. The
benchmarks are smaller, so that there is time for 16 seeds, which nothing else has used. Seeds, variants and rates of
the grid were fixed before the first run, but for `sft-dagrpo-5-15`, which was added when 14 seeds of the others had
been seen, and `dagrpo-half-negatives`, when all had. Its weight was picked by `study.run settings`, with other seeds
and on the validation set. Each cell is one line of study/fresh.jsonl. --quick does all of it in a tiny version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from study import cells as kept_cells
from study.cells import grid_accuracies, learning_rates, load_cells, picked_rate, read_cells, run_cells, warn_of_others
from study.tables import (
    TASKS,
    Cells,
    accuracies,
    best_baseline,
    cells_of_task,
    last_validation,
    mean,
    number,
    of_unequal_seeds,
    paired_differences,
    shown_rates,
    table,
    with_interval,
)
from study.tasks import ROOT
from study.variants import FRESH, FRESH_FLAGS, FULL, QUICK, Budget, Request, grid_of

FILE = ROOT / "study" / "fresh.jsonl"
QUICK_FILE = ROOT / "runs" / "fresh-quick.jsonl"
OF_STUDY = ("sft", "grpo", "dapo-4-updates", "luffy-2-updates", "dagrpo", "dagrpo-no-mask")
OF_STUDY_BY_TASK = ("sft-mixed", "dagrpo-mixed", "sft-terse", "dagrpo-terse")
VARIANTS = (*OF_STUDY, *OF_STUDY_BY_TASK, *FRESH_FLAGS)
SEARCHED = tuple(variant for variant in FRESH_FLAGS if grid_of(variant) == variant)  # others have a rate already
OTHERS = ("positives", "sft-grpo-10-10", "sft-grpo-5-15")  # baselines beside those of study.run
PAIRS = (
    ("sft-dagrpo-5-15", "sft-grpo-5-15"),  # does DaGRPO add something where fine-tuning came first?
    ("dagrpo-half-negatives", "dagrpo"),
    ("dagrpo-half-negatives", "sft-grpo-5-15"),
)


def grid(arguments: argparse.Namespace, budget: Budget) -> None:
    """Train each new variant at every learning rate of the grid, and show what the validation set picks."""
    requests = [
        Request("grid", variant, seed, rate, budget)
        for seed in budget.grid_seeds
        for variant in SEARCHED
        for rate in budget.learning_rates
    ]
    run_cells(requests, arguments.cells, arguments.workers)
    kept = read_cells(arguments.cells, "grid")
    print(f"Validation accuracy after training, mean of {len(budget.grid_seeds)} seeds; * is picked\n")
    print(f"{'variant':22}" + "".join(f"{rate:>10g}" for rate in budget.learning_rates))
    for variant in SEARCHED:
        found = grid_accuracies(variant, budget, kept)
        best = picked_rate(found)
        print(f"{variant:22}" + "".join(f"{value:>9.1%}{'*' if r == best else ' '}" for r, value in found.items()))


def rates(budget: Budget, file: Path, variants: Sequence[str]) -> dict[str, float]:
    """The learning rate of each variant: as study.run picked it, or as the grid of this comparison did."""
    quick = budget == QUICK
    needed = {grid_of(variant) for variant in variants}
    of_study = sorted(needed - set(SEARCHED))
    rates = learning_rates(QUICK if quick else FULL, kept_cells.QUICK_FILE if quick else kept_cells.FILE, of_study)
    rates |= learning_rates(budget, file, sorted(needed & set(SEARCHED)))
    return {variant: rates[grid_of(variant)] for variant in variants}


def run(arguments: argparse.Namespace, budget: Budget) -> None:
    """Train and measure every variant with every seed that is not finished."""
    variants = arguments.only or VARIANTS
    picked = rates(budget, arguments.cells, variants)
    requests = [
        Request("run", variant, seed, picked[variant], budget)
        for seed in arguments.seeds or budget.seeds
        for variant in variants  # a seed's before the next's: an unfinished comparison is paired
    ]
    run_cells(requests, arguments.cells, arguments.workers)


def report(arguments: argparse.Namespace, budget: Budget) -> None:
    """Print a table for each task."""
    cells = load_cells(arguments.cells)
    warn_of_others(cells, budget)
    for ending, title in TASKS.items():
        of_task = cells_of_task(cells, ending)
        if "dagrpo" in of_task:
            print(f"### {title}\n\n{comparison(of_task)}\n")


def comparison(cells: Cells) -> str:
    """Accuracies in percent, and how many points DaGRPO is ahead of each other variant, paired by seed."""
    ours = cells["dagrpo"]
    rows = []
    for variant, by_seed in cells.items():
        row = [variant, str(len(by_seed)), shown_rates(by_seed)]
        row.append(number(100 * mean(list(last_validation(by_seed).values()))))
        for name in ("mean of six", "mean of three", "mean of nine"):
            row.append(number(100 * mean(list(accuracies(by_seed, name, "sampled").values()))))
        for kind in ("sampled", "greedy"):
            values = [accuracies(of, "mean of nine", kind) for of in (ours, by_seed)]
            row.append("–" if variant == "dagrpo" else with_interval(paired_differences(*values)))
        rows.append(row)
    head = ["variant", "seeds", "rate", "validation", "mean of six", "mean of three", "mean of nine"]
    head += ["DaGRPO minus it", "greedy"]
    best = best_baseline({name: of for name, of in cells.items() if of.keys() >= ours.keys()}, OTHERS)
    said = [table(head, rows), of_unequal_seeds(cells)]
    said.append(f"Best baseline, by its accuracy on the validation set: {best}.")
    for pair in PAIRS:
        if all(name in cells for name in pair):
            for kind in ("sampled", "greedy"):
                values = [accuracies(cells[name], "mean of nine", kind) for name in pair]
                said.append(f"{' minus '.join(pair)}, {kind}: {with_interval(paired_differences(*values))}")
    return "\n\n".join(filter(None, said))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.fresh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("grid", "run", "report"))
    parser.add_argument("--quick", action="store_true", help="a tiny version")
    parser.add_argument("--cells", type=Path, metavar="FILE", help="where cells are kept")
    parser.add_argument("--workers", type=int, default=2, help="cells at once; they share the cores")
    parser.add_argument("--seeds", nargs="+", type=int, help="some of them only")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help=f"of run: {', '.join(VARIANTS)}")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: it must be at least 1.")
    budget = QUICK if options.quick else FRESH
    unknown = set(options.seeds or ()) - set(budget.seeds)
    if unknown:
        sys.exit(f"study.fresh: --seeds {min(unknown)}: the comparison has {budget.seeds[0]} to {budget.seeds[-1]}.")
    options.cells = options.cells or (QUICK_FILE if options.quick else FILE)
    {"grid": grid, "run": run, "report": report}[options.command](options, budget)


if __name__ == "__main__":
    main()
