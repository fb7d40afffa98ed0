"""Does DaGRPO beat GRPO, SFT and hybrid training, by how much? A comparison at one budget on the embedded task.

    python -m study.run grid       pick each method's learning rate on the validation set
    python -m study.run run        train and measure every variant with every seed
    python -m study.run settings   the search for DaGRPO's defaults, on the validation set
    python -m study.run report     the tables, as Markdown
    python -m study.run figures    the figures, as PNG and SVG (pip install matplotlib)
    python -m study.run make       write the questions as JSONL, to look at

`grid`, `run` and `settings` take up where they stopped: each (variant, seed) is a cell, kept as one line of
study/cells.jsonl with the commit, the configuration and a hash of the model and data that made it, and is run again
only where configuration or hash are others. A change of the code alone does not show in them: delete the lines after
one. --quick does all of it in a tiny version, in runs/study-quick.jsonl.

One budget: every variant starts from the same model and takes the same number of steps, each on 24 questions with 8
completions, the same questions in the same order. Three methods differ by what they are: `dapo` replaces groups without
signal by further questions and their completions, `luffy` samples 7 completions beside the anchor, `sft` samples none.

Three tasks, which differ in the solutions that some variants learn from: the example's, which a good completion of the
embedded model looks like; solutions that skip steps, as those of an expert do (variants that end in -terse); half of
each (-mixed). What learns from no solution is in all three.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.config import ConfigError
from study import tasks
from study.cells import (
    FILE,
    QUICK_FILE,
    grid_accuracies,
    learning_rates,
    load_cells,
    of_seeds,
    picked_rate,
    read_cells,
    run_cells,
    warn_of_others,
)
from study.figures import FIGURES, draw
from study.tables import TASKS, markdown, replication, settings_table
from study.tasks import ROOT
from study.variants import (
    BASE,
    FULL,
    QUICK,
    REPEATED,
    SETTINGS,
    START_NAME,
    VARIANTS,
    Budget,
    Request,
    grid_of,
    question_sets,
)


def grid(arguments: argparse.Namespace, budget: Budget) -> None:
    """Train every method at every learning rate of the grid, and show what the validation set picks."""
    variants = dict.fromkeys(grid_of(name) for name in arguments.only or [*VARIANTS, START_NAME] if name != BASE)
    requests = [
        Request("grid", variant, seed, rate, budget)
        for seed in budget.grid_seeds
        for variant in variants
        for rate in budget.learning_rates
    ]
    run_cells(requests, arguments.cells, arguments.workers)
    cells = read_cells(arguments.cells, "grid")
    print(f"Validation accuracy after training, mean of {len(budget.grid_seeds)} seeds; * is picked\n")
    print(f"{'variant':14}" + "".join(f"{rate:>10g}" for rate in budget.learning_rates))
    for variant in variants:
        accuracies = grid_accuracies(variant, budget, cells)
        best = picked_rate(accuracies)
        print(f"{variant:14}" + "".join(f"{value:>9.1%}{'*' if r == best else ' '}" for r, value in accuracies.items()))
        if best in (budget.learning_rates[0], budget.learning_rates[-1]):
            print(f"{'':14} {best:g} is at the edge of the grid: a rate beyond it might be better.")


def run(arguments: argparse.Namespace, budget: Budget) -> None:
    """Train and measure every variant with every seed that is not finished."""
    variants = arguments.only or list(VARIANTS)
    chosen_for = {*budget.grid_seeds, *budget.settings_seeds} & set(arguments.seeds or ())
    if chosen_for:
        sys.exit(f"study.run: --seeds {min(chosen_for)}: settings were picked with this seed; take another one.")
    searched = sorted({grid_of(variant) for variant in variants if variant != BASE})
    rates = {BASE: 0.0, **learning_rates(budget, arguments.cells, searched)}
    requests = [
        Request("run", variant, seed, rates[BASE if variant == BASE else grid_of(variant)], budget)
        for seed in arguments.seeds or (*budget.seeds, *budget.further_seeds)
        for variant in variants  # all of a seed before the next seed: an unfinished study is still paired
        if arguments.seeds or seed in budget.seeds or variant in REPEATED
    ]
    run_cells(requests, arguments.cells, arguments.workers)


def settings(arguments: argparse.Namespace, budget: Budget) -> None:
    """Train DaGRPO with settings that might become its defaults, and show what the validation set says of each."""
    rate = learning_rates(budget, arguments.cells, [START_NAME])[START_NAME]
    requests = [
        Request("settings", setting, seed, rate, budget)
        for seed in arguments.seeds or budget.settings_seeds
        for setting in arguments.only or SETTINGS
    ]
    run_cells(requests, arguments.cells, arguments.workers)
    print(settings_table(load_cells(arguments.cells, "settings")))


def report(arguments: argparse.Namespace, budget: Budget) -> None:
    """Print the tables and statistics as Markdown."""
    cells = load_cells(arguments.cells)
    warn_of_others(cells, budget)
    print(markdown(of_seeds(cells, budget.further_seeds, inside=False)))
    further = of_seeds(cells, budget.further_seeds)
    if further:
        print(replication(further, {variant: cells[variant] for variant in further}))


def figures(arguments: argparse.Namespace, budget: Budget) -> None:
    """Draw the learning curves and the table of variants by benchmarks."""
    first = of_seeds(load_cells(arguments.cells), budget.further_seeds, inside=False)
    for path in draw(first, arguments.out, FIGURES):
        print(path)


def make(arguments: argparse.Namespace, budget: Budget) -> None:
    """Write the training set, the validation set and the nine benchmarks as JSONL."""
    training = {f"training{task}": question_sets(budget, task)["training"] for task in TASKS}
    sets = {**question_sets(budget, ""), **training}
    tasks.write_sets(arguments.folder, sets)
    for name, questions in sets.items():
        print(f"{name:14} {len(questions):>5} questions, such as: {questions[0]['problem']}")
    print(f"Written to {arguments.folder}.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for command in (grid, run, settings, report, figures, make):
        flags = commands.add_parser(command.__name__, help=command.__doc__)
        flags.set_defaults(command=command)
        flags.add_argument("--quick", action="store_true", help="a tiny version, in well under a minute")
        if command is make:
            default = ROOT / "runs" / "study-questions"
            flags.add_argument("--folder", type=Path, default=default, help="of the questions")
        else:
            flags.add_argument("--cells", type=Path, metavar="FILE", help="where cells are kept")
        if command in (grid, run, settings):
            choices = {grid: [*VARIANTS, START_NAME], run: VARIANTS, settings: SETTINGS}[command]
            flags.add_argument("--workers", type=int, default=2, help="cells at once; they share the cores")
            flags.add_argument("--only", nargs="+", choices=choices, metavar="NAME", help=", ".join(choices))
        if command in (run, settings):
            flags.add_argument("--seeds", nargs="+", type=int, help="all of the study without this flag")
        if command is figures:
            flags.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the figures")
    options = parser.parse_args(arguments)
    if getattr(options, "workers", 1) < 1:
        parser.error(f"--workers {options.workers}: it must be at least 1.")
    if options.command is not make:
        options.cells = options.cells or (QUICK_FILE if options.quick else FILE)
    try:
        options.command(options, QUICK if options.quick else FULL)
    except (ConfigError, ImportError) as error:
        sys.exit(f"study.run: {error}")


if __name__ == "__main__":
    main()
