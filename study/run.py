"""Does DaGRPO beat GRPO, SFT and hybrid training, by how much? A comparison at one budget on the embedded task.

    python -m study.run grid       pick each method's learning rate on the validation set
    python -m study.run run        train and measure every variant with every seed
    python -m study.run settings   the search for DaGRPO's defaults, on the validation set
    python -m study.run report     the tables, as Markdown
    python -m study.run figures    the figures, as PNG and SVG (pip install matplotlib)
    python -m study.run make       write the questions as JSONL, to look at

`grid`, `run` and `settings` take up where they stopped: each (variant, seed) is a cell, kept as one JSON file in
benchmarks/study/ with the commit, the configuration and a hash of the model and data that made it, and is run again
only where configuration or hash are others. A change of the code alone does not show in them: delete the cells after
one. --quick does all of it in a tiny version, in runs/study-quick.

One budget: every variant starts from the same model and takes the same number of steps, each on 24 questions with 8
answers, the same questions in the same order. Three methods differ by what they are: `dapo` replaces groups without
signal by further questions and their answers, `luffy` samples 7 answers beside the anchor, `sft` samples none.

Three tasks, which differ in the solutions that some variants learn from: the example's, which a good answer of the
embedded model looks like; solutions that skip steps, as those of an expert do (variants that end in -terse); half of
each (-mixed). What learns from no solution is in all three.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dagrpo
import rollout
from anchors import read_questions
from evaluate import evaluate
from flags import ConfigError
from study import tasks
from study.tables import TASKS, Cells, draw, markdown, mean, norm_summary, replication, settings_table, task_of
from study.tasks import BENCHMARKS, ROOT, Row

FOLDER = ROOT / "benchmarks" / "study"
QUICK_FOLDER = ROOT / "runs" / "study-quick"


@dataclass(frozen=True)
class Budget:
    """What every cell may spend. Counts of questions are per benchmark, or per level of training and validation."""

    steps: int
    questions: int  # a step
    group_size: int
    training_each: int  # FULL: 480 questions, so that each comes once in 20 steps
    validation_each: int
    benchmark_each: int
    samples: int  # answers to each benchmark question: the k of avg@k
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
QUICK_RATE = 2e-4  # where --quick has no grid
MAX_NEW_TOKENS = 160  # the longest right answer has about 120
TERSE_SHARE = {"": 0.0, "-mixed": 0.5, "-terse": 1.0}  # of the solutions, by task
TEMPERATURE = 0.6  # of validation and benchmark answers

BASE = "base"
WITH_SOLUTIONS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft", "group_size": 1},  # one answer a question: its anchor
    "luffy": {"method": "luffy"},
    "dagrpo": {},
}
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},  # the embedded model as it is: what there was to gain
    # The baselines, as dagrpo.METHODS has them.
    "sft": WITH_SOLUTIONS["sft"],
    "grpo": {"method": "grpo"},
    "dr_grpo": {"method": "dr_grpo"},
    "dapo": {"method": "dapo"},
    "luffy": WITH_SOLUTIONS["luffy"],
    "luffy-gamma-0.03": {"method": "luffy", "gamma": 0.03},  # with DaGRPO's γ, which was picked after LUFFY's
    "dagrpo": WITH_SOLUTIONS["dagrpo"],
    # Without one of its two mechanisms, or both: what does each add?
    "dagrpo-no-mask": {"scorer": "none"},
    "dagrpo-no-anchors": {"anchors": "none"},
    "dagrpo-neither": {"scorer": "none", "anchors": "none"},  # GRPO with the loss norm of DaGRPO
    # The two loss norms differ by a factor a step. With every gradient scaled to one norm they are the same method.
    "grpo-equal-norms": {"method": "grpo", "max_grad_norm": 0.01},
    # Does it matter how distinctiveness is scored, and what is masked?
    "dagrpo-state": {"scorer": "state"},
    "dagrpo-token": {"scorer": "token"},
    "dagrpo-token-rectify": {"rectify": "token"},
    **{f"dagrpo-threshold-{value}": {"threshold": value} for value in (0.2, 0.45, "auto")},
    # The other tasks. What learns from no solution is the same in all of them, and is not run again.
    **{f"{method}{task}": flags for task in TASKS if task for method, flags in WITH_SOLUTIONS.items()},
}
REPEATED = ("sft", "grpo", "dagrpo-neither", "dagrpo")  # with further seeds

# The search for DaGRPO's defaults, on the validation set: from START, one setting changed at a time, then together what
# was better alone.
START_NAME = "start"
START: dict[str, Any] = {"scorer": "gradient", "gamma": 0.1, "loss_norm": "token"}
CHANGES: dict[str, dict[str, Any]] = {
    START_NAME: {},
    **{f"threshold {value}": {"threshold": value} for value in (0.2, 0.3, 0.45, "auto")},
    **{f"scorer {name}": {"scorer": name} for name in ("state", "token", "none")},
    "scorer state 0.3": {"scorer": "state", "threshold": 0.3},
    "rectify token": {"rectify": "token"},
    **{f"hard-below {value}": {"hard_below": value} for value in (0.125, 0.25)},
    **{f"gamma {value}": {"gamma": value} for value in (0.01, 0.03, 0.3, 1.0)},
    "anchor-objective sft": {"anchor_objective": "sft"},
    "scale none": {"scale": "none"},
    "loss-norm constant": {"loss_norm": "constant"},
    **{
        f"constant gamma 0.03 scorer {name}": {"loss_norm": "constant", "gamma": 0.03, "scorer": name}
        for name in ("gradient", "state", "none")
    },
    "constant gamma 0.03 scorer state scale none": {
        "loss_norm": "constant", "gamma": 0.03, "scorer": "state", "scale": "none",
    },
    "constant gamma 0.01 scorer state": {"loss_norm": "constant", "gamma": 0.01, "scorer": "state"},
}  # fmt: skip
SETTINGS = {name: {**START, **changes} for name, changes in CHANGES.items()}
FLAGS = {**VARIANTS, **SETTINGS}


# ---------------------------------------------------------------------------------------------------------------------
# One cell
# ---------------------------------------------------------------------------------------------------------------------


def method_of(variant: str) -> str:
    """The value of --method."""
    return FLAGS[variant].get("method", "dagrpo")


def grid_of(variant: str) -> str:
    """The variant whose learning rate is searched for it: its method with its solutions."""
    return START_NAME if variant in SETTINGS else method_of(variant) + task_of(variant)


def configuration(variant: str, seed: int, rate: float, budget: Budget, folder: Path) -> dagrpo.Config:
    """The run of a cell, on the questions in `folder`. On a CPU everywhere, so that cells of one study compare."""
    return dagrpo.configure(
        **{
            "data": [str(folder / "training.jsonl")], "eval_data": [str(folder / "validation.jsonl")],
            "out": str(folder / "run"), "device": "cpu", "seed": seed, "learning_rate": rate,
            "steps": budget.steps, "questions": budget.questions, "group_size": budget.group_size,
            "max_new_tokens": MAX_NEW_TOKENS, "eval_every": budget.eval_every, "eval_samples": 4,
            "eval_temperature": TEMPERATURE, **FLAGS[variant],
        }
    )  # fmt: skip


def made_from(variant: str, seed: int, rate: float, budget: Budget, benchmarks: bool) -> dict[str, Any]:
    """What a cell depends on: its configuration without paths, how it is measured, and a hash of model and data."""
    config = asdict(configuration(variant, seed, rate, budget, Path()))
    for path in ("model", "data", "eval_data", "out"):
        del config[path]
    if variant == BASE:  # nothing is trained
        config = {"seed": seed, "max_new_tokens": MAX_NEW_TOKENS, "eval_samples": config["eval_samples"]}
    config |= {"samples": budget.samples if benchmarks else 0, "sample_temperature": TEMPERATURE}
    return {"configuration": config, "data": data_hash(budget, task_of(variant))}


@functools.cache
def questions(budget: Budget, task: str) -> dict[str, list[Row]]:
    """Rows by name, of the training set with the solutions of the task."""
    sets = tasks.questions(budget.benchmark_each, budget.training_each, budget.validation_each)
    sets["training"] = tasks.with_terse_solutions(sets["training"], TERSE_SHARE[task])
    return sets


@functools.cache
def data_hash(budget: Budget, task: str) -> str:
    """Of the embedded model, its tokenizer, and every question."""
    digest = hashlib.sha256(json.dumps(questions(budget, task), sort_keys=True).encode())
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((dagrpo.EXAMPLE / name).read_bytes())
    return digest.hexdigest()[:16]


def is_finished(path: Path, wanted: dict[str, Any]) -> bool:
    """Is there a cell made from what is wanted?"""
    return path.is_file() and is_made_from(json.loads(path.read_text(encoding="utf-8")), wanted)


def is_made_from(cell: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Was the cell made from what is wanted? A field that Config got since then must have its default."""
    defaults = {field.name: field.default for field in fields(dagrpo.Config)}
    there = cell["configuration"]
    new = wanted["configuration"].keys() - there.keys()
    then = {**there, **{name: defaults.get(name) for name in new}}
    return cell["data"] == wanted["data"] and effective(then) == effective(wanted["configuration"])


