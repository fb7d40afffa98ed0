"""Equations (1) to (5): advantages, distinctiveness, masks, whole batches, against values by hand and by autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import padded_batch, random_model, small_rollouts
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM

import rollout
import scoring
from policy.model import vocabulary_gradients

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


def autograd_gram(model, batch, group_size, temperature=1.0, token_weights=None, parameter=None):
    """⟨G_i, G_j⟩ and ⟨G_i, G̃_j⟩ from backward passes through the model's own logits, one answer at a time.

    The gradients are with respect to the head, or to another parameter.
    """
    input_ids, attention_mask, response_mask = batch
    head = model.get_output_embeddings().weight if parameter is None else parameter
    gradients, pushes = [], []
    for row in range(len(input_ids)):
        real = attention_mask[row]
        ids, mask = input_ids[row][real], response_mask[row][real]
        logits = model(input_ids=ids[None]).logits[0, :-1] / temperature
        logps = logits.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        weights = torch.ones_like(logps)
        if token_weights is not None:
            weights = token_weights[row][real[1:]] if real[0] else token_weights[row][real[1:]][1:]
        for scale, store in ((torch.ones_like(logps), gradients), (weights, pushes)):
            (gradient,) = torch.autograd.grad((scale * logps)[mask[1:]].sum(), head, retain_graph=True)
            store.append(gradient.flatten())
    g, p = torch.stack(gradients), torch.stack(pushes)
    g, p = g.view(-1, group_size, g.shape[1]), p.view(-1, group_size, p.shape[1])
    return g @ g.transpose(1, 2), g @ p.transpose(1, 2)


def exact_gram(model, batch, group_size, temperature=1.0, token_weights=None):
    """The same as sums over pairs of tokens, k_ts = (h_t·h_s) (∂ℓ_t/∂z_t · ∂ℓ_s/∂z_s), without a sketch."""
    input_ids, _, response_mask = batch
    lengths = response_mask.sum(1).tolist()
    states = scoring.completion_states(model, *batch, [None] * len(lengths))
    targets = input_ids[response_mask].split(lengths)
    weights = [torch.ones(n) for n in lengths]
    if token_weights is not None:
        weights = token_weights[response_mask[:, 1:]].split(lengths)
    grams, crosses = [], []
    for start in range(0, len(lengths), group_size):
        group = slice(start, start + group_size)
        h, chosen = torch.cat(states[group]), torch.cat(targets[group])
        outer = vocabulary_gradients(model, h, chosen, temperature).detach()
        kernel = (h.double() @ h.double().T) * (outer.double() @ outer.double().T)  # (M, M)
        owner = torch.block_diag(*[torch.ones(n, 1, dtype=torch.double) for n in lengths[group]])  # (M, G)
        rows = owner.T @ kernel
        grams.append((rows @ owner).float())
        crosses.append((rows @ (owner * torch.cat(weights[group]).double()[:, None])).float())
    return torch.stack(grams), torch.stack(crosses)


def relative_error(ours, reference):
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("exact", [True, False])
def test_gram_equals_autograd_of_the_head(model, exact, temperature):
    """With padding on the left, EOS counted, at any temperature; 64 words need no sketch, so both forms are exact."""
    batch = padded_batch(ROWS, 64)
    ours = scoring.gradient_gram(model, *batch, 4, temperature=temperature)
    if exact:
        ours, _ = exact_gram(model, batch, 4, temperature)
    reference, _ = autograd_gram(model, batch, 4, temperature)
    assert relative_error(ours, reference) < 1e-4


@pytest.mark.parametrize("exact", [True, False])
def test_gram_with_token_weights_gives_the_pushes_of_equation_5(model, exact):
    batch = padded_batch(ROWS, 64)
    weights = torch.rand(batch[0].shape[0], batch[0].shape[1] - 1)
    gram, cross = scoring.gradient_gram(model, *batch, 4, token_weights=weights)
    if exact:
        gram, cross = exact_gram(model, batch, 4, token_weights=weights)
    reference_gram, reference_cross = autograd_gram(model, batch, 4, token_weights=weights)
    assert relative_error(gram, reference_gram) < 1e-4
    assert relative_error(cross, reference_cross) < 1e-4


def with_map_before_head(model):
    """M = 1 in z = W M h, a parameter that the model does not have."""
    identity = torch.eye(model.config.hidden_size, requires_grad=True)
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0] @ identity.T,))
    return identity


def test_gram_of_the_state_scorer_equals_autograd_of_a_map_before_the_head():
    """With pushes, at a temperature, and with a soft cap on the logits; gram and pushes of real models' heads."""
    batch = padded_batch(ROWS, 64)
    weights = torch.rand(batch[0].shape[0], batch[0].shape[1] - 1)
    for model in (random_model(), capped_model()):
        ours = scoring.gradient_gram(model, *batch, 4, temperature=0.7, token_weights=weights, scorer="state")
        plain = scoring.gradient_gram(model, *batch, 4, temperature=0.7, scorer="state")
        of_head = scoring.gradient_gram(model, *batch, 4, temperature=0.7)
        reference = autograd_gram(model, batch, 4, 0.7, weights, parameter=with_map_before_head(model))
        assert relative_error(ours[0], reference[0]) < 1e-4 and relative_error(ours[1], reference[1]) < 1e-4
        torch.testing.assert_close(plain, ours[0])
        assert relative_error(of_head, reference[0]) > 0.1  # another metric


