"""A run: its folder, which no other run has meanwhile, signals, when a checkpoint is due, and going on from one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import card
from harness.checkpoint import (
    PART,
    Checkpoint,
    Generators,
    Trained,
    copied,
    flush_file,
    generators_of,
    kept_checkpoints,
    model_to_publish,
    newest,
    publish,
    records_of,
    step_of,
    whole_lines,
    write_checkpoint,
    write_whole,
)
from harness.command import flag_name, shown
from harness.config import Config, ConfigError
from harness.prompting import changed_contents
from harness.signals import Interrupted, complain, signals_to
from questions import DataError

# What says how long, how often, where, and with how much memory: never what is learned.
MAY_CHANGE = (
    "steps", "eval_every", "save_every", "keep", "out", "max_bad_steps", "token_budget", "checkpointing", "track",
    "compile", "merge",
)  # fmt: skip
OF_CHECKPOINTS = ("lora", "lora_alpha", "lora_targets", "optimizer")  # what they hold is of this kind alone
LOGS = ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl")

# ---------------------------------------------------------------------------------------------------------------------
# The run and its folder
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run that has begun: its folder, what it goes on from, and who writes its checkpoints."""

    out: Path
    resumed: Checkpoint | None = None
    keep: int = 1
    config: Config = field(default_factory=Config)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False  # a signal asks the run to end after its step
    number: int = 0  # of that signal
    in_step: bool = False
    saved: int = -1  # the step of the newest checkpoint, or of that being written
    best: tuple[float, int] | None = None  # held-out accuracy and its step
    writer: threading.Thread | None = None
    failure: BaseException | None = None
    stood_still: float = 0.0  # seconds that the last checkpoint kept training waiting
    bad_steps: int = 0  # in a row, without a finite gradient
    bad_last: dict[str, Any] = field(default_factory=dict)  # what the log says of the last of them
    data: str = ""  # a hash of the questions
    began: float = 0.0  # when the first step did, by the clock of this process

    def steps(self, last: int) -> Iterator[int]:
        """The steps from here to the last one; a signal waits until the step is done.

        Raises Interrupted then, with what goes on from there.
        """
        self.began = time.monotonic()
        for step in range(self.start + 1, last + 1):
            if self.writer is not None and not self.writer.is_alive():
                self.wait()  # raises what went wrong there
            self.in_step = True
            yield step
            if self.saved == step:  # else the signal came behind the last chance to save: after the next step
                self.stop_if_asked()
        self.in_step = False

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, a signal ends the run at once: the step is saved, and what is done here can be done again.

        Where the model gives NaN, the error names the best one until then: the newest is past help.
        """
        self.stop_if_asked()
        before, self.in_step = self.in_step, False
        try:
            yield
        except FloatingPointError as error:
            if self.best is not None:
                error.add_note(f"The best one until then: {self.out}/checkpoints/step-{self.best[1]}/model")
            raise
        self.in_step = before

    def stop_if_asked(self) -> None:
        if self.interrupted:
            self.wait()
            raise Interrupted(self.last_words(), self.number)

    def last_words(self) -> str:
        """What is said where a signal ends the run."""
        if self.saved < 0:
            return "Stopped before the first checkpoint: there is nothing to go on from."
        return f"Stopped; saved after step {self.saved}. Go on with: python dagrpo.py --resume {self.out}"

    def save(self, step: int, learner: Trained, taken: int, generators: Generators | None = None) -> None:
        """Copy what the checkpoint needs, and let a thread write it.

        `taken` are the questions from the stream so far; `generators` states from before, where they have moved since.

        Raises OSError where the checkpoint before could not be written, FloatingPointError for weights that are not
        finite: the checkpoint before stays.
        """
        start = time.perf_counter()
        if step == self.saved:
            return
        self.wait()
        for name, parameter in learner.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise FloatingPointError(
                    f"step {step}: {name} has values that are not finite, so that no checkpoint is made of this step. "
                    "Go on from the last one with --resume, --force and a lower --learning-rate."
                )
        weights, tensors = copied(learner)
        random_states = generators or generators_of()
        tensors |= random_states.tensors
        state = {
            "step": step, "taken": taken, "updates": learner.schedule.last_epoch, "bad_steps": self.bad_steps,
            "data": self.data, **random_states.values,
        }  # fmt: skip
        self.saved = step
        self.writer = threading.Thread(target=self.write, args=(step, learner, weights, tensors, state))
        self.writer.start()
        self.stood_still = time.perf_counter() - start

    def write(self, step: int, learner: Trained, weights: Any, tensors: Any, state: dict[str, Any]) -> None:
        """The thread's work: a whole checkpoint, model/, and no more checkpoints than --keep asks for."""
        whole = self.out / "checkpoints" / f"step-{step}"
        try:
            for path in (self.out / name for name in LOGS):
                if path.exists():
                    flush_file(path)
            write_checkpoint(whole, learner, weights, tensors, state, self.config.merge)
            publish(model_to_publish(whole), self.out / "model")
            self.describe(step)
            self.drop_old(step)
        except BaseException as error:  # of a full disk, say: told to the run at its next step
            self.failure = error

    def describe(self, step: int) -> None:
        """Write the card of the model after a step, beside its weights in the checkpoint and in model/.

        No manifest lists it: it is written again when the model has been evaluated.
        """
        checkpoint = self.out / "checkpoints" / f"step-{step}"
        for folder in (checkpoint / "model", checkpoint / "merged", self.out / "model"):
            if folder.is_dir():
                evaluations = records_of(self.out / "evaluations.jsonl")
                write_whole(folder / card.NAME, card.model_card(self.config, evaluations, step, card.Saved.of(folder)))

    def drop_old(self, newest: int) -> None:
        """Delete all checkpoints but the newest `keep` and the best."""
        steps = sorted((step_of(path) for path in kept_checkpoints(self.out)), reverse=True)
        best = self.best[1] if self.best else None
        for step in steps[self.keep :]:
            if step not in (best, newest):
                path = self.out / "checkpoints" / f"step-{step}"
                shutil.rmtree(path.rename(path.with_name(path.name + PART)))  # by that name no half of it is looked at

    def evaluated(self, step: int, result: dict[str, Any]) -> None:
        """Remember the best held-out accuracy, or reward where nothing says what is right; of equal ones, the first.

        The card of the model says how it did.
        """
        value = result["accuracy"] if "accuracy" in result else result["reward"]
        if step > 0 and (self.best is None or value > self.best[0]):
            self.best = (value, step)
        if step > 0 and step in (self.start, self.saved):
            self.wait()
            self.describe(step)

    def bad_questions(self, sums: dict[str, float], questions: list[dict[str, Any]]) -> dict[str, Any]:
        """For the log: the questions of a step with updates left out, because their gradient was not finite, and of how
        many of these the loss was not either; counts such steps in a row."""
        if not sums.get("bad_updates"):
            self.bad_steps = 0
            return {}
        self.bad_steps += 1
        where = [str(question.get("where") or question["problem"]) for question in questions]
        self.bad_last = {"bad_losses": int(sums["bad_losses"]), "bad_questions": where}
        return self.bad_last

    def stop_if_bad(self, limit: int) -> None:
        """Raises FloatingPointError after so many such steps in a row, with the likely reasons."""
        if self.bad_steps >= limit:
            what = "loss" if self.bad_last["bad_losses"] else "gradient"
            reasons = {
                "loss": "a --learning-rate that is too high (the weights have run away: the model gives NaN, or "
                "probabilities of 0), or a --temperature that is very low",
                "gradient": "a reward that is huge, a --learning-rate that is too high (the weights have run away), or "
                "a model that overflows in bf16: its loss is still a number, and the backward pass of it is none",
            }
            where = ", ".join(self.bad_last["bad_questions"][:3])
            raise FloatingPointError(
                f"{limit} steps in a row had a {what} that is not finite, the last of them on {where}: nothing is "
                f"learned any more. Likely reasons: {reasons[what]}. The last checkpoint is from before; "
                "--max-bad-steps is the limit."
            )

    def knows(self, data: str, force: bool) -> None:
        """Remember the hash of the questions. Raises ConfigError where a resumed run had others, unless --force."""
        if self.resumed is not None and self.resumed.state["data"] != data and not force:
            raise ConfigError(
                f"--resume {self.out}: the questions are not those that the run began with: a data file, or the "
                "program's reading of it, has changed. --force goes on nevertheless, at the same place of the new ones."
            )
        self.data = data

    def is_due(self, step: int, config: Config) -> bool:
        """Is a checkpoint due after this step?"""
        by_count = bool(config.save_every) and step % config.save_every == 0
        ends = self.interrupted or self.bad_steps >= config.max_bad_steps
        return ends or by_count or config.evaluates(step)

    def seconds_left(self, step: int, last: int) -> float:
        """An estimate, after a step: what the steps until now took, evaluations and all, the others will take."""
        return (time.monotonic() - self.began) / (step - self.start) * (last - step)

    def seconds_of_saving(self) -> dict[str, float]:
        """What the checkpoint after the step before cost training, for the log; nothing where there was none."""
        seconds, self.stood_still = self.stood_still, 0.0
        return {"save": seconds} if seconds else {}

    @contextmanager
    def saved_if_it_fails(self, step: int, learner: Trained, taken: int) -> Iterator[None]:
        """Save the last whole step where what is inside raises: a reward function, say, or a GPU without room.

        Updates that were made inside are saved with it; not weights of which some have changed and some have not.
        """
        generators = generators_of()
        try:
            yield
        except Exception as error:
            if step > 0 and not learner.half_changed:
                self.save(step, learner, taken, generators)
                self.wait()
            if self.saved > 0:
                error.add_note(f"Saved after step {self.saved}; go on with: python dagrpo.py --resume {self.out}")
            raise

    @property
    def start(self) -> int:
        """The step that the run goes on from; 0: it begins."""
        return self.resumed.step if self.resumed else 0

    @property
    def taken(self) -> int:
        """Questions that were taken from the stream until then."""
        return self.resumed.taken if self.resumed else 0

    def wait(self) -> None:
        """Until the thread has written. Raises what went wrong there, an OSError with what to do."""
        if self.writer is not None:
            self.writer.join()
            self.writer = None
        failure, self.failure = self.failure, None
        if isinstance(failure, OSError) or (failure is not None and "No space left" in str(failure)):
            before = f"The one before it is whole: go on with --resume {self.out}."
            before = before if kept_checkpoints(self.out) else "It was the first one."
            raise OSError(
                f"{self.out}/checkpoints: the checkpoint of step {self.saved} could not be written ({failure}). Make "
                f"room, or take another folder (--out). {before}"
            ) from failure
        if failure is not None:
            raise failure


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """A new folder, or that of --resume; no other run may have it meanwhile. Signals are the run's while it is open.

    Raises ConfigError for a folder that is in use, not empty, or has nothing to resume.
    """
    here = bool(config.resume) and Path(config.resume).resolve() == Path(config.out).resolve()
    try:
        out = Path(config.out) if here else new_folder(config)
        begun = out.exists() and any(out.iterdir())
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()
    except OSError as error:
        where = f"--out {config.out or 'runs'}"
        raise ConfigError(f"{where}: nothing can be written there ({error.strerror}). Give another place.") from error
    with locked(out):
        run = Run(out, keep=config.keep, config=config)
        if config.resume:
            source = Path(config.resume)
            run.resumed, run.notes = newest(source)
            if not here:
                copy_logs(source, out)
            clean(out, run.resumed.step if run.resumed else -1)
            if run.resumed is not None:
                run.saved = run.resumed.step if here else -1
                publish(model_to_publish(run.resumed.path), out / "model")
                run.bad_steps = run.resumed.state["bad_steps"]
                for result in records_of(out / "evaluations.jsonl"):
                    run.evaluated(result["step"], result)
                if here:
                    run.drop_old(run.resumed.step)  # a kill may have come before that
        kept = {**asdict(config), "resume": "", "force": False}  # they are of this one command
        write_whole(out / "config.json", json.dumps(kept, indent=1) + "\n")
        with ending_by_signals(run):
            try:
                yield run
            except BaseException:
                if not begun and not (out / "metrics.jsonl").exists():  # nothing came of it: the model was not loaded
                    for name in ("config.json", ".lock"):
                        (out / name).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # somebody else may have taken it away, or put something into it
                        out.rmdir()
                raise
            finally:
                if run.writer is not None:
                    run.writer.join()
                if run.failure is not None:  # another error ends the run, which must not hide this one
                    complain(f"{out}/checkpoints: step {run.saved} could not be written: {run.failure}")


