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
from transformers import PreTrainedModel

import scoring
from dagrpo import shared_denominator
from harness import report
from harness.report import say
from questions import Question
from rollout import Completion, Rollouts, assemble
from scale.ranks import Head, completion_states, gathered_ids, is_sharded, whole_head, without_adapter
from scorers.gradients import HeadMetric, metric_of_moments
from scorers.judge import of_differing_groups
from scoring import Rectification, Rectified


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


@dataclass(frozen=True)
class Share:
    """The groups that a process judges, and their rollouts."""

    groups: list[int]  # of P
    rollouts: Rollouts | None  # N' = P'·G rows; None where there is no group
    calls: int  # of the model, by the process that has most groups
    lengths: torch.Tensor  # (N,) of all completions


def rectified_groups(trainer: Any, sampled: Sampled) -> Rectified:
    """The masks and advantages of all P groups. With --rectify none nothing is masked."""
    how, rewards = trainer.core.rectification, sampled.totals
    assert sampled.rewards is not None
    pair_mask = torch.ones(*rewards.shape, rewards.shape[1], dtype=torch.bool, device=rewards.device)
    found = Rectified(
        pair_mask,
        torch.full(pair_mask.shape, torch.nan, device=rewards.device),
        scoring.rectified_advantages(rewards, pair_mask, scale=how.scale),
        rewards.new_zeros(rewards.numel(), 1),
    )
    if how.rule != "none":
        found = judged_groups(trainer, sampled, found, how)
    is_anchor = torch.tensor(sampled.is_anchor, device=rewards.device)
    without_reward = sampled.rewards.isnan().all(1) & ~is_anchor  # (N,)
    return replace(found, advantages=found.advantages.masked_fill(without_reward.view(rewards.shape), 0.0))


def metrics_of(rectified: Rectified, sampled: Sampled, accelerator: Accelerator) -> dict[str, float]:
    """What docs/metrics.md explains of groups and pairs."""
    lengths = torch.tensor([len(ids) for ids in sampled.completions], device=accelerator.device)
    tokens = cast(Rollouts, SimpleNamespace(response_mask=accelerator.gather(lengths)))  # only their sum counts
    metrics = report.group_metrics(sampled.totals, tokens, rectified, rectified.has_advantage)
    is_anchor = torch.tensor(sampled.is_anchor).view(sampled.totals.shape)
    return {**metrics, "anchored": is_anchor.any(1).float().mean().item()}


def judged_groups(trainer: Any, sampled: Sampled, every: Rectified, how: Rectification) -> Rectified:
    """`scoring.rectify` of all P groups, each of them judged by one process; `every` holds for those without a signal.

    Adds to the trainer's metrics: seconds, bytes of the head, and better completions that are displaced (5').
    """
    accelerator: Accelerator = trainer.accelerator
    started = time.perf_counter()
    share = share_of(trainer, sampled, how)
    rollouts, rewards, distances = share.rollouts, sampled.totals[share.groups], None
    if trainer.distances is not None and rollouts is not None:
        asked = [sampled.questions[p] for p in share.groups]
        judged = of_differing_groups(trainer.distances, asked, rollouts.texts, rewards)
        distances = judged.distances
        for note in judged.notes:
            say(note)
    of_head: Any = contextlib.nullcontext()
    if how.scorer in scoring.BY_GRADIENT:
        parts = [] if rollouts is None else in_parts(rollouts, trainer.args.per_device_train_batch_size)
        states: list[torch.Tensor | None] = [*completion_states(trainer.model, accelerator, parts, share.calls)]
        rollouts = None if rollouts is None else replace(rollouts, hidden=states)
        of_head = whole_head(trainer, trainer.core.resolved_metric == "optimizer" and how.rule != "threshold")
    mine, before = None, time.perf_counter()
    with of_head as head:
        measured = {"seconds/head": time.perf_counter() - before, "bytes/head": 0.0}
        if head is not None and is_sharded(accelerator):
            measured["bytes/head"] = float(head.bytes)
        if rollouts is not None:
            metric = metric_of(head, trainer, share.lengths)
            mine = scoring.rectify(cast(PreTrainedModel, head), rollouts, rewards, how, distances, metric)
    found = brought_together(accelerator, every, share, mine)
    measured |= {**witnessed(accelerator, mine), "seconds/score": time.perf_counter() - started}
    for name, value in measured.items():
        trainer._metrics["train"][name].append(value)
    return found


