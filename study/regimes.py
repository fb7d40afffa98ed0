"""Does taking conflict out of the update help where negatives do harm? Arms of study/arms.py, under four regimes.

    python -m study.regimes run R0 --workers 2     every arm with every seed that is not finished
    python -m study.regimes report R0              the table, as Markdown
    python -m study.regimes run R0 --quick         a tiny version

The regimes, each of GRPO with a constant loss norm (but for R3-sequence), without anchors, on the embedded task:

    R0           no momentum (--beta1 0), 20 steps of 24 questions × 8 completions
    R0-0.9       the same with the usual momentum
    R1-24        60 further steps from a model that has had 20, with another seed: questions that are nearly solved
    R1-4         the same with 4 questions a step
    R2-E         a batch gone through E times (--epochs), E = 1, 2, 4, 8, 10 steps, and R2-E-unclipped
    R2-1-long    a batch gone through once, in 40 steps: as many updates as R2-4 has, at the same rates
    R3           completions of 130 to 230 tokens that are nearly alike, from the model of study/near_copies.py: 16
                 steps of 8 questions × 8 completions at 1e-4
    R3-sequence  the same, with the loss of each completion divided by its own tokens (--loss-norm sequence)
    R3-high      12 steps at 4e-4, the rate of R0 and R2

Seeds, arms, steps and learning rates were fixed before the first run, with these exceptions. The mask by a threshold
and the placebos of R2 were added when 11 of its runs had been seen. A pilot of R3 had three runs with another seed: at
1e-4 GRPO learns, at 4e-4 it does not. R3-high came first, under the name R3; its arms with full gradients were added
after one run. R3, with the same seeds, was added when 15 runs of R3-high had been seen, R2-1-long after all of R2.

A run is kept as one line of study/regimes.jsonl and is run again only where its configuration or the questions have
changed. Each takes one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import dagrpo
from harness.config import EXAMPLE, Config, configure
from study import near_copies, tasks
from study.arms import ARMS, training_with
from study.cells import commit, in_workers, is_made_from, measure, read_kept, rounded, silenced
from study.tables import mean, number, of_unequal_seeds, paired_differences, table, with_interval
from study.tasks import ROOT, Question, read_lines
from study.variants import FULL, MAX_NEW_TOKENS, QUICK, Budget, data_hash, question_sets

FILE = ROOT / "study" / "regimes.jsonl"
QUICK_FILE = ROOT / "runs" / "regimes-quick.jsonl"
STARTS = ROOT / "runs" / "regimes"  # models that R1 starts from
PASSES = 8  # the k of pass@k, measured at the end
SPIKE = 10  # times the median of its run: from there on the norm of a gradient counts as an explosion
EVALUATIONS = 4  # along a run, beside the one at its start


@dataclass(frozen=True)
class Regime:
    """What all arms have in common."""

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    flags: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    questions: int = 24
    start: int = 0  # steps of GRPO before the first one, with the same seed
    learning_rate: float = 4e-4
    near_copies: bool = False  # model and questions of study/near_copies.py


CHEAP_ARMS = (
    "none", "positives", "pair", "group", "group, by chance", "batch", "batch, by chance", "token", "shrink group",
    "shrink batch", "shrink batch, optimizer", "shrink batch, optimizer, by chance",
)  # fmt: skip
ARMS_OF_R0 = (
    "threshold", "threshold, by chance", "group, optimizer", "batch, optimizer", "shrink batch, by chance",
    "shrink group, optimizer", "full group", "full batch, optimizer", "full shrink batch, optimizer",
)  # fmt: skip
EPOCH_ARMS = (
    "none", "positives", "group", "shrink batch", "shrink batch, by chance", "threshold", "threshold, by chance",
)  # fmt: skip
LONG_ARMS = (
    "none", "positives", "full threshold", "full threshold, by chance", "threshold", "threshold, by chance",
    "group", "group, by chance", "pair",
)  # fmt: skip
REGIMES = {
    "R0": Regime(tuple(range(300, 316)), CHEAP_ARMS + ARMS_OF_R0, {"beta1": 0.0}),
    "R0-0.9": Regime(tuple(range(300, 316)), CHEAP_ARMS),
    "R1-24": Regime(tuple(range(320, 336)), CHEAP_ARMS, steps=60, start=20, learning_rate=2e-4),
    "R1-4": Regime(tuple(range(320, 336)), CHEAP_ARMS, steps=60, questions=4, start=20, learning_rate=2e-4),
    **{
        f"R2-{epochs}{ending}": Regime(tuple(range(340, 348)), EPOCH_ARMS, {"epochs": epochs, **flags}, steps=10)
        for epochs in (1, 2, 4, 8)
        for ending, flags in (("", {}), ("-unclipped", {"clip_low": None, "clip_high": None}))
        if epochs > 1 or not ending
    },
    "R2-1-long": Regime(tuple(range(340, 348)), EPOCH_ARMS, steps=40),
    **{
        name: Regime(tuple(range(350, 358)), LONG_ARMS, flags, steps, 8, learning_rate=rate, near_copies=True)
        for name, flags, steps, rate in (
            ("R3", {}, 16, 1e-4),
            ("R3-sequence", {"loss_norm": "sequence"}, 16, 1e-4),
            ("R3-high", {}, 12, 4e-4),
        )
    },
}


@dataclass(frozen=True)
class Run:
    """One training that is wanted."""

    regime: str
    arm: str
    seed: int
    quick: bool

    @property
    def name(self) -> str:
        return f"{self.regime}, {self.arm}, seed {self.seed}"

    @property
    def budget(self) -> Budget:
        return QUICK if self.quick else FULL


def configuration(run: Run, folder: Path) -> Config:
    """The training, on the questions in `folder`."""
    regime, quick = REGIMES[run.regime], run.quick
    steps = 2 if quick else regime.steps
    return configure(
        **{
            "model": str(EXAMPLE), "method": "grpo", "loss_norm": "constant", "data": [str(folder / "training.jsonl")],
            "eval_data": [str(folder / "validation.jsonl")], "out": str(folder / "run"), "device": "cpu",
            "seed": run.seed, "learning_rate": regime.learning_rate, "steps": steps,
            "questions": 4 if quick else regime.questions, "group_size": 4 if quick else 8,
            "max_new_tokens": max_new_tokens(regime), "eval_every": max(1, steps // EVALUATIONS), "eval_samples": 2,
            "eval_temperature": 1.0, **regime.flags, **ARMS[run.arm].flags,
        }
    )  # fmt: skip


def max_new_tokens(regime: Regime) -> int:
    return near_copies.MAX_NEW_TOKENS if regime.near_copies else MAX_NEW_TOKENS


def questions_of(run: Run) -> dict[str, list[Question]]:
    """Those to train on, and those of validation."""
    sets = question_sets(run.budget, "")
    return near_copies.of_levels(sets) if REGIMES[run.regime].near_copies else sets


def made_from(run: Run) -> dict[str, Any]:
    """What a run depends on: settings without paths, what it starts from, its arm, and a hash of model and data."""
    configured = configuration(run, Path())
    config = asdict(configured)
    config["threshold"] = configured.resolved_threshold if configured.rectify == "threshold" else None
    for path in ("model", "data", "eval_data", "out"):
        del config[path]
    regime = REGIMES[run.regime]
    start = near_copies.recipe() if regime.near_copies else regime.start
    of_arm = {"full": ARMS[run.arm].full, "change": ARMS[run.arm].change}
    return {"configuration": {**config, "start": start, **of_arm}, "data": data_hash(run.budget, "")}


def start_model(run: Run, folder: Path) -> str:
    """The model that the regime starts from: the embedded one; in R1 the one after GRPO with the run's seed, which is
    kept; in R3 that of study/near_copies.py."""
    steps = REGIMES[run.regime].start
    if REGIMES[run.regime].near_copies:
        return near_copies.kept_model(quick=run.quick)
    if not steps:
        return str(EXAMPLE)
    before = Run("R0-0.9", "none", run.seed + 1_000, run.quick)  # other questions first, and other noise
    recipe = hashlib.sha256(json.dumps([made_from(before), steps], sort_keys=True).encode()).hexdigest()[:8]
    kept = STARTS / f"{'quick-' if run.quick else ''}{steps}-seed{run.seed}-{recipe}"
    if not (kept / "model").is_dir():
        config = configuration(before, folder)
        config.out, config.steps, config.eval_every = str(folder / "start"), 2 if run.quick else steps, 0
        dagrpo.train(config)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another worker has made the same one in the meantime
            (folder / "start").rename(kept)
    return str(kept / "model")


def measured(run: Run) -> dict[str, Any]:
    """Train, and measure on the validation set: accuracy along the run, more exactly at its end, and pass@8 there."""
    start = time.perf_counter()
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as name, silenced():  # where a start model can be moved to
        folder = Path(name)
        tasks.write_sets(folder, questions_of(run))
        config = configuration(run, folder)
        config.model = start_model(run, folder)
        with training_with(ARMS[run.arm]):
            dagrpo.train(config)
        evaluations = read_lines(folder / "run" / "evaluations.jsonl")
        steps = [record for record in read_lines(folder / "run" / "metrics.jsonl") if "step" in record]
        trained, limit = str(folder / "run" / "model"), config.max_new_tokens
        last = measure(trained, ["validation"], folder, PASSES, run.seed, temperature=1.0, max_new_tokens=limit)
    names = ("grad_norm", "entropy", "reward", "length/mean", "masked_pairs", "masked_tokens", "clip_low", "clip_high",
             "displaced", "displaced_left", "displaced_by_batch", "displaced_by_batch_left")  # fmt: skip
    line = {
        "regime": run.regime, "arm": run.arm, "seed": run.seed, "commit": commit(),
        "validation": {
            "steps": [result["step"] for result in evaluations],
            "accuracy": [result["accuracy"] for result in evaluations],
            "length": [result["length"] for result in evaluations],
            f"avg@{PASSES}": last[f"avg@{PASSES}"], f"pass@{PASSES}": last[f"pass@{PASSES}"],
        },
        "curves": {key: [record.get(key, float("nan")) for record in steps] for key in names},
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    return {**rounded(line), **made_from(run)}


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


Measurement = Callable[[dict[str, Any]], float]
MEASURES: dict[str, Measurement] = {
    "at the end": lambda run: run["validation"][f"avg@{PASSES}"],
    "mean of the curve": lambda run: mean(run["validation"]["accuracy"][1:]),
    f"pass@{PASSES}": lambda run: run["validation"][f"pass@{PASSES}"],
}


def by_arm(lines: list[dict[str, Any]], regime: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The runs of a regime: for each arm, by seed."""
    own = [line for line in lines if line["regime"] == regime]
    arms = {arm: {line["seed"]: line for line in own if line["arm"] == arm} for arm in ARMS}
    return {arm: runs for arm, runs in arms.items() if runs}


