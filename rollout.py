"""The policy as a sampler: load it, sample groups of answers, and compute the log-probabilities of their tokens.

Shapes: P questions, G answers to each, N = P·G sequences, T tokens, H hidden size, V vocabulary.

`sample` decodes (decoding.py). `token_logps` goes from hidden states to log-probabilities in chunks, so that the
(N, T, V) logits never exist, and runs a prompt that several answers share once for them all. Both use the same head,
`decoding.logits_from_hidden`, at the same temperature: the importance ratio starts at 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
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
from transformers.cache_utils import DynamicCache

from decoding import autocast, decode, hidden_states, logits_from_hidden, takes_any_mask

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHUNK_ELEMENTS = 2**25  # logits held at one time: 128 MB in fp32, small beside any model that has a large vocabulary
SMALL_BATCH = 512  # padded tokens; below, another micro-batch costs more time than the padding it saves
CACHE_BYTES = 2**31  # key-value cache held at one time while sampling on a CPU; a GPU gives half of what is free

Packing = list[list[int]]  # sequences of runs; a run is the number of rows that share one prompt


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
    withheld: torch.Tensor  # (N, T) advantage that --rectify token takes from single tokens; 0 elsewhere
    truncated: torch.Tensor  # (N,) True where the answer reached the limit without an EOS
    texts: list[str]  # N answers, special tokens left out
    hidden: list[torch.Tensor | None]  # N times (S, H): the states its tokens were sampled from, where they were kept
    group_size: int

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens in each answer. -> (N,)"""
        return self.response_mask.sum(1)

    @property
    def prompt_lengths(self) -> torch.Tensor:
        """Tokens in each prompt. -> (N,)"""
        return (self.attention_mask & ~self.response_mask).sum(1)

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
            hidden=[self.hidden[i] for i in indices.tolist()],
        )


@dataclass
class Answer:
    """One answer to one prompt, both as token ids: what `assemble` makes Rollouts of."""

    prompt: list[int]
    tokens: list[int]  # the last one is an EOS, or the answer is truncated
    logps: list[float] | None = None  # where it was sampled
    hidden: torch.Tensor | None = None  # (S, H)
    is_anchor: bool = False


