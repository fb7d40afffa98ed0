"""Equations (1) to (5): advantages, distinctiveness, masks, whole batches, against values by hand and by autograd."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import padded_batch, random_model, small_rollouts
from hypothesis import given
from hypothesis import strategies as st

import rollout
import scoring
from policy import logprobs
from scorers import gradients

HOW = scoring.Rectification(
    rule="threshold", scorer="gradient", threshold=0.35, scale="std", temperature=1.0, per_token=False, gamma=0.03
)


def how_of(**changes):
    return replace(HOW, **changes)


# --- (1) and (4): advantages -------------------------------------------------------------------------------------


def test_advantages_by_hand():
    """Rewards 1, 0, 0, 0: mean 1/4, population deviation √3/4, so A = √3 for the right answer, −1/√3 for the others."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    advantages = scoring.rectified_advantages(rewards, torch.ones(1, 4, 4, dtype=torch.bool), eps=0.0)
    expected = torch.tensor([[math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)]])
    torch.testing.assert_close(advantages, expected)


def test_masked_pair_drops_out_of_both_advantages():
    """Rewards 1, 0, 0 without scale: A = 2/3, −1/3, −1/3. Without the pair (0, 1): 1/3, 0, −1/3."""
    rewards = torch.tensor([[1.0, 0.0, 0.0]])
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 0] = False
    advantages = scoring.rectified_advantages(rewards, mask, scale="none")
    torch.testing.assert_close(advantages, torch.tensor([[1 / 3, 0.0, -1 / 3]]))
    assert advantages[0, 1] == 0


rewards_and_masks = st.integers(2, 8).flatmap(
    lambda size: st.tuples(
        st.lists(st.floats(-2, 2, width=32), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size * size, max_size=size * size),
    )
)


@given(rewards_and_masks)
def test_nothing_masked_is_the_advantage_of_grpo(drawn):
    """(1): the pairwise form equals (r − mean)/(σ + ε), also where all rewards are equal."""
    rewards = torch.tensor([drawn[0]], dtype=torch.float64)
    size = rewards.shape[1]
    advantages = scoring.rectified_advantages(rewards, torch.ones(1, size, size, dtype=torch.bool), eps=1e-3)
    deviation = rewards.std(dim=1, correction=0, keepdim=True)
    grpo = (rewards - rewards.mean(1, keepdim=True)) / (deviation + 1e-3)
    torch.testing.assert_close(advantages, grpo, atol=1e-9, rtol=1e-6)
    right_wrong = (rewards > 0).float()
    binary = scoring.rectified_advantages(right_wrong, torch.ones(1, size, size, dtype=torch.bool))
    spread = right_wrong.std(dim=1, correction=0, keepdim=True) + 1e-6
    torch.testing.assert_close(binary, (right_wrong - right_wrong.mean(1, keepdim=True)) / spread, atol=1e-6, rtol=1e-6)


@given(rewards_and_masks)
def test_advantages_sum_to_zero_for_any_symmetric_mask(drawn):
    rewards = torch.tensor([drawn[0]], dtype=torch.float64)
    size = rewards.shape[1]
    upper = torch.tensor(drawn[1]).view(1, size, size).triu(1)
    mask = upper | upper.transpose(1, 2)
    for scale in ("std", "none"):
        advantages = scoring.rectified_advantages(rewards, mask, scale=scale, eps=1e-3)
        assert abs(float(advantages.sum())) < 1e-9


def test_all_pairs_masked_gives_exact_zeros():
    rewards = torch.rand(5, 8)
    advantages = scoring.rectified_advantages(rewards, torch.zeros(5, 8, 8, dtype=torch.bool))
    assert torch.equal(advantages, torch.zeros(5, 8))


# --- (2): distinctiveness from gradients -------------------------------------------------------------------------

ROWS = [(0, 5, 9), (3, 5, 4), (1, 6, 7), (6, 5, 1), (2, 4, 8), (2, 4, 6), (2, 4, 2), (2, 4, 8)]  # two groups of four


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 0.0], [0.0, 3.0], 0.5),
        ([1.0, 1.0], [-2.0, -2.0], 1.0),
        ([2.0, 0.0], [1.0, math.sqrt(3)], 0.25),  # 60 degrees
        ([0.0, 0.0], [1.0, 1.0], 0.5),  # no direction: cos := 0
    ],
)
def test_distinctiveness_by_hand(a, b, expected):
    vectors = torch.tensor([[a, b]])
    d = scoring.gradient_distinctiveness(vectors @ vectors.transpose(1, 2))
    torch.testing.assert_close(d, torch.tensor([[[0.0, expected], [expected, 0.0]]]), atol=1e-6, rtol=0)


# --- (2): distinctiveness from tokens ----------------------------------------------------------------------------


def test_a_response_mask_that_is_not_bool_is_an_error_that_says_so(model):
    input_ids, attention_mask, response_mask = padded_batch(ROWS, 64)
    for scorer in scoring.SCORERS:
        with pytest.raises(TypeError, match=r"response_mask is of type torch\.int64"):
            scoring.distinctiveness(scorer, model, input_ids, attention_mask, response_mask.long(), 4)


