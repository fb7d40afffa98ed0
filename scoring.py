"""How distinct are two answers of a group, which pairs are masked, and what advantage is left: equations (2) to (5).

Shapes: P questions, G answers to each, N = P·G sequences, T tokens, H hidden size, V vocabulary, K sketch width.

Nothing here knows of the training loop: the functions take tensors (and, for the gradient scorer, a model) and give
tensors, so that another trainer can use them as they are.
"""

from __future__ import annotations

from typing import overload

import torch
from transformers import PreTrainedModel

from compiling import compiled
from decoding import autocast, head_scale_and_cap, hidden_states
from rollout import CHUNK_ELEMENTS

SCORERS = ("gradient", "state", "token", "none")
BY_GRADIENT = ("gradient", "state")  # those with an inner product, as rule (5) needs
SKETCH_WIDTH = 4096  # buckets of the vocabulary sketch: a cosine's standard error is at most about 1/64 · √2
SKETCH_SEED = 0  # the sketch is the same in every step and every run
ROW_TOKENS = 16_384  # padded tokens that `answer_states` runs through the model at a time


# ---------------------------------------------------------------------------------------------------------------------
# (2) Distinctiveness
# ---------------------------------------------------------------------------------------------------------------------


def distinctiveness(
    scorer: str,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    group_size: int,
    *,
    temperature: float = 1.0,
    hidden: list[torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """d of equation (2), symmetric, in [0, 1], 0 on the diagonal. (N, T), (N, T), (N, T) -> (P, G, G)

    `hidden`: see `gradient_gram`. A further scorer is one more branch here and one more name in SCORERS.

    Raises ValueError for a scorer that has no distinctiveness.
    """
    if scorer in BY_GRADIENT:
        tokens = (input_ids, attention_mask, response_mask)
        gram = gradient_gram(model, *tokens, group_size, temperature=temperature, hidden=hidden, scorer=scorer)
        return gradient_distinctiveness(gram)
    if scorer == "token":
        return token_distinctiveness(input_ids, response_mask, group_size)
    raise ValueError(f"There is no distinctiveness by the scorer {scorer!r}; there is one by gradient, state, token.")


def gradient_distinctiveness(gram: torch.Tensor) -> torch.Tensor:
    """d_ij = (1 − cos(G_i, G_j)) / 2, with cos = 0 where a norm is 0. Equation (2). (P, G, G) -> (P, G, G)"""
    norms = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()  # (P, G)
    products = norms[:, :, None] * norms[:, None, :]  # (P, G, 1) * (P, 1, G) -> (P, G, G)
    cosines = torch.where(products > 0, gram / products.clamp(min=torch.finfo(gram.dtype).tiny), 0.0)
    d = ((1 - cosines) / 2).clamp(0, 1)
    return d - torch.diag_embed(d.diagonal(dim1=1, dim2=2))


def token_distinctiveness(input_ids: torch.Tensor, response_mask: torch.Tensor, group_size: int) -> torch.Tensor:
    """d_ij = 1 − matched tokens / all tokens, from the longest common subsequence of the two answers. Equation (2).

    (N, T), (N, T) -> (P, G, G)
    """
    answers = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, response_mask, strict=True)]
    groups = len(answers) // group_size
    d = torch.zeros(groups, group_size, group_size)
    for p in range(groups):
        group = answers[p * group_size : (p + 1) * group_size]
        for i in range(group_size):
            for j in range(i):
                matched = 2 * common_subsequence_length(group[i], group[j])
                d[p, i, j] = d[p, j, i] = 1 - matched / max(1, len(group[i]) + len(group[j]))
    return d.to(input_ids.device)


