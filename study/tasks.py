"""The questions of the study: nine benchmarks, a training set and a validation set, all drawn from fixed seeds.

The problems come from examples/arithmetic/make.py, which made the embedded model and what it was pretrained on. Six
benchmarks are its levels, from routine to never solved by the embedded model; three change one thing that training
never shows. No question is in two of the sets, and none is in train.jsonl or held_out.jsonl of the example, but for
the training set, which is drawn from train.jsonl.

Pretraining left out held_out.jsonl only. Of level 1 there are so few problems that it has shown most of them to the
model, with answers of every quality; from level 3 up there are too many for that.

The solutions of the training set are the example's: single steps, as the embedded model writes them at its best. In
two other versions of the training set, half of the solutions or all of them are terse, as an expert writes them: two
operations at once wherever they can be, which the embedded model seldom tries.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.arithmetic import make

ROOT = Path(__file__).resolve().parent.parent
Question = dict[str, Any]
IN_DISTRIBUTION = [f"level-{level}" for level in make.LEVELS]
OUT_OF_DISTRIBUTION = ["longer", "larger", "reordered"]
BENCHMARKS = IN_DISTRIBUTION + OUT_OF_DISTRIBUTION
SEEDS = {"training": 1, "validation": 2, "levels": 3, "longer": 4, "larger": 5, "reordered": 6, "terse": 7, "mixed": 8}


def longer(rng: random.Random) -> Question:
    """Level 6 with a fourth operation on one quantity: ten in all, where training has nine at most.

    The embedded model hardly goes beyond the lengths that it was pretrained on: trained ones solve a few percent. A
    single quantity with five operations would be no better, and completions without steps hit some of those by chance.
    """
    lengths = rng.sample([4, 3, 3], 3)
    starts, operations = zip(*[make.draw_quantity(rng, length, 30) for length in lengths], strict=True)
    return as_question(make.Problem(0, ["x", "y", "z"], list(starts), list(operations)))


def larger(rng: random.Random) -> Question:
    """Levels 3 and 4 with a result between 41 and 60 on the way: in training, two quantities stay at 40 or less."""
    length = make.LEVELS[rng.choice([3, 4])][1]
    while True:
        starts, operations = zip(*[make.draw_quantity(rng, length, 60) for _ in "xy"], strict=True)
        problem = make.Problem(0, ["x", "y"], list(starts), list(operations))
        if largest_value(problem) > 40 and problem.answer <= make.LARGEST:
            return as_question(problem)


def largest_value(problem: make.Problem) -> int:
    """The largest value that a quantity has on the way."""
    return max(
        make.apply_all(start, operations[:n])
        for start, operations in zip(problem.starts, problem.operations, strict=True)
        for n in range(len(operations) + 1)
    )


def reordered(rng: random.Random) -> Question:
    """Levels 3 to 6 with the question's sum in another order: in training, it is x + y or x + y + z."""
    problem = make.draw_problem(rng, rng.choice([3, 4, 5, 6]))
    names = problem.names
    while names == problem.names:
        names = rng.sample(problem.names, len(problem.names))
    question = as_question(problem)
    question["problem"] = question["problem"].replace(" + ".join(problem.names), " + ".join(names))
    return question


def as_question(problem: make.Problem) -> Question:
    return {"problem": problem.text, "answer": str(problem.answer)}


def draw_distinct(
    draw: Callable[[random.Random], Question], rng: random.Random, count: int, excluded: set[str]
) -> list[Question]:
    """`count` questions of `draw`, none of whose problems is in `excluded` or drawn twice; they join `excluded`."""
    questions: list[Question] = []
    while len(questions) < count:
        question = draw(rng)
        if question["problem"] not in excluded:
            excluded.add(question["problem"])
            questions.append(question)
    return questions


def draw_sets(each: int, training_each: int, validation_each: int) -> dict[str, list[Question]]:
    """Questions by name of the set: `training`, `validation` and the nine BENCHMARKS.

    `each`: problems per benchmark; `training_each`, `validation_each`: of each level. Smaller sets are not the first
    part of larger ones.
    """
    example = {name: read_lines(make.HERE / f"{name}.jsonl") for name in ("train", "held_out")}
    excluded = {question["problem"] for questions in example.values() for question in questions}
    rng = random.Random(SEEDS["training"])
    sets = {
        "training": [
            question
            for level in make.LEVELS
            for question in rng.sample(of_level(example["train"], level), training_each)
        ],
        "validation": make.draw_questions(random.Random(SEEDS["validation"]), validation_each, excluded),
    }
    levels = make.draw_questions(random.Random(SEEDS["levels"]), each, excluded)
    for level, name in zip(make.LEVELS, IN_DISTRIBUTION, strict=True):
        sets[name] = of_level(levels, level)
    for name, draw in zip(OUT_OF_DISTRIBUTION, (longer, larger, reordered), strict=True):
        sets[name] = draw_distinct(draw, random.Random(SEEDS[name]), each, excluded)
    return sets


def of_level(questions: list[Question], level: int) -> list[Question]:
    return [question for question in questions if question["level"] == level]


def with_terse_solutions(questions: list[Question], share: float) -> list[Question]:
    """The same questions; about `share` of the solutions take two operations at once wherever they can."""
    rng, choice = random.Random(SEEDS["terse"]), random.Random(SEEDS["mixed"])
    terse = [make.write_out(rng, as_problem(question["problem"]), leaps=1.0) for question in questions]
    return [
        {**question, "solution": solution} if choice.random() < share else question
        for question, solution in zip(questions, terse, strict=True)
    ]


def as_problem(text: str) -> make.Problem:
    """The problem that a question was made from. `Let x = 7, add 5, times 2. Find x.` -> 7, [(+, 5), (*, 2)]"""
    signs = {word: sign for sign, word in make.WORDS.items()}
    names, starts, operations = [], [], []
    for name, start, rest in re.findall(r"Let (\w) = (\d+)((?:, \w+ \d+)*)\.", text):
        names.append(name)
        starts.append(int(start))
        operations.append([(signs[word], int(number)) for word, number in re.findall(r", (\w+) (\d+)", rest)])
    return make.Problem(0, names, starts, operations)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The object of each line."""
    with path.open(encoding="utf-8") as lines:  # which end at newlines alone: a string may hold other separators
        return [json.loads(line) for line in lines]


def lines_of_run(program: str, purpose: str, file: str, arguments: list[str] | None) -> list[dict[str, Any]]:
    """The objects in a file of the run that a command line names. Ends the program where there is no such file."""
    parser = argparse.ArgumentParser(
        prog=program, description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    path = parser.parse_args(arguments).run / file
    if not path.is_file():
        sys.exit(f"{program}: {path} does not exist; name the folder of a run (--out of dagrpo.py).")
    return read_lines(path)


def write_sets(folder: Path, sets: dict[str, list[Question]]) -> None:
    """One JSONL file for each set of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, questions in sets.items():
        make.write_jsonl(folder / f"{name}.jsonl", questions)
