"""torch.compile: fused functions equal their eager twins, and a machine without a compiler runs the eager one."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from conftest import random_model
from transformers.cache_utils import DynamicCache

import dagrpo
import scoring
from policy import compiling, decoding

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@needs_compiler
def test_fused_loss_equals_the_eager_one_values_and_gradients():
    torch.manual_seed(0)
    mask = torch.rand(4, 9) < 0.8
    anchors = torch.tensor([False, True, False, False])
    old, reference = -2 * torch.rand(4, 9), -2 * torch.rand(4, 9)
    advantages, denominators = torch.randn(4, 9), torch.full((4,), 30.0)
    objective = dagrpo.Objective(gamma=0.1, kl=0.05)
    results = []
    for function in (dagrpo.policy_loss.eager, torch.compile(dagrpo.policy_loss.eager, dynamic=True)):
        torch.manual_seed(1)
        logps = (old + 0.4 * torch.randn(4, 9)).requires_grad_()
        entropies = torch.rand(4, 9).requires_grad_()
        batch = (logps, old, advantages, mask, anchors, denominators, objective)
        loss, counted = function(
            *batch, reference_logps=reference, entropies=entropies, entropy_weight=torch.tensor(1e-3)
        )
        loss.backward()
        results.append((loss.detach(), torch.stack(list(counted.values())), logps.grad, entropies.grad))
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-6, rtol=1e-5)
    assert results[0][2].abs().sum() > 0 and results[0][3].abs().sum() > 0


@needs_compiler
@pytest.mark.parametrize("rule", ["threshold", "pair"])
def test_fused_mask_and_advantages_equal_the_eager_ones(rule):
    torch.manual_seed(0)
    d = torch.rand(5, 6, 6)
    d = (d + d.transpose(1, 2)) / 2
    d[2] = torch.nan  # a group that was not scored
    cross, rewards = torch.randn(5, 6, 6), (torch.rand(5, 6) < 0.5).float()
    judge = scoring.distinct_pairs.eager if rule == "threshold" else scoring.safe_pairs.eager
    given = (d, 0.5) if rule == "threshold" else (cross, rewards)
    mask = judge(*given)
    advantages = scoring.rectified_advantages.eager(rewards, mask, scale="std")
    fused_mask = torch.compile(judge, dynamic=True)(*given)
    fused_advantages = torch.compile(scoring.rectified_advantages.eager, dynamic=True)(rewards, mask, scale="std")
    assert torch.equal(fused_mask, mask) and not mask.all()
    assert rule == "pair" or mask[2].all()
    torch.testing.assert_close(fused_advantages, advantages, atol=1e-6, rtol=1e-5)


@needs_compiler
def test_a_fused_round_of_masking_equals_the_eager_one():
    """(5'): which pairs are masked next, and which groups are done; with the sizes of a group and of a batch."""
    torch.manual_seed(0)
    eager = scoring.with_worst_masked.eager
    fused = torch.compile(eager, dynamic=True)
    for groups, size in ((6, 8), (1, 24), (4, 2)):
        gradients = torch.randn(groups, size, 12) + torch.randn(groups, 1, 12)
        cross = gradients @ gradients.transpose(1, 2)
        better, worse = torch.triu_indices(size, size, 1)[:, None].expand(-1, groups, -1)  # the first are the best
        weights = torch.rand(groups, better.shape[1])
        advantages = torch.zeros(groups, size).scatter_add(1, better, weights).scatter_add(1, worse, -weights)
        offset, bounds = -99 * torch.rand(groups, size), torch.where(advantages > 0, -1e-4, -torch.inf)
        masked = weights
        for _ in range(3):
            rest = (offset, bounds, better, worse)
            found, fused_found = (one(cross, advantages, *rest, masked) for one in (eager, fused))
            assert torch.equal(found[1], fused_found[1]) and torch.equal(found[2], fused_found[2])
            torch.testing.assert_close(found[0], fused_found[0], atol=1e-5, rtol=1e-5)
            advantages, masked, _ = found
        assert size == 2 or not torch.equal(masked, weights)


@needs_compiler
@torch.no_grad()
def test_fused_decoding_layer_equals_the_eager_one_and_fills_the_cache_alike(monkeypatch):
    monkeypatch.setattr(decoding, "SHARED_PROMPT", 0)
    model = random_model()
    results = []
    for layer in (decoding.decoder_layer.eager, torch.compile(decoding.decoder_layer.eager, dynamic=True)):
        cache = DynamicCache(config=model.config)
        mask = torch.tensor([[True] * 4, [False, True, True, True]])
        decoding.hidden_states(model, torch.tensor([[5, 6, 7, 8], [0, 9, 10, 11]]), mask, cache)
        steps = decoding.FastSteps(model, cache, mask, 3, 6)
        for room in (room for pair in steps.caches for room in pair):
            room.zero_()  # as on a GPU, where places are read before they are filled
        hidden = []
        for position in (0, 1):
            place = torch.tensor([position])
            tokens = torch.arange(6) + 20 + position
            hidden.append(steps.step(6, layer, tokens, steps.prompt_lengths + position, place))
        results.append([*hidden, *[room for pair in steps.caches for room in pair]])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-4)


