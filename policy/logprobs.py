"""Log-probabilities of completions under the policy, and the micro-batches in which they are computed.

`token_logps` goes from hidden states to log-probabilities in chunks, so that the (N, T, V) logits never exist, and runs
a prompt that several completions share once for them all (`packed_states`). `micro_batches` decides which rows go
together. The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from policy.attention import by_rows, rows_as_mask
from policy.model import (
    autocast,
    backbone,
    head_of,
    hidden_states,
    logits_from_hidden,
    takes_any_mask,
    text_config,
)

CHUNK_ELEMENTS = 2**25  # logits held at one time: 128 MB in fp32, small beside any model that has a large vocabulary
GPU_CHUNKS = 4  # so many times more on a GPU: `chunk_elements` says why
SHARED_PREFIX = (
    32  # tokens that prompts begin with, from which on they are computed once: a piece, or a pass, of its own
)
SMALL_BATCH = 512  # padded tokens; below, another micro-batch costs more time than the padding it saves

ALL_RUNS = -2  # in the place of a run's number, for what every run of a sequence sees; -1 is padding
Packing = list[list[int]]  # sequences of runs; a run is the number of rows that share one prompt


def token_logps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T) bool
    *,
    temperature: float = 1.0,
    packing: Packing | None = None,
    states: torch.Tensor | None = None,  # (M, H)
    entropy_gradient: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # (N, S), (N, S)
    """Log-probabilities of the completions' tokens, and entropies of the distributions that they were drawn from.

    Column t belongs to token t + 1, which the hidden state at t predicts; outside of completions it is 0.

    With a `packing`, rows that share their prompt run behind one copy of it, and several such runs are one sequence:
    [[2, 1], [3]] makes two sequences of six rows, in order, and the first two rows have the same prompt. The result
    does not depend on it. The model must take any mask (`policy.model.takes_any_mask`).

    `states` are those that predict the completions' tokens, in order, where they are known: then nothing is run through
    the model but its head.

    Differentiable, the entropies too unless `entropy_gradient` is false. Only completions go through the head, a chunk
    at a time; the backward pass computes each chunk again, so that memory does not grow with the vocabulary. Where a
    loss has no term of the entropies, what their gradient needs would be made again too, and kept to the end.

    Raises TypeError for a response mask that is not bool.
    """
    check_response_mask(response_mask)
    predicts = response_mask[:, 1:]  # (N, T) -> (N, S)
    with autocast(model):
        if states is not None:
            hidden = states
        elif packing is None:
            hidden = hidden_states(model, input_ids, attention_mask)[:, :-1][predicts]  # (N, T, H) -> (M, H)
        else:
            hidden = packed_states(model, input_ids, attention_mask, response_mask, packing)
        targets = input_ids[:, 1:][predicts]  # (M,)
        head = head_of(model)

        def chunk_logps(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logps = (logits_from_hidden(model, hidden, head) / temperature).log_softmax(-1)
            chosen = logps.gather(1, targets[:, None]).squeeze(1)
            if not entropy_gradient:  # behind `chosen`: there the second computation ends
                logps = logps.detach()
            entropies = -(logps.exp() * logps.masked_fill(logps == -torch.inf, 0.0)).sum(-1)
            return chosen, entropies

        size = max(1, chunk_elements(model) // text_config(model).vocab_size)
        if len(targets) <= size:
            logps, entropies = chunk_logps(hidden, targets)
        else:
            pieces = zip(hidden.split(size), targets.split(size), strict=True)
            parts = [checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in pieces]
            logps, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
    blank = torch.zeros(predicts.shape, device=logps.device)
    return blank.masked_scatter(predicts, logps), blank.masked_scatter(predicts, entropies)


def chunk_elements(model: PreTrainedModel) -> int:
    """How many logits are held at one time: a chunk of tokens times the vocabulary.

    For every chunk, the backward pass casts the head's weight and adds to its gradient: about 30 bytes of traffic
    for each of its numbers, beside 6 operations a token. GPUs do 100 to 200 operations in the time of a byte, so that
    chunks below 500 to 1,000 tokens wait for memory. 2**25 logits are 220 tokens of a vocabulary of 152,000.
    """
    return CHUNK_ELEMENTS * (GPU_CHUNKS if model.device.type == "cuda" else 1)


def check_response_mask(response_mask: torch.Tensor) -> None:
    """Raise TypeError for a mask that is not bool: as an index, 0 and 1 would mean the first two places of each row."""
    if response_mask.dtype != torch.bool:
        raise TypeError(f"response_mask is of type {response_mask.dtype}; it must be torch.bool: give mask.bool().")


def packed_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, T)
    attention_mask: torch.Tensor,  # (N, T)
    response_mask: torch.Tensor,  # (N, T)
    packing: Packing,
) -> torch.Tensor:  # (M, H)
    """The hidden states that predict the completions' tokens, in order; B sequences of L tokens hold all rows.

    A run reads: the prompt, then the completions without their last tokens, which predict nothing. Each completion
    follows the prompt in its positions, and attends to the prompt and to itself. What all prompts of a sequence begin
    with, such as examples, stands once at its beginning.
    """
    width = input_ids.shape[1]
    starts = attention_mask.int().argmax(1).tolist()  # of the real tokens of each row
    prompts = (attention_mask & ~response_mask).sum(1).tolist()
    completions = response_mask.sum(1).tolist()
    assert sum(map(sum, packing)) == len(completions), "every row must be in the packing once"
    ids = input_ids.tolist()
    begins = [  # tokens that all prompts of a sequence share
        shared_prefix([ids[first][starts[first] : starts[first] + prompts[first]] for first, *_ in sequence])
        for sequence in rows_by_run(packing)
    ]
    length = max(
        begin + sum(run_length(prompts[rows[0]], [completions[i] for i in rows]) - begin for rows in sequence)
        for begin, sequence in zip(begins, rows_by_run(packing), strict=True)
    )
    # For each piece (a beginning, a prompt, a completion): where its tokens are, where they go, what they are there.
    sources, targets, positions, runs, pieces, predicting = [], [], [], [], [], []
    members: list[list[torch.Tensor]] = []  # of each row the places of its pieces
    run = end = 0

    def add(size: int, row: int, first: int, of_run: int, piece: int) -> torch.Tensor:
        """Lay `size` tokens of a row, from its `first` on, behind what there is. -> their places"""
        nonlocal end
        sources.append(torch.arange(size) + row * width + starts[row] + first)
        targets.append(torch.arange(size) + end)
        positions.append(torch.arange(size) + first)
        runs.append(torch.full((size,), of_run))
        pieces.append(torch.full((size,), piece))
        end += size
        return targets[-1]

    for number, (begin, sequence) in enumerate(zip(begins, rows_by_run(packing), strict=True)):
        end = number * length
        of_all = [add(begin, sequence[0][0], 0, ALL_RUNS, 0)] if begin else []
        for rows in sequence:
            prompt = prompts[rows[0]]
            assert all(prompts[i] == prompt for i in rows), "the rows of a run must have one prompt"
            own = add(prompt - begin, rows[0], begin, run, 0)
            for piece, i in enumerate(rows, start=1):
                completion = add(completions[i] - 1, i, prompt, run, piece)
                predicting += [own[-1:], completion]
                members.append([*of_all, own, completion])
            run += 1
    device = input_ids.device
    target = torch.cat(targets).to(device)

    def packed(values: torch.Tensor, blank: int) -> torch.Tensor:
        """One value for each token -> (B, L)"""
        room = torch.full((len(packing) * length,), blank, device=device)
        return room.index_copy(0, target, values.to(device)).view(-1, length)

    if by_rows(model):
        allowed = rows_as_mask(members).to(device)  # (1, 1, N, T)
    else:
        # Padding is a run by itself, so that no row of the attention mask is empty.
        run_of, piece_of = packed(torch.cat(runs), -1), packed(torch.cat(pieces), 0)
        same_run = run_of[:, :, None] == run_of[:, None, :]  # (B, L) -> (B, L, L)
        same_piece = piece_of[:, :, None] == piece_of[:, None, :]
        of_all_runs = (run_of == ALL_RUNS)[:, None, :]
        allowed = (of_all_runs | same_run & (same_piece | (piece_of == 0)[:, None, :])).tril()[:, None]  # (B, 1, L, L)
    output = backbone(model)(
        input_ids=packed(input_ids.flatten()[torch.cat(sources).to(device)], 0),
        attention_mask=allowed,
        position_ids=packed(torch.cat(positions), 0),
        use_cache=False,
    )
    return output.last_hidden_state.flatten(0, 1)[torch.cat(predicting).to(device)]  # (B, L, H) -> (M, H)


def run_length(prompt: int, completions: list[int]) -> int:
    """Tokens of a run: the prompt once, and the completions without their last tokens."""
    return prompt + sum(completions) - len(completions)


def shared_prefix(prompt_ids: list[list[int]]) -> int:
    """How many tokens different prompts all begin with, but for the last of each; 0 where they are too few to pay."""
    different = set(map(tuple, prompt_ids))
    columns = zip(*(ids[:-1] for ids in different), strict=False) if len(different) > 1 else ()
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return shared if shared >= SHARED_PREFIX else 0


def rows_by_run(packing: Packing) -> Iterator[list[list[int]]]:
    """For each sequence, for each run in it, the rows."""
    row = 0
    for sequence in packing:
        yield [list(range(row + sum(sequence[:i]), row + sum(sequence[: i + 1]))) for i in range(len(sequence))]
        row += sum(sequence)


@contextmanager
def checkpointed(model: PreTrainedModel, enabled: bool) -> Iterator[None]:
    """Inside, the layers keep no activations for the backward pass, but compute them again there.

    transformers does this in training mode only, which turns on dropouts, dropped layers and noise in routers, each by
    a field of another name. So the layers are wrapped here, and the model stays as it is.

    Raises NotImplementedError for a model whose layers are not found.
    """
    layers: list[Any] = [m for m in model.modules() if enabled and isinstance(m, GradientCheckpointingLayer)]
    if enabled and not layers:
        raise NotImplementedError(
            f"The layers of {type(model).__name__} are none of those that can be computed again; leave --checkpointing "
            "out."
        )
    replaced = [vars(layer).get("forward") for layer in layers]  # None, but for layers that somebody else has wrapped
    for layer in layers:
        layer.forward = partial(computed_again, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def computed_again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The layer's result, whose activations the backward pass computes a second time.

    Raises ValueError for a cache, to which the second time would append the same keys and values again.
    """
    if torch.is_grad_enabled() and any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise ValueError("A layer was given a cache while its activations are to be computed again.")
    # Nothing is drawn at random outside of training mode, so that the state of the generators need not be kept.
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class MicroBatch:
    """Rows that go through the model together."""

    rows: torch.Tensor  # (B,)
    packing: Packing | None  # of these rows, in this order; None where each is a sequence of its own
    tokens: int  # real tokens of the sequences
    padded_tokens: int  # the same with padding


