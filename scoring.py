"""How distinct are two completions of a group, which pairs are masked, what advantage is left? Equations (1) to (5).

`rectify` is the whole of it for one batch of rollouts; below it stands each equation by itself, on tensors (and, for
the gradient scorers, a model). Nothing here knows of the training loop, so that another trainer can use it as it is.
The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from policy.compiling import compiled
from policy.logprobs import CHUNK_ELEMENTS, check_response_mask, token_logps
from policy.model import autocast, hidden_states, text_config, vocabulary_gradients
from rollout import Rollouts

RULES = ("none", "threshold", "pair", "token")
SKETCH_WIDTH = 4096  # buckets of the vocabulary sketch: a cosine's standard error is at most about 1/64 · √2
SKETCH_SEED = 0  # the sketch is the same in every step and every run
ROW_TOKENS = 16_384  # padded tokens that `completion_states` runs through the model at a time


# ---------------------------------------------------------------------------------------------------------------------
# Rectification of one batch
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rectification:
    """How pairs are judged."""

    rule: str  # of RULES: none masked, (3) by threshold, (5) by whole pairs, (3) token by token until (5) holds
    scorer: str  # of SCORERS: by what
    threshold: float  # τ of (3)
    scale: str  # of (4): std or none
    temperature: float  # at which completions were sampled and are trained
    per_token: bool  # the loss divides each log-likelihood by its tokens (--loss-norm sequence), and so does (5)
    gamma: float | None  # of the anchors' shaped objective (7); None: it is log π


@dataclass(frozen=True)
class Rectified:
    """What is left of the pairs of one batch. Where a group was not scored, its d is NaN."""

    pair_mask: torch.Tensor  # m (P, G, G) bool, False: the pair is masked
    distinctiveness: torch.Tensor  # d (P, G, G)
    advantages: torch.Tensor  # Ã (P, G)
    withheld: torch.Tensor  # (N, S) what single predictions lose of their completion's Ã (--rectify token), else 0

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
) -> Rectified:
    """Mask pairs, or withhold tokens, and take the advantages from the rest. Equations (2) to (5).

    Groups whose rewards are all equal have no advantage whatever the mask: they are not scored.
    """
    groups, size = rewards.shape
    pair_mask = torch.ones(groups, size, size, dtype=torch.bool, device=rewards.device)
    d = torch.full(pair_mask.shape, torch.nan, device=rewards.device)
    withheld = torch.zeros_like(rollouts.logps)
    scored = (rewards != rewards[:, :1]).any(1).nonzero().squeeze(1)  # groups with different rewards
    if how.rule != "none" and len(scored):
        part = rollouts.rows((scored[:, None] * size + torch.arange(size, device=scored.device)).flatten())
        if how.rule == "threshold" and distances is not None:
            d[scored] = distances[scored]  # (2)
            pair_mask = distinct_pairs(d, how.threshold)  # (3)
        elif how.rule == "threshold":
            d[scored] = distinctiveness(  # (2)
                how.scorer, model, *part.tokens, size, temperature=how.temperature, hidden=part.hidden, texts=part.texts
            )
            pair_mask = distinct_pairs(d, how.threshold)  # (3)
        else:
            cross = torch.zeros_like(d)
            d[scored], cross[scored] = displacement(model, part, how)  # (2)
            pair_mask = safe_pairs(cross, rewards)  # (5)
            if how.rule == "token":
                withheld = withheld_from_tokens(model, rollouts, rewards, pair_mask, cross, how)  # (3), token by token
                pair_mask = torch.ones_like(pair_mask)
    advantages = rectified_advantages(rewards, pair_mask, scale=how.scale)  # (4)
    return Rectified(pair_mask, d, advantages, withheld)


def displacement(
    model: PreTrainedModel, rollouts: Rollouts, how: Rectification
) -> tuple[torch.Tensor, torch.Tensor]:  # (P, G, G), (P, G, G)
    """d of (2), and the products g_i·g̃_j that rule (5) compares."""
    weights = push_weights(model, rollouts, how)
    gram, cross = gradient_gram(
        model, *rollouts.tokens, rollouts.group_size,
        temperature=how.temperature, token_weights=weights, hidden=rollouts.hidden, scorer=how.scorer,
    )  # fmt: skip
    if how.per_token:
        lengths = rollouts.lengths.view(-1, rollouts.group_size)
        cross = cross / (lengths[:, :, None] * lengths[:, None, :])
    return gradient_distinctiveness(gram), cross


@torch.no_grad()
def push_weights(model: PreTrainedModel, rollouts: Rollouts, how: Rectification) -> torch.Tensor:
    """w_t of (5): how much a token's push is its gradient. 1 on-policy; ∂f/∂log π for a shaped anchor. -> (N, S)"""
    weights = torch.ones_like(rollouts.logps)
    if how.gamma is not None and bool(rollouts.anchor_mask.any()):
        anchors_only = (values[rollouts.anchor_mask] for values in rollouts.tokens)
        logps, _ = token_logps(model, *anchors_only, temperature=how.temperature)
        weights[rollouts.anchor_mask] = how.gamma * logps.exp() / (logps.exp() + how.gamma) ** 2
    return weights


