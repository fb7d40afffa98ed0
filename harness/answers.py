"""The answers of an evaluation: graded while the next ones are sampled, kept one by one, and taken up again.

    RESULT.json.part.jsonl     the settings of each benchmark, then a line for each answer as soon as it is graded

An evaluation that was killed goes on from there: what is sampled depends on seed, question and number alone, so the
result is what it would have been. The file is deleted when the result is written.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import verify
from harness.checkpoint import records_of, write_whole
from harness.command import ConfigError
from questions import Question, Reward, correctness
from rollout import Sampled

ENDING = ".part.jsonl"
MAY_DIFFER = ("versions",)  # settings with which an evaluation goes on although they are others
LOOK_AGAIN = 0.5  # seconds between two changes of what the bar says
Place = tuple[int, int]  # the number of a question, and of its completion


@dataclass(frozen=True)
class Answer:
    """One graded completion."""

    text: str
    length: int  # tokens
    truncated: bool
    reward: float
    extracted: str | None = None  # where the verifier graded: the answer as it stands in the text
    read: str | None = None  # and as what it was read


# ---------------------------------------------------------------------------------------------------------------------
# On disk
# ---------------------------------------------------------------------------------------------------------------------


class PartFile:
    """The answers of all benchmarks of an evaluation."""

    def __init__(self, result: Path) -> None:
        """Raises ConfigError where a file of another kind is in its place."""
        self.path = result.with_name(result.name + ENDING)
        self.settings: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[Place, Answer]] = {}
        lines = records_of(self.path) if self.path.is_file() else []
        for line in lines:
            try:
                self.take(line)
            except (TypeError, LookupError, AttributeError):
                raise ConfigError(
                    f"--out {result}: beside it is {self.path.name}, and not what an evaluation leaves there. Give "
                    "another name, or delete that."
                ) from None
        if lines:  # without the line that a kill has cut off
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def take(self, line: dict[str, Any]) -> None:
        name = line["benchmark"]
        if "settings" in line:
            self.settings[name], self.answers[name] = line["settings"], {}
        else:
            self.answers[name][line["question"], line["number"]] = Answer(**line["answer"])

    def begin(self, name: str, settings: dict[str, Any]) -> Keeper:
        """The answers that there are of a benchmark. Raises ConfigError where they came about in another way."""
        settings = json.loads(json.dumps(settings))  # tuples become lists
        if name not in self.settings:
            self.settings[name], self.answers[name] = settings, {}
            self.write({"benchmark": name, "settings": settings})
        there = self.settings[name]
        names = [key for key in {**there, **settings} if key not in MAY_DIFFER]
        differ = [key for key in names if there.get(key) != settings.get(key)]
        if differ:
            raise ConfigError(
                f"--out: {self.path} has {len(self.answers[name])} answers of an evaluation that did not end, with "
                f"another {differ[0]} ({shown(there.get(differ[0]))}, now {shown(settings.get(differ[0]))}). Evaluate "
                "as then to go on, give another --out, or delete it."
            )
        return Keeper(name, self, self.answers[name])

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:  # opened each time: a deleted folder is noticed at once
            file.write(json.dumps(line) + "\n")

    def count(self) -> int:
        return sum(map(len, self.answers.values()))


@dataclass
class Keeper:
    """Has the answers of one benchmark, and writes each into the file, where there is one."""

    name: str = ""
    file: PartFile | None = None
    answers: dict[Place, Answer] = field(default_factory=dict)  # at first those that were left by another evaluation

    def add(self, place: Place, answer: Answer) -> None:
        if self.file is not None:
            line = {"benchmark": self.name, "question": place[0], "number": place[1], "answer": asdict(answer)}
            self.file.write(line)
        self.answers[place] = answer


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."


# ---------------------------------------------------------------------------------------------------------------------
# Grading
# ---------------------------------------------------------------------------------------------------------------------


class Grader:
    """Grades completions of Q questions, k each, in the order in which they come.

    The verifier works in a thread of its own, and most of its work in processes, while the next completions are
    sampled. Another reward is called in this thread, with whole questions in the order of `batches`, as it may be a
    model itself or count on the order.
    """

    def __init__(
        self, questions: list[Question], k: int, reward: Reward, keeper: Keeper, batches: list[list[int]]
    ) -> None:
        self.questions, self.k, self.reward, self.keeper = questions, k, reward, keeper
        self.waiting: dict[Place, Sampled] = {}
        self.thread = ThreadPoolExecutor(1) if reward is correctness else None
        self.work: Future[None] | None = None
        self.batches = deque(batches)  # of numbers of questions
        self.batch_of = {i: number for number, batch in enumerate(batches) for i in batch}
        self.missing = deque(len(batch) * k for batch in batches)  # completions of each batch that are to come

    def add(self, question: int, sampled: Sampled) -> None:
        """Take a completion. Raises what grading has raised meanwhile."""
        self.waiting[question, sampled.number] = sampled
        if self.thread is None:
            self.missing[self.batch_of[question] - self.batch_of[self.batches[0][0]]] -= 1
            while self.missing and self.missing[0] == 0:
                self.missing.popleft()
                places = [(i, g) for i in self.batches.popleft() for g in range(self.k)]
                self.grade({place: self.waiting.pop(place) for place in places})
        elif self.work is None or self.work.done():
            self.hand_over()

    def hand_over(self) -> None:
        """Give what waits to the thread, after what it did before, which may have failed."""
        assert self.thread is not None
        if self.work is not None:
            self.work.result()
        waiting, self.waiting = self.waiting, {}
        self.work = self.thread.submit(self.grade, waiting)

    def grade(self, completions: dict[Place, Sampled]) -> None:
        questions = [self.questions[i] for i, _ in completions]
        rewards = self.reward([sampled.text for sampled in completions.values()], questions)
        for (place, sampled), question, reward in zip(completions.items(), questions, rewards, strict=True):
            reading = verify.Reading(None, None)
            if self.reward is correctness:
                reading = verify.read_answer(sampled.text, question.get("choices"))
            answer = Answer(
                sampled.text, sampled.length, sampled.truncated, float(reward), reading.extracted, reading.read
            )
            self.keeper.add(place, answer)

    def finish(self) -> None:
        """Wait until the last answer is graded."""
        if self.thread is not None:
            self.hand_over()
            assert self.work is not None
            self.work.result()

    def close(self) -> None:
        if self.thread is not None:
            self.thread.shutdown(cancel_futures=True)

    def so_far(self, right: float) -> str:
        """The share of right answers among those that are graded, and half of its 95 % interval, over questions."""
        graded = [(i, answer.reward >= right) for (i, _), answer in list(self.keeper.answers.items())]
        if not graded:
            return ""
        numbers, verdicts = (np.array(column) for column in zip(*graded, strict=True))
        counts, rights = np.bincount(numbers), np.bincount(numbers, weights=verdicts)
        shares = rights[counts > 0] / counts[counts > 0]
        half = 1.96 * float(shares.std()) / len(shares) ** 0.5
        return f"right {verdicts.mean():.1%} ± {half:.1%}"


@contextmanager
def grading(
    questions: list[Question], k: int, reward: Reward, keeper: Keeper, batches: list[list[int]]
) -> Iterator[Grader]:
    """A grader, whose thread ends with the block. Where the block fails, what it has is graded still, to be kept."""
    grader = Grader(questions, k, reward, keeper, batches)
    try:
        yield grader
    except BaseException:  # Ctrl-C
        if keeper.file is not None:
            with suppress(Exception):  # what failed is told already
                grader.finish()
        raise
    finally:
        grader.close()


# ---------------------------------------------------------------------------------------------------------------------
# The bar
# ---------------------------------------------------------------------------------------------------------------------


def bar_of(label: str, grader: Grader) -> tqdm:
    """How far an evaluation is, where somebody looks: none in a file."""
    total, there = len(grader.questions) * grader.k, len(grader.keeper.answers)
    return tqdm(
        desc=label, total=total, initial=there, unit=" answers", leave=False, file=sys.stderr, disable=None
    )  # fmt: skip


def telling(bar: tqdm, grader: Grader, right: float) -> Callable[[int], None]:
    """A function that takes how many tokens were made, and lets the bar say how many, and what share is right."""
    tokens, looked = 0, 0.0

    def made(count: int) -> None:
        nonlocal tokens, looked
        tokens += count
        if not bar.disable and time.monotonic() - looked > LOOK_AGAIN:
            looked = time.monotonic()
            figure = "" if math.isinf(right) else grader.so_far(right)
            bar.set_postfix_str(f"{tokens:,} tokens" + (figure and f", {figure}"))

    return made
