"""The questions of study.words: problems of one step that a small model can learn, apart from those of training.

A problem has two whole numbers up to 20, to be added or subtracted. The sets have answers and no solutions: a solution
is made here of the two numbers and the answer. Two questions are siblings where they share half of their runs of four
words.
"""

from __future__ import annotations

import contextlib
import random
import re
from typing import Any

from study.tasks import Question
from verify import extract_answer

HELD_OUT = ("mawps", "asdiv", "svamp")
WHOLE = (*HELD_OUT, "gsm8k_test")  # measured as they are, too
TRAINED_ON = ("mawps", "asdiv")  # what of these sets is not held out; SVAMP is a source that no training sees
SHINGLE, ALIKE = 4, 0.5  # words in a run, and the share of runs in both from which two questions are siblings
LARGEST = 20  # number of a problem: before training, one sum in eight below it is right, and one in a hundred beyond
NUMBER_WORDS = [  # without `one`, which is mostly a pronoun
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
OTHER_NUMBERS = {  # a problem with one of these words needs more than the two numbers that are read
    "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "dozen", "dozens",
    "half", "twice", "double", "triple", "percent", "greatest",
}  # fmt: skip


def shingles(problem: str) -> frozenset[tuple[str, ...]]:
    """The runs of four words of a problem, in lower case; a shorter one is a run by itself."""
    words = re.findall(r"\w+", problem.lower())
    return frozenset(tuple(words[n : n + SHINGLE]) for n in range(max(1, len(words) - SHINGLE + 1)))


def are_siblings(one: frozenset[Any], other: frozenset[Any]) -> bool:
    """Do two questions share half of their runs of words? The shorter one counts."""
    return len(one & other) >= ALIKE * min(len(one), len(other))


def numbers_of(problem: str) -> list[float]:
    """The numbers of a problem in its order, in digits or as words from two to twenty."""
    values = dict(zip(NUMBER_WORDS, range(2, 21), strict=True))
    found = re.findall(r"\d[\d,]*(?:\.\d+)?|[a-z]+", problem.lower())
    return [float(values.get(each, each.replace(",", ""))) for each in found if each in values or each[0].isdigit()]


def solution_of(question: Question) -> str | None:
    """The one sum or difference of the problem's two numbers that is its answer; None where it is no such problem."""
    numbers = numbers_of(question["problem"])
    words = re.findall(r"[a-z]+", question["problem"].lower())
    if len(numbers) != 2 or any(number not in range(1, LARGEST + 1) for number in numbers):
        return None
    a, b = map(int, numbers)
    ways = {f"{a} + {b}": a + b, f"{a} - {b}": a - b, f"{b} - {a}": b - a}
    with contextlib.suppress(ValueError):  # of an answer that is no number
        right = [way for way, value in ways.items() if value == float(question["answer"])]
        if len(right) == 1 and not OTHER_NUMBERS.intersection(words):
            return f"{right[0]} = \\boxed{{{ways[right[0]]}}}"
    return None


def draw(
    sets: dict[str, list[Question]], sums: list[Question], held_out: int, validation: int
) -> dict[str, list[Question]]:
    """Held-out questions by set, and `training` and `validation`, in which no sibling of a held-out question is.

    Questions are drawn with a fixed seed. A problem that comes twice is there once.
    """
    rng = random.Random(0)
    drawn: dict[str, list[Question]] = {}
    seen: set[frozenset[Any]] = set()
    rest: list[Question] = []
    for name in HELD_OUT:
        every = []
        for question in rng.sample(sets[name], len(sets[name])):
            key, solution = shingles(question["problem"]), solution_of(question)
            if solution and key not in seen:
                seen.add(key)
                every.append({**question, "answer": extract_answer(solution), "solution": solution})
        drawn[name] = every[:held_out]
        if name in TRAINED_ON:
            rest += every[held_out:]
    own = [shingles(question["problem"]) for name in HELD_OUT for question in drawn[name]]
    apart = [
        question for question in rest if not any(are_siblings(shingles(question["problem"]), each) for each in own)
    ]
    rng.shuffle(apart)
    drawn["validation"], words = apart[:validation], apart[validation:]
    drawn["training"] = words + rng.sample(sums, min(len(words), len(sums)))
    return drawn


def draw_whole(sets: dict[str, list[Question]], trained_on: list[Question], count: int) -> dict[str, list[Question]]:
    """Questions of each set as it is, by set; none is a sibling of one that is trained on, and none comes twice."""
    rng = random.Random(1)
    own = [shingles(question["problem"]) for question in trained_on]
    drawn: dict[str, list[Question]] = {}
    for name in WHOLE:
        drawn[name], seen = [], set()
        for question in rng.sample(sets[name], len(sets[name])):
            key = shingles(question["problem"])
            if len(drawn[name]) < count and key not in seen and not any(are_siblings(key, each) for each in own):
                seen.add(key)
                drawn[name].append(question)
    return drawn
