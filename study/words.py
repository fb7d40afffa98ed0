"""Does a language model learn? SmolLM2-135M-Instruct on word problems, by the commands that a user types.

    python -m study.words questions --source FOLDER    draw the questions, from the benchmarks' files in FOLDER
    python -m study.words run --model MODEL            train and measure what is not finished
    python -m study.words report                       the tables, as Markdown
    python -m study.words figure                       the trainings as they went, drawn into docs/

`run` takes up where it stopped: a training goes on from its last checkpoint, an evaluation from its last answer.

The questions are those of MAWPS, ASDiv and SVAMP that this model can learn: two whole numbers up to 20, to be added or
subtracted. The sets have answers and no solutions; here a solution follows from the two numbers and the answer, such as
`7 + 5 = \\boxed{12}`, and is there for every method that uses one. Trained on are word problems of MAWPS and ASDiv, and
as many bare sums (examples/sums), as the model cannot add at its start. Held out are 60 questions of each set; a
training question that shares half of its runs of four words with one of them is left out, and nothing of SVAMP is
trained on. Measured too are 200 questions of each set and of GSM8K's test set as they are, whatever they ask; of these
sets those are left out that share as much with a question that is trained on.

Every variant takes the same number of steps of 8 questions, and every prompt shows two solved questions first: without
them this model talks past the limit of a completion. `sft` imitates the 8 solutions of a step, all others sample 8
completions of each question; `sft-grpo` fine-tunes in a sixth of its steps, and goes on with GRPO and a new optimizer.
`dagrpo-chance` masks as many pairs as DaGRPO would, drawn by chance: what is gained there, the rule did not gain.
What is measured is the model after the last step. Each training is one line of study/words.jsonl, with how many of the
completions of each question that was measured were right. `--learning-rates` runs at others too; `report` then takes,
of each variant, the one that ends best on the validation set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import checkpoint
from harness.compare import Difference, interval_text, mean_difference, points
from harness.results import Result, question_scores, read_results
from questions import read_questions
from study.cells import append_kept, commit, curves, read_kept, rounded
from study.figures import WORDS_FIGURES
from study.figures import draw as draw_figures
from study.tables import mean, number, table, with_interval
from study.tasks import ROOT, Question, read_lines, write_sets
from study.word_questions import HELD_OUT, WHOLE, draw, draw_whole

FILE = ROOT / "study" / "words.jsonl"
FOLDER = ROOT / "runs" / "words"
TINY_FOLDER = ROOT / "runs" / "words-tiny"  # with its results: a tiny one is never taken for a whole one
EXAMPLES = ROOT / "study" / "words-examples.jsonl"
PROMPT = ROOT / "examples" / "sums" / "prompt.txt"  # the question alone: the examples show what is asked for
SUMS = ROOT / "examples" / "sums" / "train.jsonl"
START = "start"  # the model as it is
VARIANTS: dict[str, list[str]] = {
    START: [],
    "dagrpo": ["--method", "dagrpo"],
    "grpo": ["--method", "grpo"],
    "sft": ["--method", "sft", "--group-size", "1"],  # the solution of each question, once
    "sft-grpo": ["--method", "grpo"],
    "dagrpo-no-mask": ["--method", "dagrpo", "--rectify", "none"],
    "dagrpo-chance": ["--method", "dagrpo"],  # as many pairs of each group are masked, but drawn by chance
    "dagrpo-group": ["--method", "dagrpo", "--rectify", "group"],
}
CHANGES = {"dagrpo-chance": "chance"}  # of study.arms: what no flag says
RATE = 1e-5  # at 3e-5, validation accuracy falls from 75.0 % after 20 steps to 38.8 % after 60 (GRPO)
SEEDS = (500, 501, 502, 503)


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    held_out: int = 60  # of each set
    whole: int = 200  # of each set as it is
    validation: int = 40
    steps: int = 60
    questions: int = 8
    group_size: int = 8
    max_new_tokens: int = 24  # a right completion has 11 tokens
    whole_tokens: int = 64  # of questions that may need more
    samples: int = 4
    eval_every: int = 20


@dataclass(frozen=True)
class Wanted:
    """One training."""

    variant: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.rate:g}-{self.seed}" if self.rate else self.variant


FULL = Size()
TINY = Size(4, 4, 4, 3, 2, 4, 8, 10, 2, 2)  # to see that all of it runs


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def without_place(question: Question) -> Question:
    """The question without the file and line that it was read from."""
    return {name: value for name, value in question.items() if name != "where"}


def questions(arguments: argparse.Namespace, size: Size) -> None:
    """Draw the questions, write them, and say how many there are."""
    files = {name: Path(arguments.source) / f"{name}.jsonl" for name in WHOLE}
    absent = [str(file) for file in files.values() if not file.is_file()]
    if absent:
        sys.exit(f"study.words: --source {arguments.source}: there is no {', no '.join(absent)}.")
    sets = {name: [without_place(question) for question in read_questions([str(file)])] for name, file in files.items()}
    drawn = draw(sets, read_lines(SUMS), size.held_out, size.validation)
    whole = draw_whole(sets, drawn["training"] + drawn["validation"], size.whole)
    drawn |= {f"whole-{name}": own for name, own in whole.items()}
    folder = arguments.folder / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    write_sets(folder, drawn)
    print(f"{folder}: " + ", ".join(f"{len(own)} {name}" for name, own in drawn.items()))


# ---------------------------------------------------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------------------------------------------------


def command(*words: object) -> None:
    """Run Python with these words, a program of this project first, and end with it where it fails."""
    line = [sys.executable, *map(str, words)]
    print(" ".join(["$ python", *line[1:]]), flush=True)
    code = subprocess.run(line, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"study.words: this ended with {code}. The same command takes up where it stopped.")


def train(folder: Path, variant: str, arguments: list[object], steps: int) -> None:
    """Train into `folder` until step `steps`, from its last checkpoint where there is one."""
    program = ["-m", "study.arms", CHANGES[variant]] if variant in CHANGES else ["dagrpo.py"]
    there, _ = checkpoint.newest(folder)
    if there is not None:
        if there.step < steps:
            command(*program, "--resume", folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that ended before its first checkpoint
        command(*program, "--out", folder, "--steps", steps, *arguments)


def flags_of(variant: str, arguments: argparse.Namespace, size: Size, rate: float, steps: int) -> list[object]:
    """The training of a variant, but for its seed. It warms up in a sixth of the steps that it takes."""
    of_questions = arguments.folder / "questions"
    sampled: list[object] = [] if variant == "sft" else ["--group-size", size.group_size]
    return [
        *VARIANTS[variant], *sampled, "--data", of_questions / "training.jsonl",
        "--eval-data", of_questions / "validation.jsonl", "--questions", size.questions, "--learning-rate", rate,
        "--warmup", max(1, steps // 6), "--max-new-tokens", size.max_new_tokens, "--examples", EXAMPLES,
        "--prompt-file", PROMPT, "--save-every", 10, "--eval-every", size.eval_every, "--eval-samples", size.samples,
        "--no-eval-at-start",
    ]  # fmt: skip


def trained(wanted: Wanted, arguments: argparse.Namespace, size: Size) -> tuple[str, list[Path]]:
    """The model after the training, and the folders of its runs, the first one first."""
    if wanted.variant == START:
        return arguments.model, []
    model, folders, steps = arguments.model, [], size.steps
    if wanted.variant == "sft-grpo":
        of_first = max(1, size.steps // 6)
        steps -= of_first
        folders.append(arguments.folder / f"{wanted.name}-first")
        flags = flags_of("sft", arguments, size, wanted.rate, of_first)
        other_order = wanted.seed + 1_000  # so that GRPO does not begin with the questions that were just imitated
        train(folders[0], "sft", ["--model", model, "--seed", other_order, *flags], of_first)
        model = str(folders[0] / "model")
    folders.append(arguments.folder / wanted.name)
    flags = flags_of(wanted.variant, arguments, size, wanted.rate, steps)
    train(folders[-1], wanted.variant, ["--model", model, "--seed", wanted.seed, *flags], steps)
    return str(folders[-1] / "model"), folders


def made_from(arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    """What a training and its measurement depend on, beside its variant, seed and rate; of the model its name."""
    digest = hashlib.sha256()
    for name in ("training", "validation", *HELD_OUT):
        digest.update((arguments.folder / "questions" / f"{name}.jsonl").read_bytes())
    return {"model": Path(arguments.model).name, "size": asdict(size), "questions": digest.hexdigest()[:16]}


def check_folder(folder: Path, made: dict[str, Any]) -> None:
    """End the program where the folder's runs were made from something else: they would be gone on with."""
    file = folder / "made-from.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != made:
        sys.exit(f"study.words: the runs in {folder} are of another model, other questions or another size: "
                 "give another --folder, or delete them.")  # fmt: skip
    file.write_text(json.dumps(made) + "\n", encoding="utf-8")


