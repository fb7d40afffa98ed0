"""What study.regimes compares: rules of --rectify, by cheap and by full gradients, and changes that are no flag.

    python -m study.arms chance --model MODEL --data FILE    dagrpo.py with a change: as many pairs masked, by chance

An arm is a training whose flags and whose way from rewards to advantages are its own; everything else is its regime's.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel

import dagrpo
import rollout
import scoring
from rollout import Rollouts
from scorers.gradients import Measure, Products
from scoring import Rectification, Rectified, displaced, first_order, pair_advantages

CHANGES = ("positives", "chance", "shrink group", "shrink batch", "shrink chance")
LEAST_SHARE = 0.1  # of a completion's weight: what `shrunk` takes at least, so that it ends


@dataclass(frozen=True)
class Arm:
    """One way from rewards to advantages."""

    flags: dict[str, Any] = field(default_factory=dict)
    full: bool = False  # by the gradients of all parameters, in place of the output embedding's
    change: str = ""  # of CHANGES, made to what the flags give


PLAIN = {"metric": "gradient"}
CHEAP = {"rectify": "none", "scorer": "gradient", **PLAIN}
OPTIMIZER = {"metric": "optimizer"}
ARMS = {
    "none": Arm(CHEAP),
    "positives": Arm(CHEAP, change="positives"),  # what --negative-weight 0 does
    "threshold": Arm({"rectify": "threshold", **PLAIN}),
    "threshold, by chance": Arm({"rectify": "threshold", **PLAIN}, change="chance"),
    "pair": Arm({"rectify": "pair", **PLAIN}),
    "group": Arm({"rectify": "group", **PLAIN}),
    "group, by chance": Arm({"rectify": "group", **PLAIN}, change="chance"),
    "batch": Arm({"rectify": "batch", **PLAIN}),
    "batch, by chance": Arm({"rectify": "batch", **PLAIN}, change="chance"),
    "token": Arm({"rectify": "token", **PLAIN}),
    "group, optimizer": Arm({"rectify": "group", **OPTIMIZER}),
    "batch, optimizer": Arm({"rectify": "batch", **OPTIMIZER}),
    "shrink group": Arm(CHEAP, change="shrink group"),
    "shrink batch": Arm(CHEAP, change="shrink batch"),
    "shrink batch, by chance": Arm(CHEAP, change="shrink chance"),
    "shrink group, optimizer": Arm(OPTIMIZER, change="shrink group"),
    "shrink batch, optimizer": Arm(OPTIMIZER, change="shrink batch"),
    "shrink batch, optimizer, by chance": Arm(OPTIMIZER, change="shrink chance"),
    "full threshold": Arm({"rectify": "threshold", **PLAIN}, full=True),
    "full threshold, by chance": Arm({"rectify": "threshold", **PLAIN}, full=True, change="chance"),
    "full group": Arm({"rectify": "group", **PLAIN}, full=True),
    "full batch, optimizer": Arm({"rectify": "batch", **OPTIMIZER}, full=True),
    "full shrink batch, optimizer": Arm(OPTIMIZER, full=True, change="shrink batch"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Changes
# ---------------------------------------------------------------------------------------------------------------------


def shrunk(cross: torch.Tensor, advantages: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """Advantages of which worse completions have lost weight, until no better one is displaced, or none is to blame.

    Each time the worse completion that lowers the displaced ones most loses as much as it takes, and at least a tenth
    of what it had at first. Σ Ã = 0 does not hold any more. `offset` is added to v of (5').

    (P, G, G), (P, G), (P, G) -> (P, G)
    """
    left = advantages.clone()
    while True:
        changes, limits = first_order(cross, left, advantages, offset)
        harmed = (advantages > 0) & (changes < -limits)
        pull = (harmed.to(cross.dtype)[:, None, :] @ cross).squeeze(1)  # (P, G)
        effects = left.clamp(max=0) * pull  # of each worse completion on the displaced ones together
        worst, place = effects.min(1, keepdim=True)
        active = harmed.any(1, keepdim=True) & (worst < 0)
        if not bool(active.any()):
            return left
        deficit = -(changes * harmed).sum(1, keepdim=True)  # what the displaced ones lack
        needed = deficit / pull.gather(1, place).clamp(min=torch.finfo(pull.dtype).tiny)  # of the weight
        least = LEAST_SHARE * advantages.gather(1, place).abs()
        weight = left.gather(1, place)
        smaller = (weight + torch.maximum(needed, least)).clamp(max=0)
        left = left.scatter(1, place, torch.where(active, smaller, weight))


def by_chance(masked: torch.Tensor, candidates: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many pairs of each group as are masked, drawn from the candidates. (P, G, G) bool each"""
    drawn = torch.zeros_like(masked)
    for p in range(len(masked)):
        pairs = candidates[p].triu().nonzero()
        count = int(masked[p].triu().sum())
        i, j = pairs[torch.randperm(len(pairs), generator=generator)[:count]].T
        drawn[p, i, j] = drawn[p, j, i] = True
    return drawn


def shrunk_by_chance(advantages: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """The same weight in all, taken from worse completions drawn by chance, each loses all it has. (P, G) -> (P, G)"""
    left = advantages.clone().flatten()
    worse = (left < 0).nonzero().squeeze(1)
    for i in worse[torch.randperm(len(worse), generator=generator)].tolist():
        taken = min(amount, -float(left[i]))
        left[i] += taken
        amount -= taken
    return left.view_as(advantages)


def changed(
    change: str, rectified: Rectified, rewards: torch.Tensor, products: Products, scale: str, generator: torch.Generator
) -> Rectified:
    """What the arm makes of the rectified advantages, with what is displaced then. (P, G)"""
    scored = (rewards != rewards[:, :1]).any(1).nonzero().squeeze(1)
    if len(scored) == 0:
        return rectified
    mask, plain = rectified.pair_mask, pair_advantages(rewards[scored], scale=scale).sum(2)
    drift = products.batch_drift
    if change == "positives":
        left = scoring.with_negatives_weighted(rectified.advantages[scored], 0.0)
    elif change == "chance":
        differ = rewards[:, :, None] != rewards[:, None, :]
        mask = ~by_chance(~mask & differ, differ, generator)
        left = scoring.rectified_advantages(rewards, mask, scale=scale)[scored]
    elif change == "shrink group":
        left = shrunk(products.cross, plain)
    else:
        left = shrunk(products.batch[None], plain.flatten()[None], drift).view_as(plain)
    if change == "shrink chance":
        left = shrunk_by_chance(plain, float((left - plain).sum()), generator)
    advantages = torch.zeros_like(rectified.advantages)
    advantages[scored] = left
    assert rectified.witness is not None
    of_batch = displaced(products.batch[None], left.flatten()[None], plain.flatten()[None], drift)
    witness = replace(
        rectified.witness,
        displaced_left=displaced(products.cross, left, plain),
        displaced_by_batch_left=of_batch.view_as(plain),
    )
    return replace(rectified, pair_mask=mask, advantages=advantages, witness=witness)


# ---------------------------------------------------------------------------------------------------------------------
# Full gradients
# ---------------------------------------------------------------------------------------------------------------------


def full_metric(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, denominator: float = 1.0
) -> list[torch.Tensor] | None:
    """√P of AdamW's next step for each parameter, 1/(√v + ε)^½, without momentum; None before its first step."""
    moments = [optimizer.state.get(parameter, {}).get("exp_avg_sq") for parameter in model.parameters()]
    if any(value is None for value in moments):
        return None
    return [(value.sqrt() + optimizer.param_groups[0]["eps"]) ** -0.5 for value in moments]


def full_products(model: PreTrainedModel, rollouts: Rollouts, how: Rectification, measure: Measure) -> Products:
    """As `scoring.products_of`, but with the gradients of all parameters. N rows, without shaped anchors."""
    assert not bool(rollouts.anchor_mask.any()), "pushes of shaped anchors are not computed here"
    parameters, scales = list(model.parameters()), measure.metric
    gradients = []
    for i in range(len(rollouts.texts)):
        one = rollouts.rows(torch.tensor([i]))
        logps, _ = rollout.token_logps(model, *one.tokens, temperature=how.temperature)
        parts = torch.autograd.grad(logps.sum() / (one.lengths[0] if how.per_token else 1), parameters)
        if scales is not None:
            parts = tuple(part * scale for part, scale in zip(parts, scales, strict=True))  # type: ignore[call-overload]
        gradients.append(torch.cat([part.flatten() for part in parts]))
    every = torch.stack(gradients)
    batch = every @ every.T  # (N, N)
    size = rollouts.group_size
    blocks = batch.view(-1, size, len(batch) // size, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return Products(blocks, blocks, batch)


# ---------------------------------------------------------------------------------------------------------------------
# A training with an arm
# ---------------------------------------------------------------------------------------------------------------------


def generator_of(rollouts: Rollouts) -> torch.Generator:
    """What a batch draws its chance from: its completions, so that a resumed run draws as one that never stopped."""
    digest = hashlib.sha256("\0".join(rollouts.texts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@contextlib.contextmanager
def training_with(arm: Arm) -> Iterator[None]:
    """Inside, `dagrpo.train` rectifies as the arm does."""
    whole, products_of = scoring.rectify, full_products if arm.full else scoring.products_of
    seen: list[Products] = []

    def remembering(*arguments: Any) -> Products:
        seen[:] = [products_of(*arguments)]
        return seen[0]

    def rectify(
        model: PreTrainedModel, rollouts: Rollouts, rewards: torch.Tensor, how: Rectification, *rest: Any
    ) -> Rectified:
        rectified = whole(model, rollouts, rewards, how, *rest)
        if not arm.change or not seen:
            return rectified
        return changed(arm.change, rectified, rewards, seen[0], how.scale, generator_of(rollouts))

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(scoring, "products_of", remembering))
        patches.enter_context(mock.patch.object(scoring, "rectify", rectify))
        if arm.full:
            patches.enter_context(mock.patch.object(scoring, "adam_metric", full_metric))
        yield


def main(arguments: list[str] | None = None) -> None:
    """Train with one of CHANGES; all other words are those of dagrpo.py."""
    change, *flags = (sys.argv[1:] if arguments is None else arguments) or ["no word"]
    if change not in CHANGES:
        sys.exit(f"study.arms: {change}: there is no such change, only {', '.join(CHANGES)}.")
    with training_with(Arm(change=change)):
        dagrpo.main(flags)


if __name__ == "__main__":
    main()
