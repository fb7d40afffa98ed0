"""Arms of the study of regimes: what shrinks, what is drawn by chance, full gradients, and that an arm is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import small_rollouts

import rollout
import scoring
from harness.config import Config, configure
from scorers.gradients import Measure
from study import arms
from study.arms import ARMS, Arm

HOW = replace(Config().rectification, rule="none", gamma=None)


def test_a_worse_completion_loses_just_the_weight_that_displaces():
    """v_0 = 1 − 2·1 = −1 with A = (1, −1, 0): at −1/2 it is 0."""
    cross = torch.tensor([[[1.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 1.0]]])
    left = arms.shrunk(cross, torch.tensor([[1.0, -1.0, 0.0]]))
    torch.testing.assert_close(left, torch.tensor([[1.0, -0.5, 0.0]]))


def test_the_worse_completion_that_lowers_most_goes_first_and_may_lose_all():
    """v_0 = 1 − 3 − 0.5: without the first it is 0.5, although the second lowers too."""
    cross = torch.tensor([[[1.0, 3.0, 0.5], [3.0, 20.0, 0.0], [0.5, 0.0, 20.0]]])
    left = arms.shrunk(cross, torch.tensor([[1.0, -1.0, -1.0]]))
    assert left[0, 2] == -1.0 and -1 / 6 - 1e-6 <= left[0, 1] <= 0


def test_shrinking_ends_with_nothing_displaced_or_with_nobody_to_blame():
    torch.manual_seed(0)
    gradients = torch.randn(200, 8, 20) + torch.randn(200, 1, 20)
    cross = gradients @ gradients.transpose(1, 2)
    advantages = scoring.pair_advantages((torch.rand(200, 8) < 0.5).float()).sum(2)
    left = arms.shrunk(cross, advantages)
    assert scoring.displaced(cross, advantages, advantages).any()
    assert torch.equal(left[advantages >= 0], advantages[advantages >= 0])
    assert bool(((left <= 0) & (left >= advantages))[advantages < 0].all())
    still = scoring.displaced(cross, left, advantages)
    pull = (still.float()[:, None, :] @ cross).squeeze(1)
    assert bool(((left * pull)[left < 0] >= 0)[still.any(1)[:, None].expand(200, 8)[left < 0]].all())
    # one group with a right answer that another right one lowers: nobody among the wrong ones is to blame
    cross = torch.tensor([[[1.0, -3.0, 0.0], [-3.0, 9.5, 0.0], [0.0, 0.0, 1.0]]])
    advantages = torch.tensor([[0.5, 0.5, -1.0]])
    assert torch.equal(arms.shrunk(cross, advantages), advantages)


def test_shrinking_by_chance_takes_the_same_weight_from_others():
    advantages = torch.tensor([[1.0, -0.4, -0.6], [0.9, -0.3, -0.6]])
    found = [arms.shrunk_by_chance(advantages, 0.7, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for left in found:
        assert float((left - advantages).sum()) == pytest.approx(0.7)
        assert torch.equal(left[:, 0], advantages[:, 0]) and bool((left[:, 1:] <= 0).all())
    assert len({tuple(left.flatten().tolist()) for left in found}) > 5


def test_full_products_are_those_of_the_gradients_of_all_parameters(model, tokenizer):
    rollouts = small_rollouts(model, tokenizer)
    products = arms.full_products(model, rollouts, HOW, Measure())
    rows = []
    for i in range(12):
        one = rollouts.rows(torch.tensor([i]))
        logps, _ = rollout.token_logps(model, *one.tokens)
        model.zero_grad()
        logps.sum().backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    gradients = torch.stack(rows)
    torch.testing.assert_close(products.batch, gradients @ gradients.T, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(products.cross[1], products.batch[4:8, 4:8])
    # in a metric, weight by weight
    scales = [torch.rand_like(parameter) for parameter in model.parameters()]
    scaled = gradients * torch.cat([scale.flatten() for scale in scales])
    products = arms.full_products(model, rollouts, HOW, Measure(metric=scales))
    torch.testing.assert_close(products.batch, scaled @ scaled.T, rtol=1e-4, atol=1e-2)


def test_the_full_metric_is_what_adam_multiplies_a_gradient_with(model):
    """After one step v = (1 − β2) g²: P = 1/(√v + ε)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    assert arms.full_metric(model, optimizer) is None
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    for scale in arms.full_metric(model, optimizer):
        torch.testing.assert_close(scale**2, torch.full_like(scale, 1 / (0.001**0.5 * 3)), rtol=1e-4, atol=0)


def changed_by(change, rewards, mask=None, cross=None, seed=0):
    """The advantages of two groups of three under an arm, with given products."""
    groups, size = rewards.shape
    cross = torch.eye(size).expand(groups, size, size) if cross is None else cross
    batch = torch.block_diag(*cross)
    mask = torch.ones(groups, size, size, dtype=torch.bool) if mask is None else mask
    advantages = scoring.rectified_advantages(rewards, mask)
    better = advantages > 0
    witness = scoring.Witness(better, better, better, better, better)
    rectified = scoring.Rectified(mask, cross, advantages, torch.zeros(groups * size, 2), witness)
    products = scoring.Products(cross, cross, batch)
    return arms.changed(change, rectified, rewards, products, "std", torch.Generator().manual_seed(seed))


