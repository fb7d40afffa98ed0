"""Cells: found by what made them, kept line by line, measured on what was trained, and run in processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_cells import cell, finished, write_grid

import dagrpo
import rollout
from questions import read_questions
from study import cells, tasks
from study.variants import QUICK, TEMPERATURE, Request, made_from, question_sets

REQUEST = Request("run", "dagrpo", 0, 1e-4, QUICK)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "cells.jsonl"


# ---------------------------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------------------------


def test_every_line_of_the_kept_cells_is_a_cell_of_its_own():
    kept = [json.loads(line) for line in cells.FILE.read_text(encoding="utf-8").splitlines()]
    keys = {(c["kind"], cells.key_of(c["kind"], c["variant"], c["seed"], c["learning_rate"])) for c in kept}
    assert len(kept) == len(keys) == 486
    assert {kind for kind, _ in keys} == {"run", "grid", "settings"}
    assert all(next(iter(c)) == "kind" for c in kept)


def test_a_line_that_was_cut_off_is_ignored_and_what_comes_after_it_is_not(file):
    assert cells.read_cells(file, "run") == {}
    for seed in (0, 1):
        cells.append_kept(file, cell("grpo", seed, 0.5, 0.5))
    file.write_text(file.read_text()[:-40])
    assert list(cells.read_cells(file, "run")) == [("grpo", 0, None)]
    cells.append_kept(file, cell("grpo", 2, 0.5, 0.5))
    assert list(cells.read_cells(file, "run")) == [("grpo", 0, None), ("grpo", 2, None)]
    cells.append_kept(file, cell("grpo", 1, 0.5, 0.5))
    assert len(cells.read_cells(file, "run")) == 3 and len(file.read_text().splitlines()) == 4


def test_a_line_that_lacks_only_its_end_counts(file):
    for seed in (0, 1):
        cells.append_kept(file, cell("grpo", seed, 0.5, 0.5))
        file.write_text(file.read_text()[:-1])
    assert len(cells.read_cells(file, "run")) == 2


def test_the_last_line_of_a_key_counts(file):
    cells.append_kept(file, cell("grpo", 0, 0.1, 0.1))
    cells.append_kept(file, cell("sft", 0, 0.2, 0.2))
    cells.append_kept(file, cell("grpo", 0, 0.3, 0.3, learning_rate=2e-4))
    cells.append_kept(file, cell("grpo", 0, 0.4, 0.4, kind="settings"))
    by_variant = {variant: by_seed[0] for variant, by_seed in cells.load_cells(file).items()}
    assert {variant: found["validation"]["accuracy"][-1] for variant, found in by_variant.items()} == {
        "sft": 0.2,
        "grpo": 0.3,
    }
    assert by_variant["grpo"]["learning_rate"] == 2e-4


def test_a_cell_is_found_by_its_rate_in_the_grid_alone(file):
    for rate in (1e-4, 2e-4):
        cells.append_kept(file, finished(replace(REQUEST, kind="grid", rate=rate)))
        cells.append_kept(file, finished(replace(REQUEST, rate=rate)))
    assert [len(cells.read_cells(file, kind)) for kind in ("grid", "run", "settings")] == [2, 1, 0]
    for rate, kept in ((1e-4, False), (2e-4, True)):
        assert cells.is_finished(cells.read_cells(file, "run"), replace(REQUEST, rate=rate)) == kept
        assert cells.is_finished(cells.read_cells(file, "grid"), replace(REQUEST, kind="grid", rate=rate))


def test_a_cell_is_run_again_only_where_configuration_or_data_changed(file):
    assert not cells.is_finished(cells.read_cells(file, "run"), REQUEST)
    cells.append_kept(file, finished(REQUEST))
    kept = cells.read_cells(file, "run")
    assert cells.is_finished(kept, REQUEST)
    assert not cells.is_finished(kept, replace(REQUEST, rate=2e-4))
    assert not cells.is_finished(kept, replace(REQUEST, seed=1))
    cells.append_kept(file, finished(REQUEST, data="others"))
    assert not cells.is_finished(cells.read_cells(file, "run"), REQUEST)


def test_a_flag_that_is_new_leaves_finished_cells_as_they_are_unless_it_is_set(file):
    wanted = made_from(REQUEST)
    before = {name: value for name, value in wanted["configuration"].items() if name != "kl"}
    cells.append_kept(file, finished(REQUEST, configuration=before))
    kept = cells.read_cells(file, "run")
    assert cells.is_finished(kept, REQUEST)
    changed = {**wanted, "configuration": {**wanted["configuration"], "kl": 0.1}}
    assert not cells.is_made_from(kept["dagrpo", 0, None], changed)


def test_a_cell_without_shaped_anchors_stays_finished_where_gamma_changes(file):
    for variant, expected in (("grpo", True), ("sft", True), ("dagrpo-no-anchors", True), ("dagrpo", False)):
        request = replace(REQUEST, variant=variant)
        configuration = {**made_from(request)["configuration"], "gamma": 0.5}
        cells.append_kept(file, finished(request, configuration=configuration))
        assert cells.is_finished(cells.read_cells(file, "run"), request) == expected


def test_each_task_has_questions_of_its_own(file):
    for variant, data in (("grpo", "a"), ("sft", "a"), ("sft-terse", "b"), ("sft-mixed", "c")):
        cells.append_kept(file, cell(variant, 0, 0.5, 0.5, data=data))
    assert list(cells.load_cells(file)) == ["sft", "grpo", "sft-mixed", "sft-terse"]


def test_cells_of_different_questions_are_not_compared(file):
    for seed, data in enumerate("ab"):
        cells.append_kept(file, cell("grpo", seed, 0.5, 0.5, data=data))
    with pytest.raises(SystemExit, match="different questions"):
        cells.load_cells(file)


def test_of_equal_learning_rates_the_smaller_is_picked():
    assert cells.picked_rate({4e-4: 0.7, 1e-4: 0.7, 2e-4: 0.6}) == 1e-4


def test_a_rate_counts_only_with_all_seeds_of_the_grid(file):
    write_grid(file, "grpo", (0.6, 0.5))
    assert cells.grid_accuracies("grpo", QUICK, cells.read_cells(file, "grid")) == {1e-4: 0.6, 2e-4: 0.5}
    assert cells.learning_rates(QUICK, file, ["grpo"]) == {"grpo": 1e-4}
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert cells.grid_accuracies("grpo", QUICK, cells.read_cells(file, "grid")) == {1e-4: 0.6}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring and running
# ---------------------------------------------------------------------------------------------------------------------


def test_a_cell_that_fails_leaves_no_line_and_shows_what_it_printed(file, monkeypatch):
    def measure(request: Request) -> dict:
        if request.variant == "grpo":
            print("step 1")
            raise ValueError("out of luck")
        return finished(request)

    monkeypatch.setattr(cells, "measure_cell", measure)
    with pytest.raises(RuntimeError, match=r"out of luck.*step 1"):
        cells.run_cell(replace(REQUEST, variant="grpo"))
    monkeypatch.setattr(cells, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    requests = [replace(REQUEST, variant=variant) for variant in ("grpo", "dagrpo")]
    with pytest.raises(SystemExit, match=r"1 of 2 cells failed, the first one is grpo-seed0: .*out of luck"):
        cells.run_cells(requests, file, 1)
    assert list(cells.read_cells(file, "run")) == [("dagrpo", 0, None)]


def test_a_cell_is_trained_on_its_task_and_measures_what_was_trained(monkeypatch):
    seen = {}

    def train(config):
        run = Path(config.out)
        run.mkdir()
        seen["training"] = read_questions(config.data)
        record = {name: 0.5 for name in ("grad_norm", "no_signal", "masked_pairs", "anchored", "entropy", "reward")}
        record |= {"length/mean": 9.0, "trained_sequences": 0.75, "sampled_tokens": 40}
        record |= {"seconds/rollout": 2.0, "seconds/train": 1.0}
        lines = [{"memory_estimate_gb": {}}, {"step": 1, **record}, {"step": 2, **record}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        questions = [{"texts": ["one two", "a right one", "wrong"], "rewards": [1.0, 1.0, 0.0]}]
        evaluation = {"step": 0, "accuracy": 0.1, "length": 5.0, "rows": questions}
        (run / "evaluations.jsonl").write_text(json.dumps(evaluation))

    def measure(path, names, folder, k, seed, temperature=TEMPERATURE):
        assert Path(path) == folder / "run" / "model" and names == tasks.BENCHMARKS
        return {"levels": {name: {"accuracy": temperature / k, "length": float(k)} for name in names}}

    monkeypatch.setattr(dagrpo, "train", train)
    monkeypatch.setattr(cells, "measure", measure)
    monkeypatch.setattr(rollout, "load", lambda path, _: (None, lambda text, **_: {"input_ids": text.split()}))
    measured = cells.measure_cell(replace(REQUEST, variant="sft-terse"))
    assert [question["solution"] for question in seen["training"]] == [
        question["solution"] for question in question_sets(QUICK, "-terse")["training"]
    ]
    # 0.6 of 2 completions; 0 of 1
    assert measured["benchmarks"]["larger"] == {"sampled": 0.3, "greedy": 0.0, "length": 2.0}
    assert measured["validation"] == {"steps": [0], "accuracy": [0.1], "length": [5.0], "right_length": [2.5]}
    assert measured["curves"]["skipped"] == [0.25, 0.25] and measured["curves"]["seconds"] == [3.0, 3.0]
    assert measured["sampled_tokens"] == 80


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_dirty_where_code_changed_and_not_where_a_cell_was_kept(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit_now() -> str:
        cells.commit.cache_clear()
        return cells.commit()

    monkeypatch.setattr(cells, "ROOT", tmp_path)
    assert commit_now() == "unknown"
    code, file = tmp_path / "code.py", tmp_path / "study" / "cells.jsonl"
    code.write_text("1\n")
    cells.append_kept(file, {})
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    committed = commit_now()
    assert len(committed) == 12
    cells.append_kept(file, {})
    assert commit_now() == committed
    code.write_text("2\n")
    assert commit_now() == f"{committed}-dirty"
    cells.commit.cache_clear()


def test_workers_end_with_the_process_that_started_them():
    """Killed, it cannot end them itself; they would go on beside the next study."""
    program = (
        "import os; from study import cells; from concurrent.futures import ProcessPoolExecutor;"
        "pool = ProcessPoolExecutor(1, initializer=cells.start_worker, initargs=(1,));"
        "print(pool.submit(os.getpid).result(), flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tasks.ROOT, capture_output=True, text=True, timeout=60)
    worker = int(ended.stdout)
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("the worker goes on")


def is_running(process: int) -> bool:
    """Not so for a zombie, which only waits to be forgotten."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_share_the_threads_that_the_environment_allows(monkeypatch, tmp_path):
    given = []

    class Pool:
        def __init__(self, workers, context, initializer, arguments):
            given.append((workers, *arguments))
            raise KeyboardInterrupt

    monkeypatch.setattr(cells, "ProcessPoolExecutor", Pool)
    for allowed, workers in ((8, 2), (1, 1), (2, 4)):
        monkeypatch.setattr(cells.torch, "get_num_threads", lambda allowed=allowed: allowed)
        with pytest.raises(KeyboardInterrupt):
            cells.in_workers(lambda wanted: {}, [object()] * 4, tmp_path / "cells.jsonl", workers)
    assert given == [(2, 4), (1, 1), (4, 1)]
