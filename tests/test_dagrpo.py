"""Ratio (7), loss (8), the update, whole runs: by hand, by autograd, and by spies on what is run."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import fields, replace

import pytest
import torch
from conftest import completions_of, random_model, small_rollouts
from transformers import AutoModelForCausalLM

import anchors
import dagrpo
import harness.task
import questions
import rollout
import scoring
from dagrpo import Batch, Learner, Objective, Task
from harness.config import EXAMPLE, Config, configure
from harness.rewards import load_reward
from harness.runs import Run
from policy import compiling

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
NO_ANCHORS = torch.tensor([False, False])


def loss_of(logps, old_logps, advantages, anchor_mask=NO_ANCHORS, denominators=None, **options):
    """The loss of two rows of four predictions, with one advantage each, and its sums as numbers."""
    denominators = torch.ones(2) if denominators is None else denominators
    names = ("reference_logps", "entropies", "entropy_weight")
    tensors = {name: options.pop(name) for name in names if name in options}
    by_token = torch.tensor(advantages)[:, None].expand(2, 4)
    batch = (logps, old_logps, by_token, MASK, anchor_mask, denominators)
    loss, counted = dagrpo.policy_loss(*batch, Objective(**options), **tensors)
    return loss, {name: value.item() for name, value in counted.items()}


# --- (7) ---------------------------------------------------------------------------------------------------------


def test_shaped_probability_at_gamma():
    """f(γ) = 1/2, and its slope in log π is γπ/(π+γ)² = 1/4, where it is steepest."""

    def f(logps):
        """J of a single anchor with Ã = 1."""
        row, yes = logps[None], torch.ones(1, len(logps), dtype=torch.bool)
        batch = (row, row.detach(), torch.ones_like(row), yes, torch.tensor([True]), torch.ones(1))
        return -dagrpo.policy_loss(*batch, Objective(gamma=0.1))[0]

    logps = torch.tensor([math.log(0.1)], requires_grad=True)
    value = f(logps)
    (slope,) = torch.autograd.grad(value, logps)
    assert value.item() == pytest.approx(0.5) and slope.item() == pytest.approx(0.25)
    others = torch.tensor([0.01, 0.05, 0.2, 0.9, 1.0]).log().requires_grad_()
    (slopes,) = torch.autograd.grad(f(others), others)
    torch.testing.assert_close(slopes, 0.1 * others.exp() / (others.exp() + 0.1) ** 2)
    assert float(slopes.max()) < 0.25


# --- (8) ---------------------------------------------------------------------------------------------------------


def test_ratio_one_gives_the_gradient_of_reinforce():
    """∂loss/∂log π = −Ã/denominator on answer tokens, 0 elsewhere."""
    logps = torch.randn(2, 4).requires_grad_()
    loss, _ = loss_of(logps, logps.detach(), [0.5, -2.0], denominators=torch.tensor([4.0, 8.0]))
    (gradient,) = torch.autograd.grad(loss, logps)
    expected = -torch.tensor([[0.5 / 4] * 3 + [0.0], [-2.0 / 8] * 2 + [0.0] * 2])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.1, 1.0, True),
        (1.3, 1.0, False),  # good and already more likely: clipped
        (1.3, -1.0, True),  # bad and more likely: must still come down
        (0.7, -1.0, False),  # bad and already less likely: clipped
        (0.7, 1.0, True),  # good and less likely: must still go up
    ],
)
def test_clip_acts_only_on_the_side_it_should(ratio, advantage, moves):
    old = torch.full((2, 4), -1.0)
    logps = (old + math.log(ratio)).requires_grad_()
    loss, counted = loss_of(logps, old, [advantage, advantage])
    (gradient,) = torch.autograd.grad(loss, logps)
    expected = -advantage * ratio * MASK if moves else torch.zeros(2, 4)
    torch.testing.assert_close(gradient, expected.float())
    assert counted["clip_low"] + counted["clip_high"] == (0 if moves else 5)
    unclipped, _ = loss_of(logps, old, [advantage, advantage], clip_low=None, clip_high=None)
    (gradient,) = torch.autograd.grad(unclipped, logps)
    torch.testing.assert_close(gradient, (-advantage * ratio * MASK).float())


def test_anchor_tokens_take_the_shaped_or_the_plain_objective():
    """Row 1 is an anchor: J = f(π) Ã or Ã log π, whatever the old log-probabilities say. Padding counts nothing."""
    logps = torch.log(torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.1, 0.3, 0.9, 0.9]]))
    anchor = torch.tensor([False, True])
    old = logps - 5.0 * anchor[:, None]
    loss, counted = loss_of(logps, old, [0.0, 2.0], anchor, gamma=0.1)
    assert loss.item() == pytest.approx(-2.0 * (0.1 / 0.2 + 0.3 / 0.4))
    assert counted["anchor_tokens"] == 2 and counted["anchor_prob"] == pytest.approx(0.4)
    assert counted["policy_tokens"] == 3
    loss, _ = loss_of(logps, old, [0.0, 2.0], anchor, anchor_objective="sft")
    assert loss.item() == pytest.approx(-2.0 * (math.log(0.1) + math.log(0.3)))


def test_kl_and_entropy_terms_by_hand():
    """k3 = e^d − d − 1 with d = log π_ref − log π = log 2 on each of 5 tokens; entropies of 0.7."""
    logps = torch.full((2, 4), -2.0)
    loss, counted = loss_of(
        logps,
        logps,
        [0.0, 0.0],
        reference_logps=logps + math.log(2),
        kl=0.5,
        entropies=torch.full((2, 4), 0.7),
        entropy_weight=torch.tensor(0.1),
    )
    k3 = 2 - math.log(2) - 1
    assert loss.item() == pytest.approx(5 * (0.5 * k3 - 0.1 * 0.7), rel=1e-5)
    assert counted["kl"] == pytest.approx(5 * k3, rel=1e-5) and counted["entropy"] == pytest.approx(3.5)


def test_the_divergence_counts_no_anchor_token():
    """k3 estimates it on the policy's samples; the three tokens of the first row are such, the anchor's two are not."""
    logps = torch.full((2, 4), -2.0)
    options = {"reference_logps": logps + math.log(2), "kl": 0.5}
    loss, counted = loss_of(logps, logps, [0.0, 0.0], torch.tensor([False, True]), **options)
    k3 = 2 - math.log(2) - 1
    assert loss.item() == pytest.approx(3 * 0.5 * k3, rel=1e-5) and counted["kl"] == pytest.approx(3 * k3, rel=1e-5)


def test_garbage_outside_the_answers_has_no_effect():
    logps = torch.randn(2, 4)
    garbage = torch.where(MASK, logps, 1e4)
    clean, _ = loss_of(logps, logps + 0.1, [1.0, -1.0])
    dirty, _ = loss_of(garbage, torch.where(MASK, logps + 0.1, -1e4), [1.0, -1.0])
    assert clean.item() == dirty.item()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("token", [12.0, 12.0, 12.0]), ("sequence", [18.0, 6.0, 12.0]), ("constant", [60.0, 60.0, 60.0])],
)
def test_denominators_by_hand(norm, expected):
    """Answers of 6, 2 and 4 tokens under a limit of 20."""
    assert dagrpo.loss_denominators(torch.tensor([6, 2, 4]), norm, 20).tolist() == expected


def test_an_overlong_completion_loses_up_to_a_half_over_the_last_part_of_the_limit(model, tokenizer):
    """DAPO: a limit of 20 with a margin of 10: nothing at 10 tokens, half of it at 15, all at 20; anchors lose nothing.

    Nor does a group whose rewards are all equal: its advantages would be of the penalty alone.
    """
    completions = [rollout.Completion([3], [4] * length, is_anchor=i == 3) for i, length in enumerate((10, 15, 20, 20))]
    rollouts = rollout.assemble(model, tokenizer, completions, 2)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert questions.overlong_penalty(rollouts, rewards, 10.0, 20).tolist() == [[0.0, 0.25], [0.5, 0.0]]
    assert questions.overlong_penalty(rollouts, torch.ones(2, 2), 10.0, 20).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert not questions.overlong_penalty(rollouts, rewards, 0.0, 20).any()


# --- one update --------------------------------------------------------------------------------------------------


def learner_of(model, tokenizer=None, rate=0.0, reference=None):
    """SGD, so that the weights move by the gradient itself."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    return Learner(model, tokenizer, reference, optimizer, schedule)