def common_subsequence_length(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence, one big-integer operation for each token of b.

    Bit i of `row` is 0 where the row of the dynamic programme grows at a[i] (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited").
    """
    places: dict[int, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    ones = (1 << len(a)) - 1
    row = ones
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & ones
    return len(a) - row.bit_count()


@overload
def gradient_gram(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    group_size: int,
    *,
    temperature: float = ...,
    token_weights: None = None,
    exact: bool = ...,
    hidden: list[torch.Tensor | None] | None = ...,
    scorer: str = ...,
) -> torch.Tensor: ...
@overload
def gradient_gram(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    group_size: int,
    *,
    temperature: float = ...,
    token_weights: torch.Tensor,
    exact: bool = ...,
    hidden: list[torch.Tensor | None] | None = ...,
    scorer: str = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
@torch.no_grad()
def gradient_gram(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    group_size: int,
    *,
    temperature: float = 1.0,
    token_weights: torch.Tensor | None = None,
    exact: bool = False,
    hidden: list[torch.Tensor | None] | None = None,
    scorer: str = "gradient",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Inner products ⟨G_i, G_j⟩ of the answers' gradients, without a backward pass. Equation (2).

    With the scorer `gradient`, with respect to the output embedding W: G_i = ∂ℓ_i/∂W = Σ_t (∂ℓ_t/∂z_t) h_tᵀ, where ℓ_i
    is the answer's log-likelihood at `temperature` and z_t = W h_t. W is the weight as the head uses it: the input side
    of a tied weight is left out.

    With `state`, with respect to a linear map in front of it, M in z_t = W M h_t at M = 1: G_i = Σ_t (∂ℓ_t/∂h_t) h_tᵀ.
    It stands for the layers below, which tell tokens apart by their embeddings only: to W, 28 and 30 are as different
    as any two tokens, to the layers that must choose between them they are much alike.

    (N, T), (N, T), (N, T) -> (P, G, G). With `token_weights` w (N, T−1), also ⟨G_i, G̃_j⟩ with
    G̃_j, whose token t is weighted by w_t, the pushes of (5) and (7): two tensors (P, G, G), the second not symmetric.

    `hidden` holds for each answer the states h_t that its tokens were sampled from, (S, H), or None; answers without
    are run through the model.

    By default the vocabulary side is sketched into SKETCH_WIDTH buckets, in time linear in the tokens; where the
    vocabulary is no larger than that, nothing is lost. `exact` contracts token by token, in O((G·T)²·V). `state` has
    no vocabulary side.
    """
    mask = response_mask.bool()
    lengths = mask.sum(1).tolist()
    states = answer_states(model, input_ids, attention_mask, mask, hidden or [None] * len(lengths))
    targets = input_ids[mask].split(lengths)  # (N, T) -> N times (S,)
    weights = None if token_weights is None else token_weights[mask[:, 1:]].to(states[0].dtype).split(lengths)
    grams, crosses = [], []
    for start in range(0, len(lengths), group_size):
        group = slice(start, start + group_size)
        own_weights = None if weights is None else weights[group]
        if exact and scorer == "gradient":
            gram, cross = exact_gram(model, states[group], targets[group], own_weights, temperature)
        else:
            gram, cross = sketched_gram(model, states[group], targets[group], own_weights, temperature, scorer)
        grams.append(gram)
        crosses.append(cross)
    return torch.stack(grams) if token_weights is None else (torch.stack(grams), torch.stack(crosses))


def answer_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    known: list[torch.Tensor | None],
) -> list[torch.Tensor]:
    """The hidden states that predict each answer's tokens, in fp32; those not known by a forward pass.

    (N, T), (N, T), (N, T) -> N times (S, H)
    """
    assert len(known) == len(input_ids), f"{len(known)} hidden states for {len(input_ids)} answers"
    states = [None if own is None else own.float() for own in known]
    missing = [i for i, own in enumerate(states) if own is None]
    step = max(1, ROW_TOKENS // input_ids.shape[1])
    for start in range(0, len(missing), step):
        rows = missing[start : start + step]
        with autocast(model):
            made = hidden_states(model, input_ids[rows], attention_mask[rows].bool())
        for i, own in zip(rows, made, strict=True):
            states[i] = own[:-1][response_mask[i, 1:]].float()  # (T, H) -> (S, H): the state at t predicts token t + 1
    return [own for own in states if own is not None]


def sketched_gram(
    model: PreTrainedModel,
    states: list[torch.Tensor],
    targets: tuple[torch.Tensor, ...],
    weights: tuple[torch.Tensor, ...] | None,
    temperature: float,
    scorer: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """⟨G_i, G_j⟩ and ⟨G_i, G̃_j⟩ (the same without weights) of one group, from the tokens' sketches.

    G times (S, H), G times (S,), G times (S,) -> (G, G) twice
    """
    rows = token_sketches(model, torch.cat(states), torch.cat(targets), temperature, scorer)
    sketches = rows.split([len(h) for h in states])
    gradients = torch.stack([(s.T @ h).flatten() for s, h in zip(sketches, states, strict=True)])  # (G, K·H)
    gram = gradients @ gradients.T
    if weights is None:
        return gram, gram
    weighted = zip(sketches, states, weights, strict=True)
    pushes = torch.stack([(s.T @ (h * w[:, None])).flatten() for s, h, w in weighted])
    return gram, gradients @ pushes.T


def exact_gram(
    model: PreTrainedModel,
    states: list[torch.Tensor],
    targets: tuple[torch.Tensor, ...],
    weights: tuple[torch.Tensor, ...] | None,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as sums over pairs of tokens: k_ts = (h_t·h_s) (∂ℓ_t/∂z_t · ∂ℓ_s/∂z_s).

    G times (S, H), G times (S,), G times (S,) -> (G, G) twice
    """
    h, outer = torch.cat(states), vocabulary_gradients(model, torch.cat(states), torch.cat(targets), temperature)
    kernel = (h.double() @ h.double().T) * (outer.double() @ outer.double().T)  # (M, M)
    # (M, G): which answer a token belongs to
    owner = torch.block_diag(*[torch.ones(len(own), 1, dtype=kernel.dtype, device=kernel.device) for own in states])
    rows = owner.T @ kernel
    gram = (rows @ owner).float()
    return gram, gram if weights is None else (rows @ (owner * torch.cat(weights).double()[:, None])).float()


def token_sketches(
    model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor, temperature: float, scorer: str
) -> torch.Tensor:
    """What h_t is multiplied by in G_i of (2), a chunk of tokens at a time. (M, H), (M,) -> (M, K)

    With `gradient` ∂ℓ_t/∂z_t, the vocabulary side in K buckets; with `state` ∂ℓ_t/∂h_t = Wᵀ ∂ℓ_t/∂z_t, where K is H.
    """
    width = min(SKETCH_WIDTH, model.config.vocab_size)
    weight = model.get_output_embeddings().weight
    size = max(1, CHUNK_ELEMENTS // model.config.vocab_size)
    sketches = []
    for h, chosen in zip(states.split(size), targets.split(size), strict=True):
        gradients = vocabulary_gradients(model, h, chosen, temperature)
        reached = (gradients.to(weight.dtype) @ weight).float() if scorer == "state" else sketch(gradients, width)
        sketches.append(reached)
    return torch.cat(sketches)


def token_kernel(
    states: torch.Tensor, sketches: torch.Tensor, other_states: torch.Tensor, other_sketches: torch.Tensor
) -> torch.Tensor:
    """k_ts = (h_t·h_s) (s_t·s_s), s their sketches, for the tokens of two answers; its sum is ⟨G_i, G_j⟩. Equation (2).

    Summed over s alone it is the share of token t in the collision.

    (S_i, H), (S_i, K), (S_j, H), (S_j, K) -> (S_i, S_j)
    """
    return (states @ other_states.T) * (sketches @ other_sketches.T)


def vocabulary_gradients(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """∂ log π(token)/∂z for z = W h: (e_token − p)/temperature behind a plain head. (M, H), (M,) -> (M, V)

    A bias in the head shifts p alone; a logit factor and a soft cap multiply by their derivative.
    """
    head = model.get_output_embeddings()
    scale, cap = head_scale_and_cap(model)
    with autocast(model):
        logits = head(hidden.to(head.weight.dtype)).float() * scale
    slope = torch.full((), scale, device=logits.device)
    if cap:
        bent = torch.tanh(logits / cap)
        logits, slope = cap * bent, scale * (1 - bent**2)
    gradients = -(logits / temperature).softmax(-1)
    gradients[torch.arange(len(targets), device=targets.device), targets] += 1
    return gradients * slope / temperature


def sketch(vectors: torch.Tensor, width: int) -> torch.Tensor:
    """Count sketch: each entry goes to a random bucket with a random sign, so that inner products are kept on average.

    (M, V) -> (M, K). Over the choice of buckets and signs, the error of an inner product has variance at most
    (|a|²|b|² + (a·b)²)/K. Charikar et al. 2002.
    """
    vocabulary = vectors.shape[1]
    if vocabulary <= width:
        return vectors
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    signs = (torch.randint(0, 2, (vocabulary,), generator=generator) * 2 - 1).to(vectors)
    order = torch.randperm(vocabulary, generator=generator).to(vectors.device)
    padded = torch.nn.functional.pad((vectors * signs)[:, order], (0, -vocabulary % width))
    return padded.view(len(vectors), -1, width).sum(1)  # (M, V) -> (M, V/K, K) -> (M, K)


# ---------------------------------------------------------------------------------------------------------------------
# (3) and (5) Which pairs are masked
# ---------------------------------------------------------------------------------------------------------------------


def distinct_pairs(d: torch.Tensor, threshold: float) -> torch.Tensor:
    """m_ij = 1 where d_ij ≥ τ. Equation (3). (P, G, G) -> (P, G, G) bool"""
    return d >= threshold


def safe_pairs(cross: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """m_ij = 0 where the pair's own update lowers the likelihood of its better answer. Equation (5).

    `cross` holds g_i·g̃_j, the products of gradients and pushes (for on-policy answers the push is the gradient).
    With i the better answer, its likelihood changes by g_i·g̃_i − g_i·g̃_j to first order.

    (P, G, G), (P, G) -> (P, G, G) bool, symmetric; a pair of equal rewards is never masked
    """
    own = cross.diagonal(dim1=1, dim2=2)[:, :, None]  # (P, G, 1): g_i·g̃_i
    better = rewards[:, :, None] > rewards[:, None, :]
    displaced = better & (cross > own)
    return ~(displaced | displaced.transpose(1, 2))


def colliding_tokens(shares: torch.Tensor, excess: float) -> torch.Tensor:
    """The fewest tokens whose shares of a collision add up to `excess` or more: the largest ones, positive only.

    `excess` is g_i·g̃_j − g_i·g̃_i: without these tokens of the worse answer j, rule (5) does not mask the pair.

    (S,) -> (S,) bool
    """
    ordered, order = shares.sort(descending=True)
    needed = (ordered.cumsum(0) - ordered < excess) & (ordered > 0)
    return torch.zeros_like(needed).scatter(0, order, needed)


# ---------------------------------------------------------------------------------------------------------------------
# (1) and (4) Advantages
# ---------------------------------------------------------------------------------------------------------------------


def rectified_advantages(
    rewards: torch.Tensor, pair_mask: torch.Tensor, *, scale: str = "std", eps: float = 1e-6
) -> torch.Tensor:
    """Ã_i = 1/(G(σ+ε)) · Σ_j m_ij (r_i − r_j), σ the population deviation of the group. Equation (4).

    With an all-true mask this is the advantage of GRPO, (r_i − r̄)/(σ+ε): equation (1). `scale="none"` leaves σ out,
    as Dr. GRPO does. An answer all of whose pairs are masked gets exactly 0.

    (P, G), (P, G, G) bool, symmetric -> (P, G)
    """
    differences = rewards[:, :, None] - rewards[:, None, :]  # (P, G, 1) − (P, 1, G) -> (P, G, G)
    advantages = (differences * pair_mask).mean(2)
    if scale == "std":
        advantages = advantages / (rewards.std(dim=1, correction=0, keepdim=True) + eps)
    return advantages


@compiled
def mask_and_advantages(
    d: torch.Tensor, cross: torch.Tensor | None, rewards: torch.Tensor, threshold: float, scale: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask of (3), or with `cross` that of (5), and the advantages (4) under it, fused into one kernel on a GPU.

    Where d is NaN, a pair was not scored and is kept.

    (P, G, G), (P, G, G), (P, G) -> (P, G, G) bool, (P, G)
    """
    mask = distinct_pairs(d, threshold) | d.isnan() if cross is None else safe_pairs(cross, rewards)
    return mask, rectified_advantages(rewards, mask, scale=scale)
