"""Measure a model on questions: accuracy, avg@k and pass@k with intervals, by difficulty, with every completion.

    python evaluate.py --model MODEL --data FILE.jsonl [FILE.jsonl ...] --samples 4 --temperature 0.6

The training loop calls `evaluate` too. Intervals are 95 % bootstrap intervals over questions: they say how far the
figure could move with other questions of the same kind, not with another training run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rollout
from policy.model import position_limit
from questions import DataError, Question, Reward, correctness, drop_unreadable, fitting, prompt_of, read_questions
from rollout import PLAIN, PromptStyle

BATCH_COMPLETIONS = 256  # sampled and graded between two moves of the progress bar


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
) -> dict[str, Any]:
    """k completions of each question, graded.

    Gives `reward` (mean of all completions) with `reward_interval`; `accuracy` (share of right completions, those that
    earn `right` or more) with `interval`; the same as `avg@k`; `pass@k` (share of questions with a right one among the
    k) with `pass_interval`; `length` (mean tokens of a completion) and `truncated` (share cut off at the limit);
    `levels`: the same means and the number of questions for each value of the questions' `level`; `unreadable`:
    questions left out because their gold answer cannot be read; `rows`: of each question its problem, gold, texts and
    rewards. Where nothing says what is right (`right` infinite), there is no accuracy and no pass@k.

    Raises ValueError where no question is left, or for k > 1 at temperature 0, where all completions are the same.
    """
    if temperature == 0 and k > 1:
        raise ValueError(f"At temperature 0 all completions of a question are the same: k = {k} must be 1.")
    questions, unreadable = drop_unreadable(questions) if reward is correctness else (questions, [])
    if not questions:
        raise ValueError("There is no question with a readable gold answer to evaluate on.")
    prompts = [prompt_of(tokenizer, question, style) for question in questions]
    by_length = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    rewards, lengths = np.zeros((len(questions), k)), np.zeros((len(questions), k))
    texts: list[list[str]] = [[] for _ in questions]
    truncated, seen = 0, Counter[str]()
    step = max(1, BATCH_COMPLETIONS // k)
    with tqdm(total=len(questions) * k, desc=label, unit="completion", leave=False, file=sys.stderr) as bar:
        for start in range(0, len(questions), step):
            part = by_length[start : start + step]
            rollouts = rollout.sample(
                model,
                tokenizer,
                [prompts[i] for i in part],
                k,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                seen=seen,
            )
            earned = reward(rollouts.texts, [questions[i] for i in part for _ in range(k)])
            for n, i in enumerate(part):
                group = slice(n * k, (n + 1) * k)
                rewards[i], lengths[i] = earned[group], rollouts.lengths[group].tolist()
                texts[i] = rollouts.texts[group]
            truncated += int(rollouts.truncated.sum())
            bar.update(len(part) * k)
    is_right = rewards >= right  # (questions, k)
    result: dict[str, Any] = {}
    if not math.isinf(right):
        result = {
            "accuracy": float(is_right.mean()),
            "interval": bootstrap(is_right.mean(1)),
            f"avg@{k}": float(is_right.mean()),
            f"pass@{k}": float(is_right.any(1).mean()),
            "pass_interval": bootstrap(is_right.any(1).astype(float)),
        }
    result |= {
        "reward": float(rewards.mean()),
        "reward_interval": bootstrap(rewards.mean(1)),
        "length": float(lengths.mean()),
        "truncated": truncated / rewards.size,
        "questions": len(questions),
        "unreadable": len(unreadable),
        "levels": {},
        "rows": [
            {
                "problem": question["problem"],
                "answer": question["answer"],
                "texts": texts[i],
                "rewards": rewards[i].tolist(),
            }
            for i, question in enumerate(questions)
        ],
    }
    levels = [question.get("level") for question in questions]
    for level in sorted({level for level in levels if level is not None}, key=str):
        members = [i for i, other in enumerate(levels) if other == level]
        accuracy = {} if math.isinf(right) else {"accuracy": float(is_right[members].mean())}
        result["levels"][str(level)] = {
            **accuracy,
            "reward": float(rewards[members].mean()),
            "length": float(lengths[members].mean()),
            "questions": len(members),
        }
    return result


def bootstrap(values: np.ndarray, resamples: int = 2_000) -> tuple[float, float]:
    """95 % interval of the mean under resampling. (n,) -> (low, high)"""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def comparison_table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Accuracy and length of two evaluations of the same questions, level by level, in percent and tokens.

    Where nothing says what is right, the mean reward stands in place of the accuracy.
    """
    name, form, unit = ("accuracy", "9.1%", 100) if "accuracy" in before else ("reward", "9.3g", 1)
    head = f"{'level':<10}{'questions':>10}{'before':>9}{'after':>9}{'gain':>9}{'tokens before':>16}{'after':>8}"
    lines = [head, "-" * len(head)]

    def line(level: str, a: dict[str, Any], b: dict[str, Any]) -> str:
        gain = f"{unit * (b[name] - a[name]):>+{'9.1f' if unit > 1 else '9.3g'}}"
        return (
            f"{level:<10}{a['questions']:>10}{a[name]:>{form}}{b[name]:>{form}}{gain}"
            f"{a['length']:>16.1f}{b['length']:>8.1f}"
        )

    for level, figures in before["levels"].items():
        lines.append(line(level, figures, after["levels"][level]))
    lines.append(line("all", before, after))
    return "\n".join(lines)


