"""DaGRPO inside TRL's trainer. Skipped where TRL is not installed: pip install "trl>=1.12,<=1.16.99" """

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

trl = pytest.importorskip("trl")

from trl_training import questions_of_example, rows, settings, trained  # noqa: E402

from harness.config import EXAMPLE, ConfigError  # noqa: E402
from scale import versions  # noqa: E402
from scale.trl_dagrpo import DaGRPOTrainer, main, parse  # noqa: E402


def test_without_rectification_and_anchors_it_is_grpo_of_trl_to_the_bit(tmp_path):
    dataset = rows(questions_of_example(12))
    args = settings(tmp_path, rectify="none", anchors="none")
    ours = trained(DaGRPOTrainer, args, dataset).model.state_dict()
    theirs = trained(trl.GRPOTrainer, args, dataset).model.state_dict()
    start = trl.trainer.utils.create_model_from_path(str(EXAMPLE)).state_dict()
    assert any(not torch.equal(theirs[name], start[name]) for name in start)  # it has learned something
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def test_the_command_trains_on_a_jsonl_file_and_saves_a_model(tmp_path, small_data):
    main(
        f"--model {EXAMPLE} --data {small_data}/train.jsonl --output_dir {tmp_path} --max_steps 1 --use_cpu "
        "--num_generations 2 --per_device_train_batch_size 4 --max_completion_length 8 --report_to none "
        "--logging_steps 1 --rectify none --anchors none --hold_out 1".split()
    )
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--rectify some", "--rectify some: it must be one of none, threshold, pair, group, batch, token."),
        ("--group-size 4", "--group-size: there is no such flag: it is --num_generations here."),
        ("--num_generation 4", "--num_generation: there is no such flag. Did you mean --num-generations?"),
        ("--per_device_train_batch_size 3", "generation_batch_size (3) must be divisible by num_generations (8)."),
        ("--max_steps many", "--max_steps/--max-steps: invalid int value: 'many'."),
        ("--loss_type cispo", "--loss_type cispo: DaGRPO needs one of dr_grpo, grpo, dapo, bnpo."),
        ("--scale_rewards batch", "--scale_rewards batch: DaGRPO needs one of group, none."),
        ("--importance_sampling_level sequence", "it must be token, or train with --anchors none."),
    ],
)
def test_a_wrong_command_line_is_answered_by_one_sentence(flags, said, tmp_path):
    with pytest.raises(ConfigError) as complaint:
        parse(f"--output_dir {tmp_path} --use_cpu --model {EXAMPLE} --data x.jsonl {flags}".split())
    assert said in str(complaint.value) and "\n" not in str(complaint.value)


@pytest.mark.parametrize("installed", ["1.11.9", "1.17.0", "2.0.0", None])
def test_trl_outside_of_the_tested_versions_is_refused(monkeypatch, installed):
    def version(package):
        if installed is None:
            raise versions.PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(versions, "version", version)
    assert 'pip install "trl>=1.12,<=1.16.99"' in versions.fault_of_trl()


def test_without_trl_the_command_ends_with_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'trl':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "scale.trl_dagrpo", "--model", "none"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=EXAMPLE.parent.parent)
    assert ended.returncode == 1
    assert ended.stderr == f"scale.trl_dagrpo: the package trl is missing. Run: {versions.INSTALL}\n"
