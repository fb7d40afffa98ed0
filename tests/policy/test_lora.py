"""Adapters: W + s·BA for the sampler, the base for the reference, and both as files."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, config_of, model_of
from conftest import random_model, small_rollouts
from safetensors.torch import load_file, save_file

import dagrpo
import rollout
import scoring
from harness.config import Config
from policy import checks, decoding, lora
from policy.logprobs import token_logps
from policy.model import ModelError, check_files, load

pytest.importorskip("peft")


def adapted(model, rank=4, spread=0.05, **options):
    """The model with an adapter that has learned something: B is not 0."""
    lora.add(model, "base", lora.Adapter(rank, **options))
    generator = torch.Generator().manual_seed(1)
    for name, matrix in lora.adapter_state(model).items():
        if ".lora_B." in name:
            matrix.copy_(spread * torch.randn(matrix.shape, generator=generator))
    return model


def merged(model):
    whole = copy.deepcopy(model)
    lora.merge(whole)
    return whole


def base_weights(model):
    return {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if ".lora_" not in name}


def learner_of(model, **flags):
    """As `dagrpo.new_learner` makes it of a model that is loaded already."""
    config = Config(model="m", data=["d"], **flags)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(rollout, "load", lambda *_, **__: (model, None))
        return dagrpo.new_learner(config), config


def updated(model, rollouts, advantages, **flags):
    """The sums of one update of the model, which changes it; and its learner."""
    learner, config = learner_of(model, max_new_tokens=20, token_budget=200, warmup=0, **flags)
    by_token = advantages[:, None].expand(rollouts.logps.shape)
    return dagrpo.update(learner, rollouts, by_token, advantages != 0, config, "update"), learner


ADVANTAGES = torch.tensor([1.0, -1, 0.5, 0, -0.5, 2, 0, 0, 1, -2, 0, 0.3])
IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(0))


# --- what a model with an adapter computes -----------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_to_the_bit():
    before = random_model()(IDS).logits
    model = random_model()
    lora.add(model, "base", lora.Adapter(4))
    assert torch.equal(model(IDS).logits, before)
    assert torch.equal(
        decoding.whole_weight(model.model.layers[0].mlp.up_proj), random_model().model.layers[0].mlp.up_proj.weight
    )


@torch.no_grad()
def test_the_weight_of_a_map_is_w_plus_alpha_over_rank_times_ba():
    model = adapted(random_model(), rank=3, alpha=6.0)
    module = model.model.layers[1].self_attn.k_proj
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    assert a.shape == (3, 32) and b.shape == (16, 3)
    torch.testing.assert_close(lora.whole_weight(module), module.base_layer.weight + 2 * b @ a)
    assert not torch.equal(lora.whole_weight(module), module.base_layer.weight)


def test_the_weight_is_made_in_fp32_inside_of_an_autocast():
    """bf16 would round BA to three digits; the sampler's weights are made inside of one."""
    module = adapted(random_model()).model.layers[0].mlp.down_proj
    expected = lora.whole_weight(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lora.whole_weight(module), expected)


def test_the_sampler_is_the_fast_one_and_agrees_with_the_trainer_as_without_an_adapter(tokenizer, monkeypatch):
    monkeypatch.setattr(decoding, "PlainSteps", None)
    gaps = []
    for model in (random_model(), adapted(random_model())):
        sampled = small_rollouts(model, tokenizer)
        with torch.no_grad():
            trained, _ = token_logps(model, *sampled.tokens)
        gaps.append(float((trained - sampled.logps)[sampled.prediction_mask].abs().mean()))
    assert gaps[1] < max(2 * gaps[0], 1e-6), gaps
    base = token_logps(random_model(), *sampled.tokens)[0].detach()
    assert float((base - sampled.logps)[sampled.prediction_mask].abs().mean()) > 1e-2, "the adapter is in the sampler"


def test_completions_are_those_of_the_merged_model(tokenizer):
    model = adapted(random_model())
    assert small_rollouts(model, tokenizer).texts == small_rollouts(merged(model), tokenizer).texts