def effective(configuration: dict[str, Any]) -> dict[str, Any]:
    """The same without γ where no anchor is shaped by it."""
    shapes = configuration.get("anchors") != "none" and configuration.get("anchor_objective") == "shaped"
    return {name: value for name, value in configuration.items() if shapes or name != "gamma"}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Print nothing; where the body fails, the end of what it would have printed is in the error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    except Exception as error:
        raise RuntimeError(f"{error!r}, after: {printed.getvalue()[-500:]}") from error


def run_cell(variant: str, seed: int, rate: float, budget: Budget, path: Path, benchmarks: bool = True) -> None:
    """Train, measure, and write the cell to `path`; what the run prints is shown only where it fails."""
    with silenced():
        cell = measure_cell(variant, seed, rate, budget, benchmarks)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)  # a cell that was interrupted leaves no file that looks finished


def measure_cell(variant: str, seed: int, rate: float, budget: Budget, benchmarks: bool) -> dict[str, Any]:
    """The cell: what made it, its validation curve, its training metrics by step, and its accuracy by benchmark."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks.write_sets(folder, questions(budget, task_of(variant)))
        config = configuration(variant, seed, rate, budget, folder)
        steps: list[dict[str, Any]] = []
        trained = config.model
        if variant == BASE:
            evaluations = [{"step": 0, **measure(config.model, ["validation"], folder, config.eval_samples, seed)}]
        else:
            dagrpo.train(config)
            trained = str(folder / "run" / "model")
            steps = [record for record in read_lines(folder / "run" / "metrics.jsonl") if "step" in record]
            evaluations = read_lines(folder / "run" / "evaluations.jsonl")
        _, tokenizer = rollout.load(trained, "cpu")
        cell = {
            "variant": variant,
            "seed": seed,
            "learning_rate": 0.0 if variant == BASE else rate,
            "flags": FLAGS[variant],
            "commit": commit(),
            "validation": {
                "steps": [result["step"] for result in evaluations],
                "accuracy": [result["accuracy"] for result in evaluations],
                "length": [result["length"] for result in evaluations],
                "right_length": [right_length(result["rows"], tokenizer) for result in evaluations],
            },
            "gradient_norm": norm_summary([record["grad_norm"] for record in steps]),
            "curves": curves(steps),
            "sampled_tokens": sum(record["sampled_tokens"] for record in steps),
            "benchmarks": {},
        }
        if benchmarks:
            sampled = measure(trained, BENCHMARKS, folder, budget.samples, seed)["levels"]
            greedy = measure(trained, BENCHMARKS, folder, 1, seed, temperature=0.0)["levels"]
            cell["benchmarks"] = {
                name: {
                    "sampled": sampled[name]["accuracy"],
                    "greedy": greedy[name]["accuracy"],
                    "length": sampled[name]["length"],
                }
                for name in BENCHMARKS
            }
    cell["seconds"] = time.perf_counter() - start
    return {**rounded(cell), **made_from(variant, seed, rate, budget, benchmarks)}


def measure(
    model_path: str, names: list[str], folder: Path, k: int, seed: int, temperature: float = TEMPERATURE
) -> dict[str, Any]:
    """evaluate() on the named sets at once; its `levels` are then the sets, not the levels of the questions."""
    model, tokenizer = rollout.load(model_path, "cpu")
    rows = [{**row, "level": name} for name in names for row in read_questions([str(folder / f"{name}.jsonl")])]
    return evaluate(model, tokenizer, rows, k=k, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=seed)


def right_length(rows: list[dict[str, Any]], tokenizer: Any) -> float:
    """Mean tokens of the right answers, without EOS; NaN where none is right."""
    right = [text for row in rows for text, earned in zip(row["texts"], row["rewards"], strict=True) if earned > 0]
    return mean([float(len(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in right])


def curves(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Training metrics by step; empty where nothing was trained."""
    if not steps:
        return {}
    names = ("grad_norm", "no_signal", "masked_pairs", "anchored", "entropy", "reward", "length/mean")
    by_name = {name: [record[name] for record in steps] for name in names if name in steps[0]}
    by_name["skipped"] = [1 - record["trained_sequences"] for record in steps]
    by_name["seconds"] = [sum(v for name, v in record.items() if name.startswith("seconds/")) for record in steps]
    return by_name


