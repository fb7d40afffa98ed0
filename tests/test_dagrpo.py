"""Ratio (7), loss (8), the update, the flags: by hand, by autograd, and by spies on what is run."""

from __future__ import annotations

import inspect
import json
import math
import random
import re
from dataclasses import fields

import pytest
import torch
from conftest import random_model
from transformers import AutoModelForCausalLM

import anchors
import dagrpo
import rollout
from dagrpo import Config, configure
from flags import ConfigError, parse

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
NO_ANCHORS = torch.tensor([False, False])


def loss_of(logps, old_logps, advantages, anchor_mask=NO_ANCHORS, denominators=None, **options):
    denominators = torch.ones(2) if denominators is None else denominators
    return dagrpo.policy_loss(logps, old_logps, torch.tensor(advantages), MASK, anchor_mask, denominators, **options)


# --- (7) ---------------------------------------------------------------------------------------------------------


def test_shaped_probability_at_gamma():
    """f(γ) = 1/2, and its slope in log π is γπ/(π+γ)² = 1/4, where it is steepest."""
    logps = torch.tensor([math.log(0.1)], requires_grad=True)
    value = dagrpo.shaped_probability(logps, 0.1)
    (slope,) = torch.autograd.grad(value.sum(), logps)
    assert value.item() == pytest.approx(0.5) and slope.item() == pytest.approx(0.25)
    others = torch.tensor([0.01, 0.05, 0.2, 0.9, 1.0]).log().requires_grad_()
    (slopes,) = torch.autograd.grad(dagrpo.shaped_probability(others, 0.1).sum(), others)
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
    assert counted["own_tokens"] == 3
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
        entropy_bonus=0.1,
    )
    k3 = 2 - math.log(2) - 1
    assert loss.item() == pytest.approx(5 * (0.5 * k3 - 0.1 * 0.7), rel=1e-5)
    assert counted["kl"] == pytest.approx(5 * k3, rel=1e-5) and counted["entropy"] == pytest.approx(3.5)


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


# --- one update --------------------------------------------------------------------------------------------------


def small_rollouts(model, tokenizer, questions=3, size=4):
    prompts = ["1+1?\n", "what is 2+2?\n", "7\n"][:questions]
    return rollout.sample(model, tokenizer, prompts, size, max_new_tokens=20, seed=0)


def gradients_of(model, rollouts, advantages, rows, budget, **flags):
    config = Config(model="m", data=["d"], token_budget=budget, **flags)
    denominators = dagrpo.loss_denominators(rollouts.lengths, config.loss_norm, 20)
    reference = random_model(seed=9) if config.kl else None
    sums = dagrpo.accumulate_gradients(model, reference, rollouts, advantages, rows, denominators, config, "update")
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return sums, gradients


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_loss_and_gradient_do_not_change_with_the_micro_batch_split(model, tokenizer, norm):
    rollouts = small_rollouts(model, tokenizer)
    rollouts.anchor_mask[2] = True
    advantages, rows = torch.randn(12), torch.tensor([0, 1, 2, 4, 5, 7, 10, 11])
    options = {"loss_norm": norm, "kl": 0.1, "entropy_bonus": 0.01}
    whole, expected = gradients_of(model, rollouts, advantages, rows, 10_000, **options)
    for budget in (1, 60, 100):
        sums, gradients = gradients_of(model, rollouts, advantages, rows, budget, **options)
        del sums["model_tokens"], sums["padded_tokens"]  # prompts are shared, and rows padded, as the budget allows
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


