"""How large may `sampler_gap` be in bf16? As large as what bf16 itself does to the trainer's log-probabilities.

    python benchmarks/gap.py                               the embedded model; --model as of dagrpo.py, or random:0.5b

Completions are sampled, and then go through the trainer twice: as in training, and in fp32. Printed are the means and
maxima of three differences of a token's log-probability: sampler and trainer, which is `sampler_gap`; trainer and fp32,
its yardstick; sampler and fp32. Where sampler and trainer are the same policy, each is off by one yardstick, and the
gap is below two.

On a CPU, where training is in fp32, bf16 is imitated: the same casts and products, by other kernels than on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from measuring import load, name_of, prompts_for, report
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rollout


@torch.no_grad()
def gaps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], group_size: int, limit: int
) -> dict[str, dict[str, float]]:
    """Mean, maximum and number of tokens of each difference: gap, yardstick, sampler. Nats."""
    with bf16(True):
        rollouts = rollout.sample(model, tokenizer, prompts, group_size, max_new_tokens=limit, seed=0)
        trained = trained_logps(model, rollouts)
    with bf16(False):
        exact = trained_logps(model, rollouts)
    sampled = rollouts.logps[rollouts.prediction_mask]
    differences = {"gap": sampled - trained, "yardstick": trained - exact, "sampler": sampled - exact}
    return {
        name: {"mean": float(each.abs().mean()), "max": float(each.abs().max()), "tokens": len(each)}
        for name, each in differences.items()
    }


@contextmanager
def bf16(on: bool) -> Iterator[None]:
    """Inside, products of fp32 matrices are in bf16, or are not, whatever the device."""
    with mock.patch("policy.model.in_bf16", lambda model: on), mock.patch("policy.decoding.in_bf16", lambda model: on):
        yield


def trained_logps(model: PreTrainedModel, rollouts: rollout.Rollouts, token_budget: int = 4_096) -> torch.Tensor:
    """The log-probabilities of the completions' tokens as an update computes them, row after row. N rows -> (M,)"""
    found: dict[int, torch.Tensor] = {}
    for batch in rollout.micro_batches(model, rollouts, torch.arange(len(rollouts.texts)), token_budget):
        part = rollouts.rows(batch.rows)
        logps, _ = rollout.token_logps(model, *part.tokens, packing=batch.packing)
        for row, values, mask in zip(batch.rows.tolist(), logps, part.prediction_mask, strict=True):
            found[row] = values[mask]
    return torch.cat([found[row] for row in range(len(found))])


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="", help="questions (JSONL); without it those of the embedded example")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=137, help="tokens of a prompt, at least, of random: models")
    parser.add_argument("--json", default="", help="add the figures to this file, as one line")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = new_parser().parse_args(arguments)
    model, tokenizer = load(options.model)
    prompts = prompts_for(options, tokenizer)
    figures = gaps(model, tokenizer, prompts, options.group_size, options.max_new_tokens)
    imitated = "" if model.device.type == "cuda" else ", imitated on a CPU"
    names = {"gap": "sampler and trainer", "yardstick": "trainer and fp32", "sampler": "sampler and fp32"}
    report(
        options,
        f"Log-probabilities in bf16{imitated}, {figures['gap']['tokens']} tokens: {name_of(options)}",
        [(names[name], f"mean {each['mean']:.1e}, at most {each['max']:.1e}") for name, each in figures.items()],
        {**figures, "ratio": figures["gap"]["mean"] / figures["yardstick"]["mean"]},
    )


if __name__ == "__main__":
    main()
