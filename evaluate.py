"""Measure a model on questions: accuracy, avg@k and pass@k with intervals, by difficulty, with every completion.

    python evaluate.py --model MODEL --bench math500,aime24,arc_c --samples 8
    python evaluate.py --model MODEL --data FILE.jsonl [FILE.jsonl ...] --samples 4 --temperature 0.6
    python evaluate.py --bench list

`--bench` names benchmarks of harness/benchmarks.py. The training loop calls `evaluate` too. Intervals are 95 %
bootstrap intervals over questions: they say how far the figure could move with other questions of the same kind, not
with another training run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rollout
from harness.benchmarks import Source, named_benchmarks, read_benchmark, table_of_benchmarks
from harness.checkpoint import PART, write_whole
from harness.command import LEAST_TEMPERATURE, OF_EVALUATION, ConfigError, Parser, one_sentence, parsed, printable
from policy.model import check_files, position_limit
from questions import (
    DataError,
    Question,
    Reward,
    correctness,
    drop_unreadable,
    fitting,
    prompt_of,
    read_data,
    without_contradictions,
)
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

    Raises DataError where no question is left, and ValueError for k > 1 at temperature 0, where all completions are
    the same.
    """
    if temperature == 0 and k > 1:
        raise ValueError(f"At temperature 0 all completions of a question are the same: k = {k} must be 1.")
    questions, unreadable = drop_unreadable(questions) if reward is correctness else (questions, [])
    if not questions:
        raise DataError("there is no question whose gold answer the verifier can read.")
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
    trained: Any = {}
    if Path(options.model).name == "model" and config.is_file():
        try:
            trained = json.loads(config.read_text(encoding="utf-8"))
            trained = {name: trained.get(name) for name in ("system", "enable_thinking")}
        except (ValueError, AttributeError, RecursionError):
            raise DataError(
                f"{config}: it should say how the run's prompts looked, but it is no JSON object. Mend it, or move "
                "model/ elsewhere."
            ) from None
    system = trained.get("system") or "" if options.system is None else options.system
    thinking = trained.get("enable_thinking") if options.enable_thinking is None else options.enable_thinking
    style = PromptStyle(str(system), thinking)
    if style != PLAIN:
        print(printable(f"system prompt {system!r}, enable_thinking {thinking}"))
    return style


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The flags of a command line. Raises ConfigError for what is unknown, out of range, or does not go together."""
    parser = Parser(prog="evaluate.py", description="Measure a model on questions.", allow_abbrev=False)
    parser.add_argument("--model", help="Hub name, local directory, or .gguf file")
    parser.add_argument("--bench", nargs="+", help="benchmarks by name: a,b or a=FILE; list says what there is")
    parser.add_argument("--bench-dir", help="folder of the benchmarks' files, NAME.jsonl; without it, the Hub")
    parser.add_argument("--data", nargs="+", help="JSONL files or Hub sets, one benchmark each")
    parser.add_argument(
        "--samples", type=int, help="completions of each question, k; 1, or for --bench as its papers have it"
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
    parser.add_argument("--skip-bad", action="store_true", help="leave out lines of data that cannot be used")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument("--out", help="write everything, every completion included, to this JSON file")
    options = parsed(parser, arguments, OF_EVALUATION)
    if options.bench == ["list"]:
        return options
    if options.model is None:
        raise ConfigError("--model is missing: name the model to measure, a Hub name, local directory, or .gguf file.")
    if options.data is None and options.bench is None:
        raise ConfigError(
            "--data is missing: name the JSONL files or Hub sets to measure it on, or benchmarks by --bench."
        )
    if options.bench_dir is not None and options.bench is None:
        raise ConfigError(f"--bench-dir {options.bench_dir}: without --bench nothing is read from it; leave it out.")
    options.data = options.data or []
    options.bench = named_benchmarks(options.bench or [], options.bench_dir)
    if not 0 < options.top_p <= 1:
        raise ConfigError(f"--top-p {options.top_p:g}: it must be above 0 and at most 1.")
    if not 0 <= options.temperature < math.inf:
        raise ConfigError(f"--temperature {options.temperature:g}: it must be a number of at least 0.")
    if 0 < options.temperature < LEAST_TEMPERATURE:
        raise ConfigError(
            f"--temperature {options.temperature:g}: it must be 0, which takes the likeliest token, or at least "
            f"{LEAST_TEMPERATURE:g}: logits divided by less overflow."
        )
    for flag, least in (("samples", 1), ("max_new_tokens", 1), ("limit", 1), ("seed", 0)):
        value = getattr(options, flag)
        if value is not None and not least <= value < 2**63:
            allowed = f"of at least {least}" + ("" if value < least else f" and at most {2**63 - 1}")
            raise ConfigError(f"--{flag.replace('_', '-')} {value}: it must be a whole number {allowed}.")
    if options.temperature == 0 and (options.samples or 1) > 1:
        raise ConfigError(
            f"--samples {options.samples}: at --temperature 0 all completions are the same; use --samples 1."
        )
    twice = next((source for source in options.data if options.data.count(source) > 1), None)
    if twice:
        raise ConfigError(f"--data {twice}: it is named twice; leave one of them out.")
    if options.out is not None:
        check_out(options.out, options.data + [source.file for source in options.bench])
    return options


def check_out(out: str, data: list[str]) -> None:
    """Raise ConfigError where --out cannot be written, or is a file that is not a result of this program."""
    path = Path(out)
    if not out.strip():
        raise ConfigError("--out: the name of the file is empty.")
    if os.path.isdir(path) or out.endswith(("/", os.sep)):
        raise ConfigError(f"--out {out}: it is a folder; name a file in it, such as {path / 'result.json'}.")
    if any(os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path) for source in data):
        raise ConfigError(f"--out {out}: it is a file of --data, which would be lost. Give another one.")
    if os.path.isfile(path) and not is_result(path):
        raise ConfigError(
            f"--out {out}: there is a file that this program did not write. Give another name, or delete it."
        )
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not os.path.isdir(there):
        raise ConfigError(f"--out {out}: {there} is not a folder.")
    if not os.access(path if os.path.exists(path) else there, os.W_OK):
        raise ConfigError(f"--out {out}: nothing can be written there. Give another place.")


def is_result(path: Path) -> bool:
    """Is the file empty, or what `write` makes?"""
    if path.stat().st_size == 0:
        return True
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(results, dict) and all(
        isinstance(result, dict) and {"rows", "questions", "max_new_tokens"} <= result.keys()
        for result in results.values()
    )


@contextmanager
def result_file(out: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes the results. That it can be done is tried first: before a night of sampling, not after."""
    if not out:
        yield lambda results: None
        return
    path = Path(out)
    if os.path.exists(path) and not path.is_file():  # /dev/stdout, a pipe

        def write_directly(results: dict[str, Any]) -> None:
            path.write_text(json.dumps(results, indent=1), encoding="utf-8")

        yield write_directly
        return
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise ConfigError(f"--out {out}: it cannot be written ({error.strerror}). Give another place.") from error

    def write(results: dict[str, Any]) -> None:
        write_whole(path, json.dumps(results, indent=1))

    try:
        yield write
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    with one_sentence("evaluate.py"):
        options = options_of(sys.argv[1:] if arguments is None else arguments)
        if options.bench == ["list"]:
            print(table_of_benchmarks())
        else:
            measure(options)


