"""Bad inputs and faults, tried as a user would, and counted: clear, unclear, a traceback, something lost.

    python benchmarks/trial.py                    all 258, in a fresh folder each; exit status 1 where one is not clear
    python benchmarks/trial.py --only "lora"      those whose command has this text
    python benchmarks/trial.py --log trial.jsonl  what each printed
    python benchmarks/trial.py --forked           in processes forked from one that has imported PyTorch: saves minutes

trial_rows.py has the inputs, trial_files.py their files. A row is clear where the exit status is the expected one, the
expected words are printed, and a command that failed ends in one line that begins with the program's name. A traceback
is one of Python, whoever printed it. Lost is: a file that was there has changed or is gone; weights were saved that are
not finite; or a run that a fault ended does not go on with --resume to its last step, each step once in its log.

Some faults need a file system of their own, and so a user who may mount one: elsewhere they are left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
import trial_rows
from conftest import character_tokenizer, random_model
from safetensors.torch import load_file
from test_trial import files_of
from transformers import logging
from trial_files import ROOT, fill
from trial_rows import BY_REWARD, KINDS, Row

from harness import checkpoint
from verify.grading import stop_workers

CATEGORIES = ("clear", "unclear", "traceback")
LIMIT = 300.0  # seconds, which end a command that hangs
ENVIRONMENT = {
    **os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "hub",
}  # fmt: skip
STEPS = "--questions 2 --group-size 8 --eval-samples 1 --eval-every 0 --hold-out 2 --save-every 1 --max-new-tokens 100"
LONG_RUN = f"dagrpo.py --model m --data good.jsonl --out new --steps 6 {STEPS}"


@dataclass
class Outcome:
    """What came of a row."""

    code: int
    printed: str
    errors: str
    lost: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


def words_of(command: str, folder: Path) -> list[str]:
    program, *rest = shlex.split(command.replace("{folder}", str(folder)))
    return [sys.executable, str(ROOT / program), *rest]


def run(command: str, folder: Path, forked: bool = False) -> Outcome:
    """A command, to its end or the time limit."""
    words = words_of(command, folder)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        if forked:
            child = os.fork()
            if child == 0:
                as_command(words[1:], folder, out.fileno(), errors.fileno())
            code = ended(child)
        else:
            with subprocess.Popen(
                words, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=errors
            ) as process:
                code = ended(process.pid)
                process.returncode = code  # it is known, and nobody need wait for it
        out.seek(0)
        errors.seek(0)
        printed, complained = (file.read().decode("utf-8", "replace") for file in (out, errors))
    return Outcome(code, printed, complained)


def ended(process: int) -> int:
    """The exit status of a process, of one that a signal ended 128 and its number; -1 after the time limit."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1


def as_command(words: list[str], folder: Path, out: int, errors: int) -> NoReturn:
    """What a forked process does: what Python would do with these words, its imports already made."""
    code = 1
    try:
        os.chdir(folder)
        os.environ.update(ENVIRONMENT)
        sys.path.insert(0, ENVIRONMENT["PYTHONPATH"])
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, errors)):
            os.dup2(file, number)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        stop_workers()  # as at an exit, of which no more is wanted here: this is a copy of another process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def goes_on(folder: Path, steps: int) -> Outcome:
    """`--resume new`; lost is what it lacks then."""
    again = run("dagrpo.py --resume new", folder)
    logged = [record["step"] for record in checkpoint.records_of(folder / "new/metrics.jsonl") if "step" in record]
    if again.code or logged != list(range(1, steps + 1)):
        again.lost.append(f"--resume: exit status {again.code}, steps {logged}: {again.errors[-300:]}")
    if list(folder.rglob("*.part")):
        again.lost.append("a half-written file stays")
    return again


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `folder`/disk. Raises PermissionError where none can be mounted."""
    place = folder / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        raise PermissionError("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A command whose bars are watched, as in a terminal."""

    process: subprocess.Popen[bytes]
    folder: Path
    shown: bytearray

    def shows(self, words: str) -> bool:
        """Has a bar shown them, for a moment? One that is just being made is closed by nobody."""
        found = words.encode() in self.shown
        time.sleep(0.05 * found)
        return found

    def imports_torch(self) -> bool:
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text()

    def saves(self, step: int) -> bool:
        return (self.folder / f"new/checkpoints/step-{step}{checkpoint.PART}").exists()


