"""Functions of the user's own: file.py:function, and what is said where one fails."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sources.faults import DataError, Question, first_line


def load_function(flag: str, source: str) -> Callable[..., Any]:
    """The function that a flag names as file.py:function. Raises DataError where it is not there.

    The file runs, as a script would: modules beside it are found.
    """
    path, _, name = source.rpartition(":")
    if not os.path.isfile(path) or not name.isidentifier():
        absent = "" if os.path.isfile(path or source) else f", and there is no file {path or source!r}"
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


def copies(questions: list[Question]) -> list[Question]:
    """For a user's function, which may change what it is given."""
    return [dict(question) for question in questions]


def listed(given: Any) -> list[Any] | None:
    """What a user's function gave, in its order; None for what has no values in order, such as a set or a text."""
    if inspect.iscoroutine(given):
        given.close()  # of an async function: nobody waits for it
        return None
    if isinstance(given, dict | set | frozenset | str | bytes) or not isinstance(given, Iterable):
        return None
    return list(given)


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
