"""The command line of evaluate.py: its flags, where the result goes, and everything that fixes the numbers in it."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.answers import PartFile
from harness.benchmarks import Source, named_benchmarks, read_benchmark
from harness.checkpoint import PART, write_whole
from harness.command import LEAST_TEMPERATURE, OF_EVALUATION, ConfigError, Parser, parsed
from harness.mapping import names_of
from harness.prompting import Contents, arguments_of, contents_of, contents_of_record
from questions import DataError, Question, key_of, read_data, values_of, without_contradictions
from rollout import INSTRUCTION, PLAIN, PromptStyle, noise_key

NOT_IN_A_CHAT = ("data", "map", "bench", "bench_dir", "samples", "limit", "shuffle_options", "skip_bad", "out", "html")
MOST_ANSWERS = 10_000_000  # of one benchmark: what is more is a slip of the pen, and would fill the memory

# ---------------------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------------------


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The flags of a command line. Raises ConfigError for what is unknown, out of range, or does not go together."""
    parser = Parser(prog="evaluate.py", description="Measure a model on questions.", allow_abbrev=False)
    parser.add_argument("--model", help="Hub name, local directory, or .gguf file")
    parser.add_argument("--bench", nargs="+", help="benchmarks by name: a,b or a=FILE; list says what there is")
    parser.add_argument("--bench-dir", help="folder of the benchmarks' files, NAME.jsonl; without it, the Hub")
    parser.add_argument("--data", nargs="+", help="files of questions or Hub sets, one benchmark each")
    parser.add_argument("--map", nargs="+", default=[], help="NAME=FIELD, where fields of --data have other names")
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
    parser.add_argument("--template-arg", nargs="+", help="NAME=VALUE, further arguments of the chat template")
    parser.add_argument("--prompt-file", help="file with a template of the prompt: {problem} and {choices} stand in it")
    parser.add_argument("--examples", help="file of solved questions, as --data, that every prompt shows first")
    parser.add_argument("--shuffle-options", type=int, metavar="SEED", help="choices in another order, by this seed")
    parser.add_argument("--skip-bad", action="store_true", help="leave out lines of data that cannot be used")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument("--out", help="write everything, every completion included, to this JSON file")
    parser.add_argument("--html", help="write a page of it, to look at in a browser, to this file")
    parser.add_argument("--chat", action="store_true", help="answer questions that are typed, with a verdict behind =>")
    options = parsed(parser, arguments, OF_EVALUATION)
    if options.bench == ["list"]:
        return options
    if options.model is None:
        raise ConfigError("--model is missing: name the model to measure, a Hub name, local directory, or .gguf file.")
    if options.chat:
        for name in NOT_IN_A_CHAT:
            if getattr(options, name) not in (None, False, []):
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag}: with --chat nothing is measured, and it has no use; leave one of them out.")
    elif options.data is None and options.bench is None:
        raise ConfigError("--data is missing: name the files or Hub sets to measure it on, or benchmarks by --bench.")
    if options.bench_dir is not None and options.bench is None:
        raise ConfigError(f"--bench-dir {options.bench_dir}: without --bench nothing is read from it; leave it out.")
    if options.map and options.data is None:
        raise ConfigError(f"--map {' '.join(options.map)}: it says how --data is read, and there is none.")
    options.map = names_of(options.map)
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
    arguments_of(options.template_arg or [])
    for flag, least in (("samples", 1), ("max_new_tokens", 1), ("limit", 1), ("seed", 0), ("shuffle_options", 0)):
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


def style_of(options: argparse.Namespace) -> PromptStyle:
    """How prompts look: as the flags say, or else as the run that made the model trained with them."""
    style = trained_style(options.model)
    given = contents_of(options.prompt_file or "", options.examples or "")
    arguments = {} if options.template_arg is None else arguments_of(options.template_arg)
    return PromptStyle(
        system=style.system if options.system is None else options.system,
        enable_thinking=style.enable_thinking if options.enable_thinking is None else options.enable_thinking,
        template=style.template if options.prompt_file is None else given.template,
        arguments=style.arguments if options.template_arg is None else arguments,
        examples=style.examples if options.examples is None else given.examples,
    )


