"""Gradients of completions without a backward pass, and their products: the K of equations (2) and (5).

The gradient of a completion's log-likelihood with respect to the output embedding W is a sum over its tokens of outer
products, G_i = Σ_t δ_t h_tᵀ with δ_t = ∂ℓ_t/∂z_t and z_t = W h_t. Hidden states and logits give all of it. W has as
many rows as the vocabulary has tokens: they are sketched, so that G_i fits, and inner products stay what they are but
for a small error. The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from policy.logprobs import (
    Packing,
    check_response_mask,
    chunk_elements,
    micro_batches,
    packed_states,
    shared_prefix,
)
from policy.model import autocast, hidden_states, text_config, vocabulary_gradients
from policy.optimizer import moments

SKETCH_WIDTH = 4096  # buckets of the vocabulary sketch: a cosine's standard error is at most about 1/64 · √2
SKETCH_SEED = 0  # the sketch is the same in every step and every run
ROW_TOKENS = 16_384  # padded tokens that go through the model at a time, where nobody says how many
BATCH_ELEMENTS = 2**27  # floats that the narrow gradients of a whole batch share: 512 MB


Factors = list[tuple[torch.Tensor, torch.Tensor]]  # of each completion of a group: δ (M, width) and h (M, H)


@dataclass(frozen=True)
class Sequences:
    """What a scorer may look at: N sequences, those of a question together."""

    input_ids: torch.Tensor  # (N, T)
    attention_mask: torch.Tensor  # (N, T)
    response_mask: torch.Tensor  # (N, T) bool
    group_size: int
    texts: list[str] | None = None  # N completions
    hidden: list[torch.Tensor | None] | None = None  # N times (M, H): states that were kept; others are made


@dataclass(frozen=True)
class HeadMetric:
    """P of K_ij = g_i·P·g_j, of one factor for each row and one for each column of W: P_vh = (rows_v · columns_h)².

    And what the optimizer adds of its own to the gradient of the loss.
    """

    rows: torch.Tensor  # (V,)
    columns: torch.Tensor  # (H,)
    momentum: torch.Tensor | None = None  # (V, H) the optimizer's own tensor; None: nothing
    momentum_weight: float = 1.0  # what it counts, in units of the sum of all Ã_j g_j


@dataclass(frozen=True)
class Measure:
    """How gradients are taken, and multiplied with each other."""

    scorer: str = "gradient"  # or state
    temperature: float = 1.0
    metric: HeadMetric | None = None  # None: the plain inner product
    row_tokens: int = ROW_TOKENS  # padded tokens that go through the model at a time: bounds memory, not the result


@dataclass(frozen=True)
class Products:
    """What gradients and pushes (5) of completions have in common."""

    gram: torch.Tensor  # (P, G, G) g_i·g_j in each group, as they are: for (2), whatever the metric
    cross: torch.Tensor  # (P, G, G) g_i·P·g̃_j in each group
    batch: torch.Tensor  # (N, N) g_i·P·g̃_j over all of them, with a larger sketching error
    drift: torch.Tensor | None = None  # (N,) what the optimizer's momentum adds to v_i; None: nothing

    @property
    def batch_drift(self) -> torch.Tensor | None:
        """The same of the batch as one group. -> (1, N)"""
        return None if self.drift is None else self.drift[None]


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
    sequences = Sequences(input_ids, attention_mask, response_mask, group_size, hidden=hidden)
    products = gradient_products(model, sequences, Measure(scorer, temperature), token_weights)
    return products.gram if token_weights is None else torch.stack([products.gram, products.cross])


@torch.no_grad()
def gradient_products(
    model: PreTrainedModel,
    sequences: Sequences,  # N
    measure: Measure,
    token_weights: torch.Tensor | None = None,  # w of (5), (N, S)
) -> Products:
    """Every two gradients of a group, and of the whole batch, multiplied. Arguments as of `gradient_gram`.

    For the products of the batch, each gradient is sketched once more on both sides, to BATCH_ELEMENTS/N floats.
    """
    response_mask, size = sequences.response_mask, sequences.group_size
    pushed: list[bool] = [False] * len(response_mask)  # whose pushes are not their gradients
    weights: tuple[torch.Tensor, ...] = ()
    if token_weights is not None:
        predicted = response_mask[:, 1:]
        pushed = ((token_weights != 1) & predicted).any(1).tolist()  # all at once: a GPU would wait for each
        weights = token_weights[predicted].float().split(response_mask.sum(1).tolist())
    grams, crosses, drifts, narrow_pushes = [], [], [], {}
    momentum = every = None
    for first, (tokens, plain) in enumerate(token_gradients(model, sequences, measure)):
        gradients = gradients_of(tokens)
        flat = gradients.flatten(1)
        crosses.append(flat @ flat.T)
        grams.append(crosses[-1].clone())
        if plain is not tokens:
            unscaled = gradients_of(plain).flatten(1)
            grams[-1] = unscaled @ unscaled.T
        if measure.metric is not None and measure.metric.momentum is not None:
            if momentum is None:
                momentum = sketched_momentum(measure.metric, gradients.shape[1])
            drifts.append(-flat @ momentum.flatten())  # of the loss, which the step lowers
        narrow_tokens = narrowed(tokens, len(response_mask))
        narrow = flat if narrow_tokens is tokens else gradients_of(narrow_tokens).flatten(1)
        if every is None:
            every = narrow.new_empty(len(response_mask), narrow.shape[1])  # (N, elements)
        every[first * size : (first + 1) * size] = narrow
        for j in range(size):
            row = first * size + j
            if pushed[row]:
                push, narrow_push = (
                    gradients_of([(of_tokens[j][0], of_tokens[j][1] * weights[row][:, None])]).flatten()
                    for of_tokens in (tokens, narrow_tokens)
                )
                crosses[-1][:, j] = flat @ push
                narrow_pushes[row] = narrow_push
    assert every is not None
    batch = every @ every.T
    for row, push in narrow_pushes.items():
        batch[:, row] = every @ push
    drift = torch.cat(drifts) if drifts else None
    return Products(torch.stack(grams), torch.stack(crosses), batch, drift)


def gradients_of(tokens: Factors) -> torch.Tensor:
    """G_i = Σ_t δ_t h_tᵀ of each completion. -> (G, width, H)"""
    sketched, h = tokens[0]
    gradients = h.new_empty(len(tokens), sketched.shape[1], h.shape[1])
    for (sketched, h), gradient in zip(tokens, gradients, strict=True):
        torch.mm(sketched.T, h, out=gradient)
    return gradients


def sketched_momentum(metric: HeadMetric, width: int) -> torch.Tensor:
    """The momentum as `token_gradients` has gradients in the metric: scaled, and sketched. (V, H) -> (width, H)

    A row for each bucket at a time, so that no copy of the whole is made.
    """
    assert metric.momentum is not None
    scales = metric.rows * metric.momentum_weight
    order = torch.arange(len(scales), device=scales.device)
    if len(scales) > width:
        signs, order = signs_and_order(len(scales), scales)
        scales = scales * signs
    found = scales.new_zeros(width, metric.momentum.shape[1])
    for rows in order.split(width):
        found[: len(rows)] += metric.momentum[rows].float() * scales[rows][:, None]
    return found * metric.columns


@torch.no_grad()
def token_gradients(
    model: PreTrainedModel, sequences: Sequences, measure: Measure
) -> Iterator[tuple[Factors, Factors]]:
    """For each group, for each completion, the two factors of its tokens' gradients: δ (M, width), h (M, H).

    Both scaled as the metric says, so that inner products of them are those of the metric; and as they are, which
    without a metric is the same list.
    """
    check_response_mask(sequences.response_mask)
    lengths = sequences.response_mask.sum(1).tolist()
    tokens = (sequences.input_ids, sequences.attention_mask, sequences.response_mask)
    kept = sequences.hidden or [None] * len(lengths)
    states = completion_states(model, *tokens, kept, measure.row_tokens)
    targets = sequences.input_ids[sequences.response_mask].split(lengths)  # (N, T) -> N times (M,)
    for start in range(0, len(lengths), sequences.group_size):
        group = slice(start, start + sequences.group_size)
        scaled, sketches = token_sketches(model, torch.cat(states[group]), torch.cat(targets[group]), measure)
        plain = list(zip(sketches.split(lengths[group]), states[group], strict=True))
        if measure.metric is None:
            yield plain, plain
            continue
        columns = [h * measure.metric.columns for h in states[group]]
        yield list(zip(scaled.split(lengths[group]), columns, strict=True)), plain


@torch.no_grad()
def completion_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T)
    kept: list[torch.Tensor | None],  # N times (M, H)
    row_tokens: int = ROW_TOKENS,  # padded tokens at a time
) -> list[torch.Tensor]:  # N times (M, H)
    """The hidden states that predict each completion's tokens, in fp32; those not kept, by a forward pass.

    What the prompts of these begin with, such as examples, goes through the model once.
    """
    assert len(kept) == len(input_ids), f"{len(kept)} hidden states for {len(input_ids)} completions"
    states = [None if state is None else state.float() for state in kept]
    missing = [i for i, state in enumerate(states) if state is None]
    for rows, packing in batches_of(model, input_ids, attention_mask, response_mask, missing, row_tokens):
        tokens, predicts = (input_ids[rows], attention_mask[rows]), response_mask[rows]
        with autocast(model):
            if packing is None:
                made = hidden_states(model, *tokens)[:, :-1][predicts[:, 1:]]  # (B, T, H) -> (M, H): t predicts t + 1
            else:
                made = packed_states(model, *tokens, predicts, packing)
        for i, state in zip(rows, made.split(predicts.sum(1).tolist()), strict=True):
            states[i] = state.float()
    return [state for state in states if state is not None]


def batches_of(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T)
    rows: list[int],
    row_tokens: int,
) -> list[tuple[list[int], Packing | None]]:
    """The given rows, as many together as `row_tokens` says; in sequences of several where prompts begin alike."""
    prompts = [input_ids[i][attention_mask[i] & ~response_mask[i]].tolist() for i in rows]
    shared = shared_prefix(prompts)
    if not shared:
        step = max(1, row_tokens // input_ids.shape[1])
        return [(rows[start : start + step], None) for start in range(0, len(rows), step)]
    lengths = [len(prompt) for prompt in prompts], response_mask[rows].sum(1).tolist()
    batches = micro_batches(model, *lengths, list(range(len(rows))), row_tokens, shared)
    return [([rows[n] for n in batch.rows.tolist()], batch.packing) for batch in batches]


def token_sketches(
    model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor, measure: Measure
) -> tuple[torch.Tensor, torch.Tensor]:
    """What h_t is multiplied by in G_i of (2), a chunk of tokens at a time, by the metric's rows and as it is.

    With `gradient` ∂ℓ_t/∂z_t, the vocabulary side in at most SKETCH_WIDTH buckets; with `state`
    ∂ℓ_t/∂h_t = Wᵀ ∂ℓ_t/∂z_t, where the width is H. (M, H), (M,) -> (M, width), (M, width)
    """
    width = min(SKETCH_WIDTH, text_config(model).vocab_size)
    weight = model.get_output_embeddings().weight
    size = max(1, chunk_elements(model) // text_config(model).vocab_size)
    scaled, plain = [], []
    for h, chosen in zip(states.split(size), targets.split(size), strict=True):
        gradients = vocabulary_gradients(model, h, chosen, measure.temperature)
        if measure.scorer == "state":
            plain.append((gradients.to(weight.dtype) @ weight).float())
        else:
            plain.append(sketch(gradients, width))
            if measure.metric is not None:
                scaled.append(sketch(gradients * measure.metric.rows, width))
        del gradients  # as large as the logits: not beside the next ones
    as_it_is = torch.cat(plain)
    return (torch.cat(scaled) if scaled else as_it_is), as_it_is


def narrowed(tokens: Factors, count: int) -> Factors:
    """Both factors sketched, so that a gradient has at most BATCH_ELEMENTS/count floats; the same list where it has.

    A sketch is linear: it is that of the gradient, of which it takes many entries fewer to make.
    """
    elements = BATCH_ELEMENTS // count
    rows, columns = (factor.shape[1] for factor in tokens[0])
    if rows * columns <= elements:
        return tokens
    columns = min(columns, math.isqrt(elements))
    rows = min(rows, elements // columns)
    return [(sketch(sketched, rows), sketch(h, columns)) for sketched, h in tokens]


def sketch(vectors: torch.Tensor, width: int) -> torch.Tensor:
    """Count sketch: each entry goes to a random bucket with a random sign, so that inner products are kept on average.

    (M, V) -> (M, width). Over the choice of buckets and signs, the error of an inner product has variance at most
    (|a|²|b|² + (a·b)²)/width. Charikar et al. 2002.
    """
    vocabulary = vectors.shape[1]
    if vocabulary <= width:
        return vectors
    signs, order = signs_and_order(vocabulary, vectors)
    padded = torch.nn.functional.pad((vectors * signs)[:, order], (0, -vocabulary % width))
    return padded.view(len(vectors), -1, width).sum(1)  # (M, V) -> (M, V/width, width) -> (M, width)


def signs_and_order(vocabulary: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sign of each entry, and the order in which they are dealt to the buckets, always the same. -> (V,), (V,)"""
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    signs = (torch.randint(0, 2, (vocabulary,), generator=generator) * 2 - 1).to(like)
    return signs, torch.randperm(vocabulary, generator=generator).to(like.device)