def new_folder(config: Config) -> Path:
    """The folder of a new run. Raises ConfigError where there is something in it already."""
    if not config.out:
        model = Path(config.model).name.removesuffix(".gguf")
        name = f"{model}-{config.method}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        for number in range(1, 1_000):  # runs that begin in one second
            out = Path("runs") / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                out.mkdir(parents=True)
                return out
    out = Path(config.out)
    if os.path.isdir(config.model) and Path(os.path.realpath(config.model)) in Path(os.path.realpath(out)).parents:
        raise ConfigError(f"--out {out}: this is in the folder of --model {config.model}. Give another one.")
    known = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if {"metrics.jsonl", "checkpoints"} & known or {".lock", "config.json"} <= known:  # .lock: a run's own config.json
        raise ConfigError(
            f"--out {out}: there is a run in this folder already. Go on with it by --resume {out}, give another "
            "folder, or delete it."
        )
    # A kill in the first moment of a run leaves a lock, and half a config.json: nothing that anybody misses.
    if out.exists() and (not out.is_dir() or known - {".lock", f"config.json{PART}"}):
        raise ConfigError(
            f"--out {out}: this is no empty folder, and a run would write over what is there. Give a new one."
        )
    return out


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Inside, no other run can have the folder. The lock of a process that died holds nothing."""
    try:
        import fcntl
    except ImportError:  # not every system has such locks
        yield
        return
    with (out / ".lock").open("a+") as file:  # it stays: were it deleted, two runs could hold two files of that name
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--out {out}: another run is writing into this folder. Give another one.") from None
        yield


@contextmanager
def ending_by_signals(run: Run) -> Iterator[None]:
    """A signal ends the run after its step, and at once outside of a step or when it comes again."""

    def ask(number: int, _: Any) -> None:
        if run.in_step and not run.interrupted:
            run.interrupted, run.number = True, number
            return
        raise Interrupted(run.last_words(), number)

    with signals_to(ask):
        yield


def copy_logs(source: Path, out: Path) -> None:
    """The lines of a run that goes on in another folder."""
    for name in LOGS:
        if (source / name).exists():
            shutil.copy2(source / name, out / name)


def clean(out: Path, step: int) -> None:
    """Take out of a run's folder what a kill has left half-written, and all lines of steps behind `step`."""
    for path in (*out.glob(f"*{PART}"), *(out / "checkpoints").glob(f"*{PART}")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in LOGS:
        path = out / name
        if path.exists():
            write_whole(
                path, "".join(f"{line}\n" for line in whole_lines(path) if json.loads(line).get("step", 0) <= step)
            )


# ---------------------------------------------------------------------------------------------------------------------
# The settings of a resumed run
# ---------------------------------------------------------------------------------------------------------------------


def resumed_config(flags: dict[str, Any]) -> Config:
    """The settings of the run that --resume names, with those flags changed that only say how long or how often.

    Raises ConfigError for a folder without a run, and for any other change, unless --force; for one of what
    checkpoints hold, also then.
    """
    folder = Path(flags["resume"])
    try:
        # A run of an earlier version does not know all settings.
        kept = {**asdict(Config()), **json.loads((folder / "config.json").read_text(encoding="utf-8"))}
        if "model_type" in kept:
            meant = f" Did you mean {folder.parent}?" if (folder.parent / "metrics.jsonl").exists() else ""
            raise ConfigError(f"--resume {folder}: it is the folder of a model, not of a run.{meant}")
        contents = changed_contents(kept.get("prompt_contents"), flags)
        config = Config(**{**kept, "out": str(folder), **flags, "prompt_contents": contents})
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"--resume {folder}: there is no run in this folder (config.json is missing).") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError | DataError):
            raise
        raise ConfigError(
            f"--resume {folder}: config.json is not one of this version of the program ({error})."
        ) from None
    if flags.get("method", kept["method"]) != kept["method"]:
        raise ConfigError(
            f"--resume {folder}: --method {flags['method']} stands for many settings, and this run has those of "
            f"{kept['method']}. Begin a new run, from --model {folder}/model if you like."
        )
    for name in OF_CHECKPOINTS:
        if flags.get(name, kept[name]) != kept[name]:
            raise ConfigError(
                f"--resume {folder}: {flag_name(name)} {shown(kept[name])} -> {shown(flags[name])}: its checkpoints "
                f"hold no such thing to go on from. Begin a new run, from --model {folder}/model if you like."
            )
    changed = [
        f"{flag_name(name)} {shown(kept[name])} -> {shown(value)}"
        for name, value in flags.items()
        if name not in (*MAY_CHANGE, "resume", "force") and kept.get(name) != value
    ]
    if changed and not config.force:
        allowed = ", ".join(map(flag_name, MAY_CHANGE))
        raise ConfigError(
            f"--resume {folder}: with {'; '.join(changed)} it would be another run. {allowed} may change; --force goes "
            "on nevertheless."
        )
    return config