@pytest.mark.parametrize("name", ["cohere", "falcon", "gemma2", "gpt_bigcode", "gptj", "mixtral", "opt", "qwen2"])
def test_an_adapter_works_in_models_of_other_architectures(name):
    """Sampler and trainer agree on it, and the merged model computes the same."""
    model = adapted(model_of(config_of(name)))
    checks.check_model(model)
    torch.testing.assert_close(model(IDS).logits, merged(model)(IDS).logits, atol=1e-3, rtol=1e-3)
    with lora.without_adapter(model):
        assert torch.equal(model(IDS).logits, model_of(config_of(name))(IDS).logits)


def test_gpt2_keeps_its_weights_the_other_way_around():
    import transformers

    model = adapted(model_of(transformers.GPT2Config(**ARCHITECTURES["gpt_bigcode"][1])))
    torch.testing.assert_close(model(IDS).logits, merged(model)(IDS).logits, atol=1e-4, rtol=1e-4)


def test_scores_of_pairs_are_those_of_the_merged_model(tokenizer):
    """The head has no adapter: its gradients need nothing else than hidden states and logits."""
    model = adapted(random_model())
    sampled = small_rollouts(model, tokenizer)
    for scorer in ("gradient", "state"):
        grams = [scoring.gradient_gram(m, *sampled.tokens, 4, scorer=scorer) for m in (model, merged(model))]
        torch.testing.assert_close(*grams, atol=1e-3, rtol=1e-4)
    start = random_model()
    lora.add(start, "base", lora.Adapter(4))
    grams = [scoring.gradient_gram(m, *sampled.tokens, 4) for m in (start, random_model())]
    assert torch.equal(*grams)


# --- training ----------------------------------------------------------------------------------------------------


def test_the_first_step_of_full_rank_is_that_of_the_weights_themselves(tokenizer):
    """A = 1, B = 0 and s = 1: then ∂L/∂B = ∂L/∂W and ∂L/∂A = 0, so that AdamW moves B as it would move W.

    The other weights stand still on both sides, and there is no decay: that of W is towards 0, that of B towards W.
    """
    whole, model = random_model(), random_model()
    sampled = small_rollouts(whole, tokenizer)
    maps = lora.linear_maps(whole)
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name.split(".")[-2] in maps and name.endswith("weight"))
    start = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    lora.add(model, "m", lora.Adapter(48, alpha=48.0))
    with torch.no_grad():
        for name, matrix in model.named_parameters():
            if ".lora_A." in name:
                matrix.copy_(torch.eye(*matrix.shape))
    options = {"learning_rate": 1e-2, "weight_decay": 0.0, "max_grad_norm": 0.5}
    sums, _ = updated(whole, sampled, ADVANTAGES, **options)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(lora, "begin", lambda *_: None)
        ours, _ = updated(model, sampled, ADVANTAGES, lora=48, **options)
    assert ours["grad_norm"] == pytest.approx(sums["grad_norm"], rel=1e-4) and sums["grad_norm"] > 0.5
    moved = 0
    for name, module in model.named_modules():
        if lora.is_adapted(module):
            step = dict(whole.named_parameters())[f"{name}.weight"].detach() - start[f"{name}.weight"]
            found = lora.whole_weight(module) - start[f"{name}.weight"]
            torch.testing.assert_close(found, step, atol=1e-5, rtol=0)
            moved += int((step.abs() > 5e-3).sum())
    assert moved > 10_000, "steps of the learning rate, 1e-2, nearly everywhere"


def test_only_the_adapter_is_trained_and_the_base_stays_to_the_bit(tokenizer):
    model = random_model()
    start = {name: value.clone() for name, value in base_weights(model).items()}
    sampled = small_rollouts(model, tokenizer)
    _, learner = updated(model, sampled, ADVANTAGES, lora=4, learning_rate=1e-2)
    assert all(torch.equal(value, start[name]) for name, value in base_weights(model).items())
    trained = {name for name, p in model.named_parameters() if p in learner.optimizer.state}
    assert trained == set(lora.adapter_state(model)) and len(trained) == 2 * 2 * 7
    assert any(bool(value.any()) for name, value in lora.adapter_state(model).items() if ".lora_B." in name)


def test_targets_are_the_only_maps_with_an_adapter():
    learner, _ = learner_of(random_model(), lora=2, lora_alpha=1.0, lora_targets=["q_proj", "v_proj"])
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in lora.adapter_state(learner.model)}
    assert names == {"q_proj", "v_proj"}
    assert learner.model.model.layers[0].self_attn.q_proj.scaling["default"] == 0.5