def accuracy_table(arms: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Accuracies in percent; differences to no rule, positives only, and the arm's own placebo in points, by seed."""
    head = ["arm", "seeds"]
    for name in MEASURES:
        head += [name, "minus none", "minus its placebo"]
    head.append("at the end, minus positives")
    rows = []
    for arm, runs in arms.items():
        row = [arm, str(len(runs))]
        for measured_by in MEASURES.values():
            row.append(number(100 * mean([measured_by(run) for run in runs.values()])))
            row += [difference(arms, arm, other, measured_by) for other in ("none", f"{arm}, by chance")]
        rows.append([*row, difference(arms, arm, "positives", MEASURES["at the end"])])
    return table(head, rows)


def difference(arms: dict[str, dict[int, dict[str, Any]]], arm: str, other: str, measured_by: Measurement) -> str:
    """To the same seeds of another arm, with its interval; a dash for the arm itself, and where the other has no runs.

    In points, of what is measured as a share.
    """
    if arm == other or other not in arms:
        return "–"
    return with_interval(
        paired_differences(*({seed: measured_by(run) for seed, run in arms[name].items()} for name in (arm, other)))
    )


def conflict_table(arms: dict[str, dict[int, dict[str, Any]]]) -> str:
    """By arm, in percent: better completions displaced before and after, pairs masked; gradient norms; entropy in nats;
    steps without any gradient, in percent.

    What is displaced is told by the arm's own gradients and metric: it compares along a line, not down a column.
    """
    names = ("displaced", "displaced_left", "displaced_by_batch", "displaced_by_batch_left", "masked_pairs")
    rows = []
    for arm, runs in arms.items():
        row = [arm]
        for name in names:
            values = np.array([[np.nan if v is None else v for v in run["curves"][name]] for run in runs.values()])
            row.append("–" if np.isnan(values).all() else number(100 * float(np.nanmean(values))))
        falls = [max(run["validation"]["accuracy"]) - run["validation"]["accuracy"][-1] for run in runs.values()]
        row.append(f"{sum(fall > 0.1 for fall in falls)} of {len(falls)}")
        norms = [np.array(run["curves"]["grad_norm"], dtype=float) for run in runs.values()]
        with np.errstate(divide="ignore"):  # without a gradient in most steps the median is 0, and the ratio inf
            peaks = [math.inf if np.isnan(of).any() else float(of.max() / np.median(of)) for of in norms]
        row += [number(max(peaks)), f"{sum(peak > SPIKE for peak in peaks)} of {len(peaks)}"]
        for half in (slice(None, len(norms[0]) // 2), slice(len(norms[0]) // 2, None)):
            row.append(f"{np.nanmean([of[half] for of in norms]):.3f}")
        row.append(f"{mean([run['curves']['entropy'][-1] for run in runs.values()]):.2f}")
        row.append(number(100 * mean([float((of == 0).mean()) for of in norms])))
        rows.append(row)
    head = ["arm", *(name.replace("_", " ") for name in names)]
    head += [
        "runs that fell by 10 points",
        "largest norm/median",
        f"runs with one above {SPIKE}",
        "norm, first half",
        "second half",
    ]
    return table([*head, "entropy at the end", "steps without an update"], rows)


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.regimes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("regimes", nargs="+", choices=tuple(REGIMES), metavar="REGIME", help=", ".join(REGIMES))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), metavar="ARM", help="some of them only")
    parser.add_argument("--seeds", nargs="+", type=int, help="some of them only")
    parser.add_argument("--workers", type=int, default=2, help="runs at once; each takes one thread")
    parser.add_argument("--json", type=Path, help="where runs are kept")
    parser.add_argument("--quick", action="store_true", help="a tiny version")
    options = parser.parse_args(arguments)
    file = options.json or (QUICK_FILE if options.quick else FILE)
    for name in options.regimes:
        regime = REGIMES[name]
        seeds = options.seeds or (regime.seeds[:1] if options.quick else regime.seeds)
        wanted = [
            Run(name, arm, seed, options.quick)
            for seed in seeds
            for arm in regime.arms  # all of a seed before the next seed: an unfinished study is still paired
            if not options.arms or arm in options.arms
        ]
        kept = {(line["regime"], line["arm"], line["seed"]): line for line in read_kept(file)}

        def is_finished(run: Run, kept: dict[Any, Any] = kept) -> bool:
            line = kept.get((run.regime, run.arm, run.seed))
            return line is not None and is_made_from(line, made_from(run))

        if options.command == "run":
            missing = [run for run in wanted if not is_finished(run)]
            print(f"{name}: {len(wanted) - len(missing)} of {len(wanted)} runs are finished.")
            if missing and regime.near_copies:
                near_copies.kept_model(options.quick)  # once, before the workers need it
            in_workers(measured, missing, file, options.workers)
        else:
            arms = by_arm([kept[run.regime, run.arm, run.seed] for run in wanted if is_finished(run)], name)
            if not arms:
                sys.exit(f"study.regimes: no run of {name} in {file}: give the command run first.")
            said = [f"### {name}", accuracy_table(arms), of_unequal_seeds(arms), conflict_table(arms)]
            print("\n\n".join(filter(None, said)) + "\n")


if __name__ == "__main__":
    main()
