"""Signals that end a program: Ctrl-C, the request to end, a closed terminal, and a pipe that nobody reads any more.

The commands import this first. PyTorch takes seconds to be imported, and a Ctrl-C meanwhile would end in a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

COMMANDS = ("dagrpo", "evaluate", "dagrpo-evaluate")
CLOSED_PIPE = 13  # the number of SIGPIPE, which Windows has not


class Interrupted(KeyboardInterrupt):
    """A signal ended the program, or the run after a whole step, which is saved."""

    def __init__(self, words: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(words)
        self.number = int(number)


@contextmanager
def signals_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, the signals that end a program call the handler, but for one that is ignored: by nohup, say."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be taken
        yield
        return
    ending = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    before = {number: signal.signal(number, of_this_process(handler)) for number in ending}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def of_this_process(handler: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    """The handler, but in a process that a function of the user forks (multiprocessing.Pool), which inherits it.

    There a request to end ends it at once. What a terminal sends to all its processes is left to this one: a step that
    is to be finished may wait for what the other one computes.
    """
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        elif number == signal.SIGTERM:
            os._exit(128 + number)

    return handle


def interrupt(number: int, _: Any) -> None:
    """A handler: the program ends at once. Raises Interrupted."""
    raise Interrupted(number=number)


def unheard(error: OSError) -> None:
    """What is printed cannot be written: `| head` has ended, a terminal is closed, a disk is full. End as by a signal.

    Raises Interrupted where no handler of `signals_to` knows better.
    """
    to_nowhere(sys.stdout)
    if error.errno not in (errno.EPIPE, errno.EIO):
        complain(f"what is printed cannot be written ({error.strerror}).")
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        handler(CLOSED_PIPE, None)
    else:
        interrupt(CLOSED_PIPE, None)


def complain(message: str) -> None:
    """Print on stderr, where somebody reads that."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)


def to_nowhere(stream: TextIO) -> None:
    """Let go what a stream still holds: Python would fail once more at writing it when it ends."""
    with contextlib.suppress(OSError, ValueError):  # of a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_at_once(number: int, _: Any) -> None:
    complain(f"{Path(sys.argv[0]).name}: interrupted.")
    os._exit(128 + number)


if Path(getattr(sys.modules["__main__"], "__file__", None) or "").stem in COMMANDS:
    signal.signal(signal.SIGINT, end_at_once)  # until `harness.command.one_sentence` takes it
