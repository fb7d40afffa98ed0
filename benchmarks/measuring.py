"""What the benchmarks of the program share: models, also without a download, questions, clocks, reports."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

import rollout  # noqa: E402
from harness.config import EXAMPLE  # noqa: E402
from harness.report import machine, synchronize  # noqa: E402
from harness.runs import Run  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2 model."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 151_936
    tied: bool = True


SHAPES = {  # of Qwen2.5; tiny is for trying a benchmark out
    "tiny": Shape(64, 128, 2, 4, 2, vocabulary=512),
    "0.5b": Shape(896, 4864, 24, 14, 2),
    "1.5b": Shape(1536, 8960, 28, 12, 2),
    "3b": Shape(2048, 11008, 36, 16, 2),
    "7b": Shape(3584, 18944, 28, 28, 4, vocabulary=152_064, tied=False),
    "14b": Shape(5120, 13824, 48, 40, 8, vocabulary=152_064, tied=False),
}
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def example_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(EXAMPLE)


def load(name: str, weights: str = "fp32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What dagrpo.py loads; without a name the embedded model; `random:1.5b`: random weights in a shape of SHAPES."""
    dtype = WEIGHTS[weights]
    if not name.startswith("random:"):
        return rollout.load(name or str(EXAMPLE), dtype=dtype)
    torch.manual_seed(0)
    model = random_model(name.removeprefix("random:"), "cuda" if torch.cuda.is_available() else "cpu", dtype)
    return model, example_tokenizer()


def random_model(size: str, device: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Random weights in a shape of SHAPES; on the device `meta` none at all."""
    shape = SHAPES[size]
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return model


@contextmanager
def trainable(name: str) -> Iterator[None]:
    """Inside, dagrpo.train takes a random model too. It writes no checkpoint of it: gigabytes that nobody reads."""
    if not name.startswith("random:"):
        yield
        return
    with mock.patch.object(rollout, "load", lambda *_, **__: load(name)), mock.patch.object(Run, "save"):
        yield


def peak_of_allocator(run: Callable[[], Any]) -> int:
    """Bytes of all tensors at most while `run` runs, from a state with none of them."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events: Any = profiled.profiler
    found = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def questions_for(data: str, embedded: str, count: int) -> list[dict[str, Any]]:
    """Questions of --data, or of a file of the embedded example, evenly spaced: of all its levels."""
    path = Path(data) if data else EXAMPLE / embedded
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:: max(1, len(lines) // count)][:count]]


def prompts_for(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, style: rollout.PromptStyle = rollout.PLAIN
) -> list[str]:
    """One prompt for each of --questions; a random model gets several problems in one, of --prompt tokens or more."""
    problems = [q["problem"] for q in questions_for(arguments.data, "held_out.jsonl", arguments.questions)]
    least = arguments.prompt if arguments.model.startswith("random:") else 1
    prompts = []
    for first in range(len(problems)):
        text, further = problems[first], first
        while len(rollout.encode_prompt(tokenizer, rollout.render_prompt(tokenizer, text, style=style))) < least:
            further += 1
            text += "\n" + problems[further % len(problems)]
        prompts.append(rollout.render_prompt(tokenizer, text, style=style))
    return prompts


class EndingHead(torch.nn.Module):
    """The model's head, with an EOS that comes with probability 1/mean at every token: ragged lengths of any model."""

    def __init__(self, head: torch.nn.Module, eos: int, mean: float) -> None:
        super().__init__()
        self.head, self.eos, self.odds = head, eos, math.log(1 / (mean - 1))
        self.weight = head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        logits[..., self.eos] = -torch.inf
        logits[..., self.eos] = logits.float().logsumexp(-1).to(logits.dtype) + self.odds
        return logits


def seconds_of(model: PreTrainedModel, run: Callable[[], Any]) -> tuple[float, Any]:
    synchronize(model)
    start = time.perf_counter()
    result = run()
    synchronize(model)
    return time.perf_counter() - start, result


def resident(field: str) -> int:
    """Bytes of this process by /proc: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def name_of(arguments: argparse.Namespace) -> str:
    return Path(arguments.model).name or "the embedded model"


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):9.2f}   ({min(ratios):.2f} to {max(ratios):.2f})"


def report(arguments: argparse.Namespace, title: str, rows: list[tuple[str, str]], figures: dict[str, Any]) -> None:
    """Print a table; with --json FILE add the figures to FILE as one line, with machine and versions."""
    here = machine()
    print(f"{title}\n{', '.join(f'{name} {value}' for name, value in here.items())}\n")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:{width}}  {value}")
    if arguments.json:
        with open(arguments.json, "a", encoding="utf-8") as file:
            file.write(json.dumps({"title": title, "machine": here, **figures}) + "\n")