def test_a_scorer_of_texts_is_one_line_of_the_table(model, tokenizer, monkeypatch):
    """As a judge would be: it sees the texts, masks by its threshold, and has a flag."""

    def by_length(sequences):
        lengths = torch.tensor([len(text) for text in sequences.texts]).view(-1, sequences.group_size)
        return ((lengths[:, :, None] - lengths[:, None, :]).abs() / 20).clamp(max=1)

    monkeypatch.setitem(scoring.SCORERS, "length", scoring.Scorer("lengths", threshold=0.3, distinctiveness=by_length))
    rollouts = small_rollouts(model, tokenizer)
    rewards = (torch.arange(12) % 3 == 0).float().view(3, 4)
    how = how_of(scorer="length", threshold=scoring.SCORERS["length"].threshold)
    rectified = scoring.rectify(model, rollouts, rewards, how)
    lengths = torch.tensor([len(text) for text in rollouts.texts]).view(3, 4)
    expected = (lengths[:, :, None] - lengths[:, None, :]).abs() >= 6
    assert torch.equal(rectified.pair_mask, expected) and 0 < int(expected.sum()) < 48


def test_a_scorer_without_distinctiveness_is_an_error():
    with pytest.raises(ValueError, match="'none'"):
        scoring.distinctiveness("none", None, torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), 2)


# --- (3) and (5): the mask ---------------------------------------------------------------------------------------


def test_threshold_keeps_pairs_at_or_above_it():
    d = torch.tensor([[[0.0, 0.35], [0.34, 0.0]]])
    assert scoring.distinct_pairs(d, 0.35).tolist() == [[[False, True], [False, False]]]
    assert scoring.distinct_pairs(torch.full((1, 2, 2), torch.nan), 0.35).all(), "a pair that was not scored is kept"


def test_safe_pairs_by_hand():
    """Answer 0 (norm² 1) is better. Its product with answer 1 is 0.9, with answer 2 it is 1.1: only that displaces."""
    cross = torch.tensor([[[1.0, 0.9, 1.1], [0.9, 4.0, 5.0], [1.1, 5.0, 4.0]]])
    mask = scoring.safe_pairs(cross, torch.tensor([[1.0, 0.0, 0.0]]))
    assert mask.tolist() == [[[True, True, False], [True, True, True], [False, True, True]]]


def test_safe_pairs_ask_the_better_answer_only():
    """g_i·g_j = 2 exceeds the norm² 1 of the worse answer, not the norm² 3 of the better one: the pair stays."""
    cross = torch.tensor([[[1.0, 2.0], [2.0, 3.0]]])
    assert scoring.safe_pairs(cross, torch.tensor([[0.0, 1.0]])).all()
    assert not scoring.safe_pairs(cross, torch.tensor([[1.0, 0.0]]))[0, 0, 1]


@pytest.mark.parametrize("gamma", [None, 0.02])
def test_rule_5_masks_just_the_pairs_that_a_real_step_displaces(gamma):
    """Take the pair's own step on the head by SGD and measure: the better answer falls where (5) says that it does.

    Some worse answers share nothing with the better one, some repeat it in part or more than once, so that both
    outcomes occur. With `gamma` the better answer is an anchor: its push is the gradient of f(π), not of log π.
    """
    model = random_model(seed=3)
    head = model.get_output_embeddings().weight
    outcomes = []
    for trial in range(36):
        torch.manual_seed(trial)
        prompt, better = torch.randint(2, 64, (4,)), torch.randint(2, 64, (3,))
        worse = torch.cat([better[: trial % 3], torch.randint(2, 64, (1 + trial % 4,)), *[better] * (trial % 3)])
        width = 4 + max(len(better), len(worse)) + 1
        input_ids, response_mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.bool)
        attention_mask = torch.zeros(2, width, dtype=torch.bool)
        for row, answer in enumerate((better, worse)):
            end = 4 + len(answer) + 1
            input_ids[row, :end] = torch.cat([prompt, answer, torch.tensor([1])])
            attention_mask[row, :end], response_mask[row, 4:end] = True, True

        def logps(row, input_ids=input_ids, attention_mask=attention_mask):
            ids = input_ids[row][attention_mask[row]]
            return model(input_ids=ids[None]).logits[0, 3:-1].log_softmax(-1).gather(1, ids[4:, None]).squeeze(1)

        def push(values):
            return values.sum() if gamma is None else (values.exp() / (values.exp() + gamma)).sum()

        weights = torch.ones(2, width - 1)
        if gamma is not None:
            probabilities = logps(0).detach().exp()
            weights[0, 3 : 3 + len(probabilities)] = gamma * probabilities / (probabilities + gamma) ** 2
        _, cross = scoring.gradient_gram(model, input_ids, attention_mask, response_mask, 2, token_weights=weights)
        kept = bool(scoring.safe_pairs(cross, torch.tensor([[1.0, 0.0]]))[0, 0, 1])

        before = logps(0).sum().item()
        (step,) = torch.autograd.grad(push(logps(0)) - logps(1).sum(), head)
        original = head.detach().clone()
        with torch.no_grad():
            head.add_(step, alpha=1e-4 / float(step.norm()))
            change = logps(0).sum().item() - before
            head.copy_(original)
        margin = abs(float(cross[0, 0, 0] - cross[0, 0, 1])) / float(cross[0, 0, 0])
        if margin > 0.02:  # nearer to 0 the rounding of fp32 decides
            outcomes.append(kept)
            assert (change > 0) == kept, (trial, change, cross)
    assert outcomes.count(True) >= 4 and outcomes.count(False) >= 4


# --- (3) token by token ------------------------------------------------------------------------------------------


# --- (5'): sums ----------------------------------------------------------------------------------------------------