def withheld_from_tokens(
    model: PreTrainedModel,
    rollouts: Rollouts,  # N rows
    rewards: torch.Tensor,  # (P, G)
    pair_mask: torch.Tensor,  # (P, G, G) of rule (5)
    cross: torch.Tensor,  # (P, G, G) g_i·g̃_j
    how: Rectification,
) -> torch.Tensor:  # (N, S)
    """Of each pair that rule (5) masks, the part of the advantage (4) that the worse completion's tokens lose.

    Only those lose it that collide most: as many as it takes until (5) no longer holds.
    """
    size = rewards.shape[1]
    withheld = torch.zeros_like(rollouts.logps)
    pairs = (~pair_mask & (rewards[:, :, None] > rewards[:, None, :])).nonzero()  # (p, better, worse) of each
    if len(pairs) == 0:
        return withheld
    rows = (pairs[:, :1] * size + pairs[:, 1:]).unique()  # the completions in these pairs
    part = rollouts.rows(rows)
    lengths = part.lengths.tolist()
    states = completion_states(model, *part.tokens, part.hidden)
    targets = part.input_ids[part.response_mask]
    sketches = token_sketches(model, torch.cat(states), targets, how.temperature, how.scorer).split(lengths)
    weights = push_weights(model, part, how)[part.prediction_mask].split(lengths)
    place = {row: n for n, row in enumerate(rows.tolist())}
    for p, i, j in pairs.tolist():
        better, worse = place[p * size + i], place[p * size + j]
        kernel = token_kernel(states[better], sketches[better], states[worse], sketches[worse])
        shares = kernel.sum(0) * weights[worse]
        if how.per_token:
            shares = shares / (lengths[better] * lengths[worse])
        colliding = colliding_tokens(shares, float(cross[p, i, j] - cross[p, i, i]))
        pair = torch.zeros(1, size, size, dtype=torch.bool, device=rewards.device)
        pair[0, i, j] = pair[0, j, i] = True
        advantage_of_pair = rectified_advantages(rewards[p : p + 1], pair, scale=how.scale)[0, j]  # (4)
        withheld[p * size + j, rollouts.prediction_mask[p * size + j]] += advantage_of_pair * colliding
    return withheld


# ---------------------------------------------------------------------------------------------------------------------
# (2) Distinctiveness
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """What a scorer may look at: N sequences, those of a question together."""

    input_ids: torch.Tensor  # (N, T)
    attention_mask: torch.Tensor  # (N, T)
    response_mask: torch.Tensor  # (N, T)
    group_size: int
    texts: list[str] | None  # N completions


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


