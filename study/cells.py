"""The cells of the study: each (variant, seed) trained and measured, and kept as one line of cells.jsonl.

A line says what made the cell: the commit, the configuration, and a hash of the model and the questions. A cell that is
run again is appended, and then the last line with its key counts. Only the process that was started by hand writes;
its workers return their cells.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dagrpo
import rollout
from evaluate import evaluate
from harness.checkpoint import records_of as read_kept  # of lines that a kill may have cut off
from harness.config import Config, configure
from harness.report import each_value
from questions import read_questions
from study import tasks
from study.arms import ARMS, training_with
from study.tables import Cell, Cells, mean, norm_summary, task_of
from study.tasks import BENCHMARKS, ROOT, read_lines
from study.variants import (
    BASE,
    FLAGS,
    MAX_NEW_TOKENS,
    POSITIVES,
    QUICK,
    QUICK_RATE,
    TEMPERATURE,
    WITH_SOLUTIONS,
    Budget,
    Request,
    configuration,
    made_from,
    question_sets,
    sft_steps,
)

FILE = ROOT / "study" / "cells.jsonl"
QUICK_FILE = ROOT / "runs" / "study-quick.jsonl"

Key = tuple[str, int, float | None]  # variant, seed, and in the grid the learning rate


# ---------------------------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------------------------


def append_kept(file: Path, value: dict[str, Any]) -> None:
    """Add one line, apart from what a kill may have left without its end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
    line = json.dumps(value, separators=(",", ":")) + "\n"
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" + line if cut_off else line)


def key_of(kind: str, variant: str, seed: int, rate: float) -> Key:
    """What a cell is found by among those of its kind. The rate is rounded as it is in the cell."""
    return variant, seed, rounded(rate) if kind == "grid" else None


def read_cells(file: Path, kind: str) -> dict[Key, Cell]:
    """The cells of one kind, for each key the one of its last line."""
    cells = [cell for cell in read_kept(file) if cell["kind"] == kind]
    return {key_of(kind, cell["variant"], cell["seed"], cell["learning_rate"]): cell for cell in cells}


def is_finished(cells: dict[Key, Cell], request: Request) -> bool:
    """Is there a cell made from what is wanted?"""
    cell = cells.get(key_of(request.kind, request.variant, request.seed, request.rate))
    return cell is not None and is_made_from(cell, made_from(request))


