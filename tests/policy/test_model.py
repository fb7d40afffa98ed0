"""Loading: weights and files that are missing; what is read of a configuration."""

from __future__ import annotations

import pytest
import torch
from architectures import GEMMA3, LONGROPE, config_of, model_of
from conftest import padded_batch

import questions
import rollout
from harness import report
from policy import model as policy_model


def test_loaded_weights_are_fp32_whatever_the_file_holds(model, tokenizer, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = policy_model.load(str(tmp_path), "cpu")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded_tokenizer.decode(loaded_tokenizer("x+1")["input_ids"]) == "x+1"


def test_missing_gguf_file_and_missing_gguf_package(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        policy_model.load(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(policy_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf accelerate"):
        policy_model.load(str(tmp_path / "model.gguf"))


# --- configurations ----------------------------------------------------------------------------------------------


def test_fields_of_a_composite_configuration_are_those_of_its_language_model(tokenizer, tmp_path):
    """Gemma 3 from 4 B on, and others that read images: model.config itself has no vocabulary, size or positions."""
    model_of(config_of("gemma3")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = rollout.load(str(tmp_path), "cpu")
    assert not hasattr(model.config, "vocab_size") and policy_model.text_config(model).vocab_size == 64
    report.memory_estimate(model, sequences=4, max_new_tokens=8, token_budget=1_000, reference=False)
    kept, _ = questions.fitting(model, tokenizer, [{"problem": "1+1?"}, {"problem": "1" * 300}], 8)
    assert len(kept) == 1
    sampled = rollout.sample(model, tokenizer, ["a+b=", "what is 2?"], 3, max_new_tokens=20, seed=0)
    (batch,) = rollout.micro_batches(model, sampled, torch.arange(6), 10_000)
    part = sampled.rows(batch.rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    means = []
    for _ in range(2):
        logps, _ = rollout.token_logps(model, *part.tokens, packing=batch.packing)
        if not means:
            torch.testing.assert_close(part.logps, logps.detach(), atol=1e-4, rtol=1e-3)
        means.append(float(logps.detach().sum()))
        (-logps.sum()).backward()
        optimizer.step()
    assert means[1] > means[0]
    with pytest.raises(ValueError, match=r"256 positions of the model. Lower"):
        rollout.sample(model, tokenizer, ["a+b="], 2, max_new_tokens=253)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("llama", 256),
        ("gemma3", 256),
        ("mpt", 256),  # its bias is made for so many
        ("bloom", None),  # its bias has any length
        ("llama, dynamic", 256),
        ("llama, longrope", 32),
        ("phi3, longrope", 32),
    ],
)
def test_a_sequence_may_have_the_positions_at_which_a_token_does_not_depend_on_other_rows(name, limit):
    assert policy_model.position_limit(model_of(config_of(name))) == limit


def test_a_rotation_of_one_kind_of_layers_limits_the_positions_too():
    rotations = {"sliding_attention": {"rope_type": "default"}, "full_attention": {**LONGROPE, "factor": 8.0}}
    text = {**GEMMA3, "rope_parameters": rotations}
    assert policy_model.position_limit(model_of(config_of("gemma3", text_config=text))) == 32


@pytest.mark.parametrize("name", ["llama, longrope", "phi3, longrope"])
def test_rows_of_a_longrope_model_do_not_depend_on_their_neighbours_within_its_limit(name, tokenizer):
    model = model_of(config_of(name))

    def difference(longest):
        batch = padded_batch([(0, 5, longest - 5), (0, 6, 9)], 64)
        together, alone = (rollout.token_logps(model, *part)[0].detach() for part in (batch, [b[1:] for b in batch]))
        return float((together[1] - alone[0]).abs().max())

    assert difference(32) < 1e-5 < 1e-2 < difference(33)
    sampled = rollout.sample(model, tokenizer, ["a+b=", "x"], 3, max_new_tokens=28, seed=0)
    logps, _ = rollout.token_logps(model, *sampled.tokens)
    torch.testing.assert_close(sampled.logps, logps.detach(), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"32 positions of the model, beyond which its rotation.* Lower .* to 28"):
        rollout.sample(model, tokenizer, ["a+b=", "x"], 3, max_new_tokens=29)


def test_a_checkpoint_that_lacks_a_layer_is_refused(model, tokenizer, tmp_path):
    """transformers would fill it in at random, and the run would train that."""
    tensors = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=tensors)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"lacks 3 of the model's tensors, such as model\.layers\.1\.mlp\.down_proj"):
        policy_model.load(str(tmp_path), "cpu")


def test_a_head_that_is_tied_is_not_missing(new_model, tokenizer, tmp_path):
    new_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy_model.load(str(tmp_path), "cpu")
