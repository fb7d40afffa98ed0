"""How distinct are two completions of a group, which pairs are masked, what advantage is left? Equations (1) to (5).

`rectify` is the whole of it for one batch of rollouts; below it stands each equation by itself, on tensors (and, for
the gradient scorers, a model). Nothing here knows of the training loop, so that another trainer can use it as it is.
The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from policy.compiling import compiled
from policy.logprobs import check_response_mask, token_logps
from rollout import Rollouts
from scorers.gradients import (
    ROW_TOKENS,
    HeadMetric,
    Measure,
    Products,
    Sequences,
    completion_states,
    gradient_products,
    token_gradients,
)
from scorers.gradients import adam_metric as adam_metric  # names that others call
from scorers.gradients import gradient_gram as gradient_gram
from scorers.tokens import by_tokens

RULES = ("none", "threshold", "pair", "group", "batch", "token")
ROUNDING = 1e-5  # of the sum of absolute terms: what a sum must be below 0 to count as negative
PAIRS_AT_ONCE = 8  # pairs that `safe_sums` looks ahead by


# ---------------------------------------------------------------------------------------------------------------------
# Rectification of one batch
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectification:
    """How pairs are judged."""

    rule: str  # of RULES: none masked, (3) by threshold, (5) by pairs, (5') by groups or the batch, or token by token
    scorer: str  # of SCORERS: by what
    threshold: float  # τ of (3)
    scale: str  # of (4): std or none
    temperature: float  # at which completions were sampled and are trained
    per_token: bool  # the loss divides each log-likelihood by its tokens (--loss-norm sequence), and so does (5)
    gamma: float | None  # of the anchors' shaped objective (7); None: it is log π
    negative_weight: float = 1.0  # what the negative Ã of (4) are multiplied by
    # Padded tokens that go through the model at a time: they bound memory, and are no part of how pairs are judged.
    token_budget: int = field(default=ROW_TOKENS, compare=False)


@dataclass(frozen=True)
class Witness:
    """Which better completions (A_i > 0) lose likelihood by an update, to first order: v_i < 0 of (5').

    Of the P groups whose rewards differ; the others have no update.
    """

    better: torch.Tensor  # (P, G) bool
    displaced: torch.Tensor  # (P, G) bool, by the update of their own group, unrectified
    displaced_left: torch.Tensor  # (P, G) bool, and rectified
    displaced_by_batch: torch.Tensor  # (P, G) bool, by the update of the whole batch, unrectified
    displaced_by_batch_left: torch.Tensor | None  # (P, G) bool, and rectified; None where tokens were withheld

    def shares(self) -> dict[str, float]:
        """Of the better completions, by the names of the fields; nothing where there are none."""
        count = int(self.better.sum())
        values = {name: value for name, value in vars(self).items() if name != "better" and value is not None}
        return {name: value.sum().item() / count for name, value in values.items()} if count else {}


@dataclass(frozen=True)
class Rectified:
    """What is left of the pairs of one batch. Where a group was not scored, its d is NaN."""

    pair_mask: torch.Tensor  # m (P, G, G) bool, False: the pair is masked
    distinctiveness: torch.Tensor  # d (P, G, G)
    advantages: torch.Tensor  # Ã (P, G)
    withheld: torch.Tensor  # (N, S) what single predictions lose of their completion's Ã (--rectify token), else 0
    witness: Witness | None = None  # where gradients were compared

    @property
    def token_advantages(self) -> torch.Tensor:
        """The advantage of each prediction. -> (N, S)"""
        return self.advantages.flatten()[:, None] - self.withheld

    @property
    def has_advantage(self) -> torch.Tensor:
        """Which completions have one at all: the others need no forward and no backward pass. -> (N,)"""
        return (self.advantages.flatten() != 0) | (self.withheld != 0).any(1)


def rectify(
    model: PreTrainedModel,
    rollouts: Rollouts,  # N rows
    rewards: torch.Tensor,  # (P, G)
    how: Rectification,
    distances: torch.Tensor | None = None,  # (P, G, G) of a judge, NaN where a pair was not scored
    metric: HeadMetric | None = None,
) -> Rectified:
    """Mask pairs, or withhold tokens, and take the advantages from the rest. Equations (2) to (5').

    Groups whose rewards are all equal have no advantage whatever the mask: they are not scored. Where the scorer
    compares gradients, a witness tells what the update does to better completions, also where nothing is masked.
    """
    groups, size = rewards.shape
    pair_mask = torch.ones(groups, size, size, dtype=torch.bool, device=rewards.device)
    d = torch.full(pair_mask.shape, torch.nan, device=rewards.device)
    withheld, witness = torch.zeros_like(rollouts.logps), None
    scored = (rewards != rewards[:, :1]).any(1).nonzero().squeeze(1)  # groups with different rewards
    if len(scored) and (how.rule != "none" or how.scorer in BY_GRADIENT):
        rows = (scored[:, None] * size + torch.arange(size, device=scored.device)).flatten()
        part, pairs = rollouts.rows(rows), pair_advantages(rewards[scored], scale=how.scale)
        if how.scorer in BY_GRADIENT:
            measure = Measure(how.scorer, how.temperature, metric, how.token_budget)
            states = completion_states(model, *part.tokens, part.hidden, how.token_budget)
            part = replace(part, hidden=list(states))  # those of anchors are needed more than once
            products = products_of(model, part, how, measure)
            d[scored] = gradient_distinctiveness(products.gram)  # (2)
            pair_mask[scored] = pairs_by_gradient(products, d[scored], rewards[scored], pairs, how)  # (3), (5), (5')
            spared = None
            if how.rule == "token":
                found, spared = withheld_from_tokens(model, part, pairs.sum(2), products.cross, how, measure)  # (5')
                for row, values in found.items():
                    withheld[rows[row], rollouts.prediction_mask[rows[row]]] = values
            witness = witnessed(products, pairs, pair_mask[scored], spared, how.negative_weight)
        else:
            if distances is None:
                d[scored] = distinctiveness(how.scorer, model, *part.tokens, size, texts=part.texts)  # (2)
            else:
                d[scored] = distances[scored]
            pair_mask = distinct_pairs(d, how.threshold)  # (3)
    advantages = rectified_advantages(rewards, pair_mask, scale=how.scale)  # (4)
    advantages = with_negatives_weighted(advantages, how.negative_weight)
    return Rectified(pair_mask, d, advantages, withheld, witness)


def pairs_by_gradient(
    products: Products,
    d: torch.Tensor,  # (P, G, G)
    rewards: torch.Tensor,  # (P, G)
    pairs: torch.Tensor,  # w of (4), (P, G, G)
    how: Rectification,
) -> torch.Tensor:  # (P, G, G) bool
    """m by the rule: equation (3), (5), or (5') of each group or of them all."""
    groups, size = rewards.shape
    if how.rule == "threshold":
        return distinct_pairs(d, how.threshold)
    if how.rule == "pair":
        return safe_pairs(products.cross, rewards)
    if how.rule == "group":
        return safe_sums(products.cross, pairs)
    if how.rule == "batch":  # one group of N, in which there are pairs of the same question alone
        of_batch = safe_sums(products.batch[None], torch.block_diag(*pairs)[None], products.batch_drift)
        blocks = of_batch.view(groups, size, groups, size)  # (1, N, N) -> (P, G, P, G)
        return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (G, G, P) -> (P, G, G)
    return torch.ones_like(pairs, dtype=torch.bool)


def products_of(model: PreTrainedModel, rollouts: Rollouts, how: Rectification, measure: Measure) -> Products:
    """g_i·g_j, and g_i·g̃_j in the normalisation of the loss, of N rows."""
    sequences = sequences_of(rollouts)
    products = gradient_products(model, sequences, measure, push_weights(model, rollouts, how))
    if not how.per_token:
        return products
    lengths = rollouts.lengths
    by_group = lengths.view(-1, rollouts.group_size)
    return Products(
        products.gram,
        products.cross / (by_group[:, :, None] * by_group[:, None, :]),
        products.batch / (lengths[:, None] * lengths[None, :]),
        None if products.drift is None else products.drift / lengths,
    )


def sequences_of(rollouts: Rollouts) -> Sequences:
    return Sequences(*rollouts.tokens, rollouts.group_size, rollouts.texts, rollouts.hidden)


@torch.no_grad()
def push_weights(model: PreTrainedModel, rollouts: Rollouts, how: Rectification) -> torch.Tensor:
    """w_t of (5): how much a token's push is its gradient. 1 on-policy; ∂f/∂log π for a shaped anchor. -> (N, S)"""
    weights = torch.ones_like(rollouts.logps)
    anchors = rollouts.anchor_mask.nonzero().squeeze(1)  # (N,) -> (number of anchors,)
    if how.gamma is None or len(anchors) == 0:
        return weights
    part = rollouts.rows(anchors)
    states = torch.cat(completion_states(model, *part.tokens, part.hidden, how.token_budget))
    logps, _ = token_logps(model, *part.tokens, temperature=how.temperature, states=states)
    slopes = how.gamma * logps.exp() / (logps.exp() + how.gamma) ** 2
    for row, values, mask in zip(anchors.tolist(), slopes, part.prediction_mask, strict=True):
        weights[row, rollouts.prediction_mask[row]] = values[mask]
    return weights


@torch.no_grad()
def withheld_from_tokens(
    model: PreTrainedModel,
    rollouts: Rollouts,  # N rows
    advantages: torch.Tensor,  # A (P, G), unrectified
    cross: torch.Tensor,  # (P, G, G) g_i·g̃_j
    how: Rectification,
    measure: Measure,
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:  # {row: (M,)}, (P, G)
    """What tokens of worse completions lose of their advantage, so that no better one is displaced. Equation (5').

    The first result has the rows that lose something; the second is by how much v_i grows.
    """
    size = rollouts.group_size
    spared = torch.zeros_like(advantages)
    found: dict[int, torch.Tensor] = {}
    changes, limits = first_order(cross, advantages, advantages)
    harmed = ((advantages > 0) & (changes < -limits)).any(1).nonzero().squeeze(1)  # groups
    if len(harmed) == 0:
        return found, spared
    part = rollouts.rows((harmed[:, None] * size + torch.arange(size, device=harmed.device)).flatten())
    lengths = part.lengths.tolist()
    weights = push_weights(model, part, how)[part.prediction_mask].split(lengths)
    groups = token_gradients(model, sequences_of(part), measure)
    for n, (p, (tokens, _)) in enumerate(zip(harmed.tolist(), groups, strict=True)):
        better = (advantages[p] > 0).nonzero().squeeze(1).tolist()
        worse = (advantages[p] < 0).nonzero().squeeze(1).tolist()
        gradients = torch.stack([tokens[i][0].T @ tokens[i][1] for i in better])  # (B, width, H)
        lowering = []
        for j in worse:  # what each token of j does to each better completion
            sketched, h = tokens[j]
            influence = torch.einsum("mw,bwh,mh->bm", sketched, gradients, h) * weights[n * size + j]
            if how.per_token:
                own = torch.tensor([lengths[n * size + i] for i in better], device=influence.device)
                influence = influence / (own[:, None] * lengths[n * size + j])
            lowering.append(advantages[p, j] * influence)
        contributions = torch.cat(lowering, 1)  # (B, M of all worse completions)
        withheld = fewest_tokens(changes[p, better], limits[p, better], contributions)
        spared[p, better] = -contributions[:, withheld].sum(1)
        for j, of_row in zip(worse, withheld.split([lengths[n * size + j] for j in worse]), strict=True):
            if bool(of_row.any()):
                found[p * size + j] = advantages[p, j] * of_row
    return found, spared


def witnessed(
    products: Products,
    pairs: torch.Tensor,  # (P, G, G) of (4)
    pair_mask: torch.Tensor,  # (P, G, G)
    spared: torch.Tensor | None,  # (P, G) what withheld tokens add to v
    negative_weight: float,
) -> Witness:
    """Which better completions an update displaces, (5'), with all pairs and with those that are left."""
    before = pairs.sum(2)  # A
    after = with_negatives_weighted((pairs * pair_mask).sum(2), negative_weight)  # Ã
    whole = before.flatten()[None]  # (P, G) -> (1, N)
    drift = products.batch_drift
    by_batch = displaced(products.batch[None], whole, whole, drift).view_as(before)
    by_batch_left = None
    if spared is None:
        by_batch_left = displaced(products.batch[None], after.flatten()[None], whole, drift).view_as(before)
    own_left = displaced(products.cross, after, before, spared)
    return Witness(before > 0, displaced(products.cross, before, before), own_left, by_batch, by_batch_left)


# ---------------------------------------------------------------------------------------------------------------------
# (2) Distinctiveness
# ---------------------------------------------------------------------------------------------------------------------


def distinctiveness(
    scorer: str,
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T)
    group_size: int,
    *,
    temperature: float = 1.0,
    hidden: list[torch.Tensor | None] | None = None,
    texts: list[str] | None = None,
) -> torch.Tensor:  # (P, G, G)
    """d of equation (2), symmetric, in [0, 1], 0 on the diagonal, by one of SCORERS.

    `hidden`: see `gradient_gram`. Raises ValueError for a scorer that is not in SCORERS.
    """
    if scorer not in SCORERS:
        raise ValueError(f"There is no distinctiveness by the scorer {scorer!r}; there is one by {', '.join(SCORERS)}.")
    check_response_mask(response_mask)
    tokens = (input_ids, attention_mask, response_mask)
    judge = SCORERS[scorer].distinctiveness
    if judge is None:
        gram = gradient_gram(model, *tokens, group_size, temperature=temperature, hidden=hidden, scorer=scorer)
        return gradient_distinctiveness(gram)
    return judge(Sequences(*tokens, group_size, texts))


def gradient_distinctiveness(gram: torch.Tensor) -> torch.Tensor:
    """d_ij = (1 − cos(G_i, G_j)) / 2, with cos = 0 where a norm is 0. Equation (2). (P, G, G) -> (P, G, G)"""
    norms = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()  # (P, G)
    products = norms[:, :, None] * norms[:, None, :]  # (P, G, 1) * (P, 1, G) -> (P, G, G)
    cosines = torch.where(products > 0, gram / products.clamp(min=torch.finfo(gram.dtype).tiny), 0.0)
    d = ((1 - cosines) / 2).clamp(0, 1)
    return d - torch.diag_embed(d.diagonal(dim1=1, dim2=2))


@dataclass(frozen=True)
class Scorer:
    """One line of SCORERS."""

    reason: str  # for --help
    threshold: float  # τ of (3), unless --threshold says otherwise
    distinctiveness: Callable[[Sequences], torch.Tensor] | None = None  # -> d (P, G, G); None: by `gradient_gram`


# A further scorer is one more function and one more line here; the flag, its default threshold and errors follow.
SCORERS = {
    "gradient": Scorer("gradients of the output layer", threshold=0.35),
    "state": Scorer("gradients below it", threshold=0.2),
    "token": Scorer("matching tokens", threshold=0.1, distinctiveness=by_tokens),
}
BY_GRADIENT = tuple(name for name, scorer in SCORERS.items() if scorer.distinctiveness is None)  # as rule (5) needs


# ---------------------------------------------------------------------------------------------------------------------
# (3) and (5) Which pairs are masked
# ---------------------------------------------------------------------------------------------------------------------


@compiled("update")
def distinct_pairs(d: torch.Tensor, threshold: float) -> torch.Tensor:
    """m_ij = 1 where d_ij ≥ τ, or where the pair was not scored (NaN). Equation (3). (P, G, G) -> (P, G, G) bool"""
    return ~(d < threshold)


@compiled("update")
def safe_pairs(cross: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """m_ij = 0 where the pair's own update lowers the likelihood of its better completion. Equation (5).

    `cross` holds g_i·g̃_j, the products of gradients and pushes (on-policy the push is the gradient). With i the better
    completion, its likelihood changes by g_i·g̃_i − g_i·g̃_j to first order.

    (P, G, G), (P, G) -> (P, G, G) bool, symmetric; a pair of equal rewards is never masked
    """
    with_itself = cross.diagonal(dim1=1, dim2=2)[:, :, None]  # (P, G, 1): g_i·g̃_i
    better = rewards[:, :, None] > rewards[:, None, :]
    displaced = better & (cross > with_itself)
    return ~(displaced | displaced.transpose(1, 2))


def displaced(
    cross: torch.Tensor,  # (P, G, G) g_i·g̃_j
    advantages: torch.Tensor,  # Ã (P, G)
    unrectified: torch.Tensor,  # A (P, G): those above 0 are the better completions
    offset: torch.Tensor | None = None,  # (P, G), added to v
) -> torch.Tensor:  # (P, G) bool
    """Which better completions the update of all lowers: v_i = Σ_j Ã_j g_i·g̃_j < 0, beyond rounding. Equation (5')."""
    changes, limits = first_order(cross, advantages, unrectified, offset)
    return (unrectified > 0) & (changes < -limits)


def first_order(
    cross: torch.Tensor,  # (P, G, G) g_i·g̃_j
    advantages: torch.Tensor,  # Ã (P, G)
    unrectified: torch.Tensor,  # A (P, G)
    offset: torch.Tensor | None = None,  # (P, G)
) -> tuple[torch.Tensor, torch.Tensor]:  # (P, G), (P, G)
    """v_i = Σ_j Ã_j g_i·g̃_j of (5'), plus the offset, and how far below 0 rounding alone may bring it."""
    changes = (cross @ advantages[:, :, None]).squeeze(2)
    limits = ROUNDING * (cross.abs() @ unrectified.abs()[:, :, None]).squeeze(2)
    return changes if offset is None else changes + offset, limits


def safe_sums(cross: torch.Tensor, pairs: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """m such that no better completion is displaced by the pairs that are left. Equation (5').

    While one is, the pair that lowers the displaced ones most is masked: pair (a, b), a the better one, changes v_i by
    w_ab (g_i·g̃_a − g_i·g̃_b). This ends, since without pairs nothing moves. `pairs` is w of (4), 0 where two
    completions make no pair. With an `offset`, what moves v_i without any pair, it ends where no pair is to blame.

    (P, G, G), (P, G, G), (P, G) -> (P, G, G) bool, symmetric
    """
    size, flat, advantages = pairs.shape[1], pairs.flatten(1), pairs.sum(2)
    is_pair = flat > 0  # a row the better one
    listed = is_pair.nonzero()[:, 1].split(is_pair.sum(1).tolist())  # P times its pairs
    places = pad_sequence(listed, batch_first=True)  # (P, K), filled up with the place 0, which is no pair
    better, worse, weights = places // size, places % size, flat.gather(1, places)
    _, limits = first_order(cross, advantages, advantages)
    bounds = torch.where(advantages > 0, -limits, -math.inf)
    offset = torch.zeros_like(advantages) if offset is None else offset
    pair_mask = torch.ones_like(pairs, dtype=torch.bool).flatten(1)
    left = torch.arange(len(pairs), device=pairs.device)  # groups that are not done
    while len(left):
        advantages, weights, done = with_worst_masked(cross, advantages, offset, bounds, better, worse, weights)
        if bool(done.any()):
            kept = (weights[done] > 0) | (places[done] == 0)
            pair_mask[left[done]] = pair_mask[left[done]].scatter(1, places[done], kept)
            left, places, cross, advantages, offset, bounds, better, worse, weights = (
                values[~done] for values in (left, places, cross, advantages, offset, bounds, better, worse, weights)
            )
    pair_mask = pair_mask.view_as(pairs)
    return pair_mask & pair_mask.transpose(1, 2)


@compiled("update")
def with_worst_masked(
    cross: torch.Tensor,  # (P, G, G)
    advantages: torch.Tensor,  # Ã (P, G), of the pairs that are left
    offset: torch.Tensor,  # (P, G)
    bounds: torch.Tensor,  # (P, G) displaced is what has a v_i below it
    better: torch.Tensor,  # a of each pair (P, K)
    worse: torch.Tensor,  # b (P, K)
    weights: torch.Tensor,  # w_ab (P, K), 0: masked
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # Ã (P, G), w (P, K), (P,) bool: nothing was left to do
    """One round of `safe_sums` for all groups: the worst pairs, up to the first that changes who is displaced.

    As long as the same completions are displaced, the order of the pairs stays: so several are masked at once.
    """
    changes = (cross @ advantages[:, :, None]).squeeze(2) + offset
    harmed = changes < bounds
    pull = (harmed.to(cross.dtype)[:, None, :] @ cross).squeeze(1)  # (P, G): Σ over displaced i of g_i·g̃_j
    effects = weights * (pull.gather(1, better) - pull.gather(1, worse))  # (P, K)
    worst, places = effects.topk(min(PAIRS_AT_ONCE, weights.shape[1]), largest=False)  # (P, n)
    a, b, w = better.gather(1, places), worse.gather(1, places), weights.gather(1, places)
    of_a, of_b = (cross.gather(2, row[:, None, :].expand(-1, cross.shape[1], -1)) for row in (a, b))  # (P, G, n)
    of_pairs = w[:, None, :] * (of_a - of_b)
    after = changes[:, :, None] - of_pairs.cumsum(2)  # v without the first pairs
    as_before = ((after < bounds[:, :, None]) == harmed[:, :, None]).all(1)
    reached = torch.nn.functional.pad(as_before[:, :-1].int().cumprod(1), (1, 0), value=1).bool()  # (P, n)
    masked = reached & (worst < 0)
    lost = w * masked
    advantages = advantages.scatter_add(1, a, -lost).scatter_add(1, b, lost)
    return advantages, weights.scatter(1, places, w - lost), ~masked.any(1)


def fewest_tokens(changes: torch.Tensor, limits: torch.Tensor, contributions: torch.Tensor) -> torch.Tensor:
    """Tokens without which no v_i is below −limits_i, the most harmful first. (B,), (B,), (B, M) -> (M,) bool

    `changes` is v with all tokens, of which token t adds `contributions[i, t]` to v_i. As in `safe_sums`, but only
    tokens that lower the displaced completions are taken: it ends where none is left.
    """
    taken = torch.zeros(contributions.shape[1], dtype=torch.bool, device=changes.device)
    while True:
        harmed = changes < -limits
        effects = contributions[harmed].sum(0).masked_fill(taken, 0.0)  # (M,)
        order = effects.argsort()[: int((effects < 0).sum())]
        if len(order) == 0:
            return taken
        after = changes[:, None] - contributions[:, order].cumsum(1)  # (B, M')
        other = ((after < -limits[:, None]) != harmed[:, None]).any(0)
        count = int(other.int().argmax()) + 1 if bool(other.any()) else len(order)
        taken[order[:count]] = True
        changes = after[:, count - 1]


# ---------------------------------------------------------------------------------------------------------------------
# (1) and (4) Advantages
# ---------------------------------------------------------------------------------------------------------------------


def pair_advantages(rewards: torch.Tensor, *, scale: str = "std", eps: float = 1e-6) -> torch.Tensor:
    """w_ij = (r_i − r_j)/(G(σ+ε)): what each pair gives to the advantage of i. Equation (4). (P, G) -> (P, G, G)"""
    differences = rewards[:, :, None] - rewards[:, None, :]
    deviation = rewards.std(dim=1, correction=0)[:, None, None] + eps if scale == "std" else 1.0
    return differences / (rewards.shape[1] * deviation)


@compiled("update")
def rectified_advantages(
    rewards: torch.Tensor,  # r (P, G)
    pair_mask: torch.Tensor,  # m (P, G, G) bool, symmetric
    *,
    scale: str = "std",
    eps: float = 1e-6,
) -> torch.Tensor:  # (P, G)
    """Ã_i = 1/(G(σ+ε)) · Σ_j m_ij (r_i − r_j), σ the population deviation of the group. Equation (4).

    With an all-true mask this is the advantage of GRPO, (r_i − r̄)/(σ+ε): equation (1). `scale="none"` leaves σ out,
    as Dr. GRPO does. A completion all of whose pairs are masked gets exactly 0.
    """
    differences = rewards[:, :, None] - rewards[:, None, :]  # (P, G, 1) − (P, 1, G) -> (P, G, G)
    advantages = (differences * pair_mask).mean(2)
    if scale == "std":
        advantages = advantages / (rewards.std(dim=1, correction=0, keepdim=True) + eps)
    return advantages


def with_negatives_weighted(advantages: torch.Tensor, weight: float) -> torch.Tensor:
    """Less weight for completions worse than their group; with 0 the better ones alone are trained on. (P, G) -> (P, G)

    ΣÃ = 0 then does not hold. With 0 and nothing masked it is the positive half of GRPO (PSR, arXiv 2506.01347).
    """
    return torch.where(advantages < 0, weight * advantages, advantages)
