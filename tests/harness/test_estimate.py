"""The memory estimate: parts by hand, what each setting changes, and one run that is measured."""

from __future__ import annotations

from dataclasses import replace

import memory
import pytest
import torch
from conftest import random_model

from harness import estimate
from harness.config import Config
from harness.estimate import Prompts, Sizes, memory_estimate
from policy import lora

LENGTHS = {"prompts": Prompts(20), "held_out": 10}


def config_with(**flags) -> Config:
    usual = {"questions": 4, "group_size": 4, "max_new_tokens": 44, "token_budget": 1_000}
    return Config(model="m", data=["d"], **{**usual, **flags})


def estimated(model, on_gpu=False, **flags):
    """In bytes."""
    found = memory_estimate(model, config_with(**flags), **LENGTHS, on_gpu=on_gpu, available=1e3)
    return {name: round(value * 1e9) for name, value in found.items()}


@pytest.fixture
def on_meta():
    """A Qwen2 without weights, in which each part has its own size."""
    with torch.device("meta"):
        return random_model(5_000, hidden_size=256, intermediate_size=512, num_hidden_layers=4)


def test_what_stays_by_hand(model):
    """Four bytes for each weight and eight for its moments; the start model is one more copy of the weights."""
    count = sum(parameter.numel() for parameter in model.parameters())
    found = estimated(model, kl=0.1)
    assert (found["weights"], found["reference"], found["optimizer"]) == (4 * count, 4 * count, 8 * count)
    assert estimated(model)["reference"] == 0
    largest = max(found[part] for part in memory.PARTS)
    assert found["total"] == pytest.approx(16 * count + largest, abs=2) and found["available"] == 1e12


def test_a_layer_by_hand(model):
    """Two rows of 5 tokens in one sequence of 10; H 8, two heads of 4, one for keys, I 12.

    fp32: six times H, four times the queries, four times I, and a mask of 10. bf16: four norms of H in fp32 and five
    casts of H, the packed result, four times I; by rows queries and results, keys and values, sums and places.
    """
    sizes = replace(Sizes.of(model), hidden=8, heads=2, queries=8, keys=4, inner=12)
    batch = estimate.MicroBatch(torch.tensor([0, 1]), [[2]], 10, 10)
    assert estimate.layer_bytes(sizes, batch, 5, on_gpu=False) == 4 * 10 * (48 + 32 + 48 + 10)
    by_row = 2 * (2 * 8 + 2 * 4) + 4 * 2 + 16
    assert estimate.layer_bytes(sizes, batch, 5, on_gpu=True) == 10 * (128 + 80 + 16 + 96) + 10 * by_row


def test_moments_in_8_bits(model):
    """Two bytes and a scale for each 256 numbers; small tensors stay in fp32."""
    small = [p.numel() for p in model.parameters() if p.numel() < 4_096]
    assert estimated(model, optimizer="adamw8bit")["optimizer"] == 8 * sum(small), "all of this model's are small"
    sizes = replace(Sizes.of(model), trained=[4_096, 10])
    assert estimate.moments_bytes(sizes, config_with(optimizer="adamw8bit")) == 2 * 4_096 + 2 * 16 * 4 + 80


def test_moments_in_8_bits_are_unpacked_where_the_metric_is_of_the_optimizer(on_meta):
    """The first one stays beside the scores, in fp32 as the weight of the head is."""
    head = 4 * on_meta.get_output_embeddings().weight.numel()
    plain, packed = (estimated(on_meta, optimizer=name)["scoring"] for name in ("adamw", "adamw8bit"))
    assert packed >= plain + head
    plain, packed = (
        estimated(on_meta, optimizer=name, metric="gradient")["scoring"] for name in ("adamw", "adamw8bit")
    )
    assert packed == plain


def test_an_adapter_has_gradients_and_moments_of_its_own_alone(on_meta):
    pytest.importorskip("peft")
    full = estimated(on_meta, kl=0.1)
    with torch.device("meta"):
        lora.add(on_meta, "m", lora.Adapter(4))
    found = estimated(on_meta, lora=4, kl=0.1)
    trained = sum(parameter.numel() for parameter in on_meta.parameters() if parameter.requires_grad)
    assert found["optimizer"] == 8 * trained < full["optimizer"] / 20
    assert found["weights"] == full["weights"] + 4 * trained
    assert found["reference"] == 0, "it is the model without its adapter"
    assert found["update"] < full["update"] and found["saving"] < full["saving"]
    assert found["sampling"] > full["sampling"], "every map is merged, not only those that are joined"


# What a setting makes smaller, or larger.
SMALLER = {
    "update": [{"checkpointing": True}, {"token_budget": 200}],
    "sampling": [{"max_new_tokens": 20}, {"questions": 2}, {"scorer": "token", "rectify": "threshold"}],
    "scoring": [{"group_size": 2}, {"questions": 2}, {"metric": "gradient"}],
    "evaluation": [{"eval_samples": 1}, {"max_new_tokens": 20}],
}


@pytest.mark.parametrize(("part", "flags"), [(part, flags) for part, each in SMALLER.items() for flags in each])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_takes_less(on_meta, on_gpu, part, flags):
    assert estimated(on_meta, on_gpu, **flags)[part] < estimated(on_meta, on_gpu)[part]


def test_an_entropy_term_keeps_more_of_each_chunk(on_meta):
    assert estimated(on_meta, entropy_bonus=0.1)["update"] > estimated(on_meta)["update"]


