r"""The process that compares answers for `verify.grade`: comparisons in, verdicts out, a JSON line each.

No module of the package imports this one: it is a program, and what Python has imported already it runs a second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading

from verify.grading import compare

WORKER_MEMORY = 4 * 2**30  # bytes of address space that a worker may have, where the system can limit it


def serve() -> None:
    """What a worker process does, until its input ends, also in the middle of a comparison."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that it works for
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY, WORKER_MEMORY))
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # nobody waits for an answer any more

    threading.Thread(target=listen, daemon=True).start()
    say("ready")
    while True:
        answers, gold, rel_tol = json.loads(lines.get())
        try:
            verdict = compare((tuple(answers), gold, rel_tol))
        except (MemoryError, RecursionError):
            verdict = False
        say(verdict)


def say(what: object) -> None:
    """A line for the program. Where that was killed meanwhile, this process ends without a word: nobody reads it."""
    try:
        print(json.dumps(what), flush=True)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:] != ["--worker"] or sys.stdin.isatty():
        sys.exit("verify.worker is started by verify.grade, which compares answers in processes of their own.")
    serve()
