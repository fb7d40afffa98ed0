"""Sampling against what one would else run, against the speed of memory, and the seconds before it is at full speed.

Commands of benchmarks/speed.py: rollout, warm-up.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from unittest import mock

import torch
from measuring import EndingHead, load, name_of, prompts_for, report, seconds_of, spread
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

import rollout
from harness.prompting import contents_of
from policy import decoding, logprobs
from policy.model import autocast, hidden_states

Side = Callable[[], int]  # samples once, and gives the number of tokens


def rollout_speed(arguments: argparse.Namespace) -> None:
    """Tokens a second of `rollout.sample` and of another sampler: same model, prompts, distribution and dtype."""
    model, tokenizer = load(arguments.model, arguments.weights)
    style = contents_of(arguments.prompt_file, arguments.examples).style()
    prompts = prompts_for(arguments, tokenizer, style)
    against = SIDES[arguments.against](model, tokenizer, prompts, arguments)  # before the head is another
    if arguments.mean:
        model.set_output_embeddings(EndingHead(model.get_output_embeddings(), tokenizer.eos_token_id, arguments.mean))
    sides = {"sample": side_of_sample(model, tokenizer, prompts, arguments), arguments.against: against}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, list[int]] = {name: [] for name in sides}
    for turn in range(arguments.runs + 1):
        for name, run in sides.items():
            torch.manual_seed(turn)
            seconds, made = seconds_of(model, run)
            if turn:  # the first run of each is a warm-up
                speeds[name].append(made / seconds)
                tokens[name].append(made)
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    share = bandwidth_share(model, prompts, tokenizer, arguments.group_size, arguments.max_new_tokens)
    count = arguments.questions * arguments.group_size
    report(
        arguments,
        f"Sampling {count} answers of at most {arguments.max_new_tokens} tokens: {name_of(arguments)}",
        [
            *(
                (f"{n}, tokens/s (median of {arguments.runs})", f"{statistics.median(v):9.0f}")
                for n, v in speeds.items()
            ),
            *((f"{name}, tokens a run", f"{statistics.median(v):9.0f}") for name, v in tokens.items()),
            (f"sample / {arguments.against}", spread(ratios)),
            ("share of the memory-bandwidth limit", f"{share:9.0%}   (a step of all {count} answers, halfway)"),
        ],
        {"tokens_per_s": speeds, "ratio": statistics.median(ratios), "bandwidth_share": share},
    )


def warm_up(arguments: argparse.Namespace) -> None:
    """Seconds of the first batch of completions and of later ones: what imports, compiler and allocator take once.

    Run with an empty TORCHINDUCTOR_CACHE_DIR: what was compiled before is read from there.
    """
    model, tokenizer = load(arguments.model, arguments.weights)
    run = side_of_sample(model, tokenizer, prompts_for(arguments, tokenizer), arguments)
    first, *later = [seconds_of(model, run)[0] for _ in range(arguments.runs + 1)]
    usual = statistics.median(later)
    report(
        arguments,
        f"The first of {arguments.questions * arguments.group_size} completions of {arguments.max_new_tokens} tokens: "
        f"{name_of(arguments)}",
        [
            ("first batch, seconds", f"{first:9.2f}"),
            (f"later ones (median of {arguments.runs})", f"{usual:9.2f}"),
            ("warm-up", f"{first - usual:9.2f}"),
        ],
        {"first": first, "later": usual, "warm_up": first - usual},
    )


# ---------------------------------------------------------------------------------------------------------------------
# The samplers
# ---------------------------------------------------------------------------------------------------------------------


def side_of_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], arguments: argparse.Namespace
) -> Side:
    def run() -> int:
        limit = arguments.max_new_tokens
        rollouts = rollout.sample(model, tokenizer, prompts, arguments.group_size, max_new_tokens=limit)
        return int(rollouts.lengths.sum())

    return run


def side_of_whole_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], arguments: argparse.Namespace
) -> Side:
    """The same, but what all prompts begin with is computed for each of them."""
    run = side_of_sample(model, tokenizer, prompts, arguments)

    def whole() -> int:
        with mock.patch.object(logprobs, "SHARED_PREFIX", sys.maxsize):
            return run()

    return whole


def side_of_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], arguments: argparse.Namespace
) -> Side:
    @torch.no_grad()
    def run() -> int:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        with autocast(model):
            output = model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, num_return_sequences=arguments.group_size, max_new_tokens=arguments.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        is_eos = (output[:, inputs["input_ids"].shape[1] :] == tokenizer.eos_token_id).long()
        return int((is_eos.cumsum(1) - is_eos == 0).sum())  # up to the first EOS and with it

    return run


def side_of_generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], arguments: argparse.Namespace
) -> Side:
    """Continuous batching of transformers."""

    @torch.no_grad()
    def run() -> int:
        inputs = [rollout.encode_prompt(tokenizer, prompt) for prompt in prompts for _ in range(arguments.group_size)]
        settings = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=arguments.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        with autocast(model):
            made = model.generate_batch(inputs=inputs, generation_config=settings)  # type: ignore[operator]
        return sum(len(completion.generated_tokens) for completion in made.values())

    return run


def side_of_vllm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], arguments: argparse.Namespace
) -> Side:
    """vLLM, where it is installed, in bf16. With --mean completions end where a die has said before."""
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        weights = {name: value.to("cpu", torch.bfloat16) for name, value in model.state_dict().items()}
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        longest = max(len(rollout.encode_prompt(tokenizer, prompt)) for prompt in prompts) + arguments.max_new_tokens
        engine = LLM(model=folder, dtype="bfloat16", gpu_memory_utilization=0.5, max_model_len=longest)
    inputs = [
        {"prompt_token_ids": rollout.encode_prompt(tokenizer, prompt)}
        for prompt in prompts
        for _ in range(arguments.group_size)
    ]

    def run() -> int:
        lengths = torch.full((len(inputs),), arguments.max_new_tokens)
        if arguments.mean:
            lengths = torch.empty(len(inputs)).geometric_(1 / arguments.mean).clamp(max=arguments.max_new_tokens)
        parameters = [
            SamplingParams(temperature=1.0, max_tokens=int(length), ignore_eos=True, detokenize=False)
            for length in lengths.tolist()
        ]
        made = engine.generate(inputs, parameters, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in made)

    return run


SIDES: dict[str, Callable[..., Side]] = {
    "generate": side_of_generate,
    "generate_batch": side_of_generate_batch,
    "vllm": side_of_vllm,
    "whole-prompts": side_of_whole_prompts,
}


# ---------------------------------------------------------------------------------------------------------------------
# The speed of memory
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def bandwidth_share(
    model: PreTrainedModel, prompts: list[str], tokenizer: PreTrainedTokenizerBase, group_size: int, limit: int
) -> float:
    """Seconds to read weights and cache once at the speed of a large copy, over the seconds of a step of decoding.

    1 is the limit of a step that reads everything once. NaN where the model takes its own forward pass.
    """
    if not decoding.is_fast(model):
        return math.nan
    ids = [rollout.encode_prompt(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, ids))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in ids], device=model.device)
    with autocast(model):
        cache = DynamicCache(config=model.config)
        hidden_states(model, tokens, mask, cache)
        steps = decoding.FastSteps(model, cache, mask, group_size, limit)
        chosen = tokens[:, -1].repeat_interleave(group_size)
        position = limit // 2
        step = [seconds_of(model, lambda: steps(chosen, position))[0] for _ in range(23)][3:]
    used = steps.copied_prompt + position + 1
    weights = sum(
        value.nbytes for layer in steps.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)
    )
    of_rows = sum(room[: steps.rows, :, :used].nbytes for pair in steps.caches for room in pair)
    shared = sum(prompt.keys.nbytes + prompt.values.nbytes for prompt in steps.prompts if prompt is not None)
    block = torch.empty(2**28 if model.device.type == "cuda" else 2**26, device=model.device)
    target = torch.empty_like(block)
    copy = [seconds_of(model, lambda: target.copy_(block))[0] for _ in range(8)][3:]
    bandwidth = 2 * block.nbytes / statistics.median(copy)  # a copy reads and writes
    return (weights + of_rows + shared) / bandwidth / statistics.median(step)
