"""Two models, one verdict: what evaluate.py wrote of both, compared question by question.

    python evaluate.py compare A.json B.json
    python evaluate.py compare A1.json A2.json A3.json --against B1.json B2.json B3.json     # training seeds

Differences are first minus second, paired by question. Their 95 % interval is the bootstrap of evaluate.bootstrap over
questions; p is of a sign-flip test: how often a difference this large comes about if it is chance alone which of the
two models has which score. With several files a side, each pair of files is one training seed, and the same is said
over seeds: would other seeds show it too?
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate import bootstrap
from harness.command import ConfigError, Parser, one_sentence, parsed, printable
from harness.results import (
    HARMLESS,
    Key,
    Result,
    different_settings,
    question_keys,
    question_scores,
    read_results,
    says_what_is_right,
    settings_of,
)
from questions import DataError

EXACT = 16  # values up to which all patterns of signs are tried
FLIPS = 10_000  # patterns drawn where there are more
SHOWN = 0.05  # p below which a difference counts as shown
WIDTH = 80
Files = dict[str, dict[str, Result]]  # results by file and benchmark

# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """p of the two-sided sign-flip test that the differences are symmetric around 0. (n,) -> p

    Exact up to 16 differences that are not 0, which alone matter; above, the share of 10,000 random patterns of signs,
    the one that is there counted with them, so that p is never 0.
    """
    values = differences[differences != 0]
    if not len(values):
        return 1.0
    least = abs(values.sum()) * (1 - 1e-9)  # equal sums may differ in their last digits
    if len(values) <= EXACT:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float((np.abs((2 * patterns - 1) @ values) >= least).mean())
    rng = np.random.default_rng(seed)
    as_large, part = 1, 500
    for _ in range(FLIPS // part):
        signs = 2 * rng.integers(0, 2, (part, len(values)), dtype=np.int8) - 1
        as_large += int((np.abs(signs @ values) >= least).sum())
    return as_large / (FLIPS + 1)


@dataclass(frozen=True)
class Difference:
    """A mean difference, its 95 % interval, and the p of its sign-flip test; shares, or rewards."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def is_shown(self) -> bool:
        return self.p < SHOWN and not self.low <= 0 <= self.high


def difference_of(values: np.ndarray) -> Difference:
    """Of paired differences, one for each question or seed. (n,)"""
    return Difference(float(values.mean()), *bootstrap(values), sign_flip(values))


def mean_difference(benchmarks: list[np.ndarray]) -> Difference:
    """Of the mean over benchmarks, which all count the same however many questions each has."""
    means = [values.mean() for values in benchmarks]
    shares = [sum(map(len, benchmarks)) / (len(benchmarks) * len(values)) for values in benchmarks]
    # Each question's share in the mean. Around their benchmark's mean, so that how many questions of each benchmark a
    # resample happens to draw does not count: the number of each is fixed.
    around = [share * (values - mean) for share, values, mean in zip(shares, benchmarks, means, strict=True)]
    low, high = bootstrap(np.concatenate(around) + np.mean(means))
    flipped = np.concatenate([share * values for share, values in zip(shares, benchmarks, strict=True)])
    return Difference(float(np.mean(means)), low, high, sign_flip(flipped))


# ---------------------------------------------------------------------------------------------------------------------
# Pairing
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """A benchmark of S files a side: scores of the questions that all files have, in the order of the first."""

    name: str
    keys: list[Key]
    rows: list[dict[str, Any]]  # the questions, from the first file
    first: np.ndarray  # (S, questions)
    second: np.ndarray
    are_shares: bool  # of right completions; else rewards

    @property
    def by_question(self) -> np.ndarray:
        """First minus second of each question, seeds averaged, (questions,); what is equal is 0 exactly."""
        return (self.first - self.second).mean(0).round(12)

    @property
    def by_seed(self) -> np.ndarray:
        """First minus second of each seed, questions averaged, (S,)."""
        return (self.first - self.second).mean(1).round(12)


def pair(name: str, first: list[Result], second: list[Result]) -> Paired:
    """Scores of the questions that all files have. Raises DataError where there is none, or where some are rewards."""
    results = first + second
    kinds = {says_what_is_right(result) for result in results}
    if len(kinds) > 1:
        raise DataError(f"{name}: one file has verdicts, right or wrong, and another only rewards: no common measure.")
    scores = [dict(zip(question_keys(result), question_scores(result), strict=True)) for result in results]
    shared = set.intersection(*(set(own) for own in scores))
    keys = [key for key in scores[0] if key in shared]
    if not keys:
        raise DataError(f"{name}: the files have no question in common.")
    matrix = np.array([[own[key] for key in keys] for own in scores])
    rows = [row for row, key in zip(results[0]["rows"], question_keys(results[0]), strict=True) if key in shared]
    return Paired(name, keys, rows, matrix[: len(first)], matrix[len(first) :], kinds.pop())


