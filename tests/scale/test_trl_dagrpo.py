"""DaGRPO inside TRL's trainer. Skipped where TRL is not installed: pip install "trl>=1.12,<=1.16.99" """

from __future__ import annotations

import runpy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

trl = pytest.importorskip("trl")

from judge_server import JudgeServer  # noqa: E402
from trl_training import (  # noqa: E402
    OWN,
    TOKENIZER,
    arbitrary,
    as_rollouts,
    new,
    one_batch,
    questions_of_example,
    rows,
    settings,
    trained,
)

import anchors  # noqa: E402
import dagrpo  # noqa: E402
import rollout  # noqa: E402
import scoring  # noqa: E402
from harness.config import EXAMPLE, ConfigError  # noqa: E402
from harness.task import Task, distances_of, judged  # noqa: E402
from questions import correctness  # noqa: E402
from rollout import PLAIN, encode_solution  # noqa: E402
from scale import groups, versions  # noqa: E402
from scale.ranks import whole_head  # noqa: E402
from scale.trl_dagrpo import DaGRPOTrainer, main, parse  # noqa: E402


def test_without_rectification_and_anchors_it_is_grpo_of_trl_to_the_bit(tmp_path):
    dataset = rows(questions_of_example(12))
    args = settings(tmp_path, rectify="none", anchors="none")
    ours = trained(DaGRPOTrainer, args, dataset).model.state_dict()
    theirs = trained(trl.GRPOTrainer, args, dataset).model.state_dict()
    start = trl.trainer.utils.create_model_from_path(str(EXAMPLE)).state_dict()
    assert any(not torch.equal(theirs[name], start[name]) for name in start)  # it has learned something
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ---------------------------------------------------------------------------------------------------------------------
# The same batch in dagrpo.py
# ---------------------------------------------------------------------------------------------------------------------

RULES = [
    ("threshold", "gradient", "grpo"), ("threshold", "state", "dapo"), ("threshold", "token", "grpo"),
    ("pair", "state", "dr_grpo"), ("group", "gradient", "grpo"), ("batch", "gradient", "grpo"),
    ("token", "gradient", "dr_grpo"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "scorer", "loss_type"), RULES)
def test_masks_and_advantages_of_a_batch_are_those_of_dagrpo(tmp_path, rule, scorer, loss_type):
    threshold = 0.45 if (rule, scorer) == ("threshold", "gradient") else None  # so that it masks some pairs and not all
    options = {"rectify": rule, "scorer": scorer, "threshold": threshold, "loss_type": loss_type, "anchors": "none"}
    scale = "none" if loss_type == "dr_grpo" else "group"
    args = settings(tmp_path, num_generations=8, scale_rewards=scale, **options)
    trainer = new(DaGRPOTrainer, args, rows(questions_of_example(12)), reward_funcs=arbitrary)
    assert trainer.core.scale == ("none" if loss_type == "dr_grpo" else "std")
    batch, sampled, found = one_batch(trainer)
    rollouts = as_rollouts(trainer, sampled)
    expected = scoring.rectify(trainer.model, rollouts, sampled.totals, trainer.core.rectification)
    assert not bool(expected.pair_mask.all()) or bool((expected.withheld != 0).any())
    assert torch.equal(found.pair_mask, expected.pair_mask)
    assert torch.equal(found.advantages, expected.advantages)
    mask = batch["completion_mask"].bool()
    laid = batch["advantages"][:, None].expand(mask.shape) if batch["advantages"].dim() == 1 else batch["advantages"]
    torch.testing.assert_close(laid[mask], expected.token_advantages[rollouts.prediction_mask], atol=1e-6, rtol=0)
    shares = expected.witness.shares() if expected.witness else {}
    for name in ("displaced", "displaced_left"):
        assert trainer._metrics["train"].get(name) == (pytest.approx([shares[name]]) if shares else None)
    assert trainer.model.training


