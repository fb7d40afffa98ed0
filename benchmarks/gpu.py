r"""One command for a first hour with a GPU: every figure that docs/speed.md still lacks, in nine minutes at most.

    python benchmarks/gpu.py                         writes gpu.json, and prints the column for docs/speed.md
    python benchmarks/gpu.py --only rollout-7b gap   some parts alone
    python benchmarks/gpu.py --tiny                  the same commands with tiny models, on a CPU too: does it all run?

Models have random weights in the shapes of Qwen2.5-0.5B, 1.5B and 7B, so that nothing is downloaded; TRL, vLLM and peft
take part where they are installed. Each part is a command of its own, with a time limit of its own: where one fails,
its row is lost and no other. The figure of a part is what its command says, as `python benchmarks/speed.py --help`
explains.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
SECONDS = 540.0  # of all parts
LIMIT = 300.0  # of a part with a tiny model, which takes seconds
TAIL = 1_500  # characters of what a part that failed has said

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A command that adds its figures to the file behind --json, or a run of dagrpo.py in the folder behind --out."""

    command: tuple[str, ...]  # the script and its flags
    seconds: float  # limit
    needs: str = ""  # a package without which it is left out

    @property
    def is_run(self) -> bool:
        return self.command[0] == "dagrpo.py"


def speed(command: str, size: str, seconds: float, flags: Mapping[str, object], needs: str = "") -> Part:
    """A command of speed.py on a random model of this size."""
    words = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return Part(("speed.py", command, "--model", f"random:{size}", *words), seconds, needs)


def parts_for_gpu() -> dict[str, Part]:
    """What runs on a GPU, the most telling first: what comes last is left out where time is up.

    Warm-up is the very first, while the compiler's cache is empty. Batches are so small that full logits, and TRL, have
    room on 24 GB too. Weights of 7 B are bf16, and need 48 GB with the copies that the sampler joins.
    """
    full = {"questions": 16, "group_size": 8, "max_new_tokens": 128, "runs": 2}
    ragged = {**full, "max_new_tokens": 256, "mean": 128}
    batch = {"rows": 8, "length": 512, "prompt": 128}
    step = {"questions": 4, "group_size": 8, "max_new_tokens": 128, "steps": 4, "runs": 1}
    of_memory = ("memory.py", "--model", "random:0.5b", "--only")
    return {
        "warm-up": speed("warm-up", "1.5b", 100, full),
        "rollout-1.5b": speed("rollout", "1.5b", 70, ragged),
        "gap": Part(("gap.py", "--model", "random:0.5b", "--questions", "8"), 45),
        "update-memory": speed("memory", "0.5b", 75, {**batch, "runs": 1}),
        "step": speed("step", "0.5b", 110, step, "trl"),
        "continuous-1.5b": speed("rollout", "1.5b", 60, {**full, "against": "generate_batch"}),
        "rollout-7b": speed("rollout", "7b", 75, {**ragged, "weights": "bf16"}),
        "embedded": Part(("dagrpo.py",), 100),
        "scoring": speed("scoring", "0.5b", 60, {**step, "questions": 16}),
        "rollout-0.5b": speed("rollout", "0.5b", 50, ragged),
        "update": speed("logps", "0.5b", 40, {**batch, "runs": 3}),
        "estimate": Part((*of_memory, "one GPU", "one GPU, checkpointing"), 60),
        "estimate-lora": Part((*of_memory, "one GPU, LoRA"), 40, "peft"),
        "vllm-1.5b": speed("rollout", "1.5b", 100, {**full, "against": "vllm"}, "vllm"),
        "compiling": Part(("speed.py", "compiling"), 40),
    }


