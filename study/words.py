"""Does a language model learn? SmolLM2-135M-Instruct on word problems, by the commands that a user types.

    python -m study.words questions --source FOLDER    draw the questions, from files in FOLDER/eval and FOLDER/train
    python -m study.words run --model MODEL            train and measure what is not finished
    python -m study.words report                       the tables, as Markdown

`run` takes up where it stopped: a training goes on from its last checkpoint, an evaluation from its last answer.

Training questions are those of MAWPS and ASDiv, and GSM8K's, which alone have solutions. Held out are 200 questions
each of MAWPS, ASDiv, SVAMP and the test part of GSM8K; a training question that shares half of its runs of four words
with one of them is left out. Every variant takes the same number of steps of 8 questions × 8 completions, with the
same learning rate, and every prompt shows two solved questions first: without them this model talks past the limit of
a completion. `sft-grpo` fine-tunes on the solutions first, in a sixth of its steps, and goes on with GRPO and a new
optimizer. What is measured is the model after the last step. Each training is one line of study/words.jsonl, with how
many of the completions of each held-out question were right.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import checkpoint
from harness.compare import interval_text, mean_difference, points
from harness.results import question_scores, read_results
from questions import read_questions
from study.cells import append_kept, commit, curves, read_kept, rounded
from study.tables import mean, number, table
from study.tasks import ROOT, read_lines, write_sets

FILE = ROOT / "study" / "words.jsonl"
FOLDER = ROOT / "runs" / "words"
EXAMPLES = ROOT / "study" / "words-examples.jsonl"
HELD_OUT = ("mawps", "asdiv", "svamp", "gsm8k_test")
WITHOUT_SOLUTIONS = ("mawps", "asdiv")  # what of the sets is not held out is trained on
WITH_SOLUTIONS = "gsm8k_train"
START = "start"  # the model as it is
VARIANTS: dict[str, list[str]] = {
    START: [],
    "grpo": ["--method", "grpo"],
    "dagrpo": ["--method", "dagrpo"],
    "sft-grpo": ["--method", "grpo"],
}
SEEDS = (500, 501)
SHINGLE, ALIKE = 4, 0.5  # words in a run, and the share of runs in both from which two questions are siblings
LONGEST_SOLUTION = 250  # characters: about 80 tokens, so that an anchor is no longer than a completion may be

Question = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    held_out: int = 200  # of each set
    validation: int = 48
    word_problems: int = 1_200
    with_solutions: int = 400  # a quarter of the training questions: hard for this model, and anchors are for these
    steps: int = 60
    questions: int = 8
    group_size: int = 8
    max_new_tokens: int = 96
    samples: int = 4
    eval_every: int = 20


FULL = Size()
TINY = Size(4, 4, 12, 4, 3, 2, 4, 8, 2, 2)  # to see that all of it runs


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def shingles(problem: str) -> frozenset[tuple[str, ...]]:
    """The runs of four words of a problem, in lower case; a shorter one is a run by itself."""
    words = re.findall(r"\w+", problem.lower())
    return frozenset(tuple(words[n : n + SHINGLE]) for n in range(max(1, len(words) - SHINGLE + 1)))


def are_siblings(one: frozenset[Any], other: frozenset[Any]) -> bool:
    """Do two questions share half of their runs of words? The shorter one counts."""
    return len(one & other) >= ALIKE * min(len(one), len(other))


def draw(sets: dict[str, list[Question]], size: Size) -> dict[str, list[Question]]:
    """Held-out questions by set, and `training` and `validation`, in which no sibling of a held-out question is.

    Questions are drawn with a fixed seed. A problem that comes twice is there once.
    """
    rng = random.Random(0)
    drawn: dict[str, list[Question]] = {}
    seen: set[frozenset[Any]] = set()

    def new_ones(questions: list[Question]) -> list[Question]:
        found = []
        for question in rng.sample(questions, len(questions)):
            key = shingles(question["problem"])
            if key not in seen:
                seen.add(key)
                found.append(question)
        return found

    rest = {}
    for name in HELD_OUT:
        every = new_ones(sets[name])
        drawn[name], rest[name] = every[: size.held_out], every[size.held_out :]
    held_out = [shingles(question["problem"]) for name in HELD_OUT for question in drawn[name]]
    by_run: dict[tuple[str, ...], list[int]] = {}
    for place, runs in enumerate(held_out):
        for run in runs:
            by_run.setdefault(run, []).append(place)

    def is_apart(question: Question) -> bool:
        own = shingles(question["problem"])
        near = {place for run in own for place in by_run.get(run, [])}
        return not any(are_siblings(own, held_out[place]) for place in near)

    words = [question for name in WITHOUT_SOLUTIONS for question in rest[name] if is_apart(question)]
    solved = [
        question
        for question in new_ones(sets[WITH_SOLUTIONS])
        if len(question["solution"]) <= LONGEST_SOLUTION and is_apart(question)
    ]
    rng.shuffle(words)
    share = size.word_problems / (size.word_problems + size.with_solutions)
    of_words = round(size.validation * share)
    drawn["validation"] = words[:of_words] + solved[: size.validation - of_words]
    drawn["training"] = words[of_words:][: size.word_problems]
    drawn["training"] += solved[size.validation - of_words :][: size.with_solutions]
    drawn["solved"] = [question for question in drawn["training"] if question["solution"]]
    return drawn


def without_place(question: Question) -> Question:
    """The question without the file and line that it was read from."""
    return {name: value for name, value in question.items() if name != "where"}


def questions(arguments: argparse.Namespace, size: Size) -> None:
    """Draw the questions, write them, and say how many there are."""
    files = {name: Path(arguments.source) / "eval" / f"{name}.jsonl" for name in HELD_OUT}
    files[WITH_SOLUTIONS] = Path(arguments.source) / "train" / f"{WITH_SOLUTIONS}.jsonl"
    absent = [str(file) for file in files.values() if not file.is_file()]
    if absent:
        sys.exit(f"study.words: --source {arguments.source}: there is no {', no '.join(absent)}.")
    sets = {name: read_questions([str(file)]) for name, file in files.items()}
    drawn = draw({name: [without_place(question) for question in found] for name, found in sets.items()}, size)
    folder = arguments.folder / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    write_sets(folder, drawn)
    print(f"{folder}: " + ", ".join(f"{len(own)} {name}" for name, own in drawn.items()))


# ---------------------------------------------------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------------------------------------------------


def command(program: str, *arguments: object) -> None:
    """Run a program of this project, and end with it where it fails."""
    line = [sys.executable, str(ROOT / program), *map(str, arguments)]
    print(" ".join(["$ python", program, *line[2:]]), flush=True)
    code = subprocess.run(line, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"study.words: {program} ended with {code}. The same command takes up where it stopped.")


def train(folder: Path, arguments: list[object], steps: int) -> None:
    """Train into `folder` until step `steps`, from its last checkpoint where there is one."""
    there, _ = checkpoint.newest(folder)
    if there is not None:
        if there.step < steps:
            command("dagrpo.py", "--resume", folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that ended before its first checkpoint
        command("dagrpo.py", "--out", folder, "--steps", steps, *arguments)


def trained(variant: str, seed: int, arguments: argparse.Namespace, size: Size) -> tuple[str, list[Path]]:
    """The model after the training, and the folders of its runs, the first one first."""
    if variant == START:
        return arguments.model, []
    of_questions = arguments.folder / "questions"
    common: list[object] = [
        "--eval-data", of_questions / "validation.jsonl", "--seed", seed, "--learning-rate", arguments.learning_rate,
        "--questions", size.questions, "--max-new-tokens", size.max_new_tokens, "--save-every", 5,
        "--eval-every", size.eval_every, "--examples", EXAMPLES,
    ]  # fmt: skip
    run, first, steps = arguments.folder / f"{variant}-{seed}", [], size.steps
    model = arguments.model
    if variant == "sft-grpo":
        first = [arguments.folder / f"{variant}-{seed}-first"]
        of_first = max(1, size.steps // 6)
        steps -= of_first
        flags = ["--method", "sft", "--model", model, "--data", of_questions / "solved.jsonl", *common]
        train(first[0], flags, of_first)
        model = str(first[0] / "model")
    flags = ["--model", model, "--data", of_questions / "training.jsonl", "--group-size", size.group_size, *common]
    train(run, [*VARIANTS[variant], *flags], steps)
    return str(run / "model"), [*first, run]


def run(arguments: argparse.Namespace, size: Size) -> None:
    """Train and measure every variant with every seed that is not finished, all variants of a seed before the next."""
    if not (arguments.folder / "questions" / "training.jsonl").is_file():
        sys.exit("study.words: there are no questions yet: run study.words questions first.")
    for seed in arguments.seeds:
        for variant in arguments.variants:
            finished = {(line["variant"], line["seed"]) for line in read_kept(arguments.cells)}
            key = (variant, SEEDS[0] if variant == START else seed)
            if key not in finished:
                append_kept(arguments.cells, measured(*key, arguments, size))


def measured(variant: str, seed: int, arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    """The line of a training: what made it, how it went by step, and the right completions of each question."""
    model, folders = trained(variant, seed, arguments, size)
    result = arguments.folder / f"{variant}-{seed}.json"
    files = [arguments.folder / "questions" / f"{name}.jsonl" for name in HELD_OUT]
    command(
        "evaluate.py", "--model", model, "--data", *files, "--samples", size.samples, "--max-new-tokens",
        size.max_new_tokens, "--examples", EXAMPLES, "--out", result,
    )  # fmt: skip
    steps = [record for folder in folders for record in read_lines(folder / "metrics.jsonl") if "step" in record]
    results = read_results(result)
    return rounded(
        {
            "variant": variant,
            "seed": seed,
            "commit": commit(),
            "model": Path(arguments.model).name,
            "learning_rate": arguments.learning_rate,
            "flags": VARIANTS[variant],
            "steps": len(steps),
            "training_seconds": sum(curves(steps).get("seconds", [])),
            "peak_memory_gb": max((step["peak_memory_gb"] for step in steps), default=0.0),
            "curves": curves(steps) | witness(steps),
            "validation": [
                [record["step"], record["accuracy"]]
                for record in (read_lines(folders[-1] / "evaluations.jsonl") if folders else [])
            ],
            "right": {
                name: [round(score * size.samples) for score in question_scores(results[name]).tolist()]
                for name in HELD_OUT
            },
            "no_answer": {name: results[name]["no_answer"] for name in HELD_OUT},
            "length": {name: results[name]["length"] for name in HELD_OUT},
            "samples": size.samples,
        }
    )


def witness(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By step, what share of better completions their own group's update lowers, before masking and after."""
    names = ("displaced", "displaced_left", "displaced_by_batch")
    return {
        name: [step[name] for step in steps if name in step] for name in names if any(name in step for step in steps)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def shares(line: dict[str, Any], name: str) -> np.ndarray:
    """Of each question of a held-out set the share of right completions. (Q,)"""
    return np.array(line["right"][name]) / line["samples"]


def difference(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """Ours minus others in points, all sets of one weight, paired by question, each the mean over its seeds."""

    def of(lines: list[dict[str, Any]], name: str) -> np.ndarray:
        return np.mean([shares(line, name) for line in lines], axis=0)

    found = mean_difference([of(ours, name) - of(others, name) for name in HELD_OUT])
    return f"{points(found.mean, True)} ({interval_text(found, True)}), p = {found.p:.2g}"


def report(arguments: argparse.Namespace, size: Size) -> None:
    """Print accuracy by set, and differences paired by question."""
    print(tables(read_kept(arguments.cells)))


def tables(lines: list[dict[str, Any]]) -> str:
    """As Markdown: accuracies in percent, then differences in points, all sets of one weight."""
    by_variant = {name: [line for line in lines if line["variant"] == name] for name in VARIANTS}
    by_variant = {name: found for name, found in by_variant.items() if found}
    rows = []
    for name, found in by_variant.items():
        own = [100 * mean([float(shares(line, each).mean()) for line in found]) for each in HELD_OUT]
        absent = [100 * mean(list(line["no_answer"].values())) for line in found]
        hours = [line["training_seconds"] / 3600 for line in found]
        rows.append(
            [name, str(len(found)), *map(number, own), number(mean(own)), number(mean(absent)), f"{mean(hours):.1f}"]
        )
    head = ["variant", "seeds", *HELD_OUT, "mean", "no answer", "hours"]
    said = [table(head, rows)]
    pairs = [(name, START) for name in by_variant if name != START]
    pairs += [("dagrpo", "grpo"), ("dagrpo", "sft-grpo")]
    for ours, others in pairs:
        if ours in by_variant and others in by_variant:
            said.append(f"{ours} minus {others}: {difference(by_variant[ours], by_variant[others])}")
    return "\n\n".join(said)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.words", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("questions", "run", "report"))
    parser.add_argument("--source", default="data", help="folder of the sets that questions are drawn from")
    parser.add_argument("--model", help="Hub name, directory or .gguf file of SmolLM2-135M-Instruct")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="of every variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="some of them only")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the trainings")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the runs")
    parser.add_argument("--cells", type=Path, default=FILE, help="where results are kept")
    parser.add_argument("--tiny", action="store_true", help="a few questions and steps, to see that all of it runs")
    options = parser.parse_args(arguments)
    if options.command == "run" and not options.model:
        parser.error("--model is missing: name SmolLM2-135M-Instruct, as a Hub name, a directory or a .gguf file.")
    commands = {"questions": questions, "run": run, "report": report}
    commands[options.command](options, TINY if options.tiny else FULL)


if __name__ == "__main__":
    main()
