"""Checkpoints of a run, and going on from one: no accident costs more than the steps since the newest of them.

    RUN/checkpoints/step-50/model/                  an ordinary Hugging Face directory
                                                    (with --lora an adapter, beside which merged/ may be)
                            optimizer.safetensors   AdamW's moments, and the states of random generators
                            state.json              step, optimizer steps, place in the stream of questions, ...
                            manifest.json           size and SHA-256 of each file: written last
    RUN/model/                                      the files of the newest checkpoint's model, without a copy;
                                                    with --merge of its merged/

A checkpoint is written beside the others, flushed to the disk and renamed, by a thread, from a copy in memory: a kill
at any moment leaves the one before. What is resumed gives the same metrics, samples and weights as what never stopped
(on a CPU to the bit). Nothing here is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policy.lora import adapter_state, has_adapter, save_adapter, save_merged
from policy.optimizer import restore_state, state_tensors

PART = ".part"  # ends the names of what is being written


class Trained(Protocol):
    """What a checkpoint is of: harness.learner.Learner."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    half_changed: bool


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def taken(self) -> int:
        """Questions that the run has taken from its stream."""
        return int(self.state["taken"])

    @property
    def model(self) -> str:
        return str(self.path / "model")


# ---------------------------------------------------------------------------------------------------------------------
# What a checkpoint holds
# ---------------------------------------------------------------------------------------------------------------------


def copied(learner: Trained) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Copies in memory: the weights, with what is tied still tied, and the moments by parameter.

    Of a model with an adapter, that alone: the other weights stay what they are.
    """
    copies: dict[int, torch.Tensor] = {}
    weights = {}
    state = adapter_state(learner.model) if has_adapter(learner.model) else learner.model.state_dict()
    for name, value in state.items():
        place = value.data_ptr()
        if place not in copies or copies[place].shape != value.shape:
            copies[place] = value.detach().to("cpu", copy=True)
        weights[name] = copies[place]
    tensors = {}
    for name, parameter in learner.model.named_parameters():
        for moment, value in state_tensors(learner.optimizer, parameter).items():
            tensors[f"{moment}.{name}"] = value.to("cpu", copy=True)
    return weights, tensors


def changes(learner: Trained) -> int:
    """How often weights and moments were changed in place, as PyTorch counts; equal before and after: nothing was.

    The count of a fused AdamW's weights stands still; that of its `step` goes up before they change.
    """
    moments = (value for state in learner.optimizer.state.values() for value in state.values())
    tensors = (value for value in moments if isinstance(value, torch.Tensor))
    return sum(value._version for value in (*learner.model.parameters(), *tensors))


@dataclass(frozen=True)
class Generators:
    """The states of PyTorch's, NumPy's and Python's random numbers."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


def generators_of() -> Generators:
    tensors = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    kind, keys, *rest = np.random.get_state()
    return Generators(tensors, {"random": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]})


def write_checkpoint(
    whole: Path,
    learner: Trained,
    weights: dict[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    state: dict[str, Any],
    merge: bool = False,
) -> None:
    """Write a checkpoint beside its place, flush it to the disk, and move it there. Leaves nothing where it fails.

    With `merge`, a model with an adapter is also written as a whole one.
    """
    part = whole.with_name(whole.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if has_adapter(learner.model):
            save_adapter(learner.model, weights, part / "model")
        else:
            learner.model.save_pretrained(part / "model", state_dict=weights)
        learner.tokenizer.save_pretrained(part / "model")
        if merge and has_adapter(learner.model):
            save_merged(learner.model, weights, part / "merged")
            learner.tokenizer.save_pretrained(part / "merged")
        save_file(tensors, part / "optimizer.safetensors")
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        write_manifest(part)
        flush(part)
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
        flush_folder(whole.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def restore(learner: Trained, checkpoint: Checkpoint) -> None:
    """Put optimizer, schedule and random generators where the checkpoint has them; the model was loaded from it."""
    tensors, state = load_file(checkpoint.path / "optimizer.safetensors"), checkpoint.state
    kept: dict[str, dict[str, torch.Tensor]] = {}  # by parameter
    for key, value in tensors.items():
        moment, _, name = key.partition(".")
        kept.setdefault(name, {})[moment] = value
    for name, parameter in learner.model.named_parameters():
        if name in kept:
            restore_state(learner.optimizer, parameter, kept[name])
    schedule = learner.schedule.state_dict()
    learner.schedule.load_state_dict({**schedule, "last_epoch": state["updates"], "_step_count": state["updates"] + 1})
    for group, first, rate in zip(
        learner.optimizer.param_groups, learner.schedule.base_lrs, learner.schedule.lr_lambdas, strict=True
    ):
        group["lr"] = first * rate(state["updates"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    version, numbers, gauss = state["random"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


# ---------------------------------------------------------------------------------------------------------------------
# Files that are whole or not there
# ---------------------------------------------------------------------------------------------------------------------


def kept_checkpoints(out: Path) -> list[Path]:
    """The folders of checkpoints, whole or damaged, the newest first."""
    folder = out / "checkpoints"
    found = [path for path in folder.glob("step-*") if path.is_dir() and re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def newest(out: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a note for each damaged one that is newer."""
    notes: list[str] = []
    for path in kept_checkpoints(out):
        fault = fault_of(path)
        if fault is None:
            return Checkpoint(path, json.loads((path / "state.json").read_text(encoding="utf-8"))), notes
        notes.append(f"{path}: this checkpoint is damaged ({fault}); the one before it is used.")
    return None, notes


def write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (folder / "manifest.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as its manifest knows it; None where it is whole."""
    try:
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "manifest.json is missing or cannot be read"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes in place of {expected['bytes']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} is not what was written"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Have the disk write what it may still hold in memory."""
    for path in (*folder.rglob("*"), folder):
        flush_folder(path) if path.is_dir() else flush_file(path)


def flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Replace a file: at any moment it has the old text or the new one."""
    part = path.with_name(path.name + PART)
    part.write_text(text, encoding="utf-8")
    flush_file(part)
    part.replace(path)


def model_to_publish(checkpoint: Path) -> Path:
    """The folder of its model; where there is a merged one beside an adapter, that."""
    merged = checkpoint / "merged"
    return merged if merged.exists() else checkpoint / "model"


def publish(model: Path, target: Path) -> None:
    """Give the files of a folder a second place, without a copy where the file system can."""
    part, old = target.with_name(target.name + PART), target.with_name(f"{target.name}.old{PART}")
    for path in (part, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(model, part, copy_function=link_or_copy)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def records_of(path: Path) -> list[dict[str, Any]]:
    """The object of each whole line."""
    return [json.loads(line) for line in whole_lines(path)]


def whole_lines(path: Path) -> list[str]:
    """The lines that are JSON: a kill may have cut off the last one. Nothing where there is no file."""
    lines: list[str] = []
    for line in [] if not path.exists() else path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            json.loads(line)
            lines.append(line)
    return lines
