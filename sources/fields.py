"""The fields of a row as others name them, and what they are here: problem, answer, solution.

Where several fields of a row could be the same thing, the first of ORDER is taken, and that is said. --map goes before
it. An answer may stand inside of a text: behind `####` (GSM8K), or in a `\\boxed{}` (MATH); the text is then the
solution. A chat is taken apart: its last turn of the user is the problem, what stands before that is asked before it,
and a last turn of the assistant is the solution.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import verify
from sources.faults import DataError, Fault, Question, short, unit_of
from sources.formats import Row, Written

OWN = ("problem", "answer", "solution", "choices", "level", "subject", "id", "rel_tol")
ORDER = {
    "problem": ("problem", "question", "prompt", "messages"),
    "answer": ("answer", "ground_truth", "reward_model.ground_truth"),
}
# Names of the fields in further data sets, for a hint.
OTHER_FIELDS = {
    "problem": ("query", "input", "instruction", "text", "conversations", "Problem", "Question"),
    "answer": ("answerKey", "final_answer", "expected_answer", "target", "label", "output", "response", "Answer"),
}
ROLES = ("system", "user", "assistant")
OF_VERL = "extra_info.answer"  # where its GSM8K has the worked answer
LONGEST_GOLD = 100  # characters of a text that is nothing but an answer
MARKS = {"####": ", behind its ####", "\\boxed{}": ", in its \\boxed{}"}


class Unusable(Exception):
    """A row that is no question: the kind of fault, and what is wrong."""


@dataclass(frozen=True)
class Found:
    """A value of a row, the place that it stands in, and the mark in its text that it was read by."""

    value: Any = None
    place: str = ""
    mark: str = ""

    @property
    def is_text(self) -> bool:
        return isinstance(self.value, str) and bool(self.value.strip())


Taken = dict[str, Found]  # by this project's names


@dataclass
class Names:
    """What --map says: where in a row this project's fields are; and which of them some row of a source had."""

    places: Mapping[str, str] = field(default_factory=dict)
    had: set[str] = field(default_factory=set)

    def in_row(self, row: dict[str, Any], name: str) -> Found:
        """What stands in the row where --map says; nothing where it says nothing, or nothing stands there."""
        value = at(row, self.places[name]) if name in self.places else None
        if value is None:
            return Found()
        self.had.add(name)
        return Found(value, self.places[name])

    def check(self, sources: list[str]) -> None:
        """Raise DataError where no row of these sources, which were read by now, had what --map names."""
        for name, place in self.places.items():
            if name not in self.had:
                raise DataError(
                    f"--map {name}={place}: no question of {', '.join(sources)} has this field. A field within another "
                    "is named with a dot, such as reward_model.ground_truth or prompt.0.content."
                )


