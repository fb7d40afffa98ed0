"""Measure a model on questions: accuracy, avg@k and pass@k with intervals, by difficulty, with every completion.

    python evaluate.py --model MODEL --bench math500,aime24,arc_c --samples 8
    python evaluate.py --model MODEL --data FILE.jsonl [FILE.jsonl ...] --samples 4 --temperature 0.6
    python evaluate.py --bench list
    python evaluate.py compare A.json B.json

`--bench` names benchmarks of harness/benchmarks.py; docs/evaluation.md explains every figure. The training loop calls
`evaluate` too.

Two kinds of noise are told apart. `interval` is over questions: how far the figure could move with other questions of
the same kind. `sampling_interval` is of sampling alone: how far it could move with other completions of these
questions. Neither says how far it moves with another training run.
"""

from __future__ import annotations

import harness.signals  # noqa: F401  # isort: skip  (first: Ctrl-C while PyTorch is imported)

import argparse
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rollout
from harness.answers import Answer, Keeper, bar_of, grading, telling
from harness.benchmarks import table_of_benchmarks
from harness.command import one_sentence, printable
from harness.evaluation import (
    identity_of,
    measured,
    options_of,
    result_file,
    settings_of,
    short_name,
    style_of,
    without_examples,
)
from harness.mapping import first_prompt
from harness.prompting import told
from policy.model import check_files, position_limit
from questions import DataError, Question, Reward, correctness, drop_unreadable, fitting, prompt_of
from rollout import PLAIN, PromptStyle
from verify.reading import Reading, vote

BATCH_COMPLETIONS = 256  # sampled at once, at most
GPU_BATCHES = 8  # so many times more on a GPU
Row = dict[str, Any]  # of the result: one question with its completions

# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    *,
    k: int = 1,
    temperature: float = 0.6,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
    reward: Reward = correctness,
    right: float = 1.0,
    style: PromptStyle = PLAIN,
    label: str = "evaluate",
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """k completions of each question, graded: `figures` of them, `unreadable`, and `rows`.

    `unreadable` counts the questions left out because their gold answer cannot be read. `rows` has for each question
    its `id`, `problem`, `answer`, `choices`, `level` and `subject`, and lists of k: `texts`, `rewards`, `lengths` in
    tokens, `truncated` (cut off at the limit), and where the verifier grades, `extracted` and `read`: the answer as it
    stands in the text, and as what it was read. Where nothing says what is right (`right` infinite), there is no
    accuracy.

    With a `keeper` every answer is kept as soon as it is graded, and those that it knows are not sampled again.

    Raises DataError where no question is left, and ValueError for k > 1 at temperature 0, where all completions are
    the same.
    """
    if temperature == 0 and k > 1:
        raise ValueError(f"At temperature 0 all completions of a question are the same: k = {k} must be 1.")
    questions, unreadable = drop_unreadable(questions) if reward is correctness else (questions, [])
    if not questions:
        raise DataError("there is no question whose gold answer the verifier can read.")
    keeper = keeper or Keeper()
    prompts = [prompt_of(tokenizer, question, style) for question in questions]
    by_length = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    step = max(1, BATCH_COMPLETIONS // k)
    batches = [by_length[start : start + step] for start in range(0, len(questions), step)]
    with grading(questions, k, reward, keeper, batches) as grader, bar_of(label, grader) as bar:
        completions = rollout.sample_each(
            model,
            tokenizer,
            [prompts[i] for i in by_length],
            k,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            rows=BATCH_COMPLETIONS * (GPU_BATCHES if model.device.type == "cuda" else 1),
            done={(n, g) for n, i in enumerate(by_length) for g in range(k) if (i, g) in keeper.answers},
            progress=telling(bar, grader, right),
        )
        for sampled in completions:
            grader.add(by_length[sampled.prompt], sampled)
            bar.update()
        grader.finish()
    rows = [row_of(question, i, [keeper.answers[i, g] for g in range(k)]) for i, question in enumerate(questions)]
    if reward is not correctness:  # nothing was read
        rows = [{name: value for name, value in row.items() if name not in ("extracted", "read")} for row in rows]
    return {**figures_of_sets(rows, right), "unreadable": len(unreadable), "rows": rows}


def row_of(question: Question, number: int, answers: list[Answer]) -> Row:
    """What is told of a question in the result. Without an id of its own it has its place in the data, from 0."""
    row = {"id": question.get("id", number), "problem": question["problem"], "answer": question["answer"]}
    row |= {name: question[name] for name in ("choices", "eval_set") if question.get(name)}
    return {
        **row,
        "level": question.get("level"),
        "subject": question.get("subject"),
        "texts": [each.text for each in answers],
        "rewards": [each.reward for each in answers],
        "lengths": [each.length for each in answers],
        "truncated": [each.truncated for each in answers],
        "extracted": [each.extracted for each in answers],
        "read": [each.read for each in answers],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def figures(rows: list[Row], right: float = 1.0) -> dict[str, Any]:
    """The figures of Q questions with k completions each.

    `accuracy`, also as `avg@k`: share of right completions, those that earn `right` or more, with `interval` and
    `sampling_interval`; `pass@j` for j ≤ k, and `pass_interval` of pass@k; `maj@k` and `consistency` where answers were
    read; `reward` with `reward_interval`; `length`: mean tokens; `truncated` and `no_answer`: shares of completions;
    `questions`; `levels` and `subjects`: accuracy, reward, length and questions of each.
    """
    rewards, lengths = np.array([row["rewards"] for row in rows]), np.array([row["lengths"] for row in rows])  # (Q, k)
    is_right, k = rewards >= right, rewards.shape[1]
    read = "read" in rows[0]
    votes = [[vote(Reading(*pair)) for pair in zip(row["extracted"], row["read"], strict=True)] for row in rows if read]
    result: dict[str, Any] = {}
    if not math.isinf(right):
        passed = pass_at(is_right.sum(1), k)  # (Q, k)
        result = {
            "accuracy": float(is_right.mean()),
            "interval": bootstrap(is_right.mean(1)),
            "sampling_interval": sampling_interval(is_right),
            f"avg@{k}": float(is_right.mean()),
            **{f"pass@{j}": float(passed[:, j - 1].mean()) for j in range(1, k + 1)},
            "pass_interval": bootstrap(passed[:, -1]),
        }
        if read:
            majorities = [majority(*pair) for pair in zip(votes, is_right.tolist(), strict=True)]
            result[f"maj@{k}"] = float(np.mean(majorities))
    if read:
        result["consistency"] = float(np.mean([agreement(each) for each in votes]))
        result["no_answer"] = float(np.mean([without_answer(row) for row in rows]))
    result |= {
        "reward": float(rewards.mean()),
        "reward_interval": bootstrap(rewards.mean(1)),
        "length": float(lengths.mean()),
        "truncated": float(np.mean([row["truncated"] for row in rows])),
        "questions": len(rows),
    }
    for field in ("level", "subject"):
        groups = defaultdict(list)
        for number, row in enumerate(rows):
            if row[field] is not None:
                groups[str(row[field])].append(number)
        result[f"{field}s"] = {}
        for name, members in sorted(groups.items()):
            accuracy = {} if math.isinf(right) else {"accuracy": float(is_right[members].mean())}
            result[f"{field}s"][name] = {
                **accuracy,
                "reward": float(rewards[members].mean()),
                "length": float(lengths[members].mean()),
                "questions": len(members),
            }
    return result


def figures_of_sets(rows: list[Row], right: float = 1.0) -> dict[str, Any]:
    """The figures of questions; of several held-out sets those of each, as `sets`, and above them their means."""
    by_set = defaultdict(list)
    for row in rows:
        by_set[row.get("eval_set", "")].append(row)
    if len(by_set) < 2:
        return figures(rows, right)
    sets = {name: figures(members, right) for name, members in by_set.items()}
    first = next(iter(sets.values()))
    means: dict[str, Any] = {
        name: float(np.mean([each[name] for each in sets.values()]))
        for name, value in first.items()
        if isinstance(value, float)
    }
    for name, of in (("interval", "accuracy"), ("sampling_interval", "accuracy"), ("reward_interval", "reward"),
                     ("pass_interval", f"pass@{len(rows[0]['rewards'])}")):  # fmt: skip
        if name in first:
            means[name] = interval_of_mean([(each[of], each[name]) for each in sets.values()])
    return {**means, "questions": len(rows), "levels": {}, "subjects": {}, "sets": sets}


def interval_of_mean(parts: list[tuple[float, tuple[float, float] | None]]) -> tuple[float, float] | None:
    """The interval of the mean of independent values, from theirs; None where one has none.

    Distances to the ends are squared and added, as variances are (Zou and Donner 2008).
    """
    known = [(value, *interval) for value, interval in parts if interval is not None]
    if len(known) < len(parts):
        return None
    value, low, high = np.array(known).T
    down, up = (float(np.sqrt(((value - end) ** 2).sum()) / len(parts)) for end in (low, high))
    return float(value.mean()) - down, float(value.mean()) + up


def pass_at(right: np.ndarray, k: int) -> np.ndarray:
    """pass@j for j = 1 to k: 1 − C(k − c, j)/C(k, j), of questions with c right ones of k. (Q,) -> (Q, k)

    The chance that at least one of j completions is right, drawn from the k without putting any back: the unbiased
    estimator of Chen et al. 2021 (arXiv 2107.03374).
    """
    drawn = np.arange(k)  # before the draw number j
    all_wrong = np.maximum(k - right[:, None] - drawn, 0) / (k - drawn)
    return 1 - all_wrong.cumprod(1)


def majority(votes: list[str | None], is_right: list[bool]) -> float:
    """Is the most common answer of a question right? Of several that are equally common, the mean; 0 without any."""
    counts = Counter(each for each in votes if each is not None)
    leading = [each for each, count in counts.items() if count == max(counts.values())]
    shares = [np.mean([one for one, voted in zip(is_right, votes, strict=True) if voted == each]) for each in leading]
    return float(np.mean(shares)) if shares else 0.0


def agreement(votes: list[str | None]) -> float:
    """Share of a question's completions that give its most common answer."""
    counts = Counter(each for each in votes if each is not None)
    return max(counts.values(), default=0) / len(votes)


def without_answer(row: Row) -> float:
    """Share of a question's completions without an answer; with choices, without one that names a choice."""
    found = row["read"] if row.get("choices") else row["extracted"]
    return sum(each is None for each in found) / len(found)


def bootstrap(values: np.ndarray, resamples: int = 2_000) -> tuple[float, float]:
    """95 % interval of the mean under resampling. (n,) -> (low, high)"""
    rng = np.random.default_rng(0)
    at_once = max(1, 4_000_000 // len(values))  # bounds the memory
    parts = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = np.concatenate([values[rng.integers(0, len(values), (part, len(values)))].mean(1) for part in parts])
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def sampling_interval(is_right: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the accuracy over other completions of the same questions; None for one of each. (Q, k)

    By the normal approximation: the variance of a question's share p of right ones is p(1 − p)/(k − 1).
    """
    questions, k = is_right.shape
    if k == 1:
        return None
    shares = is_right.mean(1)
    half = 1.96 * math.sqrt(float((shares * (1 - shares)).sum()) / (k - 1)) / questions
    return max(0.0, float(is_right.mean()) - half), min(1.0, float(is_right.mean()) + half)


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def comparison_table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Accuracy and length of two evaluations of the same questions, level by level, in percent and tokens.

    Of several sets a line for each, and their mean. Where nothing says what is right, the mean reward stands in place
    of the accuracy.
    """
    name, form, unit = ("accuracy", "9.1%", 100) if "accuracy" in before else ("reward", "9.3g", 1)
    kind, last = ("set", "mean") if "sets" in before and "sets" in after else ("level", "all")
    width = max(10, *(len(part) + 1 for part in before[f"{kind}s"]), 0)
    head = f"{kind:<{width}}{'questions':>10}{'before':>9}{'after':>9}{'gain':>9}{'tokens before':>16}{'after':>8}"
    lines = [head, "-" * len(head)]

    def line(level: str, a: dict[str, Any], b: dict[str, Any]) -> str:
        gain = f"{unit * (b[name] - a[name]):>+{'9.1f' if unit > 1 else '9.3g'}}"
        return (
            f"{level:<{width}}{a['questions']:>10}{a[name]:>{form}}{b[name]:>{form}}{gain}"
            f"{a['length']:>16.1f}{b['length']:>8.1f}"
        )

    for part, figures in before[f"{kind}s"].items():
        lines.append(line(part, figures, after[f"{kind}s"][part]))
    lines.append(line(last, before, after))
    return "\n".join(lines)


HEAD = f"{'benchmark':<18}{'questions':>9}{'k':>5}{'avg@k':>8}{'95 %':>15}{'maj@k':>8}{'pass@k':>8}{'tokens':>8}"


def line_of(name: str, result: dict[str, Any]) -> str:
    """A line under HEAD, of a result of `evaluate`: shares in percent, 79 columns."""
    k = len(result["rows"][0]["rewards"])
    return (
        f"{name[:17]:<18}{result['questions']:>9}{k:>5}{result['accuracy']:>8.1%}{percent(result['interval']):>15}"
        f"{result[f'maj@{k}']:>8.1%}{result[f'pass@{k}']:>8.1%}{result['length']:>8.0f}"
    )


def details_of(result: dict[str, Any]) -> list[str]:
    """What is to be known of a line beside its figures."""
    told = [
        f"at most {result['max_new_tokens']} tokens each; {result['truncated']:.1%} cut off, "
        f"{result['no_answer']:.1%} without an answer"
    ]
    if result["sampling_interval"] is not None:
        told.append(
            f"with other completions of these questions {percent(result['sampling_interval'])} (95 %); "
            f"{result['consistency']:.1%} agree"
        )
    if result["questions"] < 100:
        told.append(f"few questions: one of them is {100 / result['questions']:.1f} points")
    if result["unreadable"]:
        told.append(f"{result['unreadable']} questions left out: their gold answer cannot be read")
    return told


def percent(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def default_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], style: PromptStyle
) -> int:
    """1,024 tokens, or what the longest prompt leaves of the model's positions, at least half of them."""
    positions = position_limit(model)
    if positions is None:
        return 1024
    longest = max(len(rollout.encode_prompt(tokenizer, prompt_of(tokenizer, each, style))) for each in questions)
    return min(1024, max(positions - longest, positions // 2))


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["compare"]:
        from harness import compare  # not above: it takes from here how intervals are made

        compare.main(given[1:])
        return
    with one_sentence("evaluate.py"):
        options = options_of(given)
        if options.bench == ["list"]:
            print(table_of_benchmarks())
        elif options.chat:
            from harness import chat  # not above, as compare

            chat.talk(options)
        else:
            measure(options)


def measure(options: argparse.Namespace) -> None:
    """Evaluate each benchmark, print its line, and write the results to --out and their page to --html."""
    from harness import page  # not above, as compare

    if options.html is not None:
        page.check_out(options.html, "--html")
    check_files(options.model, "--model")
    style = style_of(options)
    benchmarks = [without_examples(each, style) for each in measured(options)]
    if style != PLAIN:
        print(printable(told(style)))
    model, tokenizer = rollout.load(options.model, trust_remote_code=options.trust_remote_code)
    results: dict[str, Any] = {}
    with result_file(options.out) as (write, part):
        identity = identity_of(options.model, model, tokenizer)
        print(HEAD, flush=True)
        for each in benchmarks:
            shown = printable(short_name(each.name, [other.name for other in benchmarks]))
            try:
                limit = options.max_new_tokens or default_limit(model, tokenizer, each.questions, style)
                kept, notes = fitting(model, tokenizer, each.questions, limit, style)
                settings = settings_of(options, each, limit, style, identity)
                keeper = Keeper() if part is None else part.begin(each.name, settings)
                if keeper.answers:
                    notes.append(f"{len(keeper.answers)} answers are those of an evaluation that was interrupted.")
                result = results[each.name] = evaluate(
                    model, tokenizer, kept,
                    k=each.samples, temperature=options.temperature, top_p=options.top_p, max_new_tokens=limit,
                    seed=options.seed, style=style, label=shown, keeper=keeper,
                )  # fmt: skip
            except (DataError, FloatingPointError) as error:  # the second where the model gives NaN
                raise type(error)(f"{each.name}: {error}") from error
            result |= {"max_new_tokens": limit, "left_out": len(each.questions) - len(kept), "settings": settings}
            print(line_of(shown, result))
            notes.append(first_prompt(tokenizer, kept[0], style))
            for note in details_of(result) + each.notes + notes:
                print(f"  {printable(note)}")
        if len(results) > 1:
            print(f"{'mean of benchmarks':<32}{np.mean([result['accuracy'] for result in results.values()]):>8.1%}")
        write(results)
    if options.html is not None:
        page.write_evaluation(results, Path(options.html))


if __name__ == "__main__":
    main()
