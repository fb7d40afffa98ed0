"""The policy as a sampler: load it, sample groups of answers, and compute the log-probabilities of their tokens.

Shapes: P questions, G answers to each, N = P·G sequences, T tokens, H hidden size, V vocabulary.

`sample` computes each prompt once and shares its key-value cache among the G answers; answers that have ended leave
the batch. `token_logps` goes from hidden states to log-probabilities in chunks, so that the (N, T, V) logits never
exist. Both use the same head, `logits_from_hidden`, at the same temperature: the importance ratio starts at 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHUNK_ELEMENTS = 2**25  # logits held at one time: 128 MB in fp32, small beside any model that has a large vocabulary
CACHE_BYTES = 2**31  # key-value cache held at one time while sampling on a CPU; a GPU gives half of what is free
STOP_CHECK = 8  # tokens between two looks at which answers have ended: each look makes a GPU wait for the CPU


@dataclass
class Rollouts:
    """G answers to each of P questions, as one batch of N = P·G rows; row p·G + g is answer g to question p.

    Every row reads: padding, prompt, answer with its EOS, padding.
    """

    input_ids: torch.Tensor  # (N, T)
    attention_mask: torch.Tensor  # (N, T) True on real tokens
    response_mask: torch.Tensor  # (N, T) True on the answer's tokens, EOS among them: the policy's own choices
    anchor_mask: torch.Tensor  # (N,) True where the answer is a verified solution from elsewhere
    logps: torch.Tensor  # (N, T) log-probability of each answer token when it was sampled; 0 elsewhere
    truncated: torch.Tensor  # (N,) True where the answer reached the limit without an EOS
    texts: list[str]  # N answers, special tokens left out
    group_size: int

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens in each answer. -> (N,)"""
        return self.response_mask.sum(1)

    def rows(self, indices: torch.Tensor) -> Rollouts:
        """Some of the rows, moved to the left edge and cut to the longest. (B,) -> B rows"""
        indices = indices.to(self.input_ids.device)
        attention_mask = self.attention_mask[indices]
        # A stable sort of "is padding" moves the padding to the right and keeps the order of the real tokens.
        order = (~attention_mask).long().sort(dim=1, stable=True).indices  # (B, T)
        width = int(attention_mask.sum(1).max())
        moved = {
            field.name: getattr(self, field.name)[indices].gather(1, order)[:, :width]  # (B, T) -> (B, width)
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor) and getattr(self, field.name).dim() == 2
        }
        return replace(
            self,
            **moved,
            anchor_mask=self.anchor_mask[indices],
            truncated=self.truncated[indices],
            texts=[self.texts[i] for i in indices.tolist()],
        )


