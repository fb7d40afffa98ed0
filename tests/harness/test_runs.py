"""A run and its folder: resuming to the bit, signals, locks, what is kept, and what ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import random_model

import dagrpo
import rollout
from harness import checkpoint, runs
from harness.config import EXAMPLE, Config, ConfigError, configure
from harness.runs import Run, open_run
from harness.signals import Interrupted

CLOCK = ("seconds/", "tokens_per_s/", "peak_memory_gb")  # what no two runs have in common


def settings(out, **changes):
    """A run of the embedded model that takes a second."""
    data = str(EXAMPLE / "train.jsonl")
    return configure(**{
        "model": str(EXAMPLE), "data": [data], "out": str(out), "steps": 6, "questions": 3, "group_size": 4,
        "max_new_tokens": 40, "hold_out": 4, "eval_samples": 1, "eval_every": 4, "save_every": 2, "anchors": None,
        "learning_rate": 1e-3, "warmup": 3, **changes,
    })  # fmt: skip


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def left_by(out):
    """What must be the same: metrics without the clock, samples, evaluations, weights."""
    records = [
        {name: value for name, value in record.items() if not name.startswith(CLOCK)}
        for record in lines_of(out / "metrics.jsonl")
        if "step" in record
    ]
    weights = (out / "model" / "model.safetensors").read_bytes()
    return records, lines_of(out / "samples.jsonl"), lines_of(out / "evaluations.jsonl"), weights


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "unbroken"
    dagrpo.train(settings(out))
    return out


def resumed(folder, **flags):
    return dagrpo.train(runs.resumed_config({"resume": str(folder), **flags}))


def broken_at(out, step, monkeypatch, **changes):
    """A run that an exception ends behind the given step, as a kill would."""
    plain = Run.stop_if_bad

    def stop(self, limit):
        plain(self, limit)
        if len(lines_of(out / "metrics.jsonl")) == step + 1:  # the first line is of memory
            raise MemoryError

    with monkeypatch.context() as patches:
        patches.setattr(Run, "stop_if_bad", stop)
        with pytest.raises(MemoryError):
            dagrpo.train(settings(out, **changes))


def at_call(count, act, patches):
    """The given call of `dagrpo.collect`, which is that of the step in a new run, does something else first."""
    plain, asked = dagrpo.collect, []

    def collect(*arguments):
        asked.append(arguments)
        if len(asked) == count:
            act()
        return plain(*arguments)

    patches.setattr(dagrpo, "collect", collect)


# --- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
def test_a_run_that_was_broken_off_ends_as_one_that_never_was(unbroken, tmp_path, monkeypatch, step):
    """Behind step 1 nothing is saved yet; behind 2 and 4 the checkpoint is older than the log by a step or two."""
    broken_at(tmp_path / "run", step, monkeypatch)
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)
    assert not list((tmp_path / "run").rglob("*.part"))


def cards_of(out):
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("README.md")}


def test_a_resumed_run_has_the_cards_of_one_that_never_stopped(unbroken, tmp_path, monkeypatch):
    """Step 4 is saved and then evaluated: a run that was broken off between the two has a card without the latter."""
    broken_at(tmp_path / "run", 4, monkeypatch)
    assert "after step 4" not in cards_of(tmp_path / "run")["model/README.md"]
    resumed(tmp_path / "run")
    assert cards_of(tmp_path / "run") == cards_of(unbroken) != {}


def test_a_run_that_goes_on_in_another_folder_has_the_card_of_its_own_evaluation(tmp_path, monkeypatch):
    broken_at(tmp_path / "run", 4, monkeypatch)
    before = cards_of(tmp_path / "run")
    resumed(tmp_path / "run", out=str(tmp_path / "other"), steps=4)
    assert "after step 4 |" in cards_of(tmp_path / "other")["model/README.md"]
    assert cards_of(tmp_path / "run") == before, "the files of the first folder are linked, and stay as they are"


def test_every_method_that_draws_or_remembers_something_resumes_to_the_bit(tmp_path, monkeypatch):
    """Anchors, the start model as reference, several updates, resampling, and the metric of the optimizer."""
    changes = {"anchors": "data", "kl": 0.1, "updates": 3, "epochs": 2, "resample": 2, "rectify": "batch",
               "metric": "optimizer", "max_new_tokens": 100, "steps": 4}  # fmt: skip
    dagrpo.train(settings(tmp_path / "unbroken", **changes))
    broken_at(tmp_path / "run", 3, monkeypatch, **changes)
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "unbroken")


def test_a_run_can_be_resumed_twice_and_made_longer(unbroken, tmp_path):
    dagrpo.train(settings(tmp_path / "run", steps=2))
    resumed(tmp_path / "run", steps=4)
    result = resumed(tmp_path / "run", steps=6)
    ours, theirs = left_by(tmp_path / "run"), left_by(unbroken)
    assert ours[0] == theirs[0] and ours[1] == theirs[1] and ours[3] == theirs[3]
    assert [line["step"] for line in ours[2]] == [0, 2, 4, 6], "each had its last step evaluated"
    assert result["step"] == 6 and result["before"]["questions"] == 4


def test_a_resumed_run_can_go_on_in_another_folder(unbroken, tmp_path, monkeypatch):
    broken_at(tmp_path / "run", 5, monkeypatch)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    resumed(tmp_path / "run", out=str(tmp_path / "other"))
    assert left_by(tmp_path / "other") == left_by(unbroken)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_resumed_run_writes_over_nothing_that_is_not_its_own(tmp_path):
    dagrpo.train(settings(tmp_path / "run", steps=2))
    other = tmp_path / "other" / "model"
    other.mkdir(parents=True)
    (other / "precious.bin").write_text("mine")
    (other.parent / "film.part").write_text("mine")
    with pytest.raises(ConfigError, match="this is no empty folder"):
        resumed(tmp_path / "run", steps=3, out=str(other.parent))
    assert (other / "precious.bin").read_text() == (other.parent / "film.part").read_text() == "mine"
    (tmp_path / "run" / "checkpoints" / "step-2-backup").mkdir()
    (tmp_path / "run" / "sub").mkdir()
    (tmp_path / "run" / "sub" / "film.part").write_text("mine")
    assert resumed(tmp_path / "run", steps=3)["step"] == 3
    assert (tmp_path / "run" / "sub" / "film.part").exists()


def test_force_is_of_one_command_and_a_forced_rate_is_the_one_that_trains(tmp_path):
    dagrpo.train(settings(tmp_path / "run", steps=4))
    resumed(tmp_path / "run", learning_rate=1e-7, steps=8, force=True)
    rates = {line["learning_rate"] for line in lines_of(tmp_path / "run" / "metrics.jsonl") if line.get("step", 0) > 4}
    assert rates - {0.0} == {1e-7}, "0 is of steps without a signal"
    with pytest.raises(ConfigError, match="it would be another run"):
        resumed(tmp_path / "run", learning_rate=0.5, steps=9)


def test_random_numbers_that_a_failing_reward_drew_are_drawn_again(tmp_path, monkeypatch):
    """The generators are saved as they were after the last whole step."""
    import random

    calls = []

    def collect(learner, task, stream, config, step, seconds):
        drawn = random.random()
        calls.append((step, drawn))
        if len(calls) == 3:
            raise ZeroDivisionError
        return plain(learner, task, stream, config, step, seconds)

    plain = dagrpo.collect
    monkeypatch.setattr(dagrpo, "collect", collect)
    random.seed(1)
    with pytest.raises(ZeroDivisionError):
        dagrpo.train(settings(tmp_path / "run", steps=4))
    random.seed(99)
    resumed(tmp_path / "run")
    assert calls[2] == calls[3] and [step for step, _ in calls] == [1, 2, 3, 3, 4]


def test_a_checkpoint_that_fails_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "write_checkpoint", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="checkpoint of step 2 could not be written"):
        dagrpo.train(settings(tmp_path / "run", save_every=2, eval_every=0, steps=30))
    assert len(lines_of(tmp_path / "run" / "metrics.jsonl")) <= 5


def test_other_settings_are_refused_unless_forced(tmp_path):
    dagrpo.train(settings(tmp_path / "run", steps=2))
    with pytest.raises(ConfigError, match=r"--learning-rate 0\.001 -> 0\.5") as stopped:
        resumed(tmp_path / "run", learning_rate=0.5, steps=3)
    assert "--force goes on nevertheless" in str(stopped.value) and "--steps" in str(stopped.value)
    assert resumed(tmp_path / "run", learning_rate=0.0, steps=3, force=True)["step"] == 3


def test_a_resumed_run_with_other_questions_is_refused(tmp_path):
    """The file may change while the run has it; a place in the stream says nothing of another file."""
    data = tmp_path / "data.jsonl"
    lines = (EXAMPLE / "train.jsonl").read_text().splitlines()[:40]
    data.write_text("\n".join(lines))
    dagrpo.train(settings(tmp_path / "run", steps=2, data=[str(data)]))
    data.write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match="the questions are not those that the run began with"):
        resumed(tmp_path / "run", steps=3)
    assert resumed(tmp_path / "run", steps=3, force=True)["step"] == 3


def test_another_method_is_another_run_even_by_force(tmp_path):
    """Its row of settings would not come with its name."""
    dagrpo.train(settings(tmp_path / "run", steps=2))
    with pytest.raises(ConfigError, match="--method grpo stands for many settings"):
        resumed(tmp_path / "run", method="grpo", steps=3, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no run in this folder"), ("{", "not one of this version"), ('{"old": 1}', "not one of this")],
)
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        runs.resumed_config({"resume": str(tmp_path)})


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(unbroken, tmp_path, monkeypatch, capsys):
    broken_at(tmp_path / "run", 5, monkeypatch, keep=2)
    (tmp_path / "run" / "checkpoints" / "step-4" / "optimizer.safetensors").write_bytes(b"")
    resumed(tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())  # lines are folded where paths are long
    assert "step-4: this checkpoint is damaged" in said and "Resumed after step 2" in said
    assert left_by(tmp_path / "run") == left_by(unbroken)


def test_old_checkpoints_that_a_kill_left_behind_are_gone_after_resuming(unbroken, tmp_path, monkeypatch):
    """It came behind the newest one, and before the one before it was dropped."""
    with monkeypatch.context() as patches:
        patches.setattr(Run, "drop_old", lambda *_: None)
        dagrpo.train(settings(tmp_path / "run"))
    assert len(checkpoint.kept_checkpoints(tmp_path / "run")) == 3
    resumed(tmp_path / "run")
    names = [[path.name for path in checkpoint.kept_checkpoints(out)] for out in (tmp_path / "run", unbroken)]
    assert names[0] == names[1]


def test_a_model_folder_that_a_kill_took_away_is_there_again(tmp_path):
    """It came between the two renames that put the new one in the place of the old one."""
    dagrpo.train(settings(tmp_path / "run", steps=2))
    (tmp_path / "run" / "model").rename(tmp_path / "run" / "model.old.part")
    with open_run(runs.resumed_config({"resume": str(tmp_path / "run")})) as now:
        assert (now.out / "model" / "model.safetensors").is_file()
        assert not (now.out / "model.old.part").exists()


def test_steps_without_a_finite_gradient_are_counted_across_a_resume(tmp_path, monkeypatch):
    """Two before it and one behind it are three in a row."""
    plain = dagrpo.policy_loss

    def loss(*arguments, **options):
        value, counted = plain(*arguments, **options)
        return value * float("nan"), counted

    monkeypatch.setattr(dagrpo, "policy_loss", loss)
    limits = {"steps": 30, "eval_every": 0, "save_every": 1}
    with pytest.raises(FloatingPointError, match="2 steps in a row"):
        dagrpo.train(settings(tmp_path / "run", max_bad_steps=2, **limits))
    before = len(lines_of(tmp_path / "run" / "metrics.jsonl"))
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        resumed(tmp_path / "run", max_bad_steps=3)
    added = lines_of(tmp_path / "run" / "metrics.jsonl")[before:]
    assert sum(bool(record["bad_updates"]) for record in added) <= 1


def test_a_run_in_another_folder_saves_its_first_step_again(tmp_path):
    """What is saved is saved in the folder that it came from."""
    dagrpo.train(settings(tmp_path / "run", steps=2))
    again = runs.resumed_config({"resume": str(tmp_path / "run"), "out": str(tmp_path / "other")})
    with open_run(again) as now:
        assert now.start == 2 and now.saved == -1
    with open_run(runs.resumed_config({"resume": str(tmp_path / "run")})) as now:
        assert now.start == now.saved == 2


def test_lines_that_were_cut_off_are_gone_after_resuming(unbroken, tmp_path, monkeypatch):
    broken_at(tmp_path / "run", 5, monkeypatch)
    for name in runs.LOGS:
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"step": 5, "half')
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)


# --- what is kept ------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_stay(tmp_path, monkeypatch, model, tokenizer):
    now = Run(tmp_path, keep=2)
    monkeypatch.setattr(runs, "write_checkpoint", lambda whole, *_: (whole / "model").mkdir(parents=True))
    for step, accuracy in [(1, 0.1), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.2)]:
        learner = dagrpo.Learner(model, tokenizer, None, *optimizer_of(model))
        now.save(step, learner, taken=0)
        now.wait()
        now.evaluated(step, {"accuracy": accuracy})
    assert [checkpoint.step_of(path) for path in checkpoint.kept_checkpoints(tmp_path)] == [5, 4, 2]


def optimizer_of(model):
    optimizer = torch.optim.AdamW(model.parameters())
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)


def test_a_checkpoint_is_due_every_so_many_steps_at_evaluations_and_before_the_end_of_an_interrupted_run(tmp_path):
    config = Config(model="m", data=["d"], steps=11, save_every=4, eval_every=6)
    now = Run(tmp_path)
    assert [step for step in range(1, 12) if now.is_due(step, config)] == [4, 6, 8, 11]
    now.interrupted = True
    assert now.is_due(1, config)


def test_training_stands_still_for_the_copy_and_the_log_says_how_long(unbroken):
    records = [record for record in lines_of(unbroken / "metrics.jsonl") if "step" in record]
    assert [record["step"] for record in records if "seconds/save" in record] == [3, 5]
    assert all(0 < record["seconds/save"] < 1 for record in records if "seconds/save" in record)


def test_the_time_left_is_what_the_steps_of_this_process_took(tmp_path, monkeypatch, unbroken):
    """Of a resumed run, too: four steps of six are from before."""
    clock = iter([100.0, 107.0])
    now = Run(tmp_path, resumed=checkpoint.Checkpoint(unbroken, {"step": 4}))
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
    assert next(now.steps(20)) == 5
    assert now.seconds_left(5, 20) == pytest.approx(7.0 * 15)


# --- folders and locks -------------------------------------------------------------------------------------------


def test_two_runs_cannot_have_one_folder(tmp_path):
    first = settings(tmp_path / "run")
    again = settings(tmp_path / "run", resume=str(tmp_path / "run"))
    message = "another run is writing into this folder"
    with open_run(first), pytest.raises(ConfigError, match=message), open_run(again):
        pytest.fail("both have it")


def test_the_lock_of_a_process_that_died_holds_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    script = "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); os._exit(9)"
    subprocess.run(["python3", "-c", script, str(tmp_path / "run" / ".lock")], check=False)
    assert (tmp_path / "run" / ".lock").exists()
    with open_run(settings(tmp_path / "run")) as now:
        assert now.out == tmp_path / "run"


def test_runs_that_begin_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda _: "now")
    config = Config(model="models/small.gguf", data=["d"], method="grpo", rectify="none", seed=7)
    names = []
    for _ in range(3):
        with open_run(config) as now:
            names.append(str(now.out))
            assert json.loads((now.out / "config.json").read_text())["seed"] == 7
    assert names == [f"runs/small-grpo-seed7-now{ending}" for ending in ("", "-2", "-3")]


@pytest.mark.parametrize("there", ["config.json", "model/model.safetensors", "notes.txt"])
def test_a_folder_with_something_in_it_is_never_written_over(tmp_path, there):
    path = tmp_path / "own" / there
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="this is no empty folder"), open_run(settings(tmp_path / "own")):
        pass
    assert path.read_text() == "mine" and [each for each in path.parents[-1].glob("x")] == []


def test_a_run_that_never_began_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "load", lambda *_, **__: (_ for _ in ()).throw(OSError("no such model")))
    with pytest.raises(OSError):
        dagrpo.train(settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_in_it_says_how_to_go_on(tmp_path, unbroken):
    with pytest.raises(ConfigError, match=f"--resume {unbroken}"), open_run(settings(unbroken)):
        pass


def test_what_a_kill_in_the_first_moment_leaves_is_in_nobodys_way(tmp_path):
    """A lock, and a config.json of which only half was written: the same command begins, and takes it away."""
    (tmp_path / "run").mkdir()
    for name in (".lock", "config.json.part"):
        (tmp_path / "run" / name).touch()
    with open_run(settings(tmp_path / "run")) as now:
        assert sorted(path.name for path in now.out.iterdir()) == [".lock", "config.json"]


def test_a_run_that_was_killed_while_its_model_was_loaded_can_be_gone_on_with(tmp_path, unbroken):
    """Nothing but its settings are there; they are no config.json of somebody else."""
    with open_run(settings(tmp_path / "run")):
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "config.json"]
    again = settings(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"Go on with it by --resume {tmp_path}"), open_run(again):
        pass
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)


# --- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_its_step_with_the_line_that_goes_on(unbroken, tmp_path, monkeypatch, number):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored
    at_call(3, lambda: os.kill(os.getpid(), number), monkeypatch)
    message = f"saved after step 3. Go on with: python dagrpo.py --resume {tmp_path}"
    with pytest.raises(Interrupted, match=message) as stopped:
        dagrpo.train(settings(tmp_path / "run"))
    assert checkpoint.newest(tmp_path / "run")[0].step == 3 and stopped.value.number == number
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    signal.signal(signal.SIGHUP, before)
    if number == signal.SIGTERM:
        resumed(tmp_path / "run")
        assert left_by(tmp_path / "run") == left_by(unbroken)


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    def collect(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(dagrpo, "collect", collect)
    with pytest.raises(Interrupted, match="Stopped before the first checkpoint: there is nothing to go on from"):
        dagrpo.train(settings(tmp_path / "run"))


def test_a_signal_during_an_evaluation_stops_at_once_and_loses_nothing(unbroken, tmp_path, monkeypatch):
    plain = dagrpo.held_out_accuracy

    def evaluate(*arguments, **options):
        if (arguments[5] if len(arguments) > 5 else options["step"]) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return plain(*arguments, **options)

    with monkeypatch.context() as patches:
        patches.setattr(dagrpo, "held_out_accuracy", evaluate)
        with pytest.raises(KeyboardInterrupt):
            dagrpo.train(settings(tmp_path / "run"))
    assert checkpoint.newest(tmp_path / "run")[0].step == 4
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)


def test_the_command_ends_with_the_number_of_the_signal_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def train(_):
        raise Interrupted("Go on with: ...", signal.SIGTERM)

    monkeypatch.setattr(dagrpo, "train", train)
    with pytest.raises(SystemExit) as stopped:
        dagrpo.main(["--out", str(tmp_path / "run")])
    assert stopped.value.code == 128 + 15 and "Go on with: ..." in capsys.readouterr().err


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_reaches_nothing_and_ends_the_run_in_time(tmp_path, monkeypatch, capsys):
    """Two bad steps are left out and named; three in a row end it, and the checkpoint is from before."""
    plain, count = dagrpo.policy_loss, []

    def loss(*arguments, **options):
        value, counted = plain(*arguments, **options)
        count.append(value)
        return (value * float("nan") if len(count) > 2 else value), counted

    monkeypatch.setattr(dagrpo, "policy_loss", loss)
    with pytest.raises(FloatingPointError, match="3 steps in a row had a loss that is not finite, the last of them on"):
        dagrpo.train(settings(tmp_path / "run", steps=30, save_every=1, eval_every=0, token_budget=100_000))
    records = [record for record in lines_of(tmp_path / "run" / "metrics.jsonl") if "step" in record]
    bad = [record for record in records if record["bad_updates"]]
    assert len(bad) == 3 and all(str(EXAMPLE) in place for record in bad for place in record["bad_questions"])
    said = " ".join(capsys.readouterr().out.split())  # lines are folded where paths are long
    assert "its loss was not finite, on " in said and all(record["bad_losses"] == 1 for record in bad)
    saved, _ = rollout.load(str(tmp_path / "run" / "model"))
    assert all(bool(parameter.isfinite().all()) for parameter in saved.parameters())


def test_a_gradient_that_is_not_finite_though_its_loss_is_has_reasons_of_its_own(tmp_path, monkeypatch):
    plain = dagrpo.policy_loss

    def loss(logps, *arguments, **options):
        value, counted = plain(logps, *arguments, **options)
        return value + (0 * logps.sum()).sqrt(), counted  # 0, whose gradient is 0 times infinity

    monkeypatch.setattr(dagrpo, "policy_loss", loss)
    with pytest.raises(FloatingPointError, match=r"a gradient that is not finite.*the backward pass of it is none"):
        dagrpo.train(settings(tmp_path / "run", steps=30, max_bad_steps=1))
    (bad,) = (record for record in lines_of(tmp_path / "run" / "metrics.jsonl") if record.get("bad_updates"))
    assert bad["bad_losses"] == 0 and isinstance(bad["loss"], float)


def test_a_model_that_gives_nan_in_an_evaluation_names_the_best_one_until_then(tmp_path):
    now = Run(tmp_path, best=(0.5, 4))
    with pytest.raises(FloatingPointError) as stopped, now.stoppable():
        raise FloatingPointError("the model gives NaN")
    assert stopped.value.__notes__ == [f"The best one until then: {tmp_path}/checkpoints/step-4/model"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, tokenizer):
    model = random_model()
    now = Run(tmp_path)
    learner = dagrpo.Learner(model, tokenizer, None, *optimizer_of(model))
    now.save(1, learner, taken=0)
    now.wait()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"lm_head\.weight has values that are not finite"):
        now.save(2, learner, taken=0)
    assert checkpoint.newest(tmp_path)[0].step == 1


def test_a_reward_that_raises_costs_no_step(unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patches:
        at_call(4, lambda: 1 / 0, patches)
        with pytest.raises(ZeroDivisionError):
            dagrpo.train(settings(tmp_path / "run"))
    assert checkpoint.newest(tmp_path / "run")[0].step == 3
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)


def test_a_checkpoint_that_could_not_be_written_is_told_at_the_next_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_checkpoint", full)
    with pytest.raises(OSError, match=r"checkpoint of step 2 could not be written .*Make room.*It was the first one"):
        dagrpo.train(settings(tmp_path / "run"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 18 MB, where the machine lets one be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_whole_lines(small_disk):
    """A real one: there is room for one checkpoint, and not for the next one beside it."""
    with pytest.raises(OSError, match="No space left") as stopped:
        dagrpo.train(settings(small_disk / "run", save_every=1, eval_every=0))
    found, notes = checkpoint.newest(small_disk / "run")
    assert f"checkpoint of step {found.step + 1} could not be written" in str(stopped.value) and notes == []
    assert f"The one before it is whole: go on with --resume {small_disk / 'run'}." in str(stopped.value)
    assert not list((small_disk / "run").rglob("*.part"))
    for name in runs.LOGS:
        text = (small_disk / "run" / name).read_text()
        assert text == "" or text.endswith("\n")
        lines_of(small_disk / "run" / name)


def test_a_line_that_does_not_fit_is_not_written_in_part(small_disk):
    from harness import report

    path = small_disk / "metrics.jsonl"
    report.append_json(path, {"step": 1})
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"0" * 2**20)
    with pytest.raises(OSError) as stopped:
        report.append_json(path, {"step": 2, "text": "x" * 2**20})
    assert stopped.value.filename == str(path), "the message names it"
    assert path.read_text() == '{"step": 1}\n'


def test_the_folder_of_a_resumed_run_has_its_settings(unbroken):
    assert json.loads((unbroken / "config.json").read_text())["steps"] == 6
    assert Path(json.loads((unbroken / "config.json").read_text())["out"]) == unbroken