def test_every_option_of_the_loss_reaches_it(model, tokenizer):
    """All options away from their defaults: the loss of the update equals `policy_loss` called by hand."""
    rollouts = small_rollouts(model, tokenizer)
    rollouts.anchor_mask[[1, 6]] = True
    rollouts.logps = rollouts.logps + 0.5 * torch.randn_like(rollouts.logps)
    advantages, rows = torch.randn(12), torch.arange(12)
    options = {
        "clip_low": 0.1,
        "clip_high": 0.3,
        "gamma": 0.5,
        "kl": 0.2,
        "entropy_bonus": 0.05,
    }
    for objective in ("shaped", "sft"):
        flags = {**options, "anchor_objective": objective, "temperature": 0.7, "updates": 2, "loss_norm": "constant"}
        sums, _ = gradients_of(model, rollouts, advantages, rows, 100_000, **flags)
        part = rollouts.rows(torch.arange(12))
        batch = (part.input_ids, part.attention_mask, part.response_mask)
        logps, entropies = rollout.token_logps(model, *batch, temperature=0.7)
        reference, _ = rollout.token_logps(random_model(seed=9), *batch, temperature=0.7)
        loss, counted = dagrpo.policy_loss(
            logps,
            part.logps[:, 1:],
            advantages,
            part.response_mask[:, 1:],
            part.anchor_mask,
            torch.full((12,), 20.0 * 12),
            anchor_objective=objective,
            reference_logps=reference,
            entropies=entropies,
            **options,
        )
        assert sums["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert counted["clip_low"] > 0 and counted["clip_high"] > 0 and sums["clip_low"] == counted["clip_low"]


def test_later_updates_of_a_batch_use_the_old_log_probabilities(model, tokenizer):
    """Where every token was sampled at 1/1.1 of today's probability, the ratio is 1.1, and so is every gradient."""
    rollouts = small_rollouts(model, tokenizer)
    advantages, rows = torch.randn(12), torch.arange(12)
    _, first = gradients_of(model, rollouts, advantages, rows, 1_000)
    rollouts.logps = rollouts.logps - math.log(1.1)
    _, later = gradients_of(model, rollouts, advantages, rows, 1_000, updates=2, clip_low="none", clip_high="none")
    for one, other in zip(first, later, strict=True):
        torch.testing.assert_close(1.1 * one, other, atol=1e-4, rtol=1e-3)


def test_each_update_of_a_batch_takes_its_share_of_the_questions(model, tokenizer, monkeypatch):
    """Three questions in two updates: rows 0 to 7, then 8 to 11; denominators count the share's own tokens."""
    rollouts = small_rollouts(model, tokenizer)
    seen = []

    def spy(model, reference, rollouts, advantages, rows, denominators, config, label):
        seen.append((rows.tolist(), denominators[rows].unique().tolist()))
        return {}

    monkeypatch.setattr(dagrpo, "accumulate_gradients", spy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    trained = torch.tensor([True] * 10 + [False] * 2)
    config = Config(model="m", data=["d"], updates=2, loss_norm="token")
    model.get_output_embeddings().weight.grad = torch.ones(64, 32)
    dagrpo.update(model, None, optimizer, schedule, rollouts, torch.ones(3, 4), trained, config, "update")
    assert all(parameter.grad is None for parameter in model.parameters())
    lengths = rollouts.lengths
    assert seen == [
        (list(range(8)), [float(lengths[:8].sum())]),
        ([8, 9], [float(lengths[8:].sum())]),
    ]


def test_gradients_are_scaled_down_to_the_largest_norm_allowed(model, tokenizer):
    """One SGD step at rate 1 moves the weights by just that norm."""
    rollouts = small_rollouts(model, tokenizer)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    config = Config(model="m", data=["d"], max_grad_norm=1e-2, loss_norm="token")
    torch.manual_seed(0)
    arguments = (rollouts, torch.randn(3, 4), torch.ones(12, dtype=torch.bool), config, "update")
    sums = dagrpo.update(model, None, optimizer, schedule, *arguments)
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert sums["grad_norm"] > 0.1 and float((after - before).norm()) == pytest.approx(1e-2, rel=1e-2)


def test_another_step_or_seed_samples_other_answers_to_the_same_question(model, tokenizer):
    row = {"problem": "1+1?", "answer": "2"}
    texts = []
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        config = Config(model="m", data=["d"], anchors="none", questions=1, group_size=2, max_new_tokens=20, seed=seed)
        _, rollouts, _, _ = dagrpo.collect(
            model, tokenizer, iter([row]), anchors.Anchors(), anchors.correctness, config, step, {}
        )
        texts.append(tuple(rollouts.texts))
    assert texts[0] == texts[3] and len(set(texts)) == 3


def test_groups_without_signal_give_way_to_new_questions(model, tokenizer):
    """Dynamic sampling: of three groups the two without signal are replaced, questions and rewards with them."""
    rows = [{"problem": f"{n}+{n}?", "answer": "1"} for n in range(9)]
    asked = []

    def reward(texts, questions):
        """Mixed rewards for every third question, equal ones for the others."""
        asked.extend(row["problem"] for row in questions[::2])
        return [float(int(row["problem"][0]) % 3 == 1 and i % 2 == 0) for i, row in enumerate(questions)]

    config = Config(
        model="m", data=["d"], anchors="none", questions=3, group_size=2, max_new_tokens=8, resample=3, scorer="none"
    )
    batch, rollouts, rewards, metrics = dagrpo.collect(
        model, tokenizer, iter(rows), anchors.Anchors(), reward, config, 1, {}
    )
    # 3 and 4 come for 0 and 2, 5 for 3, 6 for 5: three rounds, and the last group is still without signal.
    assert asked == ["0+0?", "1+1?", "2+2?", "3+3?", "4+4?", "5+5?", "6+6?"]
    assert [row["problem"] for row in batch] == ["6+6?", "1+1?", "4+4?"]
    assert rewards.tolist() == [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    prompts = rollout.token_lists(rollouts.attention_mask & ~rollouts.response_mask, rollouts.input_ids)
    assert [tokenizer.decode(ids)[0] for ids in prompts] == ["6", "6", "1", "1", "4", "4"]
    assert metrics["sampled_tokens"] > int(rollouts.lengths.sum()) and metrics["solve_none"] == pytest.approx(2 / 3)


def test_fine_tuning_raises_the_likelihood_of_the_solutions(small_data, tmp_path):
    questions = anchors.read_questions([str(small_data / "train.jsonl")])
    model, tokenizer = rollout.load(str(dagrpo.EXAMPLE), "cpu")
    known = anchors.load(questions, tokenizer=tokenizer)
    placed, _ = anchors.only(model, tokenizer, questions, known, random.Random(0))
    run(small_data, tmp_path, method="sft", learning_rate=1e-4, warmup=0)
    trained, _ = rollout.load(str(tmp_path / "model"), "cpu")
    arguments = (placed.input_ids, placed.attention_mask, placed.response_mask)
    with torch.no_grad():
        change = rollout.token_logps(trained, *arguments)[0] - rollout.token_logps(model, *arguments)[0]
    assert float(change.sum()) > 0


def test_old_logps_of_several_updates_are_those_of_the_training_pass(model, tokenizer):
    rollouts = small_rollouts(model, tokenizer)
    kept = rollouts.logps.clone()
    trained = torch.arange(12) % 3 != 0
    config = Config(model="m", data=["d"], token_budget=64, updates=2)
    old = dagrpo.old_logps(model, rollouts, trained, config)
    torch.testing.assert_close(old, kept, atol=1e-4, rtol=1e-4)
    assert torch.equal(old[~trained], kept[~trained])


# --- the mask of a batch -----------------------------------------------------------------------------------------


def test_groups_of_equal_rewards_are_not_scored(model, tokenizer, monkeypatch):
    """Their advantages are 0 whatever the mask, so their gradients are never computed."""
    rollouts = small_rollouts(model, tokenizer)
    rewards = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    scored = []
    plain = dagrpo.scoring.gradient_gram
    monkeypatch.setattr(dagrpo.scoring, "gradient_gram", lambda *a, **k: scored.append(len(a[1])) or plain(*a, **k))
    config = Config(model="m", data=["d"], threshold=1.0)
    mask, d, _ = dagrpo.rectify(model, rollouts, rewards, config)
    assert scored == [4]
    assert d.isnan().all(dim=(1, 2)).tolist() == [True, False, True]
    assert mask[[0, 2]].all() and not mask[1].all()
    mask, d, _ = dagrpo.rectify(model, rollouts, rewards, Config(model="m", data=["d"], scorer="none"))
    assert mask.all() and d.isnan().all() and scored == [4]


@pytest.mark.parametrize("scorer", ["gradient", "state", "token"])
def test_mask_of_a_batch_is_the_threshold_on_its_distinctiveness(model, tokenizer, scorer):
    rollouts = small_rollouts(model, tokenizer)
    rewards = (torch.arange(12) % 3 == 0).float().view(3, 4)
    config = Config(model="m", data=["d"], scorer=scorer, threshold=0.5)
    mask, d, advantages = dagrpo.rectify(model, rollouts, rewards, config)
    expected = dagrpo.scoring.distinctiveness(
        scorer, model, rollouts.input_ids, rollouts.attention_mask, rollouts.response_mask, 4
    )
    torch.testing.assert_close(d, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(mask, d >= 0.5) and mask.any() and not mask.all()
    torch.testing.assert_close(advantages, dagrpo.scoring.rectified_advantages(rewards, d >= 0.5))


def colliding_rollouts(model, tokenizer, anchors=(2, 7)):
    """Three groups of four answers that share text in part, whole, and twice over, so that some pairs displace."""
    torch.manual_seed(1)
    answers = []
    for _ in range(3):
        base, other = torch.randint(3, 64, (5,)).tolist(), torch.randint(3, 64, (4,)).tolist()
        answers += [[*base, 1], [*base, *base, 1], [*other, 1], [*base[:3], *other, 1]]
    answers = [rollout.Answer([5, 6, 7], answer, is_anchor=i in anchors) for i, answer in enumerate(answers)]
    rewards = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]])
    return rollout.assemble(model, tokenizer, answers, 4), rewards


def scored_parameter(model, scorer):
    """What the scorer's gradients are with respect to: the head's weight, or a map before it that is 1."""
    if scorer == "gradient":
        return model.get_output_embeddings().weight
    identity = torch.eye(model.config.hidden_size, requires_grad=True)
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0] @ identity.T,))
    return identity


