"""Questions: their files and Hub sets, gold answers, rewards, splits, and the order in which a run takes them.

Data is JSONL, one question a line:

    {"problem": "...", "answer": "72", "solution": "optional, the anchor", "choices": ["optional", ...]}

With `choices`, `answer` is a letter. An answer may be a number, which is read as it is written. `rel_tol` is the
relative difference that a number may have from the answer: 0.01 for constants of physics. Further fields (`id`,
`source`, `level`, ...) are kept. Nothing here prints: what there is to say comes back as `notes`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import verify
from policy.model import looks_like_path, position_limit
from rollout import PLAIN, PromptStyle, Rollouts, encode_prompt, noise_key, render_prompt

Question = dict[str, Any]  # with "where" naming the file and line that it came from
Key = tuple[str, ...]
Reward = Callable[[list[str], list[Question]], list[float]]  # N completions, the question of each -> N rewards


class DataError(ValueError):
    """Data that cannot be used; the message names file and line, or flag, the fault, and what is expected."""


# ---------------------------------------------------------------------------------------------------------------------
# Files and Hub sets
# ---------------------------------------------------------------------------------------------------------------------


LONGEST_LINE = 1_000_000  # characters; no question is as long, and a file without line ends would fill the memory
ENOUGH_FAULTS = 1_000  # by then a file is of another kind altogether
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
UNPACK = {"gzip": "gunzip -k", "bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd", "zip": "unzip"}
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".zip", ".xz", ".bz2", ".zst", ".arrow")
# Names of the fields in other data sets, for a hint.
OTHER_FIELDS = {
    "problem": ("question", "prompt", "query", "input", "instruction", "messages"),
    "answer": ("ground_truth", "answerKey", "final_answer", "target", "label", "output", "response"),
}


@dataclass(frozen=True)
class Fault:
    """A line that cannot be used: where it is, what is wrong, and what kind of fault that is."""

    where: str
    kind: str
    text: str


def read_questions(sources: list[str], flag: str = "--data") -> list[Question]:
    """The questions of JSONL files and Hub data sets (`name` or `name:split`), in order.

    Raises DataError for lines that cannot be used, and for a source that does not exist.
    """
    return read_data(sources, flag)[0]


def read_data(sources: list[str], flag: str = "--data", *, skip_bad: bool = False) -> tuple[list[Question], list[str]]:
    """The same with notes; with `skip_bad`, lines that cannot be used are left out, and the notes count them."""
    questions: list[Question] = []
    notes: list[str] = []
    for source in sources:
        usable, further = sifted(rows_of(source, flag), f"{flag} {source}", skip_bad=skip_bad)
        questions += usable
        notes += further
    return questions, notes


def sifted(rows: Iterable[Question | Fault], source: str, *, skip_bad: bool) -> tuple[list[Question], list[str]]:
    """The questions among the rows of a source, and notes. Raises DataError for faults, and where no question is."""
    usable: list[Question] = []
    faults: list[Fault] = []
    for row in rows:
        if isinstance(row, Fault):
            faults.append(row)
        else:
            usable.append(row)
        if len(faults) == ENOUGH_FAULTS and not skip_bad:
            break
    if faults and not skip_bad:
        raise DataError(f"{told(faults)} To go on without such lines: --skip-bad.")
    if faults and not usable:
        raise DataError(f"{told(faults)} No line can be used.")
    if not usable:
        raise DataError(f"{source}: the file has no questions.")
    notes = [f"{fault.where}: left out, {fault.text}" for fault in faults[:3]]
    if faults:
        name = source.partition(" ")[2]
        notes.append(f"{name}: {len(faults)} of {len(faults) + len(usable)} lines left out (--skip-bad).")
    return usable, notes


def told(faults: list[Fault]) -> str:
    """The first fault in full, and how many there are besides."""
    first = faults[0]
    alike = sum(fault.kind == first.kind for fault in faults) - 1
    others = [fault for fault in faults if fault.kind != first.kind]
    text = f"{first.where}: {first.text}"
    if alike:
        text += f" Lines like it: {alike} more."
    if others:
        text += f" Lines with other faults: {len(others)}, the first of them {others[0].where}."
    return text + (" Further on nothing was read." if len(faults) == ENOUGH_FAULTS else "")


def rows_of(source: str, flag: str) -> Iterator[Question | Fault]:
    """The lines of a file or Hub set. Raises DataError where it is neither."""
    if os.path.isdir(source):
        inside = sorted(path.name for path in Path(source).glob("*.jsonl"))[:3]
        there = f" In it: {', '.join(inside)}." if inside else ""
        raise DataError(f"{flag} {source}: it is a folder; name a JSONL file.{there}")
    if os.path.exists(source):
        return rows_of_file(Path(source), flag)
    if not source.strip():
        raise DataError(f"{flag}: the name of the file is empty.")
    if (
        source.partition(":")[0].lower().endswith(DATA_FILES)
        or "\\" in source
        or looks_like_path(source.partition(":")[0], 2)
    ):
        raise DataError(f"{flag} {source}: there is no such file.")
    return rows_of_hub(source, flag)


def rows_of_file(path: Path, flag: str) -> Iterator[Question | Fault]:
    """The lines of a JSONL file; a byte-order mark and any line ends are taken."""
    number = 0
    try:
        refuse_other_formats(path, flag)
        # What is not UTF-8 comes as lone surrogates, so that the line can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith("\n"):
                        line = file.readline(LONGEST_LINE)
                    text = f"the line is longer than {LONGEST_LINE:,} characters. Each line holds one question."
                    yield Fault(where, "length", text)
                elif line.strip():
                    yield row_of_line(line, where, first=number == 1)
    except OSError as error:
        raise DataError(f"{flag} {path}: it cannot be read ({error.strerror}).") from error


def refuse_other_formats(path: Path, flag: str) -> None:
    """Raise DataError for a file that is packed, or of another format, with what makes JSONL of it."""
    if not path.is_file():  # a pipe: what is read of it is gone
        return
    with path.open("rb") as file:
        start = file.read(8)
    suffix = path.suffix.lower()
    for mark, kind in PACKED.items():
        if start.startswith(mark):
            raise DataError(f"{flag} {path}: the file is packed ({kind}). Unpack it first: {UNPACK[kind]} {path}")
    if start.startswith(b"PAR1") or suffix in (".parquet", ".csv"):
        kind = "csv" if suffix == ".csv" else "parquet"
        made = f"datasets.Dataset.from_{kind}('{path}').to_json('{path.with_suffix('.jsonl')}')"
        raise DataError(
            f"{flag} {path}: it is a {kind.upper() if kind == 'csv' else 'Parquet'} file; the data must be JSONL. To "
            f'make it that: pip install datasets, then python -c "import datasets; {made}"'
        )
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{flag} {path}:1: the file is UTF-16; it must be UTF-8: iconv -f UTF-16 -t UTF-8 {path} > new.jsonl"
        )


def row_of_line(line: str, where: str, *, first: bool) -> Question | Fault:
    """The question of a line of JSONL."""
    undecoded = re.search("[\udc80-\udcff]", line)
    if undecoded:
        byte = ord(undecoded[0]) - 0xDC00
        text = f"the line is not UTF-8 (the byte 0x{byte:02x} in column {undecoded.start() + 1})."
        return Fault(where, "encoding", f"{text} Save the file as UTF-8.")
    try:
        fields = json.loads(line)
        if isinstance(fields, dict) and type(fields.get("answer")) in (int, float):
            written = json.loads(line, parse_int=str, parse_float=str)["answer"]  # 1.50 stays 1.50
            fields["answer"] = written
    except RecursionError:
        return Fault(where, "depth", "the line has brackets within brackets, too deep to be read.")
    except ValueError as error:
        if first and line.lstrip().startswith("["):
            return Fault(where, "array", ARRAY)
        return Fault(where, "json", f"this line is not JSON ({error}). Each line holds one object.")
    if first and isinstance(fields, list) and any(isinstance(field, dict) for field in fields):
        return Fault(where, "array", ARRAY)
    return checked(fields, where)


ARRAY = "the file is one JSON array; it must have one object a line: jq -c '.[]' FILE > new.jsonl"


def checked(fields: object, where: str) -> Question | Fault:
    """The question with `where` added, or else what is wrong: a field is missing or of the wrong kind."""
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        return Fault(where, "object", f"this line holds a {kind}; it must hold an object with `problem`.")
    for name in ("problem", "answer"):
        if name not in fields:
            there = short(", ".join(fields)) or "no fields"
            text = f"the field `{name}` is missing; the line has {there}."
            like = next((other for other in OTHER_FIELDS[name] if other in fields), "")
            return Fault(where, f"no {name}", text + (f" Is it `{like}` there? Rename that." if like else ""))
        if not isinstance(fields[name], str) or not fields[name].strip():
            also = ", or a number" if name == "answer" else ""
            text = f"`{name}` is {short(repr(fields[name]))}; it must be a string that is not empty{also}."
            return Fault(where, f"kind of {name}", text)
    if not isinstance(fields.get("solution"), str | None):
        text = f"`solution` is {short(repr(fields['solution']))}; it must be a string, null, or left out."
        return Fault(where, "kind of solution", text)
    level = fields.get("level")
    if not isinstance(level, str | int | float | None) or (isinstance(level, float) and not math.isfinite(level)):
        text = f"`level` is {short(repr(level))}; it must be a string, a number, null, or left out."
        return Fault(where, "kind of level", text)
    tolerance = fields.get("rel_tol")
    if tolerance is not None and not (type(tolerance) in (int, float) and 0 <= tolerance < 1):
        text = f"`rel_tol` is {short(repr(tolerance))}; it must be a number of at least 0 and below 1, or left out."
        return Fault(where, "kind of rel_tol", text)
    choices = fields.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            return Fault(where, "kind of choices", "`choices` must be a list of strings.")
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        if choices and fields["answer"].strip() not in letters:
            text = f"with `choices`, `answer` must be one of {', '.join(letters)}."
            return Fault(where, "letter", f"{text} It is {short(repr(fields['answer']))}.")
    for name in ("problem", "answer", "solution", "choices", "level"):
        values = fields.get(name) if name == "choices" else [fields.get(name)]
        if any(isinstance(value, str) and re.search("[\ud800-\udfff]", value) for value in values or []):
            text = f"`{name}` has half a character (a lone surrogate, such as \\ud83d): this is no text."
            return Fault(where, "surrogate", text)
    return {**fields, "where": where}


def short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def rows_of_hub(
    source: str, flag: str, convert: Callable[[dict[str, Any]], Question] | None = None
) -> Iterator[Question | Fault]:
    """A Hub data set, name[/configuration][:split], through the optional `datasets` package.

    `convert` makes a question of a row; without it, `question` is read as `problem`, and GSM8K's `####`. Of several
    configurations one must be named, unless one of them is called main or default. Raises DataError where it is not,
    with their names.
    """
    path, _, split = source.partition(":")
    name, configuration = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{flag} {source}: there is no such file, and to read a Hub data set one more package is needed. "
            "Run: pip install datasets"
        )
    import datasets

    try:
        configurations = datasets.get_dataset_config_names(name)
    except Exception as error:  # of the library: without a network, without the set, for a name that is none
        raise DataError(
            f"{flag} {source}: there is no such file, and no such set on the Hub, or no network ({first_line(error)})."
        ) from error
    usual = [each for each in configurations if each in ("main", "default")] or configurations
    if configuration not in configurations and (configuration or len(usual) > 1):
        what = f"there is no configuration {configuration!r}" if configuration else "it has several configurations"
        listed = ", ".join(f"{name}/{each}" for each in configurations)
        raise DataError(f"{flag} {source}: {what}; name one of {listed}.")
    configuration = configuration or usual[0]
    try:
        table = datasets.load_dataset(name, configuration, split=split or "train")
    except Exception as error:
        raise DataError(f"{flag} {source}: it cannot be read ({first_line(error)}).") from error
    for number, fields in enumerate(table, start=1):
        where = f"{source}:{number}"
        try:
            question = (convert or from_hub)(dict(fields))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            there = short(", ".join(map(str, fields))) or "no fields"
            yield Fault(where, "row", f"the row is not what was expected ({first_line(error)}); it has {there}.")
            continue
        yield checked(question, where)


def first_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)  # its place in the file is told by `line_of`
    return f"{type(error).__name__}: {short((text.strip().splitlines() or ['no message'])[0].rstrip('.'), 160)}"


def from_hub(fields: dict[str, Any]) -> Question:
    """A line of a Hub set in this project's fields: `question` -> `problem`; `text #### 72` -> `solution`, `answer`."""
    if "problem" not in fields and "question" in fields:
        fields["problem"] = fields.pop("question")
    if type(fields.get("answer")) in (int, float):
        fields["answer"] = repr(fields["answer"])
    if isinstance(fields.get("answer"), str) and "####" in fields["answer"]:
        text, _, answer = fields["answer"].rpartition("####")
        fields["answer"] = answer.strip().replace(",", "")
        # The calculator notes <<48/2=24>> are not part of the text; the closing line shows the form of an answer.
        text = re.sub(r"<<[^<>]*>>", "", text).strip()
        fields["solution"] = f"{text}\nThe answer is \\boxed{{{fields['answer']}}}."
    return fields


