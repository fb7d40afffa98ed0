"""A GPU that runs out of memory, played on a CPU: what goes on in halves, what ends the run, and what is kept then."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

import dagrpo
import rollout
import scoring
from harness import checkpoint, runs
from harness.command import one_sentence
from harness.config import EXAMPLE, Config, configure
from harness.memory import with_room
from scorers import gradients


def settings(out, **changes):
    """A run of the embedded model that takes a second or two; the entropy term has an update in every step."""
    return configure(**{
        "model": str(EXAMPLE), "data": [str(EXAMPLE / "train.jsonl")], "out": str(out), "steps": 3, "questions": 3,
        "group_size": 4, "max_new_tokens": 40, "anchors": None, "hold_out": 4, "eval_samples": 1, "eval_every": 0,
        "eval_at_start": False, "save_every": 0, "learning_rate": 1e-3, "warmup": 3, "token_budget": 4_096,
        "entropy_bonus": 0.001, **changes,
    })  # fmt: skip


def gpu_of(tokens: int, patches, *, learning: bool) -> list[int]:
    """No more than so many padded tokens fit into a forward pass: with gradients, or without. What was tried, in order.

    Of those without gradients, sampling is left out.
    """
    tried: list[int] = []

    def limited(plain):
        def run(model, input_ids, *rest, **options):
            if torch.is_grad_enabled() == learning:
                tried.append(input_ids.numel())
                if input_ids.numel() > tokens:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return plain(model, input_ids, *rest, **options)

        return run

    patches.setattr(rollout, "token_logps", limited(rollout.token_logps))
    patches.setattr(scoring, "token_logps", limited(scoring.token_logps))
    patches.setattr(gradients, "hidden_states", limited(gradients.hidden_states))
    return tried


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights_of(folder):
    return list(rollout.load(str(folder / "model"))[0].parameters())


# --- going on in halves ------------------------------------------------------------------------------------------


def test_work_is_done_again_with_half_of_the_budget_and_that_is_said_once(capsys):
    config, tried = Config(model="m", data=["d"], token_budget=1_000), []

    def work():
        tried.append(config.token_budget)
        if config.token_budget > 200:
            raise torch.OutOfMemoryError
        return "done"

    assert with_room(config, torch.tensor([30, 150]), work) == "done"
    assert tried == [1_000, 500, 250, 150], "not below the longest sequence, which is whole in any micro-batch"
    assert with_room(config, torch.tensor([30, 150]), work) == "done" and tried[4:] == [150]
    assert capsys.readouterr().out == "Out of memory: from here on with --token-budget 150 in place of 1000.\n"


@pytest.mark.parametrize(
    ("checkpointing", "remedy"), [(False, "Try --checkpointing, lower --max"), (True, "Lower --max")]
)
def test_where_one_sequence_is_too_much_the_error_says_what_to_do(checkpointing, remedy, capsys):
    config = Config(model="m", data=["d"], token_budget=1_000, checkpointing=checkpointing)

    def work():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(torch.OutOfMemoryError, match=rf"one completion at a time \(150 tokens, with its .*{remedy}"):
        with_room(config, torch.tensor([150, 30]), work)
    assert capsys.readouterr().out == ""


def test_another_error_is_no_lack_of_memory():
    config = Config(model="m", data=["d"], token_budget=1_000)
    with pytest.raises(ZeroDivisionError):
        with_room(config, torch.tensor([10]), lambda: 1 / 0)
    assert config.token_budget == 1_000


# Two updates of each batch, so that there are old log-probabilities; anchors in some of the groups.
IN_HALVES = {"updates": 2, "rectify": "group", "steps": 2, "anchors": "data", "max_new_tokens": 100}


@pytest.fixture(scope="module")
def in_one(tmp_path_factory):
    """A run that has room for all."""
    out = tmp_path_factory.mktemp("run") / "in_one"
    dagrpo.train(settings(out, **IN_HALVES))
    return out


@pytest.mark.parametrize("learning", [True, False], ids=["the update", "scoring, anchors and old log-probabilities"])
def test_a_run_that_goes_on_in_halves_learns_the_same(in_one, tmp_path, monkeypatch, capsys, learning):
    capsys.readouterr()
    with monkeypatch.context() as patches:
        tried = gpu_of(500, patches, learning=learning)
        dagrpo.train(settings(tmp_path / "run", **IN_HALVES))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Out of memory")]
    assert len(said) == 1 and re.search(r"with --token-budget \d+ in place of 4096\.", said[0])
    second_step = tried[len(tried) // 2 :]
    assert max(tried) > 500 >= max(second_step), "it stays with what there was room for"
    ours, theirs = (lines_of(out / "metrics.jsonl")[1:] for out in (tmp_path / "run", in_one))
    assert sum(record["anchored"] for record in ours) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in ("reward", "masked_pairs", "displaced", "loss", "grad_norm", "entropy", "anchor_prob"):
            assert one.get(name) == pytest.approx(other.get(name), rel=1e-3, abs=1e-6), name
    for one, other in zip(weights_of(tmp_path / "run"), weights_of(in_one), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_of_micro_batches_before_memory_ran_out_do_not_count_twice(tmp_path, monkeypatch):
    """The first micro-batch is through when the second one fails."""
    learner = dagrpo.new_learner(settings(tmp_path / "run", token_budget=300, learning_rate=0.0))
    config, kept = settings(tmp_path / "run", token_budget=300, learning_rate=0.0), []
    prompts = ["1+1?\n", "2+3?\n", "7+5?\n"]
    rollouts = rollout.sample(learner.model, learner.tokenizer, prompts, 4, max_new_tokens=60, seed=0)
    torch.manual_seed(0)
    advantages = torch.randn(12)[:, None].expand(rollouts.logps.shape)
    learner.optimizer.register_step_pre_hook(
        lambda *_: kept.append([parameter.grad.clone() for parameter in learner.model.parameters()])
    )
    trained, plain, calls = torch.ones(12, dtype=torch.bool), dagrpo.policy_loss, []
    sums = [dagrpo.update(learner, rollouts, advantages, trained, config, "update")]

    def second_fails(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return plain(*arguments, **options)

    monkeypatch.setattr(dagrpo, "policy_loss", second_fails)
    sums.append(dagrpo.update(learner, rollouts, advantages, trained, config, "update"))
    assert len(calls) > 3 and config.token_budget < 300
    for one, other in zip(*kept, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert sums[0]["tokens"] == sums[1]["tokens"] and sums[0]["loss"] == pytest.approx(sums[1]["loss"], rel=1e-4)


def test_anchors_go_through_the_model_within_the_budget(model, tokenizer, monkeypatch):
    rollouts = rollout.sample(model, tokenizer, ["1+1?\n", "2?\n"], 4, max_new_tokens=20, seed=0)
    rollouts.anchor_mask[[0, 2, 3, 5, 7]] = True
    how = replace(Config(model="m", data=["d"]).rectification, gamma=0.1)
    whole, sizes, plain = scoring.push_weights(model, rollouts, how), [], gradients.hidden_states

    def watched(model, input_ids, *rest):
        sizes.append(input_ids.numel())
        return plain(model, input_ids, *rest)

    monkeypatch.setattr(gradients, "hidden_states", watched)
    torch.testing.assert_close(scoring.push_weights(model, rollouts, replace(how, token_budget=60)), whole)
    assert len(sizes) > 1 and max(sizes) <= 60 and bool((whole[0][rollouts.prediction_mask[0]] != 1).all())


# --- the end of a run, and what is kept --------------------------------------------------------------------------


def ends_without_room(config) -> str:
    """What the command says."""
    with pytest.raises(SystemExit) as stopped, one_sentence("dagrpo.py"):
        dagrpo.train(config)
    assert stopped.value.code == 1
    return str(stopped.value)


def at_call(number, plain):
    """The function, without room at its call of the given number."""
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(*arguments, **options)

    return counted


def without_halves(config, lengths, work):
    """`with_room` for sequences as long as the budget, so that there is nothing to halve."""
    return with_room(config, lengths + config.token_budget, work)


def resumed(folder, **flags):
    return dagrpo.train(runs.resumed_config({"resume": str(folder), **flags}))


def left_by(out):
    clock = ("seconds/", "tokens_per_s/", "peak_memory_gb")
    records = [
        {name: value for name, value in record.items() if not name.startswith(clock)}
        for record in lines_of(out / "metrics.jsonl")
        if "step" in record
    ]
    return records, lines_of(out / "samples.jsonl"), (out / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "unbroken"
    dagrpo.train(settings(out))
    return out


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (dagrpo.rollout, "sample", "the GPU has no room for another 2.00 GiB"),
        (scoring, "rectify", "Out of memory with one completion at a time"),
        (dagrpo, "backward", "Out of memory with one completion at a time"),
        (torch.optim.AdamW, "step", "Out of memory in the optimizer's step"),
    ],
)
def test_where_there_is_no_room_at_all_only_the_step_is_lost(unbroken, tmp_path, monkeypatch, place, name, said):
    """The step before it is saved, although no checkpoint was due; what goes on from it ends as if nothing had been."""
    with monkeypatch.context() as patches:
        patches.setattr(place, name, at_call(3, getattr(place, name)))
        patches.setattr(dagrpo, "with_room", without_halves)
        message = ends_without_room(settings(tmp_path / "run"))
    assert message.startswith(f"dagrpo.py: {said}") and "smaller model" in message
    assert message.endswith(f"Saved after step 2; go on with: python dagrpo.py --resume {tmp_path / 'run'}")
    assert checkpoint.newest(tmp_path / "run")[0].step == 2
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(unbroken)


def test_weights_that_are_half_changed_are_never_saved(tmp_path, monkeypatch):
    """Some have been stepped and some have not when memory runs out: they are of no step at all."""
    calls, plain = [], torch.optim.AdamW.step

    def half(self, *arguments):
        calls.append(self)
        if len(calls) < 3:
            return plain(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0].add_(1.0)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", half)
    message = ends_without_room(settings(tmp_path / "run", save_every=1))
    assert "Saved after step 2" in message and checkpoint.newest(tmp_path / "run")[0].step == 2
    saved = weights_of(tmp_path / "run")
    calls.clear()
    message = ends_without_room(settings(tmp_path / "rare"))
    assert "go on with" not in message and checkpoint.newest(tmp_path / "rare")[0] is None
    assert all(float(weight.detach().abs().max()) < 100 for weight in saved)


@pytest.mark.parametrize("fused", [False, True])
def test_changes_in_place_are_seen_in_weights_and_moments(model, tokenizer, fused):
    """Of a fused optimizer too, which runs on a GPU; making the moments is no change."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    learner = dagrpo.Learner(model, tokenizer, None, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, float))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    counts = [checkpoint.changes(learner)]
    optimizer._init_group(optimizer.param_groups[0], [], [], [], [], [], [])
    assert optimizer.state and checkpoint.changes(learner) == counts[0]
    learner.step()
    counts.append(checkpoint.changes(learner))
    optimizer.state[next(model.parameters())]["exp_avg"].mul_(0.5)
    assert counts[0] < counts[1] < checkpoint.changes(learner) and not learner.half_changed


def test_updates_that_were_whole_are_saved_with_the_step_before(tmp_path, monkeypatch):
    """Of four updates the third has no room. Nothing of the steps before is lost, and the step is made again."""
    plain = dagrpo.backward
    with monkeypatch.context() as patches:
        patches.setattr(dagrpo, "backward", at_call(7, plain))
        patches.setattr(dagrpo, "with_room", without_halves)
        message = ends_without_room(settings(tmp_path / "run", updates=1, epochs=4))
    assert "Saved after step 1" in message
    saved = checkpoint.newest(tmp_path / "run")[0]
    assert saved.step == 1 and saved.state["updates"] == 6
    resumed(tmp_path / "run", checkpointing=True)
    assert [record["step"] for record in lines_of(tmp_path / "run" / "metrics.jsonl")[1:]] == [1, 2, 3]