@pytest.mark.parametrize("rule", ["none", "threshold"])
def test_lighter_negatives_are_those_of_dagrpo(tmp_path, rule):
    args = settings(tmp_path, num_generations=8, rectify=rule, anchors="none", negative_weight=0.25)
    trainer = new(DaGRPOTrainer, args, rows(questions_of_example(12)), reward_funcs=arbitrary)
    _, sampled, found = one_batch(trainer)
    rollouts = as_rollouts(trainer, sampled)
    expected = scoring.rectify(trainer.model, rollouts, sampled.totals, trainer.core.rectification)
    whole = scoring.rectified_advantages(sampled.totals, expected.pair_mask, scale=trainer.core.scale)
    torch.testing.assert_close(found.advantages, torch.where(whole < 0, whole / 4, whole))
    assert torch.equal(found.advantages, expected.advantages) and bool((whole < 0).any())


def test_after_a_step_gradients_are_compared_as_adamw_will_scale_them_with_its_momentum(tmp_path):
    """By the moments that TRL's optimizer has; a batch with anchors, whose pushes are weighted by their f(π)."""
    options = {"rectify": "batch", "max_steps": 1, "num_generations": 8, "hard_below": 0.5}
    trainer = anchored_trainer(tmp_path, questions_of_example(4), **options)
    trainer.reward_funcs = [arbitrary]
    trainer.train()
    batch, sampled, found = one_batch(trainer)
    rollouts, how = as_rollouts(trainer, sampled), trainer.core.rectification
    learner = SimpleNamespace(model=trainer.model, optimizer=trainer.optimizer.optimizer)
    metric = dagrpo.head_metric(learner, rollouts, trainer.core)
    with whole_head(trainer, with_moments=True) as head:
        ours = vars(groups.metric_of(head, trainer, rollouts.lengths))
    assert ours.keys() == vars(metric).keys() and ours["momentum_weight"] > 0
    assert all(torch.equal(*map(torch.as_tensor, (ours[name], vars(metric)[name]))) for name in ours)
    expected = scoring.rectify(trainer.model, rollouts, sampled.totals, how, None, metric)
    assert bool(batch["anchor_mask"].any()) and not bool(expected.pair_mask.all())
    assert torch.equal(found.pair_mask, expected.pair_mask)
    for other in (replace(rollouts, anchor_mask=torch.zeros_like(rollouts.anchor_mask)), rollouts):
        without = scoring.rectify(
            trainer.model, other, sampled.totals, how, None, None if other is rollouts else metric
        )
        assert not torch.equal(without.pair_mask, expected.pair_mask)  # the test can fail


@pytest.mark.parametrize("scorer", ["judge", "own"])
def test_a_judge_and_a_function_of_ones_own_mask_as_in_dagrpo(tmp_path, scorer):
    questions, server = questions_of_example(12), JudgeServer()
    (tmp_path / "mine.py").write_text(OWN)
    flags = {"judge_url": server.url, "judge_model": "m", "judge_cache": str(tmp_path / "kept"), "scorer": "judge"}
    if scorer == "own":
        flags = {"scorer": f"{tmp_path}/mine.py:scores"}
    args = settings(tmp_path / "out", num_generations=8, anchors="none", **flags)
    trainer = new(DaGRPOTrainer, args, rows(questions), reward_funcs=arbitrary, questions=questions)
    _, sampled, found = one_batch(trainer)
    rollouts, asked = as_rollouts(trainer, sampled), len(server.payloads)
    task = Task(questions, [], [], anchors.Anchors(), correctness, distances_of(trainer.core))
    distances = judged(task, questions, rollouts, sampled.totals).distances
    expected = scoring.rectify(trainer.model, rollouts, sampled.totals, trainer.core.rectification, distances)
    server.close()
    assert 0 < int((~found.pair_mask).sum()) < found.pair_mask.numel() - 12 * 8
    assert torch.equal(found.pair_mask, expected.pair_mask) and torch.equal(found.advantages, expected.advantages)
    assert len(server.payloads) == asked == (0 if scorer == "own" else 11)  # dagrpo.py finds the scores kept
    assert trainer._metrics["train"].get("judge_failed") == (None if scorer == "own" else [0.0])


