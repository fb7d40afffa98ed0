r"""Is the answer of a text right? One text in this process, or a batch in processes with a time limit.

What sympy takes cannot be known before, and what it has begun cannot be stopped from inside of its process. So a batch
is compared in processes of its own (worker.py), and one that takes too long is killed and replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from verify.equality import choice_of, is_equivalent, readable
from verify.extraction import chosen, final_answers

# What Python needs to start and to find sympy; keys and tokens of the user are nothing to a process that reads texts of
# models. HOME and its like: packages may be installed for one user.
NEEDED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "PYTHONHOME", "PYTHONUSERBASE", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX",
    "SYSTEMROOT", "APPDATA", "USERPROFILE", "TEMP", "TMP",
)  # fmt: skip
START_LIMIT = 60.0  # seconds that a worker process may take to start and to import sympy
CASES_A_WORKER = 32  # below this many comparisons a further process does not pay

PLAIN_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")

# ---------------------------------------------------------------------------------------------------------------------
# Verdicts
# ---------------------------------------------------------------------------------------------------------------------


def is_correct(text: str, gold: str, choices: list[str] | None = None, *, rel_tol: float = 0.0) -> bool:
    """Does the final answer of the text equal the gold answer? With `choices`, the gold is a letter: A, B, ..."""
    if choices:
        return chosen(text, choices) == (choice_of(gold) or gold.strip().upper())
    return any(is_equivalent(answer, gold, rel_tol=rel_tol) for answer in final_answers(text))


def grade(
    texts: list[str],
    golds: list[str],
    choices: list[list[str] | None] | None = None,
    *,
    rel_tol: float | Sequence[float] = 0.0,
    workers: int | None = None,
    time_limit: float = 5.0,
) -> list[bool | None]:
    """For each text: is its answer right? None where the gold itself is empty, malformed or over the limits.

    `rel_tol` is the relative difference that numbers may have, one for all texts or one for each. Plain numbers and
    choices are compared here; all else in `workers` processes (None: as many as the batch keeps busy, up to the number
    of cores; 0: in this process, without a time limit). A comparison that takes longer than `time_limit` seconds counts
    as False. Processes are kept for the next call. The result does not depend on their number. Nothing in a text makes
    this raise; lists of unequal length, and negative `workers`, raise ValueError.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers = {workers}: give a number of processes, 0 for none, or None for as many as pay off")
    options = [None] * len(texts) if choices is None else choices
    tolerances = [float(rel_tol)] * len(texts) if isinstance(rel_tol, int | float) else rel_tol
    verdicts: list[bool | None] = [None] * len(texts)
    places: dict[Comparison, list[int]] = {}  # equal comparisons are made once
    for place, (text, gold, option, tolerance) in enumerate(zip(texts, golds, options, tolerances, strict=True)):
        if option:
            verdicts[place] = is_correct(text, gold, option) if gold.strip() else None
            continue
        answers = final_answers(text)
        if PLAIN_NUMBER.fullmatch(gold.strip()) and all(PLAIN_NUMBER.fullmatch(answer) for answer in answers):
            verdicts[place] = any(is_equivalent(answer, gold, rel_tol=tolerance) for answer in answers)
        else:
            places.setdefault((tuple(answers), gold, tolerance), []).append(place)
    for comparison, verdict in zip(places, compare_all(list(places), workers, time_limit), strict=True):
        for place in places[comparison]:
            verdicts[place] = verdict
    return verdicts


Comparison = tuple[tuple[str, ...], str, float]  # (the answers that a text gives, the gold answer, the tolerance)


def compare(comparison: Comparison) -> bool | None:
    """Is one of the answers right? None where the gold cannot be read."""
    answers, gold, rel_tol = comparison
    return any(is_equivalent(answer, gold, rel_tol=rel_tol) for answer in answers) if readable(gold) else None


# ---------------------------------------------------------------------------------------------------------------------
# Worker processes
# ---------------------------------------------------------------------------------------------------------------------


