"""Conflict: rank statistics by hand, full gradients against autograd, rule (5) against a real step, and a tiny run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import dagrpo
import rollout
from study import conflict, conflict_tables

NAN = math.nan


@pytest.fixture
def group(model, tokenizer):
    """Four answers to one prompt; the first two part at one token and go on alike, and so displace (5)."""
    prompt, stem = tokenizer("1+1=")["input_ids"], tokenizer("abcab")["input_ids"]
    endings = [[7, 9, 9, 9, 9], [8, 9, 9, 9, 9], [9], [20, 21, 22]]
    answers = [rollout.Answer(prompt, [*stem, *ending, 1]) for ending in endings]
    return rollout.assemble(model, tokenizer, answers, len(answers))


REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.0])


def log_likelihood(model, rollouts, i):
    """By full logits, as one would write it first."""
    row = rollouts.rows(torch.tensor([i]))
    logits = model(input_ids=row.input_ids, attention_mask=row.attention_mask.long()).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, row.input_ids[:, 1:, None]).squeeze(2)
    return (logps * row.response_mask[:, 1:]).sum()


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------------------


def test_gram_matrix_is_of_the_gradients_of_all_parameters(model, group):
    gradients = []
    for i in range(4):
        parts = torch.autograd.grad(log_likelihood(model, group, i), list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    flat = torch.stack(gradients)
    torch.testing.assert_close(conflict.full_gram(model, group, 1.0)[0], flat @ flat.T, rtol=1e-4, atol=1e-2)


def test_displaced_pairs_are_those_whose_own_step_lowers_the_right_answer(model, group):
    pairs = conflict.pairs_of_group(model, group, REWARDS, 1.0)
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    lowered = []
    for i, j in [(0, 1), (0, 3), (2, 1), (2, 3)]:  # the order of the pairs: by right answer, then by wrong one
        before = log_likelihood(model, group, i)
        difference = torch.autograd.grad(before - log_likelihood(model, group, j), parameters)
        with torch.no_grad():
            for parameter, own in zip(parameters, difference, strict=True):
                parameter.add_(own, alpha=1e-6)
            lowered.append(bool(log_likelihood(model, group, i) < before))
            for parameter, own in zip(parameters, start, strict=True):
                parameter.copy_(own)
    assert pairs["displaced"].tolist() == lowered
    assert True in lowered and False in lowered


def test_a_group_without_both_kinds_has_no_pairs(model, group):
    assert conflict.measure_pairs(model, group, torch.ones(1, 4), 1.0) == {}
    assert conflict_tables.summary_of_pairs({}) == {"groups": 0, "pairs": 0}
    checkpoint = {"steps": 0, "questions": 1, "accuracy": 1.0, "length": 5.0, "groups": 0, "pairs": 0}
    assert "| 0 | 0 of 1 | 0 | 100% | 5 | – | – | – | – |" in conflict_tables.pair_tables([checkpoint])


def test_full_gradients_mask_the_displaced_pairs(model, group):
    mask, _, advantages = conflict.rectify_in_full(
        model, group, REWARDS[None], dagrpo.Config(group_size=4, scale="none")
    )
    masked = {tuple(pair) for pair in (~mask[0]).nonzero().tolist()}
    assert masked == {(0, 1), (1, 0), (1, 2), (2, 1)}  # as the test above finds them
    assert advantages[0].tolist() == [0.25, 0.0, 0.25, -0.5]


# ---------------------------------------------------------------------------------------------------------------------
# One step
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", conflict_tables.OPTIMIZERS)
def test_a_step_is_taken_inside_and_taken_back_after(model, group, optimizer):
    config = dagrpo.Config(group_size=4, warmup=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = conflict.gradients_under(model, group, torch.tensor([[1.0, -1.0, 1.0, -1.0]]), config)
    with conflict.stepped(model, gradients, config, optimizer, 1e-3) as length:
        moved = [value - before[name] for name, value in model.state_dict().items()]
        assert length == pytest.approx(float(torch.cat([part.flatten() for part in moved]).norm()), rel=1e-3)
    if optimizer == "SGD":
        assert length == pytest.approx(1e-3 * conflict.norm_of(gradients), rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_log_likelihoods_come_in_the_order_of_their_rows(model, group):
    config = dagrpo.Config(group_size=4)
    found = conflict.log_likelihoods(model, group, torch.tensor([3, 0]), config)
    assert found == pytest.approx([log_likelihood(model, group, i).item() for i in (3, 0)], rel=1e-4)


def test_masks_are_compared_with_none_in_the_same_repetition():
    def repetition(change):
        own = {"masked": 0.0, "trained": 8.0, "score_seconds": 0.0, "train_seconds": 2.0, "SGD length": 2.0}
        plain = {**own, "SGD right, batch": change}
        masked = {**own, "trained": 6.0, "train_seconds": 1.5, "SGD length": 1.0, "SGD right, batch": change + 1}
        return {"none": plain, "auto": masked}

    auto = conflict_tables.summary_of_masks([repetition(0.0), repetition(100.0)])["auto"]
    assert auto["SGD right, batch, against none"] == (1.0, 1.0, 1.0)
    assert auto["SGD length, against none"] == (0.5, 0.5, 0.5)
    assert auto["skipped"] == (0.25, 0.25, 0.25) and auto["saved_seconds"] == (0.5, 0.5, 0.5)


# ---------------------------------------------------------------------------------------------------------------------
# The whole program
# ---------------------------------------------------------------------------------------------------------------------


def test_measured_questions_are_not_trained_on(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{n}+1", "answer": str(n + 1)}) + "\n" for n in range(9)))
    for data in ("", str(path)):
        training, measured = ({row["problem"] for row in rows} for rows in conflict.questions(data))
        assert training and measured and not training & measured


def test_a_model_without_questions_is_refused(capsys):
    with pytest.raises(SystemExit):
        conflict.main(["--model", "some/model"])
    assert "--data is missing" in capsys.readouterr().err


def test_quick_run_prints_every_table_and_writes_valid_json(tmp_path, capsys):
    path = tmp_path / "conflict.jsonl"
    conflict.main(["--quick", "--json", str(path)])
    printed = capsys.readouterr().out
    assert all(f"### {n}. " in printed for n in (1, 2, 3, 4)) and "nan" not in printed
    line = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert [checkpoint["steps"] for checkpoint in line["checkpoints"]] == [0, 1]
    for checkpoint in line["checkpoints"]:
        none = checkpoint["masks"]["none"]
        assert none["SGD length"][0] == pytest.approx(none["AdamW length"][0], rel=1e-2)
        assert none["AdamW right, batch"][0] > 0  # a step raises the answers that it is taken on
