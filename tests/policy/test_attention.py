"""Attention by rows, as on a GPU: the same model, without a mask that grows with the square of a sequence."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, GROUPED, config_of, model_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GraniteConfig

from policy import attention, logprobs
from policy.attention import rows_as_mask
from policy.checks import EXACT, differences_from_own_pass
from policy.model import hidden_states, takes_any_mask

PACKABLE = ["cohere", "gpt_bigcode", "llama", "mixtral", "opt", "persimmon", "phi3, longrope", "phimoe", "qwen2"]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(attention, "DEVICES", ("cpu",))


def test_the_places_of_rows_by_hand():
    """Prompt 0 1 with completions 2 3 and 4; prompt 5 with completion 6 7 8. Not its own: −1 − place."""
    rows = [[[0, 1], [2, 3]], [[0, 1], [4]], [[5], [6, 7, 8]]]
    found = rows_as_mask([[torch.tensor(part) for part in row] for row in rows])
    assert found.shape == (1, 1, 3, 4) and found[0, 0].tolist() == [[0, 1, 2, 3], [-1, -2, 4, -1], [5, 6, 7, 8]]


@pytest.mark.parametrize("name", PACKABLE)
def test_every_architecture_that_is_packed_attends_by_rows_as_by_its_own_pass(name):
    """Grouped and single keys, positions that are learned, experts; what `load` looks at, the packing among it."""
    model = model_of(config_of(name))
    assert attention.by_rows(model)
    assert max(differences_from_own_pass(model).values()) < EXACT


def test_the_scale_of_attention_is_the_models_own():
    """Granite's is a number of its configuration, and not the root of the size of a head."""
    model = model_of(GraniteConfig(**GROUPED, attention_multiplier=1.5))
    assert attention.by_rows(model)
    assert max(differences_from_own_pass(model).values()) < EXACT


def test_all_other_architectures_keep_their_masks():
    """By a mask that their layers would not understand they would end in an error."""
    rest = [name for name in ARCHITECTURES if name not in PACKABLE and name != "llama, dynamic"]
    models = [model_of(config_of(name)) for name in rest if "longrope" not in name]
    assert not any(attention.by_rows(model) for model in models) and any(takes_any_mask(model) for model in models)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_single_rows_also_where_layers_are_computed_again(model, checkpointing):
    """Two questions with three and two completions, in one sequence that has room for padding."""
    lengths = [(4, 7), (4, 3), (4, 1), (9, 5), (9, 6)]
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, 64, (5, 15), generator=generator)
    input_ids[1:3, :4], input_ids[4, :9] = input_ids[0, :4], input_ids[3, :9]
    columns = torch.arange(15)
    attention_mask = torch.stack([columns < prompt + answer for prompt, answer in lengths])
    response_mask = torch.stack([(columns >= prompt) & (columns < prompt + answer) for prompt, answer in lengths])
    weights = torch.randn(5, 14, generator=generator)
    found = []
    for packing in (None, [[3], [2]], [[3, 2]]):
        model.zero_grad()
        with logprobs.checkpointed(model, checkpointing):
            logps, _ = logprobs.token_logps(model, input_ids, attention_mask, response_mask, packing=packing)
            (logps * weights).sum().backward()
        found.append([logps.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for packed in found[1:]:
        for expected, values in zip(found[0], packed, strict=True):
            torch.testing.assert_close(values, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


class Largest(TorchDispatchMode):
    """The most numbers that one tensor has."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.count = max(self.count, result.numel())
        return result


@torch.no_grad()
def test_no_tensor_grows_with_the_square_of_a_sequence(model):
    """A prompt of 20 tokens with 40 completions of 21: L is 820, and L² is 672,400; 40 rows of 41 tokens have 52,480
    numbers of the hidden size."""
    input_ids = torch.randint(2, 64, (40, 41))
    input_ids[:, :20] = input_ids[0, :20]
    every = torch.ones_like(input_ids, dtype=torch.bool)
    response_mask = every.clone()
    response_mask[:, :20] = False
    with Largest() as largest:
        logprobs.token_logps(model, input_ids, every, response_mask, packing=[[40]])
    assert 40 * 41 * 32 <= largest.count < 200_000


def test_any_other_mask_is_left_to_transformers(model):
    ids = torch.randint(3, 64, (2, 6))
    mask = torch.tensor([[False] * 2 + [True] * 4, [True] * 6])
    found = hidden_states(model, ids, mask)
    alone = hidden_states(model, ids[:1, 2:], torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(found[:1, 2:], alone, rtol=1e-5, atol=1e-5)
