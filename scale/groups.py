"""`scoring.rectify` on groups that may lie on several processes: which process judges which, and what comes of it."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from transformers import PreTrainedModel

import scoring
from dagrpo import shared_denominator
from harness import report
from questions import Question
from rollout import Completion, Rollouts, assemble
from scale.ranks import Head, completion_states, whole_head, without_adapter
from scorers.gradients import HeadMetric, metric_of_moments
from scorers.judge import Judged, of_differing_groups
from scoring import Rectified


@dataclass
class Sampled:
    """What a process has sampled: B of the N completions of all processes; P groups of G may lie on several of them."""

    rows: list[dict[str, Any]]  # of the data set, one for each of the B completions
    rewards: torch.Tensor | None = None  # (N, functions) of the completions as they were sampled
    totals: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (P, G), of anchors theirs
    questions: list[Question] = field(default_factory=list)  # P, where the trainer knows them
    prompts: list[list[int]] = field(default_factory=list)  # B
    completions: list[list[int]] = field(default_factory=list)  # B, with anchors in place
    is_anchor: list[bool] = field(default_factory=list)  # N


def rectified_groups(trainer: Any, sampled: Sampled) -> Rectified:
    """The masks and advantages of all P groups; `withheld` has a place for each completion token. (N, C)

    With --rectify none nothing is masked. Adds what docs/metrics.md explains to the trainer's metrics.
    """
    accelerator, how, rewards = trainer.accelerator, trainer.core.rectification, sampled.totals
    lengths = torch.tensor([len(ids) for ids in sampled.completions], device=accelerator.device)
    lengths = accelerator.gather(lengths)  # (B,) -> (N,)
    pair_mask = torch.ones(*rewards.shape, rewards.shape[1], dtype=torch.bool, device=rewards.device)
    advantages = scoring.rectified_advantages(rewards, pair_mask, scale=how.scale)
    found = Rectified(
        pair_mask,
        torch.full(pair_mask.shape, torch.nan, device=rewards.device),
        scoring.with_negatives_weighted(advantages, how.negative_weight),
        rewards.new_zeros(len(lengths), int(lengths.max())),
    )
    metrics = {} if how.rule == "none" else judge_groups(trainer, sampled, found, lengths)
    is_anchor = torch.tensor(sampled.is_anchor, device=rewards.device)
    assert sampled.rewards is not None
    without_reward = sampled.rewards.isnan().all(1) & ~is_anchor  # (N,)
    found.advantages[without_reward.view(rewards.shape)] = 0.0
    tokens = cast(Rollouts, SimpleNamespace(response_mask=lengths))  # only their sum counts
    metrics |= report.group_metrics(rewards, tokens, found, found.has_advantage)
    metrics["anchored"] = is_anchor.view(rewards.shape).any(1).float().mean().item()
    for name, value in metrics.items():
        trainer._metrics["train"][name].append(value)
    return found


def judge_groups(trainer: Any, sampled: Sampled, found: Rectified, lengths: torch.Tensor) -> dict[str, float]:
    """Write what `scoring.rectify` makes of the P groups into `found`, each judged by one process. Returns metrics."""
    started, how, size = time.perf_counter(), trainer.core.rectification, trainer.num_generations
    groups = share_of(trainer.accelerator, sampled.totals, how.rule)
    rollouts, rewards = rollouts_of(trainer, sampled, groups), sampled.totals[groups]
    judged = Judged(None)
    if trainer.distances is not None:
        asked = [sampled.questions[p] for p in groups]
        judged = of_differing_groups(trainer.distances, asked, rollouts.texts, rewards)
        for note in judged.notes:
            report.tell(note)
    of_head: Any = contextlib.nullcontext()
    if how.scorer in scoring.BY_GRADIENT:
        states = completion_states(trainer.model, trainer.accelerator, rollouts, trainer.args)
        rollouts = replace(rollouts, hidden=[*states])
        of_head = whole_head(trainer, trainer.core.resolved_metric == "optimizer" and how.rule != "threshold")
    before = time.perf_counter()
    with of_head as head:
        metrics = {"seconds/head": time.perf_counter() - before, "bytes/head": float(head.bytes if head else 0)}
        metric = metric_of(head, trainer, lengths)
        mine = scoring.rectify(cast(PreTrainedModel, head), rollouts, rewards, how, judged.distances, metric)
    of_tokens = [row[predicts] for row, predicts in zip(mine.withheld, rollouts.prediction_mask, strict=True)]
    part = {**vars(mine), "withheld": of_tokens, "witness": mine.witness and vars(mine.witness)}

    displaced = {name: torch.zeros_like(sampled.totals) for name in ("better", "displaced", "displaced_left")}
    everybody = gather_object([(groups, send_to_device(part, "cpu"), judged.metrics)])
    for places, of_groups, _ in everybody:
        for name in ("pair_mask", "distinctiveness", "advantages"):
            getattr(found, name)[places] = of_groups[name].to(rewards.device)
        for row, values in zip(rows_of(places, size), of_groups["withheld"], strict=True):
            found.withheld[row, : len(values)] = values.to(rewards.device)
        for name in displaced if of_groups["witness"] else ():
            displaced[name][places] = of_groups["witness"][name].float().to(rewards.device)
    better, *shares = (values.sum().item() for values in displaced.values())
    metrics |= {name: share / better for name, share in zip([*displaced][1:], shares, strict=True) if better}
    for name in judged.metrics:
        metrics[name] = math.fsum(of_judge[name] for *_, of_judge in everybody) / len(everybody)
    return {**metrics, "seconds/score": time.perf_counter() - started}


def share_of(accelerator: Accelerator, totals: torch.Tensor, rule: str) -> list[int]:
    """The groups that this process judges: every R-th of those whose rewards differ.

    All processes judge as many, some of them groups that others judge too, so that all call the model alike. Rule
    `batch` is one problem of all groups, and each process solves it. (P, G)
    """
    differ = (totals != totals[:, :1]).any(1).nonzero().squeeze(1).tolist() or [0]
    if rule == "batch":
        return list(differ)
    processes = accelerator.num_processes
    first, each = accelerator.process_index, math.ceil(len(differ) / processes)
    return [differ[(first + n * processes) % len(differ)] for n in range(each)]


def rows_of(groups: list[int], size: int) -> list[int]:
    return [p * size + g for p in groups for g in range(size)]


def rollouts_of(trainer: Any, sampled: Sampled, groups: list[int]) -> Rollouts:
    """These groups, from all processes."""
    prompts, completions = gather_object(sampled.prompts), gather_object(sampled.completions)
    laid = [
        Completion(prompts[n], completions[n], is_anchor=sampled.is_anchor[n])
        for n in rows_of(groups, trainer.num_generations)
    ]
    model = without_adapter(trainer.accelerator.unwrap_model(trainer.model))
    return assemble(model, trainer._tokenizer, laid, trainer.num_generations)


def metric_of(head: Head | None, trainer: Any, lengths: torch.Tensor) -> HeadMetric | None:
    """What --metric optimizer compares gradients by; None without it, and where the head has no moments."""
    if head is None or head.moments is None:
        return None
    group = trainer.optimizer.param_groups[0]
    return metric_of_moments(*head.moments, group, shared_denominator(lengths, trainer.core))