def test_the_state_scorer_sees_that_two_tokens_have_like_embeddings():
    """Answers of one token each and the same state. Tokens 4 and 5 share their embedding but for its length."""
    model = random_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = 1.1 * model.get_output_embeddings().weight[4]
    input_ids = torch.tensor([[2, 3, 4], [2, 3, 5], [2, 3, 6]])
    response_mask = torch.tensor([[False, False, True]] * 3)
    batch = (input_ids, torch.ones_like(response_mask), response_mask)
    like, unlike = (
        {
            scorer: float(scoring.distinctiveness(scorer, model, *batch, 3)[0, 0, other])
            for scorer in scoring.BY_GRADIENT
        }
        for other in (1, 2)
    )
    assert like["state"] < 0.05 and unlike["state"] > 0.3
    assert abs(like["gradient"] - unlike["gradient"]) < 0.05  # to the head, one token is as different as the other


def test_gram_counts_the_eos(model):
    """Without the EOS in the mask the products differ: the stop decision is part of an answer."""
    input_ids, attention_mask, response_mask = padded_batch(ROWS, 64)
    without = response_mask & (input_ids != 1)
    whole = scoring.gradient_gram(model, input_ids, attention_mask, response_mask, 4)
    assert relative_error(scoring.gradient_gram(model, input_ids, attention_mask, without, 4), whole) > 1e-2


def test_gram_does_not_depend_on_the_cut_into_micro_batches(model, monkeypatch):
    batch = padded_batch(ROWS * 3, 64)
    whole = scoring.gradient_gram(model, *batch, 4)
    monkeypatch.setattr(scoring, "ROW_TOKENS", 1)  # one row at a time through the model
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 64 * 5)  # five positions of logits at a time
    torch.testing.assert_close(scoring.gradient_gram(model, *batch, 4), whole, rtol=1e-5, atol=1e-4)


def test_gram_from_kept_hidden_states_needs_the_model_for_the_other_answers_only(model, monkeypatch):
    batch = padded_batch(ROWS, 64)
    whole = scoring.gradient_gram(model, *batch, 4)
    states = scoring.completion_states(model, *batch, [None] * 8)
    kept = [None if row in (2, 5) else state for row, state in enumerate(states)]
    ran = []
    plain = scoring.hidden_states
    monkeypatch.setattr(scoring, "hidden_states", lambda m, ids, mask: ran.append(len(ids)) or plain(m, ids, mask))
    torch.testing.assert_close(scoring.gradient_gram(model, *batch, 4, hidden=kept), whole, rtol=1e-5, atol=1e-4)
    assert sum(ran) == 2