def key_of(question: Question) -> Key:
    """What makes two questions the same: problem and choices. Many multiple-choice questions share their problem."""
    return question["problem"].strip(), *(question.get("choices") or ())


def prompt_of(tokenizer: PreTrainedTokenizerBase, question: Question, style: PromptStyle = PLAIN) -> str:
    """The rendered prompt of a question. Raises DataError for a style that the chat template cannot read."""
    if style.needs_chat_template and tokenizer.chat_template is None:
        raise DataError(
            "--system, --enable-thinking and --template-arg are for a chat template, and the tokenizer has none: leave "
            "them out."
        )
    unknown = [name for name in style.arguments if name not in str(tokenizer.chat_template)]
    if unknown:
        raise DataError(f"--template-arg {unknown[0]}: the model's chat template does not know it; leave it out.")
    try:
        return render_prompt(tokenizer, question["problem"], question.get("choices"), style)
    except Exception as error:  # of the template: it takes no system prompt, or an argument is not what it expects
        raise DataError(f"the model's chat template cannot make a prompt ({first_line(error)}).") from error


# ---------------------------------------------------------------------------------------------------------------------
# Rewards
# ---------------------------------------------------------------------------------------------------------------------


def correctness(texts: list[str], questions: list[Question]) -> list[float]:
    """The reward: 1.0 where the verifier finds the completion right, else 0.0; 0.0 where the gold is unreadable."""
    golds, choices = gold_answers(questions)
    tolerances = [question.get("rel_tol") or 0.0 for question in questions]
    return [float(verdict is True) for verdict in verify.grade(texts, golds, choices, rel_tol=tolerances)]