def rounded(value: Any) -> Any:
    """The same with floats of five significant digits, as more would be noise, and None for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.5g}")
    return value


def with_nan(value: Any) -> Any:
    """The same with NaN for None."""
    if isinstance(value, dict):
        return {name: with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@functools.cache
def commit() -> str:
    """The commit of the code, with -dirty where files differ from it; `unknown` outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# Many cells
# ---------------------------------------------------------------------------------------------------------------------


def run_cells(cells: list[dict[str, Any]], workers: int) -> None:
    """Run those arguments of run_cell that are not finished, `workers` at once; ends the program where some failed."""
    missing = [
        cell
        for cell in cells
        if not is_finished(
            cell["path"], made_from(*(cell[n] for n in ("variant", "seed", "rate", "budget", "benchmarks")))
        )
    ]
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished.")
    if not missing:
        return
    failed = []
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        min(workers, len(missing)), multiprocessing.get_context("spawn"), start_worker, (threads,)
    )
    futures: dict[Future[None], str] = {pool.submit(run_cell, **cell): cell["path"].stem for cell in missing}
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc="cells", unit="cell", file=sys.stderr):
            if future.exception():
                failed.append(f"{futures[future]}: {future.exception()}")
                tqdm.write(f"failed: {failed[-1]}", file=sys.stderr)
    except KeyboardInterrupt:
        sys.exit("study.run: stopped. Finished cells are kept; the same command goes on from there.")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        sys.exit(f"study.run: {len(failed)} of {len(missing)} cells failed, the first one is {failed[0]}")