def random_grams(groups, size, seed, common=1.0):
    """Products of random gradients that share a direction in each group, so that about a fifth is displaced."""
    torch.manual_seed(seed)
    gradients = torch.randn(groups, size, 30) * (0.2 + 2 * torch.rand(groups, size, 1))
    gradients += common * torch.randn(groups, 1, 30)
    return gradients @ gradients.transpose(1, 2)


def rewards_of(kind, groups, size):
    if kind == "graded":
        return torch.rand(groups, size)
    return (torch.rand(groups, size) < 0.5).float()


def after(cross, pairs, mask):
    """v of (5') with the pairs that are left."""
    return (cross @ (pairs * mask).sum(2)[:, :, None]).squeeze(2)


@pytest.mark.parametrize("rewards", ["right or wrong", "graded"])
@pytest.mark.parametrize("size", [3, 8, 16])
def test_no_better_completion_is_left_displaced_by_the_sum_of_its_group(size, rewards):
    """Whole pairs are masked, so that ΣÃ = 0; where nothing is displaced, nothing is masked."""
    cross = random_grams(200, size, seed=size)
    earned = rewards_of(rewards, 200, size)
    pairs = scoring.pair_advantages(earned)
    mask = scoring.safe_sums(cross, pairs)
    before = scoring.displaced(cross, pairs.sum(2), pairs.sum(2))
    assert 0.03 < before.float().mean() < 0.5, "or the test shows nothing"
    advantages = (pairs * mask).sum(2)
    assert not scoring.displaced(cross, advantages, pairs.sum(2)).any()
    limits = 1e-5 * (cross.abs() @ pairs.sum(2).abs()[:, :, None]).squeeze(2)
    assert bool((after(cross, pairs, mask) >= -limits)[pairs.sum(2) > 0].all())
    assert torch.equal(mask, mask.transpose(1, 2))
    torch.testing.assert_close(advantages.sum(1), torch.zeros(200), atol=1e-5, rtol=0)
    untouched = ~before.any(1)
    assert mask[untouched].all() and not mask[~untouched].all(dim=(1, 2)).any()


def one_by_one(cross, pairs):
    """(5') of one group as docs/method.md says it: a pair at a time. (G, G), (G, G) -> (G, G) bool"""
    mask = torch.ones_like(pairs, dtype=torch.bool)
    while True:
        harmed = scoring.displaced(cross[None], (pairs * mask).sum(1)[None], pairs.sum(1)[None])[0]
        if not harmed.any():
            return mask
        effects = {
            (a, b): float(pairs[a, b] * (cross[harmed, a] - cross[harmed, b]).sum())
            for a, b in (mask & (pairs > 0)).nonzero().tolist()
        }
        a, b = min(effects, key=lambda pair: effects[pair])
        mask[a, b] = mask[b, a] = False


def test_pairs_masked_together_are_those_masked_one_by_one():
    """Groups of 12 with up to 36 pairs; `with_worst_masked` masks up to eight of them in one round."""
    cross, earned = random_grams(60, 12, seed=5).double(), rewards_of("graded", 60, 12).double()
    pairs = scoring.pair_advantages(earned)
    mask = scoring.safe_sums(cross, pairs)
    for p in range(60):
        assert torch.equal(mask[p], one_by_one(cross[p], pairs[p]))
    assert int((~mask).sum()) > 200


def test_all_groups_are_masked_at_once_and_a_batch_looks_at_pairs_of_the_same_question_alone(monkeypatch):
    """As many rounds as the slowest group takes, and no more work in a batch than its pairs are."""
    seen, round_of = [], scoring.with_worst_masked
    monkeypatch.setattr(scoring, "with_worst_masked", lambda *given: seen.append(given[-1].shape) or round_of(*given))
    cross, pairs = random_grams(12, 8, seed=3), scoring.pair_advantages(rewards_of("right or wrong", 12, 8))
    alone = []
    for p in range(12):
        seen.clear()
        scoring.safe_sums(cross[p][None], pairs[p][None])
        alone.append(len(seen))
    seen.clear()
    scoring.safe_sums(cross, pairs)
    assert len(seen) == max(alone) > 2 and [groups for groups, _ in seen] == sorted(
        (groups for groups, _ in seen), reverse=True
    )
    seen.clear()
    scoring.safe_sums(random_grams(1, 96, seed=4), torch.block_diag(*pairs)[None])
    assert {count for _, count in seen} == {int((pairs > 0).sum())}