def unlike(name: str, one: str, ours: Result, other: str, theirs: Result) -> tuple[list[str], list[str]]:
    """In what two files differ of a benchmark: what forbids a comparison (questions, settings), and what does not."""
    grave: list[str] = []
    harmless: list[str] = []
    keys = {one: question_keys(ours), other: question_keys(theirs)}
    for here, there in ((one, other), (other, one)):
        known = set(keys[there])
        only = [key for key in keys[here] if key not in known]
        if only:
            grave.append(f"{name}: {here} has {counted(only)} that {there} has not, such as {start_of(only[0])}")
    for setting, text in different_settings(ours, theirs).items():
        (harmless if setting in HARMLESS else grave).append(f"{name}, {text} ({one} and {other})")
    return grave, harmless


def counted(keys: list[Key]) -> str:
    return f"{len(keys)} question" + ("s" if len(keys) > 1 else "")


def start_of(key: Key) -> str:
    return f"'{textwrap.shorten(key[0], 50, placeholder='…')}'"


def pairs(first: Files, second: Files, force: bool) -> tuple[list[Paired], list[str]]:
    """The benchmarks of both sides, paired, and in what the files differ.

    Raises DataError where they differ in benchmarks, questions or settings, unless `force`, and where they share none.
    """
    files = first | second
    start, *others = files
    names = [name for name in files[start] if all(name in results for results in files.values())]
    grave = [
        f"{file} has {', '.join(rest)}, which not every file has"
        for file, results in files.items()
        if (rest := [name for name in results if name not in names])
    ]
    if not names:
        raise DataError(f"The files have no benchmark in common: {'; '.join(grave)}.")
    harmless: list[str] = []
    for name in names:
        for other in others:
            found = unlike(name, start, files[start][name], other, files[other][name])
            grave, harmless = grave + found[0], harmless + found[1]
    if grave and not force:
        raise DataError(
            f"The files differ in more than the model. {'. '.join(grave)}. Evaluate both alike; or compare what they "
            "share by --force."
        )
    sides = [[[results[name] for results in side.values()] for side in (first, second)] for name in names]
    return [pair(name, *side) for name, side in zip(names, sides, strict=True)], grave + harmless


# ---------------------------------------------------------------------------------------------------------------------
# What is said
# ---------------------------------------------------------------------------------------------------------------------


def points(value: float, are_shares: bool, sign: str = "+") -> str:
    """A difference in percentage points, or a reward."""
    return f"{100 * value:{sign}.1f}" if are_shares else f"{value:{sign}.3g}"


def interval_text(difference: Difference, are_shares: bool) -> str:
    return f"{points(difference.low, are_shares)} to {points(difference.high, are_shares)}"


def table(benchmarks: list[Paired]) -> list[str]:
    """A line of figures for each benchmark, and the mean of several; in percent and points, at most 80 columns."""
    head = f"{'benchmark':<20}{'questions':>10}{'A':>8}{'B':>8}{'A − B':>8}{'95 %':>17}{'p':>9}"
    lines = [head, "-" * len(head)]

    def line(name: str, number: int, first: float, second: float, difference: Difference, are_shares: bool) -> str:
        return (
            f"{name[:19]:<20}{number:>10}{points(first, are_shares, ''):>8}{points(second, are_shares, ''):>8}"
            f"{points(difference.mean, are_shares):>8}{interval_text(difference, are_shares):>17}{difference.p:>9.3g}"
        )

    for each in benchmarks:
        over_questions = difference_of(each.by_question)
        lines.append(
            line(
                printable(each.name), len(each.rows), each.first.mean(), each.second.mean(), over_questions,
                each.are_shares,
            )
        )  # fmt: skip
        if not each.are_shares:
            lines.append("  (rewards: nothing says what is right)")
    if len(benchmarks) > 1 and all(each.are_shares for each in benchmarks):
        number = sum(len(each.rows) for each in benchmarks)
        first, second = (float(np.mean([side.mean() for side in sides])) for sides in sides_of(benchmarks))
        lines.append(line("mean of benchmarks", number, first, second, over_all_questions(benchmarks), True))
    return lines


