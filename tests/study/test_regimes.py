"""The study of regimes: seeds that no other part has seen, what a run is made from, tables, and a tiny run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from study import near_copies, predict, regimes
from study.arms import ARMS
from study.cells import is_made_from
from study.masks import SEEDS as MASK_SEEDS
from study.regimes import REGIMES, Run
from study.variants import FULL


def test_seeds_are_those_of_no_other_part_of_the_study():
    taken = {*FULL.seeds, *FULL.further_seeds, *FULL.grid_seeds, *FULL.settings_seeds, *MASK_SEEDS, *predict.SEEDS}
    for regime in REGIMES.values():
        assert not taken & set(regime.seeds)
    assert len(REGIMES["R0"].seeds) == len(REGIMES["R1-4"].seeds) == 16 and len(REGIMES["R2-8"].seeds) == 8


def test_every_regime_has_no_rule_positives_only_and_a_placebo_where_pairs_are_masked():
    for name, regime in REGIMES.items():
        assert {"none", "positives"} <= set(regime.arms)
        if name.startswith("R2"):
            assert {"shrink batch, by chance", "threshold, by chance"} <= set(regime.arms)
        elif name.startswith("R3"):
            assert {"group, by chance", "threshold, by chance", "full threshold, by chance"} <= set(regime.arms)
        else:
            assert {"group, by chance", "batch, by chance"} <= set(regime.arms)


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ("R0", {"beta1": 0.0, "steps": 20, "questions": 24, "epochs": 1, "learning_rate": 4e-4}),
        ("R0-0.9", {"beta1": 0.9, "steps": 20}),
        ("R1-4", {"beta1": 0.9, "steps": 60, "questions": 4, "learning_rate": 2e-4}),
        ("R2-8-unclipped", {"epochs": 8, "clip_low": None, "clip_high": None}),
        ("R2-1-long", {"epochs": 1, "steps": 40}),  # as many updates as R2-4 has
        ("R2-2", {"epochs": 2, "clip_low": 0.2, "clip_high": 0.2}),
        ("R3-high", {"steps": 12, "learning_rate": 4e-4}),
        (
            "R3",
            {
                "questions": 8,
                "learning_rate": 1e-4,
                "max_new_tokens": near_copies.MAX_NEW_TOKENS,
                "loss_norm": "constant",
            },
        ),
        ("R3-sequence", {"questions": 8, "loss_norm": "sequence", "start": near_copies.recipe()}),
    ],
)
def test_what_a_regime_changes(regime, expected):
    made = regimes.made_from(Run(regime, "none", 300, False))["configuration"]
    assert {name: made[name] for name in expected} == expected
    assert made["method"] == "grpo" and made["anchors"] is None
    assert regime == "R3-sequence" or made["loss_norm"] == "constant"
    assert regime.startswith("R3") or made["start"] == (20 if regime.startswith("R1") else 0)


def line(arm: str, seed: int, end: float, displaced: list, passes: float = 0.8) -> dict:
    curves = {name: displaced for name in ("displaced", "displaced_left", "displaced_by_batch", "masked_pairs")}
    curves |= {"displaced_by_batch_left": [None, None], "grad_norm": [1.0, 4.0], "entropy": [0.5, 0.25]}
    validation = {"accuracy": [0.2, 0.9, 0.6], "avg@8": end, "pass@8": passes}
    return {"regime": "R0", "arm": arm, "seed": seed, "validation": validation, "curves": curves}


def test_tables_compare_arms_by_seed_with_no_rule_with_their_placebo_and_with_positives_only():
    lines = [line("none", 0, 0.5, [0.1, 0.3]), line("none", 1, 0.7, [0.1, 0.3])]
    lines += [line("positives", 0, 0.8, [0.1, 0.1]), line("group", 0, 0.9, [0.0, None], 1.0)]
    lines.append(line("group, by chance", 0, 0.7, [0.1, None], 0.7))
    arms = regimes.by_arm(lines, "R0")
    assert list(arms) == ["none", "positives", "group", "group, by chance"]
    rows = regimes.accuracy_table(arms).splitlines()
    assert rows[2] == "| none | 2 | 60.0 | – | – | 75.0 | – | – | 80.0 | – | – | -30.0 |"
    assert rows[4] == "| group | 1 | 90.0 | +40.0 | +20.0 | 75.0 | +0.0 | +0.0 | 100.0 | +20.0 | +30.0 | +10.0 |"
    rows = regimes.conflict_table(arms).splitlines()
    assert rows[2] == "| none | 20.0 | 20.0 | 20.0 | – | 20.0 | 2 of 2 | 1.6 | 0 of 2 | 1.000 | 4.000 | 0.25 | 0.0 |"
    assert rows[4] == "| group | 0.0 | 0.0 | 0.0 | – | 0.0 | 1 of 1 | 1.6 | 0 of 1 | 1.000 | 4.000 | 0.25 | 0.0 |"


@pytest.mark.filterwarnings("error")
def test_a_run_without_a_gradient_in_most_steps_is_told_without_a_warning():
    run = line("batch", 0, 0.5, [0.1, 0.1])
    run["curves"]["grad_norm"] = [0.0, 0.0, 4.0]
    rows = regimes.conflict_table(regimes.by_arm([run], "R0")).splitlines()
    assert rows[2].endswith("| inf | 1 of 1 | 0.000 | 2.000 | 0.25 | 66.7 |")


def test_a_gradient_that_is_not_finite_is_an_explosion():
    run = line("none", 0, 0.5, [0.1, 0.1])
    run["curves"]["grad_norm"] = [1.0, None, 1.0, 1.0]
    rows = regimes.conflict_table(regimes.by_arm([run], "R0")).splitlines()
    assert rows[2].endswith("| inf | 1 of 1 | 1.000 | 1.000 | 0.25 | 0.0 |")


def test_a_line_of_another_arm_metric_or_scorer_is_not_taken_for_it():
    """The arms of weight taken away have no mask, and judge by scorer and metric all the same."""
    made = {arm: regimes.made_from(Run("R0", arm, 300, False)) for arm in ARMS}
    for arm, wanted in made.items():
        alike = [other for other, line in made.items() if is_made_from(line, wanted)]
        assert alike == [arm]
    wanted = made["shrink batch, optimizer"]
    for name, value in (("metric", "gradient"), ("scorer", "state"), ("change", "shrink group"), ("full", True)):
        assert not is_made_from({**wanted, "configuration": {**wanted["configuration"], name: value}}, wanted)


def test_a_tiny_run_is_kept_and_not_repeated(tmp_path, capsys, monkeypatch):
    file = tmp_path / "regimes.jsonl"
    monkeypatch.setattr(regimes, "STARTS", tmp_path / "starts")
    run = Run("R1-4", "group", 320, True)
    (tmp_path / "runs").mkdir()
    found = regimes.measured(run)
    assert len(found["validation"]["accuracy"]) == 3 and len(found["curves"]["displaced"]) == 2
    assert 0 <= found["validation"]["avg@8"] <= found["validation"]["pass@8"] <= 1
    (start,) = (tmp_path / "starts").glob("quick-20-seed320-*")
    assert (start / "model").is_dir()
    file.write_text(json.dumps(found) + "\n")
    asked: list[str] = []
    monkeypatch.setattr(regimes, "in_workers", lambda run, missing, *_: asked.extend(each.arm for each in missing))
    options = ["R1-4", "--quick", "--json", str(file), "--seeds", "320", "--arms", "group", "none"]
    regimes.main(["run", *options])
    assert asked == ["none"]
    regimes.main(["report", *options])
    said = capsys.readouterr().out
    assert "| group | 1 |" in said and "Not all have the same seeds" not in said
    other = {**found, "arm": "none", **regimes.made_from(replace(run, arm="none", seed=321)), "seed": 321}
    file.write_text(json.dumps(found) + "\n" + json.dumps(other) + "\n")
    regimes.main(["report", *options[:4], "--seeds", "320", "321", "--arms", "group", "none"])
    assert "Not all have the same seeds" in capsys.readouterr().out


def test_long_answers_start_from_their_own_model_and_have_their_own_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(near_copies, "KEPT", tmp_path / "near-copies")
    run = Run("R3", "threshold, by chance", 350, True)
    assert {question["level"] for question in regimes.questions_of(run)["training"]} == set(near_copies.LEVELS)
    limits: list[int] = []
    measure = regimes.measure

    def measuring(*arguments, max_new_tokens, **rest):
        limits.append(max_new_tokens)
        assert len(regimes.read_lines(arguments[2] / "validation.jsonl")) == 3  # one question a level
        return measure(*arguments, max_new_tokens=max_new_tokens, **rest)

    monkeypatch.setattr(regimes, "measure", measuring)
    found = regimes.measured(run)
    assert (tmp_path / "near-copies-quick").is_dir() and limits == [near_copies.MAX_NEW_TOKENS]
    assert len(found["curves"]["masked_pairs"]) == 2 and found["configuration"]["threshold"] == 0.35


def test_the_model_of_long_answers_is_made_before_the_workers_start(tmp_path, monkeypatch):
    called: list[str] = []
    monkeypatch.setattr(near_copies, "kept_model", lambda quick: called.append(f"model, quick: {quick}"))
    monkeypatch.setattr(regimes, "in_workers", lambda *_: called.append("workers"))
    for name in ("R3", "R0"):
        regimes.main(["run", name, "--quick", "--json", str(tmp_path / "none.jsonl")])
    assert called == ["model, quick: True", "workers", "workers"]


def test_the_start_of_a_regime_is_made_once_and_again_where_its_settings_have_changed(tmp_path, monkeypatch):
    made: list[int] = []

    def train(config):
        assert config.seed == 1_007, "neither the questions nor the noise of the run itself"
        made.append(config.steps)
        (Path(config.out) / "model").mkdir(parents=True)

    monkeypatch.setattr(regimes, "STARTS", tmp_path / "starts")
    monkeypatch.setattr(regimes.dagrpo, "train", train)
    run = Run("R1-24", "none", 7, False)
    first = regimes.start_model(run, tmp_path)
    assert first == regimes.start_model(run, tmp_path) and Path(first).is_dir() and made == [20]
    monkeypatch.setitem(REGIMES, "R0-0.9", replace(REGIMES["R0-0.9"], learning_rate=1e-4))
    assert regimes.start_model(run, tmp_path) != first and made == [20, 20]
