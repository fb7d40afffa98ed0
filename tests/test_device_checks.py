"""The checks that tests/test_cuda.py makes of a GPU, on a CPU: a mistake in them would else show on a GPU alone."""

from __future__ import annotations

import ast
import inspect

import device_checks
import gap
import pytest
import test_cuda
import torch
from device_checks import (
    WAYS,
    budget_left,
    deviations,
    forced_tokens,
    largest_difference,
    loss_with,
    masks_with,
    noise_on,
    packed_and_alone,
    states_by,
    states_of_model,
    whole_run,
)

from policy import attention, decoding


@pytest.mark.parametrize("way", WAYS)
def test_the_decoder_computes_what_the_model_does(model, way):
    tokens = forced_tokens(test_cuda.ROWS, test_cuda.LENGTH, "cpu")
    found, graphs = states_by(way, model, tokens, leave_after=12)
    assert largest_difference(found, states_of_model(model, tokens)) < 1e-4 and graphs == 0


def test_another_token_is_a_difference(model):
    tokens = forced_tokens(12, 10, "cpu")
    found, _ = states_by("eager", model, tokens, leave_after=5)
    tokens[:, 0] += 1
    assert largest_difference(found, states_of_model(model, tokens)) > 0.05


def test_the_loss_has_every_term():
    found = loss_with("all", "cpu")
    assert all(float(found[name]) != 0 for name in ("loss", "kl", "entropy", "anchor_tokens", "clip_low", "clip_high"))
    assert bool((found["gradient"] != 0).any())


def test_every_rule_masks_some_pairs_and_leaves_others():
    found = masks_with("all", "cpu")
    for rule in ("threshold", "pair", "group"):
        assert 0 < int((~found[rule]).sum()) < found[rule].numel(), rule


def test_noise_and_draws(monkeypatch):
    """Drawn by their probabilities; a sampler of another temperature is noticed."""
    assert noise_on("cpu").shape == (4, 64) and len(noise_on("cpu").unique()) > 250
    for temperature, top_p in [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)]:
        assert float(deviations("cpu", temperature, top_p).abs().max()) < 5
    plain = decoding.choose_tokens

    def hotter(logits, noise, temperature, top_p):
        tokens, _ = plain(logits, noise, 1.1, top_p)
        return tokens, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)

    monkeypatch.setattr(decoding, "choose_tokens", hotter)
    assert float(deviations("cpu", 1.0, 1.0).abs().max()) > 5


@pytest.mark.parametrize("by_rows", [False, True])
def test_rows_in_one_sequence(model, monkeypatch, by_rows):
    monkeypatch.setattr(attention, "DEVICES", ("cpu",) if by_rows else ())
    torch.testing.assert_close(*packed_and_alone(model), atol=1e-4, rtol=1e-3)


def test_the_gap_in_bf16(model, tokenizer):
    """Imitated on a CPU."""
    found = gap.gaps(model, tokenizer, ["a+b=", "what is 2*(3+4)?", "x"], group_size=4, limit=12)
    assert 0 < found["gap"]["mean"] < 0.02


def test_the_budget_that_is_left():
    def allocate(tokens):
        if tokens > 1_400:
            raise torch.OutOfMemoryError

    assert budget_left(allocate) == 1_024


def test_a_whole_run(small_data, tmp_path):
    for record in whole_run("cpu", small_data, tmp_path / "run"):
        assert record["sampler_gap"] < 0.02 and record["bad_updates"] == 0


def test_every_check_is_made_in_both_files():
    """And whatever test_cuda.py calls by itself exists: it is imported here, and its names are looked up."""
    of_gpu, here = (inspect.getsource(module) for module in (test_cuda, __import__(__name__)))
    checks = [
        name for name, value in vars(device_checks).items() if getattr(value, "__module__", "") == "device_checks"
    ]
    used = [name for name in checks if f"{name}(" in of_gpu]
    assert used and all(f"{name}(" in here for name in used)
    for node in ast.walk(ast.parse(of_gpu)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = vars(test_cuda).get(node.value.id)
            assert not inspect.ismodule(owner) or hasattr(owner, node.attr), ast.unparse(node)
