"""Completions of more prompts than fit into a batch: where one has ended, the next prompt takes its row.

So a benchmark costs the sum of its completions, not the longest one of each batch. `decode` (policy/decoding.py) keeps
all rows at one place of the cache; here each is at a place of its own:

    row 0    p p p a a a a a a .        prompt 0 and its completion so far
    row 1    p p p p p a a . . .        prompt 7, which took the row of prompt 1
    row 2    _ p p p p . . . . .        prompt 8, just begun; padded on the left beside prompt 7

What a row says does not depend on its neighbours, but for rounding, as random choices depend on the row's key alone. It
is for the models that `decoder_layer` computes: `is_fast` says which. Letters of shapes: docstring of dagrpo.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from policy.decoding import (
    NOT_FINITE,
    STOP_CHECK,
    FastSteps,
    Sampling,
    choose_tokens,
    decode,
    of_prompts,
    uniform_noise,
)
from policy.model import autocast, head_of, logits_from_hidden

FREE_SHARE = 1 / 8  # of the rows that must be free before prompts are computed for them: one at a time is slow
LOOK_ON_CPU = 4  # tokens between two looks at which completions have ended; a GPU, which then waits, has STOP_CHECK


@dataclass(frozen=True)
class Request:
    """A completion that is asked for."""

    prompt: list[int]  # token ids
    key: int  # on which the random choices depend


@dataclass
class Begun:
    """The prompts of some requests, each computed once."""

    cache: DynamicCache  # of P prompts
    mask: torch.Tensor  # (B, W) of the prompt of each request
    hidden: torch.Tensor  # (B, H) the states behind them
    prompt_of: torch.Tensor  # (B,) which of the P prompts each request has


def begun(model: PreTrainedModel, requests: list[Request]) -> Begun:
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of = [numbers.setdefault(tuple(request.prompt), len(numbers)) for request in requests]
    cache, mask, hidden = of_prompts(model, [list(prompt) for prompt in numbers])
    rows = torch.tensor(prompt_of, device=model.device)
    return Begun(cache, mask[rows], hidden[rows], rows)


class Slots:
    """A batch of B rows, each at a place of its own in a cache of at least `capacity` places."""

    def __init__(self, model: PreTrainedModel, first: Begun, capacity: int) -> None:
        rows, width = first.mask.shape
        first.cache.batch_select_indices(first.prompt_of)  # (P, ...) -> (B, ...)
        with autocast(model):
            self.steps = FastSteps(model, first.cache, first.mask, 1, capacity - width, refilled=True)
        self.places = torch.full((rows,), width, device=model.device)  # where the next token of each row goes
        self.positions = first.mask.sum(1)  # of that token in its sequence, which has no padding
        self.ends = [width] * rows  # the same as `places`, known without waiting for a GPU

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states after one more token in every row. (B,) -> (B, H)"""
        hidden = self.steps.run(max(self.ends) + 1, tokens, self.positions, self.places)
        self.places, self.positions = self.places + 1, self.positions + 1
        self.ends = [end + 1 for end in self.ends]
        return hidden

    def free(self, rows: list[int]) -> None:
        """Rows that have ended: what they do until others begin in them is lost, and takes little room."""
        self.move(rows, torch.zeros(len(rows), dtype=torch.long, device=self.places.device), 0)

    def fill(self, rows: list[int], new: Begun) -> None:
        """Begin other prompts in some of the rows."""
        at, width = torch.tensor(rows, device=self.places.device), new.mask.shape[1]
        layers: list[Any] = new.cache.layers
        for (keys, values), layer in zip(self.steps.caches, layers, strict=True):
            keys[at, :, :width] = layer.keys.to(keys.dtype)[new.prompt_of]
            values[at, :, :width] = layer.values.to(values.dtype)[new.prompt_of]
        bias = self.steps.bias.view(self.steps.rows, self.steps.kv_heads, -1)  # (B·K, 1, L) -> (B, K, L)
        bias[at] = -torch.inf
        bias[at, :, :width] = torch.zeros_like(bias[at, :, :width]).masked_fill(~new.mask[:, None], -torch.inf)
        self.move(rows, new.mask.sum(1), width)

    def move(self, rows: list[int], positions: torch.Tensor, place: int) -> None:
        at = torch.tensor(rows, device=self.places.device)
        self.places[at], self.positions[at] = place, positions
        for row in rows:
            self.ends[row] = place

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone, in ascending order."""
        at = torch.tensor(rows, device=self.places.device)
        self.steps.keep(at, max(self.ends) - self.steps.copied_prompt - 1)
        self.places, self.positions = self.places[at], self.positions[at]
        self.ends = [self.ends[row] for row in rows]


@torch.no_grad()
def decode_each(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    rows: int,
    progress: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """The tokens of each request as soon as it has ended, with its number; at most `rows` are in the batch at once.

    Tokens end in one of the sampling's stop tokens, or at its limit. Raises FloatingPointError where the model gives
    NaN. `progress` is called with about the number of tokens as they are made.
    """
    queue = deque(range(len(requests)))
    live: list[int | None] = [queue.popleft() for _ in range(min(rows, len(requests)))]  # the request in each row
    first = [requests[number] for number in range(len(live))]
    state = begun(model, first)
    hidden = state.hidden
    block = STOP_CHECK if model.device.type == "cuda" else LOOK_ON_CPU  # the last one may go beyond the limit
    capacity = max(len(request.prompt) for request in requests) + sampling.max_new_tokens + block
    slots = Slots(model, state, capacity)
    del state
    keys = torch.tensor([request.key for request in first], device=model.device)
    made: list[list[int]] = [[] for _ in live]
    while True:
        counts = torch.tensor([len(tokens) for tokens in made], device=keys.device)
        noise = uniform_noise(keys[:, None], counts[:, None] + torch.arange(block, device=keys.device))
        chosen, tokens = next_block(model, slots, hidden, sampling, noise, live)
        ended = []
        for row, number in enumerate(live):
            if number is None:
                continue
            made[row] += tokens[row]
            length = ended_at(made[row], len(made[row]) - block, sampling)
            if length is not None:
                live[row] = None
                ended.append(row)
                yield number, made[row][:length]
        going = sum(number is not None for number in live)
        if progress is not None:
            progress(block * going)
        if ended:
            slots.free(ended)
        if not going and not queue:
            return
        if not queue and (count := slots.steps.rows_to_keep(going)) < len(live):
            by_need = sorted(range(len(live)), key=lambda row: live[row] is None)  # those that go on, others to fill
            kept = sorted(by_need[:count])
            slots.keep(kept)
            chosen, keys = chosen[kept], keys[kept]
            live, made = [live[row] for row in kept], [made[row] for row in kept]
        with autocast(model):
            hidden = slots.step(chosen) if going else torch.zeros_like(hidden)
        empty = [row for row, number in enumerate(live) if number is None][: len(queue)]
        if empty and (len(empty) >= FREE_SHARE * len(live) or not going):
            numbers = [queue.popleft() for _ in empty]
            state = begun(model, [requests[number] for number in numbers])
            slots.fill(empty, state)
            hidden[empty] = state.hidden.to(hidden.dtype)
            keys[empty] = torch.tensor([requests[number].key for number in numbers], device=keys.device)
            for row, number in zip(empty, numbers, strict=True):
                live[row], made[row] = number, []
            del state


def decode_batches(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    rows: int,
    progress: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """The same for any model: batches of `rows`, each as long as its longest completion."""
    for start in range(0, len(requests), rows):
        batch = requests[start : start + rows]
        keys = torch.tensor([request.key for request in batch], device=model.device)
        decoded = decode(model, [request.prompt for request in batch], keys, sampling, progress=progress)
        for number, (tokens, length) in enumerate(zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)):
            yield start + number, tokens[:length]


def next_block(
    model: PreTrainedModel,
    slots: Slots,
    hidden: torch.Tensor,  # (B, H)
    sampling: Sampling,
    noise: torch.Tensor,  # (B, L)
    live: list[int | None],
) -> tuple[torch.Tensor, list[list[int]]]:
    """L more tokens in every row: the last one, which the cache does not have yet, and all of them. (B,), (B, L)"""
    columns: list[torch.Tensor] = []
    finite: list[torch.Tensor] = []
    with autocast(model):
        head = head_of(model)
        for number in range(noise.shape[1]):
            if number:
                hidden = slots.step(columns[-1])
            logits = logits_from_hidden(model, hidden, head)
            chosen, logps = choose_tokens(logits, noise[:, number], sampling.temperature, sampling.top_p)
            columns.append(chosen)
            finite.append(logps.isfinite())
    tokens, sound = torch.stack(columns, 1), torch.stack(finite, 1).all(1)
    found: list[list[int]] = torch.cat([tokens, sound[:, None].long()], dim=1).tolist()  # a GPU waits once
    if not all(row[-1] for row, number in zip(found, live, strict=True) if number is not None):
        raise FloatingPointError(NOT_FINITE)
    return columns[-1], [row[:-1] for row in found]


def ended_at(tokens: list[int], start: int, sampling: Sampling) -> int | None:
    """How long a completion is whose tokens from `start` on are new: up to a stop token, or the limit; None: longer."""
    for place in range(max(0, start), min(len(tokens), sampling.max_new_tokens)):
        if tokens[place] in sampling.stop_ids:
            return place + 1
    return sampling.max_new_tokens if len(tokens) >= sampling.max_new_tokens else None
