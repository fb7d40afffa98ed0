"""What only a GPU can show: compiler, graphs, bf16, memory that runs out. Skipped where there is none.

The checks themselves are in device_checks.py, and run on a CPU too.
"""

from __future__ import annotations

import gap
import pytest
import torch
from conftest import random_model
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

import rollout
from policy import attention, checks, decoding
from policy.refilling import Request, decode_each

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")

ROWS, LENGTH = 48, 24  # of three prompts, and more tokens than STOP_CHECK: else there are no graphs


@pytest.fixture
def model():
    return random_model().to("cuda")


@pytest.mark.parametrize("way", WAYS)
def test_the_decoder_computes_what_the_model_does_eagerly_compiled_and_as_a_graph(model, way):
    """Also when half of the rows have left. In bf16, on both sides."""
    tokens = forced_tokens(ROWS, LENGTH, "cuda")
    found, graphs = states_by(way, model, tokens, leave_after=12)
    assert largest_difference(found, states_of_model(model, tokens)) < 0.05
    assert largest_difference(found, states_by("eager", model, tokens, leave_after=12)[0]) < 0.03
    assert graphs == (1 if way == "graph" else 0), "of the rows that are left, and of no others"


def test_a_graph_gives_the_same_as_the_compiled_step(model):
    tokens = forced_tokens(ROWS, LENGTH, "cuda")
    compiled, graph = (states_by(way, model, tokens, leave_after=12)[0] for way in ("compiled", "graph"))
    assert largest_difference(graph, compiled) < 1e-3


@pytest.mark.parametrize("choice", ["none", "all"])
def test_loss_and_gradient_are_those_of_a_cpu_eagerly_and_compiled(choice):
    expected = loss_with("none", "cpu")
    for name, value in loss_with(choice, "cuda").items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("choice", ["none", "all"])
def test_masks_and_advantages_are_those_of_a_cpu_eagerly_and_compiled(choice):
    expected = masks_with("none", "cpu")
    for name, value in masks_with(choice, "cuda").items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_random_choices_are_the_same_numbers_as_on_a_cpu():
    assert torch.equal(noise_on("cuda"), noise_on("cpu"))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_tokens_are_drawn_by_their_probabilities(temperature, top_p):
    """Five standard errors: among 12 tokens and three settings chance has that once in 50,000 runs."""
    assert float(deviations("cuda", temperature, top_p).abs().max()) < 5


def test_rows_in_one_sequence_attend_as_each_by_itself_without_a_mask(model):
    assert attention.by_rows(model)
    packed, alone = packed_and_alone(model)
    torch.testing.assert_close(packed, alone, atol=0.1, rtol=0.05)
    checks.check_model(model)


def test_completions_that_take_the_rows_of_others_are_those_of_a_batch(model):
    """Greedy, so that they can be compared; in bf16 a tie may fall otherwise."""
    prompts = [[token, token + 1] for token in range(2, 22)]
    sampling = decoding.Sampling(16, 0.0, 1.0, [1])
    batch = decoding.decode(model, prompts, torch.arange(20, device="cuda"), sampling)
    found = dict(decode_each(model, [Request(prompt, key) for key, prompt in enumerate(prompts)], sampling, rows=6))
    expected = [tokens[:length] for tokens, length in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]
    assert sorted(found) == list(range(20))
    assert sum(found[number] == tokens for number, tokens in enumerate(expected)) >= 17


def test_sampler_and_trainer_in_bf16_are_one_policy(model, tokenizer):
    """Below two of what bf16 does to the trainer itself, and below 0.02 nats."""
    found = gap.gaps(model, tokenizer, ["a+b=", "what is 2*(3+4)?", "x"], group_size=8, limit=40)
    assert found["gap"]["mean"] < 0.02 and found["gap"]["mean"] < 2 * found["yardstick"]["mean"]


def test_an_update_without_room_goes_on_with_half_of_the_budget():
    """4,096 tokens of a 1,500th of the GPU's memory each do not fit, and 1,024 do."""
    each = torch.cuda.mem_get_info()[1] // 1_500
    assert budget_left(lambda tokens: torch.empty(tokens * each, dtype=torch.uint8, device="cuda")) == 1_024


def test_sampling_without_room_goes_on_with_half_of_the_questions(tokenizer, monkeypatch):
    """A cache of 1,024 rows of 2,000 places is 270 MB in bf16; there are 200 for all."""
    model = random_model(max_position_embeddings=4096).to("cuda")
    monkeypatch.setattr(rollout, "rows_at_once", lambda model, length: 10_000)
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 200 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    try:
        with pytest.warns(UserWarning, match="out of memory while sampling: going on with"):
            found = rollout.sample(model, tokenizer, ["x"] * 64, 16, max_new_tokens=2_000, seed=0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(found.texts) == 1_024


def test_a_whole_run(small_data, tmp_path):
    for record in whole_run("cuda", small_data, tmp_path / "run"):
        assert record["sampler_gap"] < 0.02 and record["bad_updates"] == 0
