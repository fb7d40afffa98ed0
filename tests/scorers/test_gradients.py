"""Gradients of completions and their products, against autograd, against sums over tokens, and by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import padded_batch, random_model
from transformers import Gemma2Config, Gemma2ForCausalLM

import scoring
from policy import logprobs
from policy.model import vocabulary_gradients
from scorers import gradients

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
    states = gradients.completion_states(model, *batch, [None] * len(lengths))
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
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 64 * 5)  # five positions of logits at a time
    ran, plain = [], gradients.hidden_states
    monkeypatch.setattr(gradients, "hidden_states", lambda m, ids, mask: ran.append(len(ids)) or plain(m, ids, mask))
    found = gradients.gradient_products(model, gradients.Sequences(*batch, 4), gradients.Measure(row_tokens=1)).gram
    assert ran == [1] * len(batch[0]), "one row at a time through the model"
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-4)


def test_gram_from_kept_hidden_states_needs_the_model_for_the_other_answers_only(model, monkeypatch):
    batch = padded_batch(ROWS, 64)
    whole = scoring.gradient_gram(model, *batch, 4)
    states = gradients.completion_states(model, *batch, [None] * 8)
    kept = [None if row in (2, 5) else state for row, state in enumerate(states)]
    ran = []
    plain = gradients.hidden_states
    monkeypatch.setattr(gradients, "hidden_states", lambda m, ids, mask: ran.append(len(ids)) or plain(m, ids, mask))
    torch.testing.assert_close(scoring.gradient_gram(model, *batch, 4, hidden=kept), whole, rtol=1e-5, atol=1e-4)
    assert sum(ran) == 2


@pytest.fixture
def alike_and_apart(model, monkeypatch):
    """Four rows whose prompts share 40 tokens, padded on the left, and the states of their completions, row by row."""
    batch = padded_batch([(2, 43, 4), (0, 45, 2), (4, 41, 6), (2, 43, 3)], 64)
    for row, pad in enumerate((2, 0, 4, 2)):
        batch[0][row, pad : pad + 40] = torch.arange(2, 42)
    with monkeypatch.context() as patch:
        patch.setattr(logprobs, "SHARED_PREFIX", 1_000)
        return batch, gradients.completion_states(model, *batch, [None] * 4)


def test_what_prompts_begin_with_goes_through_the_model_once(model, alike_and_apart, monkeypatch):
    """Of completions whose states were not kept, such as anchors."""
    batch, apart = alike_and_apart
    ran, plain = [], logprobs.backbone
    monkeypatch.setattr(
        logprobs, "backbone", lambda m: lambda **of: ran.append(of["input_ids"].shape) or plain(m)(**of)
    )
    together = gradients.completion_states(model, *batch, [None, apart[1], None, None])
    assert ran == [(1, 40 + (3 + 3) + (1 + 5) + (3 + 2))], "the beginning once, and no completion's last token"
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    several = gradients.completion_states(model, *batch, [None] * 4, row_tokens=60)
    assert len(ran) > 2, "in several passes where all of it is too much"
    torch.testing.assert_close(several, apart, rtol=1e-5, atol=1e-5)


def test_a_model_that_takes_no_packed_rows_gets_each_prompt_whole(model, alike_and_apart, monkeypatch):
    """As one with a sliding window, which would count the places of other rows."""
    batch, apart = alike_and_apart
    monkeypatch.setattr(logprobs, "takes_any_mask", lambda model: False)
    monkeypatch.setattr(gradients, "packed_states", None)
    found = gradients.completion_states(model, *batch, [None] * 4)
    torch.testing.assert_close(found, apart, rtol=1e-5, atol=1e-5)


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
    assert gradients.SKETCH_WIDTH < 8_192
    sketched = 1 - 2 * scoring.gradient_distinctiveness(scoring.gradient_gram(model, *batch, 16))
    exact = 1 - 2 * scoring.gradient_distinctiveness(exact_gram(model, batch, 16)[0])
    pairs = ~torch.eye(16, dtype=torch.bool).expand(4, 16, 16)
    error = (sketched - exact)[pairs]
    assert 0 < float(error.square().mean().sqrt()) < 0.02


def sequences_of(batch, group_size=4):
    return gradients.Sequences(*batch, group_size)


@pytest.mark.parametrize("scorer", scoring.BY_GRADIENT)
def test_gradients_of_tokens_add_up_to_those_of_completions(model, scorer):
    """Token by token, k_ts = (h_t·h_s)(δ_t·δ_s); its sum over both is ⟨G_i, G_j⟩."""
    batch = padded_batch(ROWS, 64)
    gram = scoring.gradient_gram(model, *batch, 4, temperature=0.8, scorer=scorer)
    (first, _), _ = gradients.token_gradients(model, sequences_of(batch), gradients.Measure(scorer, 0.8))
    for i, j in ((0, 1), (2, 3), (1, 1)):
        (sketched, h), (other_sketched, other_h) = first[i], first[j]
        assert len(h) == len(sketched) == int(batch[2][i].sum())
        kernel = (h @ other_h.T) * (sketched @ other_sketched.T)
        torch.testing.assert_close(kernel.sum(), gram[0, i, j], rtol=1e-4, atol=1e-3)


# --- a metric ----------------------------------------------------------------------------------------------------


def head_gradients(model, batch):
    """∂ℓ_i/∂W of each row, by autograd. -> (N, V, H)"""
    found = []
    for ids, real, response in zip(*batch, strict=True):
        ids, response = ids[real], response[real]
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(logps[response[1:]].sum(), model.get_output_embeddings().weight)
        found.append(gradient)
    return torch.stack(found)


def test_products_in_a_metric_are_those_of_gradients_scaled_weight_by_weight(model):
    """g_i·P·g_j with P_vh = (rows_v columns_h)², of the group, of the batch, and with token weights."""
    batch = padded_batch(ROWS, 64)
    torch.manual_seed(3)
    metric = gradients.HeadMetric(torch.rand(64) + 0.1, torch.rand(32) + 0.1)
    g = head_gradients(model, batch)
    p = (metric.rows[:, None] * metric.columns[None, :]) ** 2
    expected = torch.einsum("ivh,vh,jvh->ij", g, p, g)
    weights = torch.full((8, batch[0].shape[1] - 1), 0.5)
    weights[3] = 1.0
    products = gradients.gradient_products(model, sequences_of(batch), gradients.Measure(metric=metric), weights)
    pushes = expected * torch.tensor([0.5, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 0.5])  # of the pushing completion
    torch.testing.assert_close(products.batch, pushes, rtol=1e-3, atol=1e-3)
    plain = torch.einsum("ivh,jvh->ij", g, g)
    for p, group in enumerate((slice(0, 4), slice(4, 8))):
        torch.testing.assert_close(products.gram[p], plain[group, group], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(products.cross[p], pushes[group, group], rtol=1e-3, atol=1e-3)


def test_the_metric_of_adam_is_one_over_the_root_of_its_second_moments(model):
    """Exactly, where these are a product of rows and columns; up to one factor for all weights; None before a step."""
    weight = model.get_output_embeddings().weight
    optimizer = torch.optim.AdamW([weight], lr=0.0, betas=(0.9, 0.999))
    assert gradients.adam_metric(model, optimizer) is None
    rows, columns = torch.rand(64) + 0.1, torch.rand(32) + 0.1
    weight.grad = (rows[:, None] * columns[None, :]).sqrt()
    optimizer.step()
    metric = gradients.adam_metric(model, optimizer)
    p = (metric.rows[:, None] * metric.columns[None, :]) ** 2
    expected = 1 / (rows[:, None] * columns[None, :]).sqrt()
    ratio = p / expected
    torch.testing.assert_close(ratio, ratio.mean().expand(64, 32), rtol=1e-4, atol=0)


def test_a_row_without_moments_does_not_make_the_metric_of_adam_infinite(model):
    """AdamW adds ε to √v: a token that nothing has moved yet has v = 0."""
    weight = model.get_output_embeddings().weight
    optimizer = torch.optim.AdamW([weight], lr=0.0)
    weight.grad = torch.ones(64, 32)
    weight.grad[7] = 0
    optimizer.step()
    metric = gradients.adam_metric(model, optimizer)
    assert bool(metric.rows.isfinite().all()) and float(metric.rows[7]) == pytest.approx(1e-8**-0.5)


def test_momentum_drifts_against_the_gradient_of_the_loss(model):
    """A step along β1 m + (1 − β1) G, with G = −Σ Ã_j g_j / denominator: in units of Σ Ã_j g_j, m counts
    −β1/(1 − β1) times the denominator; and P multiplies it as it does all."""
    batch = padded_batch(ROWS, 64)
    weight = model.get_output_embeddings().weight
    optimizer = torch.optim.AdamW([weight], lr=0.0, betas=(0.8, 0.999))
    torch.manual_seed(1)
    weight.grad = torch.randn(64, 32)
    optimizer.step()
    metric = gradients.adam_metric(model, optimizer, 50.0)
    products = gradients.gradient_products(model, sequences_of(batch), gradients.Measure(metric=metric))
    first = optimizer.state[weight]["exp_avg"]
    torch.testing.assert_close(first, 0.2 * weight.grad)
    p = (metric.rows[:, None] * metric.columns[None, :]) ** 2
    expected = -(head_gradients(model, batch) * p * first).sum((1, 2)) * 4 * 50
    torch.testing.assert_close(products.drift, expected, rtol=1e-3, atol=1e-2)
    plain = gradients.gradient_products(model, sequences_of(batch), gradients.Measure())
    assert plain.drift is None
    for group in optimizer.param_groups:
        group["betas"] = (0.0, 0.999)
    metric = gradients.adam_metric(model, optimizer, 50.0)
    assert gradients.gradient_products(model, sequences_of(batch), gradients.Measure(metric=metric)).drift is None


# --- the whole batch ---------------------------------------------------------------------------------------------


def test_the_batch_has_the_products_of_its_groups_as_blocks(model):
    batch = padded_batch(ROWS, 64)
    products = gradients.gradient_products(model, sequences_of(batch), gradients.Measure())
    torch.testing.assert_close(products.batch[:4, :4], products.cross[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(products.batch[4:, 4:], products.cross[1], rtol=1e-5, atol=1e-4)
    g = head_gradients(model, batch).flatten(1)
    torch.testing.assert_close(products.batch, g @ g.T, rtol=1e-3, atol=1e-3)


def test_narrow_gradients_keep_products_within_the_error_of_both_sketches(model, monkeypatch):
    """64 × 32 floats each, sketched to 16 × 16 and to 32 × 32: the root mean square error of a cosine halves."""
    batch = padded_batch([(0, 4, 3 + i % 9) for i in range(64)], 64)
    g = torch.nn.functional.normalize(head_gradients(model, batch).flatten(1))
    exact = g @ g.T
    errors = []
    for side in (8, 16, 32):
        monkeypatch.setattr(gradients, "BATCH_ELEMENTS", 64 * side * side)
        ((rows, columns),) = gradients.narrowed([(torch.randn(5, 64), torch.randn(5, 32))], 64)
        assert rows.shape == columns.shape == (5, side)
        products = gradients.gradient_products(model, sequences_of(batch), gradients.Measure()).batch
        norms = products.diagonal().sqrt()
        cosines = products / (norms[:, None] * norms[None, :])
        errors.append(float(((cosines - exact) ** 2).mean().sqrt()))
    assert errors[0] < 0.3 and errors[1] < 0.15 and errors[2] < 0.1 and errors[2] < errors[0] / 2


def test_narrowing_the_factors_is_narrowing_the_gradient(monkeypatch):
    """64 × 32 floats to 20 × 20: what comes of the gradient itself, its rows and its columns sketched."""
    tokens = [(torch.randn(5, 64), torch.randn(5, 32)), (torch.randn(3, 64), torch.randn(3, 32))]
    monkeypatch.setattr(gradients, "BATCH_ELEMENTS", 2 * 400)
    narrow = gradients.gradients_of(gradients.narrowed(tokens, 2))
    for found, whole in zip(narrow, gradients.gradients_of(tokens), strict=True):
        torch.testing.assert_close(found, gradients.sketch(gradients.sketch(whole, 20).T, 20).T)


def test_a_batch_that_has_the_room_is_not_narrowed(monkeypatch):
    tokens = [(torch.randn(5, 64), torch.randn(5, 32))]
    monkeypatch.setattr(gradients, "BATCH_ELEMENTS", 2 * 64 * 32)
    assert gradients.narrowed(tokens, 2) is tokens and gradients.narrowed(tokens, 3) is not tokens


def test_pushes_are_looked_for_in_the_completions_alone(model, monkeypatch):
    """A weight of padding is none: nothing is multiplied a second time."""
    batch = padded_batch(ROWS, 64)
    weights = torch.where(batch[2][:, 1:], 1.0, 0.5)
    products = gradients.gradient_products(model, sequences_of(batch), gradients.Measure(), weights)
    assert torch.equal(products.cross, products.gram) and torch.equal(products.batch, products.batch.T)
    weights[5][batch[2][5, 1:]] = 0.25
    products = gradients.gradient_products(model, sequences_of(batch), gradients.Measure(), weights)
    torch.testing.assert_close(products.cross[1, :, 1], 0.25 * products.gram[1, :, 1])


# --- the sketch --------------------------------------------------------------------------------------------------


def test_the_sketch_has_signs():
    """Without them the product of two vectors of ones would be twice what it is: each bucket would hold two."""
    ones = torch.ones(1, 8_192)
    sketched = gradients.sketch(ones, 4_096)
    assert float((sketched**2).sum()) == pytest.approx(8_192, rel=0.1)
    assert set(sketched.flatten().tolist()) == {-2.0, 0.0, 2.0}


@pytest.mark.parametrize("width", [7, 16, 64, 100])
def test_momentum_is_sketched_as_the_gradients_are_that_it_is_multiplied_with(width):
    """In the metric, which scales its rows and columns, and in the same buckets; 7 does not divide 64."""
    torch.manual_seed(0)
    momentum, rows, columns = torch.randn(64, 5), torch.rand(64), torch.rand(5)
    found = gradients.sketched_momentum(gradients.HeadMetric(rows, columns, momentum, 3.0), width)
    scaled = 3 * momentum * rows[:, None] * columns[None, :]
    expected = gradients.sketch(scaled.T, width).T
    torch.testing.assert_close(found[: len(expected)], expected)
    assert len(found) == width and not found[len(expected) :].any()
