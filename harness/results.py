"""Result files of evaluate.py --out: reading them, what each question scored, and which questions two of them share.

A file is a JSON object, one entry a benchmark; `rows` has the questions with their completions. Files of older versions
lack some of the fields, and what a file does not say is never guessed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from questions import DataError

Result = dict[str, Any]  # of one benchmark
Key = tuple[str, str, int]  # a question: its problem, its right answer, and how many like it stand before it
RIGHT = 1.0  # the reward of a right completion
OF_THE_MODEL = ("model", "model_hash", "revision", "data")  # settings that two files are expected to differ in
HARMLESS = ("seed", "versions", "device", "chat_template_hash", "data_hash")  # which may differ, but are told


def read_results(path: Path) -> dict[str, Result]:
    """The benchmarks of a result file by name, a data file's without folder and ending.

    Raises DataError where the file is not there or is none of evaluate.py.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: it is no JSON ({error}). Name a file that evaluate.py --out wrote.") from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path}: it holds no result. Name a file that evaluate.py --out wrote.")
    for name, result in found.items():
        check_result(result, f"{path}: {name}")
    return by_short_name(found)


def by_short_name(results: dict[str, Result]) -> dict[str, Result]:
    """The same by data file without folder and ending, so that one benchmark has one name wherever its file lies."""
    short = [Path(name).stem for name in results]
    return dict(zip(short if len(set(short)) == len(short) else results, results.values(), strict=True))


def check_result(result: Any, where: str) -> None:
    """Raise DataError where a benchmark's entry lacks what every version of evaluate.py wrote."""
    rows = result.get("rows") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{where}: it has no rows, so it is no result. Name a file that evaluate.py --out wrote.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("problem"), str) or "answer" not in row:
            raise DataError(f"{where}, row {number}: it has no problem or no answer, so it is none of evaluate.py.")
        texts, rewards = row.get("texts"), row.get("rewards")
        if not isinstance(texts, list) or not isinstance(rewards, list) or not 0 < len(texts) == len(rewards):
            raise DataError(f"{where}, row {number}: it must have texts and rewards, the same number of each.")
        if not all(isinstance(text, str) for text in texts) or not all(
            isinstance(reward, int | float) for reward in rewards
        ):
            raise DataError(f"{where}, row {number}: its texts must be texts and its rewards numbers.")
        for name in ("lengths", "truncated", "extracted", "read"):
            if name in row and (not isinstance(row[name], list) or len(row[name]) != len(texts)):
                raise DataError(f"{where}, row {number}: {name} must have a value for each of the {len(texts)} texts.")


def says_what_is_right(result: Result) -> bool:
    """Are its rewards verdicts? Else they are rewards of a function alone, and there is no accuracy."""
    return "accuracy" in result or all(reward in (0, 1) for row in result["rows"] for reward in row["rewards"])


def question_scores(result: Result) -> np.ndarray:
    """Of each question the share of right completions, or their mean reward where nothing says what is right."""
    verdicts = says_what_is_right(result)
    scores = [np.array(row["rewards"], dtype=float) for row in result["rows"]]
    return np.array([float((own >= RIGHT).mean() if verdicts else own.mean()) for own in scores])


def gold_of(row: dict[str, Any]) -> str:
    """The right answer; of multiple choice the option's text, as letters move where options are shuffled."""
    answer, choices = str(row["answer"]), row.get("choices")
    place = ord(answer) - ord("A") if len(answer) == 1 else -1
    return str(choices[place]) if choices and 0 <= place < len(choices) else answer


def question_keys(result: Result) -> list[Key]:
    """What each question is known by in another file, where it may stand at another place."""
    seen = Counter[tuple[str, str]]()
    keys = []
    for row in result["rows"]:
        text = (row["problem"], gold_of(row))
        keys.append((*text, seen[text]))
        seen[text] += 1
    return keys


def settings_of(result: Result) -> dict[str, Any]:
    """What fixed its figures, as far as the file says."""
    settings = dict(result.get("settings") or {})
    if "max_new_tokens" in result:
        settings.setdefault("max_new_tokens", result["max_new_tokens"])
    settings.setdefault("samples", len(result["rows"][0]["texts"]))
    return settings


def different_settings(one: Result, other: Result) -> dict[str, str]:
    """The settings that both files tell and that differ, but for those of the model: `name: value and value`."""
    ours, theirs = settings_of(one), settings_of(other)
    return {
        name: f"{name}: {json.dumps(ours[name], ensure_ascii=False)} and {json.dumps(theirs[name], ensure_ascii=False)}"
        for name in ours
        if name in theirs and ours[name] != theirs[name] and name not in OF_THE_MODEL
    }
