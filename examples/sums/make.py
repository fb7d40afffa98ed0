"""Make the questions of recipes/smollm2-sums.toml: every sum and difference of two numbers from 2 to 19.

    python examples/sums/make.py

Writes train.jsonl, held_out.jsonl (a fifth, drawn with a fixed seed) and examples.jsonl, two further questions that
every prompt shows with their solutions. No question is in two of the files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
NUMBERS = range(2, 20)
SHOWN = ("What is 14 + 8?", "What is 17 - 9?")  # one of either kind, so that the form of an answer is known
HELD_OUT = 96


def every_question() -> list[dict[str, str]]:
    """Of differences those that are not negative."""
    sums = [(f"{a} + {b}", a + b) for a in NUMBERS for b in NUMBERS]
    differences = [(f"{a} - {b}", a - b) for a in NUMBERS for b in NUMBERS if b <= a]
    return [
        {"problem": f"What is {what}?", "answer": str(value), "solution": f"{what} = \\boxed{{{value}}}"}
        for what, value in sums + differences
    ]


def parts() -> dict[str, list[dict[str, str]]]:
    """The questions of each file, by its name."""
    questions = every_question()
    shown = [question for question in questions if question["problem"] in SHOWN]
    others = [question for question in questions if question["problem"] not in SHOWN]
    random.Random(0).shuffle(others)
    return {"examples": shown, "held_out": others[:HELD_OUT], "train": others[HELD_OUT:]}


def as_lines(questions: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(question) + "\n" for question in questions)


def main() -> None:
    for name, questions in parts().items():
        (HERE / f"{name}.jsonl").write_text(as_lines(questions), encoding="utf-8")
        print(f"{name}.jsonl: {len(questions)} questions")


if __name__ == "__main__":
    main()