@pytest.mark.parametrize("scorer", dagrpo.scoring.BY_GRADIENT)
@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_auto_uses_pushes_of_shaped_anchors_in_the_normalisation_of_the_loss(model, tokenizer, norm, scorer):
    """The mask equals rule (5) on autograd's own gradients, each divided by its length under `sequence`."""
    rollouts, rewards = colliding_rollouts(model, tokenizer)
    config = Config(model="m", data=["d"], scorer=scorer, threshold="auto", loss_norm=norm, gamma=0.1)
    mask, _, _ = dagrpo.rectify(model, rollouts, rewards, config)
    head = scored_parameter(model, scorer)
    gradients, pushes = [], []
    for i in range(12):
        ids = rollouts.input_ids[i][rollouts.attention_mask[i]]
        answer = rollouts.response_mask[i][rollouts.attention_mask[i]][1:]
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)[answer]
        f = dagrpo.shaped_probability(logps, 0.1) if rollouts.anchor_mask[i] else logps
        for value, store in ((logps.sum(), gradients), (f.sum(), pushes)):
            length = len(logps) if norm == "sequence" else 1
            store.append(torch.autograd.grad(value / length, head, retain_graph=True)[0].flatten())
    for p in range(3):
        for i in range(4):
            for j in range(4):
                if rewards[p, i] > rewards[p, j]:
                    g, own, other = gradients[4 * p + i], pushes[4 * p + i], pushes[4 * p + j]
                    assert bool(mask[p, i, j]) == bool(g @ other <= g @ own) == bool(mask[p, j, i])
    assert not mask.all() and mask.any()


