"""Runs on two processes against the same run on one. Skipped where TRL is not installed.

The completions are given, so that they do not depend on the number of processes; groups of eight lie on both of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

WORKER = Path(__file__).parent / "trl_worker.py"
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP += ["--fsdp_state_dict_type", "FULL_STATE_DICT"]


def run(out: Path, processes: int, launch: list[str] | None = None, **options: Any) -> tuple[dict, list[dict]]:
    """Weights and batches of a run of 24 completions a step."""
    out.mkdir()
    settings = {"num_generations": 8, "per_device_train_batch_size": 8 // processes, "gradient_accumulation_steps": 3}
    settings |= {"out": str(out), "learning_rate": 1e-4, "hard_below": 0.5, **options}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", *(launch or ["--multi_gpu"]), "--num_machines", "1"]
        command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "--num_cpu_threads_per_process", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    ended = subprocess.run(
        [*command, str(WORKER), json.dumps(settings)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return torch.load(out / "weights.pt"), torch.load(out / "batches.pt")


def check_equal(one: tuple[dict, list[dict]], other: tuple[dict, list[dict]]) -> None:
    """The masks of every batch are equal, and the weights are but for rounding."""
    assert len(one[1]) == len(other[1]) == 3
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine["is_anchor"] == theirs["is_anchor"]
        for name in ("rewards", "pair_mask", "advantages"):
            assert torch.equal(mine[name], theirs[name]), name
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, atol=1e-5, rtol=0, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "run", 1, rectify="group")


def test_the_runs_have_what_is_to_be_compared(alone):
    assert any(not bool(batch["pair_mask"].all()) for batch in alone[1])
    assert any(any(batch["is_anchor"]) for batch in alone[1])


def test_two_processes_mask_and_learn_as_one(alone, tmp_path):
    check_equal(alone, run(tmp_path / "run", 2, rectify="group"))


def test_two_processes_that_share_the_weights_mask_and_learn_as_one(alone, tmp_path):
    """FSDP 2: the head is gathered, 272 × 128 floats, and from the second step on AdamW's two moments of it."""
    shared = run(tmp_path / "run", 2, FSDP, rectify="group")
    check_equal(alone, shared)
    assert [batch["bytes"] for batch in shared[1]] == [[4.0 * 272 * 128], [12.0 * 272 * 128], [12.0 * 272 * 128]]


def test_an_adapter_is_judged_by_the_base_models_head_on_one_process_and_on_two(tmp_path):
    pytest.importorskip("peft")
    one = run(tmp_path / "one", 1, rectify="threshold", lora=True)
    check_equal(one, run(tmp_path / "two", 2, rectify="threshold", lora=True))
    assert any(not bool(batch["pair_mask"].all()) for batch in one[1])
    assert any("lora_A" in name for name in one[0])
