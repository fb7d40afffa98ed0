"""What is said of data that cannot be used: where it is, what is wrong, how many more there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Question = dict[str, Any]  # with "where" naming the file and line, or row, that it came from
ENOUGH_FAULTS = 1_000  # by then a file is of another kind altogether


class DataError(ValueError):
    """Data that cannot be used; the message names file and line, or flag, the fault, and what is expected."""


@dataclass(frozen=True)
class Fault:
    """A line or row that cannot be used: where it is, what is wrong, and what kind of fault that is."""

    where: str
    kind: str
    text: str


def unit_of(where: str) -> str:
    """What a place in a file is: a row of a table, or a line of text."""
    return "row" if ":row " in where else "line"


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
    unit = unit_of(faults[0].where) if faults else ""
    if faults and not skip_bad:
        raise DataError(f"{told(faults)} To go on without such {unit}s: --skip-bad.")
    if faults and not usable:
        raise DataError(f"{told(faults)} No {unit} can be used.")
    if not usable:
        raise DataError(f"{source}: the file has no questions.")
    notes = [f"{fault.where}: left out, {fault.text}" for fault in faults[:3]]
    if faults:
        name = source.partition(" ")[2]
        notes.append(f"{name}: {len(faults)} of {len(faults) + len(usable)} {unit}s left out (--skip-bad).")
    return usable, notes


def told(faults: list[Fault]) -> str:
    """The first fault in full, and how many there are besides."""
    first = faults[0]
    units = f"{unit_of(first.where).capitalize()}s"
    alike = sum(fault.kind == first.kind for fault in faults) - 1
    others = [fault for fault in faults if fault.kind != first.kind]
    text = f"{first.where}: {first.text}"
    if alike:
        text += f" {units} like it: {alike} more."
    if others:
        text += f" {units} with other faults: {len(others)}, the first of them {others[0].where}."
    return text + (" Further on nothing was read." if len(faults) == ENOUGH_FAULTS else "")


def short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)  # its place in the file is told by `line_of`
    return f"{type(error).__name__}: {short((text.strip().splitlines() or ['no message'])[0].rstrip('.'), 160)}"