def run(arguments: argparse.Namespace, size: Size) -> None:
    """Train and measure every variant with every seed that is not finished, all variants of a seed before the next."""
    if not (arguments.folder / "questions" / "training.jsonl").is_file():
        sys.exit("study.words: there are no questions yet: run study.words questions first.")
    made = made_from(arguments, size)
    check_folder(arguments.folder, made)
    for seed in arguments.seeds:
        for rate in arguments.learning_rates:
            for variant in arguments.variants:
                wanted = Wanted(START, SEEDS[0], 0.0) if variant == START else Wanted(variant, seed, rate)
                kept = {
                    (line["variant"], line["seed"], line["learning_rate"])
                    for line in read_kept(arguments.cells)
                    if {name: line.get(name) for name in made} == made
                }
                if (wanted.variant, wanted.seed, wanted.rate) not in kept:
                    append_kept(arguments.cells, {**measured(wanted, arguments, size), **made})


def measured(wanted: Wanted, arguments: argparse.Namespace, size: Size) -> dict[str, Any]:
    """The line of a training: how it went by step, and the right completions of each question."""
    commit.cache_clear()  # each training is a program of its own, of the code that is there when it starts
    started_at = commit()
    model, folders = trained(wanted, arguments, size)
    results = evaluated(model, wanted.name, HELD_OUT, size.max_new_tokens, arguments, size)
    as_they_are = {}
    if not arguments.held_out_only:
        sets = [f"whole-{name}" for name in WHOLE]
        whole = evaluated(model, f"{wanted.name}-whole", sets, size.whole_tokens, arguments, size)
        as_they_are = {"whole": {name: right_of(whole[f"whole-{name}"], size) for name in WHOLE}}
    steps = [record for folder in folders for record in read_lines(folder / "metrics.jsonl") if "step" in record]
    return rounded(
        {
            "variant": wanted.variant,
            "seed": wanted.seed,
            "commit": started_at,
            "learning_rate": wanted.rate,
            "flags": VARIANTS[wanted.variant],
            "steps": len(steps),
            "training_seconds": sum(curves(steps).get("seconds", [])),
            "peak_memory_gb": max((step["peak_memory_gb"] for step in steps), default=0.0),
            "curves": curves(steps) | by_step(steps),
            "validation": [
                [record["step"], record["accuracy"]]
                for record in (read_lines(folders[-1] / "evaluations.jsonl") if folders else [])
            ],
            "right": {name: right_of(results[name], size) for name in HELD_OUT},
            **as_they_are,
            "no_answer": {name: results[name]["no_answer"] for name in HELD_OUT},
            "length": {name: results[name]["length"] for name in HELD_OUT},
            "samples": size.samples,
        }
    )


