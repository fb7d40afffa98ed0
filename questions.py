"""Questions: reading them, gold answers, splits, and the order in which a run takes them.

A question is a dictionary: `problem`, `answer`, and perhaps `solution` (the anchor), `choices` (then `answer` is a
letter), `level`, `rel_tol` (the relative difference that a number may have from the answer: 0.01 for constants of
physics). `where` names the file and line that it came from. Further fields are kept. sources/ reads files and Hub sets,
and the names that others give these fields. Nothing here prints: what there is to say comes back as `notes`.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import verify
from policy.model import looks_like_path, position_limit
from rollout import PLAIN, PromptStyle, Rollouts, encode_prompt, noise_key, render_prompt
from sources.faults import DataError as DataError  # a name that others import from here
from sources.faults import Fault, Question, first_line, short, sifted
from sources.fields import Fields, Names
from sources.formats import DATA_FILES, Row, rows_of_path
from sources.hub import rows_of_hub

Key = tuple[str, ...]
Reward = Callable[[list[str], list[Question]], list[float]]  # N completions, the question of each -> N rewards


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_questions(sources: list[str], flag: str = "--data", names: Mapping[str, str] | None = None) -> list[Question]:
    """The questions of files, folders and Hub data sets, in order. As `read_data`, without notes.

    `names` says of this project's fields where they are, as --map does. Raises DataError for a name that no line has.
    """
    mapped = Names(names or {})
    questions, _ = read_data(sources, flag, names=mapped)
    mapped.check(sources)
    return questions


def read_data(
    sources: list[str], flag: str = "--data", *, skip_bad: bool = False, names: Names | None = None
) -> tuple[list[Question], list[str]]:
    """The questions of files, folders and Hub sets, and notes: what was read as what, what was left out.

    Fields that `names` does not name are found by sources.fields.ORDER. With `skip_bad`, lines that cannot be used are
    left out and counted.

    Raises DataError for lines that cannot be used, and for a source that does not exist.
    """
    questions: list[Question] = []
    notes: list[str] = []
    for source in sources:
        fields = Fields(names or Names())
        usable, further = sifted(fields.questions(rows_of(source, flag)), f"{flag} {source}", skip_bad=skip_bad)
        questions += usable
        notes += further + fields.notes(source)
    return questions, notes


def rows_of(source: str, flag: str) -> Iterator[Row | Fault]:
    """The rows of a file, a folder, or a Hub set, or of a part of it: name:part. Raises DataError where it is none."""
    if os.path.exists(source):
        return rows_of_path(Path(source), "", flag)
    if not source.strip():
        raise DataError(f"{flag}: the name of the file is empty.")
    path, _, part = source.rpartition(":")
    if os.path.exists(path):
        return rows_of_path(Path(path), part, flag)
    name = source.partition(":")[0]
    if name.lower().endswith(DATA_FILES) or "\\" in source or looks_like_path(name, 2):
        raise DataError(f"{flag} {source}: there is no such file.")
    return rows_of_hub(source, flag)


def key_of(question: Question) -> Key:
    """What makes two questions the same: problem and choices. Many multiple-choice questions share their problem.

    In a chat what was said before belongs to it; what the system says does not: it is how the question is asked.
    """
    earlier = [turn["content"] for turn in question.get("earlier_turns", ()) if turn["role"] != "system"]
    return question["problem"].strip(), *(question.get("choices") or ()), *earlier


def style_of(question: Question, style: PromptStyle) -> PromptStyle:
    """The style with what a question that was given as a chat, or as a written prompt, says itself."""
    if question.get("asked_in_full") and not style.template:
        style = replace(style, template="{problem}")
    return replace(style, turns=tuple(question.get("earlier_turns", ())))


def values_of(question: Question, further: str) -> list[object]:
    """What is asked and what is right, and a further field: what a hash of questions is made of."""
    earlier = question.get("earlier_turns")
    return [question.get(name) for name in ("problem", "answer", "choices", further)] + ([earlier] if earlier else [])


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
        return render_prompt(tokenizer, question["problem"], question.get("choices"), style_of(question, style))
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
    data: list[str],
    eval_data: list[str],
    hold_out: int,
    *,
    check_golds: bool = True,
    skip_bad: bool = False,
    names: Names | None = None,
) -> Split:
    """Held out: --eval-data, or else `hold_out` questions of --data, a fifth at most. Training: the rest of --data.

    Of several held-out sets each question knows its own, as `eval_set`. Questions whose gold answer cannot be read are
    left out. Raises DataError where too few are left.
    """
    notes = []

    def usable(sources: list[str], flag: str) -> list[Question]:
        questions, further = read_data(sources, flag, skip_bad=skip_bad, names=names)
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
        held_out = []
        for name, source in set_names(eval_data).items():
            of_set = {"eval_set": name} if len(eval_data) > 1 else {}
            held_out += [question | of_set for question in usable([source], "--eval-data")]
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


def set_names(sources: list[str]) -> dict[str, str]:
    """The sources by short names: of a file its name without folder and ending, where no other has the same."""
    stems = [Path(source).stem if os.path.exists(source) else source for source in sources]
    return {stem if stems.count(stem) == 1 else source: source for stem, source in zip(stems, sources, strict=True)}


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