def test_a_group_of_three_that_rule_5_leaves_alone_though_a_real_step_lowers_a_right_answer():
    """Two right answers and a wrong one, of one token each, before a head of zeros.

    With W = 0 and four words, δ_i·δ_j is 3/4 for equal tokens and −1/4 for others, so that states with the products
    below have K = ((30, −0.5, −1), (−0.5, 1, 0.9), (−1, 0.9, 30)). A = (1/3, 1/3, −2/3): v_1 = (−0.5 + 1 − 1.8)/3.
    """
    products = torch.tensor([[40.0, 2.0, 4.0], [2.0, 4 / 3, -3.6], [4.0, -3.6, 40.0]], dtype=torch.double)
    states, head, words = torch.linalg.cholesky(products), torch.zeros(4, 3, dtype=torch.double), torch.arange(3)

    def logps(weight):
        return (states @ weight.T).log_softmax(-1).gather(1, words[:, None]).squeeze(1)

    def changes(advantages):
        weight = head.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((advantages * logps(weight)).sum(), weight)
        return (logps(head + 1e-6 * gradient) - logps(head)) / 1e-6

    cross = torch.tensor([[[30.0, -0.5, -1.0], [-0.5, 1.0, 0.9], [-1.0, 0.9, 30.0]]], dtype=torch.double)
    rewards = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.double)
    pairs = scoring.pair_advantages(rewards, scale="none")
    assert scoring.safe_pairs(cross, rewards).all(), "0.9 < 1: each pair by itself is harmless"
    assert changes(pairs.sum(2)[0])[1].item() == pytest.approx(-1.3 / 3, abs=1e-4)
    # Pair (0, 2) gives v_1 (−0.5 − 0.9)/3, pair (1, 2) gives (1 − 0.9)/3: the first is masked.
    mask = scoring.safe_sums(cross, pairs)
    assert mask[0].tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    found = changes((pairs * mask).sum(2)[0])
    assert found[:2].tolist() == pytest.approx([0.5 / 3, 0.1 / 3], abs=1e-4)


def test_not_many_more_pairs_are_masked_than_the_fewest():
    """Against every subset of the pairs, for groups of up to five: a fifth of a pair too many on average."""
    extra = []
    for size in (3, 4, 5):
        cross = random_grams(150, size, seed=20 + size).double()
        pairs = scoring.pair_advantages(rewards_of("right or wrong", 150, size).double())
        masks = scoring.safe_sums(cross, pairs)
        for p in range(150):
            listed = (pairs[p] > 0).nonzero().tolist()
            choices = torch.tensor(list(itertools.product([True, False], repeat=len(listed))), dtype=torch.bool)
            if masks[p].all():
                continue
            tried = torch.ones(len(choices), size, size, dtype=torch.bool)
            for n, (a, b) in enumerate(listed):
                tried[:, a, b] = tried[:, b, a] = choices[:, n]
            advantages = (pairs[p] * tried).sum(2)
            plain = pairs[p].sum(1).expand(len(choices), size)
            safe = ~scoring.displaced(cross[p].expand(len(choices), size, size), advantages, plain).any(1)
            fewest = int((~choices).sum(1)[safe].min())
            extra.append(int((~masks[p]).sum()) // 2 - fewest)
    assert len(extra) > 40 and min(extra) >= 0
    assert sum(extra) / len(extra) < 0.2


def test_a_batch_is_a_group_in_which_completions_of_two_questions_make_no_pair():
    """Displaced by another question: only pairs inside groups are masked, the harmful one although it is elsewhere."""
    # Question 0: answers 0 (right) and 1; question 1: answers 2 (right) and 3. Answer 3 pulls answer 0 down.
    cross = torch.eye(4)[None].clone()
    cross[0, 0, 3] = cross[0, 3, 0] = 2.0
    pairs = torch.block_diag(*scoring.pair_advantages(torch.tensor([[1.0, 0.0], [1.0, 0.0]])))[None]
    mask = scoring.safe_sums(cross, pairs)
    assert not mask[0, 2, 3] and not mask[0, 3, 2] and mask[0, 0, 1]
    for p in (slice(0, 2), slice(2, 4)):  # neither question sees it by itself
        assert scoring.safe_sums(cross[:, p, p], pairs[:, p, p]).all()


def test_what_no_pair_is_to_blame_for_masks_no_pair():
    """An offset that lowers a better completion: only pairs that lower it too are masked, here one of two."""
    cross = torch.tensor([[[1.0, 0.5, 2.0], [0.5, 9.0, 0.0], [2.0, 0.0, 9.0]]])
    pairs = scoring.pair_advantages(torch.tensor([[1.0, 0.0, 0.0]]))
    assert scoring.safe_sums(cross, pairs, torch.tensor([[1.0, 0.0, 0.0]])).all(), "lifted"
    mask = scoring.safe_sums(cross, pairs, torch.tensor([[-9.0, 0.0, 0.0]]))
    assert mask[0].tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    advantages = (pairs * mask).sum(2)
    assert scoring.displaced(cross, advantages, pairs.sum(2), torch.tensor([[-9.0, 0.0, 0.0]]))[0, 0]
    assert not scoring.displaced(cross, advantages, pairs.sum(2))[0, 0]


def test_groups_all_right_or_all_wrong_are_never_masked():
    cross = random_grams(2, 4, seed=1)
    pairs = scoring.pair_advantages(torch.tensor([[1.0] * 4, [0.0] * 4]))
    assert scoring.safe_sums(cross, pairs).all()


def test_what_is_below_zero_by_rounding_alone_is_not_displaced():
    """Equal gradients: v = K ΣÃ = 0, of which rounding makes a little less in some groups."""
    torch.manual_seed(0)
    cross, pairs = torch.full((100, 7, 7), 1e4), scoring.pair_advantages(torch.rand(100, 7))
    advantages = pairs.sum(2)
    assert float((cross @ advantages[:, :, None]).min()) < 0
    assert not scoring.displaced(cross, advantages, advantages).any()
    assert scoring.safe_sums(cross, pairs).all()
    cross = cross - 0.004 * (advantages > 0)[:, None, :]  # better pushes are worth less, as by rounding
    assert (cross @ advantages[:, :, None])[advantages > 0].max() < 0, "all of them are below 0"
    assert scoring.safe_sums(cross, pairs).all()
    assert scoring.displaced(cross, advantages - 1e-3, advantages)[advantages > 0].all()


@pytest.mark.parametrize("rule", ["group", "token"])
@pytest.mark.parametrize("in_a_metric", [False, True])
def test_after_rule_5_prime_a_real_step_on_the_head_lowers_no_right_answer(model, tokenizer, rule, in_a_metric):
    """A step on the head alone, by SGD or by P times the gradient, small enough to be linear.

    With all pairs it lowers a right answer, with what is left it does not.
    """
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=())
    torch.manual_seed(6)
    metric, p = None, torch.ones(64, 32)
    if in_a_metric:
        metric = scoring.HeadMetric(torch.randn(64).exp(), torch.randn(32).exp())
        p = (metric.rows[:, None] * metric.columns[None, :]) ** 2
    lowered = {}
    for name in ("none", "pair", rule):
        rectified = scoring.rectify(model, rollouts, rewards, how_of(rule=name), metric=metric)
        changes = real_changes(model, rollouts, rectified.token_advantages, 1e-5 * p / p.mean())
        better = scoring.rectified_advantages(rewards, torch.ones(3, 4, 4, dtype=torch.bool)).flatten() > 0
        lowered[name] = ((changes < 0) & better).view(3, 4)
    assert lowered["none"].any() and lowered["pair"].any() and not lowered[rule].any()
    witness = scoring.rectify(model, rollouts, rewards, how_of(rule=rule), metric=metric).witness
    assert torch.equal(witness.displaced, lowered["none"]) and not witness.displaced_left.any()