def test_tied_head_leaves_the_input_side_out():
    """With tied weights, the reference differentiates a copy of the weight that only the head uses."""
    model = random_model(tie_word_embeddings=True)
    batch = padded_batch(ROWS, 64)
    ours = scoring.gradient_gram(model, *batch, 4)
    untied = random_model()
    untied.load_state_dict(model.state_dict())
    reference, _ = autograd_gram(untied, batch, 4)
    assert relative_error(ours, reference) < 1e-4


def capped_model():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model


def test_gram_of_a_head_with_a_soft_cap():
    model = capped_model()
    batch = padded_batch(ROWS, 64)
    reference, _ = autograd_gram(model, batch, 4)
    assert relative_error(scoring.gradient_gram(model, *batch, 4), reference) < 1e-4


def test_sketch_of_a_large_vocabulary_keeps_cosines():
    """8,192 words at the default width: RMS error of the cosine over all pairs under 0.02."""
    model = random_model(vocab_size=8_192)
    rows = [(0, 4, 3 + i % 9) for i in range(64)]
    batch = padded_batch(rows, 8_192)
    assert scoring.SKETCH_WIDTH < 8_192
    sketched = 1 - 2 * scoring.gradient_distinctiveness(scoring.gradient_gram(model, *batch, 16))
    exact = 1 - 2 * scoring.gradient_distinctiveness(exact_gram(model, batch, 16)[0])
    pairs = ~torch.eye(16, dtype=torch.bool).expand(4, 16, 16)
    error = (sketched - exact)[pairs]
    assert 0 < float(error.square().mean().sqrt()) < 0.02


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


def slow_common_subsequence(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), max_size=80), st.lists(st.integers(0, 4), max_size=80))
def test_common_subsequence_equals_the_textbook_table(a, b):
    assert scoring.common_subsequence_length(a, b) == slow_common_subsequence(a, b)


def test_token_distinctiveness_by_hand():
    """5 6 7 against 5 7: 4 of 5 tokens match, d = 0.2. Prompt and padding do not count."""
    input_ids = torch.tensor([[9, 9, 5, 6, 7], [0, 9, 5, 7, 0]])
    response_mask = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    d = scoring.distinctiveness("token", None, input_ids, response_mask, response_mask, 2)
    torch.testing.assert_close(d, torch.tensor([[[0.0, 0.2], [0.2, 0.0]]]))


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


@pytest.mark.parametrize("scorer", scoring.BY_GRADIENT)
def test_token_kernel_adds_up_to_the_products_of_the_gradients(model, scorer):
    batch = padded_batch(ROWS, 64)
    gram = scoring.gradient_gram(model, *batch, 4, temperature=0.8, scorer=scorer)
    states = scoring.completion_states(model, *batch, [None] * 8)
    targets = batch[0][batch[2]].split(batch[2].sum(1).tolist())
    sketches = [scoring.token_sketches(model, h, t, 0.8, scorer) for h, t in zip(states, targets, strict=True)]
    for i, j in ((0, 1), (2, 3), (1, 1)):
        kernel = scoring.token_kernel(states[i], sketches[i], states[j], sketches[j])
        assert kernel.shape == (len(targets[i]), len(targets[j]))
        torch.testing.assert_close(kernel.sum(), gram[0, i, j], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shares", "excess", "expected"),
    [
        ([3.0, -1.0, 2.0, 0.5], 2.5, [True, False, False, False]),  # the largest is enough
        ([3.0, -1.0, 2.0, 0.5], 3.5, [True, False, True, False]),
        ([3.0, -1.0, 2.0, 0.5], 9.0, [True, False, True, True]),  # never one that parts the answers
        ([3.0, -1.0, 2.0, 0.5], 0.0, [False, False, False, False]),
    ],
)
def test_colliding_tokens_by_hand(shares, excess, expected):
    assert scoring.colliding_tokens(torch.tensor(shares), excess).tolist() == expected


