"""Completions decoded one token at a time, for a whole batch of prompts.

`decode` computes each prompt once and gives its cache to all completions of the question. Then it runs `FastSteps`,
this project's forward pass of one token per row, for the architectures in FAST_MODELS, and `PlainSteps`, the model's,
for every other. Completions that have ended leave the batch. On CUDA the steps are replayed as CUDA graphs.

The letters of shapes are in the docstring of dagrpo.py. Further ones here: Q query heads, W places of a prompt's cache,
R rows to a prompt.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from policy.compiling import compiled, is_compiled
from policy.graphs import GraphMemory, NoGraphError, captured
from policy.logprobs import shared_prefix
from policy.lora import is_plain, whole_weight
from policy.model import (
    autocast,
    head_of,
    hidden_states,
    in_bf16,
    layer_configs,
    logits_from_hidden,
    takes_any_mask,
    text_config,
)

FAST_MODELS = ("llama", "mistral", "qwen2", "qwen3")  # values of config.model_type that `decoder_layer` computes
STOP_CHECK = 8  # tokens between two looks at which completions have ended: each look makes a GPU wait for the CPU
SHARED_PROMPT = 64  # tokens from which on rows read one copy of their prompt's cache on a CPU: below, copies are faster
CACHE_BYTES = 2**31  # key-value cache held at one time while sampling on a CPU; a GPU gives half of what is free
NOT_FINITE = "the model gives NaN: its weights are damaged, or a learning rate too high has made them so."
GRAPH_PLACES = 256  # a CUDA graph reads the cache in multiples of this: few graphs, little read in vain
GRAPH_ROWS = 16  # down to which rows are halved: of fewer, a step takes as long, which is to read the weights
CHOICE_BYTES = 24  # of each token of the vocabulary, while a GPU chooses one: logits, probabilities, their sums, ...


# ---------------------------------------------------------------------------------------------------------------------
# Choosing tokens
# ---------------------------------------------------------------------------------------------------------------------


def uniform_noise(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1), each a function of its key and its position alone. (N, 1), (L,) or (N, L) -> (N, L)

    The mixing function of SplitMix64 (Steele, Lea, Flood 2014). int64 products wrap around, as they should.
    """
    mixed = keys + (positions + 1) * -7046029254386353131
    for shift, multiplier in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    mixed = mixed ^ ((mixed >> 31) & ((1 << 33) - 1))
    return ((mixed >> 41) & ((1 << 23) - 1)).float() / (1 << 23)  # 23 bits: 1 is never reached, also after rounding


def choose_tokens(
    logits: torch.Tensor, noise: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next tokens, and their log-probabilities under the full softmax. (N, V), (N,) -> (N,), (N,)

    The noise picks a place in the cumulative distribution. Temperature 0 takes the likeliest token.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    if temperature == 0:
        chosen = logits.argmax(-1, keepdim=True)
    else:
        probabilities = logits.softmax(-1)
        if top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= top_p  # the likeliest token is never beyond
            probabilities = probabilities.scatter(1, order, ordered.masked_fill(beyond, 0.0))
        cumulative = probabilities.cumsum(-1)
        chosen = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=logits.shape[1] - 1)  # NaN leads beyond the vocabulary; `decode` looks for it later
    logps = logits.gather(1, chosen) - logits.logsumexp(-1, keepdim=True)
    return chosen.squeeze(1), logps.squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# One token for every row
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """The weights of one layer as `decoder_layer` uses them: matrices that read the same input are joined."""

    input_norm: torch.Tensor  # (H,)
    qkv: torch.Tensor  # (queries + keys + values, H)
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None  # (D,), Qwen3
    key_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


