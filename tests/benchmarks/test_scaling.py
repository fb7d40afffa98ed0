"""The formulas of benchmarks/scaling.py by hand, and what it simulates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scaling

import scoring

SMALL = scaling.Model("small", parameters=1000, layers=2, hidden=10, vocabulary=50)
STEP = scaling.Step(gpus=2, completions=8, group_size=4, prompt=3, completion=5, rows=2)


def test_memory_by_hand():
    """16 bytes a parameter over two GPUs; the head whole in fp32; four completions of five states of ten floats."""
    found = scaling.memory(SMALL, STEP)
    assert found["states"] == 16 * 1000 / 2
    assert found["head"] == 4 * 50 * 10 and found["moments"] == 2 * found["head"]
    assert found["hidden"] == 4 * 4 * 5 * 10
    assert found["gradients"] == 4 * 4 * 50 * 10  # the vocabulary is smaller than the sketch


def test_communication_and_products_by_hand():
    """Two micro-batches a GPU; one group of 4² pairs on each."""
    received = scaling.communication(SMALL, STEP)
    assert received["train"] == 2 * (4 * 1000 + 4 * 1000) and received["score: weights"] == 2 * 2 * 1000
    assert received["score: tokens"] == 9 * 8 * 8
    done = scaling.products(SMALL, STEP)
    assert done["train"] == 8 * 1000 * 4 * 8 and done["score: forward"] == done["train"] / 4
    assert done["score: P·G² pairs"] == 2 * 16 * 50 * 10


def test_more_gpus_leave_less_to_each_but_not_of_the_head():
    more = replace(STEP, gpus=4)
    assert scaling.memory(SMALL, more)["states"] == scaling.memory(SMALL, STEP)["states"] / 2
    assert scaling.memory(SMALL, more)["head"] == scaling.memory(SMALL, STEP)["head"]
    assert scaling.products(SMALL, more)["train"] == scaling.products(SMALL, STEP)["train"] / 2


def test_what_is_simulated_is_judged(capsys):
    """The groups have a signal and pairs that rule `threshold` masks, and each process judges as many of them."""
    pytest.importorskip("accelerate")
    rollouts, rewards = scaling.simulated_groups(2, seed=0)
    how = scoring.Rectification("threshold", "gradient", 0.35, "std", 1.0, False, None)
    rectified = scoring.rectify(scaling.simulated_head(), rollouts, rewards, how)
    assert not bool(rectified.pair_mask.all()) and bool((rectified.pair_mask.sum(2) > 1).any())
    scaling.simulate("group", 2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[:3] for row in rows] == [["1", "2", "1,024"], ["2", "4", "2,048"]]
    assert rows[0][3:5] == rows[1][3:5]