def measure(options: argparse.Namespace) -> None:
    """Evaluate each benchmark, print its line, and write the results to --out."""
    check_files(options.model, "--model")
    sources = [*options.data, *options.bench]
    benchmarks = {source: questions_of(source, options) for source in sources}
    style = style_of(options)
    model, tokenizer = rollout.load(options.model, trust_remote_code=options.trust_remote_code)
    results: dict[str, Any] = {}
    with result_file(options.out) as write:
        print(f"{'benchmark':<24}{'questions':>10}{'k':>4}{'avg@k':>8}{'95 %':>17}{'pass@k':>8}{'tokens':>7}")
        for source, (questions, notes) in benchmarks.items():
            key = source.name if isinstance(source, Source) else source
            name = printable(Path(key).stem)
            k = samples_of(source, options)
            try:
                limit = options.max_new_tokens or default_limit(model, tokenizer, questions, style)
                kept, further = fitting(model, tokenizer, questions, limit, style)
                result = results[key] = evaluate(
                    model, tokenizer, kept,
                    k=k, temperature=options.temperature, top_p=options.top_p, max_new_tokens=limit, seed=options.seed,
                    style=style, label=name,
                )  # fmt: skip
            except (DataError, FloatingPointError) as error:  # the second where the model gives NaN
                raise type(error)(f"{key}: {error}") from error
            low, high = result["interval"]
            print(
                f"{name[:23]:<24}{result['questions']:>10}{k:>4}{result['accuracy']:>8.1%}"
                f"{f'{low:.1%} to {high:.1%}':>17}{result[f'pass@{k}']:>8.1%}{result['length']:>7.0f}"
            )
            print(f"  {result['truncated']:.1%} cut off")
            result |= {"max_new_tokens": limit, "left_out": len(questions) - len(kept)}
            print(f"  at most {limit} tokens each")
            for note in notes + further:
                print(f"  {printable(note)}")
            if result["unreadable"]:
                print(f"  {result['unreadable']} questions left out: their gold answer cannot be read")
        if len(results) > 1:
            print(f"{'mean of benchmarks':<38}{np.mean([result['accuracy'] for result in results.values()]):>8.1%}")
        write(results)


def questions_of(source: str | Source, options: argparse.Namespace) -> tuple[list[Question], list[str]]:
    """The questions that --limit leaves of a benchmark, and notes. Raises DataError for lines that cannot be used."""
    if isinstance(source, Source):
        questions, notes = read_benchmark(source, skip_bad=options.skip_bad)
    else:
        questions, notes = read_data([source], skip_bad=options.skip_bad)
    kept, further = without_contradictions(questions[: options.limit], skip_bad=options.skip_bad)
    return kept, notes + further


def samples_of(source: str | Source, options: argparse.Namespace) -> int:
    """Completions of each question: --samples, or what the benchmark's papers have; 1 of greedy decoding."""
    if options.samples is not None or options.temperature == 0:
        return options.samples or 1
    return source.benchmark.samples if isinstance(source, Source) else 1


if __name__ == "__main__":
    main()
