"""DaGRPO: Distinctiveness-aware Group Relative Policy Optimization (arXiv 2512.06337), a reference implementation.

GRPO learns from the differences within a group of completions of one question. DaGRPO masks the pairs of completions
whose gradients are so alike that pushing one up and the other down cancels (they collide), and brings a verified
solution into groups in which no completion is right.

    python dagrpo.py                                                  # the embedded example: minutes on two CPU cores
    python dagrpo.py --model Qwen/Qwen2.5-0.5B-Instruct --data openai/gsm8k:train        # a language model on a GPU
    python dagrpo.py --help                                           # every flag with its reason

The algorithm, one step (`train`):

    1. Take P questions and sample G completions of each.                                 rollout.sample
    2. Reward every completion with the verifier.                                         questions.correctness
    3. Where no completion is right, a verified solution takes the place of the last.     anchors.insert
    4. Score how distinct the completions of each pair are; mask the pairs that are not.  scoring.rectify
    5. Advantages from the pairs that are left.                                           scoring.rectified_advantages
    6. Leave out the completions whose advantage is 0: no forward pass, no backward pass. update
    7. Policy loss over the rest in micro-batches, an AdamW step (or several: --updates). policy_loss

Equation -> function:

    (1) A_i = (r_i − r̄)/(σ+ε) = 1/(G(σ+ε)) Σ_j (r_i − r_j)    scoring.rectified_advantages, nothing masked
    (2) d_ij = (1 − cos(G_i, G_j))/2, or by another scorer     scoring.distinctiveness, scoring.gradient_gram
    (3) m_ij = 1 where d_ij ≥ τ                                scoring.distinct_pairs      (--rectify threshold)
    (4) Ã_i = 1/(G(σ+ε)) Σ_j m_ij (r_i − r_j)                  scoring.rectified_advantages
        negative Ã_i times --negative-weight                   scoring.with_negatives_weighted
    (5) masked where g_i·g_j > |g_i|², i the better one        scoring.safe_pairs          (--rectify pair)
    (5') masked until no v_i = Σ_j Ã_j g_i·g_j < 0, A_i > 0     scoring.safe_sums           (--rectify group, batch)
        or, of worse completions, single tokens                scoring.fewest_tokens       (--rectify token)
    (6) hard question: pass rate ≤ --hard-below                anchors.is_hard, anchors.insert
    (7) ρ_t = π_t/π_old; anchors f(π_t) = π_t/(π_t+γ)          policy_loss
    (8) loss = Σ mask · (β·k3_t − J_t) / denominator           policy_loss, loss_denominators

Words: a *question* has a *problem*, a *gold* (its right answer) and perhaps a *solution*; a *completion* is what the
policy says to it, or an *anchor*: a verified solution from elsewhere; a *sequence* is prompt and completion as tokens,
one *row* of a batch; an *answer* is what the verifier reads out of a completion. The completions of one question are a
*group*; two of them a *pair*. Rewards are of completions, and so are advantages.

Letters of shapes, in all files:

    P  questions per step                  T  tokens of a padded row             H  hidden size
    G  completions of each: a group        S  predictions in it: T − 1           V  vocabulary
    N  rows of a batch: P·G                M  completion tokens, without padding K  key-value heads
    B  rows of a micro-batch               L  places of a cache, tokens at once  D  size of a head

Three masks: `attention_mask` (N, T) real tokens; `response_mask` (N, T) the completion's tokens, its EOS among them, or
as `prediction_mask` (N, S) the predictions of them; `anchor_mask` (N,) completions from elsewhere. `rollout.Rollouts`
draws them.

What is the paper's and what is not. The paper's abstract fixes the two mechanisms: masking pairs of low
distinctiveness at sequence level, and off-policy anchors for hard questions. The formulas (2) to (5) are this
project's reading of the first. Known deviations:

    1. The paper scores completions with a language model as judge; the default here is the gradient of the output
       embedding, which needs no second model. As in the paper:                           --scorer judge
    2. Pairs with a cosine above 0.3 are masked, d < 0.35.                                --threshold 0.35
    3. Anchors replace failing completions, so that the group keeps its size.             anchors.insert
    4. The loss is divided by a constant, as in Dr. GRPO; as in GRPO's paper:             --loss-norm sequence
    5. γ of (7) is 0.03; as in LUFFY: (a validation set chose 4 and 5: study/README.md)   --gamma 0.1
"""

