"""Trackers: the numbers of the log go there once each, nothing else does, and no tracker can end a training."""

from __future__ import annotations

import json
import math
import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_runs import broken_at, left_by, lines_of, resumed
from test_runs import settings as of_six_steps

import dagrpo
from harness import tracking
from harness.config import TRACKERS, ConfigError, configure
from harness.runs import Interrupted

SHORT = {"max_new_tokens": 12, "questions": 2, "group_size": 2, "hold_out": 2}


def settings(out, **changes):
    """The same, with answers that are as short as can be."""
    return of_six_steps(out, **{**SHORT, **changes})


class StandIn:
    """The three packages' functions that are called, which keep what they get: (run, step, figures) of each call."""

    def __init__(self):
        self.opened, self.sent, self.closed, self.fails_at = [], [], [], None

    def log(self, run, figures, step):
        if step == self.fails_at:
            raise RuntimeError("the server\nis down")
        self.sent.append((run, step, dict(figures)))

    def of(self, **options):
        """An open run of trackio or wandb."""
        self.opened.append(options)
        run = options.get("id") or options["name"]
        return SimpleNamespace(
            url="http://tracker.test/run",
            log=lambda figures, step: self.log(run, figures, step),
            finish=lambda *code: self.closed.append(code),
        )

    def writer(self, folder):
        """A SummaryWriter of tensorboard, which takes one figure at a time."""
        self.opened.append({"folder": folder})
        return SimpleNamespace(
            add_scalar=lambda name, value, step: self.log(folder, {name: value}, step),
            flush=lambda: None,
            close=lambda: self.closed.append(()),
        )

    def by_step(self):
        """The figures of each step; a figure that is sent twice fails here."""
        found = {}
        for _, step, figures in self.sent:
            assert not found.get(step, {}).keys() & figures.keys(), f"step {step} was sent twice"
            found.setdefault(step, {}).update(figures)
        return found


@pytest.fixture
def stand_in(monkeypatch):
    tracker = StandIn()
    modules = {
        "trackio": {"init": tracker.of, "finish": lambda: tracker.closed.append(())},
        "wandb": {"init": tracker.of, "Settings": dict},
        "tensorboard": {},
        "torch.utils.tensorboard": {"SummaryWriter": tracker.writer},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, origin="stand-in")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return tracker


def numbers(record):
    return {
        name: value
        for name, value in record.items()
        if type(value) in (int, float) and name not in ("step", "questions")
    }


def expected_of(out):
    """What a run's own files say of each step."""
    found = {record["step"]: numbers(record) for record in lines_of(out / "metrics.jsonl") if "step" in record}
    for record in lines_of(out / "evaluations.jsonl"):
        names = ("accuracy", "reward", "length", "truncated", "no_answer", "pass@1", "maj@1", "consistency")
        figures = {f"held_out/{name}": record[name] for name in names}
        figures |= {"held_out/low": record["interval"][0], "held_out/high": record["interval"][1]}
        found.setdefault(record["step"], {}).update(figures)
    return found


# --- what is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACKERS)
def test_the_numbers_of_the_log_are_sent_and_nothing_else(stand_in, tmp_path, name, capsys):
    out = tmp_path / "run"
    dagrpo.train(settings(out, track=name, steps=2, eval_every=2))
    assert stand_in.by_step() == expected_of(out) and set(stand_in.by_step()) == {0, 1, 2}
    (opened,) = stand_in.opened
    assert "config" not in opened and len(stand_in.closed) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Tracked by")]
    assert len(told) == 1 and name in told[0]


def test_wandb_is_told_to_collect_nothing_by_itself(stand_in, tmp_path):
    dagrpo.train(settings(tmp_path / "run", track="wandb", steps=1))
    told = stand_in.opened[0]["settings"]
    assert told["console"] == "off" and told["x_disable_meta"] and told["x_disable_stats"] and not told["save_code"]


def test_texts_lists_and_figures_that_are_not_finite_stay_here():
    record = {"step": 3, "loss": None, "reward": 0.5, "kl": math.nan, "bad_questions": ["secret"], "x": True, "n": 2}
    assert tracking.metrics_of(record) == {"reward": 0.5, "n": 2}
    held_out = {"step": 3, "reward": 0.1, "reward_interval": [0.0, 0.2], "rows": [{"texts": ["secret"]}], "pass@4": 1}
    expected = {"held_out/reward": 0.1, "held_out/low": 0.0, "held_out/high": 0.2, "held_out/pass@4": 1}
    assert tracking.held_out_of({**held_out, "questions": 7, "levels": {"1": {"reward": 0.1}}}) == expected


def test_without_the_flag_no_tracker_is_touched(stand_in, tmp_path):
    dagrpo.train(settings(tmp_path / "run", steps=1))
    assert not stand_in.opened and not (tmp_path / "run" / "tracker.json").exists()


# --- resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), [("tensorboard", 1), ("wandb", 3), ("trackio", 5)])
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker_and_sends_no_step_twice(
    stand_in, tmp_path, monkeypatch, name, step
):
    """Behind step 5 the checkpoint is of step 4: step 5 is made again, but was sent already."""
    out = tmp_path / "run"
    broken_at(out, step, monkeypatch, **SHORT, track=name)
    resumed(out)
    made = expected_of(out)
    assert {step: figures.keys() for step, figures in stand_in.by_step().items()} == {
        step: figures.keys() for step, figures in made.items()
    }
    assert len({run for run, _, _ in stand_in.sent}) == 1