def real_changes(model, rollouts, token_advantages, rates):
    """What a step on the head by each group's own update does to Σ_t log π_t of its completions. -> (N,)

    `rates` has a learning rate for each weight, (V, H).
    """
    head = model.get_output_embeddings().weight
    start, size, changes = head.detach().clone(), rollouts.group_size, []
    for p in range(len(rollouts.texts) // size):
        rows = torch.arange(p * size, (p + 1) * size)
        part = rollouts.rows(rows)
        advantages = rollouts.moved(token_advantages, rows).double()
        model.double()
        logps, _ = rollout.token_logps(model, *part.tokens)
        (gradient,) = torch.autograd.grad((advantages * logps).sum(), head)
        with torch.no_grad():
            head += rates * gradient
            moved, _ = rollout.token_logps(model, *part.tokens)
        changes.append((moved - logps).sum(1).detach())
        model.float()
        with torch.no_grad():
            head.copy_(start)
    return torch.cat(changes)


@pytest.mark.parametrize(
    ("changes", "contributions", "expected"),
    [
        ([1.0], [[-1.0, -2.0]], [False, False]),  # nothing is displaced
        ([-1.0], [[-1.0, -2.0, 0.5]], [False, True, False]),  # the most harmful one is enough
        ([-2.5], [[-1.0, -2.0, 0.5]], [True, True, False]),
        ([-9.0], [[-1.0, -2.0, 0.5]], [True, True, False]),  # never one that helps, even if it is not enough
        ([-1.0, 0.2], [[-1.0, -0.9], [0.5, -0.4]], [True, True]),  # the first displaces the other completion in turn
    ],
)
def test_the_fewest_tokens_by_hand(changes, contributions, expected):
    limits = torch.zeros(len(changes))
    found = scoring.fewest_tokens(torch.tensor(changes), limits, torch.tensor(contributions))
    assert found.tolist() == expected


# --- the witness -------------------------------------------------------------------------------------------------


def test_the_witness_counts_displaced_completions_with_every_rule_that_compares_gradients(model, tokenizer):
    """Also where nothing is masked; the scorer of tokens has no gradients to see it by."""
    rollouts, rewards = colliding_rollouts(model, tokenizer)
    found = {
        rule: scoring.rectify(model, rollouts, rewards, how_of(rule=rule)).witness.shares()
        for rule in ("none", "threshold", "pair", "group", "batch", "token")
    }
    plain = found["none"]
    assert plain["displaced"] > 0 and plain["displaced_by_batch"] > 0
    assert plain["displaced_left"] == plain["displaced"]
    assert plain["displaced_by_batch_left"] == plain["displaced_by_batch"]
    for rule, shares in found.items():
        assert shares["displaced"] == plain["displaced"]
        assert shares["displaced_by_batch"] == plain["displaced_by_batch"]
        assert ("displaced_by_batch_left" in shares) == (rule != "token")
    assert found["group"]["displaced_left"] == found["token"]["displaced_left"] == 0
    assert found["batch"]["displaced_by_batch_left"] == 0
    assert scoring.rectify(model, rollouts, rewards, how_of(scorer="token", threshold=0.1)).witness is None
    assert scoring.rectify(model, rollouts, torch.ones(3, 4), how_of()).witness is None


def test_a_witness_shares_by_hand():
    better = torch.tensor([[True, True, False], [True, True, False]])
    none = torch.zeros_like(better)
    one = none.clone()
    one[0, 1] = True
    witness = scoring.Witness(better, better, one, one, None)
    assert witness.shares() == {"displaced": 1.0, "displaced_left": 0.25, "displaced_by_batch": 0.25}
    assert scoring.Witness(none, none, none, none, none).shares() == {}


def test_without_displacement_rule_5_prime_is_grpo_to_the_bit(model, tokenizer):
    """Two answers that have nothing in common in each group."""
    completions = [rollout.Completion([5, 6, 7], ids) for ids in ([9, 1], [20, 33, 1], [41, 1], [50, 12, 1])]
    rollouts = rollout.assemble(model, tokenizer, completions, 2)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    plain = scoring.rectify(model, rollouts, rewards, how_of(rule="none"))
    assert not plain.witness.displaced.any()
    for rule in ("group", "token"):
        rectified = scoring.rectify(model, rollouts, rewards, how_of(rule=rule))
        assert rectified.pair_mask.all() and torch.equal(rectified.token_advantages, plain.token_advantages)


# --- the mask of a batch -----------------------------------------------------------------------------------------


def test_groups_of_equal_rewards_are_not_scored(model, tokenizer, monkeypatch):
    """Their advantages are 0 whatever the mask, so their gradients are never computed."""
    rollouts = small_rollouts(model, tokenizer)
    rewards = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    scored = []
    plain = scoring.gradient_products

    def counting(model, sequences, *rest):
        scored.append(len(sequences.input_ids))
        return plain(model, sequences, *rest)

    monkeypatch.setattr(scoring, "gradient_products", counting)
    rectified = scoring.rectify(model, rollouts, rewards, how_of(threshold=1.0))
    assert scored == [4]
    assert rectified.distinctiveness.isnan().all(dim=(1, 2)).tolist() == [True, False, True]
    assert rectified.pair_mask[[0, 2]].all() and not rectified.pair_mask[1].all()
    rectified = scoring.rectify(model, rollouts, rewards, how_of(rule="none", scorer="token"))
    assert rectified.pair_mask.all() and rectified.distinctiveness.isnan().all() and scored == [4]
    rectified = scoring.rectify(model, rollouts, rewards, how_of(rule="none"))
    assert rectified.pair_mask.all() and scored == [4, 4], "for the witness"


@pytest.mark.parametrize("scorer", ["gradient", "state", "token"])
def test_mask_of_a_batch_is_the_threshold_on_its_distinctiveness(model, tokenizer, scorer):
    rollouts = small_rollouts(model, tokenizer)
    rewards = (torch.arange(12) % 3 == 0).float().view(3, 4)
    rectified = scoring.rectify(model, rollouts, rewards, how_of(scorer=scorer, threshold=0.5))
    mask, d = rectified.pair_mask, rectified.distinctiveness
    expected = scoring.distinctiveness(
        scorer, model, rollouts.input_ids, rollouts.attention_mask, rollouts.response_mask, 4
    )
    torch.testing.assert_close(d, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(mask, d >= 0.5) and mask.any() and not mask.all()
    torch.testing.assert_close(rectified.advantages, scoring.rectified_advantages(rewards, d >= 0.5))


def colliding_rollouts(model, tokenizer, anchors=(2, 7)):
    """Three groups of four answers that share text in part, whole, and twice over, so that some pairs displace."""
    torch.manual_seed(1)
    completions = []
    for _ in range(3):
        base, other = torch.randint(3, 64, (5,)).tolist(), torch.randint(3, 64, (4,)).tolist()
        completions += [[*base, 1], [*base, *base, 1], [*other, 1], [*base[:3], *other, 1]]
    completions = [rollout.Completion([5, 6, 7], ids, is_anchor=i in anchors) for i, ids in enumerate(completions)]
    rewards = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]])
    return rollout.assemble(model, tokenizer, completions, 4), rewards