from __future__ import annotations

import harness.signals  # noqa: F401  # isort: skip  (first: Ctrl-C while PyTorch is imported)

import math
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

import anchors
import rollout
import scoring
from evaluate import comparison_table
from harness import report
from harness.command import one_sentence
from harness.config import Config, check_effects, configure, not_defaults, parse
from harness.learner import Learner, new_learner
from harness.limits import check_packages
from harness.memory import with_room
from harness.report import progress, say, tell, timed
from harness.rewards import given_by_functions
from harness.runs import Run, open_run, resumed_config
from harness.task import Task, fingerprint, held_out_accuracy, judged, prompt_lengths, read_task, verified_task
from harness.tracking import tracked
from policy import lora
from policy.compiling import compiled
from policy.logprobs import checkpointed
from policy.model import check_files
from questions import Question, Reward, Stream, overlong_penalty, prompt_of
from rollout import Rollouts


def train(config: Config) -> dict[str, Any]:
    """Run a whole training; returns the last step's metrics with `before` and `after`, the held-out evaluations.

    Writes config.json, metrics.jsonl, samples.jsonl, evaluations.jsonl, checkpoints/ and model/ into its folder.

    Raises DataError for a broken data line, before any model is loaded, and Interrupted where a signal ended it.
    """
    task = read_task(config)
    with open_run(config) as run, tracked(config, run) as tracker:  # from its newest checkpoint, where it is resumed
        learner = new_learner(config, run.resumed)
        task = verified_task(task, learner.model, learner.tokenizer, config)
        prompts = prompt_lengths(task, learner.tokenizer, config)
        report.announce(learner.model, config, run, prompts, len(task.held_out))
        run.knows(fingerprint(task), config.force)
        stream = Stream(task.questions, config.seed, run.taken)
        before = evaluate_where_due(learner, task, config, run, 0, {})
        after = evaluate_where_due(learner, task, config, run, run.start, before) if run.start else before

        record: dict[str, Any] = report.last_record(run.out)
        for step in run.steps(config.steps):
            seconds = run.seconds_of_saving()

            # Where it fails, the step before it is saved: all that may be lost is this one.
            with run.saved_if_it_fails(step - 1, learner, stream.taken):
                # Steps 1 to 3 of the algorithm: sample, reward, and bring anchors into hard groups.
                batch = collect(learner, task, stream, config, step, seconds)
                with timed(seconds, "score", learner.model):
                    by_judge = judged(task, batch.questions, batch.rollouts, batch.rewards)

                # Steps 4 and 5: mask pairs that are not distinct, and take the advantages from the rest.
                with timed(seconds, "score", learner.model):
                    tokens = batch.rollouts.attention_mask.sum(1)
                    scored = partial(rectified_batch, learner, batch, by_judge.distances, config)
                    rectified = with_room(config, tokens, scored)
                    batch = replace(batch, rollouts=batch.rollouts.without_hidden())  # their memory is the update's now

                # Steps 6 and 7: completions without advantage are left out, unless a KL or entropy term needs them.
                with timed(seconds, "train", learner.model):
                    trained = rectified.has_advantage
                    if config.kl or config.entropy_bonus:
                        trained = torch.ones_like(trained)
                    label, advantages = f"step {step}: update", rectified.token_advantages
                    sums = update(learner, batch.rollouts, advantages, trained, config, label)

            record = {
                "step": step,
                **batch.metrics,
                **by_judge.metrics,
                **report.group_metrics(batch.rewards, batch.rollouts, rectified, trained),
                **report.token_metrics(sums, config.updates * config.epochs),
                **report.clock_metrics(seconds, batch.metrics["sampled_tokens"], sums),
                **run.bad_questions(sums, batch.questions),
                "peak_memory_gb": report.peak_memory_gb(learner.model),
            }
            report.append_json(run.out / "metrics.jsonl", record)
            report.write_samples(
                run.out / "samples.jsonl", step, batch.questions, batch.rollouts, batch.rewards, rectified
            )
            say(report.step_line(record, config.steps, run.seconds_left(step, config.steps)))
            if run.is_due(step, config):
                run.save(step, learner, stream.taken)
            run.stop_if_bad(config.max_bad_steps)
            after = evaluate_where_due(learner, task, config, run, step, after)
            tracker.forward()
        run.wait()

    if before:
        say(f"\nHeld out, before and after {config.steps} steps of {config.method}")
        say(f"({before['questions'] * config.eval_samples} completions at temperature {config.eval_temperature:g}):\n")
        say(comparison_table(before, after))
    tell(f"\nSaved in {run.out}: model/ (Hugging Face format), checkpoints/, metrics.jsonl, samples.jsonl, "
         "evaluations.jsonl, config.json")  # fmt: skip
    return {**record, "before": before, "after": after, "out": str(run.out)}


