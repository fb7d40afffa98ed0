"""What must hold on any device. tests/test_cuda.py asks for it on a GPU, tests/test_device_checks.py on a CPU.

On a CPU nothing is compiled and no graph is captured, so that some of this is trivial there; but it runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from conftest import padded_batch
from transformers import PreTrainedModel

import dagrpo
import scoring
from harness.config import EXAMPLE, Config
from harness.memory import with_room
from policy import compiling, decoding, logprobs
from policy.model import autocast, hidden_states

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ([5, 6, 7, 8, 9], [10], [11, 12])
WAYS = ("eager", "compiled", "graph")


@contextmanager
def chosen(choice: str) -> Iterator[None]:
    """Inside, torch.compile fuses what --compile names so, and no failure of it goes by as a warning."""
    before = compiling.chosen["parts"]
    compiling.choose(choice)
    try:
        with warnings.catch_warnings():
            for message in ("torch.compile does not work", "no CUDA graph could be made"):
                warnings.filterwarnings("error", message=message)
            yield
    finally:
        compiling.chosen["parts"] = before


# --- decoding ----------------------------------------------------------------------------------------------------


def forced_tokens(rows: int, length: int, device: str) -> torch.Tensor:
    """The same random tokens on every device. -> (N, L)"""
    return torch.randint(2, 64, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)


@torch.no_grad()
def states_by(way: str, model: PreTrainedModel, tokens: torch.Tensor, leave_after: int) -> tuple[torch.Tensor, int]:
    """Hidden states behind each of some tokens by `FastSteps`, every second row leaving on the way. (N, L)

    -> (N/2, L, H) of the rows that stay, and the graphs that there are at the end.
    """
    group_size, length = len(tokens) // len(PROMPTS), tokens.shape[1]
    with chosen("none" if way == "eager" else "sampler"):
        cache, mask, _ = decoding.of_prompts(model, [list(prompt) for prompt in PROMPTS])
        with autocast(model):
            steps = decoding.FastSteps(model, cache, mask, group_size, length)
            steps.use_graphs = steps.use_graphs and way == "graph"
            stay = torch.arange(0, len(tokens), 2, device=tokens.device)
            states = []
            for position in range(length):
                if position == leave_after:
                    steps.keep(stay, position - 1)
                    tokens = tokens[stay]
                if way == "compiled":  # by itself it is run at captures alone
                    place = torch.full((1,), steps.copied_prompt + position, device=tokens.device)
                    read = steps.bias.shape[2] if tokens.is_cuda else int(place) + 1
                    inputs = (tokens[:, position], steps.prompt_lengths + position, place)
                    made = steps.step(read, decoding.decoder_layer, *inputs)
                else:
                    made = steps(tokens[:, position], position)
                states.append(made if position >= leave_after else made[stay])
    return torch.stack(states, 1), len(steps.graphs)


@torch.no_grad()
def states_of_model(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The same by the model's own pass over each sequence alone. (N, L) -> (N/2, L, H)"""
    group_size, found = len(tokens) // len(PROMPTS), []
    for row in range(0, len(tokens), 2):
        prompt = torch.tensor(PROMPTS[row // group_size], device=tokens.device)
        ids = torch.cat([prompt, tokens[row]])[None]
        with autocast(model):
            found.append(hidden_states(model, ids, torch.ones_like(ids))[0, len(prompt) :])
    return torch.stack(found)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """As a share of the largest number."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


# --- loss and masks ----------------------------------------------------------------------------------------------


def loss_with(choice: str, device: str) -> dict[str, torch.Tensor]:
    """The loss (8) of random figures, every term of it, its sums and its gradient, on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    logps = (-drawn(16, 40)).to(device).requires_grad_()
    old, reference, entropies = (-drawn(16, 40).to(device) for _ in range(3))
    mask, anchors = (drawn(16, 40) < 0.7).to(device), (drawn(16) < 0.3).to(device)
    advantages, denominators = (drawn(16, 40) - 0.5).to(device), (100 + drawn(16)).to(device)
    objective = dagrpo.Objective(kl=0.1)
    with chosen(choice):
        loss, sums = dagrpo.policy_loss(
            logps, old, advantages, mask, anchors, denominators, objective, reference_logps=reference,
            entropies=entropies, entropy_weight=torch.tensor(0.01, device=device),
        )  # fmt: skip
        loss.backward()
    assert logps.grad is not None
    found = {"loss": loss.detach(), "gradient": logps.grad, **sums}
    return {name: value.cpu() for name, value in found.items()}


def masks_with(choice: str, device: str) -> dict[str, torch.Tensor]:
    """All masks and advantages of eight groups of eight with random gradients, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(8, 8, 20, generator=generator) + torch.randn(8, 1, 20, generator=generator)
    rewards = (torch.rand(8, 8, generator=generator) < 0.5).float().to(device)
    gram = (gradients @ gradients.transpose(1, 2)).to(device)
    with chosen(choice):
        d = scoring.gradient_distinctiveness(gram)
        pairs = scoring.pair_advantages(rewards, scale="std")
        found = {
            "distinctiveness": d,
            "threshold": scoring.distinct_pairs(d, 0.35),
            "pair": scoring.safe_pairs(gram, rewards),
            "group": scoring.safe_sums(gram, pairs),
        }
        found["advantages"] = scoring.rectified_advantages(rewards, found["threshold"])
    return {name: value.cpu() for name, value in found.items()}


# --- sampling ----------------------------------------------------------------------------------------------------


def noise_on(device: str) -> torch.Tensor:
    keys = torch.tensor([0, 1, 2**62, 2**63 - 1], device=device)[:, None]
    return decoding.uniform_noise(keys, torch.arange(64, device=device)).cpu()


def deviations(device: str, temperature: float, top_p: float, draws: int = 40_000) -> torch.Tensor:
    """By how many standard errors the shares of tokens that are drawn differ from their probabilities. -> (V,)"""
    logits = torch.linspace(-2, 2, 12)
    expected = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = expected.sort(descending=True)
        expected[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
        expected /= expected.sum()
    noise = decoding.uniform_noise(torch.arange(draws, device=device)[:, None], torch.zeros(1, device=device).long())
    tokens, logps = decoding.choose_tokens(logits.to(device).expand(draws, -1), noise[:, 0], temperature, top_p)
    full = (logits / temperature).log_softmax(-1)
    torch.testing.assert_close(logps.cpu(), full[tokens.cpu()], atol=1e-4, rtol=1e-4)
    shares = torch.bincount(tokens.cpu(), minlength=len(logits)) / draws
    assert not bool((shares[expected == 0] > 0).any()), "a token that --top-p leaves out was drawn"
    errors = (expected * (1 - expected) / draws).sqrt().clamp(min=1e-9)
    return (shares - expected) / errors


def packed_and_alone(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of five rows: three and two of them in one sequence, and each by itself. -> (N, S) twice"""
    batch = padded_batch([(0, 4, 7), (0, 4, 3), (0, 4, 1), (0, 9, 5), (0, 9, 6)], 64)
    ids = batch[0]
    ids[1:3, :4], ids[4, :9] = ids[0, :4], ids[3, :9]
    on_device = [values.to(model.device) for values in batch]
    with torch.no_grad():
        packed, _ = logprobs.token_logps(model, *on_device, packing=[[3, 2]])
        alone, _ = logprobs.token_logps(model, *on_device)
    return packed.cpu(), alone.cpu()


# --- memory and whole runs ---------------------------------------------------------------------------------------


def budget_left(allocate: Callable[[int], object]) -> int:
    """--token-budget after work for which `allocate` has to find room for so many padded tokens."""
    config = Config(model="m", data=["d"], token_budget=4_096)
    with_room(config, torch.tensor([10, 20]), lambda: allocate(config.token_budget))
    return config.token_budget


def whole_run(device: str, data: Path, out: Path) -> list[dict[str, float]]:
    """`python dagrpo.py` with the embedded model, small: the records of its two steps."""
    flags = ["--model", str(EXAMPLE), "--data", str(data / "train.jsonl"), "--eval-data", str(data / "held_out.jsonl"),
             "--out", str(out), "--device", device, "--steps", "2", "--questions", "3", "--group-size", "4",
             "--max-new-tokens", "24", "--eval-samples", "1", "--learning-rate", "1e-4", "--kl", "0.01"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "dagrpo.py"), *flags], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "model" / "config.json").is_file() and "Held out, before and after 2 steps" in done.stdout
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