def joined(modules: list[Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of linear maps of one input, as one map; a missing bias beside others counts as 0.

    What an adapter adds to a map is in its weight.
    """
    if len(modules) == 1:  # a copy only where the type is another, or where there is an adapter
        bias = modules[0].bias
        return whole_weight(modules[0]).to(dtype), None if bias is None else bias.to(dtype)
    weight = torch.cat([whole_weight(module) for module in modules]).to(dtype)
    if all(module.bias is None for module in modules):
        return weight, None
    biases = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in modules]
    return weight, torch.cat(biases).to(dtype)


@dataclass
class PromptCache:
    """Keys and values of P prompts, one layer's, and which rows share them: at most R rows to a prompt."""

    keys: torch.Tensor  # (P, K, W, D)
    values: torch.Tensor
    bias: torch.Tensor  # (P·K, 1, W) 0 on real tokens, −inf on padding
    slots: torch.Tensor  # (N,) row n is completion slots[n] mod R of prompt slots[n] // R
    rows_each: int  # R


def attend(
    queries: torch.Tensor,  # (N, K, Q/K, D)
    prompts: PromptCache | None,
    keys: torch.Tensor,  # (N, K, L, D)
    values: torch.Tensor,  # (N, K, L, D)
    bias: torch.Tensor,  # (1 or N·K, 1, L)
) -> torch.Tensor:  # (N, Q·D)
    """Attention of one token per row to the row's cache, and before that to a prompt that it shares with other rows.

    A shared prompt's keys are read once for all its rows; one softmax runs over both parts.
    """
    rows, kv_heads, heads_each, size = queries.shape
    if queries.is_cuda:  # PyTorch's kernel keeps scores in fp32, as in training; on a CPU it is slower than this
        mask = bias.view(rows, kv_heads, 1, -1)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).reshape(rows, -1)
    scale = size**-0.5
    keys, values = keys.view(-1, keys.shape[2], size), values.view(-1, values.shape[2], size)
    queries_by_row = queries.reshape(-1, heads_each, size)
    scores = torch.baddbmm(bias, queries_by_row, keys.transpose(1, 2), alpha=scale)
    if prompts is None:
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return torch.bmm(weights, values).view(rows, -1)
    count, width, each = len(prompts.keys), prompts.keys.shape[2], prompts.rows_each

    def by_prompt(x: torch.Tensor) -> torch.Tensor:
        """(N, K, Q/K, ...) -> (P·K, R·Q/K, ...)"""
        x = x.new_zeros(count * each, *x.shape[1:]).index_copy(0, prompts.slots, x)
        x = x.view(count, each, kv_heads, heads_each, -1).transpose(1, 2)
        return x.reshape(count * kv_heads, each * heads_each, -1)

    def by_row(x: torch.Tensor) -> torch.Tensor:
        """(P·K, R·Q/K, ...) -> (N·K, Q/K, ...)"""
        x = x.view(count, kv_heads, each, heads_each, -1).transpose(1, 2)
        x = x.reshape(count * each, kv_heads, heads_each, -1)[prompts.slots]
        return x.reshape(rows * kv_heads, heads_each, -1)

    prompt_keys, prompt_values = prompts.keys.view(-1, width, size), prompts.values.view(-1, width, size)
    on_shared = by_row(torch.baddbmm(prompts.bias, by_prompt(queries), prompt_keys.transpose(1, 2), alpha=scale))
    weights = (
        torch.cat([on_shared, scores], dim=2).softmax(-1, dtype=torch.float32).to(values.dtype)
    )  # (N·K, Q/K, W + L)
    on_prompt = by_prompt(weights[:, :, :width].view(rows, kv_heads, heads_each, width))
    attended = by_row(torch.bmm(on_prompt, prompt_values)) + torch.bmm(weights[:, :, width:], values)
    return attended.view(rows, -1)


def put(room: torch.Tensor, place: torch.Tensor, new: torch.Tensor) -> None:
    """Write a key or value to `place` of each row's cache. (N, K, L, D), (1,) or (N,), (N, K, D)"""
    if len(place) == 1:
        room.index_copy_(2, place, new[:, :, None])
    else:
        room[torch.arange(len(place), device=place.device), :, place] = new


@compiled("sampler")
def decoder_layer(
    x: torch.Tensor,  # (N, H)
    layer: Layer,
    prompts: PromptCache | None,
    keys: torch.Tensor,  # (N, K, L, D)
    values: torch.Tensor,  # (N, K, L, D)
    bias: torch.Tensor,  # (1 or N·K, 1, L)
    cos: torch.Tensor,  # (N, 1, D)
    sin: torch.Tensor,  # (N, 1, D)
    place: torch.Tensor,  # (1,) of all rows, or (N,) of each
    eps: float,
) -> torch.Tensor:  # (N, H)
    """One layer for one token per row; writes its key and value to `place` of the row's cache."""
    rows, kv_heads, _, size = keys.shape
    h = F.rms_norm(x, x.shape[-1:], layer.input_norm, eps).to(layer.qkv.dtype)
    heads = F.linear(h, layer.qkv, layer.qkv_bias).view(rows, -1, size)  # (N, Q + 2K, D)
    queries_keys, value = heads[:, :-kv_heads], heads[:, -kv_heads:]
    if layer.query_norm is not None and layer.key_norm is not None:
        queries = F.rms_norm(queries_keys[:, :-kv_heads], (size,), layer.query_norm, eps)
        key = F.rms_norm(queries_keys[:, -kv_heads:], (size,), layer.key_norm, eps)
        queries_keys = torch.cat([queries, key], dim=1)
    queries_keys = (queries_keys * cos + queries_keys.roll(size // 2, -1) * sin).to(value.dtype)
    put(keys, place, queries_keys[:, -kv_heads:])
    put(values, place, value)
    queries = queries_keys[:, :-kv_heads].reshape(rows, kv_heads, -1, size)  # (N, Q, D) -> (N, K, Q/K, D)
    x = x + F.linear(attend(queries, prompts, keys, values, bias), layer.output, layer.output_bias)
    h = F.rms_norm(x, x.shape[-1:], layer.mlp_norm, eps).to(layer.qkv.dtype)
    gate, up = F.linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)


def is_fast(model: PreTrainedModel) -> bool:
    """Is this one of FAST_MODELS in a form that `decoder_layer` computes: full attention, rotation fixed by place?"""
    config = model.config
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    modules = model.base_model.modules()
    return (
        config.model_type in FAST_MODELS
        and rotation not in ("dynamic", "longrope")  # these depend on the length of the sequence
        and config.hidden_act == "silu"
        and takes_any_mask(model)
        and all(is_plain(m) for m in modules if hasattr(m, "in_features"))  # no packed weights
    )


def rows_left(going: int, rows: int) -> int:
    """The rows of a batch in which `going` rows go on: just those, unless moving the cache together would cost more
    than the others do."""
    return going if going <= 0.85 * rows else rows


class FastSteps:
    """One token for every row by `decoder_layer`, over a key-value cache of fixed size.

    Joined weights are copies (on CUDA all are, in bf16) that live as long as this object, which is one call of
    `decode`: while gradients, which are as large or larger, do not exist. On CUDA each pair of (rows, places read) is a
    CUDA graph.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        prompt_mask: torch.Tensor,
        group_size: int,
        max_new_tokens: int,
        *,
        refilled: bool = False,  # rows will get other prompts, as in policy/refilling.py
    ) -> None:
        base: Any = model.base_model
        config, device = model.config, model.device
        on_cuda = device.type == "cuda"
        dtype = torch.bfloat16 if in_bf16(model) else model.dtype
        self.eps = config.rms_norm_eps
        self.embedding, self.final_norm = base.embed_tokens.weight, base.norm.weight
        self.layers = []
        for block in base.layers:
            attention, mlp = block.self_attn, block.mlp
            qkv, qkv_bias = joined([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
            output, output_bias = joined([attention.o_proj], dtype)
            gate_up, gate_up_bias = joined([mlp.gate_proj, mlp.up_proj], dtype)
            down, down_bias = joined([mlp.down_proj], dtype)
            query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
            self.layers.append(
                Layer(
                    input_norm=block.input_layernorm.weight,
                    qkv=qkv,
                    qkv_bias=qkv_bias,
                    query_norm=query_norm and query_norm.weight,
                    key_norm=key_norm and key_norm.weight,
                    output=output,
                    output_bias=output_bias,
                    mlp_norm=block.post_attention_layernorm.weight,
                    gate_up=gate_up,
                    gate_up_bias=gate_up_bias,
                    down=down,
                    down_bias=down_bias,
                )
            )

        self.rows, self.group_of = len(prompt_mask) * group_size, torch.arange(len(prompt_mask), device=device)
        self.group_of = self.group_of.repeat_interleave(group_size)  # (P,) -> (N,) the prompt of each row
        self.prompt_lengths = prompt_mask.sum(1).repeat_interleave(group_size)  # (P,) -> (N,)
        places = torch.arange(int(self.prompt_lengths.max()) + max_new_tokens, device=device)[None]
        cos, sin = base.rotary_emb(self.embedding[:1], places)  # (1, L, D)
        half = cos.shape[2] // 2
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=1)

        # What a row's cache begins with: its completion, or before that a copy of its prompt.
        width = prompt_mask.shape[1]
        self.copied_prompt = width if on_cuda or refilled or width < SHARED_PROMPT else 0
        capacity = self.copied_prompt + max_new_tokens
        if on_cuda:
            capacity += -capacity % 16  # else attention on CUDA copies the bias to such a width, in every layer
        self.prompts: list[PromptCache | None] = []
        self.caches: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer: keys and values, (N, K, L, D)
        for cached in cache.layers:
            keys, values = (getattr(cached, name).to(dtype).contiguous() for name in ("keys", "values"))  # (P, K, W, D)
            kv_heads, size = keys.shape[1], keys.shape[3]
            padding = prompt_mask.logical_not().repeat_interleave(kv_heads, dim=0)[:, None]  # (P·K, 1, W)
            padding_bias = torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill(padding, -torch.inf)
            # Where places are read that are not filled yet, by a graph or because other rows have filled theirs, their
            # weight is 0; but 0 times garbage may not be 0.
            new_room = torch.zeros if on_cuda or refilled else torch.empty
            # Each by itself: of two inputs that share memory and are written to, torch.compile makes one.
            shape = (self.rows, kv_heads, capacity, size)
            room = [new_room(shape, dtype=dtype, device=device) for _ in ("keys", "values")]
            self.caches.append((room[0], room[1]))
            if self.copied_prompt:
                room[0][:, :, :width] = keys.repeat_interleave(group_size, dim=0)  # (P, ...) -> (N, ...)
                room[1][:, :, :width] = values.repeat_interleave(group_size, dim=0)
                self.prompts.append(None)
            else:
                slots = torch.arange(self.rows, device=device)
                self.prompts.append(PromptCache(keys, values, padding_bias, slots, group_size))
        # Added to what a row attends to in its cache: 0 where filled, else −inf. All rows alike, but for padding.
        alike = self.rows * kv_heads if self.copied_prompt else 1
        self.bias = torch.full((alike, 1, capacity), -torch.inf, dtype=dtype, device=device)
        if self.copied_prompt:
            by_row = padding_bias.view(-1, kv_heads, 1, width).repeat_interleave(group_size, dim=0)
            self.bias[:, :, :width] = by_row.view(-1, 1, width)  # (P, K, 1, W) -> (N·K, 1, W)
        self.kv_heads = kv_heads
        # For few tokens, making a graph takes longer than it saves.
        self.use_graphs = on_cuda and max_new_tokens > STOP_CHECK and is_compiled("sampler")
        self.memory: GraphMemory | None = None  # of all graphs, made with the first: only one runs at a time
        self.graphs: dict[tuple[int, int], Callable[..., torch.Tensor]] = {}

    def __call__(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """Hidden states after one more token in every row, the one at `position` of the completion. (N,) -> (N, H)"""
        place = self.copied_prompt + position
        inputs = (tokens, self.prompt_lengths + position, torch.full((1,), place, device=tokens.device))
        return self.run(place + 1, *inputs)

    def run(self, read: int, *inputs: torch.Tensor) -> torch.Tensor:
        """`step`, reading `read` places, or somewhat more, as a CUDA graph where there are such."""
        if not self.use_graphs:
            return self.step(read, decoder_layer.eager, *inputs)
        tokens = inputs[0]
        places = min(self.bias.shape[2], -(-read // GRAPH_PLACES) * GRAPH_PLACES)
        if (self.rows, places) not in self.graphs:
            step = functools.partial(self.step, places, decoder_layer)
            plain = functools.partial(self.step, places, decoder_layer.eager)
            self.memory = self.memory or GraphMemory(tokens.device)
            try:
                self.graphs[self.rows, places] = captured(self.memory, step, plain, *inputs)
            except NoGraphError as error:  # nothing else: a fault of the GPU would come back with every later call
                self.use_graphs = False
                warnings.warn(f"no CUDA graph could be made, decoding goes on without: {error}", stacklevel=2)
                return plain(*inputs)
        return self.graphs[self.rows, places](*inputs)

    def step(
        self,
        places: int,
        layer_function: Callable[..., torch.Tensor],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        place: torch.Tensor,
    ) -> torch.Tensor:
        """The same, reading the first `places` of the rows' caches.

        (N,) tokens, (N,) positions of them in their sequences, (1,) or (N,) place in the cache -> (N, H)
        """
        if len(place) == 1:
            self.bias.index_fill_(2, place, 0.0)
        else:
            by_row = self.bias.view(len(place), self.kv_heads, -1)  # (N·K, 1, L) -> (N, K, L)
            by_row[torch.arange(len(place), device=place.device), :, place] = 0.0
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # (L, D) -> (N, 1, D)
        x = F.embedding(tokens, self.embedding)
        for layer, prompts, (keys, values) in zip(self.layers, self.prompts, self.caches, strict=True):
            keys, values = keys[: self.rows, :, :places], values[: self.rows, :, :places]
            x = layer_function(x, layer, prompts, keys, values, self.bias[:, :, :places], cos, sin, place, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.final_norm, self.eps)

    def rows_to_keep(self, going: int) -> int:
        """How many rows the batch should have when `going` of them go on: on CUDA a half, a quarter, ..., as each
        number of rows needs another graph, and is captured in the time of some ten steps."""
        if self.use_graphs:
            rows = self.rows
            while rows // 2 >= max(going, GRAPH_ROWS):
                rows //= 2
            return rows
        return rows_left(going, self.rows)

    def keep(self, rows: torch.Tensor, position: int) -> None:
        """Go on with these rows, in ascending order; the cache holds completions up to `position`. (B,)"""
        used = self.copied_prompt + position + 1
        for pair in self.caches:
            for room in pair:
                room[: len(rows), :, :used] = room[rows, :, :used]
        if self.copied_prompt:
            kept = self.bias.view(-1, self.kv_heads, 1, self.bias.shape[2])[rows]
            self.bias = kept.view(-1, 1, self.bias.shape[2])
        self.rows, self.prompt_lengths = len(rows), self.prompt_lengths[rows]
        self.graphs.clear()  # their numbers of rows do not come back
        self.memory = None  # PyTorch takes no pool again of which all graphs are gone
        live, self.group_of, counts = self.group_of[rows].unique_consecutive(return_inverse=True, return_counts=True)
        each = int(counts.max())
        first = counts.cumsum(0) - counts  # the first row of each prompt
        slots = self.group_of * each + torch.arange(self.rows, device=rows.device) - first[self.group_of]
        for number, old in enumerate(self.prompts):
            if old is not None:
                bias = old.bias.view(len(old.keys), -1, old.bias.shape[2])[live].view(-1, 1, old.bias.shape[2])
                self.prompts[number] = PromptCache(old.keys[live], old.values[live], bias, slots, each)


class GrowingLayer(DynamicLayer):
    """A layer of the model's cache that grows by blocks: appending one token does not copy all earlier ones."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key_states = key_states.to(value_states.dtype)  # under autocast the rotary embedding leaves keys in fp32
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = (key_states[:, :, :0], value_states[:, :, :0])
        old = self.get_seq_length()
        new = old + key_states.shape[2]
        if self.room[0].shape[0] != key_states.shape[0] or self.room[0].shape[2] < new:
            batch, heads = key_states.shape[:2]
            grown = [s.new_empty(batch, heads, new + 64, s.shape[3]) for s in (key_states, value_states)]
            if old and self.keys is not None and self.values is not None:
                grown[0][:, :, :old].copy_(self.keys)
                grown[1][:, :, :old].copy_(self.values)
            self.room = (grown[0], grown[1])
        keys, values = self.room
        keys[:, :, old:new], values[:, :, old:new] = key_states, value_states
        self.keys, self.values = keys[:, :, :new], values[:, :, :new]
        return self.keys, self.values


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for the model, whose layers of full attention grow by blocks."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PlainSteps:
    """One token for every row by the model's forward pass and cache: for any model with keys and values."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        prompt_mask: torch.Tensor,
        group_size: int,
        max_new_tokens: int,
    ) -> None:
        self.model, self.cache, self.width = model, cache, prompt_mask.shape[1]
        cache.batch_repeat_interleave(group_size)  # (P, ...) -> (N, ...)
        mask = F.pad(prompt_mask, (0, max_new_tokens), value=True)
        self.attention_mask = mask.repeat_interleave(group_size, dim=0)  # (P, T) -> (N, T)

    def __call__(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        seen = self.attention_mask[:, : self.width + position + 1]
        return hidden_states(self.model, tokens[:, None], seen, self.cache)[:, -1]  # (N, 1, H) -> (N, H)

    def rows_to_keep(self, going: int) -> int:
        return rows_left(going, len(self.attention_mask))

    def keep(self, rows: torch.Tensor, position: int) -> None:
        self.cache.batch_select_indices(rows)
        self.attention_mask = self.attention_mask[rows]


# ---------------------------------------------------------------------------------------------------------------------
# Whole completions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled, and where they end."""

    max_new_tokens: int
    temperature: float  # 0 takes the likeliest token
    top_p: float
    stop_ids: list[int]  # each of these tokens ends a completion


@dataclass
class Decoded:
    """The completions of N rows, in order, padded on the right to L tokens."""

    tokens: torch.Tensor  # (N, L)
    logps: torch.Tensor  # (N, L) of each token under the full softmax at the temperature
    lengths: torch.Tensor  # (N,) tokens up to the first stop token and with it
    hidden: torch.Tensor | None  # (N, L, H) the states that each token was chosen from, where they were asked for


def of_prompts(model: PreTrainedModel, prompt_ids: list[list[int]]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """P prompts through the model: cache, mask (P, W), and the states behind them (P, H).

    What all of them begin with, such as examples, is computed once; then each is padded on the left of what is its own.
    """
    shared = shared_prefix(prompt_ids) if takes_any_mask(model) else 0  # a sliding window would count the padding
    width = max(map(len, prompt_ids))
    input_ids = torch.zeros(len(prompt_ids), width - shared, dtype=torch.long)
    prompt_mask = torch.zeros(len(prompt_ids), width, dtype=torch.bool)
    prompt_mask[:, :shared] = True
    for i, ids in enumerate(prompt_ids):
        input_ids[i, width - len(ids) :] = torch.tensor(ids[shared:])
        prompt_mask[i, width - len(ids) + shared :] = True
    input_ids, prompt_mask = input_ids.to(model.device), prompt_mask.to(model.device)
    cache = new_cache(model)
    with autocast(model):  # closed before the steps: it keeps a bf16 copy of every weight until its end
        if shared:
            prefix = torch.tensor([prompt_ids[0][:shared]], device=model.device)
            hidden_states(model, prefix, prompt_mask[:1, :shared], cache)
            cache.batch_repeat_interleave(len(prompt_ids))  # (1, ...) -> (P, ...)
        return cache, prompt_mask, hidden_states(model, input_ids, prompt_mask, cache)[:, -1]


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],  # P prompts
    keys: torch.Tensor,  # (N,) N/P to each prompt
    sampling: Sampling,
    *,
    keep_hidden: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Decoded:
    """One completion for each key: a row's random choices depend on its key alone.

    Raises FloatingPointError where the model gives NaN.
    """
    device, group_size, limit = model.device, len(keys) // len(prompt_ids), sampling.max_new_tokens
    stop_tokens = torch.tensor(sampling.stop_ids, device=device)
    cache, prompt_mask, hidden = of_prompts(model, prompt_ids)
    hidden = hidden.repeat_interleave(group_size, dim=0)  # (P, H) -> (N, H)
    with autocast(model):
        kind = FastSteps if is_fast(model) else PlainSteps
        steps = kind(model, cache, prompt_mask, group_size, limit)

        decoded = Decoded(
            tokens=torch.zeros(len(keys), limit, dtype=torch.long, device=device),
            logps=torch.zeros(len(keys), limit, device=device),
            lengths=torch.full((len(keys),), limit, device=device),
            hidden=None,
        )
        if keep_hidden:
            dtype = torch.bfloat16 if device.type == "cuda" else hidden.dtype
            decoded.hidden = torch.zeros(len(keys), limit, hidden.shape[1], dtype=dtype, device=device)
        active = torch.arange(len(keys), device=device)  # rows still in the batch
        ended = torch.zeros(len(keys), dtype=torch.bool, device=device)  # of the active rows
        chosen, head = torch.zeros(0, dtype=torch.long, device=device), head_of(model)
        for start in range(0, limit, STOP_CHECK):
            block = range(start, min(start + STOP_CHECK, limit))
            noise = uniform_noise(keys[active][:, None], torch.arange(block.start, block.stop, device=device))
            made = []
            for position in block:
                if position:
                    hidden = steps(chosen, position - 1)
                logits = logits_from_hidden(model, hidden, head)
                chosen, logps = choose_tokens(logits, noise[:, position - start], sampling.temperature, sampling.top_p)
                made.append((chosen, logps, hidden))
            columns = slice(block.start, block.stop)
            tokens, logps, states = (torch.stack(column, 1) for column in zip(*made, strict=True))  # (B, 8, ...)
            decoded.tokens[active, columns], decoded.logps[active, columns] = tokens, logps
            if decoded.hidden is not None:
                decoded.hidden[active, columns] = states.to(decoded.hidden.dtype)
            is_stop = torch.isin(tokens, stop_tokens)
            newly = is_stop.any(1) & ~ended
            decoded.lengths[active[newly]] = start + 1 + is_stop[newly].int().argmax(1)
            ended |= newly
            going, broken = torch.stack([(~ended).sum(), (~logps.isfinite()).sum()]).tolist()  # a GPU waits once
            if broken:
                raise FloatingPointError(NOT_FINITE)
            if progress is not None:
                progress(len(block) * going)
            if going == 0:
                break
            if (count := steps.rows_to_keep(going)) < len(active):
                kept = ended.sort(stable=True).indices[:count].sort().values  # those that go on, and others to fill
                steps.keep(kept, block.stop - 2)  # the last tokens are not in the cache yet
                chosen, active, ended = chosen[kept], active[kept], ended[kept]
    return decoded


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Key-value cache of one sequence of `length` tokens, with the hidden states that may be kept of it."""
    numbers = text_config(model).hidden_size
    for config in layer_configs(model):
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers += 2 * heads * width
    return numbers * length * (4 if model.device.type == "cpu" else 2)


def rows_at_once(model: PreTrainedModel, length: int) -> int:
    """How many sequences of `length` tokens the key-value cache has room for, at least one."""
    budget, row = CACHE_BYTES, cache_bytes(model, length)
    if model.device.type == "cuda":  # half of what is free, counting what PyTorch's allocator holds and does not use
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        budget = (torch.cuda.mem_get_info(model.device)[0] + held) // 2
        row += CHOICE_BYTES * text_config(model).vocab_size
    return max(1, budget // row)