@pytest.mark.parametrize("step", [4, 6])
def test_an_evaluation_that_was_broken_off_is_sent_with_its_step_when_it_is_made_again(
    stand_in, tmp_path, monkeypatch, step
):
    """Behind step 6 there is no further step to send it with."""
    plain = dagrpo.held_out_accuracy

    def broken_off(*arguments):
        if arguments[-1] == step:
            raise Interrupted
        return plain(*arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patches:
        patches.setattr(dagrpo, "held_out_accuracy", broken_off)
        with pytest.raises(Interrupted):
            dagrpo.train(settings(out, track="wandb"))
    assert max(stand_in.by_step()) == step - 1 and stand_in.closed == [(1,)], "the run is marked as failed"
    resumed(out)
    assert stand_in.by_step()[step].keys() == expected_of(out)[step].keys() and stand_in.closed[-1] == (0,)


def test_a_run_that_goes_on_in_another_folder_is_another_run_of_the_tracker(stand_in, tmp_path, monkeypatch):
    broken_at(tmp_path / "run", 4, monkeypatch, **SHORT, track="trackio")
    first = list(stand_in.sent)
    stand_in.sent.clear()
    resumed(tmp_path / "run", out=str(tmp_path / "other"))
    assert set(stand_in.by_step()) == {0, 1, 2, 3, 4, 5, 6}, "with all that came before"
    assert not {run for run, _, _ in stand_in.sent} & {run for run, _, _ in first}


def test_the_tracker_may_change_when_a_run_goes_on(stand_in, tmp_path):
    out = tmp_path / "run"
    dagrpo.train(settings(out, track="wandb", steps=2))
    stand_in.sent.clear()
    resumed(out, steps=4, track="tensorboard")
    assert set(stand_in.by_step()) == {0, 1, 2, 3, 4}, "the new one gets the run from its beginning"
    stand_in.sent.clear()
    resumed(out, steps=6, track="wandb")
    assert set(stand_in.by_step()) == {3, 4, 5, 6}, "the old one what it does not have"
    assert json.loads((out / "tracker.json").read_text())["wandb"]["step"] == 6


# --- what fails -------------------------------------------------------------------------------------------------


def test_a_tracker_that_fails_midway_is_told_once_and_the_run_goes_on(stand_in, tmp_path, capsys):
    stand_in.fails_at = 2
    dagrpo.train(settings(tmp_path / "run", track="wandb", steps=4))
    told = [line for line in capsys.readouterr().out.splitlines() if "--track" in line]
    assert told == ["--track wandb: RuntimeError: the server The run goes on without; metrics.jsonl has all."]
    assert set(stand_in.by_step()) == {0, 1}
    assert [record["step"] for record in lines_of(tmp_path / "run" / "metrics.jsonl")[1:]] == [1, 2, 3, 4]


def test_a_tracker_that_cannot_be_opened_is_told_once_and_the_run_goes_on(stand_in, tmp_path, monkeypatch, capsys):
    def unreachable(**_):
        raise OSError("No API key configured.")

    monkeypatch.setattr(sys.modules["wandb"], "init", unreachable)
    assert dagrpo.train(settings(tmp_path / "run", track="wandb", steps=3))["step"] == 3
    assert capsys.readouterr().out.count("--track wandb: OSError: No API key configured.") == 1


def test_a_tracker_changes_nothing_of_what_is_learned(stand_in, tmp_path):
    dagrpo.train(settings(tmp_path / "plain", steps=3))
    dagrpo.train(settings(tmp_path / "tracked", steps=3, track="wandb"))
    assert left_by(tmp_path / "plain") == left_by(tmp_path / "tracked")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_one_sentence_before_anything_is_loaded(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"^--track {name}: its package is not there. Run: pip install {name}, or"):
        configure(track=name)


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """wandb leaves a folder `wandb` where it has run."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="its package is not there"):
        configure(track="wandb")


# --- the packages themselves, where they are installed ------------------------------------------------------------


def steps_of_wandb(out):
    """The history of the offline runs in a folder, in the order in which wandb would send them: (run, step, names)."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        content, place, part = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            left = 32_768 - place % 32_768
            length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
            if left < 7 or kind == 0:
                place += left
                continue
            part += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # the whole of a record, or its end
                record = wandb_internal_pb2.Record.FromString(part)
                part = b""
                assert not record.HasField("files") and not record.HasField("environment"), record
                if record.HasField("history"):
                    names = {item.nested_key[0] or item.key for item in record.history.item}
                    found.append((record.history.step.num, {name for name in names if not name.startswith("_")}))
    return found


def steps_of_trackio(out):
    from trackio.sqlite_storage import SQLiteStorage

    run = json.loads((out / "tracker.json").read_text())["trackio"]["run"]
    rows = SQLiteStorage.get_logs(tracking.PROJECT, run)
    assert SQLiteStorage.get_system_logs(tracking.PROJECT, run) == []
    return [(row["step"], row.keys() - {"step", "timestamp"}) for row in rows]


def steps_of_tensorboard(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    found = [(event.step, name) for name in events.Tags()["scalars"] for event in events.Scalars(name)]
    assert len(found) == len(set(found)), "a step was sent twice"
    return sorted((step, {name for other, name in found if other == step}) for step in {step for step, _ in found})


@pytest.mark.parametrize("name", TRACKERS)
def test_the_package_itself_has_every_step_once_after_a_run_that_was_broken_off(tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "trackio":
        from trackio import sqlite_storage, utils

        for module in (utils, sqlite_storage):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    out = tmp_path / "run"
    broken_at(out, 5, monkeypatch, **SHORT, track=name)
    random.seed(0), torch.manual_seed(0)
    before = random.getstate(), torch.get_rng_state()
    tracking.OPENERS[name](tmp_path, "other").close(False)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    resumed(out)
    steps = {"wandb": steps_of_wandb, "trackio": steps_of_trackio, "tensorboard": steps_of_tensorboard}[name](out)
    assert steps == [(step, figures.keys()) for step, figures in sorted(expected_of(out).items())]
