"""Checkpoints: whole or not there, and everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_model
from transformers import AutoModelForCausalLM

from harness import checkpoint


def learner_of(model, tokenizer, steps=3):
    """A model after some steps of AdamW on random gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 10))
    learner = SimpleNamespace(model=model, tokenizer=tokenizer, optimizer=optimizer, schedule=schedule)
    for _ in range(steps):
        step(learner)
    return learner


def step(learner):
    for parameter in learner.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    learner.optimizer.step()
    learner.schedule.step()


def written(learner, path, **state):
    weights, tensors = checkpoint.copied(learner)
    generators = checkpoint.generators_of()
    tensors |= generators.tensors
    state = {"step": 3, "taken": 12, "updates": learner.schedule.last_epoch, **generators.values, **state}
    checkpoint.write_checkpoint(path, learner, weights, tensors, state)
    return path


def test_what_is_restored_goes_on_as_what_never_stopped(tokenizer, tmp_path):
    """Weights, both moments and their count, learning rate, and the random numbers of PyTorch, NumPy and Python."""
    learner = learner_of(random_model(), tokenizer)
    path = written(learner, tmp_path / "checkpoints" / "step-3")
    expected_numbers = torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]
    torch.manual_seed(5)
    for _ in range(3):
        step(learner)

    torch.manual_seed(99), np.random.seed(9), random.seed(9)
    found, notes = checkpoint.newest(tmp_path)
    assert found.path == path and found.step == 3 and found.taken == 12 and notes == []
    resumed = learner_of(AutoModelForCausalLM.from_pretrained(found.model), tokenizer, steps=0)
    checkpoint.restore(resumed, found)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]) == expected_numbers
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(4e-4)
    torch.manual_seed(5)
    for _ in range(3):
        step(resumed)
    for ours, theirs in zip(resumed.model.parameters(), learner.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for parameter, other in zip(resumed.model.parameters(), learner.model.parameters(), strict=True):
        for name, value in resumed.optimizer.state[parameter].items():
            assert torch.equal(value, learner.optimizer.state[other][name])


def test_what_is_trained_meanwhile_is_not_in_the_copy(tokenizer, tmp_path):
    """The thread writes from a copy: the next step may change weights and moments at once."""
    learner = learner_of(random_model(), tokenizer)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    weights, tensors = checkpoint.copied(learner)
    first = {name: value.clone() for name, value in tensors.items()}
    step(learner)
    checkpoint.write_checkpoint(tmp_path / "step-3", learner, weights, tensors, {})
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "step-3" / "model")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), before, strict=True))
    assert all(torch.equal(tensors[name], value) for name, value in first.items())


def test_tied_weights_are_kept_once_and_stay_tied(tokenizer, tmp_path):
    model = random_model(tie_word_embeddings=True)
    weights, _ = checkpoint.copied(learner_of(model, tokenizer, steps=1))
    written(learner_of(model, tokenizer, steps=1), tmp_path / "step-3")
    size = (tmp_path / "step-3" / "model" / "model.safetensors").stat().st_size
    untied = random_model()
    written(learner_of(untied, tokenizer, steps=1), tmp_path / "step-4")
    assert size < (tmp_path / "step-4" / "model" / "model.safetensors").stat().st_size - 64 * 32 * 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "step-3" / "model")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert len({value.data_ptr() for value in weights.values()}) < len(weights)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
        (lambda path: (path / "state.json").write_text("{"), "state.json has 1 bytes in place of"),
        (lambda path: flip(path / "model" / "model.safetensors"), "model/model.safetensors is not what was written"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tokenizer, tmp_path, damage, fault):
    learner = learner_of(random_model(), tokenizer)
    for number in (2, 10):  # by number, not by name
        written(learner, tmp_path / "checkpoints" / f"step-{number}", step=number)
    assert checkpoint.newest(tmp_path)[0].step == 10
    damage(tmp_path / "checkpoints" / "step-10")
    found, (note,) = checkpoint.newest(tmp_path)
    assert found.step == 2 and "step-10: this checkpoint is damaged" in note and fault in note


def flip(path):
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_half_of_a_checkpoint_is_not_looked_at(tokenizer, tmp_path):
    (tmp_path / "checkpoints" / "step-7.part").mkdir(parents=True)
    assert checkpoint.newest(tmp_path) == (None, [])


def test_a_write_that_fails_leaves_nothing_and_the_one_before_it(tokenizer, tmp_path, monkeypatch):
    learner = learner_of(random_model(), tokenizer)
    path = written(learner, tmp_path / "checkpoints" / "step-3")
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        written(learner, tmp_path / "checkpoints" / "step-4")
    assert [each.name for each in path.parent.iterdir()] == ["step-3"]


def test_nothing_is_pickled(tokenizer, tmp_path):
    path = written(learner_of(random_model(), tokenizer), tmp_path / "step-3")
    suffixes = {file.suffix for file in path.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}


def test_a_file_has_the_old_text_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    checkpoint.write_whole(path, "old")
    monkeypatch.setattr(checkpoint, "flush_file", lambda _: (_ for _ in ()).throw(OSError(5, "gone")))
    with pytest.raises(OSError):
        checkpoint.write_whole(path, "new")
    assert path.read_text() == "old"


def test_a_model_is_published_without_a_copy_and_in_place_of_the_one_before(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "weights").write_text(str(number))
        checkpoint.publish(tmp_path / f"{number}", tmp_path / "model")
        assert (tmp_path / "model" / "weights").read_text() == str(number)
    assert (tmp_path / "2" / "weights").samefile(tmp_path / "model" / "weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "model"]


def test_a_model_with_subfolders_is_published_too(tmp_path):
    """Tokenizers with several chat templates have one."""
    (tmp_path / "one" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "one" / "additional_chat_templates" / "tool.jinja").write_text("x")
    checkpoint.publish(tmp_path / "one", tmp_path / "model")
    assert (tmp_path / "model" / "additional_chat_templates" / "tool.jinja").read_text() == "x"


def test_lines_that_a_kill_cut_off_are_no_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert checkpoint.whole_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert checkpoint.whole_lines(path) == ['{"step": 1}', '{"step": 2}']
