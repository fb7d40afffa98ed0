"""The groups that a run keeps in samples.jsonl, as pictures and pages of them show them.

A group is a line of the file: its question, its completions with rewards and advantages, how distinct each two are, and
which pairs are masked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import records_of
from questions import DataError
from scorers.judge import THRESHOLD as JUDGED_THRESHOLD
from scoring import SCORERS, rectified_advantages

Group = dict[str, Any]


def all_groups(folder: Path) -> list[Group]:
    """Every group that a run has kept, in order. Raises DataError where it has no samples.jsonl."""
    path = folder / "samples.jsonl"
    if not path.is_file():
        raise DataError(f"{path} does not exist; name the folder of a run (--out of dagrpo.py).")
    return records_of(path)


def groups_of(folder: Path, step: int) -> list[Group]:
    """The groups of a step. Raises DataError where there is none."""
    groups = all_groups(folder)
    of_step = [group for group in groups if group["step"] == step]
    if not of_step:
        steps = [group["step"] for group in groups] or [0]
        raise DataError(f"--step {step}: {folder / 'samples.jsonl'} has the steps {min(steps)} to {max(steps)}.")
    return of_step


def sorted_by_reward(group: Group) -> Group:
    """The same group, best completions first, so that pairs of different rewards make up one block of the heat map."""
    answers = group["answers"]
    order = sorted(range(len(answers)), key=lambda i: -answers[i]["reward"])
    place = {i: n for n, i in enumerate(order)}
    d = group["distinctiveness"]
    return {
        **group,
        "answers": [answers[i] for i in order],
        "distinctiveness": d and [[d[i][j] for j in order] for i in order],
        "masked_pairs": [[place[i], place[j]] for i, j in group["masked_pairs"]],
    }


def unmasked_advantages(group: Group, scale: str) -> list[float]:
    """What equation (1) gives without masks and anchors; an anchor counts as 0, as the failing answer did before it."""
    rewards = torch.tensor([[0.0 if answer["anchor"] else answer["reward"] for answer in group["answers"]]])
    size = rewards.shape[1]
    return rectified_advantages(rewards, torch.ones(1, size, size, dtype=torch.bool), scale=scale)[0].tolist()


def masking_of(config: dict[str, Any]) -> str:
    """How the run masked pairs, in a few words."""
    threshold = config["threshold"]
    if config["rectify"] == "threshold":
        usual = SCORERS[config["scorer"]].threshold if config["scorer"] in SCORERS else JUDGED_THRESHOLD
        return f"d < {usual if threshold is None else threshold:g}"
    return "none" if config["rectify"] == "none" else "rule (5)"