def test_without_a_compiler_the_eager_function_runs_and_says_so_once(monkeypatch):
    def broken(*_, **__):
        def run(*_):
            raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

        return run

    monkeypatch.setattr(compiling.torch, "compile", broken)
    state = {}

    def double(x):
        return 2 * x

    with pytest.warns(UserWarning, match="double runs without"):
        assert compiling.with_compiler(double, state, torch.tensor(3.0)) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiling.with_compiler(double, state, torch.tensor(4.0)) == 8


def test_an_error_of_the_function_itself_is_not_taken_for_a_missing_compiler():
    def divide(x):
        raise ZeroDivisionError("its own")

    with pytest.raises(ZeroDivisionError):
        compiling.with_compiler(divide, {"run": divide}, torch.tensor(1.0))


def test_on_a_cpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling.torch, "compile", lambda *_, **__: pytest.fail("compiled on a CPU"))
    assert compiling.compiled("sampler")(lambda x: x + 1)(torch.tensor(1)) == 2


class OnGpu(torch.Tensor):
    """Says of itself that it is on a GPU."""

    device = torch.device("cuda")


@pytest.fixture
def stand_in(monkeypatch):
    """In place of the compiler."""
    monkeypatch.setitem(compiling.chosen, "parts", compiling.CHOICES["sampler"])
    monkeypatch.setattr(compiling, "with_compiler", lambda function, state, *arguments, **options: "compiled")


def test_a_tensor_on_a_gpu_is_seen_whether_it_is_given_by_place_or_by_name(stand_in):
    function = compiling.compiled("sampler")(lambda *arguments, **options: "as it is")
    here, there = torch.ones(2), torch.ones(2).as_subclass(OnGpu)
    assert function(here, 2, scale=here) == "as it is"
    assert function(here, there) == function(here, scale=there) == "compiled"


@pytest.mark.parametrize(
    ("choice", "fused"), [("none", []), ("sampler", ["sampler"]), ("all", ["sampler", "update"]), (None, ["sampler"])]
)
def test_what_is_compiled_is_what_the_flag_says_and_without_it_the_sampler_alone(stand_in, choice, fused):
    """Masks and loss cost more to compile than they win back."""
    if choice:
        compiling.choose(choice)
    there = torch.ones(2).as_subclass(OnGpu)
    parts = ["sampler", "update"]
    found = [part for part in parts if compiling.compiled(part)(lambda x: "as it is")(there) == "compiled"]
    assert found == fused == [part for part in parts if compiling.is_compiled(part)]


def test_masks_and_loss_are_one_part_and_the_layer_of_the_sampler_is_the_other(monkeypatch):
    """By what each asks for when it is called with a tensor on a GPU."""
    asked = []
    monkeypatch.setattr(compiling, "is_compiled", lambda part: asked.append(part) or False)
    there = torch.ones(2, 2, 2).as_subclass(OnGpu)
    calls = [dagrpo.policy_loss, scoring.distinct_pairs, scoring.safe_pairs, scoring.with_worst_masked]
    for function in (*calls, scoring.rectified_advantages, decoding.decoder_layer):
        with pytest.raises(TypeError):  # of the function itself, which lacks arguments
            function(there)
    assert asked == ["update"] * 5 + ["sampler"]