def test_a_judge_of_pairs_needs_the_questions(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    args = settings(tmp_path / "out", anchors="none", scorer=f"{tmp_path}/mine.py:scores")
    with pytest.raises(ValueError, match="give `questions` too"):
        new(DaGRPOTrainer, args, rows(questions_of_example(2)))


@pytest.mark.parametrize(("loss_type", "norm"), [("grpo", "sequence"), ("dr_grpo", "constant"), ("dapo", "token")])
@pytest.mark.parametrize("rule", ["threshold", "token"])
def test_loss_and_gradients_of_a_batch_are_those_of_dagrpo(tmp_path, loss_type, norm, rule):
    args = settings(tmp_path, rectify=rule, anchors="none", loss_type=loss_type)
    trainer = new(DaGRPOTrainer, args, rows(questions_of_example(2)))
    batch, sampled, found = one_batch(trainer)
    assert trainer.core.loss_norm == norm
    check_loss(trainer, batch, as_rollouts(trainer, sampled), found)


def check_loss(trainer, batch, rollouts, rectified, since=0.0):
    """TRL's loss of a batch and its gradients against (7) and (8) in dagrpo.py, for the same advantages.

    `since` sampling, the log-probabilities have grown by as much.
    """
    core, completions = trainer.core, batch["completion_mask"].bool()
    logps, _ = rollout.token_logps(trainer.model, *rollouts.tokens)
    old = logps.detach() - since
    if since:
        batch["old_per_token_logps"] = torch.zeros(completions.shape)
        batch["old_per_token_logps"][completions] = old[rollouts.prediction_mask]
    width = rollouts.logps.shape[1]
    token_advantages = torch.zeros(len(rollouts.texts), width)
    token_advantages[rollouts.prediction_mask] = (
        rectified.advantages.flatten()[:, None].expand(-1, batch["completion_mask"].shape[1])
        if batch["advantages"].dim() == 1 else batch["advantages"]
    )[completions]  # fmt: skip
    expected, _ = dagrpo.policy_loss(
        logps, old, token_advantages, rollouts.prediction_mask, rollouts.anchor_mask,
        dagrpo.loss_denominators(rollouts.lengths, core.loss_norm, core.max_new_tokens), dagrpo.Objective.of(core),
    )  # fmt: skip
    gradients = torch.autograd.grad(expected, list(trainer.model.parameters()))
    found = trainer._compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    assert any(bool((gradient != 0).any()) for gradient in gradients)
    others = torch.autograd.grad(found, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Anchors
# ---------------------------------------------------------------------------------------------------------------------


def wrong(completion_ids, **_):
    """A reward that finds nothing right: every question is hard."""
    return [0.0] * len(completion_ids)


def anchored_trainer(folder, questions, **changes):
    solutions = anchors.load(
        [question for question in questions if question.get("solution")],
        joining=questions, tokenizer=TOKENIZER, max_new_tokens=160,
    )  # fmt: skip
    args = settings(folder, max_completion_length=160, **changes)
    return new(DaGRPOTrainer, args, rows(questions), reward_funcs=wrong, questions=questions, anchors=solutions)


def test_a_hard_group_gets_a_solution_in_place_of_its_last_completion(tmp_path):
    questions = questions_of_example(3)
    del questions[1]["solution"]  # hard too, but there is nothing to help it with
    trainer = anchored_trainer(tmp_path, questions, rectify="none")
    batch, sampled, found = one_batch(trainer)
    assert batch["anchor_mask"].nonzero().flatten().tolist() == [3, 11]
    for row, question in ((3, questions[0]), (11, questions[2])):
        ids = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
        assert ids == encode_solution(TOKENIZER, [1], (question["problem"], None, PLAIN), question["solution"])
    assert sampled.totals[:, 3].tolist() == [1.0, 0.0, 1.0]
    assert found.advantages[1].tolist() == [0.0] * 4
    assert bool((found.advantages[::2, 3] > 0).all()) and bool((found.advantages[::2, :3] < 0).all())
    assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum())
    assert trainer._metrics["train"]["anchored"] == [pytest.approx(2 / 3)]
    assert trainer._metrics["train"]["reward"] == [0.0]  # of what the policy wrote


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_the_loss_of_anchors_is_the_shaped_one_and_that_of_the_others_is_trls(tmp_path, loss_type):
    trainer = anchored_trainer(tmp_path, questions_of_example(2), loss_type=loss_type, gamma=0.2)
    batch, sampled, found = one_batch(trainer)
    assert bool(batch["anchor_mask"].any()) and not bool(batch["anchor_mask"].all())
    check_loss(trainer, batch, as_rollouts(trainer, sampled), found)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)


