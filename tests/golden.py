"""Did a change of the structure change what is computed? Short runs of two checkouts, compared to the bit.

    git worktree add /tmp/before 881695f
    python tests/golden.py /tmp/before [--only NAME ...]

Each run of RUNS is made by the dagrpo.py of the other checkout and by this one, on the embedded example with one
thread. Metrics (but for seconds and memory), samples, evaluations and weights must be equal. Runs are kept in
runs/golden/: those of the other checkout are made once, those of this one each time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "golden"
MEASURED = ("seconds/", "tokens_per_s/", "peak_memory_gb", "memory_estimate_gb")  # differ from run to run
SHORT = "--eval-samples 1 --steps 2 --questions 12"
# The flags of a run; where the other checkout spells them otherwise, its own behind them.
RUNS: dict[str, tuple[str, ...]] = {
    "dagrpo": ("",),
    "luffy": ("--method luffy",),
    "dapo": ("--method dapo",),
    "sft": ("--method sft",),
    "token-rectification": ("--rectify token",),
    "two-updates-kl": ("--updates 2 --kl 0.01",),
    "grpo": (f"--method grpo {SHORT}",),
    "dr_grpo": (f"--method dr_grpo {SHORT}",),
    "state": (f"--scorer state {SHORT}",),
    "token-scorer": (f"--scorer token --threshold 0.3 {SHORT}",),
    "no-mask": (f"--rectify none {SHORT}", f"--scorer none {SHORT}"),
    "pair": (f"--rectify pair {SHORT}", f"--threshold auto {SHORT}"),
    "pair-sequence": (f"--rectify pair --loss-norm sequence {SHORT}", f"--threshold auto --loss-norm sequence {SHORT}"),
    "token-sequence-state": (f"--rectify token --scorer state --loss-norm sequence --gamma 0.1 {SHORT}",),
    "plain-anchors": (f"--anchor-objective sft --hard-below 0.25 --scale none --top-p 0.9 --temperature 0.8 {SHORT}",),
    "small-batches": (f"--token-budget 300 --checkpointing --entropy-bonus 0.01 {SHORT}",),
}


def run(checkout: Path, flags: str, out: Path) -> None:
    command = [sys.executable, "dagrpo.py", "--steps", "3", "--seed", "0", "--device", "cpu", "--out", str(out)]
    given = flags.split()
    if "--steps" in given:
        del command[2:4]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *given], cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"golden.py: {checkout}/dagrpo.py {flags} failed:\n{done.stderr[-2000:]}")


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what is measured by a clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(MEASURED)} for line in lines]


def differences(before: Path, after: Path) -> list[str]:
    """What two runs differ in: names of metrics with both values, or of files."""
    found = []
    pairs = zip(steps_of(before), steps_of(after), strict=True)
    for number, (old, new) in enumerate(pairs):
        for name in sorted(old):  # new ones may have come
            if old[name] != new.get(name):
                found.append(f"line {number}: {name} was {old.get(name)}, is {new.get(name)}")
    evaluations = [
        [json.loads(line) for line in (out / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
        for out in (before, after)
    ]
    if not contains(evaluations[1], evaluations[0]):
        found.append("evaluations.jsonl differs")
    for name in ("samples.jsonl", "model/model.safetensors"):
        if (before / name).read_bytes() != (after / name).read_bytes():
            found.append(f"{name} differs")
    return found


def contains(new: Any, old: Any) -> bool:
    """Is all of the old there, unchanged? New fields may have come."""
    if isinstance(old, dict):
        return all(name in new and contains(new[name], value) for name, value in old.items())
    if isinstance(old, list):
        return len(new) == len(old) and all(map(contains, new, old))
    return new == old


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=", ".join(RUNS))
    options = parser.parse_args()
    changed = 0
    for name in options.only:
        now, then = RUNS[name][0], RUNS[name][-1]
        before, after = FOLDER / "before" / name, FOLDER / "after" / name
        if not (before / "model" / "model.safetensors").exists():
            run(options.before.resolve(), then, before)
        if after.exists():
            for path in sorted(after.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        run(ROOT, now, after)
        found = differences(before, after)
        changed += bool(found)
        print(f"{name:24} {'equal' if not found else '; '.join(found[:5])}", flush=True)
    sys.exit(f"golden.py: {changed} of {len(options.only)} runs changed." if changed else None)


if __name__ == "__main__":
    main()
