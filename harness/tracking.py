"""Trackers: --track sends the figures of a run's log to trackio, wandb or tensorboard as well.

The run's own files stay the source. What is sent is read from them, metrics.jsonl and evaluations.jsonl: numbers by
step, and nothing else, no setting, text, file or figure of the machine. RUN/tracker.json holds which run of the tracker
it is, and the last step that went there; a resumed run goes on behind it, so that no step is sent twice. A tracker that
fails is said once, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.checkpoint import write_whole
from harness.config import Config
from harness.report import say
from harness.runs import Run

Figures = dict[str, float]  # by the names of docs/metrics.md
PROJECT = "dagrpo"
OF_EVALUATION = re.compile(r"accuracy|reward|length|truncated|no_answer|consistency|(pass|maj)@\d+")
# What wandb would send besides, unless told not to. Not every version knows each of these settings.
ONLY_FIGURES = {
    "silent": True, "console": "off", "disable_code": True, "disable_git": True, "save_code": False,
    "disable_job_creation": True, "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
    "x_save_requirements": False, "host": "",
}  # fmt: skip


@dataclass
class Channel:
    """An open run of a tracker."""

    send: Callable[[Figures, int], None]  # the figures of a step
    close: Callable[[bool], None]  # has the run failed?
    where: str  # how to look at it


@dataclass
class Tracker:
    """Where the figures of a run go besides its files."""

    out: Path
    name: str  # trackio, wandb or tensorboard; none
    channel: Channel | None = None
    identity: str = ""  # of the tracker's run
    sent: int = -1  # the last step that went there
    read: dict[str, int] = field(default_factory=dict)  # bytes of each log that were read

    def forward(self) -> None:
        """Send the figures of every step that is in the log and was not sent yet."""
        with self.told_once():
            if self.name != "none":
                self.channel = self.channel or self.opened()
                for step, figures in sorted(self.unsent().items()):
                    self.remember(step)  # before it is sent: a kill between the two must not have it sent twice
                    self.channel.send(figures, step)

    def finish(self, failed: bool) -> None:
        with self.told_once():
            if self.channel is not None:
                self.channel.close(failed)

    @contextmanager
    def told_once(self) -> Iterator[None]:
        """Inside, whatever a tracker raises is said, and ends the sending: it is no reason to end a training."""
        try:
            yield
        except Exception as error:
            line = (str(error).strip().splitlines() or ["no message"])[0][:200]
            say(f"--track {self.name}: {type(error).__name__}: {line} The run goes on without; metrics.jsonl has all.")
            self.name, self.channel = "none", None

    def opened(self) -> Channel:
        """The tracker's run of this folder: a new one, or the one that it had before."""
        known = known_runs(self.out).get(self.name, {})
        word = re.sub(r"[^\w-]", "-", self.out.resolve().name)[:60]
        self.identity = known.get("run") or f"{word}-{uuid.uuid4().hex[:8]}"
        self.sent = known.get("step", -1)
        channel = OPENERS[self.name](self.out, self.identity)
        say(f"Tracked by {self.name}: {channel.where}")
        return channel

    def remember(self, step: int) -> None:
        self.sent = step
        runs = {**known_runs(self.out), self.name: {"run": self.identity, "step": step}}
        write_whole(self.out / "tracker.json", json.dumps(runs) + "\n")

    def unsent(self) -> dict[int, Figures]:
        """The figures by step of what the logs have gained since this was last called."""
        found: dict[int, Figures] = {}
        for name, of_record in (("metrics.jsonl", metrics_of), ("evaluations.jsonl", held_out_of)):
            path = self.out / name
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self.read.get(name, 0))
                lines = file.read().splitlines()
                self.read[name] = file.tell()
            for record in map(json.loads, lines):
                if record.get("step", -1) > self.sent:
                    found.setdefault(record["step"], {}).update(of_record(record))
        return found


@contextmanager
def tracked(config: Config, run: Run) -> Iterator[Tracker]:
    """What --track names, for a run; it is opened with the first step that is sent."""
    tracker = Tracker(run.out, config.track)
    try:
        yield tracker
        tracker.forward()
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)


def known_runs(out: Path) -> dict[str, Any]:
    """For each tracker that the run had: its run there, and the last step that was sent."""
    path = out / "tracker.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def metrics_of(record: dict[str, Any]) -> Figures:
    """The numbers of a line of metrics.jsonl."""
    return {name: value for name, value in record.items() if name != "step" and is_figure(value)}


def held_out_of(record: dict[str, Any]) -> Figures:
    """The numbers of a held-out evaluation: means, and the interval of the accuracy, or of the reward without one.

    Of several sets also those of each, as held_out/SET/accuracy and so on.
    """
    figures = {name: value for name, value in record.items() if OF_EVALUATION.fullmatch(name) and is_figure(value)}
    ends = record.get("interval") or record.get("reward_interval") or []
    figures |= {name: end for name, end in zip(("low", "high"), ends, strict=False) if is_figure(end)}
    of_sets = {
        f"held_out/{part}/{name.removeprefix('held_out/')}": value
        for part, of_set in record.get("sets", {}).items()
        for name, value in held_out_of(of_set).items()
    }
    return {f"held_out/{name}": value for name, value in figures.items()} | of_sets


def is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------------------------------
# The trackers
# ---------------------------------------------------------------------------------------------------------------------


def open_trackio(out: Path, identity: str) -> Channel:
    """A run in trackio's own database on this machine, or in what its environment variables name."""
    import trackio

    with quiet():
        run = trackio.init(
            project=PROJECT, name=identity, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def close(failed: bool) -> None:
        with quiet():
            trackio.finish()  # not run.finish(), behind which it would finish it once more when the program ends

    return Channel(lambda figures, step: run.log(figures, step=step), close, f"trackio show --project {PROJECT}")


def open_wandb(out: Path, identity: str) -> Channel:
    """A run on wandb's server, or with WANDB_MODE=offline one that `wandb sync` can send later."""
    import wandb

    known = getattr(wandb.Settings, "model_fields", ONLY_FIGURES)
    settings = wandb.Settings(**{name: value for name, value in ONLY_FIGURES.items() if name in known})
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = wandb.init(
        project=project, name=out.resolve().name, id=identity, resume="allow", dir=str(out), settings=settings
    )
    offline = os.environ.get("WANDB_MODE") == "offline"
    where = f"offline; to send it: wandb sync {out}/wandb/offline-run-*" if offline else str(run.url)
    return Channel(lambda figures, step: run.log(figures, step=step), lambda failed: run.finish(int(failed)), where)


def open_tensorboard(out: Path, identity: str) -> Channel:
    """Event files in the run's folder."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def send(figures: Figures, step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Channel(send, lambda failed: writer.close(), f"tensorboard --logdir {out}/tensorboard")


OPENERS = {"trackio": open_trackio, "wandb": open_wandb, "tensorboard": open_tensorboard}


def quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Inside, what is printed is dropped: trackio's advice would stand between the lines of the run."""
    return contextlib.redirect_stdout(io.StringIO())
