"""Which pairs of a right and a wrong completion does a run mask: those that differ in what, with an anchor or without?

    python dagrpo.py --steps 20 --out runs/example
    python -m study.pairs runs/example

Read from samples.jsonl, which holds two questions of each step. Two completions differ in their *result* alone where
nothing is left of the difference without the last number of each, in *numbers* alone where nothing is without any
number, and else in their *words*.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from study.tables import table
from study.tasks import lines_of_run

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
KINDS = ("result", "numbers", "words")


def difference(one: str, other: str) -> str:
    """In what two texts differ: one of KINDS."""
    if without_result(one) == without_result(other):
        return "result"
    return "numbers" if NUMBER.sub("#", one) == NUMBER.sub("#", other) else "words"


def without_result(text: str) -> str:
    """The text with # for its last number."""
    found = list(NUMBER.finditer(text))
    return f"{text[: found[-1].start()]}#{text[found[-1].end() :]}" if found else text


def pairs_of(sample: dict[str, Any]) -> Iterator[tuple[str, bool, bool]]:
    """Of each pair with different rewards: in what it differs, has it an anchor, is it masked?"""
    answers = sample["answers"]
    masked = {frozenset(pair) for pair in sample["masked_pairs"]}
    for j in range(len(answers)):
        for i in range(j):
            one, other = answers[i], answers[j]
            if one["reward"] != other["reward"]:
                kind = difference(one["text"], other["text"])
                yield kind, one["anchor"] or other["anchor"], frozenset((i, j)) in masked


def counted(samples: list[dict[str, Any]]) -> str:
    """A table: pairs by what they differ in, and the share of them that is masked."""
    every, masked = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for sample in samples:
        for kind, anchored, is_masked in pairs_of(sample):
            every[kind, anchored] += 1
            masked[kind, anchored] += is_masked
    rows = []
    for kind in KINDS:
        row = [kind]
        for anchored in (False, True):
            count = every[kind, anchored]
            row += [str(count), f"{100 * masked[kind, anchored] / count:.1f}" if count else "–"]
        rows.append(row)
    return table(["differ in", "sampled pairs", "masked, %", "pairs with an anchor", "masked, %"], rows)


def main(arguments: list[str] | None = None) -> None:
    print(counted(lines_of_run("study.pairs", __doc__, "samples.jsonl", arguments)))


if __name__ == "__main__":
    main()
