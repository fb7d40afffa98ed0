"""Which product of gradients tells beforehand whether a right answer loses likelihood by the next step?

    python -m study.predict                              the embedded model: 3 seeds, before steps 1, 11, 21 and 41
    python -m study.predict --model MODEL --data FILE    any other model, before its first and its third step
    python -m study.predict --report                     the tables of what is kept, as Markdown

A training by GRPO is stopped before some of its steps. For each answer with a positive advantage the real change of its
log-likelihood is measured, by the real step: AdamW with its moments, the whole batch, the learning rate of the run.
Beside it stand predictors of that change, to first order, each a sum of products K_ij of gradients:

    unit       the worst pair (K_ii − K_ij), the own group (Σ_j Ã_j K_ij), the whole batch, or that and AdamW's momentum
    gradients  of all parameters (full), of the output embedding (gradient), of a map before it (state)
    metric     SGD's, g_i·g_j, or AdamW's, g_i·P·g_j with P from its second moments, for `gradient` one factor for each
               row and column; the map before the head is no parameter, and has moments that are kept for it here

How well a predictor ranks is its rank correlation with the change; how well it tells what falls, the area under the
curve; how well it is calibrated, the share that fell of the answers that it calls displaced, and of the others. Answers
of a group depend on each other: intervals resample groups, and are 95 % bootstrap intervals. The last table says what
the change is made of. Lines are kept in study/predict.jsonl, one for each seed and step.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import PreTrainedModel

import dagrpo
import rollout
import scoring
from harness import checkpoint
from harness.config import EXAMPLE, Config, configure
from harness.report import machine
from rollout import Rollouts
from scorers.gradients import Measure, adam_metric, gradient_products, token_gradients
from scoring import pair_advantages, sequences_of
from study import tasks
from study.arms import full_metric
from study.cells import append_kept, commit, read_kept, rounded, silenced
from study.conflict import log_likelihoods
from study.conflict_tables import (
    area_under_curve,
    by_groups,
    markdown_table,
    mean_or_nan,
    shown,
    spearman,
)
from study.tables import number
from study.tasks import ROOT
from study.variants import FULL, MAX_NEW_TOKENS, question_sets

FILE = ROOT / "study" / "predict.jsonl"
SEEDS = (700, 701, 702)
STEPS = (0, 10, 20, 40)  # taken before the measured one
RATE = 4e-4
CHUNK = 2**22  # parameters at a time
PARTS = ("own group", "rest of the batch", "earlier batches", "neither")


# ---------------------------------------------------------------------------------------------------------------------
# Predictors
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Moments:
    """AdamW's moments of something that is no parameter of the model, as if it were one."""

    first: torch.Tensor
    second: torch.Tensor
    steps: int = 0

    def add(self, gradient: torch.Tensor, beta1: float) -> None:
        """The gradient of the loss of one more step."""
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        self.steps += 1

    def root_of_p(self) -> torch.Tensor:
        """√P, as `full_metric` has it."""
        return ((self.second / (1 - 0.999**self.steps)).sqrt() + 1e-8) ** -0.5


def full_gradients(model: PreTrainedModel, rollouts: Rollouts, temperature: float) -> torch.Tensor:
    """∇ Σ_t log π_t of each completion with respect to all parameters. N rows -> (N, parameters)"""
    parameters = list(model.parameters())
    rows = torch.zeros(len(rollouts.texts), sum(p.numel() for p in parameters))
    for i in range(len(rows)):
        one = rollouts.rows(torch.tensor([i]))
        logps, _ = rollout.token_logps(model, *one.tokens, temperature=temperature)
        rows[i] = torch.cat([part.flatten() for part in torch.autograd.grad(logps.sum(), parameters)])
    return rows


def gram_of(gradients: torch.Tensor, p: torch.Tensor | None = None) -> torch.Tensor:
    """g_i·P·g_j, a part of the parameters at a time: there is no room for a second copy. (N, D), (D,) -> (N, N)"""
    gram = torch.zeros(len(gradients), len(gradients))
    for start in range(0, gradients.shape[1], CHUNK):
        part = gradients[:, start : start + CHUNK]
        gram += (part if p is None else part * p[start : start + CHUNK]) @ part.T
    return gram