def adam_metric(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, denominator: float = 1.0
) -> HeadMetric | None:
    """P of AdamW's next step by its moments of W: `metric_of_moments`; None before its first step."""
    found = moments(optimizer, model.get_output_embeddings().weight)
    if found is None:
        return None
    return metric_of_moments(*found, optimizer.param_groups[0], denominator)


def metric_of_moments(
    first: torch.Tensor,  # m (V, H)
    second: torch.Tensor,  # v (V, H)
    group: dict[str, Any],  # of the optimizer: its eps and betas
    denominator: float = 1.0,
) -> HeadMetric:
    """P of AdamW's next step, 1/(√v + ε) over its second moments v of W, factored.

    v_vh ≈ r_v c_h/m, with r and c the means of its rows and columns and m that of them all (Shazeer and Stern 2018,
    arXiv 1804.04235). The correction for v's start at 0 is one factor for all, which no sign and no cosine sees.

    The step is along β1 m + (1 − β1) G, m the first moments and G the gradient of the loss: the momentum beside a
    gradient of weight 1 is β1/(1 − β1) m, times the `denominator` of (8) that all completions share.
    """
    least, beta1 = group["eps"] ** 2, group["betas"][0]
    rows, columns = (second.mean(side, dtype=torch.float).clamp(min=least) for side in (1, 0))
    weight = beta1 / (1 - beta1) * denominator
    return HeadMetric(rows**-0.25, (columns / rows.mean()) ** -0.25, first if beta1 else None, weight)