def drop_unreadable(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """(questions whose gold answer the verifier can read, those that it cannot): the second are never graded."""
    golds, choices = gold_answers(questions)
    readable = [verdict is not None for verdict in verify.grade([""] * len(questions), golds, choices)]
    pairs = list(zip(questions, readable, strict=True))
    return [question for question, can in pairs if can], [question for question, can in pairs if not can]


def gold_answers(questions: list[Question]) -> tuple[list[str], list[list[str] | None]]:
    return [question["answer"] for question in questions], [question.get("choices") for question in questions]


LARGEST_REWARD = 1e18  # its square, in the deviation of a group, is still a number in fp32


def load_reward(sources: list[str]) -> Reward:
    """The verifier, or the sum of the functions that --reward file.py:function[=WEIGHT] names.

    Raises DataError where one of them is not there.
    """
    if not sources:
        return correctness
    parts: list[Part] = []
    for source in sources:
        spelled = re.fullmatch(r"(.*):(\w+)(?:=([^=:]*))?", source)
        path, name, written = spelled.groups() if spelled else (source, "", None)
        try:
            weight = 1.0 if written is None else float(written)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight == 0:
            raise DataError(f"--reward {source}: the weight is {written!r}; it must be a number that is not 0.")
        function = load_function("--reward", f"{path}:{name}" if spelled else source)
        parts.append(Part(name, path, weight, function))
    if len({(part.path, part.name) for part in parts}) < len(parts):
        raise DataError(f"--reward {' '.join(sources)}: one function is named twice; give it one weight.")
    names = [part.name for part in parts]
    parts = [
        replace(part, name=f"{Path(part.path).stem}.{part.name}") if names.count(part.name) > 1 else part
        for part in parts
    ]
    return OwnReward(parts)


@dataclass(frozen=True)
class Part:
    """A function of --reward."""

    name: str
    path: str
    weight: float
    function: Callable[..., Any]

    def values(self, texts: list[str], questions: list[Question]) -> list[float]:
        """What the function gives for N completions, before its weight. Raises DataError where that is not N floats."""
        source = f"--reward {self.path}:{self.name.rpartition('.')[2]}"
        must = f"it must give one finite float for each of the {len(texts)} texts, of at most {LARGEST_REWARD:g}."
        try:
            given = self.function(list(texts), copies(questions))
            if inspect.iscoroutine(given):
                given.close()  # of an async function: nobody waits for it
            is_list = not isinstance(given, dict | set | frozenset | str | bytes) and not inspect.iscoroutine(given)
            found = list(given) if is_list else []
        except (Exception, SystemExit) as error:
            n = first_that_raises(self.function, texts, copies(questions))
            all_alone = f"with {len(texts)} answers at once, but with none of them alone"
            at = all_alone if n is None else f"at {shown(texts[n], questions[n])}"
            raise DataError(f"{source}: it raised {first_line(error)} ({line_of(error, self.path)}) {at}.") from error
        if not is_list:
            raise DataError(f"{source}: it gave a {type(given).__name__}; {must}")
        if len(found) != len(texts):
            at = shown(texts[0], questions[0])
            raise DataError(f"{source}: it gave {len(found)} values for {len(texts)} answers, the first {at}; {must}")
        for value, text, question in zip(found, texts, questions, strict=True):
            try:
                number = math.nan if isinstance(value, str | bytes) else float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                number = math.nan
            if not abs(number) <= LARGEST_REWARD:
                raise DataError(f"{source}: it gave {short(repr(value), 40)} at {shown(text, question)}; {must}")
        return [float(value) for value in found]


@dataclass
class OwnReward:
    """The reward of --reward: the weighted sum of what its functions give."""

    parts: list[Part]
    given: dict[str, list[float]] = field(default_factory=dict)  # by each function, before its weight, in the last call

    def __call__(self, texts: list[str], questions: list[Question]) -> list[float]:
        """N completions, the question of each -> N rewards. Raises DataError where a function gives anything else."""
        if not texts:
            return []
        self.given = {part.name: part.values(texts, questions) for part in self.parts}
        weights = [part.weight for part in self.parts]
        return [
            sum(weight * value for weight, value in zip(weights, row, strict=True))
            for row in zip(*self.given.values(), strict=True)
        ]


def given_by_functions(reward: Reward) -> dict[str, list[float]]:
    """What each function of --reward gave in the last call, before its weight; nothing of another reward."""
    return reward.given if isinstance(reward, OwnReward) else {}


def copies(questions: list[Question]) -> list[Question]:
    """For a user's function, which may change what it is given."""
    return [dict(question) for question in questions]


def shown(text: str, question: Question) -> str:
    """A completion, for messages."""
    return f"{place_of(question)}, {short(repr(text), 60)}"


def first_that_raises(function: Callable[..., Any], first: list[Any], second: list[Any]) -> int | None:
    """The first place of two lists with which alone a user's function raises; None where there is none."""
    for n in range(len(first)):
        try:
            list(function(first[n : n + 1], second[n : n + 1]))
        except (Exception, SystemExit):
            return n
    return None


def line_of(error: BaseException, path: str) -> str:
    """Where in a user's file an error comes from: "mine.py, line 3"."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{Path(error.filename or path).name}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(path)]
    return f"{Path(path).name}, line {own[-1].lineno}" if own else Path(path).name


def load_function(flag: str, source: str) -> Callable[..., Any]:
    """The function that a flag names as file.py:function. Raises DataError where it is not there.

    The file runs, as a script would: modules beside it are found.
    """
    path, _, name = source.rpartition(":")
    if not os.path.isfile(path) or not name.isidentifier():
        absent = "" if os.path.isfile(path) else f", and there is no file {path or source!r}"
        raise DataError(f"{flag} {source}: it must be file.py:function{absent}.")
    spec = importlib.util.spec_from_file_location(f"{flag.strip('-')}_{Path(path).stem}", path)
    if spec is None or spec.loader is None or Path(path).suffix != ".py":
        raise DataError(f"{flag} {source}: {path} is no Python file; it must be file.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    folder = str(Path(path).absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the user named like one of the program must not replace it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{flag} {source}: {path} cannot be run: it raised {first_line(error)} ({line_of(error, path)})."
        ) from error
    if not callable(getattr(module, name, None)):
        there = [each for each, value in vars(module).items() if inspect.isfunction(value) and each[0] != "_"]
        has = f" It has {', '.join(there[:5])}." if there else ""
        raise DataError(f"{flag} {source}: {path} has no function {name!r}.{has}")
    function: Callable[..., Any] = getattr(module, name)
    return function


def overlong_penalty(rollouts: Rollouts, rewards: torch.Tensor, margin: float, limit: int) -> torch.Tensor:
    """What a sampled completion loses that ends in the last `margin` tokens of its limit: up to 1/2, at the limit.

    DAPO takes up to 1 from rewards of 1 and −1, which is as much of the way from right to wrong. A group whose rewards
    are all equal stays without signal: there the penalty alone would make whole advantages.

    N rows, (P, G) -> (P, G)
    """
    over = (rollouts.lengths - (limit - margin)).clamp(min=0) / max(margin, 1)  # (N,)
    by_group = (0.5 * over * ~rollouts.anchor_mask).view(rewards.shape)
    return by_group * (rewards != rewards[:, :1]).any(1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# The questions of a run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Training and held-out questions, none of them in both, and what was left out."""

    training: list[Question]
    held_out: list[Question]
    notes: list[str]


def split_questions(
    data: list[str], eval_data: list[str], hold_out: int, *, check_golds: bool = True, skip_bad: bool = False
) -> Split:
    """Held out: --eval-data, or else `hold_out` questions of --data, a fifth at most. Training: the rest of --data.

    Questions whose gold answer cannot be read are left out. Raises DataError where too few are left.
    """
    notes = []

    def usable(sources: list[str], flag: str) -> list[Question]:
        questions, further = read_data(sources, flag, skip_bad=skip_bad)
        notes.extend(further)
        kept, unreadable = drop_unreadable(questions) if check_golds else (questions, [])
        for question in unreadable[:3]:
            notes.append(f"{question['where']}: left out, the answer {question['answer']!r} cannot be read")
        if unreadable:
            notes.append(f"{len(unreadable)} questions left out: their gold answer cannot be read.")
        if not kept:
            raise DataError(f"{flag} {', '.join(sources)}: no question has an answer that the verifier can read.")
        kept, further = without_contradictions(kept, graded=check_golds, skip_bad=skip_bad)
        notes.extend(further)
        return kept

    questions = usable(data, "--data")
    if eval_data:
        held_out = usable(eval_data, "--eval-data")
    else:
        shuffled = sorted(questions, key=lambda question: noise_key("hold out", question["problem"]))
        held_out = shuffled[: min(hold_out, len(questions) // 5)]
        if len(held_out) < hold_out:
            notes.append(f"--hold-out {hold_out}: only {len(held_out)} questions are held out, a fifth of the data.")
    kept_back = {key_of(question) for question in held_out}
    training = [question for question in questions if key_of(question) not in kept_back]
    if eval_data and len(training) < len(questions):
        both = len(questions) - len(training)
        notes.append(f"{both} training questions are held-out ones too: left out of training.")
    if eval_data and not training:
        raise DataError(
            f"--data {', '.join(data)}: all its {len(questions)} questions are in --eval-data too, so that "
            "none is left to train on. Give others."
        )
    if not training or not held_out:
        different = len({key_of(question) for question in questions})
        reasons = [note for note in notes if "left out" in note]
        left_out = f" What was left out before: {reasons[-1]}" if reasons else ""
        raise DataError(
            f"{', '.join(data)}: {different} different usable questions are too few to train on and to hold a fifth of "
            f"them out: give five or more, or others by --eval-data.{left_out}"
        )
    return Split(training, held_out, notes)


def without_contradictions(
    questions: list[Question], *, graded: bool = True, skip_bad: bool = False
) -> tuple[list[Question], list[str]]:
    """The questions, and notes of those that come several times; copies stay, and each counts by itself.

    Copies with different answers, where a verifier grades, are a contradiction, and raise DataError; with `skip_bad`
    all copies of that question are left out.
    """
    copies: dict[Key, list[Question]] = {}
    for question in questions:
        copies.setdefault(key_of(question), []).append(question)
    pairs = [(group[0], other) for group in copies.values() for other in group[1:]]
    notes = []
    if pairs:
        one, other = pairs[0]
        notes.append(
            f"{len(pairs)} questions repeat another one ({place_of(other)} that of {place_of(one)}): each copy counts "
            "by itself."
        )
    ids: dict[tuple[str, str], Question] = {}  # of each file: two files may count alike
    named = [
        (question, ids.setdefault((place_of(question).rpartition(":")[0], repr(question["id"])), question))
        for question in questions
        if "id" in question
    ]
    shared = [(one, first) for one, first in named if key_of(one) != key_of(first)]
    if shared:
        other, one = shared[0]
        where = f"{place_of(other)} that of {place_of(one)}"
        notes.append(f"{len(shared)} questions have the `id` of another one ({where}): ids are not used.")
    differ = [pair for pair in pairs if pair[0]["answer"].strip() != pair[1]["answer"].strip()] if graded else []
    verdicts = verify.grade(
        [f"\\boxed{{{second['answer']}}}" for _, second in differ],
        [first["answer"] for first, _ in differ],
        [first.get("choices") for first, _ in differ],
    )
    against = [pair for pair, same in zip(differ, verdicts, strict=True) if same is False]
    if not against:
        return questions, notes
    first, second = against[0]
    said = (
        f"{place_of(first)} and {place_of(second)} are the same question with different answers, "
        f"{short(first['answer'])} and {short(second['answer'])}"
    )
    if not skip_bad:
        more = f", and {len(against) - 1} more pairs are like them" if len(against) > 1 else ""
        raise DataError(f"{said}{more}. Take the wrong ones out, or go on without such questions: --skip-bad.")
    wrong = {key_of(first) for first, _ in against}
    kept = [question for question in questions if key_of(question) not in wrong]
    if not kept:
        raise DataError(f"{said}, and no other question is left.")
    notes += [
        f"{said}.",
        f"{len(questions) - len(kept)} questions left out: their copies have other answers (--skip-bad).",
    ]
    return kept, notes


def place_of(question: Question) -> str:
    """Where a question comes from, for messages."""
    return str(question.get("where") or repr(question["problem"][:60]))


def fitting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    max_new_tokens: int,
    style: PromptStyle = PLAIN,
) -> tuple[list[Question], list[str]]:
    """The questions whose prompt leaves room for a completion in the model's positions, and notes of the others.

    Raises DataError where no question does.
    """
    limit = position_limit(model) or math.inf
    kept = [
        question
        for question in questions
        if len(encode_prompt(tokenizer, prompt_of(tokenizer, question, style))) + max_new_tokens <= limit
    ]
    if not kept:
        raise DataError(f"--max-new-tokens {max_new_tokens}: no question fits the model's {limit} positions.")
    left_out = len(questions) - len(kept)
    if not left_out:
        return kept, []
    return kept, [f"{left_out} questions left out: with a completion they exceed the model's {limit} positions."]


def question_stream(questions: list[Question], seed: int) -> Iterator[Question]:
    """Questions for ever: all of them in a random order, then again in another."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(questions, len(questions))


class Stream:
    """`question_stream`, which knows how many questions were taken from it; a resumed run has taken some before."""

    def __init__(self, questions: list[Question], seed: int, taken: int = 0) -> None:
        self.questions = question_stream(questions, seed)
        self.taken = 0
        for _ in range(taken):
            next(self)

    def __iter__(self) -> Iterator[Question]:
        return self

    def __next__(self) -> Question:
        self.taken += 1
        return next(self.questions)