def head_gradients(model: PreTrainedModel, rollouts: Rollouts, measure: Measure) -> torch.Tensor:
    """The same of what the scorer looks at, sketched. N rows -> (N, width·H)"""
    groups = token_gradients(model, sequences_of(rollouts), measure)
    return torch.stack([(sketched.T @ h).flatten() for tokens, _ in groups for sketched, h in tokens])


def sums_of(gram: torch.Tensor, pairs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The predictors of one kind of product by unit, higher where a completion gains. (N, N), (P, G, G) -> (N,) each"""
    groups, size, _ = pairs.shape
    advantages = pairs.sum(2)
    blocks = gram.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (P, G, G)
    with_itself = blocks.diagonal(dim1=1, dim2=2)[:, :, None]
    margins = (with_itself - blocks).masked_fill(pairs <= 0, math.inf)  # of pairs in which i is the better one
    return {
        "pair": margins.min(2).values.flatten(),
        "group": (blocks @ advantages[:, :, None]).flatten(),
        "batch": gram @ advantages.flatten(),
    }


def flat_moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer, name: str) -> torch.Tensor | None:
    """exp_avg or exp_avg_sq of all parameters; None before the first step. -> (parameters,)"""
    found = [optimizer.state.get(parameter, {}).get(name) for parameter in model.parameters()]
    return None if any(value is None for value in found) else torch.cat([value.flatten() for value in found])


def predictors(
    learner: dagrpo.Learner,
    part: Rollouts,
    pairs: torch.Tensor,
    gradients: torch.Tensor,
    of_state: tuple[torch.Tensor, Moments],
    config: Config,
    count: int,
) -> dict[str, torch.Tensor]:
    """Everything that is known before the step. N rows of groups whose rewards differ -> (N,) each

    `gradients` are the full ones, `of_state` those of a map before the head with its moments; `count` completions in
    the whole batch share the constant denominator of (8).
    """
    model, optimizer = learner.model, learner.optimizer
    found = {f"full, SGD, {unit}": v for unit, v in sums_of(gram_of(gradients), pairs).items()}
    for scorer in scoring.BY_GRADIENT:
        of_head = head_gradients(model, part, Measure(scorer, config.temperature))
        found |= {f"{scorer}, SGD, {unit}": v for unit, v in sums_of(of_head @ of_head.T, pairs).items()}
    denominator = count * config.max_new_tokens  # of a completion's gradient in the loss
    metric, scales = adam_metric(model, optimizer, denominator), full_metric(model, optimizer)
    if metric is None or scales is None:
        return found
    weight = config.beta1 / (1 - config.beta1) * denominator  # of the momentum beside a completion's gradient
    p = torch.cat([scale.flatten() for scale in scales]) ** 2
    sums = sums_of(gram_of(gradients, p), pairs)
    found |= {f"full, AdamW, {unit}": v for unit, v in sums.items()}
    momentum = flat_moments(model, optimizer, "exp_avg")
    assert momentum is not None
    found["full, AdamW, batch and momentum"] = sums["batch"] - weight * (gradients @ (momentum * p))
    of_head = head_gradients(model, part, Measure("gradient", config.temperature, metric))
    sums = sums_of(of_head @ of_head.T, pairs)
    found |= {f"gradient, AdamW, {unit}": v for unit, v in sums.items()}
    products = gradient_products(model, sequences_of(part), Measure("gradient", config.temperature, metric))
    assert products.drift is not None
    found["gradient, AdamW, batch and momentum"] = sums["batch"] + products.drift
    of_map, moments = of_state
    root = moments.root_of_p()
    scaled = of_map * root
    sums = sums_of(scaled @ scaled.T, pairs)
    found |= {f"state, AdamW, {unit}": v for unit, v in sums.items()}
    found["state, AdamW, batch and momentum"] = sums["batch"] - weight * (scaled @ (moments.first * root))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The real step
# ---------------------------------------------------------------------------------------------------------------------


def parts_of_the_step(
    learner: dagrpo.Learner,
    gradients: torch.Tensor,  # (N, parameters)
    pairs: torch.Tensor,  # (P, G, G)
    momentum: torch.Tensor,  # (parameters,) before the step
    rate: float,
    config: Config,
    count: int,
) -> dict[str, torch.Tensor]:
    """What each source of the step that was just taken changes, to first order, by AdamW's own formula. -> (N,) each"""
    optimizer = learner.optimizer
    steps = float(next(iter(optimizer.state.values()))["step"])
    second = flat_moments(learner.model, optimizer, "exp_avg_sq")
    assert second is not None
    p = 1 / ((second / (1 - 0.999**steps)).sqrt() + optimizer.param_groups[0]["eps"])
    scale = rate / (1 - config.beta1**steps)
    sums = sums_of(gram_of(gradients, p), pairs)
    new = scale * (1 - config.beta1) / (count * config.max_new_tokens)
    return {
        "own group": new * sums["group"],
        "rest of the batch": new * (sums["batch"] - sums["group"]),
        "earlier batches": -scale * config.beta1 * (gradients @ (p * momentum)),
    }


def measure_step(
    learner: dagrpo.Learner,
    rollouts: Rollouts,
    rewards: torch.Tensor,  # (P, G)
    moments: Moments,
    measured: bool,
    config: Config,
    take: Any,
) -> dict[str, list[float]]:
    """Columns over the better completions: predictors, the real change by `take()`, and its parts; and the groups.

    Nothing but the moments is looked at where the step is not to be measured.
    """
    size, model, count = rollouts.group_size, learner.model, len(rollouts.texts)
    scored = (rewards != rewards[:, :1]).any(1).nonzero().squeeze(1)
    if len(scored) == 0:
        take()
        return {}
    rows = (scored[:, None] * size + torch.arange(size)).flatten()
    part = rollouts.rows(rows)
    pairs = pair_advantages(rewards[scored], scale=config.scale)
    of_map = head_gradients(model, part, Measure("state", config.temperature))
    before_step = replace(moments)
    moments.add(-(pairs.sum(2).flatten() @ of_map) / (count * config.max_new_tokens), config.beta1)
    if not measured:
        take()
        return {}
    gradients = full_gradients(model, part, config.temperature)
    columns = predictors(learner, part, pairs, gradients, (of_map, before_step), config, count)
    momentum = flat_moments(model, learner.optimizer, "exp_avg")
    if momentum is None:
        momentum = torch.zeros(gradients.shape[1])
    everywhere = torch.arange(len(rows))
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    rate = learner.optimizer.param_groups[0]["lr"]
    before = log_likelihoods(model, part, everywhere, config)
    take()
    after = log_likelihoods(model, part, everywhere, config)
    moved = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - weights
    columns["the step as taken"] = gradients @ moved
    columns |= parts_of_the_step(learner, gradients, pairs, momentum, rate, config, count)
    better = (pairs.sum(2) > 0).flatten()
    result = {name: values[better].tolist() for name, values in columns.items()}
    result["change"] = (after - before)[better.numpy()].tolist()
    result["group"] = scored.repeat_interleave(size)[better].tolist()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------------------------------------------------


def configuration(options: argparse.Namespace, seed: int, folder: Path) -> Config:
    """GRPO with a constant loss norm, up to the last measured step."""
    flags: dict[str, Any] = {
        "model": options.model or str(EXAMPLE), "data": [str(folder / "training.jsonl")], "method": "grpo",
        "loss_norm": "constant", "seed": seed, "out": str(folder / "run"), "steps": max(options.steps) + 1,
        "questions": options.questions, "group_size": options.group_size, "device": "cpu", "eval_every": 0,
        "eval_samples": 1, "hold_out": 1, "max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS,
    }  # fmt: skip
    flags["learning_rate"] = options.rate
    if options.model:
        flags |= {"warmup": 1, "examples": options.examples, "prompt_file": options.prompt_file}
    return configure(**flags)


def measure_training(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train once, and measure the steps that are asked for: a line for each."""
    lines: list[dict[str, Any]] = []
    rectify, update = scoring.rectify, dagrpo.update
    seen: dict[str, torch.Tensor] = {}
    moments = Moments(torch.zeros(()), torch.zeros(()))
    taken = 0

    def remembering(model: Any, rollouts: Rollouts, rewards: torch.Tensor, *rest: Any) -> Any:
        seen["rewards"] = rewards
        return rectify(model, rollouts, rewards, *rest)

    def measuring(learner: dagrpo.Learner, rollouts: Rollouts, *rest: Any) -> dict[str, float]:
        nonlocal taken
        sums: dict[str, float] = {}
        config = rest[2]

        def take() -> None:
            sums.update(update(learner, rollouts, *rest))

        measured = taken in options.steps
        columns = measure_step(learner, rollouts, seen["rewards"], moments, measured, config, take)
        if measured:
            lines.append({"seed": seed, "steps": taken, "reward": seen["rewards"].mean().item(), "columns": columns})
        taken += 1
        return sums

    with tempfile.TemporaryDirectory() as name, silenced():
        folder = Path(name)
        if options.model:
            (folder / "training.jsonl").write_bytes(Path(options.data).read_bytes())
        else:
            tasks.write_sets(folder, question_sets(FULL, ""))
        with mock.patch.object(scoring, "rectify", remembering), mock.patch.object(dagrpo, "update", measuring):
            dagrpo.train(configuration(options, seed, folder))
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def with_sum(line: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns of a line, and the sum of what the output embedding and the map before it predict, as of two layers.

    P of the embedding lacks AdamW's correction for moments that begin at 0, that of the map has it.
    """
    columns = {name: np.array(values) for name, values in line["columns"].items()}
    kind = "AdamW, batch and momentum"
    if f"state, {kind}" in columns:
        correction = math.sqrt(1 - 0.999 ** line["steps"])
        of_both = correction * columns[f"gradient, {kind}"] + columns[f"state, {kind}"]
        columns[f"gradient and state, {kind}"] = of_both
    return columns


def joined(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of several seeds, whose groups are different ones. Only what all have."""
    of_lines = [with_sum(line) for line in lines]
    names = set.intersection(*map(set, of_lines))
    columns = {name: np.concatenate([each[name] for each in of_lines]) for name in sorted(names)}
    columns["group"] = np.concatenate([1_000 * n + np.array(line["columns"]["group"]) for n, line in enumerate(lines)])
    return columns


def predictor_names(by_steps: dict[int, dict[str, np.ndarray]]) -> list[str]:
    """In order of their first appearance; some do not exist before the first step."""
    names = dict.fromkeys(name for columns in by_steps.values() for name in columns)
    return sorted(name for name in names if name not in ("change", "group", *PARTS))


def curve_table(by_steps: dict[int, dict[str, np.ndarray]]) -> str:
    """Area under the curve as a detector of what falls, and rank correlation with the change, by predictor and step."""
    rows = []
    for name in predictor_names(by_steps):
        row = [name]
        for columns in by_steps.values():
            change, groups, value = columns["change"], columns["group"], columns.get(name)
            if value is None:
                row += ["–", "–"]
                continue
            row.append(shown(by_groups(area_under_curve, [-value, change < 0], groups), ".2f"))
            row.append(shown(by_groups(spearman, [value, change], groups), ".2f"))
        rows.append(row)
    head = ["predictor"]
    for steps in by_steps:
        head += [f"area, step {steps}", f"rank correlation, step {steps}"]
    return markdown_table(head, rows)


def calibration_table(by_steps: dict[int, dict[str, np.ndarray]]) -> str:
    """What a predictor calls displaced (below 0), and how much of that, and of the others, fell."""
    rows = []
    for name in predictor_names(by_steps):
        row = [name]
        for columns in by_steps.values():
            if name not in columns:
                row.append("–")
                continue
            fell, called = columns["change"] < 0, columns[name] < 0
            shares = [percent(mean_or_nan(fell[members])) for members in (called, ~called)]
            row.append(f"{percent(called.mean())}: {shares[0]}, {shares[1]}")
        rows.append(row)
    head = ["predictor", *(f"called displaced, step {steps}: of these fell, of the others" for steps in by_steps)]
    return markdown_table(head, rows)


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def part_table(by_steps: dict[int, dict[str, np.ndarray]]) -> str:
    """What the changes are made of: the mean of each part in nats, and its share of their variance (they add up)."""
    rows = []
    for steps, columns in by_steps.items():
        change = columns["change"]
        parts = {name: columns[name] for name in PARTS[:-1]}
        parts["neither"] = change - sum(parts.values())
        row = [str(steps), str(len(change)), str(len(np.unique(columns["group"]))), f"{(change < 0).mean():.0%}",
               f"{change.mean():+.3f}"]  # fmt: skip
        for values in parts.values():
            together = ((values - values.mean()) * (change - change.mean())).mean()
            share = together / change.var() if change.var() else math.nan  # of one answer there is no variance
            row.append(f"{values.mean():+.3f}, {number(100 * share, '.0f')}%")
        rows.append(row)
    return markdown_table(["steps", "right answers", "groups", "fell", "mean change", *PARTS], rows)


def model_name(model: str) -> str:
    """What a model is kept under: of a folder its last two names, since each run's is called RUN/model."""
    path = Path(model)
    if not model:
        return "the embedded model"
    return "/".join(path.parts[-2:]) if path.is_dir() else path.name


def by_setting(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By model and settings the lines that compare, of each seed and step the last one; titles name what differs."""
    apart: dict[str, dict[str, dict[tuple[int, int], dict[str, Any]]]] = {}
    for line in lines:
        own = apart.setdefault(line["model"], {}).setdefault(json.dumps(line["settings"], sort_keys=True), {})
        own[line["seed"], line["steps"]] = line
    return {
        model if len(of_model) == 1 else f"{model}, {settings}": list(own.values())
        for model, of_model in apart.items()
        for settings, own in of_model.items()
    }


def tables(lines: list[dict[str, Any]]) -> str:
    measured = [line for line in lines if line["columns"]]
    by_steps = {
        steps: joined([line for line in measured if line["steps"] == steps])
        for steps in sorted({line["steps"] for line in measured})
    }
    return "\n\n".join(table(by_steps) for table in (part_table, curve_table, calibration_table))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="as dagrpo.py takes it; the embedded model without it")
    parser.add_argument("--data", default="", help="with --model: the JSONL file of its questions")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, nargs="+", help="taken before the measured ones; 0 and 2 with --model")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--examples", default="", help="with --model: as dagrpo.py takes them")
    parser.add_argument("--prompt-file", default="", help="with --model: as dagrpo.py takes it")
    parser.add_argument("--json", type=Path, default=FILE, help="where lines are kept")
    parser.add_argument("--report", action="store_true", help="print the tables of what is kept, and measure nothing")
    options = parser.parse_args(arguments)
    if options.model and not options.data:
        parser.error("--data is missing: with --model, name the JSONL file of its questions.")
    if options.data and not Path(options.data).is_file():
        parser.error(f"--data {options.data}: there is no such file.")
    options.steps = options.steps or ([0, 2] if options.model else list(STEPS))
    name = model_name(options.model)
    settings = {key: vars(options)[key] for key in ("questions", "group_size", "max_new_tokens", "rate")}
    settings |= {key: Path(vars(options)[key]).name for key in ("examples", "prompt_file") if vars(options)[key]}
    if not options.report:
        commit()  # kept from now on: the code that was loaded, whatever is committed while it runs
        if options.data:
            settings["data"] = checkpoint.sha256(Path(options.data))[:16]
        kept = [
            (line["model"], line["seed"], line["steps"])
            for line in read_kept(options.json)
            if line["settings"] == settings
        ]
        for seed in options.seeds:
            if all((name, seed, steps) in kept for steps in options.steps):
                continue
            for line in measure_training(options, seed):
                described = {"model": name, "settings": settings, "commit": commit(), "machine": machine()}
                append_kept(options.json, {**described, **rounded(line)})
    lines = read_kept(options.json)
    if not lines:
        sys.exit(f"study.predict: nothing is kept in {options.json}: run it without --report first.")
    for title, of_setting in by_setting(lines).items():
        print(f"### {title}\n\n{tables(of_setting)}\n")


if __name__ == "__main__":
    main()