def shaped(logps, gamma=0.1):
    """f(π) of (7), written out by itself."""
    return logps.exp() / (logps.exp() + gamma)


def scored_parameter(model, scorer):
    """What the scorer's gradients are with respect to: the head's weight, or a map before it that is 1."""
    if scorer == "gradient":
        return model.get_output_embeddings().weight
    identity = torch.eye(model.config.hidden_size, requires_grad=True)
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0] @ identity.T,))
    return identity


@pytest.mark.parametrize("scorer", scoring.BY_GRADIENT)
@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_rule_5_uses_pushes_of_shaped_anchors_in_the_normalisation_of_the_loss(model, tokenizer, norm, scorer):
    """The mask equals rule (5) on autograd's own gradients, each divided by its length under `sequence`."""
    rollouts, rewards = colliding_rollouts(model, tokenizer)
    how = how_of(rule="pair", scorer=scorer, per_token=norm == "sequence", gamma=0.1)
    mask = scoring.rectify(model, rollouts, rewards, how).pair_mask
    head = scored_parameter(model, scorer)
    gradients, pushes = [], []
    for i in range(12):
        ids = rollouts.input_ids[i][rollouts.attention_mask[i]]
        answer = rollouts.response_mask[i][rollouts.attention_mask[i]][1:]
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)[answer]
        f = shaped(logps) if rollouts.anchor_mask[i] else logps
        for value, store in ((logps.sum(), gradients), (f.sum(), pushes)):
            length = len(logps) if norm == "sequence" else 1
            store.append(torch.autograd.grad(value / length, head, retain_graph=True)[0].flatten())
    for p in range(3):
        for i in range(4):
            for j in range(4):
                if rewards[p, i] > rewards[p, j]:
                    g, push, other = gradients[4 * p + i], pushes[4 * p + i], pushes[4 * p + j]
                    assert bool(mask[p, i, j]) == bool(g @ other <= g @ push) == bool(mask[p, j, i])
    assert not mask.all() and mask.any()