def trained_style(model: str) -> PromptStyle:
    """How the prompts of a run looked, where the model is its model/. Raises DataError where that cannot be read."""
    config = Path(model).parent / "config.json"
    if Path(model).name != "model" or not config.is_file():
        return PLAIN
    try:
        trained = json.loads(config.read_text(encoding="utf-8"))
        contents = contents_of_record(trained["prompt_contents"]) if trained.get("prompt_contents") else Contents()
        arguments = arguments_of(trained.get("template_arg") or [])
        system, thinking = str(trained.get("system") or ""), trained.get("enable_thinking")
        return PromptStyle(system, thinking, contents.template, arguments, contents.examples)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise DataError(
            f"{config}: it should say how the run's prompts looked, but it is not what a run writes. Mend it, or move "
            "model/ elsewhere."
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# Where the result goes
# ---------------------------------------------------------------------------------------------------------------------


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
def result_file(out: str | None) -> Iterator[tuple[Callable[[dict[str, Any]], None], PartFile | None]]:
    """A function that writes the results, and where single answers are kept until then, or None where they cannot be.

    That it can be written is tried first: before a night of sampling, not after. Where the block ends before its time,
    the answers stay; a Ctrl-C says so. Raises ConfigError where it cannot be written.
    """
    if not out:
        yield lambda results: None, None
        return
    path = Path(out)
    if os.path.exists(path) and not path.is_file():  # /dev/stdout, a pipe

        def write_directly(results: dict[str, Any]) -> None:
            path.write_text(json.dumps(results, indent=1), encoding="utf-8")

        yield write_directly, None
        return
    tried = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tried.touch()
        tried.unlink()
    except OSError as error:
        raise ConfigError(f"--out {out}: it cannot be written ({error.strerror}). Give another place.") from error
    part = PartFile(path)

    def write(results: dict[str, Any]) -> None:
        write_whole(path, json.dumps(results, indent=1))
        part.path.unlink(missing_ok=True)

    try:
        yield write, part
    except KeyboardInterrupt:
        if part.count():
            raise KeyboardInterrupt(
                f"interrupted. {part.count()} answers are in {part.path}; the same command goes on from there."
            ) from None
        raise
    finally:
        if not part.count():
            part.path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured, and what fixes the numbers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One benchmark or data source: its questions, and how it is measured."""

    name: str  # the key of the result
    source: str | Source
    questions: list[Question]
    notes: list[str]
    samples: int  # completions of each question

    @property
    def data(self) -> str:
        return self.source if isinstance(self.source, str) else self.source.data

    @property
    def rel_tol(self) -> float:
        return 0.0 if isinstance(self.source, str) else self.source.benchmark.rel_tol


def short_name(name: str, names: list[str]) -> str:
    """Of a file without its folder and ending, for tables; with the folder where another one is called the same."""
    stem, folder = Path(name).stem, Path(name).parent.name
    alike = [other for other in names if other != name and Path(other).stem == stem]
    return f"{folder}/{stem}" if alike and folder else stem


def measured(options: argparse.Namespace) -> list[Measured]:
    """What --data and --bench name.

    Raises DataError for lines that cannot be used, and ConfigError for too many answers.
    """
    found = []
    for source in [*options.data, *options.bench]:
        name = source if isinstance(source, str) else source.name
        questions, notes = questions_of(source, options)
        samples = samples_of(source, options)
        if len(questions) * samples > MOST_ANSWERS:
            raise ConfigError(
                f"--samples {samples}: with the {len(questions):,} questions of {name} that is more than "
                f"{MOST_ANSWERS:,} answers; lower it, or take fewer questions by --limit."
            )
        found.append(Measured(name, source, questions, notes, samples))
    options.map.check(options.data)
    return found


def without_examples(measured: Measured, style: PromptStyle) -> Measured:
    """The same without the questions whose solutions every prompt shows, and with a note of them."""
    shown = {key_of({"problem": each.problem, "choices": each.choices}) for each in style.examples}
    kept = [question for question in measured.questions if key_of(question) not in shown]
    count = len(measured.questions) - len(kept)
    if not count:
        return measured
    if not kept:
        raise DataError(f"{measured.name}: all its questions stand among the examples; give others.")
    note = f"{count} questions left out: they stand among the examples."
    return replace(measured, questions=kept, notes=[*measured.notes, note])


def questions_of(source: str | Source, options: argparse.Namespace) -> tuple[list[Question], list[str]]:
    """The questions that --limit leaves of a benchmark, and notes. Raises DataError for lines that cannot be used."""
    if isinstance(source, Source):
        questions, notes = read_benchmark(source, skip_bad=options.skip_bad)
    else:
        questions, notes = read_data([source], skip_bad=options.skip_bad, names=options.map)
    kept, further = without_contradictions(questions[: options.limit], skip_bad=options.skip_bad)
    if options.shuffle_options is not None:
        kept = [with_shuffled_choices(question, options.shuffle_options) for question in kept]
        if not any(question.get("choices") for question in kept):
            further = [*further, f"--shuffle-options {options.shuffle_options}: no question here has choices."]
    return kept, notes + further


def with_shuffled_choices(question: Question, seed: int) -> Question:
    """The question with its choices in an order that depends on it and on the seed alone."""
    choices = question.get("choices")
    if not choices:
        return question
    order = list(range(len(choices)))
    random.Random(noise_key("options", seed, question["problem"], *choices)).shuffle(order)
    right = order.index(ord(question["answer"].strip()) - ord("A"))
    return {**question, "choices": [choices[i] for i in order], "answer": chr(ord("A") + right)}


def samples_of(source: str | Source, options: argparse.Namespace) -> int:
    """Completions of each question: --samples, or what the benchmark's papers have; 1 of greedy decoding."""
    if options.samples is not None or options.temperature == 0:
        return options.samples or 1
    return source.benchmark.samples if isinstance(source, Source) else 1


def settings_of(
    options: argparse.Namespace, measured: Measured, limit: int, style: PromptStyle, identity: dict[str, Any]
) -> dict[str, Any]:
    """Everything that fixes the numbers of one benchmark, under a limit of tokens; `identity` is that of the model."""
    return {
        **identity,
        "data": measured.data,
        "data_hash": hash_of_questions(measured.questions),
        "prompt": style.template or "{problem}\n{choices}\n\n" + INSTRUCTION,
        "system": style.system,
        "enable_thinking": style.enable_thinking,
        "template_arguments": style.arguments,
        "prompt_file": options.prompt_file,
        "examples": [[each.problem, each.solution] for each in style.examples],
        "shuffle_options": options.shuffle_options,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_new_tokens": limit,
        "samples": measured.samples,
        "seed": options.seed,
        "rel_tol": measured.rel_tol,
        "versions": {
            "dagrpo": own_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def identity_of(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Which model this is: its name, and the Hub's revision, or else a hash of its files."""
    template = tokenizer.chat_template
    return {
        "model": name,
        "model_hash": hash_of_files(Path(name)) if os.path.exists(name) else None,
        "revision": getattr(model.config, "_commit_hash", None),
        "chat_template_hash": None if template is None else hash_of(str(template).encode()),
    }


def hash_of(text: bytes) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text).hexdigest()[:16]


def hash_of_questions(questions: list[Question]) -> str:
    """Of what is asked and what is right, in order."""
    return hash_of(json.dumps([values_of(question, "rel_tol") for question in questions]).encode())


def hash_of_files(path: Path) -> str:
    """Of a GGUF file, or of the weights, settings and tokenizer in a folder, wherever they are."""
    endings = (".safetensors", ".bin", ".json", ".model", ".jinja", ".txt")
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.name.endswith(endings))
    whole = hashlib.sha256()
    for each in files:
        name = each.suffix if path.is_file() else each.name
        with each.open("rb") as file:
            whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def own_version() -> str:
    """That of this program; unknown where it was installed without its pyproject.toml."""
    path = Path(__file__).parent.parent / "pyproject.toml"
    return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"]) if path.is_file() else "unknown"