@dataclass
class Fields:
    """How the rows of a source are read, and what was found in them."""

    names: Names = field(default_factory=Names)
    taken: Counter[str] = field(default_factory=Counter)  # what was read as what, and in how many rows
    passed: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # of two that differ: ours, taken, not taken

    def questions(self, rows: Iterable[Row | Fault]) -> Iterator[Question | Fault]:
        """The questions of the rows of a source; what is a fault already passes through."""
        for row in rows:
            yield row if isinstance(row, Fault) else self.question(*row)

    def question(self, where: str, row: object) -> Question | Fault:
        """The question of a row, with `where`, or what is wrong with it."""
        if not isinstance(row, dict):
            unit, kind = unit_of(where), type(row).__name__
            return Fault(where, "object", f"this {unit} holds a {kind}; it must hold an object with `problem`.")
        taken: Taken = {}
        try:
            made = self.read(row, taken)
        except Unusable as why:
            return Fault(where, *why.args)
        fault = fault_of(made, unit_of(where), {name: each.place for name, each in taken.items()}, row)
        if fault is not None:
            in_vain = [f"--map {name}={path}" for name, path in self.names.places.items() if at(row, path) is None]
            return Fault(where, fault[0], fault[1] + (f" It has nothing at {', '.join(in_vain)}." if in_vain else ""))
        self.taken[told(taken)] += 1
        return {**made, "where": where}

    def read(self, row: dict[str, Any], taken: Taken) -> Question:
        """The row in this project's fields, not yet checked; `taken` gets what was read as what."""
        question = {name: plain(value) for name, value in row.items()}
        for name in ("earlier_turns", "asked_in_full"):  # they are made here
            question.pop(name, None)
        for name in OWN[3:]:
            if (found := self.names.in_row(row, name)).place:
                put(question, name, found, taken)
        question |= {name: as_json(question[name]) for name in ("choices", "rel_tol") if name in question}

        problem = self.first(row, "problem")
        chat = turns_in(problem.value, problem.place)
        if chat is not None:
            *earlier, last = chat.turns
            problem = replace(problem, value=last["content"])
            question |= {"earlier_turns": earlier} if earlier else {}
        if problem.place:
            put(question, "problem", problem, taken)
        asks = ""  # where a prompt is written out, it may say itself what form the answer is to have
        if chat is not None or problem.place == "prompt":
            texts = [turn["content"] for turn in question.get("earlier_turns", [])] + [problem.value]
            asks = "\n".join(text for text in texts if isinstance(text, str))
        if "####" in asks or "\\boxed" in asks:
            question["asked_in_full"] = True

        reply = Found(chat.reply, problem.place) if chat is not None and chat.reply is not None else reply_in(row)
        self.read_answer(row, question, reply, asks, taken)
        return question

    def read_answer(self, row: dict[str, Any], question: Question, reply: Found, asks: str, taken: Taken) -> None:
        """Put answer and solution into the question. `reply` is what the assistant says in a chat."""
        gold, solution = self.first(row, "answer"), self.own(row, "solution")
        if not gold.place:  # it stands at the end of a solution
            gold = next((each for each in (solution, reply) if each.is_text), gold)
            if gold is solution:
                solution = Found()
                question.pop("solution", None)
            elif gold is reply:
                reply = Found()
            if gold.is_text and has_lines(parted(gold.value, "")[0]):
                said = f"the field `answer` is missing, and `{gold.place}` has no answer behind #### or in \\boxed{{}}."
                raise Unusable("no answer", f"{said} Where is it? --map answer=NAME")
        worked = Found()
        if gold.is_text:
            answer, text = parted(gold.value, asks)
            worked = replace(gold, value=text)
            gold = replace(gold, value=answer, mark="" if answer == gold.value else mark_in(gold.value))
        if gold.place:
            put(question, "answer", replace(gold, value=as_written(gold.value)), taken)
        if solution.value is None or solution.value == "":
            others = [replace(each, value=worked_out(each.value, asks)) for each in (reply, of_verl(row))]
            solution = next((each for each in (worked, *others) if each.is_text), Found())
        if solution.place:
            put(question, "solution", solution, taken)

    def own(self, row: dict[str, Any], name: str) -> Found:
        """What is in the place that --map names, or else under this project's own name."""
        found = self.names.in_row(row, name)
        return found if found.place or row.get(name) is None else Found(row[name], name)

    def first(self, row: dict[str, Any], name: str) -> Found:
        """What is taken for the problem or the answer: as --map says, or else the first of ORDER that is not empty."""
        if (named := self.names.in_row(row, name)).place:
            return named
        there = [Found(value, path) for path in ORDER[name] if (value := at(row, path)) is not None]
        there = [each for each in there if each.value not in ("", [])] or there
        for other in there[1:]:
            if core_of(other) != core_of(there[0]):
                self.passed[name, there[0].place, other.place] += 1
        return there[0] if there else Found()

    def notes(self, source: str) -> list[str]:
        """What was read as what, where that is not just what it is called; and which of two fields was taken."""
        notes = []
        for text, count in self.taken.most_common(5):
            some = f"{count} of {self.taken.total()} questions: " if len(self.taken) > 1 else ""
            notes += [f"{source}: {some}{text}."] if text else []
        for (name, first, other), count in self.passed.items():
            notes.append(
                f"{source}: {count} questions have `{first}` and `{other}`, which differ. The {name} is `{first}`: the "
                f"order is {', '.join(ORDER[name])}. To take the other: --map {name}={other}"
            )
        return notes