def evaluate_where_due(
    learner: Learner, task: Task, config: Config, run: Run, step: int, last: dict[str, Any]
) -> dict[str, Any]:
    """The held-out evaluation after a step; the last one where none is due."""
    if not config.evaluates(step):
        return last
    with run.stoppable():
        result = held_out_accuracy(learner.model, learner.tokenizer, task, config, run, step)
    run.evaluated(step, result)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Steps 1 to 3: sample, reward, anchors
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    questions: list[Question]  # P questions
    rollouts: Rollouts  # N rows
    rewards: torch.Tensor  # (P, G)
    metrics: dict[str, Any]  # of the completions as they were first sampled


def collect(
    learner: Learner, task: Task, stream: Iterator[Question], config: Config, step: int, seconds: dict[str, float]
) -> Batch:
    """P questions of the stream, their N completions with anchors in place, and the rewards.

    A group whose rewards are all equal gives no signal; --resample replaces it by that of a new question.
    """
    rng = random.Random(rollout.noise_key(config.seed, step))
    questions = [next(stream) for _ in range(config.questions)]
    if not config.rollouts:
        seconds.update(rollout=0.0, verify=0.0)
        with timed(seconds, "anchors", learner.model):
            rollouts, rewards = anchors.only(
                learner.model, learner.tokenizer, questions, task.anchors, rng, config.prompt_style
            )
        return Batch(questions, rollouts, rewards, {"sampled_tokens": 0, "anchored": 1.0})

    rollouts, rewards = sample_and_reward(learner, task.reward, questions, config, (step, 0), seconds)
    metrics = {
        "reward": rewards.mean().item(),
        **report.solve_metrics(rewards, config.right),
        "length/mean": rollouts.lengths.float().mean().item(),
        "length/max": int(rollouts.lengths.max()),
        "truncated": rollouts.truncated.float().mean().item(),
        "sampled_tokens": int(rollouts.lengths.sum()),
    }
    given = [given_by_functions(task.reward)]
    for part in range(1, config.resample + 1):
        waits = anchors.is_hard(rewards, config.right, config.hard_below).cpu() & task.anchors.cover(questions)  # (6)
        without_signal = ((rewards == rewards[:, :1]).all(1).cpu() & ~waits).nonzero().squeeze(1).tolist()
        if not without_signal:
            break
        others = [next(stream) for _ in without_signal]
        further, further_rewards = sample_and_reward(learner, task.reward, others, config, (step, part), seconds)
        metrics["sampled_tokens"] += int(further.lengths.sum())
        given.append(given_by_functions(task.reward))
        rollouts = rollout.replace_groups(rollouts, without_signal, further)
        rewards[without_signal] = further_rewards
        for p, question in zip(without_signal, others, strict=True):
            questions[p] = question
    if config.anchors is not None:
        with timed(seconds, "anchors", learner.model):
            rollouts, rewards = anchors.insert(  # (6)
                learner.model, learner.tokenizer, rollouts, rewards, questions, task.anchors,
                count=config.anchors_per_group, hard_below=config.hard_below, every_group=config.every_group, rng=rng,
                right=config.right,
            )  # fmt: skip
    margin = config.overlong * config.max_new_tokens
    rewards = rewards - overlong_penalty(rollouts, rewards, margin, config.max_new_tokens)
    metrics["anchored"] = rollouts.anchor_mask.view(len(questions), -1).any(1).float().mean().item()
    metrics |= report.reward_metrics(given)
    return Batch(questions, rollouts, rewards, metrics)