def head_gradients(model, rollouts):
    """Autograd's gradients of the log-likelihoods with respect to the head. (12, V, H)"""
    found, head = [], model.get_output_embeddings().weight
    for i in range(12):
        ids = rollouts.input_ids[i][rollouts.attention_mask[i]]
        answer = rollouts.response_mask[i][rollouts.attention_mask[i]][1:]
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)[answer]
        found.append(torch.autograd.grad(logps.sum(), head)[0])
    return torch.stack(found)


def test_a_metric_says_which_better_completions_a_group_displaces(model, tokenizer):
    """K_ij = g_i·P·g_j by autograd: with P's mask none is left with v_i < 0, with the mask without P some are."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=())
    torch.manual_seed(6)
    metric = scoring.HeadMetric((2 * torch.randn(64)).exp(), (2 * torch.randn(32)).exp())
    g = head_gradients(model, rollouts)
    p = (metric.rows[:, None] * metric.columns[None, :]) ** 2
    k = torch.einsum("pivh,vh,pjvh->pij", g.view(3, 4, 64, 32), p, g.view(3, 4, 64, 32))
    pairs = scoring.pair_advantages(rewards)

    def left_displaced(found):
        changes = (k @ (pairs * found.pair_mask).sum(2)[:, :, None]).squeeze(2)
        return (changes < -1e-4 * k.diagonal(dim1=1, dim2=2)) & (pairs.sum(2) > 0)

    how = how_of(rule="group")
    assert not left_displaced(scoring.rectify(model, rollouts, rewards, how, metric=metric)).any()
    assert left_displaced(scoring.rectify(model, rollouts, rewards, how)).any()
    assert left_displaced(scoring.rectify(model, rollouts, rewards, how_of(rule="none"))).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_rule_and_witness_of_a_batch_know_what_momentum_does_of_its_own(model, tokenizer, sign):
    """Momentum that lifts every better completion far: nothing is displaced or masked. The other way: all are."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=())
    g, better = head_gradients(model, rollouts), scoring.pair_advantages(rewards).sum(2).flatten() > 0
    lifting = -100 * g[better].sum(0)  # of the loss, which a step goes against
    assert bool((-(g[better] * lifting).sum((1, 2)) > 0).all())
    plain = scoring.rectify(model, rollouts, rewards, how_of(rule="batch"))
    metric = scoring.HeadMetric(torch.ones(64), torch.ones(32), sign * lifting)
    found = scoring.rectify(model, rollouts, rewards, how_of(rule="batch"), metric=metric)
    assert plain.witness.displaced_by_batch.any() and not plain.pair_mask.all()
    by_batch = found.witness.displaced_by_batch.flatten()
    if sign == 1:
        assert not by_batch.any() and found.pair_mask.all()
    else:
        assert torch.equal(by_batch, better) and not torch.equal(found.pair_mask, plain.pair_mask)


def test_what_tokens_lose_is_of_the_scale_of_the_advantages(model, tokenizer):
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=())
    one, other = (scoring.rectify(model, rollouts, rewards, how_of(rule="token", scale=s)) for s in ("std", "none"))
    assert bool((one.withheld != 0).any()) and not torch.allclose(one.withheld, other.withheld)
    ratio = (other.advantages / one.advantages).flatten()[:, None]  # σ + ε of the group
    torch.testing.assert_close(other.withheld, one.withheld * ratio)


def test_negatives_weigh_as_much_as_is_said_and_without_weight_are_not_trained_on():
    """Rewards 1, 0, 0, 0 give √3 and three times −1/√3; of a fourth of that weight −1/√48."""
    advantages = scoring.rectified_advantages(
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.ones(1, 4, 4, dtype=torch.bool), eps=0.0
    )
    found = scoring.with_negatives_weighted(advantages, 0.25)
    torch.testing.assert_close(found, torch.tensor([[math.sqrt(3), *[-1 / math.sqrt(48)] * 3]]))
    assert torch.equal(scoring.with_negatives_weighted(advantages, 1.0), advantages)
    without = scoring.with_negatives_weighted(advantages, 0.0)
    rectified = scoring.Rectified(torch.ones(1, 4, 4), torch.zeros(1, 4, 4), without, torch.zeros(4, 5))
    assert rectified.has_advantage.tolist() == [True, False, False, False]


@pytest.mark.parametrize("rule", ["none", "threshold", "pair"])
def test_lighter_negatives_change_what_is_left_of_the_advantages_and_of_the_displaced_and_no_mask(
    model, tokenizer, rule
):
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=())
    plain, light = (scoring.rectify(model, rollouts, rewards, how_of(rule=rule, negative_weight=w)) for w in (1.0, 0.0))
    assert torch.equal(light.pair_mask, plain.pair_mask)
    torch.testing.assert_close(light.advantages, plain.advantages.clamp(min=0))
    assert torch.equal(light.witness.displaced, plain.witness.displaced)
    g = head_gradients(model, rollouts).flatten(1)
    changes = g @ (light.advantages.flatten() @ g)  # v of (5') by the whole batch
    scored = (rewards != rewards[:, :1]).any(1)
    left = (changes.view_as(rewards) < 0)[scored] & light.witness.better
    assert torch.equal(light.witness.displaced_by_batch_left, left)
    assert light.witness.displaced_by_batch_left.sum() < plain.witness.displaced_by_batch_left.sum()


# --- what is left of a batch -------------------------------------------------------------------------------------


