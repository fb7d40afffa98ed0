"""Runs with --lora or 8-bit moments: resuming to the bit, what lies in their folders, and measuring them."""

from __future__ import annotations

import json

import pytest
import torch
from test_runs import broken_at, left_by, lines_of, resumed, settings

import dagrpo
import evaluate
from harness import runs
from harness.config import EXAMPLE, ConfigError, configure
from policy.lora import adapter_state, has_adapter
from policy.model import ModelError, load

pytest.importorskip("peft")

CHANGES = {"lora": 4, "merge": True, "kl": 0.1, "steps": 4}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "unbroken"
    dagrpo.train(settings(out, **CHANGES))
    return out


def adapter_of(out):
    return (out / "checkpoints" / "step-4" / "model" / "adapter_model.safetensors").read_bytes()


def test_a_run_with_an_adapter_resumes_to_the_bit(unbroken, tmp_path, monkeypatch):
    """The newest checkpoint is one step older than the log. The reference of --kl is the base."""
    broken_at(tmp_path / "run", 3, monkeypatch, **CHANGES)
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)
    assert adapter_of(tmp_path / "run") == adapter_of(unbroken)
    records = lines_of(unbroken / "metrics.jsonl")
    assert records[1]["kl"] == 0 and records[-1]["kl"] > 0
    assert all(record["sampler_gap"] < 1e-5 for record in records if "step" in record)


def test_a_run_with_8_bit_moments_resumes_to_the_bit(tmp_path, monkeypatch):
    """Pairs are judged by the moments, so that these are read too."""
    pytest.importorskip("bitsandbytes")
    changes = {"optimizer": "adamw8bit", "rectify": "batch", "metric": "optimizer", "steps": 4}
    dagrpo.train(settings(tmp_path / "unbroken", **changes))
    broken_at(tmp_path / "run", 3, monkeypatch, **changes)
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "unbroken")


def test_checkpoints_are_the_adapter_and_the_model_of_the_run_is_merged(unbroken):
    """The two compute the same, and the moments are those of the adapter alone."""
    checkpoint = unbroken / "checkpoints" / "step-4"
    assert {path.name for path in (checkpoint / "model").iterdir()} >= {"adapter_config.json", "tokenizer.json"}
    assert not (checkpoint / "model" / "model.safetensors").exists()
    adapter, _ = load(str(checkpoint / "model"))
    whole, _ = load(str(unbroken / "model"))
    assert has_adapter(adapter) and not has_adapter(whole)
    ids = torch.arange(3, 30)[None]
    torch.testing.assert_close(adapter(ids).logits, whole(ids).logits, atol=1e-4, rtol=1e-4)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert {"merged/model.safetensors", "model/adapter_model.safetensors"} <= manifest.keys()
    numbers = sum(value.numel() for value in adapter_state(adapter).values())
    assert manifest["optimizer.safetensors"]["bytes"] < 8 * numbers + 50_000


def test_without_merge_the_model_of_a_run_is_its_adapter_and_is_measured_as_in_the_run(tmp_path, capsys):
    """evaluate.py finds the base by adapter_config.json, and gives the accuracy that the run's log has."""
    out = tmp_path / "run"
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join((EXAMPLE / "held_out.jsonl").read_text().splitlines(keepends=True)[:20]))
    dagrpo.train(configure(
        model=str(EXAMPLE), data=[str(EXAMPLE / "train.jsonl")], eval_data=[str(held_out)], out=str(out),
        lora=2, steps=2, questions=2, group_size=4, max_new_tokens=40, eval_samples=1, eval_at_start=False,
        learning_rate=1e-2, eval_temperature=1.0,
    ))  # fmt: skip
    assert (out / "model" / "adapter_model.safetensors").exists() and not (out / "checkpoints/step-2/merged").exists()
    evaluate.main(
        ["--model", str(out / "model"), "--data", str(held_out), "--samples", "1", "--temperature", "1",
         "--max-new-tokens", "40", "--out", str(tmp_path / "result.json")]
    )  # fmt: skip
    (result,) = json.loads((tmp_path / "result.json").read_text()).values()
    assert [row["texts"] for row in result["rows"]] == [
        row["texts"] for row in lines_of(out / "evaluations.jsonl")[-1]["rows"]
    ]


def test_merging_may_begin_when_a_run_is_resumed(tmp_path):
    dagrpo.train(settings(tmp_path / "run", lora=2, steps=2))
    resumed(tmp_path / "run", steps=4, merge=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_run_may_begin_from_the_adapter_of_another(tmp_path):
    """Then all weights are trained, and the checkpoints are whole; another adapter is refused, and a word says why.

    Resumed, the reference of --kl is the start model to the bit, as it was made of base and adapter.
    """
    dagrpo.train(settings(tmp_path / "first", lora=2, steps=1))
    start = str(tmp_path / "first" / "model")
    few = {"model": start, "kl": 10.0, "max_new_tokens": 20, "eval_every": 1}
    dagrpo.train(settings(tmp_path / "second", steps=2, **few))
    dagrpo.train(settings(tmp_path / "broken", steps=1, **few))
    resumed(tmp_path / "broken", steps=2)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("second", "broken")]
    assert weights[0] == weights[1]
    with pytest.raises(ModelError, match="is an adapter already"):
        dagrpo.train(settings(tmp_path / "third", steps=1, model=start, lora=2))


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"lora": 4}, "--lora 2 -> 4"), ({"lora_targets": ["q_proj"]}, "--lora-targets  -> q_proj"),
     ({"optimizer": "adamw8bit"}, "--optimizer adamw -> adamw8bit")],
)  # fmt: skip
def test_a_resumed_run_keeps_the_kind_of_its_checkpoints_also_with_force(tmp_path, flags, message):
    config = {**vars(settings(tmp_path / "run", lora=2)), "force": False}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert runs.resumed_config({"resume": str(tmp_path / "run"), "lora": 2}).lora == 2
    with pytest.raises(ConfigError, match=f"{message}: its checkpoints hold no such thing"):
        runs.resumed_config({"resume": str(tmp_path / "run"), "force": True, **flags})


def test_a_base_that_is_gone_ends_the_program_in_a_sentence(tmp_path, capsys):
    dagrpo.train(settings(tmp_path / "run", lora=2, steps=1))
    config = tmp_path / "run" / "model" / "adapter_config.json"
    text = json.loads(config.read_text())
    assert text["base_model_name_or_path"] == str(EXAMPLE)
    config.unlink()  # it is a link to the checkpoint's
    config.write_text(json.dumps({**text, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(SystemExit):
        evaluate.main(["--model", str(tmp_path / "run" / "model"), "--data", str(EXAMPLE / "held_out.jsonl")])
    assert f"whose base model is {tmp_path / 'gone'}: there is no such folder." in capsys.readouterr().err


def test_the_metric_of_the_optimizer_is_refused_where_the_head_has_no_moments():
    assert configure(lora=4).resolved_metric == "gradient" and configure().resolved_metric == "optimizer"
    with pytest.raises(ConfigError, match="--metric optimizer: with --lora"):
        configure(lora=4, metric="optimizer")