def sample_and_reward(
    learner: Learner,
    reward: Reward,
    questions: list[Question],
    config: Config,
    key: tuple[int, int],  # the step, and the round of resampling in it: each samples with other noise
    seconds: dict[str, float],
) -> tuple[Rollouts, torch.Tensor]:  # N rows, (P, G)
    """Completions of some questions, with hidden states where a scorer will need them, and their rewards."""
    size = config.group_size - (config.anchors_per_group if config.every_group else 0)
    prompts = [prompt_of(learner.tokenizer, question, config.prompt_style) for question in questions]
    with timed(seconds, "rollout", learner.model), progress(f"step {key[0]}: rollout", "token") as bar:
        rollouts = rollout.sample(
            learner.model, learner.tokenizer, prompts, size,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p,
            seed=rollout.noise_key(config.seed, *key), progress=bar.update,
            keep_hidden=config.scorer in scoring.BY_GRADIENT,
        )  # fmt: skip
    asked = [question for question in questions for _ in range(size)]  # of each completion
    with timed(seconds, "verify", learner.model), progress(f"step {key[0]}: verify", "completion", len(asked)) as bar:
        rewards = reward(rollouts.texts, asked)
        bar.update(len(rewards))
    return rollouts, torch.tensor(rewards, device=learner.model.device).view(len(questions), size)


# ---------------------------------------------------------------------------------------------------------------------
# Steps 4 and 5: masks, advantages
# ---------------------------------------------------------------------------------------------------------------------


def rectified_batch(
    learner: Learner,
    batch: Batch,
    distances: torch.Tensor | None,  # (P, G, G) of a judge
    config: Config,
) -> scoring.Rectified:
    """The pairs of a batch that are left, and its advantages; of anchors alone, which nothing is compared with, 1."""
    metric = head_metric(learner, batch.rollouts, config)
    rectified = scoring.rectify(learner.model, batch.rollouts, batch.rewards, config.rectification, distances, metric)
    if not config.rollouts:
        rectified = replace(rectified, advantages=torch.ones_like(batch.rewards))
    return rectified


def head_metric(learner: Learner, rollouts: Rollouts, config: Config) -> scoring.HeadMetric | None:
    """What --metric optimizer compares the gradients of N rows by; None without it, and before the first step."""
    if config.resolved_metric != "optimizer" or not config.rollouts:
        return None
    return scoring.adam_metric(learner.model, learner.optimizer, shared_denominator(rollouts.lengths, config))


def shared_denominator(lengths: torch.Tensor, config: Config) -> float:
    """What every g_j is divided by in the loss of an optimizer step, of completions of these lengths. (N,)"""
    denominators = loss_denominators(lengths, config.loss_norm, config.max_new_tokens) / config.updates
    if config.loss_norm == "sequence":
        denominators = denominators / lengths  # a completion's own length is in its gradient
    return denominators.mean().item()


# ---------------------------------------------------------------------------------------------------------------------
# Steps 6 and 7: update. (7) ratio and shaping, (8) loss
# ---------------------------------------------------------------------------------------------------------------------


def update(
    learner: Learner,
    rollouts: Rollouts,  # N rows
    token_advantages: torch.Tensor,  # Ã (N, S)
    trained: torch.Tensor,  # (N,) bool
    config: Config,
    label: str,
) -> dict[str, float]:
    """The optimizer steps of one batch, each on its share of the questions; returns sums for the log."""
    model = learner.model
    if config.updates * config.epochs > 1:
        tokens = rollouts.attention_mask.sum(1)[trained]
        logps = with_room(config, tokens, partial(old_logps, model, rollouts, trained, config))
        rollouts = replace(rollouts, logps=logps)
    sums: dict[str, Any] = defaultdict(float)
    row_numbers = torch.arange(len(trained), device=trained.device).view(-1, rollouts.group_size)  # (N,) -> (P, G)
    for share in row_numbers.tensor_split(config.updates) * config.epochs:
        members = share.flatten()
        denominators = torch.ones(len(trained), device=trained.device)
        denominators[members] = loss_denominators(rollouts.lengths[members], config.loss_norm, config.max_new_tokens)
        learning = members[trained[members]]
        if len(learning) == 0:
            continue
        work = partial(backward, learner, rollouts, token_advantages, learning, denominators, config, label)
        counted = with_room(config, rollouts.attention_mask.sum(1)[learning], work)
        for name, value in counted.items():
            sums[name] += value
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
        sums["learning_rate"] = learner.optimizer.param_groups[0]["lr"]
        if math.isfinite(norm):  # else a step would write it into every weight and moment
            learner.step()
        learner.optimizer.zero_grad(set_to_none=True)
        sums["bad_updates"] += not math.isfinite(norm)
        sums["bad_losses"] += not math.isfinite(counted["loss"])
        sums["updates"] += 1
        sums["grad_norm"] = norm if math.isnan(norm) else max(sums["grad_norm"], norm)  # max would forget a NaN
    return {name: float(value) for name, value in sums.items()}


