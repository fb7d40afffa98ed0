"""Statistics that can be computed by hand, and the tables that hold them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up_cells import NAN, by_seed, cell, four_methods

from evaluate import bootstrap
from study import tables


def test_a_spike_is_measured_by_what_came_before_it():
    assert tables.spikes([1.0, 1.0, 1.0, 1.0, 1.0, 11.0, 9.0, 10.5]) == 2  # 11 and 10.5 against a median of 1
    assert tables.spikes([50.0, 1.0, 1.0]) == 0  # nothing to compare the first ones with
    assert tables.spikes([1.0] * 5 + [10.0]) == 0  # exactly ten times is not over ten times


def test_steps_without_an_update_do_not_lower_the_median_norm():
    assert tables.norm_summary([0.0, 2.0, 0.0, 4.0]) == {
        "p50": 3.0,
        "p99": pytest.approx(3.98),
        "max": 4.0,
        "spikes": 0,
    }
    assert math.isnan(tables.norm_summary([0.0])["p99"])


def test_a_gradient_that_is_not_finite_counts_as_a_spike():
    found = tables.norm_summary([1.0, NAN, 1.0, math.inf, 1.0])
    assert found == {"p50": 1.0, "p99": 1.0, "max": 1.0, "spikes": 2}


def test_differences_are_paired_by_seed_and_unknown_ones_left_out():
    ours, others = {2: 0.5, 0: 0.7, 1: NAN, 3: 0.9}, {0: 0.4, 1: 0.2, 2: 0.6}
    assert tables.paired_differences(ours, others) == pytest.approx([0.3, -0.1])


def test_a_reader_is_told_where_means_are_over_other_seeds_than_differences():
    assert tables.of_unequal_seeds({"a": {0: 1, 1: 1}, "b": {1: 2, 0: 2}}) == ""
    assert "a difference over those that both have" in tables.of_unequal_seeds({"a": {0: 1, 1: 1}, "b": {1: 2}})


@pytest.mark.parametrize("freedom, quantile", [(1, 12.7062), (2, 4.3027), (7, 2.3646), (15, 2.1314), (1000, 1.9623)])
def test_students_t_is_that_of_the_tables(freedom, quantile):
    assert tables.student_t(freedom) == pytest.approx(quantile, abs=5e-5)


def test_an_interval_over_three_seeds_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2_000, 3))
    held = {
        name: np.mean([low <= 0 <= high for low, high in map(interval, draws)])
        for name, interval in [
            ("student", lambda values: tables.mean_and_interval(values)[1:]),
            ("bootstrap", lambda values: bootstrap(values, resamples=500)),
        ]
    }
    assert held["student"] == pytest.approx(0.95, abs=0.015)
    assert held["bootstrap"] < 0.8  # why it is not taken


def test_an_interval_needs_two_seeds():
    assert tables.mean_and_interval(np.array([0.0, 1.0])) == pytest.approx((0.5, -5.8531, 6.8531), abs=1e-4)
    assert tables.mean_and_interval(np.array([0.2, 0.2, 0.2])) == pytest.approx((0.2, 0.2, 0.2))
    middle, low, high = tables.mean_and_interval(np.array([0.3]))
    assert middle == 0.3 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, tables.mean_and_interval(np.array([]))))


@pytest.fixture
def cells():
    return four_methods()


def test_norm_growth_compares_the_end_of_a_run_with_its_start():
    assert tables.norm_growth([1.0, 3.0, 5.0, 0.0, 8.0], count=2) == 6.5 / 2.0
    assert math.isnan(tables.norm_growth([0.0, 0.0]))


def test_the_best_baseline_is_picked_on_validation_not_on_the_benchmarks(cells):
    assert tables.best_baseline(cells) == "luffy"


def test_a_method_as_its_paper_has_it_can_be_the_best_baseline(cells):
    cells["dapo-4-updates"] = by_seed("dapo-4-updates", [0.5, 0.5], 0.85)
    assert tables.best_baseline(cells) == "dapo-4-updates"


def test_the_table_holds_paired_differences_in_points(cells):
    rows = tables.difference_table(cells, "mean of nine", 8).splitlines()
    assert "avg@8 − grpo (95 %)" in rows[0] and "greedy − luffy (95 %)" in rows[0]
    columns = [column.strip() for column in rows[-1].strip("|").split("|")]
    # 0.5 − 0.4 and 0.8 − 0.6 against grpo; 0 and 0.3 against luffy.
    assert columns[:5] == ["dagrpo", "2", "65.0", "+15.0 (-48.5 to +78.5)", "+15.0 (-175.6 to +205.6)"]
    assert columns[5] == "75.0"


def test_each_part_is_what_a_variant_with_it_has_over_one_without_it(cells):
    cells["dagrpo-no-mask"] = by_seed("dagrpo-no-mask", [0.3, 0.7, 0.1], 0.5)
    # 0.5 − 0.3 and 0.8 − 0.7; the third seed has no partner. Greedy is 0.1 more on both sides.
    differences = "+15.0 (-48.5 to +78.5) | +15.0 (-48.5 to +78.5)"
    row = f"| masks | dagrpo − dagrpo-no-mask | 2 | 0.0001 | {differences} |"
    assert row in tables.pair_table(cells, 8).splitlines()
    assert row in tables.markdown(cells)


def test_a_pair_says_where_its_learning_rates_differ(cells):
    for changed in cells["dagrpo"].values():
        changed["learning_rate"] = 8e-4
    row = "| DaGRPO rather than GRPO | dagrpo − grpo | 2 | 0.0008, 0.0001 |"
    assert row in tables.pair_table(cells, 8)


def test_the_mean_of_nine_weighs_every_benchmark_alike():
    uneven = cell("grpo", 0, 0.0, 0.5)
    uneven["benchmarks"]["level-1"]["sampled"] = 0.9
    assert tables.accuracies({0: uneven}, "mean of nine", "sampled")[0] == pytest.approx(0.1)
    assert tables.accuracies({0: uneven}, "mean of six", "sampled")[0] == pytest.approx(0.15)
    assert tables.accuracies({0: uneven}, "mean of three", "sampled")[0] == 0


def test_the_report_says_how_few_seeds_there_are_and_bears_what_is_not_known(cells):
    text = tables.markdown(cells)
    assert "Fewer than 8 seeds: grpo (2), dapo (2), luffy (2), dagrpo (2)" in text
    assert "nan" not in text
    assert "| grpo | 2 | 1.000 | 4.000 | 5.000 | 4.00 (4.00 to 4.00) | 1.00 | 1.00 | 37.5 |" in text


def test_a_task_has_its_own_variants_and_on_the_same_seeds_those_without_solutions(cells):
    cells = {**cells, "sft": cells["grpo"], "sft-terse": {1: cells["dapo"][1]}, "dagrpo-terse": {1: cells["luffy"][1]}}
    assert list(tables.cells_of_task(cells, "")) == ["grpo", "dapo", "luffy", "dagrpo", "sft"]
    assert tables.cells_of_task(cells, "-terse") == {
        "grpo": {1: cells["grpo"][1]}, "dapo": {1: cells["dapo"][1]},
        "sft": cells["sft-terse"], "dagrpo": cells["dagrpo-terse"],
    }  # fmt: skip
    assert tables.cells_of_task({"grpo": cells["grpo"]}, "-terse") == {}


def test_the_table_of_settings_compares_each_with_the_start_seed_by_seed():
    start, other = by_seed("start", [0.1, 0.1], 0.5), by_seed("gamma 1", [0.1, 0.1], 0.7)
    start[1]["validation"]["accuracy"] = [0.1, 0.5, 0.7]
    lines = tables.settings_table({"start": start, "gamma 1": other}).splitlines()
    # At the end 0.5 and 0.7 against 0.7 twice; means of the curves, without step 0: 0.5 and 0.6.
    assert lines[-2].startswith("| start | 2 | 60.0 | – | 55.0 | – | 37.5 | 37.5 | 1 |")
    assert lines[-1].startswith("| gamma 1 | 2 | 70.0 | +10.0 (-117.1 to +137.1) | 70.0 | +15.0 (-48.5 to +78.5) |")