def put(question: Question, name: str, found: Found, taken: Taken) -> None:
    """The value under this project's name. A field of another name, which it was the whole of, is dropped."""
    if found.place not in OWN:
        question.pop(found.place, None)
    question[name], taken[name] = plain(found.value), found


def told(taken: Taken) -> str:
    """What was read as what, but for what is called here as it is there."""
    parts = [
        f"{name} from `{found.place}`" + MARKS.get(found.mark, "")
        for name, found in sorted(taken.items(), key=lambda item: OWN.index(item[0]))
        if found.place != name or found.mark
    ]
    return "; ".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


def at(row: object, path: str) -> Any:
    """What stands at a path such as reward_model.ground_truth or prompt[0].content; None where nothing does."""
    if isinstance(row, dict) and path in row:
        return row[path]
    value: Any = row
    for step in path.replace("[", ".").replace("]", "").split("."):
        value = as_json(value)
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", step) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def as_json(value: Any) -> Any:
    """What a text of JSON stands for, a list, an object or a number, as CSV has them; any other value as it is."""
    if isinstance(value, str) and re.match(r"\s*[\[{\d.]", value):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def plain(value: Any) -> Any:
    return float(value) if isinstance(value, Written) else value


def as_written(value: Any) -> Any:
    """A number as text: as it was written, or where nothing tells, 142.0 as 142. Anything else as it is."""
    if isinstance(value, Written):
        return value.text
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if is_number else value


def core_of(found: Found) -> Any:
    """What two fields are compared by: of a chat the last text of the user, of a text the answer that it ends in."""
    try:
        chat = turns_in(found.value, found.place)
    except Unusable:
        return found.value
    value = as_written(found.value) if chat is None else chat.turns[-1]["content"]
    return parted(value, "")[0].strip() if isinstance(value, str) else value


def mark_in(text: str) -> str:
    """The mark by which a text says what its answer is; empty without one."""
    return "####" if "####" in text else "\\boxed{}" if "\\boxed" in text else ""


def parted(text: str, asks: str) -> tuple[str, str | None]:
    """The answer that a text ends in, and the text as a solution: None where it is nothing but an answer.

    A solution that ends as GSM8K's do gets a box in place of ####, unless `asks`, the prompt, wants that.
    """
    mark = mark_in(text)
    if mark == "####":
        worked, _, gold = text.rpartition("####")
        gold = gold.strip().replace(",", "")
        worked = re.sub(r"<<[^<>]*>>", "", worked).strip()  # the calculator notes <<48/2=24>> are not part of the text
        end = f"#### {gold}" if "####" in asks else f"The answer is \\boxed{{{gold}}}."
        return gold, f"{worked}\n{end}" if worked else None
    boxed = verify.extract_answer(text) if mark else None
    if not boxed:
        return text, None
    alone = re.fullmatch(r"\s*\$*\s*\\boxed\s*(\{.*\}|\S+)\s*\$*\.?\s*", text, re.DOTALL)
    return boxed, None if alone and text.count("\\boxed") == 1 else text


def has_lines(text: str) -> bool:
    """Is a text more than an answer?"""
    return "\n" in text.strip() or len(text) > LONGEST_GOLD


def worked_out(text: Any, asks: str) -> str | None:
    """What an assistant says, as a solution: None where it is nothing but an answer."""
    if not isinstance(text, str):
        return None
    return text if not mark_in(text) and has_lines(text) else parted(text, asks)[1]


def reply_in(row: dict[str, Any]) -> Found:
    """What the assistant says last in `messages`, beside which the question may stand once more."""
    try:
        chat = turns_in(row.get("messages"), "messages")
    except Unusable:
        return Found()
    return Found(chat.reply, "messages") if chat is not None else Found()


