"""What DaGRPO costs on many GPUs: on paper for four sizes of models, and the growth of scoring, simulated here.

    python benchmarks/scaling.py paper          # memory, communication and time of a step, by the formulas below
    python benchmarks/scaling.py simulate       # scoring of 1 to 64 processes' groups, one after the other (minutes)

The simulation needs accelerate: pip install trl. The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scoring
from rollout import Rollouts
from scorers.gradients import BATCH_ELEMENTS, SKETCH_WIDTH

GB = 1e9


# ---------------------------------------------------------------------------------------------------------------------
# On paper
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """The numbers of an architecture that the formulas need."""

    name: str
    parameters: float  # W
    layers: int
    hidden: int  # H
    vocabulary: int  # V


# Qwen2.5, by its published configurations.
MODELS = [
    Model("1.5 B", 1.54e9, 28, 1536, 151_936),
    Model("7 B", 7.62e9, 28, 3584, 152_064),
    Model("32 B", 32.8e9, 64, 5120, 152_064),
    Model("72 B", 72.7e9, 80, 8192, 152_064),
]


@dataclass(frozen=True)
class Step:
    """A step on R GPUs: N completions in groups of G, `tokens` each with their prompt, in micro-batches of `rows`."""

    gpus: int  # R
    completions: int = 1024  # N
    group_size: int = 8  # G
    prompt: int = 256
    completion: int = 2048
    rows: int = 4  # of a micro-batch, on a GPU
    flops: float = 400e12  # a second on a GPU: bf16 products as trainers reach them
    bandwidth: float = 50e9  # bytes a second from and to a GPU, between machines

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion

    @property
    def calls(self) -> float:
        """Micro-batches of a GPU."""
        return max(1.0, self.completions / self.gpus / self.rows)

    @property
    def groups(self) -> float:
        """Groups that a GPU judges, if all have a signal."""
        return self.completions / self.group_size / self.gpus


def memory(model: Model, step: Step) -> dict[str, float]:
    """Bytes on each GPU: what FSDP shards, what each has whole, and what the scorer adds for a moment."""
    in_batch = step.rows * step.tokens
    head = 4.0 * model.vocabulary * model.hidden
    width = min(SKETCH_WIDTH, model.vocabulary)
    return {
        "states": 16 * model.parameters / step.gpus,  # fp32 weight, gradient and two moments
        "a layer": 2 * 2 * model.parameters / model.layers,  # bf16, with the next one on its way
        "activations": 2.0 * in_batch * model.hidden * model.layers + 34.0 * in_batch * model.hidden,
        "head": head,  # fp32, whole
        "moments": 2 * head,  # for --metric optimizer, but not for --rectify threshold
        "hidden": 4.0 * step.completions / step.gpus * step.completion * model.hidden,  # of the share
        "gradients": 4.0 * step.group_size * width * model.hidden,  # of one group
        "narrow": 4.0 * min(BATCH_ELEMENTS, step.completions / step.gpus * width * model.hidden),  # of the share
    }


def communication(model: Model, step: Step) -> dict[str, float]:
    """Bytes that each GPU receives in a step."""
    group_pairs = step.completions * step.group_size  # P·G² = N·G
    return {
        "train": step.calls * (2 * 2 * model.parameters + 4 * model.parameters),  # gather twice in bf16, reduce in fp32
        "to vLLM": 2 * model.parameters,
        "score: weights": step.calls * 2 * model.parameters,  # one more forward pass
        "score: head": 4.0 * model.vocabulary * model.hidden,
        "score: moments": 8.0 * model.vocabulary * model.hidden,
        "score: tokens": 9.0 * step.completions * step.tokens,  # ids, pickled, and what is withheld in fp32
        "score: masks": (1.0 + 4.0) * group_pairs,  # bool, and d in fp32
    }


def products(model: Model, step: Step) -> dict[str, float]:
    """Floating-point operations of each GPU in a step."""
    tokens = step.completions / step.gpus * step.tokens
    scored = step.completions / step.gpus * step.completion
    width = min(SKETCH_WIDTH, model.vocabulary)
    pairs = step.groups * step.group_size**2
    return {
        "train": 8 * model.parameters * tokens,  # forward, backward, and forward again for the activations
        "score: forward": 2 * model.parameters * tokens,
        "score: head": 2.0 * scored * model.vocabulary * model.hidden,  # T·V·H
        "score: gradients": 2.0 * scored * width * model.hidden,  # G_i = Σ δ_t h_tᵀ
        "score: P·G² pairs": 2.0 * pairs * width * model.hidden,
    }


def paper() -> None:
    """The three tables, a row for each model and number of GPUs."""
    parts: list[tuple[str, Callable[[Model, Step], dict[str, float]], float]] = [
        ("Memory of a GPU, GB", memory, GB),
        ("Received by a GPU in a step, GB", communication, GB),
        ("Operations of a GPU in a step, TFLOP", products, 1e12),
    ]
    step = Step(1)
    print(f"{step.completions} completions of {step.prompt} + {step.completion} tokens in groups of {step.group_size}.")
    for title, of, unit in parts:
        names = list(of(MODELS[0], step))
        print(
            f"\n{title}\n"
            + " ".join([f"{'model':>6}", f"{'GPUs':>5}", *(f"{name:>{max(9, len(name))}}" for name in names)])
        )
        for model in MODELS:
            for gpus in (8, 64):
                values = of(model, replace(step, gpus=gpus))
                shown = " ".join(f"{values[name] / unit:{max(9, len(name))},.2f}" for name in names)
                print(f"{model.name:>6} {gpus:5} {shown}")
    print("\nSeconds of a step, without sampling (products and communication one after the other), and scoring's share")
    for model in MODELS:
        for gpus in (8, 64):
            at = replace(step, gpus=gpus)
            seconds = {name: value / at.flops for name, value in products(model, at).items()}
            for name, value in communication(model, at).items():
                seconds[name] = seconds.get(name, 0.0) + value / at.bandwidth
            whole = sum(seconds.values())
            scored = sum(value for name, value in seconds.items() if name.startswith("score"))
            print(f"{model.name:>6} {gpus:5} {whole:10.1f} {scored / whole:8.0%}")


# ---------------------------------------------------------------------------------------------------------------------
# Simulated
# ---------------------------------------------------------------------------------------------------------------------

HIDDEN, VOCABULARY, TOKENS, GROUP_SIZE, GROUPS_OF_PROCESS = 64, 4096, 64, 8, 2


def simulated_head(seed: int = 0) -> Any:
    """A random output layer, as the trainer gathers it."""
    from scale.ranks import Head, Output

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5
    config = SimpleNamespace(vocab_size=VOCABULARY, hidden_size=HIDDEN)
    config.get_text_config = lambda **_: config
    return Head(config, None, torch.device("cpu"), torch.float32, Output(weight, None), None, 0)


def simulated_groups(groups: int, seed: int) -> tuple[Rollouts, torch.Tensor]:
    """Groups of random completions, half of which begin alike, with states, and rewards of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = groups * GROUP_SIZE
    ids = torch.randint(2, VOCABULARY, (rows, TOKENS + 1), generator=generator)
    hidden = torch.randn(rows, TOKENS, HIDDEN, generator=generator)
    for first in range(0, rows, GROUP_SIZE):
        alike, same = slice(first, first + GROUP_SIZE // 2), slice(3 * TOKENS // 4)
        ids[alike, same], hidden[alike, same] = ids[first, same].clone(), hidden[first, same].clone()
    mask = torch.ones_like(ids, dtype=torch.bool)
    response = mask.clone()
    response[:, 0] = False
    none = torch.zeros(rows, dtype=torch.bool)
    states: list[torch.Tensor | None] = list(hidden)
    rollouts = Rollouts(ids, mask, response, none, torch.zeros(rows, TOKENS), none, [""] * rows, states, GROUP_SIZE)
    rewards = torch.arange(rows).view(groups, GROUP_SIZE) % 2
    return rollouts, rewards.float()


def simulate(rule: str, most: int) -> None:
    """Scoring of 1, 2, 4, ... processes' groups: each process's share by itself, or of rule `batch` all at once."""
    head = cast(PreTrainedModel, simulated_head())
    how = scoring.Rectification(rule, "gradient", 0.35, "std", 1.0, False, None)
    width = min(SKETCH_WIDTH, VOCABULARY)
    print(f"Rule {rule}: {GROUPS_OF_PROCESS} groups of {GROUP_SIZE} completions of {TOKENS} tokens a process,")
    print(f"H = {HIDDEN}, V = {VOCABULARY}. GFLOP and seconds are of the process that has most to do.\n")
    titles = ("processes", "groups", "tokens", "GFLOP: tokens", "GFLOP: pairs", "MB: ids", "seconds")
    print(" ".join(f"{title:>13}" for title in titles))
    processes = 1
    while processes <= most:
        groups = processes * GROUPS_OF_PROCESS
        own = groups if rule == "batch" else GROUPS_OF_PROCESS
        slowest = 0.0
        for process in range(1 if rule == "batch" else processes):
            rollouts, rewards = simulated_groups(own, seed=process)
            started = time.perf_counter()
            scoring.rectify(head, rollouts, rewards, how)
            slowest = max(slowest, time.perf_counter() - started)
        tokens = own * GROUP_SIZE * TOKENS
        by_tokens = 2 * tokens * HIDDEN * (VOCABULARY + width) / 1e9
        pairs = (own * GROUP_SIZE) ** 2 if rule == "batch" else own * GROUP_SIZE**2
        narrow = min(width * HIDDEN, BATCH_ELEMENTS // (own * GROUP_SIZE)) if rule == "batch" else width * HIDDEN
        by_pairs = 2 * pairs * narrow / 1e9
        gathered = 5 * groups * GROUP_SIZE * (TOKENS + 1) / 1e6
        row = f"{processes:13} {groups:13} {groups * GROUP_SIZE * TOKENS:13,} {by_tokens:13.2f} {by_pairs:13.2f}"
        print(f"{row} {gathered:13.2f} {slowest:13.3f}", flush=True)
        processes *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("paper", help="memory, communication and time of a step, by formulas")
    simulation = commands.add_parser("simulate", help="scoring of many processes' groups, one after the other")
    simulation.add_argument("--rule", choices=("threshold", "pair", "group", "batch"), default="group", help="[group]")
    simulation.add_argument("--processes", type=int, default=64, help="the most [64]")
    flags = parser.parse_args()
    if flags.command == "paper":
        paper()
    else:
        simulate(flags.rule, flags.processes)


if __name__ == "__main__":
    main()