class Worker:
    """A process that compares answers: JSON lines in, JSON lines out. It imports neither torch nor the user's script.

    A thread cannot be stopped, and an alarm signal works in the main thread of Unix only; a process can be killed.
    Raises OSError where the system does not let it start.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "verify.worker", "--worker"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        live_workers.add(self)
        self.lines: queue.Queue[str] = queue.Queue()
        # Windows cannot wait for a pipe with a time limit, so a thread reads it.
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            self.answer(START_LIMIT)
        except (ValueError, queue.Empty):
            self.stop()
            raise OSError(f"{sys.executable} did not start verify.worker") from None

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the process has ended

    def answer(self, time_limit: float) -> object:
        """What the process says next. Raises queue.Empty after the time limit, ValueError where it has died."""
        return json.loads(self.lines.get(timeout=time_limit))

    def compare(self, comparison: Comparison, time_limit: float) -> bool | None:
        """The verdict of `compare`. Raises as `answer` does, and OSError where the process has died."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(comparison) + "\n")
        self.process.stdin.flush()
        verdict = self.answer(time_limit)
        return verdict if isinstance(verdict, bool) else None

    def stop(self) -> None:
        live_workers.discard(self)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not written yet has no reader any more
                if pipe is not None:
                    pipe.close()


def environment() -> dict[str, str]:
    """That of a worker: from any directory it finds this package, but no module of the directory, and no secret."""
    folders = [str(Path(__file__).absolute().parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # An empty entry would stand for the working directory.
    kept = {name: os.environ[name] for name in NEEDED if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder)}


live_workers: set[Worker] = set()
idle_workers: list[Worker] = []  # kept for the next batch; append and pop are safe between threads


@atexit.register
def stop_workers() -> None:
    for worker in list(live_workers):
        worker.stop()


def forget_workers() -> None:
    live_workers.clear()
    idle_workers.clear()


if hasattr(os, "register_at_fork"):  # a forked child must not write into the pipes of its parent's workers
    os.register_at_fork(after_in_child=forget_workers)


def compare_all(comparisons: list[Comparison], workers: int | None, time_limit: float) -> list[bool | None]:
    """The verdicts of all comparisons, in order, from up to `workers` processes at once."""
    if workers is None:
        workers = min(os.cpu_count() or 1, -(-len(comparisons) // CASES_A_WORKER))
    if workers == 0:
        return [compare(comparison) for comparison in comparisons]
    verdicts: list[bool | None] = [False] * len(comparisons)
    turns = deque(range(len(comparisons)))
    busy: list[Worker] = []
    hands = [
        threading.Thread(target=work, args=(comparisons, verdicts, turns, busy, time_limit), daemon=True)
        for _ in range(min(workers, len(comparisons)))
    ]
    for hand in hands:
        hand.start()
    try:
        for hand in hands:
            hand.join()
    except BaseException:  # Ctrl-C
        turns.clear()
        for worker in list(busy):
            worker.stop()
        raise
    return verdicts


def work(
    comparisons: list[Comparison],
    verdicts: list[bool | None],
    turns: deque[int],
    busy: list[Worker],
    time_limit: float,
) -> None:
    """Take comparisons, one at a time, until none is left, and have one process make them."""
    worker: Worker | None = None
    while turns:
        try:
            turn = turns.popleft()
        except IndexError:  # another hand took the last one
            break
        for attempt in range(2):  # where a kept process turns out to have died, with a new one
            try:
                worker = worker or (idle_worker() if attempt == 0 else None) or Worker()
            except OSError as error:
                warnings.warn(f"no process can be started, so answers have no time limit: {error}", stacklevel=2)
                verdicts[turn] = compare(comparisons[turn])
                break
            busy.append(worker)
            try:
                verdicts[turn] = worker.compare(comparisons[turn], time_limit)
                break
            except (OSError, ValueError, queue.Empty) as error:
                worker.stop()
                if isinstance(error, queue.Empty):
                    break  # over the time limit
            finally:
                busy.remove(worker)
                worker = worker if worker in live_workers else None
    if worker and len(idle_workers) < (os.cpu_count() or 1):
        idle_workers.append(worker)
    elif worker:
        worker.stop()


def idle_worker() -> Worker | None:
    while idle_workers:
        try:
            worker = idle_workers.pop()
        except IndexError:  # another thread took the last one
            break
        if worker.process.poll() is None:
            return worker
        worker.stop()
    return None
