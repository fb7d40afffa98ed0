"""What a run writes and prints: figures by hand, lines that say what happened, JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import small_rollouts

from harness import report
from harness.config import Config
from scoring import Rectified


def test_figures_that_are_not_finite_become_null(tmp_path):
    """NaN and Infinity are no JSON: a strict reader stops at the line, and a figure left out looks like none."""
    path = tmp_path / "metrics.jsonl"
    report.append_json(path, {"loss": math.nan, "grad_norm": math.inf, "levels": {"1": [1.0, math.nan]}, "step": 1})
    line = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert line == {"loss": None, "grad_norm": None, "levels": {"1": [1.0, None]}, "step": 1}


def test_solve_rates_count_what_earns_as_much_as_is_right():
    rewards = torch.tensor([[0.1, 0.2], [0.6, 0.9], [0.1, 0.9]])
    assert report.solve_metrics(rewards, 0.5) == pytest.approx({"solve_none": 1 / 3, "solve_all": 1 / 3})
    assert report.solve_metrics(rewards, math.inf) == {}, "what is not known is not logged"


def test_an_evaluation_is_told_in_percent_only_where_right_is_known():
    known = {"accuracy": 0.25, "interval": (0.2, 0.3), "reward": 1.5, "reward_interval": (1, 2), "length": 9.0}
    known |= {"levels": {"1": {"accuracy": 0.5, "reward": 2.5}}}
    assert report.evaluation_line(4, known, 1.0) == (
        "held out at step 4: 25.0% (20.0% to 30.0%)  length 9.0  1.0 s  by level 1: 50%"
    )
    unknown = {name: value for name, value in known.items() if name not in ("accuracy", "interval")}
    assert report.evaluation_line(4, unknown, 1.0) == (
        "held out at step 4: reward 1.5 (1 to 2)  length 9.0  1.0 s  by level 1: 2.5"
    )


def test_masked_pairs_count_where_rewards_differ(model, tokenizer):
    """One group of four, rewards 1 0 0 1: of its four unequal pairs one is masked, and an equal pair does not count."""
    rollouts = small_rollouts(model, tokenizer).rows(torch.arange(4))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    for i, j in ((0, 1), (0, 3)):  # of unequal and of equal rewards
        mask[0, i, j] = mask[0, j, i] = False
    d = torch.full((1, 4, 4), 0.5)
    d[0, 0, 1] = 0.1
    withheld = torch.zeros_like(rollouts.logps)
    withheld[0, rollouts.prediction_mask[0].nonzero()[0]] = 0.3
    rectified = Rectified(mask, d, torch.tensor([[1.0, 0.0, -1.0, 0.0]]), withheld)
    trained = torch.tensor([True, False, True, False])
    metrics = report.group_metrics(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), rollouts, rectified, trained)
    assert metrics["masked_pairs"] == 1 / 4 and metrics["trained_sequences"] == 1 / 2 and metrics["no_signal"] == 0
    assert metrics["masked_tokens"] == pytest.approx(1 / int(rollouts.lengths.sum()))
    assert metrics["distinctiveness/mean"] == pytest.approx((0.1 + 3 * 0.5) / 4)


def test_means_are_over_the_tokens_that_they_are_of():
    sums = {"tokens": 10.0, "policy_tokens": 8.0, "anchor_tokens": 2.0, "updates": 2.0, "loss": 3.0, "entropy": 5.0}
    sums |= {"kl": 4.0, "clip_low": 2.0, "clip_high": 1.0, "anchor_prob": 1.0, "sampler_gap": 0.8, "grad_norm": 7.0}
    sums |= {"model_tokens": 30.0, "padded_tokens": 40.0, "learning_rate": 1e-4}
    found = report.token_metrics(sums, updates=1)
    assert found == pytest.approx({
        "loss": 1.5, "grad_norm": 7.0, "bad_updates": 0, "learning_rate": 1e-4, "entropy": 0.5, "kl": 0.5,
        "clip_low": 0.25, "clip_high": 0.125, "sampler_gap": 0.1, "padding": 0.25, "anchor_prob": 0.5,
    })  # fmt: skip
    assert "sampler_gap" not in report.token_metrics(sums, updates=2)


def test_the_step_line_says_what_was_skipped_and_why_nothing_was_learned():
    record = {
        "step": 3,
        "no_signal": 1.0,
        "masked_pairs": 0.0,
        "anchored": 0.0,
        "trained_sequences": 0.0,
        "entropy": 0.0,
    }
    record |= {"grad_norm": 0.0, "bad_updates": 2, "seconds/train": 1.0}
    line = report.step_line(record, 9)
    assert "2 updates skipped: their gradient was not finite" in line and "nothing to learn in this step" in line


def test_the_estimate_holds_weights_gradients_states_and_a_copy_for_the_divergence(model):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    options = {"sequences": 8, "max_new_tokens": 16, "token_budget": 512}
    plain = report.memory_estimate(model, reference=False, **options)
    assert plain["weights"] == pytest.approx(4e-9 * parameters) == plain["gradients"]
    assert plain["optimizer"] == pytest.approx(8e-9 * parameters)
    assert report.memory_estimate(model, reference=True, **options)["weights"] == pytest.approx(2 * plain["weights"])
    assert plain["total"] > plain["weights"] + plain["optimizer"] and plain["available"] > 0


def test_a_run_folder_is_named_after_model_method_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = report.new_run_folder(Config(model="models/small.gguf", data=["d"], method="grpo", rectify="none", seed=7))
    assert out.parent.name == "runs" and out.name.startswith("small-grpo-seed7-")
    assert json.loads((out / "config.json").read_text())["seed"] == 7