def load(
    model: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a Hub name, a local directory, or a `.gguf` file.

    The weights are fp32 unless `dtype` says otherwise, whatever the file holds: AdamW needs fp32 master weights, and
    many CPUs multiply bf16 matrices a hundred times slower. The device is the GPU where there is one.

    Raises FileNotFoundError for a missing `.gguf` file, ImportError where a package that reads it is missing (`gguf`,
    `accelerate`), and NotImplementedError for a head that computes something `logits_from_hidden` does not know.
    """
    source = model
    options: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    if model.endswith(".gguf"):
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"--model {model}: there is no such file.")
        missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
        if missing:
            raise ImportError(f"--model {model}: to read a .gguf file, run: pip install {' '.join(missing)}")
        # Packed weights cannot be trained: they are unpacked once, here.
        source, options = str(path.parent), {"gguf_file": path.name}
        weights = {"quantization_config": GgufConfig(dequantize=True)}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or torch.float32, **options, **weights)
    policy.to(device)  # type: ignore[arg-type]
    policy.eval()  # no dropout: the ratio compares the policy with itself
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_head(policy)
    return policy, tokenizer


def autocast(model: PreTrainedModel) -> torch.autocast:
    """bf16 matrix products on CUDA over fp32 weights; nothing on a CPU or for weights of another type."""
    enabled = model.device.type == "cuda" and model.dtype == torch.float32
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------------------


def render_prompt(tokenizer: PreTrainedTokenizerBase, problem: str, choices: list[str] | None = None) -> str:
    """The text that the policy sees: the chat template around problem and instruction; without one, the problem."""
    if choices:
        lettered = "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))
        problem = f"{problem}\n{lettered}\nThe answer is the letter of one choice."
    if tokenizer.chat_template is None:
        return f"{problem}\n"
    message = {"role": "user", "content": f"{problem}\n\n{INSTRUCTION}"}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a rendered prompt. A chat template has written its own beginning of sequence."""
    return tokenizer(prompt, add_special_tokens=tokenizer.chat_template is None)["input_ids"]


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's EOS first, then those of the generation config."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    ids = [tokenizer.eos_token_id, *configured]
    return list(dict.fromkeys(i for i in ids if i is not None))


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


def noise_key(*parts: int | str) -> int:
    """A 63-bit number that depends on the parts and on nothing else: the same on every machine and in every run."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform_noise(keys: torch.Tensor, position: int) -> torch.Tensor:
    """One uniform number in [0, 1) for each row, a function of its key and of the position alone. (N,) -> (N,)

    The mixing function of SplitMix64 (Steele, Lea, Flood 2014). int64 products wrap around, as they should.
    """
    step = (position + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = keys + (step - 2**64 if step >= 2**63 else step)  # the same number as a signed one
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
    if temperature == 0:
        logps = logits.log_softmax(-1)
        chosen = logits.argmax(-1)
        return chosen, logps.gather(1, chosen[:, None]).squeeze(1)
    logps = (logits / temperature).log_softmax(-1)
    probabilities = logps.exp()
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the likeliest token is never beyond
        probabilities = probabilities.scatter(1, order, ordered.masked_fill(beyond, 0.0))
    cumulative = probabilities.cumsum(-1)
    place = noise[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, place, right=True).squeeze(1)
    return chosen, logps.gather(1, chosen[:, None]).squeeze(1)


class GrowingLayer(DynamicLayer):
    """A layer of the key-value cache that grows by blocks: appending one token does not copy all earlier ones."""

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

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        assert self.keys is not None and self.values is not None
        self.room = (self.keys, self.values)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Key-value cache of one sequence of `length` tokens."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * length * (4 if model.device.type == "cpu" else 2)


def rows_at_once(model: PreTrainedModel, length: int) -> int:
    """How many answers of `length` tokens the key-value cache has room for, at least one."""
    budget = CACHE_BYTES
    if model.device.type == "cuda":  # half of what is free, counting what PyTorch's allocator holds and does not use
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        budget = (torch.cuda.mem_get_info(model.device)[0] + held) // 2
    return max(1, budget // cache_bytes(model, length))


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    group_size: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Rollouts:
    """`group_size` answers to each rendered prompt. P prompts -> N = P·G rows

    The random choice at a place is a function of (seed, prompt, number of the answer, position), not of the batch
    around it: the same seed gives the same answers in any order of the prompts, up to ties of rounding. A prompt
    that stands in the list twice gets further answers, not the same ones again. Without a seed one is drawn.
    `progress` is called with the number of tokens as they are made.

    Where memory runs out, half as many questions are decoded at once from there on, and a warning says so.

    Raises ValueError where prompt and answer do not fit into the model's positions.
    """
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    prompt_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prompt_ids))
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"The longest prompt has {longest} tokens; with --max-new-tokens {max_new_tokens} that is more than the "
            f"{limit} positions of the model. Lower --max-new-tokens to {limit - longest} or leave the question out."
        )
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        keys += [noise_key(seed, prompt, seen[prompt] + answer) for answer in range(group_size)]
        seen[prompt] += group_size
    noise_keys = torch.tensor(keys, device=model.device)

    groups = max(1, rows_at_once(model, longest + max_new_tokens) // group_size)
    answers: list[list[int]] = []
    logps: list[list[float]] = []
    start = 0
    while start < len(prompts):
        part = slice(start * group_size, (start + groups) * group_size)
        try:
            tokens, chosen_logps, lengths = decode(
                model,
                tokenizer,
                prompt_ids[start : start + groups],
                noise_keys[part],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                progress=progress,
            )
        except torch.OutOfMemoryError:
            groups = min(groups, len(prompts) - start) // 2
            if groups == 0:
                raise
        else:
            answers += [row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)]
            logps += [row[:n] for row, n in zip(chosen_logps.tolist(), lengths, strict=True)]
            start += groups
            continue
        # Not in the handler, which keeps the tensors of the failed call alive.
        warnings.warn(
            f"out of memory while sampling: going on with {groups * group_size} answers at once", stacklevel=2
        )
        torch.cuda.empty_cache()
    repeated = [ids for ids in prompt_ids for _ in range(group_size)]
    return assemble(model, tokenizer, repeated, answers, group_size, logps)


def assemble(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    answers: list[list[int]],
    group_size: int,
    logps: list[list[float]] | None = None,
) -> Rollouts:
    """The record of N prompts and their answers, both as token ids; answers end in EOS or are truncated."""
    before, after = max(map(len, prompts)), max(map(len, answers))
    shape = (len(prompts), before + after)
    input_ids = torch.full(shape, tokenizer.pad_token_id)
    attention_mask, response_mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    token_logps = torch.zeros(shape)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        input_ids[i, before - len(prompt) : before + len(answer)] = torch.tensor(prompt + answer)
        attention_mask[i, before - len(prompt) : before + len(answer)] = True
        response_mask[i, before : before + len(answer)] = True
        if logps is not None:
            token_logps[i, before : before + len(answer)] = torch.tensor(logps[i])
    stops = set(stop_ids(model, tokenizer))
    device = model.device
    return Rollouts(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        response_mask=response_mask.to(device),
        anchor_mask=torch.zeros(len(prompts), dtype=torch.bool, device=device),
        logps=token_logps.to(device),
        truncated=torch.tensor([answer[-1] not in stops for answer in answers], device=device),
        texts=tokenizer.batch_decode(answers, skip_special_tokens=True),
        group_size=group_size,
    )


def token_lists(mask: torch.Tensor, values: torch.Tensor) -> list[list]:
    """The values at the mask's places, row by row. (N, T), (N, T) -> N lists"""
    lengths = mask.sum(1).tolist()
    flat = values[mask].tolist()  # (N, T) -> (M,), row after row
    lists, start = [], 0
    for length in lengths:
        lists.append(flat[start : start + length])
        start += length
    return lists


def as_lists(rollouts: Rollouts) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
    """Prompts, answers and the answers' log-probabilities, row by row: what `assemble` takes."""
    return (
        token_lists(rollouts.attention_mask & ~rollouts.response_mask, rollouts.input_ids),
        token_lists(rollouts.response_mask, rollouts.input_ids),
        token_lists(rollouts.response_mask, rollouts.logps),
    )


def replace_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    groups: list[int],
    others: Rollouts,
) -> Rollouts:
    """The rollouts with some of their groups replaced by those of `others`, in order. N rows, P' groups -> N rows"""
    size = rollouts.group_size
    lists: tuple[list[Any], ...] = as_lists(rollouts)
    other_lists: tuple[list[Any], ...] = as_lists(others)
    for new, old in enumerate(groups):
        for values, other_values in zip(lists, other_lists, strict=True):
            values[old * size : (old + 1) * size] = other_values[new * size : (new + 1) * size]
    prompts, answers, logps = lists
    return assemble(model, tokenizer, prompts, answers, size, logps)


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    keys: torch.Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    progress: Callable[[int], object] | None,
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Tokens, their log-probabilities, and lengths. P prompts, (N,) keys -> (N, new), (N, new), N lengths"""
    device, group_size = model.device, len(keys) // len(prompt_ids)
    width = max(map(len, prompt_ids))
    input_ids = torch.full((len(prompt_ids), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros(len(prompt_ids), width + max_new_tokens, dtype=torch.bool)
    attention_mask[:, width:] = True
    for i, ids in enumerate(prompt_ids):
        input_ids[i, width - len(ids) :] = torch.tensor(ids)
        attention_mask[i, width - len(ids) :] = True
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    stops = torch.tensor(stop_ids(model, tokenizer), device=device)

    with autocast(model):
        cache = new_cache(model)
        hidden = hidden_states(model, input_ids, attention_mask[:, :width], cache)[:, -1]  # (P, H)
        cache.batch_repeat_interleave(group_size)  # (P, ...) -> (N, ...)
        hidden = hidden.repeat_interleave(group_size, dim=0)  # (P, H) -> (N, H)
        attention_mask = attention_mask.repeat_interleave(group_size, dim=0)  # (P, T) -> (N, T)

        tokens = torch.full((len(keys), max_new_tokens), tokenizer.pad_token_id, device=device)
        logps = torch.zeros(len(keys), max_new_tokens, device=device)
        lengths = torch.zeros(len(keys), dtype=torch.long, device=device)
        active = torch.arange(len(keys), device=device)  # rows still in the batch
        ended = torch.zeros(len(keys), dtype=torch.bool, device=device)  # of the active rows
        for position in range(max_new_tokens):
            noise = uniform_noise(keys[active], position)
            chosen, chosen_logps = choose_tokens(logits_from_hidden(model, hidden), noise, temperature, top_p)
            tokens[active, position] = chosen
            logps[active, position] = chosen_logps
            lengths[active] += ~ended
            ended |= torch.isin(chosen, stops)
            if position + 1 == max_new_tokens:
                break
            if (position + 1) % STOP_CHECK == 0:
                going = int((~ended).sum())
                if progress is not None:
                    progress(STOP_CHECK * going)
                if going == 0:
                    break
                if going <= 0.85 * len(active):  # moving the cache together costs about as much as a few tokens
                    kept = (~ended).nonzero().squeeze(1)
                    cache.batch_select_indices(kept)
                    chosen, active, ended = chosen[kept], active[kept], ended[kept]
                    attention_mask = attention_mask[kept]
            seen = attention_mask[:, : width + position + 1]
            hidden = hidden_states(model, chosen[:, None], seen, cache)[:, -1]  # (N, 1, H) -> (N, H)
    return tokens, logps, lengths.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Log-probabilities
# ---------------------------------------------------------------------------------------------------------------------


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, cache: DynamicCache | None = None
) -> torch.Tensor:
    """Last hidden states; positions count real tokens, so that padding on the left changes nothing.

    (N, S) tokens, (N, T) mask of the cached and the new ones -> (N, S, H)
    """
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    mask = attention_mask.long()
    if cache is not None and input_ids.shape[1] == 1 and plain_attention(model, cache):
        mask = attention_mask[:, None, None, :]  # (N, T) -> (N, 1, 1, T): ready as it is, without asking the GPU
    output = model.base_model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return output.last_hidden_state


def plain_attention(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Does every layer attend to all earlier tokens, through PyTorch's own attention, which takes a bool mask?"""
    own = model.config._attn_implementation == "sdpa"
    return own and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def logits_from_hidden(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's head makes of hidden states, in fp32. (..., H) -> (..., V)"""
    logits = model.get_output_embeddings()(hidden).float()
    scale, cap = head_scale_and_cap(model)
    logits = logits * scale
    return cap * torch.tanh(logits / cap) if cap else logits


def head_scale_and_cap(model: PreTrainedModel) -> tuple[float, float | None]:
    """What some heads do to logits: a factor (Cohere, Granite) and a soft cap (Gemma 2)."""
    scale = getattr(model.config, "logit_scale", None) or 1.0
    divisor = getattr(model.config, "logits_scaling", None) or 1.0
    return scale / divisor, getattr(model.config, "final_logit_softcapping", None)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise NotImplementedError where `logits_from_hidden` is not what the model itself computes."""
    input_ids = torch.arange(1, 5, device=model.device)[None]
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    own = model(input_ids=input_ids, attention_mask=attention_mask.long()).logits.float()
    ours = logits_from_hidden(model, hidden_states(model, input_ids, attention_mask))
    if not torch.allclose(ours, own, rtol=1e-2, atol=1e-3 * float(own.abs().max())):
        raise NotImplementedError(
            f"The output head of {type(model).__name__} computes more than a linear map, a factor and a soft cap. "
            "Add what it does to rollout.logits_from_hidden and to scoring.vocabulary_gradients."
        )


def token_logps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the answers' tokens and entropies of the distributions they were drawn from.

    (N, T), (N, T), (N, T) -> (N, T−1), (N, T−1); column t belongs to token t + 1, and is 0 outside of answers.

    Differentiable. Only answer positions go through the head, a chunk at a time; the backward pass computes each
    chunk again, so that memory does not grow with the vocabulary.
    """
    chosen = response_mask[:, 1:]  # (N, T) -> (N, T−1): the hidden state at t predicts token t + 1
    with autocast(model):
        hidden = hidden_states(model, input_ids, attention_mask)[:, :-1][chosen]  # (N, T, H) -> (M, H)
        targets = input_ids[:, 1:][chosen]  # (M,)

        def chunk_logps(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logps = (logits_from_hidden(model, hidden) / temperature).log_softmax(-1)
            entropies = -(logps.exp() * logps.masked_fill(logps == -torch.inf, 0.0)).sum(-1)
            return logps.gather(1, targets[:, None]).squeeze(1), entropies

        size = max(1, CHUNK_ELEMENTS // model.config.vocab_size)
        if len(targets) <= size:
            logps, entropies = chunk_logps(hidden, targets)
        else:
            pieces = zip(hidden.split(size), targets.split(size), strict=True)
            parts = [checkpoint(chunk_logps, h, t, use_reentrant=False) for h, t in pieces]
            logps, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
    blank = torch.zeros(chosen.shape, device=logps.device)
    return blank.masked_scatter(chosen, logps), blank.masked_scatter(chosen, entropies)


@contextmanager
def checkpointed(model: PreTrainedModel, enabled: bool) -> Iterator[None]:
    """Inside, the layers keep no activations for the backward pass, but compute them again there.

    transformers does this in training mode only, in which a cache cannot be used and dropout would act: so the mode
    is on for the update alone, and dropout is off in it.
    """
    if not enabled:
        yield
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    # Older versions of transformers call these two gradient_checkpointing.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.eval()
        disable()


def micro_batches(lengths: torch.Tensor, token_budget: int) -> Iterator[torch.Tensor]:
    """Rows in order of length, cut so that rows x longest row stays within the budget. (N,) -> (B,) indices each

    A row longer than the budget is a micro-batch of its own.
    """
    batch: list[int] = []
    sizes = lengths.tolist()
    for row in sorted(range(len(sizes)), key=sizes.__getitem__):
        if batch and (len(batch) + 1) * sizes[row] > token_budget:
            yield torch.tensor(batch)
            batch = []
        batch.append(row)
    if batch:
        yield torch.tensor(batch)
