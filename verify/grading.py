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
from pathlib import Path

from verify.equality import choice_of, is_equivalent, readable

TEXT_END = 100_000  # characters searched for an answer, from the end of the text
START_LIMIT = 60.0  # seconds that a worker process may take to start and to import sympy
CASES_A_WORKER = 32  # below this many comparisons a further process does not pay

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(-?\w+)(?![\w{]))")
BOX_OR_BRACE = re.compile(BOX.pattern + r"|(?<!\\)[{}]")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$.,;]|\\[()\[\],;: \\]|\\q?quad|\\text\s*\{[\s,]*(?:and|or)?\s*\}|and\b|or\b|[a-zA-Z](?:_\{?\w\}?)?\s*=)*"
)
FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$(?=\S)([^$]*?[^$\s])\$(?!\d)|\$\s([^$]+)\s\$"
    r"|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]",
    re.DOTALL,
)
NUMBER = re.compile(
    r"(?<![\w.])-?\s?(?:\\?\$\s?)?(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?|(?<![\w.])-?\.\d+"
)
LEAD = re.compile(r"(?:answer|solution|result|option|choice)s?\s*(?:is|are|:|=)+\s*:?\s*", re.IGNORECASE)
HEDGE = re.compile(
    r"^(?:approximately|about|roughly|exactly|simply|just|equal to|indeed)\s+|,? (?:not|rather than)\b.*"
)
LAYOUT = re.compile(r"</?(?:b|strong|i|em|u|p|br|span|div)\b[^<>\n]*>|[`✅✓✔“”]")
SENTENCE = re.compile(r"\*\*[^*\n]+\*\*|.*?(?=\*\*|[.!?](?:\s|$)|\n|$)")
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</s>")
COMMAND = re.compile(r"\\(?:text\w*|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+|[{}]")
PROSE = re.compile(
    r"\b(?:(?!(?:sqrt|sin|cos|tan|log|exp|and|inf|infinity|union)\b)[a-z]{3,}|so|is|it|to|we|he|of|at|be|by|as|an|on)\b",
    re.IGNORECASE,
)
NAME = re.compile(r"\s*\\?[a-zA-Z]+(?:_\{?\w+\}?)?'*\s*|\s*\\(?:triangle|angle)\s*[A-Z]+\s*")
PLAIN_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")

# ---------------------------------------------------------------------------------------------------------------------
# Extraction
# ---------------------------------------------------------------------------------------------------------------------


def extract_answer(text: str) -> str | None:
    r"""The final answer of a text, or None.

    The last complete `\boxed{}` that is not empty; else the last `#### x`, `<answer>x</answer>`, `the answer is x`;
    else the last formula or number of the final sentence. A text that ends inside a box or inside its reasoning has
    none.
    """
    return next(iter(final_answers(text)), None)


def final_answers(text: str) -> list[str]:
    r"""The final answer; after it, where the text ends in `\boxed{1} and \boxed{2}`, the list of both."""
    text = text[-TEXT_END:]
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return []
    boxes, truncated = boxes_of(text)
    if boxes:
        joined = [boxes[-1]]
        while len(joined) < len(boxes):
            between = text[boxes[-len(joined) - 1][1] : joined[0][0]]
            if len(between) > 200 or not BETWEEN_BOXES.fullmatch(between):
                break
            joined.insert(0, boxes[-len(joined) - 1])
        if len(joined) == 1 and LEAD.search(boxes[-1][2]):  # \boxed{\text{The answer is 5}}
            return [spoken_answer(re.sub(r"\\text\s*\{|\}", " ", boxes[-1][2])) or boxes[-1][2]]
        together = ", ".join(content for _, _, content in joined)
        alternatives = re.search(r"\bor\b", text[joined[0][1] : joined[-1][0]])  # 3 or 5 is not the answer 5
        return [together] if len(joined) == 1 or alternatives else [boxes[-1][2], together]
    if truncated:
        return []
    marked = text.rpartition("####")[2].strip() if "####" in text else ""
    if marked and not PROSE.search(COMMAND.sub(" ", marked.partition("\n")[0])):  # else it is a heading
        return [marked.partition("\n")[0].strip()]
    tag_end = text.rfind("</answer>")
    tag_start = text.rfind("<answer>", 0, max(0, tag_end))
    answer = text[tag_start + len("<answer>") : tag_end].strip() if tag_start >= 0 else spoken_answer(text)
    return [answer] if answer else []


def boxes_of(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """((start, end, content) of the complete boxes that are not empty, is there a box that was never closed)."""
    boxes: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int, int]] = []  # (start of a box or −1, start of its content, boxes before it)
    for match in BOX_OR_BRACE.finditer(text):
        if match[0] == "}":
            if not open_braces:
                continue
            start, content_start, before = open_braces.pop()
            if start < 0:
                continue
            inner = boxes[before:]  # of nested boxes the innermost counts
            content = inner[-1][2] if inner else text[content_start : match.start()].strip()
            del boxes[before:]
            if content:
                boxes.append((start, match.end(), content))
        elif match[1]:
            boxes.append((match.start(), match.end(), match[1]))
        else:
            open_braces.append((match.start() if match[0] != "{" else -1, match.end(), len(boxes)))
    return boxes, any(start >= 0 for start, _, _ in open_braces)