def gradients_of(model, rollouts, advantages, rows, budget, **flags):
    """The sums and gradients of one update at rate 0 that trains on the rows, with advantages (N,) or (N, S)."""
    config = Config(model="m", data=["d"], token_budget=budget, max_new_tokens=20, max_grad_norm=1e9, **flags)
    reference = random_model(seed=9) if config.kl else None
    learner = learner_of(model, reference=reference)
    kept = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: kept.extend(parameter.grad.clone() for parameter in model.parameters())
    )
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand(rollouts.logps.shape)
    trained = torch.zeros(len(advantages), dtype=torch.bool)
    trained[rows] = True
    sums = dagrpo.update(learner, rollouts, advantages, trained, config, "update")
    return sums, kept


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_loss_and_gradient_do_not_change_with_the_micro_batch_split(model, tokenizer, norm):
    rollouts = small_rollouts(model, tokenizer)
    rollouts.anchor_mask[2] = True
    advantages, rows = torch.randn(12), torch.tensor([0, 1, 2, 4, 5, 7, 10, 11])
    options = {"loss_norm": norm, "kl": 0.1, "entropy_bonus": 0.01}
    whole, expected = gradients_of(model, rollouts, advantages, rows, 10_000, **options)
    for budget in (1, 60, 100):
        sums, gradients = gradients_of(model, rollouts, advantages, rows, budget, **options)
        del (
            sums["model_tokens"],
            sums["padded_tokens"],
            sums["grad_norm"],
        )  # prompts are shared, and rows padded, as the budget allows
        assert sums == pytest.approx({name: whole[name] for name in sums}, rel=1e-4, abs=1e-5)
        for ours, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_update_equals_the_equation_written_out(model, tokenizer, temperature):
    """At ratio 1 the gradient is −Σ_i Ã_i Σ_t ∇log π_t / tokens of all answers, skipped ones too."""
    rollouts = small_rollouts(model, tokenizer)
    advantages = torch.randn(12)
    advantages[[3, 8]] = 0.0
    rows = advantages.nonzero().squeeze(1)
    _, gradients = gradients_of(model, rollouts, advantages, rows, 80, temperature=temperature, loss_norm="token")
    total = 0.0
    for i in range(12):
        ids = rollouts.input_ids[i][rollouts.attention_mask[i]]
        answer = rollouts.response_mask[i][rollouts.attention_mask[i]][1:]
        logps = (model(input_ids=ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
        logps = logps.gather(1, ids[1:, None]).squeeze(1)
        total = total - advantages[i] * logps[answer].sum() / rollouts.lengths.sum()
    for ours, expected in zip(gradients, torch.autograd.grad(total, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)


def test_every_option_of_the_loss_reaches_it(model, tokenizer, monkeypatch):
    """All options away from their defaults: the loss of the update equals `policy_loss` called by hand."""
    rollouts = small_rollouts(model, tokenizer)
    rollouts.anchor_mask[[1, 6]] = True
    old = rollouts.logps + 0.5 * torch.randn_like(rollouts.logps)
    monkeypatch.setattr(dagrpo, "old_logps", lambda *_: old)
    advantages, rows = torch.randn(12), torch.arange(12)
    options = {
        "clip_low": 0.1,
        "clip_high": 0.3,
        "gamma": 0.5,
        "kl": 0.2,
    }
    for objective in ("shaped", "sft"):
        flags = {**options, "anchor_objective": objective, "temperature": 0.7, "updates": 2, "loss_norm": "constant"}
        flags["entropy_bonus"] = 0.05
        sums, _ = gradients_of(model, rollouts, advantages, rows, 100_000, **flags)
        loss, clipped = 0.0, 0.0
        for share in (range(8), range(8, 12)):  # two questions, then the third
            part = replace(rollouts, logps=old).rows(torch.tensor(share))
            logps, entropies = rollout.token_logps(model, *part.tokens, temperature=0.7)
            reference, _ = rollout.token_logps(random_model(seed=9), *part.tokens, temperature=0.7)
            value, counted = dagrpo.policy_loss(
                logps,
                part.logps,
                advantages[list(share)][:, None].expand_as(logps),
                part.prediction_mask,
                part.anchor_mask,
                torch.full((len(share),), 20.0 * len(share)),
                Objective(anchor_objective=objective, **options),
                reference_logps=reference,
                entropies=entropies,
                entropy_weight=0.05 / part.lengths.sum(),
            )
            assert counted["clip_low"] > 0 and counted["clip_high"] > 0
            loss, clipped = loss + value.item(), clipped + counted["clip_low"].item()
        assert sums["loss"] == pytest.approx(loss, rel=1e-4) and sums["clip_low"] == clipped


def test_later_updates_of_a_batch_use_the_old_log_probabilities(model, tokenizer, monkeypatch):
    """Where every token was sampled at 1/1.1 of today's probability, the ratio is 1.1, and so is every gradient."""
    rollouts = small_rollouts(model, tokenizer)
    advantages = torch.randn(12)
    rows = torch.arange(8)  # of two questions: the first of two updates, whose gradients are the first ones kept
    _, first = gradients_of(model, rollouts.rows(rows), advantages[:8], rows, 1_000)
    monkeypatch.setattr(dagrpo, "old_logps", lambda *_: rollouts.logps - math.log(1.1))
    _, later = gradients_of(model, rollouts, advantages, rows, 1_000, updates=2, clip_low=None, clip_high=None)
    for one, other in zip(first, later, strict=True):
        torch.testing.assert_close(1.1 * one, other, atol=1e-4, rtol=1e-3)


def test_each_update_of_a_batch_takes_its_share_of_the_questions(model, tokenizer, monkeypatch):
    """Three questions in two updates: rows 0 to 7, then 8 to 11; denominators count the share's tokens."""
    rollouts = small_rollouts(model, tokenizer)
    seen = []

    def spy(logps, old, advantages, prediction_mask, anchor_mask, denominators, objective, **_):
        seen.append((advantages[:, 0].int().tolist(), denominators.unique().tolist()))
        return 0.0 * logps.sum(), {"tokens": torch.tensor(0.0)}

    monkeypatch.setattr(dagrpo, "policy_loss", spy)
    trained = torch.tensor([True] * 10 + [False] * 2)
    config = Config(model="m", data=["d"], updates=2, loss_norm="token", token_budget=10_000)
    numbers = torch.arange(12.0)[:, None].expand(rollouts.logps.shape)  # so that the spy can tell rows apart
    dagrpo.update(learner_of(model), rollouts, numbers, trained, config, "update")
    assert all(parameter.grad is None for parameter in model.parameters())
    lengths = rollouts.lengths
    assert [(sorted(rows), counts) for rows, counts in seen] == [
        (list(range(8)), [float(lengths[:8].sum())]),
        ([8, 9], [float(lengths[8:].sum())]),
    ]


def test_gradients_are_scaled_down_to_the_largest_norm_allowed(model, tokenizer):
    """One SGD step at rate 1 moves the weights by just that norm."""
    rollouts = small_rollouts(model, tokenizer)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    config = Config(model="m", data=["d"], max_grad_norm=1e-2, loss_norm="token")
    torch.manual_seed(0)
    advantages = torch.randn(12)[:, None].expand(rollouts.logps.shape)
    arguments = (rollouts, advantages, torch.ones(12, dtype=torch.bool), config, "update")
    sums = dagrpo.update(learner_of(model, rate=1.0), *arguments)
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert sums["grad_norm"] > 0.1 and float((after - before).norm()) == pytest.approx(1e-2, rel=1e-2)


def task_of(reward=questions.correctness):
    return Task([], [], [], anchors.Anchors(), reward)


def test_another_step_or_seed_samples_other_answers_to_the_same_question(model, tokenizer):
    question = {"problem": "1+1?", "answer": "2"}
    texts = []
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        config = Config(model="m", data=["d"], anchors=None, questions=1, group_size=2, max_new_tokens=20, seed=seed)
        batch = dagrpo.collect(learner_of(model, tokenizer), task_of(), iter([question]), config, step, {})
        texts.append(tuple(batch.rollouts.texts))
    assert texts[0] == texts[3] and len(set(texts)) == 3


def test_groups_without_signal_give_way_to_new_questions(model, tokenizer):
    """Dynamic sampling: of three groups the two without signal are replaced, questions and rewards with them."""
    stream = iter([{"problem": f"{n}+{n}?", "answer": "1"} for n in range(9)])
    asked = []

    def reward(texts, of_texts):
        """Mixed rewards for every third question, equal ones for the others."""
        asked.extend(question["problem"] for question in of_texts[::2])
        return [float(int(question["problem"][0]) % 3 == 1 and i % 2 == 0) for i, question in enumerate(of_texts)]

    config = Config(
        model="m", data=["d"], anchors=None, questions=3, group_size=2, max_new_tokens=8, resample=3, rectify="none"
    )
    batch = dagrpo.collect(learner_of(model, tokenizer), task_of(reward), stream, config, 1, {})
    assert isinstance(batch, Batch)
    rollouts = batch.rollouts
    # 3 and 4 come for 0 and 2, 5 for 3, 6 for 5: three rounds, and the last group is still without signal.
    assert asked == ["0+0?", "1+1?", "2+2?", "3+3?", "4+4?", "5+5?", "6+6?"]
    assert [question["problem"] for question in batch.questions] == ["6+6?", "1+1?", "4+4?"]
    assert batch.rewards.tolist() == [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    prompt_mask = rollouts.attention_mask & ~rollouts.response_mask
    prompts = [ids[mask].tolist() for ids, mask in zip(rollouts.input_ids, prompt_mask, strict=True)]
    assert [tokenizer.decode(ids)[0] for ids in prompts] == ["6", "6", "1", "1", "4", "4"]
    assert batch.metrics["sampled_tokens"] > int(rollouts.lengths.sum())
    assert batch.metrics["solve_none"] == pytest.approx(2 / 3)


def test_the_functions_of_a_reward_are_logged_one_by_one_over_all_rounds_of_sampling(model, tokenizer, tmp_path):
    """As they are, before their weights. The groups of the first round are all equal, and so give way once."""
    (tmp_path / "mine.py").write_text(
        "def ten(texts, questions):\n    return [10.0 * (each['problem'] > '2') for each in questions]\n\n"
        "def rank(texts, questions):\n    return [n * (each['problem'] > '2') for n, each in enumerate(questions)]\n"
    )
    reward = load_reward([f"{tmp_path / 'mine.py'}:ten", f"{tmp_path / 'mine.py'}:rank=-0.5"])
    stream = iter([{"problem": f"{n}+{n}?", "answer": "1"} for n in range(9)])
    config = Config(
        model="m", data=["d"], anchors=None, questions=2, group_size=2, max_new_tokens=8, resample=1, rectify="none"
    )
    batch = dagrpo.collect(learner_of(model, tokenizer), task_of(reward), stream, config, 1, {})
    assert batch.rewards.tolist() == [[10.0, 9.5], [9.0, 8.5]]
    assert {name: value for name, value in batch.metrics.items() if name.startswith("reward/")} == {
        "reward/ten": 5.0,  # 0, 0, 0, 0, then 10, 10, 10, 10
        "reward/rank": 0.75,  # 0, 0, 0, 0, then 0, 1, 2, 3
    }
    plain = dagrpo.collect(learner_of(model, tokenizer), task_of(), stream, config, 1, {})
    assert not any(name.startswith("reward/") for name in plain.metrics)


def test_fine_tuning_raises_the_likelihood_of_the_solutions(small_data, tmp_path):
    solved = questions.read_questions([str(small_data / "train.jsonl")])
    model, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    placed, _ = anchors.only(model, tokenizer, solved, anchors.load(solved, tokenizer=tokenizer), random.Random(0))
    run(small_data, tmp_path, method="sft", learning_rate=1e-4, warmup=0)
    trained, _ = rollout.load(str(tmp_path / "model"), "cpu")
    with torch.no_grad():
        change = rollout.token_logps(trained, *placed.tokens)[0] - rollout.token_logps(model, *placed.tokens)[0]
    assert float(change.sum()) > 0


def test_a_gradient_that_is_not_finite_reaches_neither_weights_nor_moments(model, tokenizer, monkeypatch):
    """AdamW would write it into every one of them, and the largest norm of the log would be 0."""
    rollouts = small_rollouts(model, tokenizer)
    plain = dagrpo.policy_loss

    def broken(*batch, **tensors):
        loss, counted = plain(*batch, **tensors)
        return loss * torch.nan, counted

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    learner = Learner(model, tokenizer, None, optimizer, schedule)
    config = Config(model="m", data=["d"], updates=2, token_budget=10_000)
    advantages, trained = torch.randn(12)[:, None].expand(rollouts.logps.shape), torch.ones(12, dtype=torch.bool)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    monkeypatch.setattr(dagrpo, "policy_loss", broken)
    sums = dagrpo.update(learner, rollouts, advantages, trained, config, "update")
    assert sums["bad_updates"] == sums["bad_losses"] == 2 and math.isnan(sums["grad_norm"]) and sums["updates"] == 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) and not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr(dagrpo, "policy_loss", plain)
    assert dagrpo.update(learner, rollouts, advantages, trained, config, "update")["bad_updates"] == 0
    assert not torch.equal(before[0], next(model.parameters()))


def test_a_group_that_waits_for_an_anchor_does_not_give_way_to_a_new_question(model, tokenizer):
    """Resampling took the hard questions away before anchors could join: `anchored` fell from a half to a twentieth."""
    solved = {"problem": "0+0?", "answer": "0", "solution": "\\boxed{0}"}
    stream = iter([solved, *({"problem": f"{n}+{n}?", "answer": "1"} for n in range(1, 9))])
    task = replace(task_of(lambda texts, _: [0.0] * len(texts)), anchors=anchors.load([solved], tokenizer=tokenizer))
    config = Config(model="m", data=["d"], questions=2, group_size=2, max_new_tokens=8, resample=2, rectify="none")
    batch = dagrpo.collect(learner_of(model, tokenizer), task, stream, config, 1, {})
    assert [question["problem"] for question in batch.questions] == ["0+0?", "3+3?"]
    assert batch.rewards.tolist() == [[0.0, 1.0], [0.0, 0.0]] and batch.metrics["anchored"] == 0.5


def test_old_logps_of_several_updates_are_those_of_the_training_pass(model, tokenizer):
    rollouts = small_rollouts(model, tokenizer)
    kept = rollouts.logps.clone()
    trained = torch.arange(12) % 3 != 0
    config = Config(model="m", data=["d"], token_budget=64, updates=2)
    old = dagrpo.old_logps(model, rollouts, trained, config)
    torch.testing.assert_close(old, kept, atol=1e-4, rtol=1e-4)
    assert torch.equal(old[~trained], kept[~trained])


def test_withheld_advantage_reaches_the_gradient_of_the_loss(model, tokenizer):
    """Withholding from two tokens equals the loss with those tokens' advantages lowered by hand."""
    rollouts = small_rollouts(model, tokenizer)
    rows, advantages = torch.arange(12), torch.randn(12)
    row = int(rollouts.lengths.argmax())
    places = rollouts.response_mask[row].nonzero()[:2, 0]
    _, plain = gradients_of(model, rollouts, advantages, rows, 1_000, loss_norm="token")
    lowered = advantages[:, None].repeat(1, rollouts.logps.shape[1])
    lowered[row, places - 1] -= 0.7  # the prediction of a token stands one column before it
    _, withheld = gradients_of(model, rollouts, lowered, rows, 1_000, loss_norm="token")
    logps, _ = rollout.token_logps(model, rollouts.input_ids, rollouts.attention_mask, rollouts.response_mask)
    taken = 0.7 * logps[row, places - 1].sum() / rollouts.lengths.sum()  # at ratio 1, ∂ρ = ∂log π
    expected = torch.autograd.grad(taken, list(model.parameters()))
    for before, after, difference in zip(plain, withheld, expected, strict=True):
        torch.testing.assert_close(after - before, difference, atol=1e-5, rtol=1e-3)


def test_the_clip_shares_are_of_sampled_tokens():
    """Row 1 is an anchor, and its old log-probabilities say nothing: a ratio of e^5 is not clipped."""
    logps = torch.full((2, 4), -1.0)
    anchor = torch.tensor([False, True])
    old = logps - 5.0 * anchor[:, None]
    for advantage in (1.0, -1.0):
        _, counted = loss_of(logps, old, [advantage, advantage], anchor)
        assert counted["clip_low"] == counted["clip_high"] == 0


def test_the_gap_to_the_sampler_is_the_mean_distance_of_sampled_tokens(model, tokenizer):
    """Log-probabilities that differ by 0.1, up and down in turns, and by 5 for an anchor."""
    rollouts = small_rollouts(model, tokenizer)
    rollouts.anchor_mask[3] = True
    with torch.no_grad():
        logps, _ = rollout.token_logps(model, *rollouts.tokens)
    signs = torch.where(torch.arange(logps.shape[1]) % 2 == 0, 0.1, -0.1)
    shifted = torch.where(rollouts.anchor_mask[:, None], logps + 5, logps + signs)
    sums, _ = gradients_of(model, replace(rollouts, logps=shifted), torch.ones(12), torch.arange(12), 10_000)
    assert sums["sampler_gap"] == pytest.approx(0.1 * sums["policy_tokens"], rel=1e-3)
    assert sums["policy_tokens"] == int(rollouts.lengths.sum() - rollouts.lengths[3])


def test_the_logged_norm_is_the_largest_of_all_updates(model, tokenizer):
    """Ã is 1 in the first of three updates, 0.01 in the others."""
    rollouts = small_rollouts(model, tokenizer)
    advantages = torch.where(torch.arange(12) < 4, 1.0, 0.01)
    sums, _ = gradients_of(model, rollouts, advantages, torch.arange(12), 10_000, updates=3, loss_norm="token")
    rows = rollouts.rows(torch.arange(4))
    first, _ = gradients_of(model, rows, torch.ones(4), torch.arange(4), 10_000, loss_norm="token")
    assert sums["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)


def test_the_token_budget_bounds_what_runs_together(model, tokenizer, monkeypatch):
    rollouts = small_rollouts(model, tokenizer)
    together = []
    plain = rollout.token_logps
    monkeypatch.setattr(
        rollout, "token_logps", lambda m, ids, *a, **k: together.append(len(ids)) or plain(m, ids, *a, **k)
    )
    gradients_of(model, rollouts, torch.ones(12), torch.arange(12), 1)
    assert together == [1] * 12


@pytest.mark.parametrize("enabled", [True, False])
def test_checkpointing_is_on_where_it_is_asked_for(model, tokenizer, monkeypatch, enabled):
    """Its memory is measured in tests/policy/test_logprobs.py."""
    asked = []
    plain = dagrpo.checkpointed
    monkeypatch.setattr(dagrpo, "checkpointed", lambda model, on: asked.append(on) or plain(model, on))
    gradients_of(model, small_rollouts(model, tokenizer), torch.ones(12), torch.arange(12), 500, checkpointing=enabled)
    assert asked == [enabled]


# --- what one step learns from -----------------------------------------------------------------------------------


def collected(model, tokenizer, stream, rewards, step=1, **flags):
    """What a step learns from whose questions come from the stream; completions earn the given rewards in turn."""
    earned = iter(rewards)
    task = task_of(lambda texts, asked: [next(earned) for _ in texts])
    solutions = flags.pop("solutions", {})
    task = replace(task, anchors=anchors.Anchors(solutions))
    options = {"anchors": None, "group_size": 2, "max_new_tokens": 12, "rectify": "none", **flags}
    config = Config(model="m", data=["d"], **options)
    return dagrpo.collect(learner_of(model, tokenizer), task, iter(stream), config, step, {})


def asked(*problems):
    return [{"problem": problem, "answer": "1"} for problem in problems]


def test_the_metrics_of_sampling_by_hand(model, tokenizer):
    """One group of four is all wrong, one all right; all that is counted is as it was first sampled."""
    rewards = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, -1.0]
    batch = collected(model, tokenizer, asked("a", "b", "c", "d"), rewards, questions=4, max_new_tokens=30)
    lengths, metrics = batch.rollouts.lengths, batch.metrics
    assert (metrics["reward"], metrics["solve_none"], metrics["solve_all"]) == (0.25, 0.5, 0.25)
    assert metrics["length/mean"] == pytest.approx(float(lengths.float().mean()))
    assert (metrics["length/max"], metrics["sampled_tokens"]) == (int(lengths.max()), int(lengths.sum()))
    assert metrics["truncated"] == sum(tokens[-1] != 1 for tokens in completions_of(batch.rollouts)) / 8
    assert metrics["anchored"] == 0.0 and batch.rewards.tolist() == [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, -1.0]]


def test_a_solved_group_gives_way_too_and_its_tokens_count(model, tokenizer, monkeypatch):
    made = []
    plain = rollout.sample
    monkeypatch.setattr(rollout, "sample", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    batch = collected(model, tokenizer, asked("a", "b"), [1.0, 1.0, 0.0, 1.0], questions=1, resample=1)
    assert [question["problem"] for question in batch.questions] == ["b"] and len(made) == 2
    assert batch.metrics["sampled_tokens"] == sum(int(each.lengths.sum()) for each in made)
    assert batch.metrics["solve_all"] == 1.0 and batch.rewards.tolist() == [[0.0, 1.0]]


def test_a_question_that_comes_again_in_a_step_gets_other_completions(model, tokenizer, monkeypatch):
    """Each round of resampling has noise of its own."""
    made = []
    plain = rollout.sample
    monkeypatch.setattr(rollout, "sample", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    collected(model, tokenizer, asked("a", "a", "a"), [0.0] * 6, questions=1, resample=2)
    assert len({tuple(each.texts) for each in made}) == 3


def test_which_anchor_joins_depends_on_seed_and_step(model, tokenizer):
    solutions = {(("a",), "1"): [([5, 1], 1.0), ([6, 1], 1.0)]}

    def chosen(**key):
        batch = collected(
            model, tokenizer, asked("a"), [0.0, 0.0], questions=1, anchors="data", solutions=solutions, **key
        )
        return int(batch.rollouts.input_ids[1][batch.rollouts.response_mask[1]][0])

    assert {chosen(seed=seed) for seed in range(8)} == {chosen(step=step) for step in range(8)} == {5, 6}
    assert chosen(seed=3, step=2) == chosen(seed=3, step=2)


def test_hard_questions_and_anchors_to_a_group_are_as_asked_for(model, tokenizer):
    """At a pass rate of 1/2 with --hard-below 0.5; two anchors, of which one failing completion makes room for one."""
    solutions = {(("a",), "1"): [([5, 1], 1.0), ([6, 1], 1.0)], (("b",), "1"): [([7, 1], 1.0), ([8, 1], 1.0)]}
    options = {"questions": 2, "anchors": "data", "solutions": solutions, "anchors_per_group": 2}
    batch = collected(model, tokenizer, asked("a", "b"), [0.0, 1.0, 0.0, 0.0], hard_below=0.5, **options)
    assert batch.rollouts.anchor_mask.tolist() == [True, False, True, True] and batch.metrics["anchored"] == 1.0
    batch = collected(model, tokenizer, asked("a", "b"), [0.0, 1.0, 0.0, 0.0], **options)
    assert batch.rollouts.anchor_mask.tolist() == [False, False, True, True] and batch.metrics["anchored"] == 0.5


def test_what_earns_enough_is_right_to_anchors_too(model, tokenizer):
    options = {"questions": 1, "anchors": "data", "solutions": {(("a",), "1"): [([5, 1], 1.0)]}, "reward": "mine.py:f"}
    batch = collected(model, tokenizer, asked("a"), [0.6, 0.4], right_at=0.5, **options)
    assert not batch.rollouts.anchor_mask.any()
    batch = collected(model, tokenizer, asked("a"), [0.6, 0.4], right_at=0.7, **options)
    assert batch.rollouts.anchor_mask.tolist() == [False, True]


def test_prompts_of_a_step_have_the_systems_turn(model, tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}{{ m.content[:2] }}.{% endfor %}"
    batch = collected(model, chat, asked("a?"), [0.0, 1.0], questions=1, system="be")
    prompt = batch.rollouts.attention_mask[0] & ~batch.rollouts.response_mask[0]
    assert chat.decode(batch.rollouts.input_ids[0][prompt]) == "be.a?."


def test_groups_have_their_size_with_the_anchors_that_join_every_one(model, tokenizer):
    solutions = {(("a",), "1"): [([5, 1], 1.0)]}
    options = {"questions": 1, "anchors": "data", "solutions": solutions, "group_size": 3}
    batch = collected(model, tokenizer, asked("a"), [0.0, 1.0], every_group=True, **options)
    assert batch.rollouts.anchor_mask.tolist() == [False, False, True] and batch.rollouts.group_size == 3
    batch = collected(model, tokenizer, asked("a"), [0.0, 1.0, 1.0], **options)
    assert batch.rollouts.anchor_mask.tolist() == [False] * 3


def test_top_p_and_temperature_reach_the_sampler(model, tokenizer):
    """With next to no probability mass, and near temperature 0, completions are the likeliest ones."""
    greedy = rollout.sample(model, tokenizer, ["a\n"], 2, max_new_tokens=12, temperature=0).texts
    for flags in ({"top_p": 1e-6}, {"temperature": 1e-5}):
        batch = collected(model, tokenizer, asked("a"), [0.0, 1.0], questions=1, **flags)
        assert batch.rollouts.texts == greedy
    assert collected(model, tokenizer, asked("a"), [0.0, 1.0], questions=1).rollouts.texts != greedy


@pytest.mark.parametrize(
    ("rectify", "scorer", "kept"),
    [("threshold", "gradient", True), ("pair", "state", True), ("threshold", "token", False), ("none", "state", True)],
)
def test_hidden_states_are_kept_for_the_scorers_that_read_them(model, tokenizer, rectify, scorer, kept):
    batch = collected(model, tokenizer, asked("a"), [0.0, 1.0], questions=1, rectify=rectify, scorer=scorer)
    assert [state is not None for state in batch.rollouts.hidden] == [kept, kept]


def test_held_out_completions_have_flags_of_their_own(model, tokenizer, tmp_path, monkeypatch):
    asked_for = {}

    def stand_in(model, tokenizer, questions, **options):
        asked_for.update(options)
        return {
            "accuracy": 0.5,
            "reward": 0.5,
            "interval": (0.4, 0.6),
            "levels": {},
            "length": 1.0,
            "questions": 2,
            "rows": [],
        }

    monkeypatch.setattr(harness.task, "evaluate", stand_in)
    config = Config(
        model="m",
        data=["d"],
        eval_samples=3,
        eval_temperature=0.4,
        temperature=0.9,
        max_new_tokens=9,
        seed=5,
        system="s",
    )
    task = task_of(reward := (lambda texts, questions: [1.0] * len(texts)))
    result = dagrpo.held_out_accuracy(model, tokenizer, task, config, Run(tmp_path), 2)
    del asked_for["label"]
    assert asked_for == {"k": 3, "temperature": 0.4, "max_new_tokens": 9, "seed": 5, "reward": reward,
                         "right": 1.0, "style": config.prompt_style}  # fmt: skip
    assert "rows" not in result and read(tmp_path / "evaluations.jsonl")[0]["step"] == 2


def test_a_new_learner_has_the_optimizer_that_was_asked_for(model, tokenizer, monkeypatch):
    monkeypatch.setattr(rollout, "load", lambda *_, **__: (model, tokenizer))
    config = Config(model="m", data=["d"], learning_rate=1e-3, weight_decay=0.3, warmup=4, kl=0.1)
    learner = dagrpo.new_learner(config)
    (group,) = learner.optimizer.param_groups
    assert group["weight_decay"] == 0.3 and len(group["params"]) == len(list(model.parameters()))
    rates = []
    for _ in range(6):
        rates.append(group["lr"])
        learner.optimizer.step()
        learner.schedule.step()
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("choice", ["none", "sampler", "all"])
def test_a_new_learner_compiles_what_was_asked_for(model, tokenizer, monkeypatch, choice):
    monkeypatch.setattr(rollout, "load", lambda *_, **__: (model, tokenizer))
    monkeypatch.setitem(compiling.chosen, "parts", ("not yet",))
    dagrpo.new_learner(Config(model="m", data=["d"], compile=choice))
    assert compiling.chosen["parts"] == compiling.CHOICES[choice]


def test_the_reference_is_the_start_model_and_stays_it(model, tokenizer, monkeypatch):
    """Only where there is a KL term."""
    monkeypatch.setattr(rollout, "load", lambda *_, **__: (model, tokenizer))
    assert dagrpo.new_learner(Config(model="m", data=["d"])).reference is None
    reference = dagrpo.new_learner(Config(model="m", data=["d"], kl=0.1)).reference
    start = [parameter.clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), start, strict=True))
    assert not any(parameter.requires_grad for parameter in reference.parameters())


# --- whole runs on the embedded example --------------------------------------------------------------------------


def run(small_data, out, **flags):
    options = {
        "model": str(EXAMPLE),
        "data": [str(small_data / "train.jsonl")],
        "eval_data": [str(small_data / "held_out.jsonl")],
        "out": str(out),
        "steps": 2,
        "questions": 6,
        "group_size": 4,
        "eval_samples": 1,
        "eval_every": 0,
        "max_new_tokens": 120,
        **flags,
    }
    if options.get("method") == "sft":
        del options["group_size"]  # one anchor each
    return dagrpo.train(configure(**options))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


ALWAYS = {
    "no_signal", "masked_pairs", "anchored", "trained_sequences", "clip_low", "clip_high", "entropy", "kl", "grad_norm",
    "tokens_per_s/rollout", "tokens_per_s/train", "seconds/rollout", "seconds/verify", "seconds/score", "seconds/train",
    "peak_memory_gb", "loss", "learning_rate", "masked_tokens",
}  # fmt: skip
SAMPLED = {"reward", "solve_none", "solve_all", "length/mean", "length/max", "truncated"}
RUNS = {
    "dagrpo": {},
    "grpo": {"method": "grpo"},
    "dr_grpo": {"method": "dr_grpo"},
    "dapo": {"method": "dapo"},
    "luffy": {"method": "luffy"},
    "sft": {"method": "sft"},
    "token scorer": {"scorer": "token"},
    "state scorer": {"scorer": "state"},
    "pairs by rule (5)": {"rectify": "pair"},
    "tokens masked": {"rectify": "token"},
    "tokens masked, state scorer": {"rectify": "token", "scorer": "state"},
    "no mask": {"rectify": "none"},
    "no mask, no witness": {"rectify": "none", "scorer": "token"},
    "no anchors": {"anchors": None},
    "plain anchors, two updates, kl": {"anchor_objective": "sft", "updates": 2, "kl": 0.1},
}


@pytest.mark.parametrize(("flags", "kinds"), [({}, [False, True, True]), ({"metric": "gradient"}, [False] * 3)])
def test_pairs_are_compared_by_what_the_optimizer_has_learned_from_its_first_step_on(
    small_data, tmp_path, monkeypatch, flags, kinds
):
    """P of AdamW's own second moments, and its momentum, whose weight is of the loss of that step."""
    seen, plain = [], scoring.rectify
    monkeypatch.setattr(scoring, "rectify", lambda *given: seen.append((given[1], given[-1])) or plain(*given))
    run(small_data, tmp_path, steps=3, **flags)
    assert [metric is not None for _, metric in seen] == kinds
    for rollouts, metric in seen:
        if metric is not None:
            assert metric.momentum.shape == (len(metric.rows), len(metric.columns)) and metric.momentum.any()
            assert metric.momentum_weight == pytest.approx(9 * 120 * len(rollouts.texts))  # β1 = 0.9, constant norm


@pytest.mark.parametrize("name", RUNS)
def test_every_method_runs_to_the_end(name, small_data, tmp_path, capsys):
    result = run(small_data, tmp_path, **RUNS[name])
    records = read(tmp_path / "metrics.jsonl")
    assert set(records[0]) == {"memory_estimate_gb"} and records[0]["memory_estimate_gb"]["total"] > 0
    assert [record["step"] for record in records[1:]] == [1, 2]
    for record in records[1:]:
        assert set(record) >= (ALWAYS if name == "sft" else ALWAYS | SAMPLED)
        assert all(math.isfinite(value) for value in record.values()) and record["bad_updates"] == 0
        assert not record["trained_sequences"] or 0 <= record["padding"] < 1
        assert record.get("sampler_gap", 0.0) < 1e-4, "sampler and trainer compute the same policy"
    sizes = {len(sample["answers"]) for sample in read(tmp_path / "samples.jsonl")}
    assert sizes == ({1} if name == "sft" else {4})
    first = read(tmp_path / "metrics.jsonl")[1]
    if name == "luffy" or name == "sft":
        assert first["anchored"] == 1 and first["trained_sequences"] == 1
    elif name in ("grpo", "dr_grpo", "dapo", "no anchors"):
        assert first["anchored"] == 0
    else:
        assert 0 < first["anchored"] < 1 and 0 < first["anchor_prob"] <= 1
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 2
    assert [record["step"] for record in read(tmp_path / "evaluations.jsonl")] == [0, 2]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert sum(parameter.numel() for parameter in trained.parameters()) > 900_000
    out = capsys.readouterr().out
    assert out.count("step ") >= 2 and "level" in out and str(tmp_path) in out
    assert set(result["before"]["levels"]) == {"1", "2", "3", "4", "5", "6"}


def test_samples_mark_anchors_and_show_distinctiveness(small_data, tmp_path):
    run(small_data, tmp_path, steps=1)
    samples = read(tmp_path / "samples.jsonl")
    anchored = [answer for sample in samples for answer in sample["answers"] if answer["anchor"]]
    solutions = {json.loads(line)["solution"] for line in (small_data / "train.jsonl").read_text().splitlines()}
    assert anchored and all(answer["text"] in solutions and answer["reward"] == 1 for answer in anchored)
    scored = [sample for sample in samples if sample["distinctiveness"]]
    assert scored and all(len(row) == 4 for sample in scored for row in sample["distinctiveness"])
    assert all(abs(sum(answer["advantage"] for answer in sample["answers"])) < 1e-3 for sample in samples)


def test_masked_answers_are_never_run_through_the_model_again(small_data, tmp_path, monkeypatch, capsys):
    """At threshold 1 every pair is masked: no log-probabilities are computed, and the weights stay as they are."""
    monkeypatch.setattr(rollout, "token_logps", lambda *a, **k: pytest.fail("an answer without advantage was run"))
    run(small_data, tmp_path, steps=1, threshold=1.0)
    record = read(tmp_path / "metrics.jsonl")[1]
    assert record["masked_pairs"] == 1 and record["no_signal"] == 1 and record["trained_sequences"] == 0
    assert "nothing to learn: " in capsys.readouterr().out
    start, end = (rollout.load(str(path), "cpu")[0] for path in (EXAMPLE, tmp_path / "model"))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))