def backward(
    learner: Learner,
    rollouts: Rollouts,  # N rows
    token_advantages: torch.Tensor,  # Ã (N, S)
    learning: torch.Tensor,  # (B,) the rows of one optimizer step that are trained on
    denominators: torch.Tensor,  # (N,)
    config: Config,
    label: str,
) -> dict[str, Any]:
    """The gradient of the loss (8) of one optimizer step, in micro-batches; returns sums for the log."""
    model, objective = learner.model, Objective.of(config)
    sums: dict[str, Any] = defaultdict(float)
    learner.optimizer.zero_grad(set_to_none=True)  # of micro-batches that there was room for, before it ran out
    # The bonus is of the mean over tokens: this is each token's part.
    entropy_weight = config.entropy_bonus / rollouts.lengths[learning].sum()
    with progress(label, "completion", len(learning)) as bar, checkpointed(model, config.checkpointing):
        for micro in rollout.micro_batches(model, rollouts, learning, config.token_budget):
            part = rollouts.rows(micro.rows)
            options: dict[str, Any] = {"temperature": config.temperature, "packing": micro.packing}
            with_bonus = config.entropy_bonus > 0
            logps, entropies = rollout.token_logps(model, *part.tokens, **options, entropy_gradient=with_bonus)
            reference_logps = None
            if learner.reference is not None:
                with torch.no_grad(), lora.without_adapter(learner.reference):
                    reference_logps, _ = rollout.token_logps(learner.reference, *part.tokens, **options)
            loss, counted = policy_loss(  # (7), (8)
                logps,
                part.logps if config.updates * config.epochs > 1 else logps.detach(),
                rollouts.moved(token_advantages, micro.rows),
                part.prediction_mask,
                part.anchor_mask,
                denominators[micro.rows],
                objective,
                reference_logps=reference_logps,
                entropies=entropies,
                entropy_weight=entropy_weight if with_bonus else None,
            )
            loss.backward()
            on_policy = part.prediction_mask & ~part.anchor_mask[:, None]
            counted["loss"] = loss.detach()
            counted["sampler_gap"] = (logps.detach() - part.logps)[on_policy].abs().sum()
            for name, value in counted.items():
                sums[name] += value.double()  # stays on the device: reading it would make a GPU wait
            sums["model_tokens"] += micro.tokens
            sums["padded_tokens"] += micro.padded_tokens
            bar.update(len(micro.rows))
    return sums


@dataclass(frozen=True)
class Objective:
    """The numbers of (7) and (8)."""

    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    gamma: float = 0.03
    anchor_objective: str = "shaped"
    kl: float = 0.0

    @classmethod
    def of(cls, config: Config) -> Objective:
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


