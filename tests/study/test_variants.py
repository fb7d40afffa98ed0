"""Variants and settings: valid runs, each of which changes what its name says, on seeds that no other part uses."""

from __future__ import annotations

from pathlib import Path

from harness.config import Config
from study import tables, tasks, variants
from study.variants import FULL, QUICK, Request


def run_of(variant: str, seed: int = 0) -> Config:
    return variants.configuration(Request("run", variant, seed, 1e-4, FULL), Path())


def test_in_the_mixed_task_half_of_the_solutions_are_terse():
    worked, mixed, terse = (variants.question_sets(FULL, task)["training"] for task in ("", "-mixed", "-terse"))
    picked = [left == right for left, right in zip(mixed, terse, strict=True)]
    assert mixed == [b if pick else a for pick, a, b in zip(picked, worked, terse, strict=True)]
    assert 0.45 < sum(picked) / len(picked) < 0.55
    assert worked == tasks.draw_sets(300, 80, 40)["training"]


def test_the_real_study_is_large_enough():
    assert FULL.benchmark_each >= 300 and len(FULL.seeds) >= tables.ENOUGH_SEEDS
    parts = ("grid_seeds", "settings_seeds", "seeds", "further_seeds")
    seeds = [seed for part in parts for seed in getattr(FULL, part)]
    assert len(set(seeds)) == len(seeds)  # no cell is chosen for its own luck, or counted twice
    assert len(FULL.further_seeds) >= tables.ENOUGH_SEEDS


def test_what_learns_from_no_solution_is_in_every_task():
    for variant in variants.VARIANTS:
        config = run_of(variant)
        without = variant == variants.BASE or config.anchors is None
        assert without == (variant in tables.WITHOUT_SOLUTIONS), variant


def test_every_variant_and_every_setting_is_a_valid_run():
    for variant in [*variants.VARIANTS, *variants.SETTINGS]:
        config = run_of(variant, seed=3)
        assert (config.seed, config.learning_rate, config.steps) == (3, 1e-4, FULL.steps)
        assert config.method == variants.method_of(variant)


WHAT_A_PAIR_CHANGES = {
    "masks": ("rectify", "threshold", "none"),
    "masks where there are no anchors": ("rectify", "threshold", "none"),
    "anchors": ("anchors", "data", None),
    "anchors where there are no masks": ("anchors", "data", None),
    "its loss norm, in GRPO": ("loss_norm", "constant", "token"),
    "gradients of one norm, in GRPO": ("max_grad_norm", 0.01, 1.0),
    "γ, in LUFFY": ("gamma", 0.03, 0.1),
    "the scorer gradient rather than state": ("scorer", "gradient", "state"),
    "the scorer gradient rather than token": ("scorer", "gradient", "token"),
    "masking pairs rather than tokens": ("rectify", "threshold", "token"),
    "the threshold 0.35 rather than 0.2": ("threshold", None, 0.2),  # None: what suits the scorer
    "the threshold 0.35 rather than 0.45": ("threshold", None, 0.45),
    "the threshold 0.35 rather than auto": ("rectify", "threshold", "pair"),
}


def test_a_pair_changes_what_it_names_and_has_it_on_its_left():
    """Swapped, it would report a gain as a loss."""
    for name, pair in tables.PAIRS.items():
        assert set(pair) <= variants.VARIANTS.keys()
        left, right = (run_of(variant) for variant in pair)
        changed = {field for field, value in vars(left).items() if vars(right)[field] != value}
        if name in WHAT_A_PAIR_CHANGES:
            field, with_it, without_it = WHAT_A_PAIR_CHANGES[name]
            assert (vars(left)[field], vars(right)[field]) == (with_it, without_it), name
            assert changed - {"method", "metric"} == {field}, name  # threshold has no sum, and so no metric
            assert "threshold 0.35" not in name or left.resolved_threshold == 0.35
        elif name == "masks and anchors":
            assert (left.rectify, left.anchors, right.rectify, right.anchors) == ("threshold", "data", "none", None)
            assert changed == {"rectify", "anchors"}
        else:
            assert name.startswith("DaGRPO rather than ") and pair[0] == "dagrpo" != pair[1], name


def test_no_two_settings_are_the_same_and_one_of_them_became_the_default():
    runs = [run_of(setting) for setting in variants.SETTINGS]
    assert all(run not in runs[:n] for n, run in enumerate(runs))
    assert run_of("dagrpo") in runs


def test_a_terse_variant_has_a_learning_rate_and_data_of_its_own():
    assert [variants.grid_of(name) for name in ("sft-terse", "dagrpo-no-mask")] == ["sft-terse", "dagrpo"]
    names = [f"dagrpo{task}" for task in tables.TASKS]
    made = [variants.made_from(Request("run", name, 0, 1e-4, QUICK)) for name in names]
    assert made[0]["configuration"] == made[1]["configuration"] == made[2]["configuration"]
    assert len({wanted["data"] for wanted in made}) == len(tables.TASKS)