def test_only_answers_with_an_advantage_are_trained_on(small_data, tmp_path, monkeypatch):
    rows = []
    plain = rollout.token_logps
    monkeypatch.setattr(rollout, "token_logps", lambda m, ids, *a, **k: rows.append(len(ids)) or plain(m, ids, *a, **k))
    run(small_data, tmp_path, steps=1, method="grpo")
    record = read(tmp_path / "metrics.jsonl")[1]
    assert sum(rows) == round(24 * record["trained_sequences"]) < 24


@pytest.mark.parametrize("scorer", scoring.BY_GRADIENT)
def test_answers_with_withheld_tokens_are_trained_on_and_hidden_states_are_gone_by_then(
    small_data, tmp_path, monkeypatch, scorer
):
    """A completion whose pairs balance out has Ã = 0, and still an advantage at the tokens that are left."""
    seen = []
    update, rectify = dagrpo.update, scoring.rectify

    def balanced(model, rollouts, rewards, how, *rest):
        assert any(state is not None for state in rollouts.hidden), "kept for scoring"
        rectified = rectify(model, rollouts, rewards, how, *rest)
        withheld = torch.zeros_like(rectified.withheld)
        withheld[1, rollouts.prediction_mask[1]] = 0.5
        return replace(rectified, advantages=torch.zeros_like(rectified.advantages), withheld=withheld)

    def watched(learner, rollouts, token_advantages, trained, *rest):
        seen.append((trained.nonzero().flatten().tolist(), rollouts.hidden))
        return update(learner, rollouts, token_advantages, trained, *rest)

    monkeypatch.setattr(scoring, "rectify", balanced)
    monkeypatch.setattr(dagrpo, "update", watched)
    run(small_data, tmp_path, scorer=scorer)
    for trained, hidden in seen:
        assert trained == [1] and all(state is None for state in hidden)
    assert seen