def share_of(trainer: Any, sampled: Sampled, how: Rectification) -> Share:
    """The groups of this process: every R-th of those whose rewards differ, so that all have about as much to do.

    Rule `batch` is one problem of all groups, and the first process solves it.
    """
    accelerator: Accelerator = trainer.accelerator
    size, rank, processes = trainer.num_generations, accelerator.process_index, accelerator.num_processes
    prompts, completions = (gathered_ids(accelerator, ids) for ids in (sampled.prompts, sampled.completions))
    differ = (sampled.totals != sampled.totals[:, :1]).any(1).nonzero().squeeze(1).tolist()
    groups, most = differ[rank::processes], math.ceil(len(differ) / processes)
    if how.rule == "batch":
        groups, most = differ if rank == 0 else [], len(differ)
    rows = [p * size + g for p in groups for g in range(size)]
    laid = [Completion(prompts[n], completions[n], is_anchor=sampled.is_anchor[n]) for n in rows]
    model = without_adapter(accelerator.unwrap_model(trainer.model))
    return Share(
        groups,
        assemble(model, trainer._tokenizer, laid, size) if laid else None,
        math.ceil(most * size / trainer.args.per_device_train_batch_size),
        torch.tensor([len(ids) for ids in completions], device=accelerator.device),
    )


def in_parts(rollouts: Rollouts, rows_at_once: int) -> list[Rollouts]:
    return [rollouts.rows(rows) for rows in torch.arange(len(rollouts.texts)).split(rows_at_once)]


def metric_of(head: Head | None, trainer: Any, lengths: torch.Tensor) -> HeadMetric | None:
    """What --metric optimizer compares gradients by; None without it, and where the head has no moments."""
    if head is None or head.moments is None:
        return None
    group = trainer.optimizer.param_groups[0]
    return metric_of_moments(*head.moments, group, shared_denominator(lengths, trainer.core))


def brought_together(accelerator: Accelerator, every: Rectified, share: Share, mine: Rectified | None) -> Rectified:
    """What the processes have found, each of its groups, as one record; each group is 0 on all processes but one."""
    device, size = every.advantages.device, every.pair_mask.shape[1]
    groups = torch.tensor(share.groups, dtype=torch.long, device=device)
    rows = (groups[:, None] * size + torch.arange(size, device=device)).flatten()
    shape = tuple(every.pair_mask.shape)

    def joined(shape: tuple[int, ...], places: torch.Tensor, values: torch.Tensor | None) -> torch.Tensor:
        room = torch.zeros(shape, device=device)
        if values is not None:
            room[places] = values.float()
        return accelerator.reduce(room, reduction="sum")

    judged = joined((shape[0],), groups, torch.ones(len(groups), device=device)).bool()
    masked = joined(shape, groups, None if mine is None else ~mine.pair_mask).bool()
    d = joined(shape, groups, None if mine is None else mine.distinctiveness)
    advantages = joined(shape[:2], groups, None if mine is None else mine.advantages)
    withheld = torch.zeros(shape[0] * size, int(share.lengths.max()), device=device)
    if mine is not None and share.rollouts is not None:
        for row, values, predicts in zip(rows, mine.withheld, share.rollouts.prediction_mask, strict=True):
            withheld[row, : int(predicts.sum())] = values[predicts]
    return Rectified(
        ~masked,
        torch.where(judged[:, None, None], d, every.distinctiveness),
        torch.where(judged[:, None], advantages, every.advantages),
        accelerator.reduce(withheld, reduction="sum"),
    )


def witnessed(accelerator: Accelerator, mine: Rectified | None) -> dict[str, float]:
    """Of the better completions of all groups, the shares that their own group displaces: at first, at last."""
    counts = torch.zeros(3, device=accelerator.device)
    if mine is not None and mine.witness is not None:
        seen = mine.witness
        counts = torch.stack([values.sum() for values in (seen.better, seen.displaced, seen.displaced_left)]).float()
    better, displaced, left = accelerator.reduce(counts, reduction="sum").tolist()
    return {"displaced": displaced / better, "displaced_left": left / better} if better else {}