def test_without_a_scorer_of_gradients_nothing_is_scored_and_without_rollouts_nothing_sampled(on_meta):
    assert "scoring" not in estimated(on_meta, scorer="token")
    found = estimated(on_meta, rollouts=False, group_size=1)
    assert "sampling" not in found and found["update"] > 0


def test_a_checkpoint_is_copied_on_a_cpu_alone(model):
    """On a GPU the copies are in the memory of the CPU."""
    found = estimated(model)
    assert found["saving"] == found["weights"] + found["optimizer"] + found["evaluation"]
    assert "saving" not in estimated(model, on_gpu=True)


def test_on_a_gpu_sampling_takes_no_more_than_half_of_what_is_free(on_meta):
    config = config_with(questions=64, max_new_tokens=200)
    small, large = (
        memory_estimate(on_meta, config, **LENGTHS, on_gpu=True, available=gb) for gb in (0.2, 100.0)
    )  # fmt: skip
    stays = small["weights"] + small["optimizer"]
    assert small["sampling"] == pytest.approx((0.2 - stays) / 2) and small["sampling"] < large["sampling"]


def test_a_micro_batch_is_as_large_as_the_budget_where_there_is_more_than_one(on_meta):
    """Runs of this length alone would fill it by less: others of a batch fill the rest."""
    small, large = (estimated(on_meta, token_budget=tokens)["update"] for tokens in (300, 400))
    every = estimated(on_meta, token_budget=10_000)["update"]
    assert small < large < every == estimated(on_meta, token_budget=20_000)["update"]


def test_an_evaluation_by_hand(model):
    """Six rows, two of each question: their own caches, and at the beginning those of three prompts and of each row.

    A token's keys and values take 2 · 4 numbers in each of 2 layers; prompts have 20 tokens, completions 44.
    """
    sizes = replace(
        Sizes.of(model), keys=4, layers=2, heads=2, hidden=1, inner=1, vocabulary=10, read_twice=100, fast=True
    )
    config = config_with(eval_samples=2)

    def found(sizes: Sizes) -> float:
        return estimate.sampling_bytes(sizes, config, Prompts(20), 6, width=4, held_out=True)

    of_token, choosing = 4 * 16, 4 * 6 * 10 * 5 + 4 * 6 * 2 * 64 * 3  # logits, and scores of attention
    begin = 3 * (20 + 64) * of_token + 6 * 20 * of_token
    assert begin > choosing and found(sizes) == 4 * 100 + 6 * 64 * of_token + begin
    assert found(replace(sizes, vocabulary=1_000)) == 400 + 6 * 64 * of_token + choosing - 1_200 + 120_000
    wide, passing = replace(sizes, inner=10_000), 4 * (3 * 10_000 + 4)  # where the pass over the prompts takes most
    for packs, tokens in ((True, 5), (False, 20)):
        prompts = Prompts(20, 15)
        of_pass = estimate.sampling_bytes(replace(wide, packs=packs), config, prompts, 6, width=4, held_out=True)
        assert of_pass == 3 * (20 * of_token + tokens * passing)
    slow = replace(sizes, fast=False)  # in batches, each row with a prompt of its own, which stays to the end
    assert found(slow) == 6 * 64 * of_token + 6 * (2 * 20 + 64) * of_token + choosing


def test_what_prompts_begin_with_is_counted_once(on_meta):
    """In the update; in sampling their keys and values stand for each prompt, and only a pass is saved."""

    def parts(shared: int) -> dict[str, float]:
        config = config_with(questions=16, token_budget=20_000)
        prompts = Prompts(400, shared)
        return memory_estimate(on_meta, config, prompts=prompts, held_out=10, on_gpu=False, available=1e3)

    apart, together = parts(0), parts(380)
    assert together["update"] < 0.8 * apart["update"] and together["sampling"] <= apart["sampling"]
    assert together["evaluation"] <= apart["evaluation"] and together["weights"] == apart["weights"]


def test_logits_are_counted_by_chunks_and_not_by_tokens(on_meta, monkeypatch):
    """With all logits at once the update would take 16 bytes for each token and word."""
    whole = estimated(on_meta)["update"]
    monkeypatch.setattr("policy.logprobs.CHUNK_ELEMENTS", 5_000 * 10)
    assert whole - estimated(on_meta)["update"] > 16 * 5_000 * 300


def test_what_fits_is_printed_for_each_kind_of_training(monkeypatch, capsys):
    """A model of 0.1 M weights fits the smallest GPU; a vocabulary of 40 billion logits would not."""
    pytest.importorskip("peft")
    monkeypatch.setattr(memory, "SIZES", ("tiny",))
    memory.main(["--fits"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| TINY | ") and row.count("): 16 GB |") == 3
    monkeypatch.setattr(memory, "GPUS", (0.1,))
    memory.main(["--fits"])
    assert capsys.readouterr().out.splitlines()[-1].count("): none |") == 3


SHORT_RUNS = ["embedded, small micro-batches", "embedded, bf16 as on a GPU", "embedded, four examples"]


@pytest.mark.parametrize("setting", SHORT_RUNS)
def test_the_estimate_is_near_what_is_measured(setting):
    """Of whole runs; docs/memory.md has more of them."""
    flags = {**memory.SETTINGS[setting], "questions": 1, "group_size": 12, "max_new_tokens": 24}
    if setting == "embedded, four examples":
        flags |= {"questions": 4, "eval_samples": 4, "hold_out": 8, "eval_at_start": True}
    found = memory.measured(flags, "")
    assert 0.8 < 1e9 * found["estimate"]["total"] / found["measured"] < 1.25
