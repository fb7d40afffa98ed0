r"""How far is the memory that a run says it needs from what it takes, and which models fit a GPU?

    python benchmarks/memory.py                              the embedded model
    python benchmarks/memory.py --model SmolLM2.gguf         and the settings of a language model
    python benchmarks/memory.py --only "embedded, LoRA"      one setting
    python benchmarks/memory.py --fits                       what fits 16, 24, 48 and 80 GB: estimates, nothing is run

Each setting is a whole run of two steps, or of one with a language model, in a process of its own: sampling, scores,
update, checkpoint, evaluation. Completions never end before the limit and every group has a signal, which is what the
estimate takes to be so.

Measured is what PyTorch's allocator has given out at most, as its profiler counts it on a CPU; on a GPU the allocator
counts it by itself. These are the tensors of the run, those inside of PyTorch's functions among them, and no others:
not the libraries, and nothing that malloc holds back. So the figure is the same on any machine, and the same tensors
are there on a GPU. --resident measures the process in its place: its largest resident set less that after the imports.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import EXAMPLE, peak_of_allocator, random_model, report, resident, trainable
from speed import every_other as every_other

import dagrpo  # isort: skip
import torch

import harness.report
import rollout
from harness.config import Config, configure
from harness.estimate import Prompts, memory_estimate
from policy import lora

PARTS = ("sampling", "scoring", "update", "evaluation", "saving")
SMALL = {"questions": 8, "group_size": 8, "max_new_tokens": 64, "token_budget": 1_024}
SHORT = {**SMALL, "questions": 4, "max_new_tokens": 32, "token_budget": 4_096}
LANGUAGE = {"steps": 1, "questions": 1, "group_size": 4, "max_new_tokens": 16, "token_budget": 4_096}
LONG = {"questions": 8, "group_size": 8, "max_new_tokens": 256, "token_budget": 4_096}
SETTINGS: dict[str, dict[str, Any]] = {
    "embedded": {**SMALL, "token_budget": 4_096},
    "embedded, small micro-batches": SMALL,
    "embedded, checkpointing": {**SMALL, "token_budget": 4_096, "checkpointing": True},
    "embedded, reference": {**SMALL, "kl": 0.1},
    "embedded, 300 tokens": {**SMALL, "questions": 2, "max_new_tokens": 300, "token_budget": 2_048},
    "embedded, LoRA": {**SMALL, "lora": 8},
    "embedded, no scorer": {**SMALL, "method": "grpo", "scorer": "token"},
    "embedded, bf16 as on a GPU": {**SHORT, "questions": 1, "group_size": 16, "bf16": True},
    "embedded, bf16, four questions": {**SHORT, "bf16": True},
    "embedded, bf16 and checkpointing": {
        **SHORT, "questions": 1, "group_size": 16, "bf16": True, "checkpointing": True,
    },
    "embedded, evaluation": {**SHORT, "questions": 1, "eval_at_start": True, "eval_samples": 4, "hold_out": 64},
    "embedded, four examples": {**SMALL, "token_budget": 4_096, "examples": 4},
    "language model": LANGUAGE,
    "language model, examples": {
        **LANGUAGE, "questions": 4, "group_size": 8, "token_budget": 1_024, "examples": 4, "eval_samples": 4,
        "hold_out": 16, "eval_at_start": True,
    },
    "language model, small micro-batches": {**LANGUAGE, "token_budget": 100},
    "language model, 8 bits": {**LANGUAGE, "optimizer": "adamw8bit"},
    "language model, LoRA": {**LANGUAGE, "lora": 16},
    "language model, LoRA, 32 tokens": {**LANGUAGE, "lora": 16, "questions": 2, "max_new_tokens": 32},
    "language model, LoRA, checkpointing": {**LANGUAGE, "lora": 16, "kl": 0.1, "checkpointing": True},
    "one GPU": LONG,
    "one GPU, checkpointing": {**LONG, "checkpointing": True},
    "one GPU, LoRA": {**LONG, "lora": 16},
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def endless() -> Iterator[None]:
    """Inside, completions go on to their limit, whatever the model says."""
    plain = rollout.Sampling
    with mock.patch.object(rollout, "Sampling", lambda *rest: replace(plain(*rest), stop_ids=[-1])):
        yield


@contextmanager
def imitated_gpu() -> Iterator[None]:
    """Inside, a CPU computes in bf16, and attends row by row, as a GPU does; the estimate is that of a GPU."""
    with ExitStack() as patches:
        for place in ("policy.model.in_bf16", "policy.decoding.in_bf16"):
            patches.enter_context(mock.patch(place, lambda model: True))
        patches.enter_context(mock.patch("policy.attention.DEVICES", ("cpu", "cuda")))
        of_gpu = functools.partial(memory_estimate, on_gpu=True, available=1e3)
        patches.enter_context(mock.patch.object(harness.report, "memory_estimate", of_gpu))
        yield


def settings_of(flags: dict[str, Any], model: str, out: Path) -> Config:
    usual = {
        "model": model or str(EXAMPLE), "data": [str(EXAMPLE / "train.jsonl")], "out": str(out), "steps": 2,
        "eval_every": 0, "eval_at_start": False, "save_every": 0, "hold_out": 1, "eval_samples": 1, "anchors": None,
        "reward": [f"{Path(__file__)}:every_other"],
    }  # fmt: skip
    return configure(**{**usual, **flags})


def peak_of_process(run: Callable[[], Any]) -> int:
    """The same of the process, less what it is before."""
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def measured(flags: dict[str, Any], model: str, of_process: bool = False) -> dict[str, Any]:
    """A short run: its peak in bytes, and its estimate by parts in GB."""
    flags = dict(flags)
    bf16 = flags.pop("bf16", False)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        patches.enter_context(endless())
        patches.enter_context(trainable(model))
        if bf16 and not torch.cuda.is_available():
            patches.enter_context(imitated_gpu())
        shown = flags.pop("examples", 0)  # so many solved questions before each
        if shown:
            lines = (EXAMPLE / "held_out.jsonl").read_text().splitlines(keepends=True)
            flags["examples"] = str(Path(folder) / "examples.jsonl")
            Path(flags["examples"]).write_text("".join(lines[:shown]))
        config = settings_of(flags, model, Path(folder) / "run")
        peak = (peak_of_process if of_process else peak_of_allocator)(functools.partial(dagrpo.train, config))
        first = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[0]
    return {"measured": peak, "estimate": json.loads(first)["memory_estimate_gb"]}


def measure_all(arguments: argparse.Namespace) -> None:
    rows, figures, failed = [], {}, []
    for name, flags in SETTINGS.items():
        of_language_model = not name.startswith("embedded")
        for_gpu = name.startswith("one GPU")  # hours of a CPU
        here = not for_gpu or torch.cuda.is_available() if not arguments.only else name in arguments.only
        if not here or (of_language_model and not arguments.model):
            continue
        command = [sys.executable, __file__, "--measure", name, *(["--resident"] if arguments.resident else [])]
        command += ["--model", arguments.model] if of_language_model else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: the run failed:\n{done.stderr[-1000:]}", file=sys.stderr)
            failed.append(name)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        estimate, peak = found["estimate"], found["measured"] / 1e9
        largest = max((part for part in PARTS if part in estimate), key=lambda part: estimate[part])
        ratio = estimate["total"] / peak
        line = f"{1000 * peak:9.0f}{1000 * estimate['total']:11.0f}{ratio:8.2f}   {largest}"
        print(f"  {name:36}{line}", file=sys.stderr)
        rows.append((name, line))
        figures[name] = {**found, "ratio": ratio, "flags": flags}
    kind = "resident memory" if arguments.resident else "memory of tensors"
    heading = ("", "measured  estimated   ratio   largest part, by the estimate")
    report(arguments, f"Peak {kind} of a short run, MB", [heading, *rows], {"settings": figures})
    if failed:
        sys.exit(f"{len(failed)} runs failed: {', '.join(failed)}")


# ---------------------------------------------------------------------------------------------------------------------
# What fits
# ---------------------------------------------------------------------------------------------------------------------

GPUS = (16, 24, 48, 80)  # GB
USABLE = 0.9  # of a GPU's memory: the rest is CUDA's own, and gaps between tensors
SIZES = ("0.5b", "1.5b", "3b", "7b", "14b")
KINDS: dict[str, dict[str, Any]] = {
    "full": {}, "8 bits": {"optimizer": "adamw8bit"}, "LoRA 16": {"lora": 16},
}  # fmt: skip
USUAL = {"questions": 16, "group_size": 8, "max_new_tokens": 1_024, "token_budget": 4_096}
PROMPT, HELD_OUT = 256, 64


def needed(size: str, flags: dict[str, Any], available: float) -> float:
    """GB that a run in a shape of SHAPES would take at its peak, on a GPU of so many."""
    model = random_model(size, "meta")
    config = settings_of({**USUAL, **flags}, "", Path("runs/none"))
    if config.lora:
        with torch.device("meta"):
            lora.add(model, size, config.adapter)
    found = memory_estimate(model, config, prompts=Prompts(PROMPT), held_out=HELD_OUT, on_gpu=True, available=available)
    return found["total"]


def fits() -> None:
    """For each model and kind of training the GB needed at least, without and with --checkpointing, and on what."""
    questions, size, limit, budget = USUAL.values()
    print(
        f"Estimated, not measured: GB at the peak of a run with {questions} questions x {size} completions of {limit}"
    )
    print(
        f"tokens behind prompts of {PROMPT}, --token-budget {budget}; in parentheses with --checkpointing; behind the"
    )
    print(f"colon the smallest GPU of {', '.join(map(str, GPUS))} GB that has room.\n")
    print(f"| parameters | {' | '.join(KINDS)} |\n| ---: | {' | '.join('---' for _ in KINDS)} |")
    for name in SIZES:
        cells = []
        for flags in KINDS.values():
            plain, again = (needed(name, {**flags, "checkpointing": c}, 0.0) for c in (False, True))
            smallest = [next((gpu for gpu in GPUS if need <= USABLE * gpu), None) for need in (plain, again)]
            named = [f"{gpu} GB" if gpu else "none" for gpu in smallest]
            cells.append(f"{plain:.0f} ({again:.0f}): {named[0]}" + (f" ({named[1]})" if named[1] != named[0] else ""))
        print(f"| {name.upper().replace('B', ' B')} | {' | '.join(cells)} |")


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="of the settings of a language model; random:0.5b as for speed.py")
    parser.add_argument("--only", nargs="+", default=[], choices=tuple(SETTINGS), metavar="SETTING")
    parser.add_argument("--resident", action="store_true", help="measure the process, not the tensors")
    parser.add_argument("--fits", action="store_true", help="print what fits which GPU")
    parser.add_argument("--json", default="", help="add the figures to this file, as one line")
    parser.add_argument("--measure", default="", choices=tuple(SETTINGS), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = new_parser().parse_args(arguments)
    if options.fits:
        fits()
    elif options.measure:
        print(json.dumps(measured(SETTINGS[options.measure], options.model, options.resident)))
    else:
        measure_all(options)


if __name__ == "__main__":
    main()