def load(
    model: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a Hub name, a local directory, or a `.gguf` file.

    The weights are fp32 unless `dtype` says otherwise, whatever the file holds: AdamW needs fp32 master weights, and
    many CPUs multiply bf16 matrices a hundred times slower. The device is the GPU where there is one.

    Raises FileNotFoundError for a missing `.gguf` file, ImportError where a package that reads it is missing (`gguf`,
    `accelerate`), and NotImplementedError for a head that computes something `logits_from_hidden` does not know, or
    for layers that keep another state than keys and values.
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
    check_cache(policy)
    check_head(policy)
    return policy, tokenizer


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


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Key-value cache of one sequence of `length` tokens, with the hidden states that may be kept of it."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * heads * width + config.hidden_size
    return numbers * length * (4 if model.device.type == "cpu" else 2)


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
    keep_hidden: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Rollouts:
    """`group_size` answers to each rendered prompt. P prompts -> N = P·G rows

    The random choice at a place is a function of (seed, prompt, number of the answer, position), not of the batch
    around it: the same seed gives the same answers in any order of the prompts, up to ties of rounding. A prompt
    that stands in the list twice gets further answers, not the same ones again. Without a seed one is drawn.
    With `keep_hidden` the record has the hidden states, so that scoring needs no forward pass for them.
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
    answers: list[Answer] = []
    start = 0
    while start < len(prompts):
        part = prompt_ids[start : start + groups]
        try:
            decoded = decode(
                model,
                part,
                noise_keys[start * group_size : (start + groups) * group_size],
                stops=stop_ids(model, tokenizer),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                keep_hidden=keep_hidden,
                progress=progress,
            )
        except torch.OutOfMemoryError:
            groups = min(groups, len(prompts) - start) // 2
            if groups == 0:
                raise
        else:
            repeated = [ids for ids in part for _ in range(group_size)]
            lengths, tokens, logps = decoded.lengths.tolist(), decoded.tokens.tolist(), decoded.logps.tolist()
            for i, (prompt_tokens, n) in enumerate(zip(repeated, lengths, strict=True)):
                states = None if decoded.hidden is None else decoded.hidden[i, :n].clone()
                answers.append(Answer(prompt_tokens, tokens[i][:n], logps[i][:n], states))
            start += groups
            continue
        # Not in the handler, which keeps the tensors of the failed call alive.
        warnings.warn(
            f"out of memory while sampling: going on with {groups * group_size} answers at once", stacklevel=2
        )
        torch.cuda.empty_cache()
    return assemble(model, tokenizer, answers, group_size)


def assemble(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answers: list[Answer], group_size: int
) -> Rollouts:
    """The record of N answers, those to one question together. N answers -> N rows"""
    before = max(len(answer.prompt) for answer in answers)
    shape = (len(answers), before + max(len(answer.tokens) for answer in answers))
    input_ids = torch.full(shape, tokenizer.pad_token_id)
    attention_mask, response_mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    logps = torch.zeros(shape)
    for i, answer in enumerate(answers):
        start, end = before - len(answer.prompt), before + len(answer.tokens)
        input_ids[i, start:end] = torch.tensor(answer.prompt + answer.tokens)
        attention_mask[i, start:end] = True
        response_mask[i, before:end] = True
        if answer.logps is not None:
            logps[i, before:end] = torch.tensor(answer.logps)
    stops = set(stop_ids(model, tokenizer))
    device = model.device
    return Rollouts(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        response_mask=response_mask.to(device),
        anchor_mask=torch.tensor([answer.is_anchor for answer in answers], device=device),
        logps=logps.to(device),
        withheld=torch.zeros(shape, device=device),
        truncated=torch.tensor([answer.tokens[-1] not in stops for answer in answers], device=device),
        texts=tokenizer.batch_decode([answer.tokens for answer in answers], skip_special_tokens=True),
        hidden=[answer.hidden for answer in answers],
        group_size=group_size,
    )


def token_lists(mask: torch.Tensor, values: torch.Tensor) -> list[list]:
    """The values at the mask's places, row by row. (N, T), (N, T) -> N lists"""
    return [part.tolist() for part in values[mask].cpu().split(mask.sum(1).tolist())]


def answers_of(rollouts: Rollouts) -> list[Answer]:
    """The rows one by one, as `assemble` takes them."""
    prompts = token_lists(rollouts.attention_mask & ~rollouts.response_mask, rollouts.input_ids)
    tokens = token_lists(rollouts.response_mask, rollouts.input_ids)
    logps = token_lists(rollouts.response_mask, rollouts.logps)
    rows = zip(prompts, tokens, logps, rollouts.hidden, rollouts.anchor_mask.tolist(), strict=True)
    return [Answer(*row) for row in rows]


def replace_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    groups: list[int],
    others: Rollouts,
) -> Rollouts:
    """The rollouts with some of their groups replaced by those of `others`, in order. N rows, P' groups -> N rows"""
    size = rollouts.group_size
    answers, further = answers_of(rollouts), answers_of(others)
    for new, old in enumerate(groups):
        answers[old * size : (old + 1) * size] = further[new * size : (new + 1) * size]
    return assemble(model, tokenizer, answers, size)


# ---------------------------------------------------------------------------------------------------------------------
# Log-probabilities
# ---------------------------------------------------------------------------------------------------------------------


def check_cache(model: PreTrainedModel) -> None:
    """Raise NotImplementedError for a model that keeps another state than keys and values: rows could not leave."""
    if not all(hasattr(layer, "batch_repeat_interleave") for layer in DynamicCache(config=model.config).layers):
        raise NotImplementedError(
            f"{type(model).__name__} has layers that keep another state than keys and values (linear attention, a "
            "state space, a convolution). Answers cannot be sampled from it here; take one of attention layers only."
        )


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
            "Add what it does to decoding.logits_from_hidden and to scoring.vocabulary_gradients."
        )