@pytest.mark.parametrize("scorer", dagrpo.scoring.BY_GRADIENT)
@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_tokens_are_withheld_until_no_pair_displaces_its_better_answer(model, tokenizer, norm, scorer):
    """Against autograd: of each pair that rule (5) masks, the better answer's likelihood no longer falls."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=(0, 1, 2))
    flags = {"model": "m", "data": ["d"], "scorer": scorer, "loss_norm": norm, "gamma": 0.1}
    auto = Config(**flags, threshold="auto")
    mask, _, _ = dagrpo.rectify(model, rollouts, rewards, auto)
    assert not rollouts.withheld.any(), "pairs are masked whole"
    config = Config(**flags, rectify="token")
    kept, _, advantages = dagrpo.rectify(model, rollouts, rewards, config)
    assert kept.all()
    torch.testing.assert_close(advantages, dagrpo.scoring.rectified_advantages(rewards, kept))
    displaced = ~mask & (rewards[:, :, None] > rewards[:, None, :])
    worse = displaced.any(1).flatten()
    assert torch.equal((rollouts.withheld != 0).any(1), worse) and worse.any()
    anchors_tested = 0  # shaped anchors as the worse answer
    head = scored_parameter(model, scorer)
    deviation = rewards.std(dim=1, correction=0)
    for p, i, j in displaced.nonzero().tolist():
        if displaced[p, :, j].sum() > 1:
            continue  # what is withheld from j is the sum over several better answers
        gradients = []
        for row in (4 * p + i, 4 * p + j):
            ids = rollouts.input_ids[row][rollouts.attention_mask[row]]
            answer = rollouts.response_mask[row][rollouts.attention_mask[row]][1:]
            logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[answer, 0]
            objective = dagrpo.shaped_probability(logps, 0.1) if rollouts.anchor_mask[row] else logps
            withheld = rollouts.withheld[row][rollouts.response_mask[row]]
            still = (withheld == 0).float()
            length = len(logps) if norm == "sequence" else 1
            values = [logps.sum() / length, objective.sum() / length, (objective * still).sum() / length]
            values += [value / length for value in objective]
            gradients.append([torch.autograd.grad(v, head, retain_graph=True)[0].flatten() for v in values])
            if row == 4 * p + j:  # what a token loses is this pair's part of its advantage
                share = (rewards[p, j] - rewards[p, i]) / (4 * (deviation[p] + 1e-6))
                torch.testing.assert_close(withheld[withheld != 0].unique(), share[None])
        (better, own, *_), (_, whole, left, *by_token) = gradients
        assert better @ whole > better @ own >= better @ left - 1e-4
        least = min(better @ by_token[t] for t in withheld.nonzero()[:, 0])
        assert better @ left + least > better @ own, "one token less, and the pair displaces"
        anchors_tested += int(rollouts.anchor_mask[4 * p + j])
    assert anchors_tested or norm == "sequence", "a longer answer's push is smaller there, and collides with none"


def test_what_is_withheld_for_several_better_answers_adds_up(model, tokenizer):
    """Two equal right answers collide with one wrong answer at the same tokens."""
    base = [9, 20, 33, 14, 41]
    answers = [[*base, 1], [*base, 1], [*base, *base, 1]]
    found = []
    for rewards in ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]):
        rollouts = rollout.assemble(model, tokenizer, [rollout.Answer([5, 6, 7], answer) for answer in answers], 3)
        config = Config(model="m", data=["d"], rectify="token", scale="none")
        dagrpo.rectify(model, rollouts, torch.tensor([rewards]), config)
        found.append(rollouts.withheld[2])
    assert found[1].any()
    torch.testing.assert_close(found[0], 2 * found[1])


def test_withheld_advantage_reaches_the_gradient_of_the_loss(model, tokenizer):
    """Withholding from two tokens equals the loss with those tokens' advantages lowered by hand."""
    rollouts = small_rollouts(model, tokenizer)
    rows, advantages = torch.arange(12), torch.randn(12)
    row = int(rollouts.lengths.argmax())
    places = rollouts.response_mask[row].nonzero()[:2, 0]
    _, plain = gradients_of(model, rollouts, advantages, rows, 1_000, loss_norm="token")
    rollouts.withheld[row, places] = 0.7
    _, withheld = gradients_of(model, rollouts, advantages, rows, 1_000, loss_norm="token")
    logps, _ = rollout.token_logps(model, rollouts.input_ids, rollouts.attention_mask, rollouts.response_mask)
    taken = 0.7 * logps[row, places - 1].sum() / rollouts.lengths.sum()  # at ratio 1, ∂ρ = ∂log π
    expected = torch.autograd.grad(taken, list(model.parameters()))
    for before, after, difference in zip(plain, withheld, expected, strict=True):
        torch.testing.assert_close(after - before, difference, atol=1e-5, rtol=1e-3)


