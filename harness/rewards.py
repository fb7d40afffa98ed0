"""Rewards of the user's own: --reward file.py:function, or the weighted sum of several."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from questions import Question, Reward, correctness, place_of
from sources.faults import DataError, first_line, short
from sources.functions import copies, first_that_raises, line_of, listed, load_function

LARGEST_REWARD = 1e18  # its square, in the deviation of a group, is still a number in fp32


def load_reward(sources: list[str]) -> Reward:
    """The verifier, or the sum of the functions that --reward file.py:function[=WEIGHT] names.

    Raises DataError where one of them is not there.
    """
    if not sources:
        return correctness
    parts: list[Part] = []
    for source in sources:
        spelled = re.fullmatch(r"(.*):(\w+)(?:=([^=:]*))?", source)
        path, name, written = spelled.groups() if spelled else (source, "", None)
        try:
            weight = 1.0 if written is None else float(written)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight == 0:
            raise DataError(f"--reward {source}: the weight is {written!r}; it must be a number that is not 0.")
        function = load_function("--reward", f"{path}:{name}" if spelled else source)
        parts.append(Part(name, path, weight, function))
    if len({(part.path, part.name) for part in parts}) < len(parts):
        raise DataError(f"--reward {' '.join(sources)}: one function is named twice; give it one weight.")
    names = [part.name for part in parts]
    parts = [
        replace(part, name=f"{Path(part.path).stem}.{part.name}") if names.count(part.name) > 1 else part
        for part in parts
    ]
    return OwnReward(parts)


@dataclass(frozen=True)
class Part:
    """A function of --reward."""

    name: str
    path: str
    weight: float
    function: Callable[..., Any]

    def values(self, texts: list[str], questions: list[Question]) -> list[float]:
        """What the function gives for N completions, before its weight. Raises DataError where that is not N floats."""
        source = f"--reward {self.path}:{self.name.rpartition('.')[2]}"
        must = f"it must give one finite float for each of the {len(texts)} texts, of at most {LARGEST_REWARD:g}."
        try:
            given = self.function(list(texts), copies(questions))
            found = listed(given)
        except (Exception, SystemExit) as error:
            n = first_that_raises(self.function, texts, copies(questions))
            all_alone = f"with {len(texts)} answers at once, but with none of them alone"
            at = all_alone if n is None else f"at {shown(texts[n], questions[n])}"
            raise DataError(f"{source}: it raised {first_line(error)} ({line_of(error, self.path)}) {at}.") from error
        if found is None:
            raise DataError(f"{source}: it gave a {type(given).__name__}; {must}")
        if len(found) != len(texts):
            at = shown(texts[0], questions[0])
            raise DataError(f"{source}: it gave {len(found)} values for {len(texts)} answers, the first {at}; {must}")
        for value, text, question in zip(found, texts, questions, strict=True):
            try:
                number = math.nan if isinstance(value, str | bytes) else float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                number = math.nan
            if not abs(number) <= LARGEST_REWARD:
                raise DataError(f"{source}: it gave {short(repr(value), 40)} at {shown(text, question)}; {must}")
        return [float(value) for value in found]


@dataclass
class OwnReward:
    """The reward of --reward: the weighted sum of what its functions give."""

    parts: list[Part]
    given: dict[str, list[float]] = field(default_factory=dict)  # by each function, before its weight, in the last call

    def __call__(self, texts: list[str], questions: list[Question]) -> list[float]:
        """N completions, the question of each -> N rewards. Raises DataError where a function gives anything else."""
        if not texts:
            return []
        self.given = {part.name: part.values(texts, questions) for part in self.parts}
        weights = [part.weight for part in self.parts]
        return [
            sum(weight * value for weight, value in zip(weights, row, strict=True))
            for row in zip(*self.given.values(), strict=True)
        ]


def given_by_functions(reward: Reward) -> dict[str, list[float]]:
    """What each function of --reward gave in the last call, before its weight; nothing of another reward."""
    return reward.given if isinstance(reward, OwnReward) else {}


def shown(text: str, question: Question) -> str:
    """A completion, for messages."""
    return f"{place_of(question)}, {short(repr(text), 60)}"
