"""Loading: weights and files that are missing; what is read of a configuration."""

from __future__ import annotations

import pytest
import torch
from architectures import GEMMA3, LONGROPE, config_of, model_of
from conftest import Casts, padded_batch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicCache

import questions
import rollout
from harness.config import Config
from harness.estimate import Prompts, memory_estimate
from policy import checks
from policy import model as policy_model
from policy.model import ModelError


def test_loaded_weights_are_fp32_whatever_the_file_holds(model, tokenizer, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = policy_model.load(str(tmp_path), "cpu")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded_tokenizer.decode(loaded_tokenizer("x+1")["input_ids"]) == "x+1"


def test_loaded_weights_begin_where_a_vector_can(model, tokenizer, tmp_path):
    """A file may place them at any byte, and products round by it: two files of one model would not be equal."""
    for number in range(1, 5):  # the header of the file, and with it the place of all tensors, grows
        model.generation_config.max_length = 10**number
        model.save_pretrained(tmp_path / str(number))
        tokenizer.save_pretrained(tmp_path / str(number))
        content = (tmp_path / str(number) / "model.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        padded = content[8 : 8 + size] + b" " * 8 * number
        whole = len(padded).to_bytes(8, "little") + padded + content[8 + size :]
        (tmp_path / str(number) / "model.safetensors").write_bytes(whole)
        loaded, _ = rollout.load(str(tmp_path / str(number)))
        assert {parameter.data_ptr() % 64 for parameter in loaded.parameters()} == {0}


def test_missing_gguf_file_and_missing_gguf_package(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no such file"):
        policy_model.check_files(str(tmp_path / "model.gguf"), "--model")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(policy_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install gguf accelerate"):
        policy_model.check_files(str(tmp_path / "model.gguf"), "--model")


def test_unpacking_a_gguf_file_draws_no_bar_in_a_file(tmp_path, monkeypatch, capsys):
    """transformers' own switch for bars does not reach this one."""

    def unpack(*_, **__):
        list(policy_model.modeling_gguf_pytorch_utils.tqdm([1, 2]))
        raise ValueError("that is enough")

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(policy_model.AutoModelForCausalLM, "from_pretrained", unpack)
    with pytest.raises(ModelError, match="that is enough"):
        policy_model.load(str(tmp_path / "model.gguf"))
    assert capsys.readouterr().err == ""


# --- configurations ----------------------------------------------------------------------------------------------


def test_fields_of_a_composite_configuration_are_those_of_its_language_model(tokenizer, tmp_path):
    """Gemma 3 from 4 B on, and others that read images: model.config itself has no vocabulary, size or positions."""
    model_of(config_of("gemma3")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = rollout.load(str(tmp_path), "cpu")
    assert not hasattr(model.config, "vocab_size") and policy_model.text_config(model).vocab_size == 64
    assert memory_estimate(model, Config(model="m", data=["d"]), prompts=Prompts(9), held_out=2)["total"] > 0
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
    with pytest.raises(ModelError, match=r"lacks 3 of the model's tensors, such as model\.layers\.1\.mlp\.down_proj"):
        policy_model.load(str(tmp_path), "cpu")


def test_a_head_that_is_tied_is_not_missing(new_model, tokenizer, tmp_path):
    new_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy_model.load(str(tmp_path), "cpu")


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def bent_heads():
    """Heads that change their logits: by a factor, by a divisor, by a soft cap that bends nearly all of them."""
    torch.manual_seed(0)
    models = {
        "factor": CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.5)),
        "divisor": GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
        "soft cap": Gemma2ForCausalLM(
            Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0, attn_implementation="eager")
        ),
    }
    for model in models.values():
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return {name: model.eval() for name, model in models.items()}


@pytest.mark.parametrize("name", ["factor", "divisor", "soft cap"])
def test_logits_are_those_of_the_models_own_head(name):
    model = bent_heads()[name]
    ids = torch.arange(3, 13)[None]
    expected = model(input_ids=ids).logits
    hidden = policy_model.hidden_states(model, ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(policy_model.logits_from_hidden(model, hidden), expected, rtol=1e-5, atol=1e-5)
    plain = model.get_output_embeddings()(hidden)
    assert float((plain - expected).detach().abs().max()) > 0.5, "the head does what it is named for"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["factor", "divisor", "soft cap"])
def test_gradients_of_the_vocabulary_equal_autograd_through_the_head(name, temperature):
    model = bent_heads()[name]
    head = model.get_output_embeddings()
    hidden, targets = torch.randn(5, 32), torch.tensor([3, 1, 60, 7, 9])
    plain = head(hidden).detach().requires_grad_()
    bent = {
        "factor": plain * 0.5,
        "divisor": plain / 4,
        "soft cap": 3 * torch.tanh(plain / 3),
    }[name]
    chosen = (bent / temperature).log_softmax(-1).gather(1, targets[:, None]).sum()
    (expected,) = torch.autograd.grad(chosen, plain)
    found = policy_model.vocabulary_gradients(model, hidden, targets, temperature).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trained", [True, False])
def test_the_head_is_cast_to_bf16_once_also_where_it_has_no_gradient(model, trained):
    """Autocast itself casts the weights of a reference model again for each chunk of tokens."""
    model.requires_grad_(trained)
    hidden = torch.randn(5, 3, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = policy_model.logits_from_hidden(model, hidden)
        with Casts((64, 32)) as casts:
            head = policy_model.head_of(model)
            found = [policy_model.logits_from_hidden(model, chunk, head) for chunk in hidden]
    assert casts.count == (0 if trained else 1)  # autocast has kept that of the first call
    torch.testing.assert_close(torch.stack(found), expected)


def test_without_autocast_the_head_is_the_models_own(model):
    model.requires_grad_(False)
    assert policy_model.head_of(model) is model.get_output_embeddings()


def test_positions_count_real_tokens_where_a_model_learns_them_by_number():
    """Rotary positions do not show it; GPT-2's do: padding on the left must change nothing."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()
    ids = torch.randint(3, 64, (1, 6))
    alone = policy_model.hidden_states(model, ids, torch.ones(1, 6, dtype=torch.bool))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    behind_padding = policy_model.hidden_states(model, padded, padded > 0)[:, 4:]
    torch.testing.assert_close(behind_padding, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_in_a_cache_is_not_attended_to(model):
    """A token behind a cached prompt with padding on its left has the state that it has without padding."""
    ids = torch.randint(3, 64, (1, 6))
    mask = torch.ones(1, 6, dtype=torch.bool)
    alone = policy_model.hidden_states(model, ids, mask)[:, -1]
    cache = DynamicCache(config=model.config)
    padded, padded_mask = (torch.nn.functional.pad(values, (4, 0)) for values in (ids, mask))
    policy_model.hidden_states(model, padded[:, :-1], padded_mask[:, :-1], cache)
    last = policy_model.hidden_states(model, padded[:, -1:], padded_mask, cache)[:, -1]
    torch.testing.assert_close(last, alone, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_without_padding_pads_with_its_eos(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    assert without.pad_token_id is None
    monkeypatch.setattr(policy_model.AutoTokenizer, "from_pretrained", lambda *_, **__: without)
    assert policy_model.load(str(tmp_path), "cpu")[1].pad_token_id == 1


@pytest.mark.parametrize("check", ["check_cache", "check_sampling"])
def test_a_loaded_model_is_checked(model, tokenizer, tmp_path, monkeypatch, check):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def refuse(model):
        raise NotImplementedError(f"by {check}")

    monkeypatch.setattr(checks, check, refuse)
    with pytest.raises(NotImplementedError, match=f"by {check}"):
        rollout.load(str(tmp_path), "cpu")
