"""The commands of the study: what they ask for, at which rate and with which seeds, and a tiny study."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_up_cells import cell, write_grid

from study import cells, run, tasks


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "cells.jsonl"


def test_further_seeds_are_reported_by_themselves_and_together_with_the_first(file, capsys):
    for variant, accuracies in (("grpo", [0.4, 0.6]), ("sft", [0.5, 0.5]), ("dagrpo", [0.5, 0.8])):
        for seed, accuracy in enumerate(accuracies):  # --quick has seed 0, and 1 as its further seed
            cells.append_kept(file, cell(variant, seed, accuracy, 0.5))
    run.main(["report", "--quick", "--cells", str(file)])
    printed = capsys.readouterr()
    assert "other settings or questions than today's: sft-seed0, sft-seed1, grpo-seed0" in printed.err
    first, further, both = re.split("Only these seeds|All seeds", printed.out)
    pair = "| DaGRPO rather than GRPO | dagrpo − grpo |"
    assert f"{pair} 1 | 0.0001 | +10.0 | +10.0 |" in first and "| grpo | 1 | 0.0001 | 50.0 | 40.0 |" in first
    assert f"{pair} 1 | 0.0001 | +20.0 | +20.0 |" in further
    assert f"{pair} 2 | 0.0001 | +15.0 (-48.5 to +78.5) | +15.0 (-48.5 to +78.5) |" in both


def test_figures_are_of_the_first_seeds_alone(file, monkeypatch):
    for seed in (0, 1):  # --quick has 1 as its further seed
        cells.append_kept(file, cell("grpo", seed, 0.5, 0.5))
    drawn = []
    monkeypatch.setattr(run, "draw", lambda by_variant, *_: drawn.append(by_variant) or [])
    run.main(["figures", "--quick", "--cells", str(file)])
    assert {variant: list(by_seed) for variant, by_seed in drawn[0].items()} == {"grpo": [0]}


def test_only_what_is_repeated_has_further_seeds(file, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "run_cells", lambda requests, *_: asked.extend(requests))
    run.main(["run", "--quick", "--only", "base", "dagrpo", "dapo", "--cells", str(file)])
    assert [(r.variant, r.seed) for r in asked] == [("base", 0), ("dagrpo", 0), ("dapo", 0), ("dagrpo", 1)]
    asked.clear()
    run.main(["run", "--quick", "--only", "dapo", "--seeds", "0", "1", "--cells", str(file)])
    assert [request.seed for request in asked] == [0, 1]


def test_the_study_does_not_start_without_picked_learning_rates(file):
    with pytest.raises(SystemExit, match=r"run study\.run grid first"):
        run.main(["run", "--only", "grpo", "--cells", str(file)])


def test_settings_are_compared_at_the_rate_of_what_they_start_from(file, monkeypatch):
    """The default may have become another since, with another rate; a grid without --only searches both."""
    write_grid(file, "start", (0.6, 0.5))
    write_grid(file, "dagrpo", (0.5, 0.6))
    asked = []

    def no_run(requests, *_):
        asked.extend((request.variant, request.rate) for request in requests)
        raise InterruptedError

    monkeypatch.setattr(run, "run_cells", no_run)
    for command in (["settings", "--only", "gamma 1.0"], ["grid"]):
        with pytest.raises(InterruptedError):
            run.main([*command, "--quick", "--cells", str(file)])
    assert asked[0] == ("gamma 1.0", 1e-4)
    assert {("start", 1e-4), ("start", 2e-4), ("dagrpo", 1e-4)} <= set(asked[1:])
    assert run.grid_of("gamma 1.0") == "start"


def test_a_variant_is_run_at_the_rate_that_was_picked_for_its_method(file, monkeypatch):
    write_grid(file, "grpo", (0.6, 0.5))
    write_grid(file, "dagrpo", (0.5, 0.6))
    asked = {}
    monkeypatch.setattr(run, "run_cells", lambda requests, *_: asked.update({r.variant: r.rate for r in requests}))
    only = ["base", "grpo", "grpo-equal-norms", "dagrpo", "dagrpo-no-mask"]
    run.main(["run", "--quick", "--only", *only, "--seeds", "0", "--cells", str(file)])
    assert [asked[variant] for variant in only] == [0.0, 1e-4, 1e-4, 2e-4, 2e-4]


def test_a_seed_that_settings_were_picked_with_is_refused(file):
    with pytest.raises(SystemExit, match="--seeds 100"):
        run.main(["run", "--quick", "--only", "base", "--seeds", "0", "100", "--cells", str(file)])


def test_a_tiny_study_runs_once_and_is_reported(file, capsys):
    command = ["run", "--quick", "--only", "base", "grpo", "dagrpo", "--workers", "1", "--cells", str(file)]
    command += ["--seeds", "0"]
    run.main(command)
    written = file.read_text()
    assert set(cells.read_cells(file, "run")) == {("base", 0, None), ("grpo", 0, None), ("dagrpo", 0, None)}
    run.main(command)
    assert "3 of 3 cells are finished" in capsys.readouterr().out
    assert file.read_text() == written

    result = cells.read_cells(file, "run")["dagrpo", 0, None]
    assert result["validation"]["steps"] == [0, 1, 2]
    assert len(result["curves"]["grad_norm"]) == 2 and result["sampled_tokens"] > 0
    assert set(result["benchmarks"]) == set(tasks.BENCHMARKS)
    assert all(len(line) < 10_000 for line in written.splitlines())  # no completions in it

    run.main(["report", "--cells", str(file)])
    assert "| dagrpo | 1 |" in capsys.readouterr().out
    run.main(["report", "--quick", "--cells", str(file)])
    assert "other settings" not in capsys.readouterr().err


def test_tiny_settings_are_compared_on_the_validation_set_alone(file, capsys):
    run.main(["settings", "--quick", "--only", "start", "gamma 1.0", "--workers", "1", "--cells", str(file)])
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(c["kind"], c["variant"], c["seed"]) for c in written] == [
        ("settings", "start", 102),
        ("settings", "gamma 1.0", 102),
    ]
    assert all(c["benchmarks"] == {} and len(c["validation"]["accuracy"]) == 3 for c in written)
    assert written[1]["configuration"]["gamma"] == 1.0
    printed = capsys.readouterr().out
    assert "| start | 1 |" in printed and "| gamma 1.0 | 1 |" in printed
