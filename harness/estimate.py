"""How much memory a run will take at its peak, from its settings and the sizes of its model.

A step samples, scores pairs, updates; between steps a run evaluates, and saves. Weights and AdamW's moments stay all
the time; what else is held belongs to one of these parts, and the peak is that of the largest. Each function below adds
up the tensors of one part, under the names of the code that makes them. `python benchmarks/memory.py` measures how far
off it is, and prints what fits a GPU.

Taken to be so: every completion is as long as --max-new-tokens, every prompt as long as the longest one, and every
completion has an advantage. Layers are those of Llama and Qwen; others are taken for their like.

Letters of shapes: docstring of dagrpo.py. Further ones here: Q query heads, I inner size of a layer.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evaluate import BATCH_COMPLETIONS, GPU_BATCHES
from harness.config import Config
from policy.decoding import SHARED_PROMPT, is_fast
from policy.logprobs import MicroBatch, chunk_elements, micro_batches
from policy.model import layer_configs, takes_any_mask, text_config
from scorers.gradients import BATCH_ELEMENTS, SKETCH_WIDTH
from scoring import BY_GRADIENT

FP32 = 4
LOGITS = 4  # tensors in fp32 of as many numbers as a chunk has logits, at once: in the loss, and where pairs are scored
CHOICE = 5  # the same of a token that is chosen: logits, probabilities, their sums, and two of their logarithm
LEAST_IN_8_BITS = 4_096  # numbers of a tensor, below which bitsandbytes keeps its moments in fp32


@dataclass(frozen=True)
class Prompts:
    """How long the prompts of a run are, in tokens."""

    longest: int
    shared: int = 0  # that all of them begin with, such as examples; 0 where these are too few to be computed once


@dataclass(frozen=True)
class Sizes:
    """What of a model decides how much memory it takes."""

    weights: int  # numbers in all
    matrices: int  # of these, in the linear maps of the layers
    read_twice: int  # of these, in maps that the sampler joins: queries, keys and values, gate and up
    trained: list[int]  # numbers of each tensor that is trained
    adapters: int  # ranks of all adapters of a layer, added up; 0 without
    layers: int
    hidden: int
    inner: float  # mean over the layers, as the next three
    heads: float
    queries: float  # Q·D
    keys: float  # K·D
    vocabulary: int
    tied: bool
    frozen: bool  # by --lora
    fast: bool  # decoded by this project's forward pass
    packs: bool  # several rows make a sequence

    @classmethod
    def of(cls, model: PreTrainedModel) -> Sizes:
        config, layers = text_config(model), layer_configs(model)
        maps = {
            name: module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and module is not model.get_output_embeddings()
            and ".lora_" not in name
        }
        joined = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
        ranks = [value.shape[0] for name, value in model.named_parameters() if ".lora_A." in name]
        inner = [of_layer(getattr(layer, "intermediate_size", None), i, config) for i, layer in enumerate(layers)]
        heads = [layer.num_attention_heads for layer in layers]
        kv_heads = [getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads for layer in layers]
        each = [getattr(layer, "head_dim", None) or config.hidden_size // layer.num_attention_heads for layer in layers]
        weight = getattr(model.get_input_embeddings(), "weight", None)
        return cls(
            weights=sum(parameter.numel() for parameter in model.parameters()) - sum(adapter_numbers(model)),
            matrices=sum(maps.values()),
            read_twice=sum(n for name, n in maps.items() if name.removesuffix(".base_layer").endswith(joined)),
            trained=[parameter.numel() for parameter in model.parameters() if parameter.requires_grad],
            adapters=sum(ranks) // len(layers),
            layers=len(layers),
            hidden=config.hidden_size,
            inner=mean(inner),
            heads=mean(heads),
            queries=mean([n * size for n, size in zip(heads, each, strict=True)]),
            keys=mean([n * size for n, size in zip(kv_heads, each, strict=True)]),
            vocabulary=config.vocab_size,
            tied=getattr(model.get_output_embeddings(), "weight", None) is weight,
            frozen=bool(ranks),
            fast=is_fast(model),
            packs=takes_any_mask(model),
        )


def of_layer(inner: Any, number: int, config: Any) -> int:
    """The inner size of a layer; Gemma 3n has a list of them, and older models have none: four times the hidden."""
    return inner[number] if isinstance(inner, list) else inner or 4 * config.hidden_size


def adapter_numbers(model: PreTrainedModel) -> list[int]:
    return [value.numel() for name, value in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]


def memory_estimate(
    model: PreTrainedModel,
    config: Config,
    *,
    prompts: Prompts,
    held_out: int,
    on_gpu: bool | None = None,
    available: float | None = None,
) -> dict[str, float]:
    """Gigabytes of the parts of a run, of which the largest beside what stays makes the `total`; and what there is.

    `held_out` is the number of questions of an evaluation. The model may be one without weights (device meta): then
    `on_gpu` and `available` say where it would run.

    On a GPU completions are sampled in as large a part at a time as half of what is free holds (`rows_at_once`), so
    that sampling takes more where there is more.
    """
    on_gpu = model.device.type == "cuda" if on_gpu is None else on_gpu
    available = total_memory_gb(model) if available is None else available
    sizes = Sizes.of(model)
    width = 2 if on_gpu else FP32  # of the numbers that matrices are multiplied in
    stays = {
        "weights": FP32 * (sizes.weights + sum(adapter_numbers(model))),
        "reference": FP32 * sizes.weights if config.kl and not config.lora else 0,
        "optimizer": moments_bytes(sizes, config),
    }
    room = (available * 1e9 - sum(stays.values())) / 2 if on_gpu else math.inf

    def sampling(rows: int, least: int, held_out: bool) -> float:
        """Of all rows, or of fewer at a time: as many as there is room for, or the least that go together."""
        most, fewest = (
            sampling_bytes(sizes, config, prompts, n, held_out=held_out, width=width) for n in (rows, least)
        )
        return max(fewest, min(most, room))

    rows = min(config.eval_samples * held_out, BATCH_COMPLETIONS * (GPU_BATCHES if on_gpu else 1))
    evaluation = sampling(rows, 1, held_out=True)
    parts = {"evaluation": evaluation}
    if config.rollouts:
        group = config.group_size - (config.anchors_per_group if config.every_group else 0)
        parts["sampling"] = sampling(config.questions * group, group, held_out=False)
        if config.scorer in BY_GRADIENT:
            parts["scoring"] = scoring_bytes(sizes, config, on_gpu)
    parts["update"] = update_bytes(model, sizes, config, prompts, on_gpu)
    if not on_gpu:  # where copies for a checkpoint are made; an evaluation may begin while they are written
        parts["saving"] = FP32 * (sum(sizes.trained) if sizes.frozen else sizes.weights) + stays["optimizer"]
        parts["saving"] += evaluation
    estimate = {name: value / 1e9 for name, value in {**stays, **parts}.items()}
    estimate["total"] = (sum(stays.values()) + max(parts.values())) / 1e9
    estimate["available"] = available
    return estimate


def moments_bytes(sizes: Sizes, config: Config) -> float:
    """AdamW's two numbers for each weight; in 8 bits, each 256 of them have a scale in fp32."""
    if config.optimizer == "adamw8bit":
        return sum(2 * n * (1 + FP32 / 256) if n >= LEAST_IN_8_BITS else 2 * FP32 * n for n in sizes.trained)
    return 2 * FP32 * sum(sizes.trained)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