def test_positives_only_are_never_pushed_down():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = changed_by("positives", rewards).advantages
    plain = scoring.pair_advantages(rewards).sum(2)
    torch.testing.assert_close(found, plain.clamp(min=0))


def test_positives_only_are_what_the_flag_makes_of_negatives_without_weight(model, tokenizer):
    """The flag came after the arm, whose runs are kept."""
    rollouts, rewards = small_rollouts(model, tokenizer), (torch.arange(12) % 3 == 0).float().view(3, 4)
    by_flag = scoring.rectify(model, rollouts, rewards, replace(HOW, negative_weight=0.0))
    with arms.training_with(ARMS["positives"]):
        by_arm = scoring.rectify(model, rollouts, rewards, HOW)
    assert torch.equal(by_flag.advantages, by_arm.advantages) and bool((by_arm.advantages > 0).any())
    for name, value in vars(by_flag.witness).items():
        assert torch.equal(value, getattr(by_arm.witness, name))


def test_a_witness_tells_of_what_the_arm_left():
    """Pairs drawn by chance leave others displaced than those that the rule masks."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    collides = torch.eye(4)
    collides[0, 1] = collides[1, 0] = 9.0
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 0] = False
    lefts = {
        bool(changed_by("chance", rewards, mask=mask, cross=collides[None], seed=seed).witness.displaced_left[0, 0])
        for seed in range(20)
    }
    assert lefts == {True, False}
    found = changed_by("positives", rewards, cross=collides[None]).witness
    assert not found.displaced_left.any() and not found.displaced_by_batch_left.any()


def test_chance_masks_as_many_pairs_of_each_group_among_those_that_differ():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 0] = False
    found = changed_by("chance", rewards, mask=mask)
    assert int((~found.pair_mask[0]).sum()) == 2 and found.pair_mask[1].all() and found.pair_mask[0, 1, 2]
    torch.testing.assert_close(found.advantages, scoring.rectified_advantages(rewards, found.pair_mask))


@pytest.mark.parametrize("change", ["shrink group", "shrink batch"])
def test_a_witness_of_what_was_shrunk_tells_of_what_is_left(change):
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    collides = torch.tensor([[1.0, 3.0, 0.0], [3.0, 20.0, 0.0], [0.0, 0.0, 1.0]])
    cross = torch.stack([collides, torch.eye(3)])
    found = changed_by(change, rewards, cross=cross)
    plain = scoring.pair_advantages(rewards).sum(2)
    assert found.advantages[0, 1] > plain[0, 1] and torch.equal(found.advantages[1], plain[1])
    assert not found.witness.displaced_left.any() and not found.witness.displaced_by_batch_left.any()


def test_a_training_with_an_arm_rectifies_as_the_arm_does(model, tokenizer):
    rollouts = small_rollouts(model, tokenizer)
    rewards = (torch.arange(12) % 3 == 0).float().view(3, 4)
    plain = scoring.rectify(model, rollouts, rewards, HOW)
    with arms.training_with(Arm(change="positives")):
        found = scoring.rectify(model, rollouts, rewards, HOW, None, None)
    torch.testing.assert_close(found.advantages, plain.advantages.clamp(min=0))
    with arms.training_with(Arm(full=True)):
        full = scoring.rectify(model, rollouts, rewards, replace(HOW, rule="group"))
    assert scoring.rectify is not found and not torch.equal(full.distinctiveness, plain.distinctiveness)
    torch.testing.assert_close(scoring.rectify(model, rollouts, rewards, HOW).advantages, plain.advantages)


def test_a_resumed_run_draws_the_placebo_that_it_would_have_drawn(model, tokenizer):
    """Chance belongs to the completions of the step, not to how many steps came before it in the process."""
    rollouts, rewards = small_rollouts(model, tokenizer), (torch.arange(12) % 3 == 0).float().view(3, 4)
    half = replace(HOW, rule="threshold", threshold=0.5)

    def masks(*of):
        with arms.training_with(Arm(change="chance")):
            return [scoring.rectify(model, each, rewards, half).pair_mask for each in of]

    others = [replace(rollouts, texts=[f"{text} {n}" for text in rollouts.texts]) for n in range(9)]
    *_, last = masks(*others, rollouts)
    assert torch.equal(last, masks(rollouts)[0]) and not last.all()
    assert not all(torch.equal(mask, last) for mask in masks(*others)), "other completions, another draw"


def test_the_command_trains_as_dagrpo_does_with_its_flags_and_the_change(monkeypatch):
    given = []

    def main(*arguments):
        given.append((arguments[0], scoring.rectify is not whole))

    whole = scoring.rectify
    monkeypatch.setattr(arms.dagrpo, "main", main)
    arms.main(["chance", "--seed", "7"])
    assert given == [(["--seed", "7"], True)] and scoring.rectify is whole
    with pytest.raises(SystemExit, match="better: there is no such change, only positives, chance, "):
        arms.main(["better", "--seed", "7"])
    with pytest.raises(SystemExit, match="no word: there is no such change"):
        arms.main([])


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_training_that_can_be_configured(name):
    config = configure(method="grpo", model="examples/arithmetic", **ARMS[name].flags)
    assert config.anchors is None and config.scorer == "gradient"
    assert (", optimizer" in name) == (config.metric == "optimizer")
    assert ARMS[name].change in ("", *arms.CHANGES)
    assert ("by chance" in name) == (ARMS[name].change in ("chance", "shrink chance"))
    assert name.startswith("full ") == ARMS[name].full
