"""What a page shows, as data: of an evaluation, and of a training run.

The page has an overview, which is small, and blocks: the texts, packed, which it unpacks as they are looked at. So a
page of a hundred thousand completions opens as fast as one of a hundred.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.checkpoint import records_of
from harness.command import shown
from harness.compare import Paired, difference_of, pairs
from harness.config import METHODS, Config
from harness.report import each_value, with_null
from harness.results import RIGHT, Key, Result, question_keys, says_what_is_right, settings_of
from harness.samples import all_groups, masking_of, sorted_by_reward, unmasked_advantages
from questions import DataError

Overview = dict[str, Any]
BLOCK = 500_000  # characters of JSON in a block, about
BINS = 10  # of the length of a completion
IN_BITS = {"right": 1, "truncated": 2, "no_answer": 4}  # what is known of a completion before its text is unpacked
CURVES = (
    "reward", "length/mean", "entropy", "grad_norm", "displaced", "displaced_left", "masked_pairs", "anchored",
    "no_signal",
)  # fmt: skip


@dataclass
class Blocks:
    """The packed texts of a page: zlib in base64, so that no text of a model stands in the page as it is."""

    packed: list[str] = field(default_factory=list)

    def add(self, items: Iterable[Any]) -> dict[str, Any]:
        """Pack a list; gives `first`, the number of its first block, and `starts`, the item each block begins at."""
        first, starts, size = len(self.packed), [0], 0
        texts: list[str] = []
        for number, item in enumerate(items):
            if size > BLOCK:
                self.pack(texts)
                starts.append(number)
                texts, size = [], 0
            texts.append(dumped(item))
            size += len(texts[-1])
        self.pack(texts)
        return {"first": first, "starts": starts}

    def pack(self, texts: list[str]) -> None:
        whole = "[" + ",".join(texts) + "]"
        # A lone surrogate, which a text of a model may hold, has no bytes in UTF-8.
        self.packed.append(base64.b64encode(zlib.compress(whole.encode("utf-8", "replace"), 6)).decode("ascii"))


def dumped(value: Any) -> str:
    """JSON without blanks; figures that are not finite become null."""
    return json.dumps(each_value(value, with_null), ensure_ascii=False, separators=(",", ":"))


# ---------------------------------------------------------------------------------------------------------------------
# An evaluation
# ---------------------------------------------------------------------------------------------------------------------


def evaluation_overview(
    results: dict[str, Result], against: dict[str, Result] | None, names: tuple[str, str], blocks: Blocks
) -> Overview:
    """Figures of every benchmark, and its questions in blocks; with `against`, beside those of another evaluation.

    `names` are what the two are called. Raises DataError where they have no benchmark or no question in common.
    """
    paired: dict[str, Paired] = {}
    notes: list[str] = []
    if against is not None:
        if names[0] == names[1]:
            names = (f"{names[0]} (first)", f"{names[1]} (second)")
        found, notes = pairs({names[0]: results}, {names[1]: against}, force=True)
        paired = {each.name: each for each in found}
    benchmarks = []
    for name, result in results.items():
        other = against[name] if against is not None and name in paired else None
        benchmarks.append(benchmark_overview(name, result, other, paired.get(name), blocks))
    return {"names": names if against is not None else names[:1], "notes": notes, "benchmarks": benchmarks}


def benchmark_overview(
    name: str, result: Result, other: Result | None, paired: Paired | None, blocks: Blocks
) -> Overview:
    """One benchmark, its sides in order: this evaluation, and the one that it stands against."""
    keys = question_keys(result)
    rows = [result["rows"]]
    if other is not None:
        by_key = dict(zip(question_keys(other), other["rows"], strict=True))
        rows.append([by_key.get(key) for key in keys])
    sides = [side_overview(each, own) for each, own in zip([result, other], rows, strict=False) if each is not None]
    overview: Overview = {
        "name": name,
        "questions": len(keys),
        "verdicts": says_what_is_right(result),
        "sides": sides,
        "lengths": by_length([each for each in (result, other) if each is not None]),
        "blocks": blocks.add(question_data(own) for own in zip(*rows, strict=True)),
    }
    for field_name in ("level", "subject"):
        overview[field_name] = kinds_of([row.get(field_name) for row in result["rows"]])
    if paired is not None:
        overview["comparison"], overview["outcomes"] = comparison_of(paired, keys)
    return overview


def comparison_of(paired: Paired, keys: list[Key]) -> tuple[dict[str, Any], str]:
    """The difference with its interval, and of each question w, l or e: won, lost, equal; - where it has no partner."""
    difference = difference_of(paired.by_question)
    signs = {key: "lew"[int(np.sign(value)) + 1] for key, value in zip(paired.keys, paired.by_question, strict=True)}
    outcomes = "".join(signs.get(key, "-") for key in keys)
    figures = {name: getattr(difference, name) for name in ("mean", "low", "high", "p")}
    counts = {"questions": len(paired.keys), "won": outcomes.count("w"), "lost": outcomes.count("l")}
    return figures | counts, outcomes


def side_overview(result: Result, rows: list[dict[str, Any] | None]) -> Overview:
    """Its figures as the file tells them, its settings, and a digit for each completion (IN_BITS)."""
    told = {name: value for name, value in result.items() if name not in ("rows", "settings", "levels", "subjects")}
    return {
        "figures": told,
        "settings": settings_of(result),
        "samples": len(result["rows"][0]["texts"]),
        "knows": [name for name in ("truncated", "extracted") if all(name in row for row in result["rows"])],
        "bits": ["".join(map(str, bits_of(row))) if row is not None else "" for row in rows],
        "levels": by_kind(result, "levels"),
        "subjects": by_kind(result, "subjects"),
    }


def bits_of(row: dict[str, Any]) -> list[int]:
    """Of each completion the sum of what is so of it."""
    count = len(row["texts"])
    truncated, extracted = row.get("truncated", [False] * count), row.get("extracted", [""] * count)
    return [
        IN_BITS["right"] * (reward >= RIGHT)
        + IN_BITS["truncated"] * bool(cut)
        + IN_BITS["no_answer"] * (answer is None)
        for reward, cut, answer in zip(row["rewards"], truncated, extracted, strict=True)
    ]


def question_data(rows: tuple[dict[str, Any] | None, ...]) -> dict[str, Any]:
    """A question with the completions of every side."""
    fields = ("id", "problem", "answer", "choices", "level", "subject")
    own = ("texts", "rewards", "lengths", "truncated", "extracted", "read")
    first = rows[0] or {}
    return {name: first[name] for name in fields if first.get(name) is not None} | {
        "sides": [row and {name: row[name] for name in own if name in row} for row in rows]
    }


def by_length(sides: list[Result]) -> list[list[Any]]:
    """[shortest, longest, completions of each side, their share right or mean reward] of ten classes of length.

    The classes are the same for all sides; empty ones are left out. A side whose file tells no lengths has 0 and None;
    nothing where no file does.
    """
    told = [
        [
            (length, reward)
            for row in side["rows"]
            for length, reward in zip(row["lengths"], row["rewards"], strict=True)
        ]
        if all("lengths" in row for row in side["rows"])
        else []
        for side in sides
    ]
    longest = max((length for own in told for length, _ in own), default=-1)
    width = max(1, -(-(longest + 1) // BINS))
    classes = []
    for low in range(0, longest + 1, width):
        rewards = [[reward for length, reward in own if low <= length < low + width] for own in told]
        if any(rewards):
            scores = [mean_score(own, says_what_is_right(side)) for own, side in zip(rewards, sides, strict=True)]
            classes.append([low, min(low + width - 1, longest), [len(own) for own in rewards], scores])
    return classes


def mean_score(rewards: list[float], are_verdicts: bool) -> float | None:
    """The share of right ones, or the mean reward; None of none."""
    if not rewards:
        return None
    return sum(reward >= RIGHT if are_verdicts else reward for reward in rewards) / len(rewards)


def by_kind(result: Result, name: str) -> list[list[Any]]:
    """[level or subject, questions, accuracy or mean reward] of each that the file has figures of."""
    kinds = {str(kind): figures for kind, figures in (result.get(name) or {}).items()}
    return [
        [kind, kinds[kind].get("questions"), kinds[kind].get("accuracy", kinds[kind].get("reward"))]
        for kind in in_order(kinds)
    ]


def kinds_of(values: list[Any]) -> dict[str, Any] | None:
    """The different values, and of each question the place of its own, -1 for none; None where none has one."""
    names = in_order({str(value) for value in values if value is not None})
    if not names:
        return None
    place = {name: n for n, name in enumerate(names)}
    return {"names": names, "of": [-1 if value is None else place[str(value)] for value in values]}


def in_order(names: Iterable[str]) -> list[str]:
    """Numbers by their value, then words by the alphabet."""
    return sorted(names, key=lambda name: (0, float(name), name) if name.isdecimal() else (1, 0.0, name))


# ---------------------------------------------------------------------------------------------------------------------
# A training run
# ---------------------------------------------------------------------------------------------------------------------


def run_overview(folder: Path, blocks: Blocks) -> Overview:
    """Curves, settings, groups by step, and the held-out questions after training against those before.

    Raises DataError where the folder holds no run, or one of before its first step.
    """
    config = config_of(folder)
    steps = [record for record in records_of(folder / "metrics.jsonl") if "step" in record]
    if not steps:
        raise DataError(f"{folder}/metrics.jsonl: the run has no step yet, so there is nothing to show.")
    evaluations = records_of(folder / "evaluations.jsonl")
    groups = all_groups(folder) if (folder / "samples.jsonl").is_file() else []
    overview: Overview = {
        "name": str(config.get("out") or folder.name),
        "method": config.get("method", "?"),
        "settings": changed_settings(config),
        "metrics": metrics_of(steps),
        "curves": CURVES,
        "held_out": [held_out_point(result) for result in evaluations],
        "masking": masking_of(config) if {"rectify", "scorer", "threshold"} <= config.keys() else "",
        "group_steps": [group["step"] for group in groups],
        "groups": blocks.add(group_data(group, config) for group in groups),
    }
    if evaluations and "rows" in evaluations[-1]:
        overview["evaluation"] = held_out_questions(evaluations, blocks)
    return overview


def config_of(folder: Path) -> dict[str, Any]:
    """The settings of the run. Raises DataError where they are not there or no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{folder}: there is no run in this folder (config.json is missing).") from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise DataError(f"{path}: it is no JSON object, so what the run did is not known.")
    return config