def default_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], style: PromptStyle
) -> int:
    """1,024 tokens, or what the longest prompt leaves of the model's positions, at least half of them."""
    positions = position_limit(model)
    if positions is None:
        return 1024
    longest = max(len(rollout.encode_prompt(tokenizer, prompt_of(tokenizer, each, style))) for each in questions)
    return min(1024, max(positions - longest, positions // 2))


def style_of(options: argparse.Namespace) -> PromptStyle:
    """How prompts look: as the flags say, or else as the run that made the model trained with them."""
    config = Path(options.model).parent / "config.json"
    trained: dict[str, Any] = {}
    if Path(options.model).name == "model" and config.is_file():
        trained = json.loads(config.read_text(encoding="utf-8"))
    system = trained.get("system", "") if options.system is None else options.system
    thinking = trained.get("enable_thinking") if options.enable_thinking is None else options.enable_thinking
    style = PromptStyle(system, thinking)
    if style != PLAIN:
        print(f"system prompt {system!r}, enable_thinking {thinking}")
    return style


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Measure a model on questions.")
    parser.add_argument("--model", required=True, help="Hub name, local directory, or .gguf file")
    parser.add_argument("--data", required=True, nargs="+", help="JSONL files or Hub sets, one benchmark each")
    parser.add_argument(
        "--samples", type=int, default=1, help="completions of each question: the k of avg@k and pass@k"
    )
    parser.add_argument("--temperature", type=float, default=0.6, help="0 takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of the probability mass that is sampled from")
    parser.add_argument(
        "--max-new-tokens", type=int, help="limit of a completion; 1024, or what the model has room for"
    )
    parser.add_argument("--limit", type=int, help="only the first questions of each benchmark")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same completions")
    parser.add_argument("--system", help="system prompt, for models with a chat template")
    parser.add_argument("--enable-thinking", action=argparse.BooleanOptionalAction, help="passed to the chat template")
    parser.add_argument("--out", help="write everything, every completion included, to this JSON file")
    options = parser.parse_args(arguments)
    if not 0 < options.top_p <= 1:
        parser.error(f"--top-p {options.top_p:g}: it must be above 0 and at most 1.")
    for flag, least in (("samples", 1), ("max_new_tokens", 1), ("limit", 1), ("temperature", 0)):
        value = getattr(options, flag)
        if value is not None and value < least:
            parser.error(f"--{flag.replace('_', '-')} {value}: it must be at least {least}.")
    if options.temperature == 0 and options.samples > 1:
        parser.error(f"--samples {options.samples}: at --temperature 0 all completions are the same; use --samples 1.")
    try:
        benchmarks = {source: read_questions([source])[: options.limit] for source in options.data}
        model, tokenizer = rollout.load(options.model)
    except (DataError, OSError, ImportError, NotImplementedError) as error:
        sys.exit(f"evaluate.py: {error}")
    k, results, style = options.samples, {}, style_of(options)
    print(f"{'benchmark':<32}{'questions':>10}{f'avg@{k}':>9}{'95 %':>16}{f'pass@{k}':>9}{'tokens':>8}{'cut off':>9}")
    for source, questions in benchmarks.items():
        try:
            limit = options.max_new_tokens or default_limit(model, tokenizer, questions, style)
            kept, notes = fitting(model, tokenizer, questions, limit, style)
            result = results[source] = evaluate(
                model, tokenizer, kept,
                k=k, temperature=options.temperature, top_p=options.top_p, max_new_tokens=limit, seed=options.seed,
                style=style, label=Path(source).stem,
            )  # fmt: skip
        except (DataError, FloatingPointError) as error:  # the second where the model gives NaN
            sys.exit(f"evaluate.py: {source}: {error}")
        low, high = result["interval"]
        print(
            f"{Path(source).stem[:31]:<32}{result['questions']:>10}{result['accuracy']:>9.1%}"
            f"{f'{low:.1%} to {high:.1%}':>16}{result[f'pass@{k}']:>9.1%}{result['length']:>8.1f}"
            f"{result['truncated']:>9.1%}"
        )
        result |= {"max_new_tokens": limit, "left_out": len(questions) - len(kept)}
        print(f"  at most {limit} tokens each")
        for note in notes:
            print(f"  {note}")
        if result["unreadable"]:
            print(f"  {result['unreadable']} questions left out: their gold answer cannot be read")
    if len(results) > 1:
        print(f"{'mean of benchmarks':<42}{np.mean([result['accuracy'] for result in results.values()]):>9.1%}")
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