def is_made_from(cell: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Was the cell made from what is wanted? A field that Config got since then must have its default."""
    defaults = asdict(Config()) | {"metric": "gradient"}  # before there was one
    there = cell["configuration"]
    new = wanted["configuration"].keys() - there.keys()
    then = {**there, **{name: defaults.get(name) for name in new}}
    return cell["data"] == wanted["data"] and effective(then) == effective(wanted["configuration"])


def effective(configuration: dict[str, Any]) -> dict[str, Any]:
    """The same without γ where no anchor is shaped by it, without the scorer where no pair is judged, and without the
    metric where no sum is. An arm's change of what the flags give (study/arms.py) judges by both."""
    unused = set()
    if configuration.get("anchors") is None or configuration.get("anchor_objective") != "shaped":
        unused.add("gamma")
    if not configuration.get("reward"):  # the verifier; it was "" before there could be several
        unused.add("reward")
    changed = configuration.get("change")
    if configuration.get("rectify") == "none" and not changed:
        unused.add("scorer")
    if configuration.get("rectify") in ("none", "threshold") and not changed:
        unused.add("metric")
    return {name: value for name, value in configuration.items() if name not in unused}


def load_cells(file: Path, kind: str = "run") -> Cells:
    """The cells of one kind, variants in the order of FLAGS. Ends the program where they do not compare."""
    cells_of_kind = read_cells(file, kind).values()
    found = [{**with_nan(cell), "configuration": cell["configuration"]} for cell in cells_of_kind]  # None is a setting
    if not found:
        sys.exit(f"study.run: no cells in {file}: run study.run run first.")
    steps = {cell["configuration"]["steps"] for cell in found if cell["variant"] != BASE}
    hashes = {(task_of(cell["variant"]), cell["data"]) for cell in found}
    if len(hashes) > len({task for task, _ in hashes}) or len(steps) > 1:
        sys.exit(
            f"study.run: the cells in {file} are of different questions, models or steps: run study.run run again."
        )
    found.sort(key=lambda cell: cell["seed"])
    cells = {variant: {cell["seed"]: cell for cell in found if cell["variant"] == variant} for variant in FLAGS}
    return {variant: by_seed for variant, by_seed in cells.items() if by_seed}


def warn_of_others(cells: Cells, budget: Budget) -> None:
    """Name on stderr the cells that today's configuration and questions would not make: run would make them anew."""
    requests = [
        (Request("run", variant, seed, cell["learning_rate"], budget), cell)
        for variant, by_seed in cells.items()
        for seed, cell in by_seed.items()
    ]
    others = [request.name for request, cell in requests if not is_made_from(cell, made_from(request))]
    if others:
        print(f"study.run: made from other settings or questions than today's: {', '.join(others)}.", file=sys.stderr)


def of_seeds(cells: Cells, seeds: tuple[int, ...], inside: bool = True) -> Cells:
    """The cells of these seeds, or of all others; without the variants that have none."""
    picked = {
        variant: {seed: cell for seed, cell in by_seed.items() if (seed in seeds) == inside}
        for variant, by_seed in cells.items()
    }
    return {variant: by_seed for variant, by_seed in picked.items() if by_seed}


# ---------------------------------------------------------------------------------------------------------------------
# Learning rates
# ---------------------------------------------------------------------------------------------------------------------


def grid_accuracies(variant: str, budget: Budget, grid: dict[Key, Cell]) -> dict[float, float]:
    """Validation accuracy after training by learning rate, mean over the grid's seeds; rates with all seeds only."""
    accuracies: dict[float, float] = {}
    for rate in budget.learning_rates:
        if all(is_finished(grid, Request("grid", variant, seed, rate, budget)) for seed in budget.grid_seeds):
            cells = [grid[key_of("grid", variant, seed, rate)] for seed in budget.grid_seeds]
            accuracies[rate] = mean([cell["validation"]["accuracy"][-1] for cell in cells])
    return accuracies


def picked_rate(accuracies: dict[float, float]) -> float:
    """The learning rate of the highest accuracy; of equal ones, the smaller."""
    return max(sorted(accuracies), key=lambda rate: accuracies[rate])


def learning_rates(budget: Budget, file: Path, variants: list[str]) -> dict[str, float]:
    """The picked rate of each variant of the grid. Ends the program where the grid has not been run."""
    grid = read_cells(file, "grid")
    rates = {}
    for variant in variants:
        accuracies = grid_accuracies(variant, budget, grid)
        if set(accuracies) == set(budget.learning_rates):
            rates[variant] = picked_rate(accuracies)
        elif budget == QUICK:
            rates[variant] = QUICK_RATE
        else:
            sys.exit(f"study.run: the learning rate of {variant} is not picked yet: run study.run grid first.")
    return rates


# ---------------------------------------------------------------------------------------------------------------------
# One cell
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Print nothing; where the body fails, the end of what it would have printed is in the error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    except Exception as error:
        raise RuntimeError(f"{error!r}, after: {printed.getvalue()[-500:]}") from error


def run_cell(request: Request) -> Cell:
    """Train and measure; what the run prints is shown only where it fails."""
    with silenced():
        return measure_cell(request)


def measure_cell(request: Request) -> Cell:
    """The cell: what made it, its validation curve, its training metrics by step, and its accuracy by benchmark."""
    start = time.perf_counter()
    variant, seed, budget = request.variant, request.seed, request.budget
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks.write_sets(folder, question_sets(budget, task_of(variant)))
        config = configuration(request, folder)
        steps: list[dict[str, Any]] = []
        trained = config.model
        if variant == BASE:
            evaluations = [{"step": 0, **measure(config.model, ["validation"], folder, config.eval_samples, seed)}]
        else:
            train(request, config, folder)
            trained = str(folder / "run" / "model")
            steps = [record for record in read_lines(folder / "run" / "metrics.jsonl") if "step" in record]
            evaluations = read_lines(folder / "run" / "evaluations.jsonl")
        _, tokenizer = rollout.load(trained, "cpu")
        cell = {
            "kind": request.kind,
            "variant": variant,
            "seed": seed,
            "learning_rate": 0.0 if variant == BASE else request.rate,
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
        if request.benchmarks:
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
    return {**rounded(cell), **made_from(request)}


def train(request: Request, config: Config, folder: Path) -> None:
    """Run the training of a cell; where some of its steps are fine-tuning, these first, on questions of their own.

    Each part warms up in the same share of its steps, so that the whole has as many of them as the other variants.
    """
    steps = sft_steps(request)
    if steps:
        warmup = config.warmup / config.steps
        questions = read_lines(folder / "training.jsonl")
        random.Random(request.seed).shuffle(questions)
        first = steps * config.questions
        tasks.write_sets(folder, {"first": questions[:first], "rest": questions[first:]})
        of_sft = {name: getattr(config, name) for name in ("model", "device", "seed", "learning_rate", "questions")}
        dagrpo.train(
            configure(
                **of_sft, **WITH_SOLUTIONS["sft"], steps=steps, warmup=round(warmup * steps),
                max_new_tokens=MAX_NEW_TOKENS, data=[str(folder / "first.jsonl")], out=str(folder / "sft"),
                eval_data=config.eval_data, eval_at_start=False, eval_every=0, eval_samples=1,
            )
        )  # fmt: skip
        config.model, config.data = str(folder / "sft" / "model"), [str(folder / "rest.jsonl")]
        config.steps -= steps
        config.warmup = round(warmup * config.steps)
    arm = ARMS[POSITIVES] if request.variant == POSITIVES else None
    with training_with(arm) if arm else contextlib.nullcontext():
        dagrpo.train(config)


def measure(
    model_path: str,
    names: list[str],
    folder: Path,
    k: int,
    seed: int,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, Any]:
    """evaluate() on the named sets at once; its `levels` are then the sets, not the levels of the questions."""
    model, tokenizer = rollout.load(model_path, "cpu")
    questions = [
        {**question, "level": name} for name in names for question in read_questions([str(folder / f"{name}.jsonl")])
    ]
    return evaluate(model, tokenizer, questions, k=k, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


def right_length(questions: list[dict[str, Any]], tokenizer: Any) -> float:
    """Mean tokens of the right completions, without EOS; NaN where none is right."""
    right = [
        text
        for question in questions
        for text, reward in zip(question["texts"], question["rewards"], strict=True)
        if reward > 0
    ]
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

    def of_a_float(item: Any) -> Any:
        if not isinstance(item, float):
            return item
        return None if math.isnan(item) else float(f"{item:.5g}")

    return each_value(value, of_a_float)


def with_nan(value: Any) -> Any:
    """The same with NaN for None."""
    return each_value(value, lambda item: math.nan if item is None else item)


@functools.cache
def commit() -> str:
    """The commit of the code, with -dirty where files differ from it; `unknown` outside a repository.

    The results do not count: every cell that is kept changes their file, and the code of the next one is the same.
    """
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    try:
        name = git(["git", "describe", "--always", "--abbrev=12", "--exclude=*"]).stdout.strip()
        changed = git(["git", "diff", "--name-only", "HEAD", "--", ".", ":!study/*.jsonl"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


# ---------------------------------------------------------------------------------------------------------------------
# Many cells
# ---------------------------------------------------------------------------------------------------------------------


def run_cells(requests: list[Request], file: Path, workers: int) -> None:
    """Run what is not finished, `workers` cells at once, and keep each; ends the program where some failed."""
    kept = {kind: read_cells(file, kind) for kind in {request.kind for request in requests}}
    missing = [request for request in requests if not is_finished(kept[request.kind], request)]
    print(f"{len(requests) - len(missing)} of {len(requests)} cells are finished.")
    in_workers(run_cell, missing, file, workers)


def in_workers(run: Callable[[Any], dict[str, Any]], missing: list[Any], file: Path, workers: int) -> None:
    """Run what is missing, each of it in a worker process, and keep each result as a line; `name` tells them apart.

    Ends the program where some failed.
    """
    if not missing:
        return
    failed = []
    threads = max(1, torch.get_num_threads() // workers)  # of those that OMP_NUM_THREADS allows
    pool = ProcessPoolExecutor(
        min(workers, len(missing)), multiprocessing.get_context("spawn"), start_worker, (threads,)
    )
    futures: dict[Future[dict[str, Any]], str] = {pool.submit(run, wanted): wanted.name for wanted in missing}
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc="cells", unit="cell", file=sys.stderr):
            if future.exception():
                failed.append(f"{futures[future]}: {future.exception()}")
                tqdm.write(f"failed: {failed[-1]}", file=sys.stderr)
            else:
                append_kept(file, future.result())
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
