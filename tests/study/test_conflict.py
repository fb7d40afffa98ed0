"""Conflict: full gradients against autograd, rule (5) against a real step, and a tiny run."""

from __future__ import annotations

import json

import pytest
import torch

import rollout
from harness.config import Config
from study import conflict, conflict_tables


@pytest.fixture
def group(model, tokenizer):
    """Four completions of one prompt; the first two part at one token and go on alike, and so displace (5)."""
    prompt, stem = tokenizer("1+1=")["input_ids"], tokenizer("abcab")["input_ids"]
    endings = [[7, 9, 9, 9, 9], [8, 9, 9, 9, 9], [9], [20, 21, 22]]
    completions = [rollout.Completion(prompt, [*stem, *ending, 1]) for ending in endings]
    return rollout.assemble(model, tokenizer, completions, len(completions))


REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.0])


def log_likelihood(model, rollouts, i):
    """By full logits, as one would write it first."""
    one = rollouts.rows(torch.tensor([i]))
    logits = model(input_ids=one.input_ids, attention_mask=one.attention_mask.long()).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, one.input_ids[:, 1:, None]).squeeze(2)
    return (logps * one.prediction_mask).sum()


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
            for parameter, gradient in zip(parameters, difference, strict=True):
                parameter.add_(gradient, alpha=1e-6)
            lowered.append(bool(log_likelihood(model, group, i) < before))
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
    assert pairs["displaced"].tolist() == lowered
    assert True in lowered and False in lowered


def test_a_group_without_both_kinds_has_no_pairs(model, group):
    assert conflict.measure_pairs(model, group, torch.ones(1, 4), 1.0) == {}
    assert conflict_tables.summary_of_pairs({}) == {"groups": 0, "pairs": 0}
    checkpoint = {"steps": 0, "questions": 1, "accuracy": 1.0, "length": 5.0, "groups": 0, "pairs": 0}
    assert "| 0 | 0 of 1 | 0 | 100% | 5 | – | – | – | – |" in conflict_tables.pair_tables([checkpoint])


def test_full_gradients_mask_the_displaced_pairs(model, group):
    how = Config(group_size=4, scale="none").rectification
    rectified = conflict.rectify_in_full(model, group, REWARDS[None], how)
    masked = {tuple(pair) for pair in (~rectified.pair_mask[0]).nonzero().tolist()}
    assert masked == {(0, 1), (1, 0), (1, 2), (2, 1)}  # as the test above finds them
    assert rectified.advantages[0].tolist() == [0.25, 0.0, 0.25, -0.5]


# ---------------------------------------------------------------------------------------------------------------------
# One step
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", conflict_tables.OPTIMIZERS)
def test_a_step_is_taken_inside_and_taken_back_after(model, group, optimizer):
    config = Config(group_size=4, warmup=1)
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
    config = Config(group_size=4)
    found = conflict.log_likelihoods(model, group, torch.tensor([3, 0]), config)
    assert found == pytest.approx([log_likelihood(model, group, i).item() for i in (3, 0)], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The whole program
# ---------------------------------------------------------------------------------------------------------------------


def test_measured_questions_are_not_trained_on(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{n}+1", "answer": str(n + 1)}) + "\n" for n in range(9)))
    for data in ("", str(path)):
        training, measured = ({question["problem"] for question in questions} for questions in conflict.two_sets(data))
        assert training and measured and not training & measured


def test_the_commit_is_that_of_the_code_that_was_loaded(monkeypatch):
    called: list[str] = []

    def stop(_: str) -> None:
        raise SystemExit("questions")

    monkeypatch.setattr(conflict, "commit", lambda: called.append("commit") or "abc")
    monkeypatch.setattr(conflict, "two_sets", stop)
    with pytest.raises(SystemExit, match="questions"):
        conflict.main(["--quick"])
    assert called == ["commit"]


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