def test_the_head_has_no_adapter_also_where_a_map_below_it_has_its_name():
    model = random_model()
    model.model.layers[0].mlp.register_module("lm_head", torch.nn.Linear(32, 32))
    lora.add(model, "base", lora.Adapter(2, targets=("lm_head",)))
    assert type(model.lm_head) is torch.nn.Linear and lora.is_adapted(model.model.layers[0].mlp.lm_head)


def test_the_reference_is_the_model_without_its_adapter_and_no_copy(tokenizer):
    """k3 is then that of a copy of the start model, and the adapter is still trained."""
    model, start = adapted(random_model()), random_model()
    sampled = small_rollouts(model, tokenizer)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(lora, "begin", lambda *_: None)
        sums, learner = updated(model, sampled, ADVANTAGES, lora=4, kl=0.1, learning_rate=1e-2)
        assert learner.reference is model
        other, config = learner_of(adapted(random_model()), max_new_tokens=20, warmup=0, kl=0.1, learning_rate=1e-2)
    other.reference = start
    by_token = ADVANTAGES[:, None].expand(sampled.logps.shape)
    expected = dagrpo.update(other, sampled, by_token, ADVANTAGES != 0, config, "update")
    assert expected["kl"] > 1 and sums["kl"] == pytest.approx(expected["kl"], rel=1e-4)
    for ours, theirs in zip(model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        assert ours.requires_grad == theirs.requires_grad


def test_without_lora_the_adapter_of_the_start_model_becomes_part_of_its_weights():
    model = adapted(random_model())
    expected = model(IDS).logits
    learner, _ = learner_of(model, kl=0.1)
    torch.testing.assert_close(learner.model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert {name for name, _ in learner.model.named_parameters()} == {
        name for name, _ in random_model().named_parameters()
    }
    assert all(parameter.requires_grad for parameter in learner.model.parameters())
    assert learner.reference is not learner.model and not lora.has_adapter(learner.reference)


def test_a_second_adapter_on_top_of_one_is_refused():
    with pytest.raises(ModelError, match="--lora 2: --model m is an adapter already"):
        learner_of(adapted(random_model()), lora=2)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tokenizer, tmp_path):
    folder = tmp_path / "base"
    random_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(base, tmp_path):
    """A folder with an adapter, and its model."""
    model = random_model()
    lora.add(model, str(base), lora.Adapter(4))
    for matrix in lora.adapter_state(model).values():
        torch.nn.init.normal_(matrix, std=0.05)
    lora.save_adapter(model, lora.adapter_state(model), tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_what_is_saved_loads_as_it_was_with_its_base_and_can_be_trained_on(saved):
    folder, model = saved
    found, tokenizer = load(str(folder))
    assert torch.equal(found(IDS).logits, model(IDS).logits) and tokenizer.pad_token == "<pad>"
    assert {n for n, p in found.named_parameters() if p.requires_grad} == set(lora.adapter_state(model))


def test_peft_reads_what_is_saved(saved):
    """The names of tensors are those that it writes itself."""
    from peft import AutoPeftModelForCausalLM

    folder, model = saved
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in names and len(names) == 28
    found = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(found(IDS).logits, model(IDS).logits)


def test_an_adapter_that_peft_has_saved_is_read(base, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, target_modules="all-linear", use_rslora=True, init_lora_weights=False)
    theirs = get_peft_model(random_model(), config).eval()
    theirs.peft_config["default"].base_model_name_or_path = str(base)
    theirs.save_pretrained(tmp_path / "theirs")
    found, _ = load(str(tmp_path / "theirs"))
    torch.testing.assert_close(found(IDS).logits, theirs(IDS).logits)
    assert not torch.allclose(found(IDS).logits, random_model()(IDS).logits, atol=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_is_a_whole_one_of_the_same_class(tied, tmp_path):
    from transformers import AutoModelForCausalLM

    model = adapted(random_model(tie_word_embeddings=tied))
    lora.save_merged(model, lora.adapter_state(model), tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(found) is type(model) and not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
    assert (found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()) == tied


def test_a_merged_model_has_the_adapter_of_the_copy_and_not_what_is_trained_meanwhile(tmp_path):
    model = adapted(random_model())
    state = {name: value.clone() for name, value in lora.adapter_state(model).items()}
    expected = model(IDS).logits
    for value in lora.adapter_state(model).values():
        value.add_(1.0)
    lora.save_merged(model, state, tmp_path)
    found = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(found(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_same_adapter_gives_the_same_files(saved, tmp_path):
    """The names of targets are a set in peft, whose order is another in each process."""
    folder, model = saved
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets) and len(targets) == 7
    lora.save_adapter(model, lora.adapter_state(model), tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_path_of_the_base_is_kept_whole(base, monkeypatch):
    """A relative one would lead elsewhere from another folder. A name of the Hub stays a name."""
    monkeypatch.chdir(base.parent)
    for given, kept in (("base", str(base)), ("owner/name", "owner/name")):
        model = random_model()
        lora.add(model, given, lora.Adapter(2))
        assert model.peft_config["default"].base_model_name_or_path == kept


def test_a_whole_model_beside_an_adapters_file_is_that_model(saved):
    folder, _ = saved
    assert lora.is_adapter(str(folder))
    random_model().save_pretrained(folder)
    assert not lora.is_adapter(str(folder))


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "adapter_model.safetensors")


def changed(**fields):
    def change(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))

    return change


FAULTS = [
    (changed(base_model_name_or_path=None), "it is an adapter (LoRA) that does not say of which model"),
    (changed(base_model_name_or_path="/nowhere/base"), "whose base model is /nowhere/base: there is no such folder."),
    (changed(use_dora=True), "it is an adapter of a kind that is not read here (use_dora)"),
    (changed(peft_type="IA3"), "it is an adapter of a kind that is not read here (IA3)"),
    (changed(bias="all"), "not read here (bias)"),
    (changed(modules_to_save=["lm_head"]), "not read here (modules_to_save)"),
    (changed(init_lora_weights="pissa"), "not read here (init_lora_weights)"),
    (changed(megatron_config={"a": 1}, megatron_core="os"), "not read here (megatron_"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "its adapter_config.json is no JSON object."),
    (lambda folder: (folder / "adapter_config.json").write_text("[]"), "its adapter_config.json is no JSON object."),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "there are no weights in it (adapter_model"),
    (lambda folder: os.truncate(folder / "adapter_model.safetensors", 5_000), "adapter_model.safetensors is cut off"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_an_adapter_that_cannot_be_used_is_refused_before_anything_is_loaded(saved, fault, message):
    folder, _ = saved
    fault(folder)
    with pytest.raises(ModelError) as error:
        check_files(str(folder), "--model")
    assert str(error.value).startswith(f"--model {folder}") and message in str(error.value)


LATE = [
    (changed(target_modules=["q_proj"]), "its adapter is not of the model .*: model.layers.0.* is not in that model"),
    (changed(target_modules=["q_proj", "lm_head"], exclude_modules=None), "its adapter is not of the model"),
    (without_a_tensor, r"its adapter is not of the model .*lora_A.default.weight is missing"),
    (changed(r=5), r"its adapter cannot be read \(RuntimeError"),
    (changed(target_modules=["wombat"]), r"its adapter cannot be read \(\w+Error: Target modules"),
]


@pytest.mark.parametrize(("fault", "message"), LATE)
def test_an_adapter_of_another_model_is_told_in_a_sentence(saved, fault, message):
    folder, _ = saved
    fault(folder)
    with pytest.raises(ModelError, match=message):
        load(str(folder))


def test_an_adapter_of_an_adapter_is_refused(saved, tmp_path):
    folder, model = saved
    model.peft_config["default"].base_model_name_or_path = str(folder)
    lora.save_adapter(model, lora.adapter_state(model), tmp_path / "second")
    with pytest.raises(ModelError, match=r"its base model, .*, is an adapter itself"):
        check_files(str(tmp_path / "second"), "--model")


def test_a_target_that_the_model_has_not_is_told_with_those_that_it_has():
    with pytest.raises(
        ModelError, match=r"--lora-targets query: Qwen2ForCausalLM .*; there are down_proj, gate_proj, k_p"
    ):
        lora.add(random_model(), "base", lora.Adapter(2, targets=("q_proj", "query")))


def test_a_missing_package_is_named(saved, monkeypatch):
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda name: None)
    for what in (
        lambda: lora.add(random_model(), "base", lora.Adapter(2)),
        lambda: check_files(str(saved[0]), "--model"),
    ):
        with pytest.raises(ModelError, match=r"to use an adapter .LoRA., run: pip install peft"):
            what()