def sides_of(benchmarks: list[Paired]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [each.first for each in benchmarks], [each.second for each in benchmarks]


def over_all_questions(benchmarks: list[Paired]) -> Difference:
    """Of all benchmarks, seeds averaged: would other questions show it?"""
    values = [each.by_question for each in benchmarks]
    return difference_of(values[0]) if len(values) == 1 else mean_difference(values)


def seed_differences(benchmarks: list[Paired]) -> np.ndarray:
    """Of each training seed the mean difference over benchmarks, questions averaged. (S,)"""
    return np.mean([each.by_seed for each in benchmarks], axis=0)


def verdict(benchmarks: list[Paired]) -> list[str]:
    """Which of the two is ahead, in a sentence or two; nothing where rewards of several kinds would be added up."""
    are_shares = all(each.are_shares for each in benchmarks)
    if len(benchmarks) > 1 and not are_shares:
        return []
    difference = over_all_questions(benchmarks)
    unit = " points" if are_shares else " of reward"
    ahead, behind = ("A", "B") if difference.mean > 0 else ("B", "A")
    size = f"{points(abs(difference.mean), are_shares, '')}{unit}"
    seeds = seed_differences(benchmarks)
    over_seeds = difference_of(seeds) if len(seeds) > 1 else None
    if difference.is_shown and (over_seeds is None or over_seeds.is_shown):
        lines = [f"{ahead} is ahead of {behind} by {size}, more than chance explains (p = {difference.p:.2g})."]
    elif difference.is_shown:
        lines = [f"With these seeds {ahead} is ahead of {behind} by {size} (p = {difference.p:.2g} over questions)."]
    else:
        lines = [f"No difference is shown (p = {difference.p:.2g}): it may be chance which of the two is ahead."]
    if over_seeds is not None:
        each = ", ".join(points(value, are_shares) for value in seeds)
        lines.append(f"Over {len(seeds)} training seeds: {each}; mean {points(over_seeds.mean, are_shares)}")
        lines[-1] += f" ({interval_text(over_seeds, are_shares)}), p = {over_seeds.p:.2g}."
        if 2 ** (1 - len(seeds)) >= SHOWN:
            lines.append(f"Whether other seeds show it is open: {len(seeds)} are too few for p < {SHOWN}; it takes 6.")
    return [part for text in lines for part in textwrap.wrap(text, WIDTH)]


def won_and_lost(each: Paired, most: int) -> list[str]:
    """How many questions each model is ahead on, and the first `most` of them, largest differences first."""
    differences = each.by_question
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    lines = [
        f"{printable(each.name)}: A ahead on {won} questions, B on {lost}, equal on {len(differences) - won - lost}"
    ]
    order = np.argsort(-np.abs(differences), kind="stable")
    for name, chosen in (("A", order[differences[order] > 0]), ("B", order[differences[order] < 0])):
        lines += [f"  {name} ahead:"] * (len(chosen) > 0 and most > 0)
        lines += [question_line(each, int(i)) for i in chosen[:most]]
        if 0 < most < len(chosen):
            lines.append(f"    and {len(chosen) - most} more (--list {len(chosen)} names them)")
    return lines


def question_line(each: Paired, i: int) -> str:
    """What both scored, the question's id where it has one, and its beginning; 80 columns."""
    form = ".0%" if each.are_shares else ".3g"
    row = each.rows[i]
    start = f"    {each.first[:, i].mean():>4{form}} : {each.second[:, i].mean():<4{form}}  "
    label = f"{row['id']}: " if row.get("id") is not None else ""
    return start + printable(textwrap.shorten(label + row["problem"], WIDTH - len(start), placeholder="…"))


def described(side: str, files: Files) -> list[str]:
    """The files of a side, with the model of each where the file says it."""
    lines = []
    for file, results in files.items():
        model = next((settings_of(result).get("model") for result in results.values()), None)
        lines.append(printable(f"{side}: {file}" + (f" ({model})" if model else "")))
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The flags of the command line. Raises ConfigError for what is unknown or does not go together."""
    parser = Parser(
        prog="evaluate.py compare",
        usage="python evaluate.py compare A.json B.json, or A1.json A2.json ... --against B1.json B2.json ...",
        description="Compare two models by the result files that evaluate.py --out wrote, paired by question.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files; of one model each, without --against")
    parser.add_argument("--against", nargs="+", metavar="FILE", help="those of the other model, in the same order")
    parser.add_argument("--list", type=int, default=10, help="won and lost questions to name, of each [10]")
    parser.add_argument(
        "--force", action="store_true", help="compare what the files share, although questions or settings differ"
    )
    options = parsed(parser, arguments, {})
    if options.against is None and len(options.files) != 2:
        raise ConfigError(
            "Name two result files, A.json B.json, or several of each model: A1.json A2.json --against B1.json B2.json."
        )
    if options.against is None:
        options.files, options.against = options.files[:1], options.files[1:]
    if len(options.files) != len(options.against):
        raise ConfigError(
            f"--against: {len(options.against)} files against {len(options.files)}; name as many of each model, one a "
            "training seed, in the same order."
        )
    names = [str(Path(file).resolve()) for file in [*options.files, *options.against]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{twice}: it is named twice; a file has no difference from itself.")
    if options.list < 0:
        raise ConfigError(f"--list {options.list}: it must be a whole number of at least 0.")
    return options


def main(arguments: list[str]) -> None:
    """Print the comparison of two models. `arguments`: what stands behind `compare`."""
    with one_sentence("evaluate.py compare"):
        options = options_of(arguments)
        first, second = (
            {file: read_results(Path(file)) for file in files} for files in (options.files, options.against)
        )
        benchmarks, notes = pairs(first, second, options.force)
        lines = described("A", first) + described("B", second)
        for note in notes:
            lines += textwrap.wrap(printable(f"Differs: {note}"), WIDTH)
        lines += ["", *table(benchmarks), "", *verdict(benchmarks)]
        for each in benchmarks:
            lines += ["", *won_and_lost(each, options.list)]
        print("\n".join(lines))