def test_same_seed_repeats_the_run(small_data, tmp_path):
    for name in ("a", "b"):
        run(small_data, tmp_path / name, seed=3)
    first, second = (read(tmp_path / name / "metrics.jsonl") for name in ("a", "b"))
    for a, b in zip(first[1:], second[1:], strict=True):
        assert (a["reward"], a["loss"], a["grad_norm"]) == (b["reward"], b["loss"], b["grad_norm"])


def test_reward_up_means_log_probability_up(small_data, tmp_path):
    """--reward prefers answers that are written out: after two steps their likelihood is higher, others' lower."""
    reward = tmp_path / "mine.py"
    reward.write_text(
        "def written_out(texts, questions):\n    return [2.0 if ' = ' in text else -1 for text in texts]\n"
    )
    asked = questions.read_questions([str(small_data / "train.jsonl")])
    model, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    sampled = rollout.sample(
        model,
        tokenizer,
        [rollout.render_prompt(tokenizer, question["problem"]) for question in asked],
        16,
        max_new_tokens=120,
        seed=99,
    )
    written = torch.tensor([" = " in text for text in sampled.texts])
    assert 8 < int(written.sum()) < 88
    run(
        small_data,
        tmp_path / "run",
        reward=f"{reward}:written_out",
        method="grpo",
        group_size=16,
        learning_rate=1e-4,
        warmup=0,
    )
    trained, _ = rollout.load(str(tmp_path / "run" / "model"), "cpu")
    with torch.no_grad():
        before, after = (rollout.token_logps(policy, *sampled.tokens)[0] for policy in (model, trained))
    change = (after - before).sum(1)
    assert float(change[written].mean()) > 0 > float(change[~written].mean())