def micro_batches(
    model: PreTrainedModel,
    prompts: list[int],
    completions: list[int],
    questions: list[int],
    token_budget: int,
    shared: int = 0,
) -> Iterator[MicroBatch]:
    """Cut rows into micro-batches of at most `token_budget` padded tokens, the longest first.

    Given are, row by row, the tokens of the prompt and of the completion, and the number of the question. Completions
    of one question share their prompt in runs, and short runs fill the sequences up to the length of the longest one.
    Where all prompts begin with the same `shared` tokens, sequences are longer, so that these stand in few of them.
    A run longer than the budget is a micro-batch of its own. A model that does not take any mask gets a sequence for
    each row.
    """
    packable, hidden_size = takes_any_mask(model), text_config(model).hidden_size
    if packable:
        runs = shared_prompt_runs(prompts, completions, questions, token_budget, hidden_size)
    else:
        runs = [[row] for row in range(len(prompts))]
    # Where rows are not packed, their last token goes through the model too.
    extra = 0 if packable else 1
    lengths = {run[0]: run_length(prompts[run[0]], [completions[i] for i in run]) + extra for run in runs}
    left = sorted(runs, key=lambda run: lengths[run[0]], reverse=True)
    shared = shared if packable else 0
    while left:
        width = lengths[left[0][0]]
        if shared:  # as in shared_prompt_runs
            width = max(width, int(min(token_budget, shared + math.sqrt(6 * hidden_size * shared))))
        sequences: list[list[list[int]]] = []
        filled: list[int] = []
        waiting = []
        to_come = sum(lengths[run[0]] - shared for run in left)
        for run in left:  # into the first sequence with room, or else into a new one that is nearly filled
            length = lengths[run[0]]
            own = length - shared  # what it adds to a sequence that has begun
            to_come -= own
            place = next((i for i, used in enumerate(filled) if packable and used + own <= width), len(filled))
            if place == len(filled):
                padded = len(filled) * width
                fill = min(width, length + to_come) if shared else length
                wasteful = fill < 0.85 * width and padded >= SMALL_BATCH
                if filled and (padded + width > token_budget or wasteful):
                    waiting.append(run)
                    continue
                sequences.append([])
                filled.append(shared)
            sequences[place].append(run)
            filled[place] += own
        left = waiting
        members = [row for sequence in sequences for run in sequence for row in run]
        packing = [[len(run) for run in sequence] for sequence in sequences] if packable else None
        yield MicroBatch(torch.tensor(members), packing, sum(filled), len(filled) * max(filled))


def shared_prompt_runs(
    prompts: list[int], completions: list[int], questions: list[int], token_budget: int, hidden_size: int
) -> list[list[int]]:
    """Rows that share their prompt, as many together as saves more than it costs. Arguments as in `micro_batches`.

    Each of k completions of n tokens behind one prompt of p tokens costs about 12H² (p/k + n) products for the matrices
    of a layer, and 2H (p + kn)²/k for attention, which computes the others' tokens for nothing. The sum is least
    where kn is about √(6Hp).
    """
    runs: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda i: (questions[i], completions[i])):
        prompt = prompts[row]
        most = min(token_budget, prompt + math.sqrt(6 * hidden_size * prompt))
        if runs and questions[runs[-1][0]] == questions[row]:
            extended = [*runs[-1], row]
            if run_length(prompt, [completions[i] for i in extended]) <= most:
                runs[-1] = extended
                continue
        runs.append([row])
    return runs