def changed_settings(config: dict[str, Any]) -> list[list[str]]:
    """[name, value, default] of each setting that is not the default of the run's method."""
    method = config.get("method", "dagrpo")
    defaults = {**vars(Config()), **METHODS.get(method, {}), "method": method}
    return [
        [name, shown(value), shown(defaults[name]) if name in defaults else "–"]
        for name, value in config.items()
        if name not in defaults or value != defaults[name]
    ]


def metrics_of(steps: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Every figure of the log by name, a value for each step; None where a step has none."""
    names = dict.fromkeys(name for record in steps for name, value in record.items() if isinstance(value, int | float))
    return {name: [rounded(record.get(name)) for record in steps] for name in names}


def rounded(value: Any) -> float | None:
    """To six digits: more cannot be seen."""
    return float(f"{value:.6g}") if isinstance(value, int | float) else None


def held_out_point(result: dict[str, Any]) -> list[float | None]:
    """[step, accuracy or mean reward, low, high]"""
    name = "accuracy" if "accuracy" in result else "reward"
    low, high = result.get("interval" if name == "accuracy" else "reward_interval") or (None, None)
    return [result["step"], result[name], low, high]


def group_data(group: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A group as it is drawn: best completions first, with the advantages that GRPO would have given them."""
    ordered = sorted_by_reward(group)
    return {
        **ordered,
        "unmasked": [round(value, 4) for value in unmasked_advantages(ordered, config.get("scale", "std"))],
    }


def held_out_questions(evaluations: list[dict[str, Any]], blocks: Blocks) -> Overview:
    """The newest evaluation, against the first where there are several; each of several sets by itself."""
    first, last = evaluations[0], evaluations[-1]
    before = results_of(first) if len(evaluations) > 1 else None
    return evaluation_overview(results_of(last), before, (f"step {last['step']}", f"step {first['step']}"), blocks)


def results_of(evaluation: dict[str, Any]) -> dict[str, Result]:
    """A held-out evaluation as results of benchmarks, by the names of its sets."""
    if "sets" not in evaluation:
        return {"held out": evaluation}
    rows = evaluation["rows"]
    return {
        name: {**figures, "rows": [row for row in rows if row["eval_set"] == name]}
        for name, figures in evaluation["sets"].items()
    }