def evaluated(
    model: str, name: str, sets: Sequence[str], max_new_tokens: int, arguments: argparse.Namespace, size: Size
) -> dict[str, Result]:
    """The model's result on sets of questions, by set; kept in the folder of the runs under the given name."""
    result = arguments.folder / f"{name}.json"
    files = [arguments.folder / "questions" / f"{each}.jsonl" for each in sets]
    command(
        "evaluate.py", "--model", model, "--data", *files, "--samples", size.samples, "--max-new-tokens",
        max_new_tokens, "--examples", EXAMPLES, "--prompt-file", PROMPT, "--out", result,
    )  # fmt: skip
    return read_results(result)


def right_of(result: Result, size: Size) -> list[int]:
    """Of each question, how many completions are right. (Q,)"""
    return [round(score * size.samples) for score in question_scores(result).tolist()]


def by_step(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Reward, and what share of better completions the update lowers, before masking and after; NaN where a step has
    none, as those of fine-tuning."""
    names = ("reward", "displaced", "displaced_left", "displaced_by_batch", "displaced_by_batch_left")
    return {name: [step.get(name, math.nan) for step in steps] for name in names if any(name in step for step in steps)}


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def shares(lines: list[dict[str, Any]], name: str, kind: str) -> np.ndarray:
    """Of each question of a set the share of right completions, over the seeds; `kind` is right or whole. (Q,)"""
    return np.mean([np.array(line[kind][name]) / line["samples"] for line in lines], axis=0)


def percentages(lines: list[dict[str, Any]], kind: str) -> list[float]:
    """Of each set the percentage of right completions, over the seeds."""
    return [100 * float(shares(lines, name, kind).mean()) for name in lines[0][kind]]


def paired(ours: list[dict[str, Any]], others: list[dict[str, Any]], kind: str = "right") -> Difference:
    """Ours minus others, all sets of one weight, paired by question, each the mean over its seeds."""
    return mean_difference([shares(ours, name, kind) - shares(others, name, kind) for name in ours[0][kind]])


def of_same_seeds(
    ours: list[dict[str, Any]], others: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those trainings of each that have a seed which the other has too: a seed's questions come in one order."""
    seeds = {line["seed"] for line in ours} & {line["seed"] for line in others}
    return [line for line in ours if line["seed"] in seeds], [line for line in others if line["seed"] in seeds]


def difference(ours: list[dict[str, Any]], others: list[dict[str, Any]], kind: str = "right") -> str:
    """The same in points, with its interval over questions."""
    found = paired(ours, others, kind)
    return f"{points(found.mean, True)} ({interval_text(found, True)})"


def by_seed(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """The same for each seed, of trainings with the same ones, where there are several; and over seeds, with what
    another one would change."""
    apart = {line["seed"]: line for line in others}
    found = [paired([line], [apart[line["seed"]]]).mean for line in ours]
    if len(found) < 2:
        return ""
    return f"; by seed {', '.join(points(each, True) for each in found)}: {with_interval(np.array(found))}"


def report(arguments: argparse.Namespace, size: Size) -> None:
    """Print accuracy by set, and differences paired by question."""
    print(tables(newest(arguments.cells)))


def figure(arguments: argparse.Namespace, size: Size) -> None:
    """Draw the trainings as they went."""
    for path in draw_figures(at_picked_rates(newest(arguments.cells)), arguments.out, WORDS_FIGURES):
        print(path)


def newest(file: Path) -> list[dict[str, Any]]:
    """Of each training the last line: an earlier one was made from something else."""
    return list({(line["variant"], line["seed"], line["learning_rate"]): line for line in read_kept(file)}.values())


def at_picked_rates(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each variant the trainings at the rate with which it ended best on the validation set; of equal, the lower."""
    found = [line for line in lines if line["variant"] == START]
    for name in VARIANTS:
        own = [line for line in lines if line["variant"] == name != START]
        rates = sorted({line["learning_rate"] for line in own})
        ends = {
            rate: mean([line["validation"][-1][1] for line in own if line["learning_rate"] == rate]) for rate in rates
        }
        found += [line for line in own if line["learning_rate"] == max(rates, key=lambda rate: ends[rate])]
    return found


def mean_of(curves_of: list[dict[str, Any]], name: str) -> float:
    """Of a figure over the steps that have it (None: it has not), and the trainings; NaN where none has."""
    values = np.array([value for each in curves_of for value in each.get(name, [])], dtype=float)
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else math.nan


def tables(lines: list[dict[str, Any]]) -> str:
    """As Markdown: each training as it went, then held-out accuracy and differences in points at the picked rates.

    Accuracies and shares of displaced completions are in percent, entropies in nats; all sets have one weight.
    """
    rows = []
    for name, rate in sorted({(line["variant"], line["learning_rate"]) for line in lines if line["learning_rate"]}):
        found = [line for line in lines if (line["variant"], line["learning_rate"]) == (name, rate)]
        accuracies = np.mean([[accuracy for _, accuracy in line["validation"]] for line in found], axis=0)
        on_the_way = ", ".join(number(100 * value) for value in accuracies)
        curves_of = [line["curves"] for line in found]
        shown = [mean_of(curves_of, key) for key in ("displaced", "displaced_left", "displaced_by_batch", "entropy")]
        figures = [*(number(100 * share) for share in shown[:3]), f"{shown[3]:.2f}"]
        held_out = number(mean(percentages(found, "right")))
        rows.append([name, f"{rate:g}", str(len(found)), on_the_way, held_out, *figures])
    head = ["variant", "rate", "seeds", "validation", "held out", "displaced", "left", "by the batch", "entropy"]
    said = [table(head, rows)]
    picked = at_picked_rates(lines)
    by_variant = {name: [line for line in picked if line["variant"] == name] for name in VARIANTS}
    by_variant = {name: found for name, found in by_variant.items() if found}
    said.append(accuracy_table(by_variant, "right"))
    if ours := by_variant.get("dagrpo"):
        for name, found in by_variant.items():
            own, others = of_same_seeds(ours, found)
            if name not in (START, "dagrpo") and own:
                said.append(f"dagrpo minus {name}: {difference(own, others)}{by_seed(own, others)}")
    if any("whole" in line for line in picked):
        said.append(accuracy_table(by_variant, "whole"))
    return "\n\n".join(said)


def accuracy_table(by_variant: dict[str, list[dict[str, Any]]], kind: str) -> str:
    """A line for each variant: accuracy by set, their mean, the difference to the start; `kind` is right or whole.

    With the right ones what a training takes, minutes, the mean over its seeds, and gigabytes of memory, the most; and
    the mean of each seed.
    """
    measured = {name: [line for line in found if kind in line] for name, found in by_variant.items()}
    by_variant = {name: found for name, found in measured.items() if found}
    sets = HELD_OUT if kind == "right" else WHOLE
    rows = []
    for name, found in by_variant.items():
        own = percentages(found, kind)
        ahead = difference(found, by_variant[START], kind) if START in by_variant and name != START else "–"
        row = [name, f"{found[0]['learning_rate']:g}", str(len(found)), *map(number, own), number(mean(own)), ahead]
        if kind == "right":
            minutes = mean([line["training_seconds"] / 60 for line in found])
            row += [f"{minutes:.0f}", number(max(line["peak_memory_gb"] for line in found))]
            row.append(", ".join(number(mean(percentages([line], kind))) for line in found))
        rows.append(row)
    head = ["rate", "seeds", *sets, "mean", "minus start"]
    if kind == "right":
        return table(["variant, held out", *head, "minutes", "GB", "mean by seed"], rows)
    return table(["variant, whole sets", *head], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.words", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("questions", "run", "report", "figure"))
    parser.add_argument("--source", default="data", help="folder of mawps, asdiv, svamp and gsm8k_test .jsonl")
    parser.add_argument("--model", help="Hub name, directory or .gguf file of SmolLM2-135M-Instruct")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[RATE], help="each with every variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="some of them only")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the trainings")
    parser.add_argument("--held-out-only", action="store_true", help="do not measure the sets as they are")
    parser.add_argument("--folder", type=Path, help="of the runs: runs/words, or runs/words-tiny with --tiny")
    parser.add_argument("--cells", type=Path, help="where results are kept: study/words.jsonl, or in the tiny folder")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the figure")
    parser.add_argument("--tiny", action="store_true", help="a few questions and steps, to see that all of it runs")
    options = parser.parse_args(arguments)
    if options.command == "run" and not options.model:
        parser.error("--model is missing: name SmolLM2-135M-Instruct, as a Hub name, a directory or a .gguf file.")
    options.folder = options.folder or (TINY_FOLDER if options.tiny else FOLDER)
    options.cells = options.cells or (TINY_FOLDER / FILE.name if options.tiny else FILE)
    commands = {"questions": questions, "run": run, "report": report, "figure": figure}
    commands[options.command](options, TINY if options.tiny else FULL)


if __name__ == "__main__":
    main()
