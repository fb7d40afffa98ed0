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
from judge_server import JudgeServer

pytest.importorskip("trl")

from trl_training import OWN

WORKER = Path(__file__).parent / "trl_worker.py"
FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP += ["--fsdp_state_dict_type", "FULL_STATE_DICT"]
DEEPSPEED = ["--use_deepspeed", "--zero_stage", "3", "--zero3_save_16bit_model", "true"]


GROUP, LORA = {"rectify": "group"}, {"rectify": "threshold", "lora": True}
Run = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]  # weights and batches


def run(folder: Path, processes: int, launch: list[str], **runs: dict[str, Any]) -> dict[str, Run]:
    """Runs of 24 completions a step, by name, one after the other on the same processes."""
    settings: dict[str, Any] = {"num_generations": 8, "learning_rate": 1e-4, "hard_below": 0.5}
    settings |= {"per_device_train_batch_size": 8 // processes, "gradient_accumulation_steps": 3}
    listed = []
    for name, options in runs.items():
        (folder / name).mkdir()
        listed.append({**settings, "out": str(folder / name), **options})
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", *launch, "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "--num_cpu_threads_per_process", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    ended = subprocess.run(
        [*command, str(WORKER), json.dumps(listed)], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {name: (torch.load(folder / name / "weights.pt"), torch.load(folder / name / "batches.pt")) for name in runs}


def check_equal(one: Run, other: Run) -> None:
    """The masks of every batch are equal, and the weights are but for rounding."""
    assert len(one[1]) == len(other[1]) > 0
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine["is_anchor"] == theirs["is_anchor"] and mine["masked_tokens"] == theirs["masked_tokens"]
        for name in ("rewards", "pair_mask", "advantages", "withheld"):
            assert torch.equal(mine[name], theirs[name]), name
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, atol=1e-5, rtol=0, msg=name)


@pytest.fixture(scope="module")
def single_steps(tmp_path_factory):
    """Runs of a step or two: by a judge, a function of the user's, single tokens, and the batch with its momentum."""
    folder, server = tmp_path_factory.mktemp("judges"), JudgeServer()
    (folder / "mine.py").write_text(OWN)
    judge = {"scorer": "judge", "judge_url": server.url, "judge_model": "m", "judge_cache": str(folder / "kept")}
    yield {
        "judge": {**judge, "max_steps": 1},
        "own": {"scorer": f"{folder}/mine.py:scores", "max_steps": 1},
        "token": {"rectify": "token", "max_steps": 1},
        "batch": {"rectify": "batch", "loss_type": "dapo", "max_steps": 2},
    }
    server.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, single_steps):
    pytest.importorskip("peft")
    return run(tmp_path_factory.mktemp("alone"), 1, [], group=GROUP, lora=LORA, **single_steps)


def test_the_runs_have_what_is_to_be_compared(alone):
    for name, (_, batches) in alone.items():
        assert name == "token" or any(not bool(batch["pair_mask"].all()) for batch in batches)
    assert bool((alone["token"][1][0]["withheld"] != 0).any())
    assert len(alone["group"][1]) == len(alone["lora"][1]) == 3
    assert any(any(batch["is_anchor"]) for batch in alone["group"][1])
    assert any("lora_A" in name for name in alone["lora"][0])


def test_two_processes_mask_and_learn_as_one_with_an_adapter_too_and_by_judges(alone, single_steps, tmp_path):
    asked_again = {**single_steps, "judge": {**single_steps["judge"], "judge_cache": str(tmp_path / "kept")}}
    both = run(tmp_path, 2, ["--multi_gpu"], group=GROUP, lora=LORA, **asked_again)
    for name, found in both.items():
        check_equal(alone[name], found)


HEADS = [[4.0 * 272 * 128], [12.0 * 272 * 128], [12.0 * 272 * 128]]  # from the second step on with AdamW's two moments


def test_two_processes_that_share_the_weights_by_fsdp_2_mask_and_learn_as_one(alone, tmp_path):
    shared = run(tmp_path, 2, FSDP, group=GROUP)["group"]
    check_equal(alone["group"], shared)
    assert [batch["bytes"] for batch in shared[1]] == HEADS


def test_two_processes_that_share_the_weights_by_deepspeed_3_mask_and_learn_as_one(alone, tmp_path):
    pytest.importorskip("deepspeed")
    shared = run(tmp_path, 2, DEEPSPEED, group=GROUP)["group"]
    check_equal(alone["group"], shared)
    assert [batch["bytes"] for batch in shared[1]] == HEADS