def by_tokens(sequences: Sequences) -> torch.Tensor:
    """d_ij = 1 − matched tokens / all tokens, from the longest common subsequence of two completions. Equation (2).

    N sequences -> (P, G, G)
    """
    size = sequences.group_size
    rows = zip(sequences.input_ids, sequences.response_mask, strict=True)
    completions = [ids[mask].tolist() for ids, mask in rows]
    d = torch.zeros(len(completions) // size, size, size)
    for p in range(len(d)):
        group = completions[p * size : (p + 1) * size]
        for i in range(size):
            for j in range(i):
                matched = 2 * common_subsequence_length(group[i], group[j])
                d[p, i, j] = d[p, j, i] = 1 - matched / max(1, len(group[i]) + len(group[j]))
    return d.to(sequences.input_ids.device)


def common_subsequence_length(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence, one big-integer operation for each token of b.

    Bit i of `bits` is 0 where the line of the dynamic programme grows at a[i] (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited").
    """
    places: dict[int, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    ones = (1 << len(a)) - 1
    bits = ones
    for token in b:
        match = bits & places.get(token, 0)
        bits = ((bits + match) | (bits - match)) & ones
    return len(a) - bits.bit_count()


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


@torch.no_grad()
def gradient_gram(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T) bool
    group_size: int,
    *,
    temperature: float = 1.0,
    token_weights: torch.Tensor | None = None,  # (N, S)
    hidden: list[torch.Tensor | None] | None = None,
    scorer: str = "gradient",
) -> torch.Tensor:  # (P, G, G), or with token_weights (2, P, G, G)
    """Inner products ⟨G_i, G_j⟩ of the completions' gradients, without a backward pass. Equation (2).

    With the scorer `gradient`, with respect to the output embedding W: G_i = ∂ℓ_i/∂W = Σ_t (∂ℓ_t/∂z_t) h_tᵀ, where ℓ_i
    is the completion's log-likelihood at `temperature` and z_t = W h_t. W is the weight as the head uses it: the input
    side of a tied weight is left out.

    With `state`, with respect to a linear map in front of it, M in z_t = W M h_t at M = 1: G_i = Σ_t (∂ℓ_t/∂h_t) h_tᵀ.
    It stands for the layers below, which tell tokens apart by their embeddings only.

    With `token_weights` w the result is a pair: these products, and ⟨G_i, G̃_j⟩, not symmetric, where token t of G̃_j is
    weighted by w_t: the pushes of (5) and (7).

    `hidden` holds for each completion the states h_t that its tokens were sampled from, (M, H), or None; completions
    without are run through the model.

    The vocabulary side is sketched into SKETCH_WIDTH buckets, in time linear in the tokens; where the vocabulary is no
    larger than that, nothing is lost. `state` has no vocabulary side.

    Raises TypeError for a response mask that is not bool.
    """
    check_response_mask(response_mask)
    lengths = response_mask.sum(1).tolist()
    states = completion_states(model, input_ids, attention_mask, response_mask, hidden or [None] * len(lengths))
    targets = input_ids[response_mask].split(lengths)  # (N, T) -> N times (M,)
    weights = None if token_weights is None else token_weights[response_mask[:, 1:]].to(states[0].dtype).split(lengths)
    grams, crosses = [], []
    for start in range(0, len(lengths), group_size):
        group = slice(start, start + group_size)
        sketches = token_sketches(model, torch.cat(states[group]), torch.cat(targets[group]), temperature, scorer)
        of_group = list(zip(sketches.split(lengths[group]), states[group], strict=True))
        gradients = torch.stack([(s.T @ h).flatten() for s, h in of_group])  # G times (width, H) -> (G, width·H)
        grams.append(gradients @ gradients.T)
        if weights is not None:
            weighted = zip(of_group, weights[group], strict=True)
            pushes = torch.stack([(s.T @ (h * w[:, None])).flatten() for (s, h), w in weighted])
            crosses.append(gradients @ pushes.T)
    return torch.stack([torch.stack(grams), torch.stack(crosses)]) if crosses else torch.stack(grams)


@torch.no_grad()
def completion_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T)
    kept: list[torch.Tensor | None],  # N times (M, H)
) -> list[torch.Tensor]:  # N times (M, H)
    """The hidden states that predict each completion's tokens, in fp32; those not kept, by a forward pass."""
    assert len(kept) == len(input_ids), f"{len(kept)} hidden states for {len(input_ids)} completions"
    states = [None if state is None else state.float() for state in kept]
    missing = [i for i, state in enumerate(states) if state is None]
    step = max(1, ROW_TOKENS // input_ids.shape[1])
    for start in range(0, len(missing), step):
        rows = missing[start : start + step]
        with autocast(model):
            made = hidden_states(model, input_ids[rows], attention_mask[rows])
        for i, state in zip(rows, made, strict=True):
            states[i] = state[:-1][response_mask[i, 1:]].float()  # (T, H) -> (M, H): the state at t predicts t + 1
    return [state for state in states if state is not None]


def token_sketches(
    model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor, temperature: float, scorer: str
) -> torch.Tensor:
    """What h_t is multiplied by in G_i of (2), a chunk of tokens at a time. (M, H), (M,) -> (M, width)

    With `gradient` ∂ℓ_t/∂z_t, the vocabulary side in at most SKETCH_WIDTH buckets; with `state`
    ∂ℓ_t/∂h_t = Wᵀ ∂ℓ_t/∂z_t, where the width is H.
    """
    width = min(SKETCH_WIDTH, text_config(model).vocab_size)
    weight = model.get_output_embeddings().weight
    size = max(1, CHUNK_ELEMENTS // text_config(model).vocab_size)
    sketches = []
    for h, chosen in zip(states.split(size), targets.split(size), strict=True):
        gradients = vocabulary_gradients(model, h, chosen, temperature)
        reached = (gradients.to(weight.dtype) @ weight).float() if scorer == "state" else sketch(gradients, width)
        sketches.append(reached)
    return torch.cat(sketches)


def token_kernel(
    states: torch.Tensor,  # (M_i, H)
    sketches: torch.Tensor,  # (M_i, width)
    other_states: torch.Tensor,  # (M_j, H)
    other_sketches: torch.Tensor,  # (M_j, width)
) -> torch.Tensor:  # (M_i, M_j)
    """k_ts = (h_t·h_s) (δ_t·δ_s), δ their sketches, for the tokens of two completions. Equation (2).

    Its sum is ⟨G_i, G_j⟩; summed over t alone it is the share of token s in the collision.
    """
    return (states @ other_states.T) * (sketches @ other_sketches.T)


def sketch(vectors: torch.Tensor, width: int) -> torch.Tensor:
    """Count sketch: each entry goes to a random bucket with a random sign, so that inner products are kept on average.

    (M, V) -> (M, width). Over the choice of buckets and signs, the error of an inner product has variance at most
    (|a|²|b|² + (a·b)²)/width. Charikar et al. 2002.
    """
    vocabulary = vectors.shape[1]
    if vocabulary <= width:
        return vectors
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    signs = (torch.randint(0, 2, (vocabulary,), generator=generator) * 2 - 1).to(vectors)
    order = torch.randperm(vocabulary, generator=generator).to(vectors.device)
    padded = torch.nn.functional.pad((vectors * signs)[:, order], (0, -vocabulary % width))
    return padded.view(len(vectors), -1, width).sum(1)  # (M, V) -> (M, V/width, width) -> (M, width)


# ---------------------------------------------------------------------------------------------------------------------
# (3) and (5) Which pairs are masked
# ---------------------------------------------------------------------------------------------------------------------


@compiled
def distinct_pairs(d: torch.Tensor, threshold: float) -> torch.Tensor:
    """m_ij = 1 where d_ij ≥ τ, or where the pair was not scored (NaN). Equation (3). (P, G, G) -> (P, G, G) bool"""
    return ~(d < threshold)


@compiled
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


def colliding_tokens(shares: torch.Tensor, excess: float) -> torch.Tensor:
    """The fewest tokens whose shares of a collision add up to `excess` or more: the largest ones, positive only.

    `excess` is g_i·g̃_j − g_i·g̃_i: without these tokens of the worse completion j, rule (5) does not mask the pair.

    (M,) -> (M,) bool
    """
    ordered, order = shares.sort(descending=True)
    needed = (ordered.cumsum(0) - ordered < excess) & (ordered > 0)
    return torch.zeros_like(needed).scatter(0, order, needed)


# ---------------------------------------------------------------------------------------------------------------------
# (1) and (4) Advantages
# ---------------------------------------------------------------------------------------------------------------------


@compiled
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