def test_beside_anchors_the_others_keep_their_ratios_to_an_earlier_policy_and_the_clip(tmp_path):
    trainer = anchored_trainer(tmp_path, questions_of_example(2), rectify="none")
    batch, sampled, found = one_batch(trainer)
    check_loss(trainer, batch, as_rollouts(trainer, sampled), found, since=0.1)
    check_loss(trainer, batch, as_rollouts(trainer, sampled), found, since=-0.3)  # beyond 1 − ε, of Ã < 0


def test_an_anchor_that_others_outdo_is_lowered_without_a_clip(tmp_path):
    """With rewards of one's own an anchor may have Ã < 0; with γ = 1 its f(π) is below 1 − ε."""
    trainer = anchored_trainer(tmp_path, questions_of_example(1), rectify="none", gamma=1.0)
    batch, sampled, found = one_batch(trainer)
    batch["advantages"], advantages = -batch["advantages"], -found.advantages
    check_loss(trainer, batch, as_rollouts(trainer, sampled), replace(found, advantages=advantages))


def test_the_divergence_counts_what_the_policy_has_sampled(tmp_path):
    """(8) has no k3 term of anchors, whatever the reference says of them."""
    trainer = anchored_trainer(tmp_path, questions_of_example(1), rectify="none")
    batch, _, _ = one_batch(trainer)
    is_anchor = batch["anchor_mask"]
    trainer.beta = 0.5
    losses = []
    for shift in (0.0, 2.0):
        logps = torch.where(is_anchor[:, None], shift, 0.0).expand(batch["completion_ids"].shape)
        losses.append(trainer._compute_loss(trainer.model, {**batch, "ref_per_token_logps": logps - 1.0}).item())
    assert losses[0] == losses[1]


def test_vllms_correction_leaves_anchors_out(tmp_path):
    """Its log-probabilities are of what it has sampled; TRL is told here that vLLM was the sampler."""
    trainer = anchored_trainer(tmp_path, questions_of_example(2), rectify="none")
    trainer.use_vllm, trainer._last_loaded_step = True, 0

    def sampled(prompts, trainer):
        ids = [TOKENIZER("12 + 3")["input_ids"] for _ in prompts]
        encoded = [rollout.encode_prompt(TOKENIZER, prompt) for prompt in prompts]
        return {"prompt_ids": encoded, "completion_ids": ids, "logprobs": [[-0.5] * len(row) for row in ids]}

    trainer.rollout_func = sampled
    batch, _, _ = one_batch(trainer)
    is_anchor, ratio = batch["anchor_mask"], batch["importance_sampling_ratio"]
    assert bool((ratio[is_anchor] == 1).all()) and bool((ratio[~is_anchor] != 1).any())
    assert all(value[0] == value[0] for value in trainer._metrics["train"].values())  # no NaN
    assert bool(trainer._compute_loss(trainer.model, batch).isfinite())


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    """With moments of AdamW in the masks, and anchors: both go on where they were."""
    questions = questions_of_example(16)
    solutions = anchors.load(questions, joining=questions, tokenizer=TOKENIZER, max_new_tokens=160)
    options = {"rectify": "group", "hard_below": 0.25, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    runs = []
    for name in ("unbroken", "resumed"):
        trainer = new(
            DaGRPOTrainer, settings(tmp_path / name, **options), rows(questions), reward_funcs=arbitrary,
            questions=questions, anchors=solutions,
        )  # fmt: skip
        start = str(tmp_path / "unbroken" / "checkpoint-2") if name == "resumed" else None
        trainer.train(resume_from_checkpoint=start)
        assert trainer.state.global_step == 4
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


# ---------------------------------------------------------------------------------------------------------------------
# What TRL has and dagrpo.py has not
# ---------------------------------------------------------------------------------------------------------------------


def test_evaluations_are_those_of_trl(tmp_path):
    trainer = anchored_trainer(tmp_path, questions_of_example(2))
    trainer.model.eval()
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)])
    assert "anchor_mask" not in batch and "anchored" not in trainer._metrics["train"]


