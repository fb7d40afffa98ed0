"""What is refused when a model is loaded, and what is not."""

from __future__ import annotations

import warnings

import pytest
import torch
from architectures import ARCHITECTURES, config_of, model_of

import rollout
from harness.config import Config
from harness.estimate import Prompts, memory_estimate
from policy import checks, decoding
from policy.model import ModelError

REFUSED = {
    "falcon_h1": "from FalconH1ForCausalLM here: two tokens of two prompts end in RuntimeError",
    "mamba": "MambaForCausalLM has layers that keep another state than keys and values",
    "openai-gpt": "from OpenAIGPTLMHeadModel here: two tokens of two prompts end in RuntimeError",
    "rwkv": r"sampled log-probabilities of RwkvForCausalLM differ by up to [1-9]",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_refused_in_a_sentence_or_sampled_and_trained_alike(name, tokenizer):
    model = model_of(config_of(name))
    if name in REFUSED:
        with pytest.raises(NotImplementedError, match=REFUSED[name]):
            checks.check_model(model)
        return
    checks.check_model(model)
    assert memory_estimate(model, Config(model="m", data=["d"]), prompts=Prompts(9), held_out=2)["total"] > 0
    sampled = rollout.sample(model, tokenizer, ["a+b=", "what is 2?", "x"], 2, max_new_tokens=16, seed=0)
    (batch,) = rollout.micro_batches(model, sampled, torch.arange(6), 10_000)
    part = sampled.rows(batch.rows)
    logps, _ = rollout.token_logps(model, *part.tokens, packing=batch.packing)
    torch.testing.assert_close(part.logps, logps.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "mixtral", "opt"])
def test_the_rounding_of_bf16_is_no_reason_to_refuse_a_model(name):
    checks.check_model(model_of(config_of(name)).to(torch.bfloat16))


@pytest.mark.parametrize("fast", [True, False])
def test_a_model_that_reads_no_positions_is_refused(model, monkeypatch, fast):
    """Rows that are padded on the left would be rotated as if the padding were text."""
    monkeypatch.setattr(decoding, "FAST_MODELS", decoding.FAST_MODELS if fast else ())
    plain = model.model.forward
    model.model.forward = lambda position_ids=None, **options: plain(**options)
    with pytest.raises(NotImplementedError, match=r"Qwen2ForCausalLM differ by .* Take another model"):
        checks.check_model(model)


def test_a_model_that_does_not_separate_rows_of_one_sequence_is_refused(model):
    plain = model.model.forward

    def forward(attention_mask=None, **options):
        whole = attention_mask is None or attention_mask.dim() == 2
        return plain(attention_mask=attention_mask if whole else torch.ones_like(attention_mask).tril(), **options)

    model.model.forward = forward
    with pytest.raises(NotImplementedError, match="with several rows in one sequence, of Qwen2ForCausalLM differ"):
        checks.check_model(model)


def test_the_check_draws_no_random_numbers_prints_nothing_and_changes_no_weight(capfd):
    """Also where it refuses a model."""
    for name in ("qwen2", "rwkv", "openai-gpt"):
        model = model_of(config_of(name))
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        state = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if name == "qwen2":
                checks.check_model(model)
                assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
            else:
                with pytest.raises(NotImplementedError):
                    checks.check_model(model)
        assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_random_numbers_that_a_model_draws_are_not_missing_afterwards(model):
    """Else a run would depend on how often the check ran the model."""
    plain = model.model.forward
    drawn = []
    model.model.forward = lambda **options: drawn.append(torch.rand(1)) or plain(**options)
    state = torch.get_rng_state()
    checks.check_model(model)
    assert drawn and torch.equal(torch.get_rng_state(), state)


def test_a_model_with_weights_that_are_nan_is_refused(model, tokenizer, tmp_path):
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 3] = torch.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 of its 27 tensors hold NaN.*layers\.0\.mlp\.down_proj"):
        rollout.load(str(tmp_path), "cpu")
    with pytest.raises(NotImplementedError, match="Qwen2ForCausalLM cannot be trained: the model gives NaN"):
        checks.check_sampling(model)
    with pytest.raises(NotImplementedError, match="the model gives NaN"):
        checks.check_head(model)


# --- the head ----------------------------------------------------------------------------------------------------


def test_a_head_with_a_logit_factor_is_understood():
    checks.check_head(model_of(config_of("cohere")))


def test_a_head_that_computes_something_else_is_refused(model):
    plain = model.forward
    model.forward = lambda **inputs: type("Output", (), {"logits": plain(**inputs).logits.square()})
    for check in (checks.check_head, checks.check_model):
        with pytest.raises(NotImplementedError, match="output head of Qwen2ForCausalLM"):
            check(model)