# --- the mask of a batch -----------------------------------------------------------------------------------------


def test_groups_of_equal_rewards_are_not_scored(model, tokenizer, monkeypatch):
    """Their advantages are 0 whatever the mask, so their gradients are never computed."""
    rollouts = small_rollouts(model, tokenizer)
    rewards = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    scored = []
    plain = scoring.gradient_gram
    monkeypatch.setattr(scoring, "gradient_gram", lambda *a, **k: scored.append(len(a[1])) or plain(*a, **k))
    rectified = scoring.rectify(model, rollouts, rewards, how_of(threshold=1.0))
    assert scored == [4]
    assert rectified.distinctiveness.isnan().all(dim=(1, 2)).tolist() == [True, False, True]
    assert rectified.pair_mask[[0, 2]].all() and not rectified.pair_mask[1].all()
    rectified = scoring.rectify(model, rollouts, rewards, how_of(rule="none"))
    assert rectified.pair_mask.all() and rectified.distinctiveness.isnan().all() and scored == [4]


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


@pytest.mark.parametrize("scorer", scoring.BY_GRADIENT)
@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_tokens_are_withheld_until_no_pair_displaces_its_better_answer(model, tokenizer, norm, scorer):
    """Against autograd: of each pair that rule (5) masks, the better answer's likelihood no longer falls."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=(0, 1, 2))
    how = how_of(rule="pair", scorer=scorer, per_token=norm == "sequence", gamma=0.1)
    by_pairs = scoring.rectify(model, rollouts, rewards, how)
    mask = by_pairs.pair_mask
    assert not by_pairs.withheld.any(), "pairs are masked whole"
    by_tokens = scoring.rectify(model, rollouts, rewards, replace(how, rule="token"))
    assert by_tokens.pair_mask.all()
    torch.testing.assert_close(by_tokens.advantages, scoring.rectified_advantages(rewards, by_tokens.pair_mask))
    all_withheld = by_tokens.withheld
    torch.testing.assert_close(by_tokens.token_advantages, by_tokens.advantages.view(12, 1) - all_withheld)
    displaced = ~mask & (rewards[:, :, None] > rewards[:, None, :])
    worse = displaced.any(1).flatten()
    assert torch.equal((all_withheld != 0).any(1), worse) and worse.any()
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
            objective = shaped(logps) if rollouts.anchor_mask[row] else logps
            withheld = all_withheld[row][rollouts.prediction_mask[row]]
            still = (withheld == 0).float()
            length = len(logps) if norm == "sequence" else 1
            values = [logps.sum() / length, objective.sum() / length, (objective * still).sum() / length]
            values += [value / length for value in objective]
            gradients.append([torch.autograd.grad(v, head, retain_graph=True)[0].flatten() for v in values])
            if row == 4 * p + j:  # what a token loses is this pair's part of its advantage
                share = (rewards[p, j] - rewards[p, i]) / (4 * (deviation[p] + 1e-6))
                torch.testing.assert_close(withheld[withheld != 0].unique(), share[None])
        (better, push, *_), (_, whole, left, *by_token) = gradients
        assert better @ whole > better @ push >= better @ left - 1e-4
        least = min(better @ by_token[t] for t in withheld.nonzero()[:, 0])
        assert better @ left + least > better @ push, "one token less, and the pair displaces"
        anchors_tested += int(rollouts.anchor_mask[4 * p + j])
    assert anchors_tested or norm == "sequence", "a longer answer's push is smaller there, and collides with none"


def test_what_is_withheld_for_several_better_answers_adds_up(model, tokenizer):
    """Two equal right answers collide with one wrong answer at the same tokens."""
    base = [9, 20, 33, 14, 41]
    completions = [[*base, 1], [*base, 1], [*base, *base, 1]]
    found = []
    for rewards in ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]):
        rollouts = rollout.assemble(model, tokenizer, [rollout.Completion([5, 6, 7], ids) for ids in completions], 3)
        rectified = scoring.rectify(model, rollouts, torch.tensor([rewards]), how_of(rule="token", scale="none"))
        found.append(rectified.withheld[2])
    assert found[1].any()
    torch.testing.assert_close(found[0], 2 * found[1])


# --- what is left of a batch -------------------------------------------------------------------------------------


def test_a_completion_with_withheld_tokens_has_an_advantage_though_its_pairs_balance_out():
    withheld = torch.zeros(4, 5)
    withheld[1, 2] = 0.5
    rectified = scoring.Rectified(
        torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), withheld
    )
    assert rectified.has_advantage.tolist() == [True, True, False, False]
    assert rectified.token_advantages[1].tolist() == [0.0, 0.0, -0.5, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["threshold", "pair", "token"])
def test_kept_hidden_states_spare_the_model(model, tokenizer, monkeypatch, rule):
    """And the result is the same."""
    rollouts, rewards = colliding_rollouts(model, tokenizer, anchors=())
    how = how_of(rule=rule)
    expected = scoring.rectify(model, rollouts, rewards, how)
    rollouts.hidden = scoring.completion_states(model, *rollouts.tokens, [None] * 12)
    monkeypatch.setattr(scoring, "hidden_states", lambda *_: pytest.fail("the model was run"))
    found = scoring.rectify(model, rollouts, rewards, how)
    torch.testing.assert_close(found.token_advantages, expected.token_advantages)
    assert torch.equal(found.pair_mask, expected.pair_mask)


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


def test_what_is_withheld_is_the_pairs_part_of_the_advantage_at_either_scale(model, tokenizer):
    """Rewards 1, 0, 0 of a group of three: that part is −1/3, over σ = √2/3 with --scale std."""
    base = [9, 20, 33, 14, 41]
    completions = [[*base, 1], [50, 1], [*base, *base, 1]]
    rollouts = rollout.assemble(model, tokenizer, [rollout.Completion([5, 6, 7], ids) for ids in completions], 3)
    for scale, part in (("none", -1 / 3), ("std", -1 / math.sqrt(2))):
        how = how_of(rule="token", scale=scale)
        withheld = scoring.rectify(model, rollouts, torch.tensor([[1.0, 0.0, 0.0]]), how).withheld[2]
        found = withheld[withheld != 0]
        assert len(found) > 0
        torch.testing.assert_close(found, torch.full_like(found, part), rtol=1e-4, atol=0)


def test_a_completion_is_as_distinct_from_itself_as_nothing(model):
    """Just 0, whatever rounding makes of its cosine."""
    d = scoring.gradient_distinctiveness(scoring.gradient_gram(model, *padded_batch(ROWS, 64), 4))
    assert bool((d.diagonal(dim1=1, dim2=2) == 0).all()) and bool((d.sum((1, 2)) > 0).all())


def test_the_sketch_has_signs():
    """Without them the product of two vectors of ones would be twice what it is: each bucket would hold two."""
    ones = torch.ones(1, 8_192)
    sketched = scoring.sketch(ones, 4_096)
    assert float((sketched**2).sum()) == pytest.approx(8_192, rel=0.1)
    assert set(sketched.flatten().tolist()) == {-2.0, 0.0, 2.0}


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


def test_no_token_with_a_negative_share_is_withheld_where_all_others_are_not_enough():
    """A shaped anchor's own push may lower its likelihood: the excess is then more than all that collides."""
    assert scoring.colliding_tokens(torch.tensor([0.5, -0.2, 0.1]), 2.0).tolist() == [True, False, True]


def test_thresholds_of_the_scorers():
    """0.35 is a cosine of 0.3, 0.2 one of 0.6; of tokens a tenth must differ."""
    assert {name: scorer.threshold for name, scorer in scoring.SCORERS.items()} == {
        "gradient": 0.35,
        "state": 0.2,
        "token": 0.1,
    }
