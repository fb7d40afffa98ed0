"""Loading: weights, files that are missing, and models that are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, MambaConfig, MambaForCausalLM

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


def test_a_head_with_a_logit_factor_is_understood():
    config = CohereConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.5,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    policy_model.check_head(CohereForCausalLM(config).eval())


def test_a_head_that_computes_something_else_is_refused(model):
    plain = model.forward
    model.forward = lambda **inputs: type("Output", (), {"logits": plain(**inputs).logits.square()})
    with pytest.raises(NotImplementedError, match="output head of Qwen2ForCausalLM"):
        policy_model.check_head(model)


def test_a_model_that_keeps_another_state_than_keys_and_values_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(NotImplementedError, match="attention layers only"):
        policy_model.check_cache(model)
