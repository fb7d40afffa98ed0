"""benchmarks/gpu.py: parts that fail or hang, the table, and that its commands know their flags."""

from __future__ import annotations

import json
import time
from pathlib import Path

import gap
import gpu
import memory
import pytest
import speed

from harness.config import configure, parse

FIGURES = {
    "warm-up": {"warm_up": 31.4},
    "rollout-1.5b": {"ratio": 4.0, "bandwidth_share": 0.5},
    "rollout-7b": {"failed": "not done after 75 seconds"},
    "gap": {"gap": {"mean": 1e-3, "max": 0.1}, "yardstick": {"mean": 2e-3}},
    "update-memory": {"ratio": 0.3, "ratio_with_checkpointing": 0.1},
    "update": {"ratio": 2.5},
    "embedded": {"seconds_of_part": 61.0, "sampler_gap": 2e-3},
    "scoring": {"share_of_scoring": 0.031},
    "estimate": {"settings": {"language model": {"ratio": 1.1}}},
    "compiling": {"ratio and loss, with backward": {"first_call": 12.0}},
}  # fmt: skip
TABLE = """\
| | one GPU |
| --- | --- |
| tokens/s of sampling ÷ `generate` | 1.5 B: 4.00; 7 B: failed: not done after 75 seconds |
| share of the memory-bandwidth limit while sampling | 1.5 B: 50%; 7 B: failed: not done after 75 seconds |
| seconds of forward and backward, full logits ÷ ours | 2.50 |
| peak memory of an update, ours ÷ full logits | 0.30; with `--checkpointing` 0.10 |
| scoring's share of a DaGRPO step | 3.1% |
| warm-up of the sampler, once a run | 31 s |
| first call of the fused loss | 12.0 s |
| `python dagrpo.py`, the embedded example | 61 s |
| the same: largest mean `sampler_gap` of a step | 2.0e-03 |
| sampler and trainer in bf16, nats | 1.0e-03, at most 1.0e-01 (trainer and fp32: 2.0e-03) |
| memory, estimate ÷ measured | 1.10 |"""


def script(path: Path, code: str) -> str:
    path.write_text("import json, subprocess, sys, time\n" + code)
    return str(path)


def test_a_part_that_fails_costs_its_own_row_alone(tmp_path):
    writes = "open(sys.argv[sys.argv.index('--json') + 1], 'w').write(json.dumps({'ratio': 2.0}))"
    parts = {
        "fails": gpu.Part((script(tmp_path / "fails.py", "sys.exit('no room')"),), 60),
        "silent": gpu.Part((script(tmp_path / "silent.py", ""),), 60),
        "lacks": gpu.Part(("any.py",), 60, needs="no_such_package"),
        "works": gpu.Part((script(tmp_path / "works.py", writes),), 60),
    }
    found = gpu.run_all(parts, 600, tmp_path / "gpu.json")
    assert found["fails"]["failed"] == "ended with 1" and found["fails"]["said"] == "no room"
    assert found["silent"]["failed"].startswith("left no figures")
    assert found["lacks"] == {"failed": "no_such_package is not installed"}
    assert found["works"]["ratio"] == 2.0 and found["works"]["seconds_of_part"] > 0
    assert json.loads((tmp_path / "gpu.json").read_text()) == found


def gone(status: Path) -> bool:
    try:
        return "State:\tZ" in status.read_text()  # ended, and nobody has asked for its end yet
    except OSError:
        return True


def test_a_part_that_hangs_is_ended_with_the_processes_that_it_began(tmp_path):
    """They would hold the GPU's memory, and the next part would fail too."""
    child = "child = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\ntime.sleep(600)"
    start = time.monotonic()
    found = gpu.run_all({"hangs": gpu.Part((script(tmp_path / "hangs.py", child),), 3)}, 600, tmp_path / "gpu.json")
    assert time.monotonic() - start < 60 and found["hangs"]["failed"] == "not done after 3 seconds"
    status = Path(f"/proc/{found['hangs']['said']}/status")
    end = time.monotonic() + 30  # the signal is sent; a busy machine takes its time
    while time.monotonic() < end and not gone(status):
        time.sleep(0.05)
    assert gone(status)


def test_where_no_time_is_left_parts_are_not_begun(tmp_path):
    found = gpu.run_all({"late": gpu.Part(("any.py",), 60)}, 0.5, tmp_path / "gpu.json")
    assert found["late"] == {"failed": "no time was left"}


def test_the_table_by_hand():
    assert gpu.column(FIGURES) == TABLE


@pytest.mark.parametrize("parts", [gpu.parts_for_gpu(), gpu.parts_for_a_try()], ids=["gpu", "tiny"])
def test_every_command_knows_its_flags_and_every_part_has_a_row(parts):
    """What runs on a GPU alone is not run here: a flag that is misspelled would show there first."""
    parsers = {"speed.py": speed.new_parser, "gap.py": gap.new_parser, "memory.py": memory.new_parser}
    for name, part in parts.items():
        program, *flags = part.command
        if part.is_run:
            configure(**parse(flags))
        else:
            parsers[program]().parse_args([*flags, "--json", "x"])
        starts = [start for _, start, _ in gpu.ROWS]
        assert any(name in (start, f"{start}-lora") or name.startswith(start + "") for start in starts), name
    assert sum(part.seconds for part in gpu.parts_for_gpu().values()) < 2 * gpu.SECONDS


def test_a_part_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--only", "gup"])
    assert "--only gup: there is no such part; there are warm-up, rollout-tiny, gap" in capsys.readouterr().err


def test_two_parts_from_end_to_end(tmp_path, capsys):
    """As --tiny runs them all."""
    gpu.main(["--tiny", "--only", "gap", "embedded", "--json", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["gap"]["gap"]["mean"] < 0.02 and found["embedded"]["seconds/train"] > 0
    assert "| sampler and trainer in bf16, nats | " in capsys.readouterr().out
