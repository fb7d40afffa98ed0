"""Statistics of pairs and of masks: by hand, and with intervals that know what depends on what."""

from __future__ import annotations

import math

import numpy as np
import pytest

from study import conflict_tables

NAN = math.nan


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 30, 20, 40], 0.8),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([5, 5, 9], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1.5, 1.5, 3
        ([1, 2, 3], [7, 7, 7], NAN),
        ([1], [1], NAN),
    ],
)
def test_spearman_by_hand(a, b, expected):
    assert conflict_tables.spearman(np.array(a), np.array(b)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("score", "event", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([1, 2, 3], [1, 0, 0], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2], [0, 0, 1], 0.75),  # one tie counts half
        ([1, 2], [0, 0], NAN),
        ([1, 2], [1, 1], NAN),
    ],
)
def test_area_under_curve_by_hand(score, event, expected):
    area = conflict_tables.area_under_curve(np.array(score), np.array(event, dtype=bool))
    assert area == pytest.approx(expected, nan_ok=True)


def test_pairs_of_one_group_are_not_counted_as_independent():
    values = np.repeat([0.0, 1.0], 50)
    mean = conflict_tables.mean_or_nan
    value, low, high = conflict_tables.by_groups(mean, [values], groups=np.repeat([3, 8], 50))
    assert (value, low, high) == (0.5, 0.0, 1.0)  # two groups say hardly anything
    _, low, high = conflict_tables.by_groups(mean, [values], groups=np.arange(100))
    assert low == pytest.approx(0.4, abs=0.02) and high == pytest.approx(0.6, abs=0.02)


def test_no_interval_from_one_group_or_from_an_event_that_most_draws_miss():
    value, low, high = conflict_tables.by_groups(conflict_tables.mean_or_nan, [np.arange(4.0)], np.zeros(4))
    assert value == 1.5 and math.isnan(low) and math.isnan(high)
    event = np.arange(30) == 29
    value, low, high = conflict_tables.by_groups(
        conflict_tables.area_under_curve, [np.arange(30.0), event], np.arange(30)
    )
    assert value == 1.0 and math.isnan(low) and math.isnan(high)


def test_a_repetition_without_a_value_is_left_out():
    assert conflict_tables.by_repetitions([2.0, NAN, 2.0]) == (2.0, 2.0, 2.0)
    assert all(map(math.isnan, conflict_tables.by_repetitions([NAN])))


def test_no_event_is_shown_with_a_bound_by_groups():
    assert conflict_tables.most_likely_share(1) == pytest.approx(0.95)
    assert conflict_tables.most_likely_share(300) == pytest.approx(3 / 300, rel=0.01)  # the rule of three
    assert conflict_tables.shown_share((0.0, 0.0, 0.0), 0, 300) == "0 (in at most 1.0% of groups)"
    assert conflict_tables.shown_share((0.5, 0.25, 0.75), 10, 4) == "50.0% (25.0% to 75.0%), 10 pairs"


def test_masks_are_compared_with_none_in_the_same_repetition():
    def repetition(change):
        figures = {"masked": 0.0, "trained": 8.0, "score_seconds": 0.0, "train_seconds": 2.0, "SGD length": 2.0}
        plain = {**figures, "SGD right, batch": change}
        masked = {**figures, "trained": 6.0, "train_seconds": 1.5, "SGD length": 1.0, "SGD right, batch": change + 1}
        return {"none": plain, "auto": masked}

    auto = conflict_tables.summary_of_masks([repetition(0.0), repetition(100.0)])["auto"]
    assert auto["SGD right, batch, against none"] == (1.0, 1.0, 1.0)
    assert auto["SGD length, against none"] == (0.5, 0.5, 0.5)
    assert auto["skipped"] == (0.25, 0.25, 0.25) and auto["saved_seconds"] == (0.5, 0.5, 0.5)
