"""A training on a CPU beside another busy program: how much slower is it, and what helps?

    python benchmarks/crowded.py

Steps of the embedded run are timed alone and beside a process that keeps one processor busy, each with the settings of
OpenMP as they are and with others. OpenMP's threads wait for each other in every operation; where one of them has lost
its processor, the others spin, and what they spin on is the time of the other program too. Prints medians over
alternating runs. A run is stopped after --limit seconds, which stand for its step where none was finished.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from measuring import ROOT, report, spread

from study.cells import curves
from study.tasks import read_lines

SETTINGS = {
    "as it is": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
OWN = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")


@contextmanager
def busy() -> Iterator[None]:
    """Another program that keeps one processor busy."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def seconds_a_step(setting: dict[str, str], steps: int, limit: float) -> float:
    """The median over the steps but the first, which warms up; where no other was finished, that one; or the limit."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | setting
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        line = [sys.executable, str(ROOT / "dagrpo.py"), "--out", str(out), "--steps", str(steps)]
        line += ["--device", "cpu", "--no-eval-at-start", "--eval-every", "0", "--eval-samples", "1"]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(line, env=environment, timeout=limit, check=True, capture_output=True)
        metrics = out / "metrics.jsonl"
        records = read_lines(metrics) if metrics.is_file() else []
    found = curves([record for record in records if "step" in record]).get("seconds", [])
    return statistics.median(found[1:] or found or [limit])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each setting, alternating")
    parser.add_argument("--steps", type=int, default=8, help="of each run")
    parser.add_argument("--limit", type=float, default=120, help="seconds of a run")
    parser.add_argument("--json", default="", help="add the figures to this file")
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {name: {"alone": [], "beside a busy program": []} for name in SETTINGS}
    for _ in range(options.runs):
        for name, setting in SETTINGS.items():
            for state, beside in (("alone", nullcontext()), ("beside a busy program", busy())):
                with beside:
                    found[name][state].append(seconds_a_step(setting, options.steps, options.limit))
    rows = [(f"{name}, {state}", spread(values)) for name, states in found.items() for state, values in states.items()]
    title = f"Seconds of a step of the embedded run, median of {options.runs} runs (least to most)"
    report(options, title, rows, {"crowded": found})


if __name__ == "__main__":
    main()