def stopped(command: str, folder: Path, number: signal.Signals, moment: Callable[[Watched], bool]) -> Outcome:
    """A command that gets a signal at a moment."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))  # bars have the width of the terminal
    with open(folder / "stdout.txt", "wb") as out:
        process = subprocess.Popen(
            words_of(command, folder), cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
    os.close(theirs)
    watched = Watched(process, folder, bytearray())

    def read() -> None:
        with contextlib.suppress(OSError):  # of a terminal that is closed
            while part := os.read(ours, 4096):
                watched.shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + LIMIT
    while process.poll() is None and not moment(watched):
        if time.monotonic() > end:
            process.kill()
        time.sleep(0.001)
    missed = process.poll() is not None
    if not missed:
        process.send_signal(number)
    code = process.wait(LIMIT)
    reader.join()
    os.close(ours)
    printed = (folder / "stdout.txt").read_text(encoding="utf-8", errors="replace")
    errors = watched.shown.decode("utf-8", "replace").replace("\r", "\n")
    (folder / "stdout.txt").unlink()
    if missed:
        errors += "\nthe moment was missed"
    return Outcome(code if code >= 0 else 128 - code, printed, errors)


def in_run(folder: Path, number: signal.Signals, moment: Callable[[Watched], bool], model: str = "m") -> Outcome:
    """A run of six steps that gets a signal and goes on; of a kill, what is said is what --resume says."""
    outcome = stopped(LONG_RUN.replace("--model m", f"--model {model}"), folder, number, moment)
    again = goes_on(folder, 6)
    outcome.lost += again.lost
    if number == signal.SIGKILL:
        outcome.printed += again.printed
    return outcome


def large_model(folder: Path) -> str:
    """One whose checkpoints take long enough to be written that a signal can come meanwhile."""
    random_model(hidden_size=512, intermediate_size=1024, num_hidden_layers=4).save_pretrained(folder / "large")
    character_tokenizer().save_pretrained(folder / "large")
    return "large"


def killed_in_two_saves(folder: Path) -> Outcome:
    model = large_model(folder)
    stopped(LONG_RUN.replace("--model m", f"--model {model}"), folder, signal.SIGKILL, lambda w: w.saves(2))
    outcome = stopped("dagrpo.py --resume new", folder, signal.SIGKILL, lambda w: w.saves(4))
    again = goes_on(folder, 6)
    return Outcome(outcome.code, again.printed, outcome.errors, again.lost)


def interrupted_import(folder: Path) -> Outcome:
    """Nothing has begun: the same command runs."""
    outcome = stopped(LONG_RUN, folder, signal.SIGINT, Watched.imports_torch)
    if (folder / "new").exists() or run(LONG_RUN, folder).code:
        outcome.lost.append("the same command does not run any more")
    return outcome


def interrupted_evaluation(folder: Path) -> Outcome:
    """Of evaluate.py: the same command goes on."""
    command = "evaluate.py --model m --data good.jsonl --samples 400 --max-new-tokens 100 --out r.json"
    part = folder / "r.json.part.jsonl"
    outcome = stopped(command, folder, signal.SIGINT, lambda _: part.exists() and part.stat().st_size > 20_000)
    again = run(command, folder)
    if again.code or "answers are those of an evaluation that was interrupted" not in again.printed:
        outcome.lost.append("the answers until then")
    return outcome


def closed_pipe(folder: Path) -> Outcome:
    """The whole line in a shell, whose status is that of the program."""
    line = f"{shlex.join(words_of(LONG_RUN, folder))} | head -2; exit ${{PIPESTATUS[0]}}"
    shell = subprocess.run(["bash", "-c", line], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    outcome = Outcome(shell.returncode, shell.stdout, shell.stderr)
    if (folder / "new").exists() or run(LONG_RUN, folder).code:  # those two lines come before the run begins
        outcome.lost.append("the same command does not run any more")
    return outcome


# ---------------------------------------------------------------------------------------------------------------------
# Other faults
# ---------------------------------------------------------------------------------------------------------------------


def late_reward(folder: Path) -> Outcome:
    """A function that fails in the third step: the two before are saved."""
    command = f"{BY_REWARD}more.py:raises_late --steps 5".replace("--steps 1 ", "")
    outcome = run(command, folder)
    found, _ = checkpoint.newest(folder / "new")
    if found is None or found.step != 2:
        outcome.lost.append(f"steps: the newest checkpoint is {found and found.step}")
    return outcome


def two_at_once(folder: Path, flags: str) -> tuple[list[Outcome], list[Path]]:
    """The same command twice at the same time; the folders of runs afterwards."""
    command, outcomes = LONG_RUN.replace("--out new", flags), []
    threads = [threading.Thread(target=lambda: outcomes.append(run(command, folder))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(outcomes, key=lambda outcome: outcome.code), [*folder.glob("runs/*"), *folder.glob("new")]


def two_by_default(folder: Path) -> Outcome:
    outcomes, runs = two_at_once(folder, "")
    lost = [] if len(runs) == 2 else [f"one of two runs: there are {runs}"]
    errors = "".join(outcome.errors for outcome in outcomes)
    return Outcome(outcomes[1].code, outcomes[0].printed.replace("step 6/6", "step 1/1"), errors, lost)


def two_in_one(folder: Path) -> Outcome:
    (first, second), _ = two_at_once(folder, "--out new")
    logged = [record["step"] for record in checkpoint.records_of(folder / "new/metrics.jsonl") if "step" in record]
    second.lost = [] if first.code == 0 and logged == [1, 2, 3, 4, 5, 6] else [f"the first run: {first}, {logged}"]
    return second


def full_disk(folder: Path, free: int) -> Outcome:
    """A run on a disk with so many bytes; with room again, it goes on."""
    with small_disk(folder, f"size={free}") as disk:
        outcome = run(LONG_RUN.replace("--out new", "--out disk/new").replace("--model m", "--model half"), folder)
        shutil.copytree(disk / "new", folder / "new")
    outcome.lost += goes_on(folder, 6).lost
    return outcome


def full_at(checkpoints: float) -> Callable[[Path], Outcome]:
    """A disk with room for so many checkpoints."""

    def event(folder: Path) -> Outcome:
        random_model(hidden_size=128, intermediate_size=256).save_pretrained(folder / "half")
        character_tokenizer().save_pretrained(folder / "half")
        size = 3 * (folder / "half/model.safetensors").stat().st_size  # with the two moments of each weight
        return full_disk(folder, int(checkpoints * size) + 200_000)

    return event


def read_only(folder: Path) -> Outcome:
    with small_disk(folder, "ro"):
        return run(LONG_RUN.replace("--out new", "--out disk/new"), folder)


EVENTS: dict[str, Callable[[Path], Outcome]] = {
    "late_reward": late_reward,
    "two_by_default": two_by_default,
    "two_in_one": two_in_one,
    "full_at_first": full_at(0.5),
    "full_at_second": full_at(1.5),
    "read_only": read_only,
    "int_importing": interrupted_import,
    "int_evaluating": lambda folder: in_run(folder, signal.SIGINT, lambda w: w.shows("step 0: held out")),
    "int_rollout": lambda folder: in_run(folder, signal.SIGINT, lambda w: w.shows("step 3: rollout")),
    "int_update": lambda folder: in_run(folder, signal.SIGINT, lambda w: w.shows("step 3: update")),
    "int_saving": lambda folder: in_run(folder, signal.SIGINT, lambda w: w.saves(2), large_model(folder)),
    "term_rollout": lambda folder: in_run(folder, signal.SIGTERM, lambda w: w.shows("step 3: rollout")),
    "hup_rollout": lambda folder: in_run(folder, signal.SIGHUP, lambda w: w.shows("step 3: rollout")),
    "kill_rollout": lambda folder: in_run(folder, signal.SIGKILL, lambda w: w.shows("step 4: rollout")),
    "kill_saving": lambda folder: in_run(folder, signal.SIGKILL, lambda w: w.saves(2), large_model(folder)),
    "kill_saving_twice": killed_in_two_saves,
    "int_evaluate": interrupted_evaluation,
    "closed_pipe": closed_pipe,
}

# ---------------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------------


def tried(row: Row, world: Path, folder: Path, forked: bool) -> Outcome:
    """The row in a copy of the world."""
    large = [] if "wide.jsonl" in row.command else ["wide.jsonl"]
    shutil.copytree(world, folder, symlinks=True, ignore=shutil.ignore_patterns(*large))
    before = files_of(folder)
    outcome = EVENTS[row.event](folder) if row.event else run(row.command, folder, forked)
    after = files_of(folder)
    outcome.lost += [f"{name} has changed" for name in before if after.get(name) != before[name]]
    for path in folder.glob("*/**/model.safetensors"):
        if (
            path.is_file()
            and str(path.relative_to(folder)) not in before
            and not all(
                bool(weights.isfinite().all()) for weights in load_file(path).values() if weights.is_floating_point()
            )
        ):
            outcome.lost.append(f"{path.relative_to(folder)} has weights that are not finite")
    return outcome


def category(row: Row, outcome: Outcome) -> str:
    """Of CATEGORIES."""
    everything = outcome.printed + outcome.errors
    if "Traceback (most recent call last)" in everything:
        return "traceback"
    said = " ".join(everything.split())
    if row.or_taken and outcome.code == 0 and "step 1/1" in said:
        return "clear"
    last = ([line for line in outcome.errors.splitlines() if line.strip()] or [""])[-1]
    ends_in_a_line = row.code in (0, 137) or last.strip().startswith(("dagrpo.py: ", "evaluate.py: "))
    right = outcome.code == row.code and " ".join(row.said.split()) in said and ends_in_a_line
    return "clear" if right else "unclear"


def table(counted: Counter[tuple[str, bool, str]], lost: Counter[str]) -> str:
    """Rows as in the trial's own table."""
    rows = ["| | tried | of them described | clear, or handled and said | unclear | traceback | lost something |"]
    rows.append("| --- " + "| ---: " * 6 + "|")
    for kind in (*KINDS, "all"):
        kinds = KINDS if kind == "all" else (kind,)
        by = {c: sum(counted[k, described, c] for k in kinds for described in (True, False)) for c in CATEGORIES}
        described = sum(counted[k, True, c] for k in kinds for c in CATEGORIES)
        figures = (sum(by.values()), described, *by.values(), sum(lost[k] for k in kinds))
        rows.append(f"| {kind} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose kind, command or event has this text")
    parser.add_argument("--log", metavar="FILE", help="a JSON object for each row, with all that was printed")
    parser.add_argument("--forked", action="store_true", help="commands without events in forks of this process")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    options = parser.parse_args()
    rows = [row for row in trial_rows.all_rows() if options.only in f"{row.kind}: {row.command} {row.event}"]
    if options.list:
        for row in rows:
            print(f"{'described' if row.described else 'table':<10} {row.kind:<12} {row.command}")
        print(Counter((row.kind, row.described) for row in rows))
        return
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    counted: Counter[tuple[str, bool, str]] = Counter()
    lost: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        world = Path(temporary) / "world"
        world.mkdir()
        fill(world)
        for row in rows:
            start, folder = time.monotonic(), Path(temporary) / "here"
            try:
                outcome = tried(row, world, folder, options.forked)
            except PermissionError as error:
                print(f"left out: {row.command}: {error}", flush=True)
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            found, seconds = category(row, outcome), time.monotonic() - start
            counted[row.kind, row.described, found] += 1
            lost[row.kind] += bool(outcome.lost)
            told = "".join(f"\n          lost: {each}" for each in outcome.lost)
            print(f"{found:<9} {seconds:5.1f} s  {row.kind}: {row.command}{told}", flush=True)
            if options.log:
                with open(options.log, "a", encoding="utf-8") as file:
                    kept = {"row": row.__dict__, "category": found, "seconds": seconds, **outcome.__dict__}
                    file.write(json.dumps(kept) + "\n")
    print(f"\n{table(counted, lost)}")
    sys.exit(sum(counted.values()) != sum(n for (_, _, found), n in counted.items() if found == "clear"))


if __name__ == "__main__":
    main()