def of_verl(row: dict[str, Any]) -> Found:
    """The worked answer of verl's GSM8K, which it keeps beside the gold."""
    value = at(row, OF_VERL) if at(row, "reward_model.ground_truth") is not None else None
    return Found(value, OF_VERL) if isinstance(value, str) and mark_in(value) else Found()


@dataclass(frozen=True)
class Chat:
    """Turns up to the user's last one, and what the assistant says to that, where it is there."""

    turns: list[dict[str, str]]
    reply: str | None = None


def turns_in(value: Any, name: str) -> Chat | None:
    """The turns of a chat; None of what is none. Raises Unusable where they are no texts, or the user asks nothing."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        value = as_json(value)
    if not isinstance(value, list):
        return None
    turns: list[dict[str, str]] = []
    for number, turn in enumerate(value):
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text")) for part in content)
        if role not in ROLES or not isinstance(content, str):
            said = f"turn {number} of `{name}` is {short(repr(turn))}; a turn must have a `role`, one of"
            raise Unusable("chat", f"{said} {', '.join(ROLES)}, and a `content` that is text.")
        turns.append({"role": role, "content": content})
    reply = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" and name != "prompt" else None
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("chat", f"in `{name}` the user does not ask last, so that there is nothing to answer.")
    return Chat(turns, reply)


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def checked(fields: object, where: str) -> Question | Fault:
    """A question in this project's fields with `where` added, or else what is wrong with it."""
    if not isinstance(fields, dict):
        return Fields().question(where, fields)
    fault = fault_of(fields, unit_of(where), {}, fields)
    return {**fields, "where": where} if fault is None else Fault(where, *fault)


def fault_of(
    question: Question, unit: str, places: Mapping[str, str], row: Mapping[str, Any]
) -> tuple[str, str] | None:
    """The kind of the first fault of a question, and what is wrong: a field is missing, or of the wrong kind.

    `places` says where its fields stood in the `row` that it was read from.
    """
    for name in ("problem", "answer"):
        if name not in question:
            there = short(", ".join(map(str, row))) or "no fields"
            like = next((other for other in OTHER_FIELDS[name] if other in row), "")
            hint = f" Is it `{like}` there? --map {name}={like}" if like else ""
            return f"no {name}", f"the field `{name}` is missing; the {unit} has {there}.{hint}"
        if not isinstance(question[name], str) or not question[name].strip():
            said = f"`{places.get(name, name)}` is {short(repr(question[name]))}; it must be a string that is not empty"
            return f"kind of {name}", f"{said}{', or a number' if name == 'answer' else ''}."
    if not isinstance(question.get("solution"), str | None):
        said = f"`{places.get('solution', 'solution')}` is {short(repr(question['solution']))}"
        return "kind of solution", f"{said}; it must be a string, null, or left out."
    level = question.get("level")
    if not isinstance(level, str | int | float | None) or (isinstance(level, float) and not math.isfinite(level)):
        return "kind of level", f"`level` is {short(repr(level))}; it must be a string, a number, null, or left out."
    tolerance = question.get("rel_tol")
    if tolerance is not None and not (type(tolerance) in (int, float) and 0 <= tolerance < 1):
        said = f"`rel_tol` is {short(repr(tolerance))}; it must be a number of at least 0 and below 1, or left out."
        return "kind of rel_tol", said
    choices = question.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            return "kind of choices", "`choices` must be a list of strings."
        letters = [chr(ord("A") + i) for i in range(len(choices))]
        if choices and question["answer"].strip() not in letters:
            said = f"with `choices`, `answer` must be one of {', '.join(letters)}."
            return "letter", f"{said} It is {short(repr(question['answer']))}."
    texts = {name: [question.get(name)] for name in ("problem", "answer", "solution", "level")}
    texts |= {"choices": choices or [], "messages": [turn["content"] for turn in question.get("earlier_turns", [])]}
    for name, values in texts.items():
        if any(isinstance(value, str) and re.search("[\ud800-\udfff]", value) for value in values):
            said = f"`{name}` has half a character (a lone surrogate, such as \\ud83d): this is no text."
            return "surrogate", said
    return None