@compiled("update")
def policy_loss(
    logps: torch.Tensor,  # log π (B, S)
    old_logps: torch.Tensor,  # log π_old (B, S)
    advantages: torch.Tensor,  # Ã (B, S)
    prediction_mask: torch.Tensor,  # (B, S) bool
    anchor_mask: torch.Tensor,  # (B,) bool
    denominators: torch.Tensor,  # (B,)
    objective: Objective,
    *,
    reference_logps: torch.Tensor | None = None,  # (B, S)
    entropies: torch.Tensor | None = None,  # H (B, S)
    entropy_weight: torch.Tensor | None = None,  # () of each token
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss (8) of a micro-batch, Σ mask · ((β·k3_t − J_t)/denominator − weight·H_t), and sums for the log.

    On-policy J_t = min(ρ_t Ã, clip(ρ_t, 1−ε_low, 1+ε_high) Ã); for anchors J_t = f(π_t) Ã, or Ã log π_t. k3 counts
    on-policy alone, where it estimates the divergence. The losses of all micro-batches add up to that of the optimizer
    step, because `denominators` and `entropy_weight` belong to the whole step.
    """
    lowest = -math.inf if objective.clip_low is None else 1 - objective.clip_low
    highest = math.inf if objective.clip_high is None else 1 + objective.clip_high
    is_anchor = anchor_mask[:, None]  # (B,) -> (B, 1)
    probabilities = logps.exp()
    ratio = (logps - old_logps).exp()  # (7), on-policy
    shaped = objective.anchor_objective == "shaped"
    off_policy = probabilities / (probabilities + objective.gamma) if shaped else logps  # (7), anchors
    on_policy = torch.minimum(ratio * advantages, ratio.clamp(lowest, highest) * advantages)
    per_token = -torch.where(is_anchor, off_policy * advantages, on_policy)  # −J_t
    k3 = torch.zeros_like(logps)
    if reference_logps is not None:
        difference = reference_logps - logps
        k3 = torch.where(is_anchor, 0.0, difference.exp() - difference - 1)
        per_token = per_token + objective.kl * k3
    loss = (torch.where(prediction_mask, per_token, 0.0) / denominators[:, None]).sum()  # (8)
    if entropies is not None and entropy_weight is not None:
        loss = loss - entropy_weight * torch.where(prediction_mask, entropies, 0.0).sum()

    of_policy, of_anchor = prediction_mask & ~is_anchor, prediction_mask & is_anchor
    counted = {
        "tokens": prediction_mask,
        "policy_tokens": of_policy,
        "anchor_tokens": of_anchor,
        "clip_low": of_policy & (ratio < lowest) & (advantages < 0),
        "clip_high": of_policy & (ratio > highest) & (advantages > 0),
        "anchor_prob": torch.where(of_anchor, probabilities, 0.0),
        "entropy": torch.zeros_like(logps) if entropies is None else torch.where(prediction_mask, entropies, 0.0),
        "kl": torch.where(prediction_mask, k3, 0.0),
    }
    return loss, {name: values.detach().float().sum() for name, values in counted.items()}


def loss_denominators(lengths: torch.Tensor, loss_norm: str, max_new_tokens: int) -> torch.Tensor:
    """What the tokens of each completion are divided by in (8), over all B rows of an optimizer step. (B,) -> (B,)

    `token`: all tokens of all completions (DAPO). `sequence`: the completion's tokens, times the number of completions
    (GRPO). `constant`: the token limit, times the number of completions (Dr. GRPO). Completions that are not trained
    on are counted too, so that masking never raises the step size.
    """
    if loss_norm == "token":
        return lengths.sum().expand(len(lengths)).float()
    if loss_norm == "sequence":
        return lengths.float() * len(lengths)
    return torch.full_like(lengths, max_new_tokens * len(lengths), dtype=torch.float)


@torch.no_grad()
def old_logps(model: PreTrainedModel, rollouts: Rollouts, trained: torch.Tensor, config: Config) -> torch.Tensor:
    """log π_old of the trained completions, by the pass that trains them: the ratio then starts at 1 but for rounding.

    N rows, (N,) -> (N, S)
    """
    logps = rollouts.logps.clone()
    for micro in rollout.micro_batches(model, rollouts, trained.nonzero().squeeze(1), config.token_budget):
        part = rollouts.rows(micro.rows)
        values, _ = rollout.token_logps(model, *part.tokens, temperature=config.temperature, packing=micro.packing)
        for row, found, mask in zip(micro.rows.tolist(), values, part.prediction_mask, strict=True):
            logps[row, rollouts.prediction_mask[row]] = found[mask]
    return logps


def main(arguments: list[str] | None = None) -> None:
    with one_sentence("dagrpo.py"):
        flags = parse(sys.argv[1:] if arguments is None else arguments)
        config = resumed_config(flags) if "resume" in flags else configure(**flags)
        check_effects(config, flags)
        if "resume" not in flags:
            say(not_defaults(flags))
        check_packages(config)
        if "resume" not in flags or config.kl:  # else the checkpoint is the model
            check_files(config.model, "--model")
        train(config)


if __name__ == "__main__":
    main()