def sampling_bytes(
    sizes: Sizes, config: Config, prompts: Prompts, rows: int, *, width: int, held_out: bool = False
) -> float:
    """policy/decoding.py, or of held-out questions policy/refilling.py: all rows at once, at their full length."""
    on_gpu, new, prompt = width == 2, config.max_new_tokens, prompts.longest
    refilled = held_out and sizes.fast
    of_token = 2 * sizes.keys * sizes.layers * width  # keys and values
    different = -(-rows // config.eval_samples) if refilled else rows if held_out else config.questions
    apart = sizes.fast and not on_gpu and not held_out and prompt >= SHARED_PROMPT  # a prompt's keys stand once
    cache = rows * (new if apart else prompt + new) * of_token
    given = different * (prompt + 64) * of_token  # as the model gives it, with room
    given += (rows if refilled else different) * prompt * of_token  # and again without; or selected for each row
    states = 0 if held_out or config.scorer not in BY_GRADIENT else rows * new * sizes.hidden * width
    chosen = rows * sizes.vocabulary * (CHOICE * FP32 + (width if on_gpu else 0))
    scores = 0 if on_gpu else 3 * FP32 * rows * sizes.heads * (prompt + new)  # of attention, written out on a CPU
    head = width * sizes.vocabulary * sizes.hidden if on_gpu else 0
    copies = head + (
        width * sizes.matrices if on_gpu else FP32 * (sizes.matrices if sizes.frozen else sizes.read_twice)
    )
    if not sizes.fast:  # autocast casts what is trained once, and the rest for each product
        copies = head + (width * sizes.matrices if on_gpu and not sizes.frozen else 0)
    choosing = states + chosen + scores
    # Where rows are refilled, what the model gave is forgotten before the first token is chosen.
    decoding = copies + cache + (max(given, choosing) if refilled else given + choosing)
    passing = prompt - (prompts.shared if sizes.packs else 0)
    of_prompts = different * (prompt * of_token + passing * passing_bytes(sizes, width))
    of_prompts += width * sizes.matrices if on_gpu and not sizes.frozen else 0
    return max(decoding, of_prompts, 2 * states)  # at the end each row's states are copied


def passing_bytes(sizes: Sizes, width: int) -> float:
    """What one layer holds of a token while it computes, where nothing is kept: the inner products and some states."""
    return 3 * sizes.inner * width + 4 * sizes.hidden * FP32


# ---------------------------------------------------------------------------------------------------------------------
# Scores of pairs
# ---------------------------------------------------------------------------------------------------------------------


def scoring_bytes(sizes: Sizes, config: Config, on_gpu: bool) -> float:
    """scorers/gradients.py: gradients of one group at a time, and of all completions their narrow sketches."""
    rows, tokens = config.questions * config.group_size, config.group_size * config.max_new_tokens
    metrics = 2 if config.resolved_metric == "optimizer" else 1  # everything once more, as it is
    buckets = sizes.hidden if config.scorer == "state" else min(SKETCH_WIDTH, sizes.vocabulary)
    states = rows * config.max_new_tokens * sizes.hidden * (2 + FP32 if on_gpu else FP32)
    factors = FP32 * tokens * buckets * metrics
    gradients = FP32 * config.group_size * buckets * sizes.hidden
    elements = BATCH_ELEMENTS // rows
    columns = min(sizes.hidden, int(elements**0.5))
    narrow_buckets = min(buckets, elements // columns)
    if buckets * sizes.hidden > elements:
        of_group = FP32 * config.group_size * columns * narrow_buckets
        narrow_factors = FP32 * tokens * (columns + narrow_buckets)
    else:  # the gradients themselves
        of_group, narrow_factors = 0, 0
    narrow = config.questions * (of_group or gradients)  # of the whole batch, from the first group on
    chunk = min(chunk_elements(on_device(on_gpu)), tokens * sizes.vocabulary)
    last = gradients * metrics + factors + of_group + narrow_factors if config.questions > 1 else 0  # until replaced
    logits = last + factors + FP32 * (LOGITS + metrics - 1) * chunk
    made = last + factors + gradients
    narrowing = factors + gradients * metrics + narrow_factors + 2 * of_group
    found = states + narrow + max(logits, made, narrowing)
    if metrics == 1:
        return found
    momentum = gradients / config.group_size  # sketched; at its making there are three more
    unpacked = FP32 * sizes.vocabulary * sizes.hidden if config.optimizer == "adamw8bit" else 0  # each moment, in fp32
    making = states + factors + gradients * metrics + 3 * momentum
    return momentum + unpacked + max(found, making, states + unpacked)


# ---------------------------------------------------------------------------------------------------------------------
# Update
# ---------------------------------------------------------------------------------------------------------------------


def update_bytes(model: PreTrainedModel, sizes: Sizes, config: Config, prompts: Prompts, on_gpu: bool) -> float:
    """policy/logprobs.py under `backward` of dagrpo.py, and the optimizer's step."""
    groups = -(-config.questions // config.updates)
    rows = groups * config.group_size
    questions = [row // config.group_size for row in range(rows)]
    lengths = [prompts.longest] * rows, [config.max_new_tokens] * rows
    batches = list(micro_batches(model, *lengths, questions, config.token_budget, prompts.shared))
    largest = max(batches, key=lambda batch: batch.padded_tokens)
    # Of completions and prompts of other lengths, micro-batches fill the budget better than of these.
    most = min(config.token_budget, sum(batch.padded_tokens for batch in batches))
    fill = max(1.0, most / largest.padded_tokens)
    tokens, predicted = fill * largest.padded_tokens, fill * len(largest.rows) * config.max_new_tokens
    width = 2 if on_gpu else FP32
    gradients, head = FP32 * sum(sizes.trained), width * sizes.vocabulary * sizes.hidden

    layer = fill * layer_bytes(sizes, largest, prompts.longest + config.max_new_tokens, on_gpu)
    kept = sizes.layers * layer
    bf16 = width * sizes.matrices + head if on_gpu else 0  # of the weights, which products of the backward pass read
    behind = tokens * 4 * sizes.hidden * FP32  # the last norm, and what goes on from it
    one_layer = tokens * (sizes.inner * width + 2 * sizes.hidden * FP32)  # gradients on their way
    in_chunk = min(chunk_elements(on_device(on_gpu)), predicted * sizes.vocabulary)
    chunked = predicted * sizes.vocabulary > chunk_elements(on_device(on_gpu))
    logits = FP32 * in_chunk * (LOGITS + (3 if config.entropy_bonus else 0) + (1 if config.kl and not chunked else 0))
    logits += width * in_chunk if on_gpu else 0
    # Gradients of the head: of a chunk, and the sum of those before. The first is there once more in fp32.
    of_head = 0.0 if sizes.frozen else head * (2 if chunked else 1)

    if config.checkpointing:
        kept = tokens * sizes.hidden * FP32 * sizes.layers
        again = layer + one_layer + (width * sizes.matrices / sizes.layers if on_gpu else 0)
        bf16 = head if sizes.frozen and on_gpu else bf16  # in the forward pass; behind it autocast forgets them
        peak = max(bf16 + logits, logits + of_head, again + (head if sizes.tied else 0))
    else:
        peak = bf16 + max(logits + of_head, one_layer)
    held = kept + behind + peak
    embedding = 0.0 if sizes.frozen else FP32 * sizes.vocabulary * sizes.hidden  # its gradient is as large as it is
    at_the_end = gradients + embedding * (2 if sizes.tied else 1)
    if len(batches) > 1:  # the gradients of the first are there while the second is computed
        held += gradients
        at_the_end += embedding
    step = gradients + (0 if on_gpu or config.optimizer != "adamw" else 2 * FP32 * max(sizes.trained))
    return max(held, at_the_end, step)


def layer_bytes(sizes: Sizes, batch: MicroBatch, row: int, on_gpu: bool) -> float:
    """What one layer keeps of a micro-batch for the backward pass; `row` is the length of a row with its prompt."""
    tokens, hidden, inner = batch.padded_tokens, sizes.hidden, sizes.inner
    if not on_gpu:
        # Of each of two norms the input, the normed and the scaled; queries, keys and values, repeated for all heads,
        # and what is attended to; gate before and behind its curve, up, and their product. And the mask, in fp32.
        numbers = (4 if sizes.frozen else 6) * hidden + 4 * sizes.queries + 4 * inner + sizes.adapters
        longest = tokens // len(batch.packing) if batch.packing else row
        return FP32 * tokens * (numbers + longest)
    # Norms are in fp32, and each product casts its input for itself: three times behind the first, twice the second.
    of_norms = (2 if sizes.frozen else 4) * hidden * FP32 + 5 * hidden * 2
    packed = of_norms + 2 * sizes.queries + 2 * 4 * inner + 2 * sizes.adapters
    # Attention has rows of its own, prompt and completion, and the places that they come from and go to.
    rows = len(batch.rows) * row
    return tokens * packed + rows * (2 * (2 * sizes.queries + 2 * sizes.keys) + FP32 * sizes.heads + 2 * 8)


def on_device(on_gpu: bool) -> Any:
    """What `chunk_elements` asks of a model."""
    return SimpleNamespace(device=torch.device("cuda" if on_gpu else "cpu"))


def total_memory_gb(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        return torch.cuda.get_device_properties(model.device).total_memory / 1e9
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 0.0