def test_a_completion_with_withheld_tokens_has_an_advantage_though_its_pairs_balance_out():
    withheld = torch.zeros(4, 5)
    withheld[1, 2] = 0.5
    rectified = scoring.Rectified(
        torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), withheld
    )
    assert rectified.has_advantage.tolist() == [True, True, False, False]
    assert rectified.token_advantages[1].tolist() == [0.0, 0.0, -0.5, 0.0, 0.0]


def test_distances_that_are_given_stay_with_their_groups(model, tokenizer):
    """The first group has no signal, and is not scored: the others must not move up."""
    rollouts, rewards = small_rollouts(model, tokenizer), torch.tensor([[1.0] * 4, [1, 0, 0, 1], [0, 1, 0, 0]])
    distances = torch.rand(3, 4, 4)
    found = scoring.rectify(model, rollouts, rewards, how_of(scorer="judge", threshold=0.5), distances)
    assert torch.equal(found.distinctiveness[1:], distances[1:]) and bool(found.distinctiveness[0].isnan().all())


@pytest.mark.parametrize("anchors", [(), (1, 4)])
@pytest.mark.parametrize("rule", ["threshold", "pair", "token"])
def test_kept_hidden_states_spare_the_model(model, tokenizer, monkeypatch, rule, anchors):
    """And the result is the same, also for the pushes of anchors."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=anchors)
    how = how_of(rule=rule, gamma=0.05)
    expected = scoring.rectify(model, rollouts, rewards, how)
    rollouts.hidden = gradients.completion_states(model, *rollouts.tokens, [None] * 12)
    for module in (gradients, logprobs):
        monkeypatch.setattr(module, "hidden_states", lambda *_: pytest.fail("the model was run"))
    found = scoring.rectify(model, rollouts, rewards, how)
    torch.testing.assert_close(found.token_advantages, expected.token_advantages)
    assert torch.equal(found.pair_mask, expected.pair_mask)


@pytest.mark.parametrize("rule", ["threshold", "batch", "token"])
def test_a_completion_whose_states_were_not_kept_goes_through_the_model_once(model, tokenizer, monkeypatch, rule):
    """An anchor has states for its gradient, its push and its tokens: all of them are the same."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=(1, 4))
    rollouts.hidden = gradients.completion_states(model, *rollouts.tokens, [None] * 12)
    rollouts.hidden[1] = rollouts.hidden[4] = None
    rows, plain = [], gradients.hidden_states
    for module in (gradients, logprobs):
        watched = lambda model, input_ids, *rest: rows.append(len(input_ids)) or plain(model, input_ids, *rest)  # noqa: E731
        monkeypatch.setattr(module, "hidden_states", watched)
    scoring.rectify(model, rollouts, rewards, how_of(rule=rule, gamma=0.05))
    assert sum(rows) == 2


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_weights_of_an_anchors_pushes_by_hand(model, tokenizer, temperature):
    """w_t = γπ/(π+γ)² with π at the temperature of training; 1 for sampled completions, and without a γ."""
    rollouts, _ = colliding_rollouts(model, tokenizer, anchors=(1, 4))
    weights = scoring.push_weights(model, rollouts, how_of(gamma=0.05, temperature=temperature))
    for row in range(12):
        ids = rollouts.input_ids[row][rollouts.attention_mask[row]]
        completion = rollouts.lengths[row]
        pi = (model(input_ids=ids[None]).logits[0, :-1] / temperature).softmax(-1).gather(1, ids[1:, None])
        expected = (0.05 * pi / (pi + 0.05) ** 2)[-completion:, 0] if row in (1, 4) else torch.ones(completion)
        torch.testing.assert_close(weights[row][rollouts.prediction_mask[row]], expected.detach())
    assert bool((scoring.push_weights(model, rollouts, how_of(gamma=None)) == 1).all())


def test_a_completion_is_as_distinct_from_itself_as_nothing(model):
    """Just 0, whatever rounding makes of its cosine."""
    d = scoring.gradient_distinctiveness(scoring.gradient_gram(model, *padded_batch(ROWS, 64), 4))
    assert bool((d.diagonal(dim1=1, dim2=2) == 0).all()) and bool((d.sum((1, 2)) > 0).all())


def test_every_scorer_of_a_batch_gets_the_texts(model, tokenizer, monkeypatch):
    seen = []

    def by_texts(sequences):
        seen.append(sequences.texts)
        return torch.ones(len(sequences.texts) // sequences.group_size, *[sequences.group_size] * 2)

    monkeypatch.setitem(scoring.SCORERS, "texts", scoring.Scorer("texts", threshold=0.5, distinctiveness=by_texts))
    rollouts, rewards = colliding_rollouts(model, tokenizer)
    scoring.rectify(model, rollouts, rewards, how_of(scorer="texts"))
    assert seen == [rollouts.texts]


def test_epsilon_is_small_beside_the_smallest_deviation():
    """Rewards 1 and 0.98: σ = 0.01, and A = ±1 to a ten-thousandth."""
    advantages = scoring.rectified_advantages(torch.tensor([[1.0, 0.98]]), torch.ones(1, 2, 2, dtype=torch.bool))
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -1.0]]), atol=2e-4, rtol=0)


def test_thresholds_of_the_scorers():
    """0.35 is a cosine of 0.3, 0.2 one of 0.6; of tokens a tenth must differ."""
    assert {name: scorer.threshold for name, scorer in scoring.SCORERS.items()} == {
        "gradient": 0.35,
        "state": 0.2,
        "token": 0.1,
    }