def spoken_answer(text: str) -> str | None:
    """What follows the last `the answer is`; else the last formula or number of the final sentence."""
    text = next((part for part in SPECIAL_TOKEN.split(text) if part.strip()), "")
    text = re.sub(r"\n\s*[-*•]\s+", "\n", LAYOUT.sub("", text))
    text = re.sub(r"I hope (?:it|this) is correct\.?\s*$", "", text.strip())
    formulas: list[str] = []

    def keep(match: re.Match[str]) -> str:
        formulas.append(next(group for group in match.groups() if group is not None))
        return f" \x00{len(formulas) - 1}\x00 "  # so that a full stop or a line end inside of it ends no sentence

    text = FORMULA.sub(keep, text.replace("\x00", ""))
    text = re.sub("\\n *(\x00\\d+\x00) *\\n", r" \1 ", text)  # a displayed formula is a part of its sentence
    for lead in reversed([match.end() for match in LEAD.finditer(text)][-3:]):
        sentence = SENTENCE.match(text[lead : lead + 1_000].lstrip())
        if sentence and (answer := answer_in(sentence[0], formulas, led=True)):
            return answer
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if sentence.strip()]
    return answer_in(sentences[-1], formulas, led=False) if sentences else None


def answer_in(sentence: str, formulas: list[str], *, led: bool) -> str | None:
    """The whole sentence where it is mathematics, or where it was announced and is short; else its last number."""
    sentence = sentence.strip(' *\t"').rstrip(".").strip(' *"')
    if led:  # "the answer is: the largest n is 34"
        sentence = HEDGE.sub("", re.split(r"\b(?:is|are|equals)\b", sentence)[-1].strip()).strip()
    words = len(PROSE.findall(COMMAND.sub(" ", sentence)))
    starts_with_formula = re.match("\x00(\\d+)\x00", sentence)
    if words and led and starts_with_formula:
        return formulas[int(starts_with_formula[1])].strip()
    if words <= (3 if led else 0):
        return re.sub("\x00(\\d+)\x00", lambda match: formulas[int(match[1])], sentence).strip()
    found = [
        formulas[int(match[1])].strip() if match[1] else match[0].replace("$", "").strip("\\ ")
        for match in re.finditer(f"\x00(\\d+)\x00|{NUMBER.pattern}", sentence)
        if not (match[1] and NAME.fullmatch(formulas[int(match[1])]))
    ]
    return found[-1] if found else sentence if led else None


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts
# ---------------------------------------------------------------------------------------------------------------------


def is_correct(text: str, gold: str, choices: list[str] | None = None, *, rel_tol: float = 0.0) -> bool:
    """Does the final answer of the text equal the gold answer? With `choices`, the gold is a letter: A, B, ..."""
    if choices:
        return chosen(text) == (choice_of(gold) or gold.strip().upper())
    return any(is_equivalent(answer, gold, rel_tol=rel_tol) for answer in final_answers(text))


def chosen(text: str) -> str | None:
    """The letter of the choice that a text makes: in its answer, else the last capital letter that stands alone."""
    answers = final_answers(text)
    if not answers and ("<think>" in text.rpartition("</think>")[2] or boxes_of(text[-TEXT_END:])[1]):
        return None  # cut off
    letters = re.findall(r"\b([A-HJ-Z])\b", answers[0] if answers else "")
    if answers and (choice_of(answers[0]) or len(letters) > 1):
        return choice_of(answers[0])
    letters = re.findall(r"\b([A-HJ-Z])\b", text[-1_000:])
    return letters[-1] if letters else None


def grade(
    texts: list[str],
    golds: list[str],
    choices: list[list[str] | None] | None = None,
    *,
    workers: int | None = None,
    time_limit: float = 5.0,
) -> list[bool | None]:
    """For each text: is its answer right? None where the gold itself is empty, malformed or over the limits.

    Plain numbers and choices are compared here; all else in `workers` processes (None: as many as the batch keeps
    busy, up to the number of cores; 0: in this process, without a time limit). A comparison that takes longer than
    `time_limit` seconds counts as False. Processes are kept for the next call. The result does not depend on their
    number. Nothing in a text makes this raise; lists of unequal length, and negative `workers`, raise ValueError.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers = {workers}: give a number of processes, 0 for none, or None for as many as pay off")
    options = [None] * len(texts) if choices is None else choices
    verdicts: list[bool | None] = [None] * len(texts)
    places: dict[Comparison, list[int]] = {}  # equal comparisons are made once
    for place, (text, gold, option) in enumerate(zip(texts, golds, options, strict=True)):
        if option:
            verdicts[place] = is_correct(text, gold, option) if gold.strip() else None
            continue
        answers = final_answers(text)
        if PLAIN_NUMBER.fullmatch(gold.strip()) and all(PLAIN_NUMBER.fullmatch(answer) for answer in answers):
            verdicts[place] = any(is_equivalent(answer, gold) for answer in answers)
        else:
            places.setdefault((tuple(answers), gold), []).append(place)
    for comparison, verdict in zip(places, compare_all(list(places), workers, time_limit), strict=True):
        for place in places[comparison]:
            verdicts[place] = verdict
    return verdicts


Comparison = tuple[tuple[str, ...], str]  # (the answers that a text gives, the gold answer)


def compare(comparison: Comparison) -> bool | None:
    """Is one of the answers right? None where the gold cannot be read."""
    answers, gold = comparison
    return any(is_equivalent(answer, gold) for answer in answers) if readable(gold) else None


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
    """That of a worker: from any working directory it finds this package, and no module in that directory."""
    folders = [str(Path(__file__).absolute().parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # An empty entry would stand for the working directory.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder)}


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
