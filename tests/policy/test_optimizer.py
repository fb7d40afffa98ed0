"""AdamW with moments in fp32 and in 8 bits: what is trained, what is kept, and what the scorers read of it."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model

from policy import optimizer
from policy.model import ModelError
from policy.optimizer import AdamW, moments, new_optimizer, restore_state, state_tensors
from scoring import adam_metric


def after_steps(how, steps=3, seed=0, model=None):
    """A model with a head of 64 x 96 weights, its optimizer, and random gradients of unlike sizes."""
    model = model or random_model(hidden_size=96)
    made = new_optimizer(model, how)
    stepped(model, made, steps, seed)
    return model, made


def stepped(model, made, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** -(number % 5)
        made.step()


def test_weights_that_are_frozen_have_no_place_in_it():
    model = random_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    (group,) = new_optimizer(model, AdamW(learning_rate=0.5, beta1=0.8, weight_decay=0.3)).param_groups
    assert len(group["params"]) == len(list(model.parameters())) - 1
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.8, 0.999), 0.3)


def test_moments_are_those_of_adamw_and_none_before_the_first_step():
    model, made = after_steps(AdamW(), steps=0)
    assert moments(made, model.lm_head.weight) is None and adam_metric(model, made) is None
    model, made = after_steps(AdamW(beta1=0.5), steps=1)
    first, second = moments(made, model.lm_head.weight)
    torch.testing.assert_close(first, model.lm_head.weight.grad / 2)
    torch.testing.assert_close(second, model.lm_head.weight.grad**2 / 1000)


@pytest.mark.parametrize("version", ["", "0.49.2"])
def test_a_package_that_is_missing_or_too_old_is_named(version, monkeypatch):
    def of(name):
        if not version:
            raise optimizer.importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(optimizer.importlib.metadata, "version", of)
    with pytest.raises(ModelError, match=r'--optimizer adamw8bit: run: pip install "bitsandbytes>=0.50"') as error:
        new_optimizer(random_model(), AdamW("adamw8bit"))
    assert (version in str(error.value)) and ("this is" in str(error.value)) == bool(version)
    new_optimizer(random_model(), AdamW("adamw"))


# --- moments in 8 bits -------------------------------------------------------------------------------------------


@pytest.fixture
def eight():
    pytest.importorskip("bitsandbytes")
    return AdamW("adamw8bit", learning_rate=1e-2, beta1=0.8, weight_decay=0.1)


def test_a_step_with_8_bit_moments_is_near_that_of_fp32(eight):
    """The first step is the same but for rounding; after five, the way is the same within a few percent."""
    start = [parameter.detach().clone() for parameter in random_model(hidden_size=96).parameters()]
    for steps, tolerance in ((1, 1e-4), (5, 0.05)):
        plain, _ = after_steps(AdamW("adamw", 1e-2, 0.8, 0.1), steps)
        ours, _ = after_steps(eight, steps)
        for before, a, b in zip(start, ours.parameters(), plain.parameters(), strict=True):
            assert (a - b).norm().item() <= tolerance * (b - before).norm().item(), steps


def test_8_bit_moments_take_a_byte_each_and_small_tensors_are_fp32(eight):
    model, made = after_steps(eight)
    large = state_tensors(made, model.lm_head.weight)
    assert large["state1"].dtype == large["state2"].dtype == torch.uint8
    assert sum(value.nbytes for value in large.values()) < 2.5 * model.lm_head.weight.numel()
    assert state_tensors(made, model.model.norm.weight)["state1"].dtype == torch.float32


def test_unpacked_moments_are_near_those_of_fp32_and_so_is_the_metric(eight):
    model, made = after_steps(eight)
    plain, of_plain = after_steps(AdamW("adamw", 1e-2, 0.8, 0.1))
    for ours, theirs in zip(moments(made, model.lm_head.weight), moments(of_plain, plain.lm_head.weight), strict=True):
        assert ours.dtype == torch.float32 and ours.shape == (64, 96)
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03
    small = moments(made, model.model.norm.weight)
    torch.testing.assert_close(small, moments(of_plain, plain.model.norm.weight))
    found, expected = adam_metric(model, made), adam_metric(plain, of_plain)
    torch.testing.assert_close(found.rows, expected.rows, rtol=0.02, atol=0)
    torch.testing.assert_close(found.columns, expected.columns, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_an_optimizer_goes_on_from_its_tensors_to_the_bit(kind):
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    how = AdamW(kind, learning_rate=1e-2)
    model, made = after_steps(how)
    other = random_model(hidden_size=96)
    other.load_state_dict(model.state_dict())
    again = new_optimizer(other, how)
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        kept = {name: value.clone() for name, value in state_tensors(made, parameter).items()}
        restore_state(again, same, kept)
        for value in kept.values():
            value.zero_()  # what was given is copied
    for m, o in ((model, made), (other, again)):
        stepped(m, o, 3, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
