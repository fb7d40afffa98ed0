"""What a run writes and prints: metrics, samples, memory, progress. Nothing here changes what is learned.

The names of the metrics are listed with their meaning in docs/metrics.md.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

import rollout
from rollout import Rollouts


def group_metrics(
    rewards: torch.Tensor,
    pair_mask: torch.Tensor,
    d: torch.Tensor,
    advantages: torch.Tensor,
    rollouts: Rollouts,
    trained: torch.Tensor,
) -> dict[str, Any]:
    """What the log says of groups and pairs; a pair counts where its rewards differ. (P, G), (P, G, G), ..."""
    differ = (rewards[:, :, None] != rewards[:, None, :]).triu(1)
    metrics: dict[str, Any] = {
        "no_signal": (advantages == 0).all(1).float().mean().item(),
        "masked_pairs": (~pair_mask & differ).sum().item() / max(1, int(differ.sum())),
        "trained_sequences": trained.float().mean().item(),
        "masked_tokens": (rollouts.withheld != 0).sum().item() / max(1, int(rollouts.response_mask.sum())),
    }
    scores = d[differ & ~d.isnan()]
    if len(scores):
        metrics["distinctiveness/mean"] = scores.mean().item()
        for share in (0.1, 0.5, 0.9):
            metrics[f"distinctiveness/p{100 * share:.0f}"] = scores.quantile(share).item()
    return metrics


def token_metrics(sums: dict[str, float], updates: int) -> dict[str, float]:
    """Means over trained tokens from the sums of `policy_loss`; the clip shares are of on-policy tokens."""
    tokens, own = max(sums.get("tokens", 0.0), 1.0), max(sums.get("own_tokens", 0.0), 1.0)
    metrics = {
        "loss": sums.get("loss", 0.0) / updates,
        "grad_norm": sums.get("grad_norm", 0.0),
        "entropy": sums.get("entropy", 0.0) / tokens,
        "kl": sums.get("kl", 0.0) / tokens,
        "clip_low": sums.get("clip_low", 0.0) / own,
        "clip_high": sums.get("clip_high", 0.0) / own,
    }
    if updates == 1 and sums.get("own_tokens"):  # later updates compare with log-probabilities of the training pass
        metrics["sampler_gap"] = sums["sampler_gap"] / own
    if sums.get("padded_tokens"):
        metrics["padding"] = 1 - sums["model_tokens"] / sums["padded_tokens"]
    if sums.get("anchor_tokens"):
        metrics["anchor_prob"] = sums["anchor_prob"] / sums["anchor_tokens"]
    return metrics


def step_line(record: dict[str, Any], steps: int) -> str:
    """The step in one line; it says so where there was nothing to learn."""
    parts = [f"step {record['step']:>4}/{steps}"]
    if "reward" in record:
        parts += [f"reward {record['reward']:.3f}", f"length {record['length/mean']:5.1f}"]
    parts += [
        f"no signal {record['no_signal']:4.0%}",
        f"masked {record['masked_pairs']:4.0%}",
        f"anchored {record['anchored']:4.0%}",
        f"trained {record['trained_sequences']:4.0%}",
        f"entropy {record['entropy']:.2f}",
        f"grad {record['grad_norm']:.2f}",
        f"{sum(value for name, value in record.items() if name.startswith('seconds/')):.1f} s",
    ]
    line = "  ".join(parts)
    if record["trained_sequences"] == 0:
        line += "\n     nothing to learn in this step: in every group all rewards are equal or all pairs are masked"
    return line


def write_samples(
    path: Path,
    step: int,
    batch: list[dict[str, Any]],
    rollouts: Rollouts,
    rewards: torch.Tensor,
    pair_mask: torch.Tensor,
    d: torch.Tensor,
    advantages: torch.Tensor,
) -> None:
    """Two groups of the step in full: the one with most masked pairs, and the first other one with an anchor."""
    size = rollouts.group_size
    differ = rewards[:, :, None] != rewards[:, None, :]
    masked = (~pair_mask & differ).sum((1, 2))
    chosen = [int(masked.argmax())]
    anchored = rollouts.anchor_mask.view(-1, size).any(1).nonzero().squeeze(1).tolist()
    chosen += [p for p in anchored if p not in chosen][:1]
    for p in chosen:
        answers = [
            {
                "text": rollouts.texts[p * size + g],
                "reward": rewards[p, g].item(),
                "advantage": round(advantages[p, g].item(), 4),
                "anchor": bool(rollouts.anchor_mask[p * size + g]),
                "tokens": int(rollouts.lengths[p * size + g]),
            }
            for g in range(size)
        ]
        scored = not bool(d[p].isnan().any())
        record = {
            "step": step,
            "problem": batch[p]["problem"],
            "answer": batch[p]["answer"],
            "answers": answers,
            "distinctiveness": [[round(v, 3) for v in row] for row in d[p].tolist()] if scored else None,
            "masked_pairs": [
                [i, j] for i in range(size) for j in range(i) if differ[p, i, j] and not pair_mask[p, i, j]
            ],
        }
        append_json(path, record)


def memory_estimate(
    model: PreTrainedModel, *, answers: int, max_new_tokens: int, token_budget: int, reference: bool
) -> dict[str, float]:
    """Gigabytes that the run will need, roughly: fp32 weights, gradients, AdamW states, activations, cache."""
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = 4 if model.device.type == "cpu" else 2
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
    # What the backward pass of a layer keeps of a token: about 14 vectors of the hidden and 4 of the inner size.
    layer = (14 * config.hidden_size + 4 * inner) * width
    length = max_new_tokens + 256  # with a prompt of middling length
    tokens = min(token_budget, answers * length)
    logits = 4 * 4 * min(rollout.CHUNK_ELEMENTS, tokens * config.vocab_size)
    estimate = {
        "weights": 4 * parameters * (2 if reference else 1),
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": tokens * config.num_hidden_layers * layer + logits,
        "autocast": 2 * parameters if model.device.type == "cuda" else 0,  # bf16 copies of the weights
        "decoder": width * parameters,  # joined copies of them, while sampling
        "cache": rollout.cache_bytes(model, length) * min(answers, rollout.rows_at_once(model, length)),
    }
    estimate = {name: value / 1e9 for name, value in estimate.items()}
    updating = estimate["gradients"] + estimate["autocast"] + estimate["activations"]
    sampling = estimate["decoder"] + estimate["cache"]
    estimate["total"] = estimate["weights"] + estimate["optimizer"] + max(updating, sampling)
    estimate["available"] = total_memory_gb(model)
    return estimate


def total_memory_gb(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        return torch.cuda.get_device_properties(model.device).total_memory / 1e9
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 0.0


def peak_memory_gb(model: PreTrainedModel) -> float:
    """Most memory held so far: on the GPU by PyTorch, on a CPU by the process."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / 1e9
    if importlib.util.find_spec("resource") is None:  # Windows
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def append_json(path: Path, record: dict[str, Any]) -> None:
    """Add a line; figures that are not known (NaN) are left out, because JSON has no word for them."""
    record = {name: value for name, value in record.items() if not (isinstance(value, float) and math.isnan(value))}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def say(line: str) -> None:
    """Print a line above the progress bars."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def progress(label: str, unit: str, total: int | None = None) -> tqdm:
    return tqdm(desc=label, unit=f" {unit}s", total=total, leave=False, file=sys.stderr)


@contextmanager
def timed(seconds: dict[str, float], name: str, model: PreTrainedModel) -> Iterator[None]:
    """Add the wall time of the block to seconds[name]; a GPU finishes its work first."""
    start = time.perf_counter()
    yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