def start_worker(threads: int) -> None:
    """Set up a worker process. It ends with the process that started it, also where that one was killed."""
    torch.set_num_threads(threads)
    commit()  # kept from now on: the code that was loaded, whatever is committed while it runs
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def grid_path(folder: Path, variant: str, rate: float, seed: int) -> Path:
    return folder / "grid" / f"{variant}-{rate:g}-seed{seed}.json"


def grid_accuracies(variant: str, budget: Budget, folder: Path) -> dict[float, float]:
    """Validation accuracy after training by learning rate, mean over the grid's seeds; rates with all seeds only."""
    found: dict[float, float] = {}
    for rate in budget.learning_rates:
        paths = {seed: grid_path(folder, variant, rate, seed) for seed in budget.grid_seeds}
        if all(is_finished(path, made_from(variant, seed, rate, budget, False)) for seed, path in paths.items()):
            cells = [json.loads(path.read_text(encoding="utf-8")) for path in paths.values()]
            found[rate] = mean([cell["validation"]["accuracy"][-1] for cell in cells])
    return found


def picked_rate(accuracies: dict[float, float]) -> float:
    """The learning rate of the highest accuracy; of equal ones, the smaller."""
    return max(sorted(accuracies), key=lambda rate: accuracies[rate])


def learning_rates(budget: Budget, folder: Path, variants: list[str]) -> dict[str, float]:
    """The picked rate of each variant of the grid. Ends the program where the grid has not been run."""
    rates = {}
    for variant in variants:
        accuracies = grid_accuracies(variant, budget, folder)
        if set(accuracies) == set(budget.learning_rates):
            rates[variant] = picked_rate(accuracies)
        elif budget == QUICK:
            rates[variant] = QUICK_RATE
        else:
            sys.exit(f"study.run: the learning rate of {variant} is not picked yet: run study.run grid first.")
    return rates