def token_logps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    temperature: float = 1.0,
    packing: Packing | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the answers' tokens and entropies of the distributions they were drawn from.

    (N, T), (N, T), (N, T) -> (N, T−1), (N, T−1); column t belongs to token t + 1, and is 0 outside of answers.

    With a `packing`, rows that share their prompt run behind one copy of it, and several such runs are one sequence:
    [[2, 1], [3]] makes two sequences of six rows, in order, and the first two rows have the same prompt. The result
    does not depend on it. The model must take any mask (`decoding.takes_any_mask`).

    Differentiable. Only answer positions go through the head, a chunk at a time; the backward pass computes each
    chunk again, so that memory does not grow with the vocabulary.
    """
    chosen = response_mask[:, 1:]  # (N, T) -> (N, T−1): the hidden state at t predicts token t + 1
    with autocast(model):
        if packing is None:
            hidden = hidden_states(model, input_ids, attention_mask)[:, :-1][chosen]  # (N, T, H) -> (M, H)
        else:
            hidden = packed_states(model, input_ids, attention_mask, response_mask, packing)
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


def packed_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    packing: Packing,
) -> torch.Tensor:
    """The hidden states that predict the answers' tokens, in order; the rows are packed into sequences.

    A run of answers to one prompt reads: the prompt, then the answers without their last tokens, which predict
    nothing. Each answer follows the prompt in its positions, and attends to the prompt and to itself.

    (N, T), (N, T), (N, T) -> (M, H)
    """
    width = input_ids.shape[1]
    starts = attention_mask.int().argmax(1).tolist()  # of the real tokens of each row
    prompts = (attention_mask & ~response_mask).sum(1).tolist()
    answers = response_mask.sum(1).tolist()
    assert sum(map(sum, packing)) == len(answers), "every row must be in the packing once"
    length = max(
        sum(run_length(prompts[rows[0]], [answers[i] for i in rows]) for rows in sequence)
        for sequence in row_numbers(packing)
    )
    # For each piece, a prompt or an answer: where its tokens are, where they go, and what they are there.
    sources, targets, positions, runs, pieces, predicting = [], [], [], [], [], []
    run = 0
    for number, sequence in enumerate(row_numbers(packing)):
        end = number * length
        for rows in sequence:
            prompt = prompts[rows[0]]
            assert all(prompts[i] == prompt for i in rows), "the rows of a run must have one prompt"
            prompt_end = end + prompt - 1
            for piece, i in enumerate([rows[0], *rows]):  # piece 0 is the prompt
                size, first = (answers[i] - 1, prompt) if piece else (prompt, 0)
                sources.append(torch.arange(size) + i * width + starts[i] + first)
                targets.append(torch.arange(size) + end)
                positions.append(torch.arange(size) + first)
                runs.append(torch.full((size,), run))
                pieces.append(torch.full((size,), piece))
                if piece:
                    predicting += [torch.tensor([prompt_end]), targets[-1]]
                end += size
            run += 1
    device = input_ids.device
    target = torch.cat(targets).to(device)

    def packed(values: torch.Tensor, blank: int) -> torch.Tensor:
        """(tokens,) -> (B, L)"""
        room = torch.full((len(packing) * length,), blank, device=device)
        return room.index_copy(0, target, values.to(device)).view(-1, length)

    # Padding is a run of its own, so that no row of the attention mask is empty.
    run_of, piece_of = packed(torch.cat(runs), -1), packed(torch.cat(pieces), 0)
    same_run = run_of[:, :, None] == run_of[:, None, :]  # (B, L) -> (B, L, L)
    same_piece = piece_of[:, :, None] == piece_of[:, None, :]
    allowed = (same_run & (same_piece | (piece_of == 0)[:, None, :])).tril()[:, None]  # (B, 1, L, L)
    output = model.base_model(
        input_ids=packed(input_ids.flatten()[torch.cat(sources).to(device)], 0),
        attention_mask=allowed,
        position_ids=packed(torch.cat(positions), 0),
        use_cache=False,
    )
    return output.last_hidden_state.flatten(0, 1)[torch.cat(predicting).to(device)]  # (B, L, H) -> (M, H)


def run_length(prompt: int, answers: list[int]) -> int:
    """Tokens of a run: the prompt once, and the answers without their last tokens."""
    return prompt + sum(answers) - len(answers)


def row_numbers(packing: Packing) -> Iterator[list[list[int]]]:
    """For each sequence, for each run in it, the rows."""
    row = 0
    for sequence in packing:
        yield [list(range(row + sum(sequence[:i]), row + sum(sequence[: i + 1]))) for i in range(len(sequence))]
        row += sum(sequence)


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


@dataclass
class MicroBatch:
    """Rows that go through the model together."""

    rows: torch.Tensor  # (B,)
    packing: Packing | None  # of these rows, in this order; None where each is a sequence of its own
    tokens: int  # real tokens of the sequences
    padded_tokens: int  # the same with padding


def micro_batches(
    model: PreTrainedModel, rollouts: Rollouts, rows: torch.Tensor, token_budget: int
) -> Iterator[MicroBatch]:
    """Cut the rows into micro-batches of at most `token_budget` padded tokens, the longest first. (N,) rows

    Answers to one question share their prompt in runs, and short runs fill the sequences up to the length of the
    longest one. A run longer than the budget is a micro-batch of its own. A model that does not take any mask gets
    a sequence for each row.
    """
    prompts = rollouts.prompt_lengths.tolist()
    answers = rollouts.lengths.tolist()
    packable = takes_any_mask(model)
    if packable:
        runs = shared_prompt_runs(rollouts, rows, token_budget, model.config.hidden_size)
    else:
        runs = [[row] for row in rows.tolist()]
    lengths = {run[0]: run_length(prompts[run[0]], [answers[i] for i in run]) + (not packable) for run in runs}
    left = sorted(runs, key=lambda run: lengths[run[0]], reverse=True)
    while left:
        width = lengths[left[0][0]]
        sequences: list[list[list[int]]] = []
        filled: list[int] = []
        waiting = []
        for run in left:  # into the first sequence with room, or else into a new one that it nearly fills
            length = lengths[run[0]]
            place = next((i for i, used in enumerate(filled) if packable and used + length <= width), len(filled))
            if place == len(filled):
                padded = len(filled) * width
                wasteful = length < 0.85 * width and padded >= SMALL_BATCH
                if filled and (padded + width > token_budget or wasteful):
                    waiting.append(run)
                    continue
                sequences.append([])
                filled.append(0)
            sequences[place].append(run)
            filled[place] += length
        left = waiting
        members = [row for sequence in sequences for run in sequence for row in run]
        packing = [[len(run) for run in sequence] for sequence in sequences] if packable else None
        yield MicroBatch(torch.tensor(members, device=rows.device), packing, sum(filled), len(filled) * max(filled))


def shared_prompt_runs(rollouts: Rollouts, rows: torch.Tensor, token_budget: int, hidden_size: int) -> list[list[int]]:
    """Rows that share their prompt, as many together as saves more than it costs. (N,) rows -> runs of rows

    Each of k answers of n tokens behind one prompt of p tokens costs about 12H² (p/k + n) products for the matrices
    of a layer, and 2H (p + kn)²/k for attention, which computes the others' tokens for nothing. The sum is least
    where kn is about √(6Hp).
    """
    prompts = rollouts.prompt_lengths.tolist()
    answers = rollouts.lengths.tolist()
    runs: list[list[int]] = []
    for row in sorted(rows.tolist(), key=lambda i: (i // rollouts.group_size, answers[i])):
        prompt = prompts[row]
        most = min(token_budget, prompt + math.sqrt(6 * hidden_size * prompt))
        if runs and runs[-1][0] // rollouts.group_size == row // rollouts.group_size:
            extended = [*runs[-1], row]
            if run_length(prompt, [answers[i] for i in extended]) <= most:
                runs[-1] = extended
                continue
        runs.append([row])
    return runs
