"""What a run writes and prints: its folder, metrics, samples, memory, progress. Nothing here changes what is learned.

The names of the metrics are listed with their meaning in docs/metrics.md.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel

from harness.checkpoint import records_of
from harness.command import printable
from harness.config import Config
from harness.estimate import Prompts, memory_estimate
from harness.runs import Run
from harness.signals import unheard
from rollout import Rollouts
from scoring import Rectified

COLUMNS = 80  # of a terminal
NOTABLE = 0.2  # shares above this get a line of their own
CROWDED = 1e-3  # seconds of an operation that takes some 0.02 ms where its threads run, and 12 ms where they wait

# ---------------------------------------------------------------------------------------------------------------------
# Files of a run
# ---------------------------------------------------------------------------------------------------------------------


def append_json(path: Path, record: dict[str, Any]) -> None:
    """Add a line; figures that are not finite become null, because JSON has no word for them."""
    line = (json.dumps(each_value(record, with_null)) + "\n").encode()
    with path.open("ab") as file:
        end = file.tell()
        try:
            file.write(line)
            file.flush()
        except OSError as error:  # a full disk: a file of lines has no half of one
            os.truncate(path, end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def last_record(out: Path) -> dict[str, Any]:
    """The metrics of the last step so far; nothing before the first."""
    steps = [record for record in records_of(out / "metrics.jsonl") if "step" in record]
    return steps[-1] if steps else {}


def with_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def each_value(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same dictionaries and lists, with every value in them changed."""
    if isinstance(value, dict):
        return {name: each_value(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [each_value(item, change) for item in value]
    return change(value)


def write_samples(
    path: Path,
    step: int,
    questions: list[dict[str, Any]],
    rollouts: Rollouts,
    rewards: torch.Tensor,  # (P, G)
    rectified: Rectified,
) -> None:
    """Two groups of the step in full: the one with most masked pairs, and the first other one with an anchor."""
    size, d = rollouts.group_size, rectified.distinctiveness
    masked = ~rectified.pair_mask & (rewards[:, :, None] != rewards[:, None, :])
    chosen = [int(masked.sum((1, 2)).argmax())]
    anchored = rollouts.anchor_mask.view(-1, size).any(1).nonzero().squeeze(1).tolist()
    chosen += [p for p in anchored if p not in chosen][:1]
    for p in chosen:
        completions = [
            {
                "text": rollouts.texts[p * size + g],
                "reward": rewards[p, g].item(),
                "advantage": round(rectified.advantages[p, g].item(), 4),
                "anchor": bool(rollouts.anchor_mask[p * size + g]),
                "tokens": int(rollouts.lengths[p * size + g]),
            }
            for g in range(size)
        ]
        scored = not bool(d[p].isnan().any())
        record = {
            "step": step,
            "problem": questions[p]["problem"],
            "answer": questions[p]["answer"],
            "answers": completions,
            "distinctiveness": [[round(v, 3) for v in row] for row in d[p].tolist()] if scored else None,
            "masked_pairs": [[i, j] for i in range(size) for j in range(i) if masked[p, i, j]],
        }
        append_json(path, record)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics and lines
# ---------------------------------------------------------------------------------------------------------------------


def solve_metrics(rewards: torch.Tensor, right: float) -> dict[str, float]:
    """Shares of groups in which no completion, or every one, is right; nothing where nothing says what is. (P, G)"""
    if math.isinf(right):
        return {}
    return {
        "solve_none": (rewards < right).all(1).float().mean().item(),
        "solve_all": (rewards >= right).all(1).float().mean().item(),
    }


def reward_metrics(rounds: list[dict[str, list[float]]]) -> dict[str, float]:
    """Mean of what each function of --reward gave, before its weight, over all rounds of sampling of a step."""
    values = {name: [value for given in rounds for value in given[name]] for name in rounds[0]}
    return {f"reward/{name}": sum(given) / len(given) for name, given in values.items()}


def group_metrics(
    rewards: torch.Tensor,  # (P, G)
    rollouts: Rollouts,  # N rows
    rectified: Rectified,
    trained: torch.Tensor,  # (N,) bool
) -> dict[str, Any]:
    """What the log says of groups and pairs; a pair counts where its rewards differ."""
    differ = (rewards[:, :, None] != rewards[:, None, :]).triu(1)
    masked = ~rectified.pair_mask & differ
    metrics: dict[str, Any] = {
        "no_signal": (rectified.advantages == 0).all(1).float().mean().item(),
        "masked_pairs": masked.sum().item() / max(1, int(differ.sum())),
        "trained_sequences": trained.float().mean().item(),
        "masked_tokens": (rectified.withheld != 0).sum().item() / max(1, int(rollouts.response_mask.sum())),
    }
    if rectified.witness is not None:
        metrics |= rectified.witness.shares()
    scores = rectified.distinctiveness[differ & ~rectified.distinctiveness.isnan()]
    if len(scores):
        metrics["distinctiveness/mean"] = scores.mean().item()
        for share in (0.1, 0.5, 0.9):
            metrics[f"distinctiveness/p{100 * share:.0f}"] = scores.quantile(share).item()
    return metrics


def token_metrics(sums: dict[str, float], updates: int) -> dict[str, float]:
    """Means over trained tokens from the sums of `policy_loss`; the clip shares are of on-policy tokens."""
    tokens, on_policy = max(sums.get("tokens", 0.0), 1.0), max(sums.get("policy_tokens", 0.0), 1.0)
    metrics = {
        "loss": sums.get("loss", 0.0) / max(sums.get("updates", 0.0), 1.0),
        "grad_norm": sums.get("grad_norm", 0.0),
        "bad_updates": int(sums.get("bad_updates", 0)),
        "learning_rate": sums.get("learning_rate", 0.0),
        "entropy": sums.get("entropy", 0.0) / tokens,
        "kl": sums.get("kl", 0.0) / on_policy,
        "clip_low": sums.get("clip_low", 0.0) / on_policy,
        "clip_high": sums.get("clip_high", 0.0) / on_policy,
    }
    if updates == 1 and sums.get("policy_tokens"):  # later updates compare with log-probabilities of the training pass
        metrics["sampler_gap"] = sums["sampler_gap"] / on_policy
    if sums.get("padded_tokens"):
        metrics["padding"] = 1 - sums["model_tokens"] / sums["padded_tokens"]
    if sums.get("anchor_tokens"):
        metrics["anchor_prob"] = sums["anchor_prob"] / sums["anchor_tokens"]
    return metrics


def clock_metrics(seconds: dict[str, float], sampled_tokens: int, sums: dict[str, float]) -> dict[str, float]:
    """The seconds of the parts of the step, and tokens per second."""
    return {
        **{f"seconds/{name}": value for name, value in seconds.items()},
        "tokens_per_s/rollout": sampled_tokens / max(seconds["rollout"], 1e-9),
        "tokens_per_s/train": sums.get("tokens", 0.0) / max(seconds["train"], 1e-9),
    }


def step_line(record: dict[str, Any], steps: int, seconds_left: float = 0.0) -> str:
    """The step in a line of 80 columns, and more for each thing that somebody should look at."""
    parts = [f"step {record['step']:>{len(str(steps))}}/{steps}"]
    if "reward" in record:
        form = ".3f" if abs(record["reward"]) < 1_000 else ".1e"  # rewards of one's own may be anything
        parts += [f"reward {record['reward']:{form}}", f"length {record['length/mean']:4.0f}"]
    parts += [f"no signal {record['no_signal']:4.0%}", f"masked {record['masked_pairs']:4.0%}"]
    if seconds_left:
        parts.append(f"eta {span(seconds_left)}")
    notes = []
    if record.get("truncated", 0.0) > NOTABLE:
        notes.append(f"{record['truncated']:.0%} cut off at the limit: raise --max-new-tokens")
    if record["bad_updates"]:
        named = ", ".join(record["bad_questions"][:4]) + (", ..." if len(record["bad_questions"]) > 4 else "")
        notes.append(f"{skipped(record['bad_updates'], record['bad_losses'])}, on {named}")
    if record["trained_sequences"] == 0:
        notes.append("nothing to learn: in every group rewards are equal or all pairs masked")
    return "\n".join(["  ".join(parts), *(wrapped(f"     {note}") for note in notes)])


def skipped(updates: int, losses: int) -> str:
    """What is said of updates whose gradient was not finite, and of so many of which the loss was not either."""
    what = f"{updates} updates skipped: their" if updates > 1 else "1 update skipped: its"
    if not losses:
        return f"{what} gradient was not finite, of a loss that was"
    if losses < updates:
        return f"{what} gradient was not finite, nor the loss of {losses}"
    return f"{what} loss was not finite"


def span(seconds: float) -> str:
    """A time in at most three characters: 95s, 12m, 30h, 4d."""
    for unit, size, most in (("s", 1, 99.5), ("m", 60, 99.5), ("h", 3_600, 47.5)):
        if seconds < most * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def wrapped(text: str) -> str:
    """Its lines within 80 columns, broken at spaces; what has no space stays whole."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        parts = textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += parts if len(line) > COLUMNS else [line]
    return "\n".join(lines)


def evaluation_line(step: int, result: dict[str, Any], seconds: float) -> str:
    """A held-out evaluation: accuracy, or where nothing says what is right, the mean reward; below it by set or level.

    Of several sets the first line tells the mean.
    """
    name, form, short = ("accuracy", ".1%", ".0%") if "accuracy" in result else ("reward", ".3g", ".3g")
    low, high = result["interval" if name == "accuracy" else "reward_interval"]
    sets = result.get("sets", {})
    parts = ", ".join(
        f"{part} = {figures[name]:{form if sets else short}}" for part, figures in (sets or result["levels"]).items()
    )
    line = f"held out at step {step}: " + (f"mean of {len(sets)} sets " if sets else "")
    line += "" if name == "accuracy" else "reward "
    line += f"{result[name]:{form}} ({low:{form}} to {high:{form}})  length {result['length']:.1f}  {seconds:.1f} s"
    return wrapped(line + (f"\n     {'' if sets else 'by level: '}{parts}" if parts else ""))


# ---------------------------------------------------------------------------------------------------------------------
# Memory and machine
# ---------------------------------------------------------------------------------------------------------------------


def announce(model: PreTrainedModel, config: Config, run: Run, prompts: Prompts, held_out: int) -> None:
    """Say, and write as the first line of metrics.jsonl, what the run will need against what there is.

    `held_out` is the number of questions of an evaluation.
    """
    for note in run.notes:
        tell(note)
    run.notes.clear()
    if model.device.type == "cpu" and is_crowded():
        tell(
            "Other programs keep the processors busy, and the threads of this one wait for each other: a step may take "
            "many times as long. Stop it, and begin it with OMP_WAIT_POLICY=passive in the environment, or on fewer "
            "threads (OMP_NUM_THREADS), or without the other programs (docs/speed.md)."
        )
    if run.start:
        tell(f"Resumed after step {run.start}: {run.out}")
        return
    estimate = memory_estimate(model, config, prompts=prompts, held_out=held_out)
    append_json(run.out / "metrics.jsonl", {"memory_estimate_gb": estimate})
    say(f"Needs about {estimate['total']:.2f} GB of the {estimate['available']:.1f} GB there are.")
    tell(f"Run folder: {run.out}")
    if 0 < estimate["available"] < estimate["total"]:
        tell(
            "That is too much: try --checkpointing, --optimizer adamw8bit or --lora, lower --token-budget or "
            "--max-new-tokens, or take a smaller model (docs/memory.md)."
        )
    if config.top_p < 1:
        tell(f"--top-p {config.top_p:g}: completions come from a narrower policy than the one that is trained.")
    size = mean_size(model)
    if config.learning_rate > size:
        tell(
            f"--learning-rate {config.learning_rate:g}: a step of AdamW moves a weight by about this much, and the "
            f"weights are {size:.2g} on average: what the model knows will be gone after one."
        )


def is_crowded() -> bool:
    """Do the threads of an operation on a CPU wait for each other, as other programs have their processors?"""
    seconds, numbers = [], torch.ones(2**17)  # so many numbers are shared among the threads
    for _ in range(31):
        start = time.perf_counter()
        numbers.mul_(1.0)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) > CROWDED


def mean_size(model: PreTrainedModel) -> float:
    """The mean absolute value of the weights that are trained."""
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    total = sum(float(torch.linalg.vector_norm(parameter, 1)) for parameter in trained)
    return total / sum(parameter.numel() for parameter in trained)


def peak_memory_gb(model: PreTrainedModel) -> float:
    """Most memory held so far: on the GPU by PyTorch, on a CPU by the process."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / 1e9
    if importlib.util.find_spec("resource") is None:  # Windows
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def machine() -> dict[str, Any]:
    """What figures of speed depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "gpu": gpu, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Terminal and clock
# ---------------------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a line above the progress bars. Where nobody can read it, the program ends as by a signal."""
    try:
        tqdm.write(printable(line), file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        unheard(error)


def tell(note: str) -> None:
    """The same of a sentence, within 80 columns."""
    say(wrapped(note))


def progress(label: str, unit: str, total: int | None = None) -> tqdm:
    """A bar where somebody looks: none in a file."""
    return tqdm(desc=label, unit=f" {unit}s", total=total, leave=False, file=sys.stderr, disable=None)


def synchronize(model: PreTrainedModel) -> None:
    """Let a GPU finish its work, so that a clock can be read."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@contextmanager
def timed(seconds: dict[str, float], name: str, model: PreTrainedModel) -> Iterator[None]:
    """Add the wall time of the block to seconds[name]; a GPU finishes its work first."""
    start = time.perf_counter()
    yield
    synchronize(model)
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