def test_a_completion_without_a_reward_has_no_part_in_its_group(tmp_path):
    """TRL takes None of a reward. The others are compared as if it stood at their mean, 1/3; its pair 0 is masked."""

    def second_unknown(completion_ids, **_):
        return [1.0, None, 0.0, 0.0]

    (tmp_path / "mine.py").write_text("def scores(questions, texts):\n    return [[0.5, 0.5, 0.0, 1.0]]\n")
    questions = questions_of_example(1)
    args = settings(tmp_path / "out", scorer=f"{tmp_path}/mine.py:scores", anchors="none")
    trainer = new(DaGRPOTrainer, args, rows(questions), reward_funcs=second_unknown, questions=questions)
    batch, _, _ = one_batch(trainer)
    deviation = ((4 / 9 + 1 / 9 + 1 / 9) / 4) ** 0.5
    by_hand = torch.tensor([1 + 1, 0.0, -1 - 1 / 3, -1 - 1 / 3]) / (4 * deviation)
    torch.testing.assert_close(batch["advantages"], by_hand, atol=1e-5, rtol=0)
    assert batch["advantages"][1] == 0


@pytest.mark.parametrize(("right_at", "hard_below", "anchored"), [(None, 0.0, 1.0), (0.5, 0.0, 0.0), (0.5, 0.25, 1.0)])
def test_right_at_and_hard_below_say_which_groups_are_hard(tmp_path, right_at, hard_below, anchored):
    """One completion of four earns 0.5."""
    options = {"rectify": "none", "right_at": right_at, "hard_below": hard_below}
    trainer = anchored_trainer(tmp_path, questions_of_example(2), **options)
    trainer.reward_funcs = [lambda completion_ids, **_: [0.5, 0.0, 0.0, 0.0] * (len(completion_ids) // 4)]
    one_batch(trainer)
    assert trainer._metrics["train"]["anchored"] == [anchored]


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def test_the_command_trains_on_a_jsonl_file_and_saves_a_model(tmp_path, small_data):
    main(
        f"--model {EXAMPLE} --data {small_data}/train.jsonl --output_dir {tmp_path} --max_steps 1 --use_cpu "
        "--num_generations 2 --per_device_train_batch_size 4 --max_completion_length 8 --report_to none "
        "--logging_steps 1 --rectify none --anchors none --hold_out 1".split()
    )
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--rectify some", "--rectify some: it must be one of none, threshold, pair, group, batch, token."),
        ("--group-size 4", "--group-size: there is no such flag: it is --num_generations here."),
        ("--num_generation 4", "--num_generation: there is no such flag. Did you mean --num-generations?"),
        ("--per_device_train_batch_size 3", "generation_batch_size (3) must be divisible by num_generations (8)."),
        ("--max_steps many", "--max_steps/--max-steps: invalid int value: 'many'."),
        ("--loss_type cispo", "--loss_type cispo: DaGRPO needs one of dr_grpo, grpo, dapo, bnpo."),
        ("--scale_rewards batch", "--scale_rewards batch: DaGRPO needs one of group, none."),
        ("--importance_sampling_level sequence", "it must be token, or train with --anchors none."),
    ],
)
def test_a_wrong_command_line_is_answered_by_one_sentence(flags, said, tmp_path):
    with pytest.raises(ConfigError) as complaint:
        parse(f"--output_dir {tmp_path} --use_cpu --model {EXAMPLE} --data x.jsonl {flags}".split())
    assert said in str(complaint.value) and "\n" not in str(complaint.value)


@pytest.mark.parametrize("installed", ["1.11.9", "1.17.0", "2.0.0", None])
def test_trl_outside_of_the_tested_versions_is_refused(monkeypatch, installed):
    def version(package):
        if installed is None:
            raise versions.PackageNotFoundError(package)
        return installed

    monkeypatch.setattr(versions, "version", version)
    assert 'pip install "trl>=1.12,<=1.16.99"' in versions.fault_of_trl()


def test_without_trl_the_command_ends_with_one_line(monkeypatch, capsys):
    def version(package):
        raise versions.PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", version)
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the module is imported already
        runpy.run_module("scale.trl_dagrpo", run_name="__main__")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"scale.trl_dagrpo: the package trl is missing. Run: {versions.INSTALL}\n"
