"""Kill a run at random moments, resume it, and compare it with one that never stopped.

    python benchmarks/kill.py                50 runs of the embedded model, each killed by SIGKILL and resumed
    python benchmarks/kill.py --count 5      fewer

Each run has 8 steps with a checkpoint at every one; writing is slowed down, so that about every second kill falls into
the middle of it. A run is killed one to three times, at moments drawn anew, and resumed until it ends. Equal means:
the same metrics but for the clock, the same samples and evaluations, the same weights and moments to the bit, no file
that cannot be read, none left that was half-written. Exit status 1 where one is not. Works where processes can fork.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import dagrpo  # noqa: E402
from harness import checkpoint  # noqa: E402
from harness.config import EXAMPLE, Config, configure  # noqa: E402
from harness.runs import LOGS, resumed_config  # noqa: E402

CLOCK = ("seconds/", "tokens_per_s/", "peak_memory_gb")  # what no two runs have in common
SLOWER = 0.15  # seconds that are added to each of two places in the writing of a checkpoint


def settings(out: Path) -> Config:
    return configure(
        model=str(EXAMPLE), data=[str(EXAMPLE / "train.jsonl")], out=str(out), steps=8, questions=4, group_size=4,
        max_new_tokens=100, hold_out=6, eval_samples=1, eval_every=4, save_every=1, learning_rate=1e-3, warmup=3,
        resample=1,
    )  # fmt: skip


def train_slowly(config: Config) -> None:
    """A training whose checkpoints take long to write."""
    write_manifest, flush_folder = checkpoint.write_manifest, checkpoint.flush_folder

    def slow_manifest(folder: Path) -> None:
        time.sleep(SLOWER)
        write_manifest(folder)

    def slow_flush(path: Path) -> None:
        flush_folder(path)
        if path.name == "checkpoints":  # behind the renaming, before model/ is replaced
            time.sleep(SLOWER)

    checkpoint.write_manifest, checkpoint.flush_folder = slow_manifest, slow_flush
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        dagrpo.train(config)


def in_child(config: Config, seconds: float) -> tuple[bool, bool]:
    """Train in a process of its own, killed after so many seconds. -> did it end by itself, was it writing"""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            train_slowly(config)
        except BaseException as error:
            print(f"{config.out}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"{config.out}: the run failed. In it: {sorted(Path(config.out).rglob('*'))}")
            return True, False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, bool(list(Path(config.out).rglob(f"*{checkpoint.PART}")))


def left_by(out: Path) -> dict[str, Any]:
    """Everything that must be the same. Raises where a file cannot be read, or one is left that should be gone."""
    found: dict[str, Any] = {}
    for name in LOGS:
        records = [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]
        found[name] = [
            {key: value for key, value in record.items() if not key.startswith(CLOCK)}
            for record in records
            if "step" in record
        ]
    newest, notes = checkpoint.newest(out)
    assert newest is not None and not notes, notes
    for path in sorted(newest.path.rglob("*.safetensors")):
        found[str(path.relative_to(out))] = {name: value.numpy().tobytes() for name, value in load_file(path).items()}
    found["model"] = {
        name: value.numpy().tobytes() for name, value in load_file(out / "model/model.safetensors").items()
    }
    found["checkpoints"] = [path.name for path in checkpoint.kept_checkpoints(out)]
    found["files"] = sorted(path.name for path in out.iterdir())
    leftovers = [str(path) for path in out.rglob("*") if checkpoint.PART in path.name]
    assert not leftovers, leftovers
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    equal = kills = writing = early = 0
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        in_child(settings(Path(folder) / "unbroken"), 3_600)
        whole = time.monotonic() - start
        expected = left_by(Path(folder) / "unbroken")
        for number in range(options.count):
            out = Path(folder) / f"run-{number}"
            config, ended, left = settings(out), False, rng.randint(1, 3)
            while not ended:
                ended, wrote = in_child(config, rng.uniform(0, whole) if left else 3_600)
                kills += not ended
                writing += wrote
                left -= 1
                if (out / "config.json").exists():
                    early += checkpoint.newest(out)[0] is None
                    config = resumed_config({"resume": str(out)})
            differ = [name for name, value in left_by(out).items() if value != expected[name]]
            equal += not differ
            print(f"run {number + 1}: {'equal' if not differ else 'differs in ' + ', '.join(differ)}", flush=True)
    print(
        f"{equal} of {options.count} runs equal the unbroken one; {kills} kills, {writing} of them in the middle of "
        f"writing, {early} before the first checkpoint. A whole run takes {whole:.1f} s."
    )
    sys.exit(equal < options.count)


if __name__ == "__main__":
    main()