def test_what_right_means_reaches_every_place(small_data, tmp_path, capsys):
    """With the README's reward every step had `solve_all` 1.0 and no anchor, and pass@2 was 100 % at 3.9 % accuracy."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import questions\n\ndef with_bonus(texts, of_texts):\n"
        "    right = questions.correctness(texts, of_texts)\n"
        "    return [r + 1 / (2 + len(t)) for t, r in zip(texts, right)]\n"
    )
    result = run(small_data, tmp_path / "a", steps=1, reward=f"{file}:with_bonus", right_at=1.0)
    record = read(tmp_path / "a" / "metrics.jsonl")[1]
    assert record["solve_all"] < 1 and record["anchored"] > 0
    assert result["before"]["pass@1"] < 0.9 and result["before"]["reward"] > result["before"]["accuracy"]
    capsys.readouterr()
    result = run(small_data, tmp_path / "b", steps=1, reward=f"{file}:with_bonus", anchors=None)
    record, printed = read(tmp_path / "b" / "metrics.jsonl")[1], capsys.readouterr().out
    assert "solve_all" not in record and "accuracy" not in result["before"] and "pass@1" not in result["before"]
    assert "held out at step 0: reward " in printed and "%" not in printed.split("held out at step 0")[1].split("\n")[0]


def test_a_tokenizer_without_an_end_is_refused(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.task.stop_ids", lambda model, tokenizer: [])
    with pytest.raises(questions.DataError, match="no completion would ever end"):
        run(small_data, tmp_path)


def test_data_without_solutions_trains_without_anchors(small_data, tmp_path, capsys):
    """The commonest data of all: it ended in an error, after the model was loaded."""
    lines = [json.loads(line) for line in (small_data / "train.jsonl").read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({**line, "solution": None}) + "\n" for line in lines))
    run(small_data, tmp_path / "run", steps=1, data=[str(bare)])
    assert "no question has a `solution`: training without anchors" in " ".join(capsys.readouterr().out.split())
    assert read(tmp_path / "run" / "metrics.jsonl")[1]["anchored"] == 0
    for method in ("luffy", "sft"):
        with pytest.raises(questions.DataError, match="no question has a `solution`, and this method learns from them"):
            run(small_data, tmp_path / method, data=[str(bare)], method=method)


def test_warm_up_is_logged_as_it_was_used(small_data, tmp_path):
    run(small_data, tmp_path, learning_rate=4e-5, warmup=4)
    assert [r["learning_rate"] for r in read(tmp_path / "metrics.jsonl")[1:]] == pytest.approx([1e-5, 2e-5])


def test_top_p_below_one_is_warned_of(small_data, tmp_path, capsys):
    run(small_data, tmp_path, steps=1, top_p=0.9, method="grpo")
    assert "--top-p 0.9: completions come from a narrower policy" in capsys.readouterr().out


def test_the_loss_by_itself_has_the_defaults_of_a_run():
    defaults = {item.name: item.default for item in fields(Config)}
    assert fields(Objective)
    for item in fields(Objective):
        assert item.default == defaults[item.name]


def test_imitated_anchors_count_alike_whatever_their_reward(small_data, tmp_path):
    """Their advantage is 1: the loss is the negative log-likelihood."""
    (tmp_path / "mine.py").write_text("def three(texts, questions):\n    return [3.0] * len(texts)\n")
    losses = []
    for name, flags in (("a", {}), ("b", {"reward": f"{tmp_path / 'mine.py'}:three", "right_at": 3.0})):
        run(small_data, tmp_path / name, method="sft", steps=1, **flags)
        losses.append(read(tmp_path / name / "metrics.jsonl")[1]["loss"])
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("flags", [{"kl": 0.1}, {"entropy_bonus": 0.1}], ids=["kl", "entropy"])
def test_completions_without_advantage_get_the_other_terms_of_the_loss(small_data, tmp_path, flags):
    """At threshold 1 every pair is masked."""
    run(small_data, tmp_path, steps=1, threshold=1.0, **flags)
    record = read(tmp_path / "metrics.jsonl")[1]
    assert record["no_signal"] == record["trained_sequences"] == 1.0


def test_the_update_gets_the_advantages_without_what_is_withheld(small_data, tmp_path, monkeypatch):
    found = []
    update, rectify = dagrpo.update, scoring.rectify

    def withholding(model, rollouts, rewards, how, *rest):
        rectified = rectify(model, rollouts, rewards, how, *rest)
        withheld = 0.25 * rollouts.prediction_mask
        found.append(rectified.advantages.flatten()[:, None] - withheld)
        return replace(rectified, withheld=withheld)

    def watched(learner, rollouts, token_advantages, *rest):
        found.append(token_advantages)
        return update(learner, rollouts, token_advantages, *rest)

    monkeypatch.setattr(scoring, "rectify", withholding)
    monkeypatch.setattr(dagrpo, "update", watched)
    run(small_data, tmp_path, steps=1)
    torch.testing.assert_close(*found)


def test_evaluations_between_start_and_end_come_as_often_as_asked_for(small_data, tmp_path):
    run(small_data, tmp_path, steps=3, eval_every=2, method="grpo", questions=1)
    assert [record["step"] for record in read(tmp_path / "evaluations.jsonl")] == [0, 2, 3]