# --- flags -------------------------------------------------------------------------------------------------------


def test_methods_are_the_rows_of_the_table():
    def cells(method):
        c = configure(model="m", data=["d"], method=method)
        return (c.scorer, c.anchors, c.every_group, c.scale, c.loss_norm, c.clip_low, c.clip_high, c.resample)

    assert cells("dagrpo") == ("gradient", "data", False, "std", "constant", 0.2, 0.2, 0)
    assert cells("grpo") == ("none", "none", False, "std", "token", 0.2, 0.2, 0)
    assert cells("dr_grpo") == ("none", "none", False, "none", "constant", 0.2, 0.2, 0)
    assert cells("dapo") == ("none", "none", False, "std", "token", 0.2, 0.28, 3)
    assert cells("luffy") == ("none", "data", True, "none", "constant", "none", "none", 0)
    assert configure(model="m", data=["d"], method="luffy").entropy_bonus == 0.001
    assert configure(model="m", data=["d"], method="luffy").gamma == 0.1  # of the paper
    assert configure(model="m", data=["d"], method="dagrpo").gamma == 0.03
    sft = configure(model="m", data=["d"], method="sft")
    assert (sft.anchor_objective, sft.loss_norm) == ("sft", "token")


def test_the_loss_by_itself_has_the_defaults_of_a_run():
    defaults = {item.name: item.default for item in fields(Config)}
    options = inspect.signature(dagrpo.policy_loss).parameters
    for name in ("clip_low", "clip_high", "gamma", "anchor_objective", "kl", "entropy_bonus"):
        assert options[name].default == defaults[name]


