"""The comparison on fresh seeds: what its variants train on, that no part of the study shares a seed, and its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_up_cells
import pytest

import dagrpo
from harness.config import Config
from study import cells, fresh, variants
from study.regimes import REGIMES
from study.tasks import read_lines, write_sets
from study.variants import FRESH, FULL, Request, question_sets


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Configurations of the trainings that a cell makes, and the questions of each."""
    found: list[tuple[Config, list[str]]] = []

    def train(config: Config) -> None:
        found.append((replace(config), [question["problem"] for question in read_lines(Path(config.data[0]))]))

    monkeypatch.setattr(dagrpo, "train", train)

    def of(variant: str, seed: int = 400) -> list[tuple[Config, list[str]]]:
        found.clear()
        request = Request("run", variant, seed, 4e-4, FRESH)
        write_sets(tmp_path, question_sets(FRESH, variants.task_of(variant)))
        cells.train(request, variants.configuration(request, tmp_path), tmp_path)
        return list(found)

    return of


def test_no_other_part_of_the_study_has_its_seeds():
    parts = ("grid_seeds", "settings_seeds", "seeds", "further_seeds")
    others = {seed for part in parts for seed in getattr(FULL, part)}
    others |= {seed + more for regime in REGIMES.values() for seed in regime.seeds for more in (0, 1_000)}
    assert not others & {*FRESH.seeds, *FRESH.grid_seeds} and not {*FRESH.seeds} & {*FRESH.grid_seeds}
    assert len(set(FRESH.seeds)) == 16


@pytest.mark.parametrize(
    ("variant", "first", "method"),
    [("sft-grpo-10-10", 10, "grpo"), ("sft-grpo-5-15-terse", 5, "grpo"), ("sft-dagrpo-5-15", 5, "dagrpo")],
)
def test_fine_tuning_and_what_follows_share_the_steps_the_warm_up_and_the_questions(trained, variant, first, method):
    (sft, of_sft), (grpo, of_grpo) = trained(variant)
    assert (sft.method, grpo.method) == ("sft", method) and (sft.steps, grpo.steps) == (first, 20 - first)
    assert sft.warmup + grpo.warmup == pytest.approx(10, abs=1) and sft.warmup <= sft.steps / 2
    assert len(of_sft) == first * 24 and len(of_grpo) == (20 - first) * 24  # each comes once
    every = question_sets(FRESH, variants.task_of(variant))["training"]
    assert sorted(of_sft + of_grpo) == sorted(question["problem"] for question in every)
    assert grpo.model == str(Path(sft.out) / "model") and sft.model != grpo.model
    assert sft.learning_rate == grpo.learning_rate == 4e-4 and sft.seed == grpo.seed == 400


def test_the_variants_that_are_named_are_run_with_every_seed_and_no_others(monkeypatch, tmp_path):
    asked: list[Request] = []
    monkeypatch.setattr(fresh, "run_cells", lambda requests, cells, workers: asked.extend(requests))
    fresh.main(["run", "--only", "dagrpo", "sft-grpo-10-10"])
    assert [(one.variant, one.seed) for one in asked[:3]] == [("dagrpo", 400), ("sft-grpo-10-10", 400), ("dagrpo", 401)]
    assert len(asked) == 2 * 16


def test_another_seed_fine_tunes_on_other_questions(trained):
    (_, first), (_, second) = (trained("sft-grpo-10-10", seed)[0] for seed in (400, 401))
    assert set(first) != set(second)


def test_terse_solutions_are_what_the_first_steps_learn_from(tmp_path, monkeypatch):
    kept = {}
    for task in ("", "-terse"):
        monkeypatch.setattr(
            dagrpo, "train", lambda config, task=task: kept.setdefault(task, read_lines(Path(config.data[0])))
        )
        request = Request("run", f"sft-grpo-10-10{task}", 400, 4e-4, FRESH)
        write_sets(tmp_path, question_sets(FRESH, task))
        cells.train(request, variants.configuration(request, tmp_path), tmp_path)
    worked, terse = ([question["solution"] for question in kept[task]] for task in ("", "-terse"))
    assert sum(map(len, terse)) < sum(map(len, worked))


