"""Word problems that nobody asked: of two numbers to be added, by set, and bare sums."""

from __future__ import annotations

from study.word_questions import WHOLE

SUMS = [
    {"problem": f"What is {n} + 2?", "answer": str(n + 2), "solution": f"{n} + 2 = \\boxed{{{n + 2}}}"}
    for n in range(9)
]


def problems(word: str, count: int) -> list[dict]:
    """Questions with two numbers to be added, which share no run of four words with another."""
    return [
        {"problem": f"{word} a{x} 3 {word} b{x} c{x} {n + 4} d{x}", "answer": str(n + 7), "solution": None}
        for n, x in enumerate("klmnopqrstuv"[:count])
    ]


def sets(**changes: list[dict]) -> dict[str, list[dict]]:
    return {**{name: problems(name, 12) for name in WHOLE}, **changes}