def parts_for_a_try() -> dict[str, Part]:
    """The same commands on a model of two layers, for seconds each.

    Continuous batching is left out on a CPU, where it takes minutes to reserve its memory.
    """
    full = {"questions": 2, "group_size": 2, "max_new_tokens": 8, "prompt": 16, "runs": 1}
    batch = {"rows": 4, "length": 24, "prompt": 8, "group_size": 2, "runs": 1}
    step = {"questions": 2, "group_size": 2, "max_new_tokens": 8, "steps": 2, "runs": 1}
    run = ("--steps", "1", "--questions", "2", "--group-size", "2", "--max-new-tokens", "8", "--eval-samples", "1",
           "--data", "examples/arithmetic/train.jsonl", "--model", "examples/arithmetic", "--hold-out", "2",
           "--learning-rate", "1e-4")  # fmt: skip
    gap = ("--questions", "2", "--group-size", "2", "--max-new-tokens", "8", "--prompt", "16")
    of_memory = ("memory.py", "--model", "random:tiny", "--only")
    continuous = {"continuous-tiny": speed("rollout", "tiny", LIMIT, {**full, "against": "generate_batch"})}
    return {
        "warm-up": speed("warm-up", "tiny", LIMIT, full),
        "rollout-tiny": speed("rollout", "tiny", LIMIT, {**full, "mean": 4}),
        "gap": Part(("gap.py", "--model", "random:tiny", *gap), LIMIT),
        "update-memory": speed("memory", "tiny", LIMIT, batch),
        "step": speed("step", "tiny", LIMIT, step, "trl"),
        **(continuous if has_gpu() else {}),
        "embedded": Part(("dagrpo.py", *run), LIMIT),
        "scoring": speed("scoring", "tiny", LIMIT, step),
        "update": speed("logps", "tiny", LIMIT, batch),
        "estimate": Part((*of_memory, "language model"), LIMIT),
        "estimate-lora": Part((*of_memory, "language model, LoRA"), LIMIT, "peft"),
        "vllm-tiny": speed("rollout", "tiny", LIMIT, {**full, "against": "vllm"}, "vllm"),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------------------------------------------------


def figures_of(part: Part, seconds: float, folder: Path) -> Figures:
    """What a part has found, and how long it took; or `failed`, and why."""
    if part.needs and importlib.util.find_spec(part.needs) is None:
        return {"failed": f"{part.needs} is not installed"}
    if seconds < 1:
        return {"failed": "no time was left"}
    script = ROOT / part.command[0] if part.is_run else BENCHMARKS / part.command[0]
    kept, out = folder / "figures.jsonl", folder / "run"
    to = ("--out", str(out)) if part.is_run else ("--json", str(kept))
    command = [sys.executable, str(script), *part.command[1:], *to]
    start = time.perf_counter()
    with open(folder / "said.txt", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            end_with_children(process)
            return {"failed": f"not done after {seconds:.0f} seconds", "said": last_of(said.name)}
        except BaseException:  # Ctrl-C: nothing goes on behind it
            end_with_children(process)
            raise
    spent = time.perf_counter() - start
    if process.returncode:
        return {"failed": f"ended with {process.returncode}", "said": last_of(said.name), "seconds": spent}
    try:
        found = figures_of_run(out) if part.is_run else json.loads(kept.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, LookupError) as error:
        return {"failed": f"left no figures ({error})", "said": last_of(said.name), "seconds": spent}
    return {**found, "seconds_of_part": spent}


def end_with_children(process: subprocess.Popen[Any]) -> None:
    """End a part, and the processes that it has begun: they would hold the GPU's memory."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_of(said: str) -> str:
    return Path(said).read_text(encoding="utf-8", errors="replace").strip()[-TAIL:]


def figures_of_run(out: Path) -> Figures:
    """Of a run of dagrpo.py: seconds by part, accuracy before and after, the largest sampler_gap, peak memory."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "step" in record]
    accuracy = [json.loads(line) for line in (out / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    parts = sorted({name for record in steps for name in record if name.startswith("seconds/")})
    return {
        **{name: sum(record.get(name, 0.0) for record in steps) for name in parts},
        "sampler_gap": max(record.get("sampler_gap", 0.0) for record in steps),
        "peak_memory_gb": max(record["peak_memory_gb"] for record in steps),
        "memory_estimate_gb": records[0]["memory_estimate_gb"]["total"],
        "evaluations": [{name: one[name] for name in one if name != "rows"} for one in accuracy],
    }


def run_all(parts: dict[str, Part], seconds: float, path: Path) -> dict[str, Figures]:
    """Run the parts, one after the other; the file is whole after each of them."""
    end = time.monotonic() + seconds
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # empty, and shared: what one part compiles, the next one reads
        for name, part in parts.items():
            print(f"{name:16} {' '.join(part.command)}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                found[name] = figures_of(part, min(part.seconds, end - time.monotonic()), Path(folder))
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The column of docs/speed.md
# ---------------------------------------------------------------------------------------------------------------------


def share(figures: Figures) -> str:
    return f"{figures['bandwidth_share']:.0%}"


def gaps(figures: Figures) -> str:
    gap, yardstick = figures["gap"], figures["yardstick"]
    return f"{gap['mean']:.1e}, at most {gap['max']:.1e} (trainer and fp32: {yardstick['mean']:.1e})"


def estimates(figures: Figures) -> str:
    return ", ".join(f"{one['ratio']:.2f}" for one in figures["settings"].values())


def warm(figures: Figures) -> str:
    return f"{figures['warm_up']:.0f} s"


def scored(figures: Figures) -> str:
    return f"{figures['share_of_scoring']:.1%}"


def seconds_of_run(figures: Figures) -> str:
    return f"{figures['seconds_of_part']:.0f} s"


def ratio(figures: Figures) -> str:
    return f"{figures['ratio']:.2f}"


def with_checkpointing(figures: Figures) -> str:
    return f"{figures['ratio']:.2f}; with `--checkpointing` {figures['ratio_with_checkpointing']:.2f}"


def gap_of_run(figures: Figures) -> str:
    return f"{figures['sampler_gap']:.1e}"


def compiled(figures: Figures) -> str:
    return f"{figures['ratio and loss, with backward']['first_call']:.1f} s"


ROWS: list[tuple[str, str, Callable[[Figures], str]]] = [  # what it is, the beginning of the parts' names, the figure
    ("tokens/s of sampling ÷ `generate`", "rollout-", ratio),
    ("tokens/s of sampling ÷ `generate_batch`", "continuous-", ratio),
    ("tokens/s of sampling ÷ vLLM's", "vllm-", ratio),
    ("share of the memory-bandwidth limit while sampling", "rollout-", share),
    ("seconds of a whole step, TRL ÷ ours", "step", ratio),
    ("seconds of forward and backward, full logits ÷ ours", "update", ratio),
    ("peak memory of an update, ours ÷ full logits", "update-memory", with_checkpointing),
    ("scoring's share of a DaGRPO step", "scoring", scored),
    ("warm-up of the sampler, once a run", "warm-up", warm),
    ("first call of the fused loss", "compiling", compiled),
    ("`python dagrpo.py`, the embedded example", "embedded", seconds_of_run),
    ("the same: largest mean `sampler_gap` of a step", "embedded", gap_of_run),
    ("sampler and trainer in bf16, nats", "gap", gaps),
    ("memory, estimate ÷ measured", "estimate", estimates),
]


def column(found: dict[str, Figures]) -> str:
    """The table's rows in Markdown. A part that failed says so; parts that were not asked for have no row."""
    lines = ["| | one GPU |", "| --- | --- |"]
    for title, start, figure in ROWS:
        cells = []
        for name, figures in found.items():
            if name == start or (start.endswith("-") and name.startswith(start)) or name == f"{start}-lora":
                size = name.removeprefix(start).strip("-").upper().replace("B", " B")
                shown = f"failed: {figures['failed']}" if "failed" in figures else figure(figures)
                cells.append(f"{size}: {shown}" if size else shown)
        if cells:
            lines.append(f"| {title} | {'; '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the commands out")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that all parts may take together")
    parser.add_argument("--json", default="gpu.json", help="file of all figures")
    options = parser.parse_args(arguments)
    parts = parts_for_a_try() if options.tiny else parts_for_gpu()
    for name in options.only:
        if name not in parts:
            parser.error(f"--only {name}: there is no such part; there are {', '.join(parts)}.")
    if not options.tiny and not has_gpu():
        parser.error("there is no CUDA GPU here; --tiny tries the commands out without one.")
    parts = {name: part for name, part in parts.items() if not options.only or name in options.only}
    found = run_all(parts, options.seconds, Path(options.json))
    print(column(found))
    for name, figures in found.items():
        if "failed" in figures and "said" in figures:
            print(f"\n{name}: {figures['failed']}. The last that it said:\n{figures['said']}", file=sys.stderr)
    print(f"\nAll figures: {options.json}", file=sys.stderr)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