def test_positives_train_by_their_arm_and_nothing_else_does(trained, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(cells, "training_with", lambda arm: seen.append(arm.change) or cells.contextlib.nullcontext())
    for variant in ("grpo", "dagrpo", "sft-grpo-10-10"):
        trained(variant)
    assert seen == []
    ((config, _),) = trained("positives")
    assert seen == ["positives"] and (config.loss_norm, config.anchors, config.rectify) == ("constant", None, "none")


def test_a_cell_of_two_parts_is_no_cell_of_grpo():
    two, grpo = (variants.made_from(Request("run", name, 400, 4e-4, FRESH)) for name in ("sft-grpo-10-10", "grpo"))
    assert two["configuration"].pop("sft_steps") == 10
    assert two == grpo
    assert variants.made_from(Request("run", "positives", 400, 4e-4, FRESH))["configuration"]["arm"] == "positives"


def test_the_table_takes_what_it_names_from_dagrpo_seed_by_seed():
    made_up = {
        "dagrpo": {seed: made_up_cells.cell("dagrpo", seed, value, 0.9) for seed, value in ((400, 0.5), (401, 0.7))},
        "sft-grpo-10-10": {
            seed: made_up_cells.cell("grpo", seed, value, 0.95) for seed, value in ((400, 0.4), (401, 0.4))
        },
    }
    text = fresh.comparison(made_up)
    assert "+20.0 (-107.1 to +147.1)" in text.splitlines()[-3]
    assert text.endswith("validation set: sft-grpo-10-10.")


def test_a_report_names_the_cells_that_today_would_make_otherwise(tmp_path, capsys):
    file = tmp_path / "fresh.jsonl"
    cells.append_kept(file, made_up_cells.cell("dagrpo", 400, 0.5, 0.9))
    fresh.main(["report", "--cells", str(file)])
    assert "made from other settings or questions than today's: dagrpo" in capsys.readouterr().err


def test_dagrpo_after_fine_tuning_is_told_from_grpo_after_it():
    made_up = {
        name: {400: made_up_cells.cell("dagrpo", 400, first, 0.9), 401: made_up_cells.cell("dagrpo", 401, 0.7, 0.9)}
        for name, first in (("dagrpo", 0.5), ("sft-dagrpo-5-15", 0.6), ("sft-grpo-5-15", 0.5))
    }
    text = fresh.comparison(made_up)
    assert "\n\nsft-dagrpo-5-15 minus sft-grpo-5-15, sampled: +5.0 (-58.5 to +68.5)\n\n" in text
    del made_up["sft-grpo-5-15"]
    assert "minus sft-grpo" not in fresh.comparison(made_up)


def test_half_the_weight_of_worse_completions_is_compared_with_all_of_it():
    made_up = {
        name: {400: made_up_cells.cell("dagrpo", 400, first, 0.9), 401: made_up_cells.cell("dagrpo", 401, 0.7, 0.9)}
        for name, first in (("dagrpo-half-negatives", 0.7), ("dagrpo", 0.5), ("sft-grpo-5-15", 0.6))
    }
    lines = fresh.comparison(made_up).splitlines()
    assert "dagrpo-half-negatives minus dagrpo, sampled: +10.0 (-117.1 to +137.1)" in lines
    assert "dagrpo-half-negatives minus sft-grpo-5-15, sampled: +5.0 (-58.5 to +68.5)" in lines


def test_half_the_weight_of_worse_completions_is_all_that_differs(trained):
    half, plain = "dagrpo-half-negatives", "dagrpo"
    assert fresh.rates(FRESH, fresh.FILE, [half, plain]) == {half: 4e-4, plain: 4e-4}
    ((config, questions),) = trained(plain)
    ((other, of_half),) = trained(half)
    assert other == replace(config, negative_weight=0.5) and of_half == questions


def test_a_baseline_that_lacks_seeds_of_dagrpo_is_not_the_best():
    """Its validation accuracy is of other seeds."""
    made_up = {
        "dagrpo": {seed: made_up_cells.cell("dagrpo", seed, 0.5, 0.9) for seed in (400, 401)},
        "sft-grpo-5-15": {seed: made_up_cells.cell("grpo", seed, 0.5, 0.8) for seed in (400, 401)},
        "sft-grpo-10-10": {400: made_up_cells.cell("grpo", 400, 0.5, 0.99)},
    }
    assert fresh.comparison(made_up).endswith("validation set: sft-grpo-5-15.")


def test_every_variant_has_a_rate_and_every_new_one_is_searched():
    assert set(fresh.SEARCHED) == set(variants.FRESH_FLAGS) - {"dagrpo-half-negatives"}
    assert len(set(fresh.VARIANTS)) == len(fresh.VARIANTS) and set(fresh.VARIANTS) <= set(variants.FLAGS)