def load_cells(folder: Path) -> Cells:
    """The cells in the folder, variants in the order of FLAGS. Ends the program where they do not compare."""
    found = [with_nan(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    if not found:
        sys.exit(f"study.run: no cells in {folder}: run study.run run first.")
    steps = {cell["configuration"]["steps"] for cell in found if cell["variant"] != BASE}
    hashes = {(task_of(cell["variant"]), cell["data"]) for cell in found}
    if len(hashes) > len({task for task, _ in hashes}) or len(steps) > 1:
        sys.exit(
            f"study.run: the cells in {folder} are of different questions, models or steps: run study.run run again."
        )
    cells: Cells = {
        variant: {cell["seed"]: cell for cell in sorted(found, key=lambda c: c["seed"]) if cell["variant"] == variant}
        for variant in FLAGS
    }
    return {variant: by_seed for variant, by_seed in cells.items() if by_seed}


def warn_of_others(cells: Cells, budget: Budget) -> None:
    """Name on stderr the cells that today's configuration and questions would not make: run would make them anew."""
    others = [
        f"{variant}-seed{seed}"
        for variant, by_seed in cells.items()
        for seed, cell in by_seed.items()
        if not is_made_from(cell, made_from(variant, seed, cell["learning_rate"], budget, True))
    ]
    if others:
        print(f"study.run: made from other settings or questions than today's: {', '.join(others)}.", file=sys.stderr)


def of_seeds(cells: Cells, seeds: tuple[int, ...], inside: bool = True) -> Cells:
    """The cells of these seeds, or of all others; without the variants that have none."""
    picked = {
        variant: {seed: cell for seed, cell in own.items() if (seed in seeds) == inside}
        for variant, own in cells.items()
    }
    return {variant: own for variant, own in picked.items() if own}


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


def make(arguments: argparse.Namespace, budget: Budget, folder: Path) -> None:
    """Write the training set, the validation set and the nine benchmarks as JSONL."""
    folder = arguments.folder or ROOT / "runs" / "study-questions"
    sets = {**questions(budget, ""), **{f"training{task}": questions(budget, task)["training"] for task in TASKS}}
    tasks.write_sets(folder, sets)
    for name, rows in sets.items():
        print(f"{name:14} {len(rows):>5} questions, such as: {rows[0]['problem']}")
    print(f"Written to {folder}.")


def grid(arguments: argparse.Namespace, budget: Budget, folder: Path) -> None:
    """Train every method at every learning rate of the grid, and show what the validation set picks."""
    variants = dict.fromkeys(grid_of(name) for name in arguments.only or [*VARIANTS, START_NAME] if name != BASE)
    cells = [
        {"variant": variant, "seed": seed, "rate": rate, "budget": budget, "benchmarks": False,
         "path": grid_path(folder, variant, rate, seed)}
        for seed in budget.grid_seeds for variant in variants for rate in budget.learning_rates
    ]  # fmt: skip
    run_cells(cells, arguments.workers)
    print(f"Validation accuracy after training, mean of {len(budget.grid_seeds)} seeds; * is picked\n")
    print(f"{'variant':14}" + "".join(f"{rate:>10g}" for rate in budget.learning_rates))
    for variant in variants:
        accuracies = grid_accuracies(variant, budget, folder)
        best = picked_rate(accuracies)
        print(f"{variant:14}" + "".join(f"{value:>9.1%}{'*' if r == best else ' '}" for r, value in accuracies.items()))
        if best in (budget.learning_rates[0], budget.learning_rates[-1]):
            print(f"{'':14} {best:g} is at the edge of the grid: a rate beyond it might be better.")


def run(arguments: argparse.Namespace, budget: Budget, folder: Path) -> None:
    """Train and measure every variant with every seed that is not finished."""
    variants = arguments.only or list(VARIANTS)
    chosen_for = {*budget.grid_seeds, *budget.settings_seeds} & set(arguments.seeds or ())
    if chosen_for:
        sys.exit(f"study.run: --seeds {min(chosen_for)}: settings were picked with this seed; take another one.")
    rates = {BASE: 0.0, **learning_rates(budget, folder, sorted({grid_of(v) for v in variants if v != BASE}))}
    cells = [
        {"variant": variant, "seed": seed, "rate": rates[BASE if variant == BASE else grid_of(variant)],
         "budget": budget, "benchmarks": True, "path": folder / f"{variant}-seed{seed}.json"}
        for seed in arguments.seeds or (*budget.seeds, *budget.further_seeds)
        for variant in variants  # all of a seed before the next seed: an unfinished study is still paired
        if arguments.seeds or seed in budget.seeds or variant in REPEATED
    ]  # fmt: skip
    run_cells(cells, arguments.workers)


def settings(arguments: argparse.Namespace, budget: Budget, folder: Path) -> None:
    """Train DaGRPO with settings that might become its defaults, and show what the validation set says of each."""
    rate = learning_rates(budget, folder, [START_NAME])[START_NAME]
    cells = [
        {"variant": setting, "seed": seed, "rate": rate, "budget": budget, "benchmarks": False,
         "path": folder / "settings" / f"{setting.replace(' ', '-')}-seed{seed}.json"}
        for seed in arguments.seeds or budget.settings_seeds for setting in arguments.only or SETTINGS
    ]  # fmt: skip
    run_cells(cells, arguments.workers)
    print(settings_table(load_cells(folder / "settings")))


def report(arguments: argparse.Namespace, budget: Budget, folder: Path) -> None:
    """Print the tables and statistics as Markdown."""
    cells = load_cells(folder)
    warn_of_others(cells, budget)
    print(markdown(of_seeds(cells, budget.further_seeds, inside=False)))
    further = of_seeds(cells, budget.further_seeds)
    if further:
        print(replication(further, {variant: cells[variant] for variant in further}))


def figures(arguments: argparse.Namespace, budget: Budget, folder: Path) -> None:
    """Draw the learning curves and the table of variants by benchmarks."""
    for path in draw(of_seeds(load_cells(folder), budget.further_seeds, inside=False), arguments.out):
        print(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for command in (grid, run, settings, report, figures, make):
        flags = commands.add_parser(command.__name__, help=command.__doc__)
        flags.set_defaults(command=command)
        flags.add_argument("--quick", action="store_true", help="a tiny version, in well under a minute")
        flags.add_argument("--folder", type=Path, help="of the cells (make: of the questions)")
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
    folder = options.folder or (QUICK_FOLDER if options.quick else FOLDER)
    try:
        options.command(options, QUICK if options.quick else FULL, folder)
    except (ConfigError, ImportError) as error:
        sys.exit(f"study.run: {error}")


if __name__ == "__main__":
    main()