def test_single_flags_override_the_method_and_the_example(tmp_path):
    assert configure(model="m", data=["d"], method="grpo", scorer="token").threshold == 0.1
    assert configure(model="m", data=["d"], scorer="state").threshold == 0.2
    assert configure(model="m", data=["d"], method="dapo", clip_high=0.5).clip_high == 0.5
    example = configure(steps=3)
    assert example.steps == 3 and example.model.startswith(str(dagrpo.EXAMPLE)) and example.data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--group-sise 4", "--group-sise: there is no such flag. Did you mean --group-size?"),
        ("--wombat", "--wombat: there is no such flag."),
        ("--threshold 1.5", "--threshold 1.5: it must be a number of at least 0 and at most 1, or the word auto."),
        ("--threshold most", "--threshold most: it must be"),
        ("--steps 2.5", "--steps 2.5: it must be a whole number of at least 1."),
        ("--steps nan", "--steps nan: it must be a whole number"),
        ("--learning-rate -1", "--learning-rate -1.0: it must be a number of at least 0."),
        ("--temperature 0", "--temperature 0.0: it must be a number above 0."),
        ("--clip-high off", "--clip-high off: it must be a number of at least 0, or the word none."),
        ("--scorer judgement", "--scorer judgement: it must be one of gradient, state, token, none."),
        ("--method ppo", "--method ppo: it must be one of dagrpo, grpo, dr_grpo, dapo, luffy, sft."),
        ("--threshold auto --scorer token", "--threshold auto: it needs gradient norms"),
        ("--rectify token --scorer token", "--rectify token: it masks tokens by rule (5)"),
        ("--rectify token --threshold 0.3", "--rectify token: it masks tokens by rule (5)"),
        ("--rectify word", "--rectify word: it must be one of pair, token."),
        ("--threshold auto --method grpo", "--threshold auto: it needs gradient norms"),
        ("--threshold 0.5 --method grpo", "--threshold 0.5: with --scorer none no pair is masked"),
        ("--group-size 1", "--group-size 1: it must be at least 2"),
        ("--method sft --anchors none", "--anchors none: the method sft trains on anchors only"),
        ("--method luffy --anchors none", "--anchors none: with an anchor in every group"),
        ("--method luffy --anchors-per-group 8", "--anchors-per-group 8: it must be less than --group-size."),
        ("--updates 30", "--updates 30: it must be at most --questions (24)."),
        ("--device cuda:9", "--device cuda:9: PyTorch finds no GPU here"),
        ("--model m", "--data is missing"),
        ("--reward nowhere.py:f", "--reward nowhere.py:f: it must be file.py:function"),
        ("--anchors nowhere.jsonl", "--anchors nowhere.jsonl: it must be data, none, or a JSONL file that exists."),
        ("--data nowhere.jsonl", "--data nowhere.jsonl: there is no such file."),
    ],
)
def test_a_wrong_flag_stops_at_once_and_says_what_is_allowed(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rollout, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        dagrpo.main(arguments.split())
    assert str(stop.value).startswith(f"dagrpo.py: {message}")


def test_a_broken_anchor_line_stops_before_the_model_is_loaded(monkeypatch, tmp_path):
    anchor_file = tmp_path / "anchors.jsonl"
    anchor_file.write_text('{"problem": "1+2?"}\n')
    monkeypatch.setattr(rollout, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=r"anchors\.jsonl:1: the field `answer` is missing"):
        dagrpo.main(["--anchors", str(anchor_file)])


def test_a_broken_data_line_stops_before_the_model_is_loaded(monkeypatch, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?"}\n')
    monkeypatch.setattr(rollout, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=r"data\.jsonl:2: the field `answer` is missing"):
        dagrpo.main(["--data", str(data)])


def test_help_gives_every_flag_its_reason(capsys):
    with pytest.raises(SystemExit):
        parse(Config, "text", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for item in fields(Config):
        reason = " ".join(item.metadata["reason"].split())
        assert re.search(f"--{item.name.replace('_', '-')}[ ,]", shown) and reason in shown
    for heading in ("what:", "method:", "sampling:", "optimization:", "evaluation:"):
        assert heading in shown


def test_a_run_folder_is_never_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="there is a run in this folder already"):
        dagrpo.new_run_folder(configure(out=str(tmp_path)))


# --- whole runs on the embedded example --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A question of each level to train on, and another of each to hold out."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("train", "held_out"):
        lines = (dagrpo.EXAMPLE / f"{name}.jsonl").read_text().splitlines()
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:: len(lines) // 6][:6]) + "\n")
    return folder


def run(small_data, out, **flags):
    options = {
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
    "auto threshold": {"threshold": "auto"},
    "tokens masked": {"rectify": "token"},
    "tokens masked, state scorer": {"rectify": "token", "scorer": "state"},
    "no mask": {"scorer": "none"},
    "no anchors": {"anchors": "none"},
    "plain anchors, two updates, kl": {"anchor_objective": "sft", "updates": 2, "kl": 0.1},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_method_runs_to_the_end(name, small_data, tmp_path, capsys):
    result = run(small_data, tmp_path, **RUNS[name])
    records = read(tmp_path / "metrics.jsonl")
    assert set(records[0]) == {"memory_estimate_gb"} and records[0]["memory_estimate_gb"]["total"] > 0
    assert [record["step"] for record in records[1:]] == [1, 2]
    for record in records[1:]:
        assert set(record) >= (ALWAYS if name == "sft" else ALWAYS | SAMPLED)
        assert all(math.isfinite(value) for value in record.values())
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
    assert "nothing to learn in this step" in capsys.readouterr().out
    start, end = (rollout.load(str(path), "cpu")[0] for path in (dagrpo.EXAMPLE, tmp_path / "model"))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))


def test_only_answers_with_an_advantage_are_trained_on(small_data, tmp_path, monkeypatch):
    rows = []
    plain = rollout.token_logps
    monkeypatch.setattr(rollout, "token_logps", lambda m, ids, *a, **k: rows.append(len(ids)) or plain(m, ids, *a, **k))
    run(small_data, tmp_path, steps=1, method="grpo")
    record = read(tmp_path / "metrics.jsonl")[1]
    assert sum(rows) == round(24 * record["trained_sequences"]) < 24


@pytest.mark.parametrize("scorer", dagrpo.scoring.BY_GRADIENT)
def test_answers_with_withheld_tokens_are_trained_on_and_hidden_states_are_gone_by_then(
    small_data, tmp_path, monkeypatch, scorer
):
    """An answer whose pairs balance out has Ã = 0, and still an advantage at the tokens that are left."""
    seen = []
    update, rectify = dagrpo.update, dagrpo.rectify

    def balanced(model, rollouts, rewards, config):
        assert any(own is not None for own in rollouts.hidden), "kept for scoring"
        mask, d, advantages = rectify(model, rollouts, rewards, config)
        rollouts.withheld[1, rollouts.response_mask[1]] = 0.5
        return mask, d, torch.zeros_like(advantages)

    def watched(model, reference, optimizer, schedule, rollouts, advantages, trained, *rest):
        seen.append((trained.nonzero().flatten().tolist(), rollouts.hidden))
        return update(model, reference, optimizer, schedule, rollouts, advantages, trained, *rest)

    monkeypatch.setattr(dagrpo, "rectify", balanced)
    monkeypatch.setattr(dagrpo, "update", watched)
    run(small_data, tmp_path, scorer=scorer)
    for trained, hidden in seen:
        assert trained == [1] and all(own is None for own in hidden)
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
    reward.write_text("def written_out(texts, rows):\n    return [2.0 if ' = ' in text else -1 for text in texts]\n")
    questions = anchors.read_questions([str(small_data / "train.jsonl")])
    model, tokenizer = rollout.load(str(dagrpo.EXAMPLE), "cpu")
    sampled = rollout.sample(
        model,
        tokenizer,
        [rollout.render_prompt(tokenizer, row["problem"]) for row in questions],
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
    arguments = (sampled.input_ids, sampled.attention_mask, sampled.response_mask)
    with torch.no_grad():
        change = (rollout.token_logps(trained, *arguments)[0] - rollout.token_logps(model, *arguments)[0]).sum(1)
    assert float(change[written].mean()) > 0 > float(change[~written].mean())


def test_warm_up_is_logged_as_it_was_used(small_data, tmp_path):
    run(small_data, tmp_path, learning_rate=4e-5, warmup=4)
    assert [r["learning_rate"] for r in read(tmp_path / "metrics.jsonl")[1:]] == pytest.approx([1e-5, 2e-5])


def test_top_p_below_one_is_warned_of(small_data, tmp_path, capsys):
    run(small_data, tmp_path, steps=1, top_p=0.9, method="grpo")
    assert "--top-p 0.9: answers come from a narrower policy" in capsys.readouterr().out
