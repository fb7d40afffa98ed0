"""What the completions of a run on the embedded example can do, by evaluation: does training harm a skill?

    python -m study.run make --folder runs/questions
    python dagrpo.py --model examples/arithmetic --data runs/questions/training-terse.jsonl \\
        --eval-data runs/questions/validation.jsonl --steps 20 --learning-rate 4e-4 \\
        --eval-every 4 --eval-temperature 0.6 --out runs/terse
    python -m study.skills runs/terse

Two skills are read from the completions of held-out questions: single steps (`7 + 5 = 12.`) that are right, and first
sums of two quantities whose addends the completion itself has found before, each in a step of its own.
"""

from __future__ import annotations

import re

from study.tasks import lines_of_run, make

FIRST_SUM = re.compile(rf"(?:{'|'.join(make.JOINS)})(\d+) \+ (\d+) = ")
RESULT = re.compile(r"= (\d+)\.")


def sums_of_found(text: str) -> list[bool]:
    """Of the first sum of quantities, where there is one, whether both addends stand before it as results."""
    found = []
    for match in FIRST_SUM.finditer(text):
        results = RESULT.findall(text[: match.start()])
        left, right = match.groups()
        found.append(left in results and right in results and (left != right or results.count(left) > 1))
    return found


def share(values: list[bool]) -> str:
    return f"{sum(values) / len(values):.1%} of {len(values)}" if values else "–"


def main(arguments: list[str] | None = None) -> None:
    evaluations = lines_of_run("study.skills", __doc__, "evaluations.jsonl", arguments)
    print("| step | right answers | right single steps | sums of values found before |\n| --- | ---: | ---: | ---: |")
    for evaluation in evaluations:
        texts = [text for question in evaluation["rows"] for text in question["texts"]]
        steps = [right for text in texts for right in make.right_steps(text)]
        sums = [found for text in texts for found in sums_of_found(text)]
        print(f"| {evaluation['step']} | {evaluation['accuracy']:.1%} | {share(steps)} | {share(sums)} |")


if __name__ == "__main__":
    main()
