"""DaGRPO: Distinctiveness-aware Group Relative Policy Optimization (arXiv 2512.06337), a reference implementation.

GRPO learns from the differences within a group of answers to one question. DaGRPO masks the pairs of answers whose
gradients collide, and brings a verified solution into groups in which no answer is right.

    python dagrpo.py                                                  # the embedded example: minutes on two CPU cores
    python dagrpo.py --model Qwen/Qwen2.5-0.5B-Instruct --data openai/gsm8k:train        # a language model on a GPU
    python dagrpo.py --help                                           # every flag with its reason

The algorithm, one step (`train`):

    1. Take P questions and sample G answers to each.                                     rollout.sample
    2. Reward every answer with the verifier.                                             anchors.correctness
    3. Where no answer is right, replace the last failing ones by verified solutions.     anchors.insert
    4. Score how distinct the answers of each pair are; mask the pairs that are not.      rectify
    5. Advantages from the pairs that are left.                                           scoring.rectified_advantages
    6. Leave out the answers whose advantage is 0; they get no forward and no backward.   train
    7. Policy loss over the rest in micro-batches, one AdamW step.                        policy_loss

Equation -> function:

    (1) A_i = (r_i − r̄)/(σ+ε) = 1/(G(σ+ε)) Σ_j (r_i − r_j)    scoring.rectified_advantages, nothing masked
    (2) d_ij = (1 − cos(G_i, G_j))/2, or from an alignment     scoring.gradient_gram, scoring.distinctiveness
    (3) m_ij = 1 where d_ij ≥ τ                                scoring.distinct_pairs
        or, of the worse answer, single tokens                 scoring.colliding_tokens    (--rectify token)
    (4) Ã_i = 1/(G(σ+ε)) Σ_j m_ij (r_i − r_j)                  scoring.rectified_advantages
    (5) masked where g_i·g_j > |g_i|², i the better answer     scoring.safe_pairs          (--threshold auto)
    (6) hard question: pass rate ≤ --hard-below                anchors.is_hard, anchors.insert
    (7) ρ_t = π_t/π_old; anchors f(π_t) = π_t/(π_t+γ)          importance_ratio, shaped_probability
    (8) loss = Σ mask · (β·k3_t − J_t) / denominator           policy_loss, loss_denominators

Shapes: P questions, G answers to each, N = P·G sequences, T tokens, H hidden size, V vocabulary. Three masks:
`attention_mask` (N, T) real tokens; `response_mask` (N, T) the answer's own tokens, EOS among them; `anchor_mask`
(N,) answers from elsewhere.

What is the paper's and what is not. The paper's abstract fixes the two mechanisms: masking pairs of low
distinctiveness at sequence level, and off-policy anchors for hard questions. The formulas (2) to (5) are this
project's reading of the first. Known deviations:

    1. The paper scores answers with a language model as judge; the default here is the gradient of the output
       embedding, which needs no second model.                                            --scorer gradient
    2. The threshold is a cosine of 0.3.                                                  --threshold 0.35
    3. Anchors replace failing answers, so that the group keeps its size.                 anchors.insert
    4. The loss is normalised by a constant, as Dr. GRPO does; GRPO's own form is         --loss-norm sequence
    5. γ of (7) is 0.03, LUFFY's 0.1. A validation set chose 4 and 5 (docs/findings.md).  --gamma 0.1
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import anchors
import rollout
import scoring
from compiling import compiled
from evaluate import comparison_table, evaluate
from flags import ConfigError, check_ranges, flag, parse
from report import (
    append_json,
    group_metrics,
    memory_estimate,
    peak_memory_gb,
    progress,
    say,
    step_line,
    timed,
    token_metrics,
    write_samples,
)
from rollout import Rollouts

EXAMPLE = Path(__file__).resolve().parent / "examples" / "arithmetic"


# ---------------------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------------------


METHODS: dict[str, dict[str, Any]] = {
    "dagrpo": {},
    "grpo": {"scorer": "none", "anchors": "none", "loss_norm": "token"},
    "dr_grpo": {"scorer": "none", "anchors": "none", "scale": "none", "loss_norm": "constant"},
    "dapo": {"scorer": "none", "anchors": "none", "loss_norm": "token", "clip_high": 0.28, "resample": 3},
    "luffy": {
        "scorer": "none",
        "every_group": True,
        "scale": "none",
        "loss_norm": "constant",
        "clip_low": "none",
        "clip_high": "none",
        "gamma": 0.1,
        "entropy_bonus": 0.001,
    },
    # One anchor with advantage 1 for every question, no rollout: (8) is then the negative log-likelihood.
    "sft": {
        "scorer": "none",
        "group_size": 1,
        "anchor_objective": "sft",
        "loss_norm": "token",
        "clip_low": "none",
        "clip_high": "none",
    },
}
THRESHOLDS = {"gradient": 0.35, "state": 0.2, "token": 0.1, "none": 0.0}
THRESHOLD_REASON = "pairs less distinct are masked (3): by default 0.35, state 0.2, token 0.1; auto: rule (5)"
RECTIFY = ("pair", "token")
LOSS_NORMS = ("token", "sequence", "constant")


# fmt: off
@dataclass
class Config:
    """One run. Each field is a flag, `group_size` is --group-size; `configure` adds the defaults of METHODS."""

    model: str = flag("", "Hub name, local directory or .gguf file; without it the embedded example runs", group="what")
    data: list[str] = flag([], "training questions: JSONL files or Hub sets, name[:split]")
    eval_data: list[str] = flag([], "held-out questions; without them --hold-out of --data are kept back")
    reward: str = flag("", "file.py:function, from texts and rows to floats, in place of the verifier")
    out: str = flag("", "folder of the run; the default is a new one under runs/")
    seed: int = flag(0, "order of questions and all sampling; the same seed repeats the run", least=0)
    device: str = flag("", "cpu or cuda; the default is the GPU where there is one")

    method: str = flag("dagrpo", "a set of defaults; single flags override it", choices=tuple(METHODS), group="method")
    scorer: str = flag("gradient", "distinctiveness (2); none masks no pair, an ablation", choices=scoring.SCORERS)
    rectify: str = flag("pair", "mask pairs whole, or of the worse answer the tokens that collide", choices=RECTIFY)
    threshold: float | str = flag("default", THRESHOLD_REASON, least=0, most=1, word="auto")
    anchors: str = flag("data", "verified solutions: data (field `solution`), a JSONL FILE, or none, an ablation")
    anchors_per_group: int = flag(1, "anchors that join a group, at most (6)", least=1)
    every_group: bool = flag(False, "anchors are appended to every group, hard or not, as LUFFY does")
    hard_below: float = flag(0.0, "a question is hard at this pass rate or less (6); 0: none right", least=0, most=1)
    anchor_objective: str = flag("shaped", "f(π) of (7) damps what is sure; sft: log π", choices=("shaped", "sft"))
    gamma: float = flag(0.03, "shape of f(π) = π/(π+γ): tokens near π = γ move most (LUFFY: 0.1)", above=0)
    scale: str = flag("std", "divide advantages by the group's deviation, or not (Dr. GRPO)", choices=("std", "none"))
    loss_norm: str = flag("constant", "denominator of (8): all tokens, the sequence, or a constant", choices=LOSS_NORMS)
    clip_low: float | str = flag(0.2, "the ratio counts down to 1 − this (7)", least=0, most=1, word="none")
    clip_high: float | str = flag(0.2, "the ratio counts up to 1 + this (7); DAPO: 0.28", least=0, word="none")
    resample: int = flag(0, "rounds in which groups without signal give way to new questions (DAPO: 3)", least=0)
    kl: float = flag(0.0, "weight of the k3 divergence from the start model; above 0 a copy of it is kept", least=0)
    entropy_bonus: float = flag(0.0, "weight of the entropy of the answers' tokens (LUFFY: 0.001)", least=0)

    questions: int = flag(16, "questions a step: P", least=1, group="sampling")
    group_size: int = flag(8, "answers to each question: G; at least 2, or nothing can differ", least=1)
    max_new_tokens: int = flag(1024, "limit of an answer; longer ones are cut off and graded as they are", least=1)
    temperature: float = flag(1.0, "of training answers; the policy is trained at the same one", above=0)
    top_p: float = flag(1.0, "below 1 the sampled and the trained policy differ: a warning says so", above=0, most=1)

    steps: int = flag(200, "rollout batches", least=1, group="optimization")
    updates: int = flag(1, "optimizer steps a batch, each on a share of it; clipping acts from the second on", least=1)
    learning_rate: float = flag(1e-6, "of AdamW, constant after the warm-up", least=0)
    warmup: int = flag(10, "optimizer steps to reach the learning rate: early gradients are noisy", least=0)
    weight_decay: float = flag(0.01, "of AdamW", least=0)
    max_grad_norm: float = flag(1.0, "longer gradients are scaled down to this", above=0)
    token_budget: int = flag(4_096, "padded tokens in a micro-batch: bounds memory, not the result", least=1)
    checkpointing: bool = flag(False, "compute activations again in the backward pass: a third slower, far less memory")

    eval_every: int = flag(50, "steps between held-out evaluations; 0: start and end", least=0, group="evaluation")
    eval_samples: int = flag(2, "answers to each held-out question", least=1)
    eval_temperature: float = flag(0.6, "of held-out answers", above=0)
    hold_out: int = flag(64, "questions kept back from --data where there is no --eval-data", least=1)

    def __post_init__(self) -> None:
        if self.threshold == "default":
            self.threshold = "auto" if self.rectify == "token" else THRESHOLDS.get(self.scorer, 0.0)
        check(self)
# fmt: on


def check(config: Config) -> None:
    """Raise ConfigError for the first field out of its range, or for two that do not go together."""
    check_ranges(config)
    allowed = " or ".join(scoring.BY_GRADIENT)
    if config.rectify == "token" and (config.scorer not in scoring.BY_GRADIENT or config.threshold != "auto"):
        raise ConfigError(f"--rectify token: it masks tokens by rule (5), so --scorer {allowed}, and --threshold auto.")
    if config.threshold == "auto" and config.scorer not in scoring.BY_GRADIENT:
        raise ConfigError(f"--threshold auto: it needs gradient norms, so --scorer {allowed}, not {config.scorer}.")
    if config.scorer == "none" and config.threshold != 0:
        raise ConfigError(f"--threshold {config.threshold}: with --scorer none no pair is masked; leave it out.")
    if config.method != "sft" and config.group_size < 2:
        raise ConfigError(
            f"--group-size {config.group_size}: it must be at least 2: one answer has no other to differ from."
        )
    if config.method == "sft" and config.anchors == "none":
        raise ConfigError("--anchors none: the method sft trains on anchors only; give data or a FILE.")
    if config.every_group and config.anchors == "none":
        raise ConfigError("--anchors none: with an anchor in every group (--every-group) it must be data or a FILE.")
    if config.every_group and config.anchors_per_group >= config.group_size:
        raise ConfigError(f"--anchors-per-group {config.anchors_per_group}: it must be less than --group-size.")
    if config.anchors not in ("data", "none") and not Path(config.anchors).is_file():
        raise ConfigError(f"--anchors {config.anchors}: it must be data, none, or a JSONL file that exists.")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {config.device}: PyTorch finds no GPU here; leave the flag out to run on the CPU.")
    if config.updates > config.questions:
        raise ConfigError(f"--updates {config.updates}: it must be at most --questions ({config.questions}).")


def configure(**flags: Any) -> Config:
    """A Config from flags; behind them the row of METHODS; behind that, without a model, the example's run.json."""
    defaults: dict[str, Any] = {}
    if not flags.get("model"):
        defaults = json.loads((EXAMPLE / "run.json").read_text(encoding="utf-8"))
        defaults["model"] = str(EXAMPLE / defaults["model"])
        for name in ("data", "eval_data"):
            defaults[name] = [str(EXAMPLE / path) for path in defaults[name]]
        if flags.get("data") and not flags.get("eval_data"):
            del defaults["eval_data"]  # other questions are held out of themselves
    method = flags.get("method", "dagrpo")
    if method not in METHODS:
        raise ConfigError(f"--method {method}: it must be one of {', '.join(METHODS)}.")
    config = Config(**{**defaults, **METHODS[method], **flags})
    if not config.data:
        raise ConfigError("--data is missing: with --model, name the JSONL file or Hub set to train on.")
    return config


# ---------------------------------------------------------------------------------------------------------------------
# (2), (3), (5) Rectification of one batch
# ---------------------------------------------------------------------------------------------------------------------


def rectify(
    model: PreTrainedModel, rollouts: Rollouts, rewards: torch.Tensor, config: Config
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mask m of (3), or of (5) with --threshold auto, the distinctiveness d behind it, and the advantages (4).

    Groups whose rewards are all equal have no advantage whatever the mask: they are not scored, and their d is NaN.

    N rows, (P, G) -> (P, G, G) bool, (P, G, G), (P, G)
    """
    groups, size = rewards.shape
    d = torch.full((groups, size, size), torch.nan, device=rewards.device)
    cross = torch.zeros_like(d) if config.threshold == "auto" else None
    threshold = 0.0 if config.threshold == "auto" else float(config.threshold)
    scored = (rewards != rewards[:, :1]).any(1).nonzero().squeeze(1)  # groups with different rewards
    if config.scorer != "none" and len(scored):
        rows = (scored[:, None] * size + torch.arange(size, device=scored.device)).flatten()
        part = rollouts.rows(rows)
        if cross is None:
            d[scored] = scoring.distinctiveness(
                config.scorer, model, part.input_ids, part.attention_mask, part.response_mask, size,
                temperature=config.temperature, hidden=part.hidden,
            )  # fmt: skip
        else:
            d[scored], cross[scored] = displacement(model, part, config)
    mask, advantages = scoring.mask_and_advantages(d, cross, rewards, threshold, config.scale)
    if config.rectify == "token" and cross is not None:
        kept = torch.ones_like(mask)
        advantages = scoring.rectified_advantages(rewards, kept, scale=config.scale)
        withhold_colliding_tokens(model, rollouts, rewards, mask, cross, config)
        mask = kept
    return mask, d, advantages


def withhold_colliding_tokens(
    model: PreTrainedModel,
    rollouts: Rollouts,
    rewards: torch.Tensor,
    mask: torch.Tensor,
    cross: torch.Tensor,
    config: Config,
) -> None:
    """Token-level (3): sets `rollouts.withheld`. Each pair that rule (5) would mask stays, but for the tokens of its
    worse answer that collide most: they lose that pair's part of their advantage (4).

    N rows, (P, G), (P, G, G), (P, G, G)
    """
    size = rewards.shape[1]
    pairs = (~mask & (rewards[:, :, None] > rewards[:, None, :])).nonzero()  # (p, better, worse) of each
    if len(pairs) == 0:
        return
    rows = (pairs[:, :1] * size + pairs[:, 1:]).unique()  # the answers in these pairs
    part = rollouts.rows(rows)
    lengths = part.lengths.tolist()
    states = scoring.answer_states(model, part.input_ids, part.attention_mask, part.response_mask, part.hidden)
    targets = part.input_ids[part.response_mask]
    sketches = scoring.token_sketches(model, torch.cat(states), targets, config.temperature, config.scorer).split(
        lengths
    )
    weights = push_weights(model, part, config)[part.response_mask[:, 1:]].split(lengths)
    number = {row: n for n, row in enumerate(rows.tolist())}
    for p, i, j in pairs.tolist():
        better, worse = number[p * size + i], number[p * size + j]
        kernel = scoring.token_kernel(states[better], sketches[better], states[worse], sketches[worse])
        shares = kernel.sum(0) * weights[worse]
        if config.loss_norm == "sequence":
            shares = shares / (lengths[better] * lengths[worse])
        colliding = scoring.colliding_tokens(shares, float(cross[p, i, j] - cross[p, i, i]))
        pair = torch.zeros(1, size, size, dtype=torch.bool, device=rewards.device)
        pair[0, i, j] = pair[0, j, i] = True
        share_of_pair = scoring.rectified_advantages(rewards[p : p + 1], pair, scale=config.scale)[0, j]
        answer = rollouts.response_mask[p * size + j]
        rollouts.withheld[p * size + j, answer] += share_of_pair * colliding


def displacement(model: PreTrainedModel, part: Rollouts, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """d of (2), and the products g_i·g̃_j that rule (5) compares. N rows -> (P, G, G), (P, G, G)"""
    weights = push_weights(model, part, config)
    gram, cross = scoring.gradient_gram(
        model, part.input_ids, part.attention_mask, part.response_mask, part.group_size,
        temperature=config.temperature, token_weights=weights, hidden=part.hidden, scorer=config.scorer,
    )  # fmt: skip
    if config.loss_norm == "sequence":  # then each ℓ is a mean over its tokens
        lengths = part.lengths.view(-1, part.group_size)
        cross = cross / (lengths[:, :, None] * lengths[:, None, :])
    return scoring.gradient_distinctiveness(gram), cross


@torch.no_grad()
def push_weights(model: PreTrainedModel, rollouts: Rollouts, config: Config) -> torch.Tensor:
    """w_t of (5): how much a token's push is its gradient. 1 on-policy; ∂f/∂log π for a shaped anchor. -> (N, T−1)"""
    weights = torch.ones_like(rollouts.logps[:, 1:])
    if config.anchor_objective == "shaped" and bool(rollouts.anchor_mask.any()):
        tokens = (rollouts.input_ids, rollouts.attention_mask, rollouts.response_mask)
        anchors_only = (values[rollouts.anchor_mask] for values in tokens)
        logps, _ = rollout.token_logps(model, *anchors_only, temperature=config.temperature)
        weights[rollouts.anchor_mask] = config.gamma * logps.exp() / (logps.exp() + config.gamma) ** 2
    return weights


# ---------------------------------------------------------------------------------------------------------------------
# (7) Ratio and shaping, (8) loss
# ---------------------------------------------------------------------------------------------------------------------


def importance_ratio(logps: torch.Tensor, old_logps: torch.Tensor) -> torch.Tensor:
    """ρ_t = π(o_t)/π_old(o_t). Equation (7). (B, S), (B, S) -> (B, S)"""
    return (logps - old_logps).exp()


def shaped_probability(logps: torch.Tensor, gamma: float) -> torch.Tensor:
    """f(π) = π/(π+γ) for tokens of an anchor. Equation (7); LUFFY, arXiv 2504.14945. (B, S) -> (B, S)"""
    probabilities = logps.exp()
    return probabilities / (probabilities + gamma)


def loss_denominators(lengths: torch.Tensor, loss_norm: str, max_new_tokens: int) -> torch.Tensor:
    """What the tokens of each answer are divided by in (8), over the whole optimizer step. (N,) -> (N,)

    `token`: all tokens of all answers (DAPO). `sequence`: the answer's own tokens, times the number of answers
    (GRPO). `constant`: the answer limit, times the number of answers (Dr. GRPO). Answers that are not trained on
    are counted too, so that masking never raises the step size.
    """
    if loss_norm == "token":
        return lengths.sum().expand(len(lengths)).float()
    if loss_norm == "sequence":
        return lengths.float() * len(lengths)
    return torch.full_like(lengths, max_new_tokens * len(lengths), dtype=torch.float)


def policy_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    anchor_mask: torch.Tensor,
    denominators: torch.Tensor,
    *,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    gamma: float = 0.03,
    anchor_objective: str = "shaped",
    reference_logps: torch.Tensor | None = None,
    kl: float = 0.0,
    entropies: torch.Tensor | None = None,
    entropy_bonus: float = 0.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a micro-batch, Σ mask · (β·k3_t − J_t − bonus·H_t) / denominator. Equation (8).

    On-policy J_t = min(ρ_t Ã, clip(ρ_t, 1−ε_low, 1+ε_high) Ã); for anchors J_t = f(π_t) Ã, or Ã log π_t.

    (B, S), (B, S), (B,) or (B, S), (B, S), (B,), (B,) -> scalar, and sums over tokens for the log. Advantages are
    of answers, or of tokens where some were withheld. The losses of all micro-batches add up to the loss of the
    step, because `denominators` belong to the whole step.
    """
    assert logps.shape == old_logps.shape == response_mask.shape == (len(advantages), logps.shape[1])
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(logps)  # (B,) -> (B, S)
    assert advantages.shape == logps.shape
    loss, sums = loss_and_sums(
        logps,
        old_logps,
        advantages,
        response_mask.bool(),
        anchor_mask,
        denominators,
        reference_logps,
        entropies,
        lowest=-math.inf if clip_low is None else 1 - clip_low,
        highest=math.inf if clip_high is None else 1 + clip_high,
        gamma=gamma,
        shaped=anchor_objective == "shaped",
        kl=kl,
        entropy_bonus=entropy_bonus,
    )
    return loss, dict(zip(LOSS_SUMS, sums.tolist(), strict=True))


LOSS_SUMS = ("tokens", "own_tokens", "anchor_tokens", "clip_low", "clip_high", "anchor_prob", "entropy", "kl")


@compiled
def loss_and_sums(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    anchor_mask: torch.Tensor,
    denominators: torch.Tensor,
    reference_logps: torch.Tensor | None,
    entropies: torch.Tensor | None,
    *,
    lowest: float,
    highest: float,
    gamma: float,
    shaped: bool,
    kl: float,
    entropy_bonus: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(7) and (8) fused on a GPU. Arguments as in `policy_loss` -> scalar, and the sums that LOSS_SUMS names, (8,)"""
    ratio = importance_ratio(logps, old_logps)
    objective = torch.minimum(ratio * advantages, ratio.clamp(lowest, highest) * advantages)
    off_policy = shaped_probability(logps, gamma) if shaped else logps
    is_anchor = anchor_mask[:, None]  # (B,) -> (B, 1)
    per_token = -torch.where(is_anchor, off_policy * advantages, objective)
    k3 = torch.zeros_like(logps)
    if reference_logps is not None:
        difference = reference_logps - logps
        k3 = difference.exp() - difference - 1
        per_token = per_token + kl * k3
    if entropies is not None and entropy_bonus:
        per_token = per_token - entropy_bonus * entropies
    loss = (torch.where(mask, per_token, 0.0) / denominators[:, None]).sum()
    own = mask & ~is_anchor
    sums = [
        mask,
        own,
        mask & is_anchor,
        own & (ratio < lowest) & (advantages < 0),
        own & (ratio > highest) & (advantages > 0),
        torch.where(mask & is_anchor, logps.exp(), 0.0),
        torch.zeros_like(logps) if entropies is None else torch.where(mask, entropies, 0.0),
        torch.where(mask, k3, 0.0),
    ]
    return loss, torch.stack([values.detach().float().sum() for values in sums])


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


def train(config: Config) -> dict[str, Any]:
    """Run a whole training; returns the last step's metrics with `before` and `after`, the held-out evaluations.

    Writes config.json, metrics.jsonl, samples.jsonl and the checkpoint model/ into the folder of the run.

    Raises anchors.DataError for a broken data line, before any model is loaded.
    """
    reward = anchors.load_reward(config.reward)
    rows, held_out = anchors.split_questions(
        config.data, config.eval_data, config.hold_out, check_golds=not config.reward
    )
    source = rows if config.anchors in ("data", "none") else anchors.read_questions([config.anchors])
    out = new_run_folder(config)
    torch.manual_seed(config.seed)
    model, tokenizer = rollout.load(config.model, config.device or None)
    rows, held_out = (anchors.fitting(model, tokenizer, part, config.max_new_tokens) for part in (rows, held_out))
    known = anchors.Anchors()
    if config.anchors != "none":
        known, rows = anchors.verified(
            rows,
            source,
            needed=config.anchors_per_group if config.every_group else int(config.method == "sft"),
            reward=reward,
            tokenizer=tokenizer,
            max_new_tokens=config.max_new_tokens,
        )
    reference = copy.deepcopy(model).requires_grad_(False) if config.kl else None
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=model.device.type == "cuda",  # otherwise a copy of all states would be made at every step
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / max(1, config.warmup)))
    estimate = memory_estimate(
        model,
        answers=config.questions * config.group_size,
        max_new_tokens=config.max_new_tokens,
        token_budget=config.token_budget,
        reference=reference is not None,
    )
    append_json(out / "metrics.jsonl", {"memory_estimate_gb": estimate})
    say(f"Needs about {estimate['total']:.2f} GB of the {estimate['available']:.1f} GB there are. Run folder: {out}")
    if 0 < estimate["available"] < estimate["total"]:
        say("That is too much: lower --token-budget or --max-new-tokens, or take a smaller model.")
    if config.top_p < 1:
        say(f"--top-p {config.top_p:g}: answers come from a narrower policy than the one that is trained.")

    before = after = held_out_accuracy(model, tokenizer, held_out, config, reward, out, step=0)
    stream = anchors.question_stream(rows, config.seed)
    record: dict[str, Any] = {}
    for step in range(1, config.steps + 1):
        seconds: dict[str, float] = {}

        # Steps 1 to 3 of the algorithm: sample, reward, and bring anchors into hard groups.
        batch, rollouts, rewards, collected = collect(model, tokenizer, stream, known, reward, config, step, seconds)

        # Steps 4 and 5: mask pairs that are not distinct, and take the advantages from the rest.
        with timed(seconds, "score", model):
            pair_mask, d, advantages = rectify(model, rollouts, rewards, config)
            rollouts.hidden = [None] * len(rollouts.hidden)  # their memory is the update's from here on
            if config.method == "sft":
                advantages = torch.ones_like(rewards)

        # Steps 6 and 7: answers whose advantage is 0 are left out, unless a KL or entropy term needs them.
        with timed(seconds, "train", model):
            trained = (advantages.flatten() != 0) | (rollouts.withheld != 0).any(1)
            if config.kl or config.entropy_bonus:
                trained = torch.ones_like(trained)
            rate = optimizer.param_groups[0]["lr"]
            sums = update(
                model, reference, optimizer, schedule, rollouts, advantages, trained, config, f"step {step}: update"
            )

        record = {
            "step": step,
            **collected,
            **group_metrics(rewards, pair_mask, d, advantages, rollouts, trained),
            **token_metrics(sums, config.updates),
            "learning_rate": rate,
            **{f"seconds/{name}": value for name, value in seconds.items()},
            "tokens_per_s/rollout": collected["sampled_tokens"] / max(seconds["rollout"], 1e-9),
            "tokens_per_s/train": sums.get("tokens", 0.0) / max(seconds["train"], 1e-9),
            "peak_memory_gb": peak_memory_gb(model),
        }
        append_json(out / "metrics.jsonl", record)
        write_samples(out / "samples.jsonl", step, batch, rollouts, rewards, pair_mask, d, advantages)
        say(step_line(record, config.steps))
        if step == config.steps or (config.eval_every and step % config.eval_every == 0):
            save(model, tokenizer, out)
            after = held_out_accuracy(model, tokenizer, held_out, config, reward, out, step)

    count, temperature = before["questions"] * config.eval_samples, config.eval_temperature
    say(f"\nHeld out, before and after {config.steps} steps of {config.method}")
    say(f"({count} answers at temperature {temperature:g}):\n")
    say(comparison_table(before, after))
    say(f"\nSaved in {out}: model/ (Hugging Face format), metrics.jsonl, samples.jsonl, evaluations.jsonl, config.json")
    return {**record, "before": before, "after": after, "out": str(out)}


def collect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: Iterator[anchors.Row],
    known: anchors.Anchors,
    reward: anchors.Reward,
    config: Config,
    step: int,
    seconds: dict[str, float],
) -> tuple[list[anchors.Row], Rollouts, torch.Tensor, dict[str, Any]]:
    """P questions, their N answers with anchors in place, the rewards (P, G), and what the log says of the sampling.

    The metrics are of the answers as they were first sampled, before groups are resampled and anchors join.
    """
    rng = random.Random(rollout.noise_key(config.seed, step))
    batch = [next(stream) for _ in range(config.questions)]
    if config.method == "sft":
        seconds.update(rollout=0.0, verify=0.0)
        with timed(seconds, "anchors", model):
            rollouts, rewards = anchors.only(model, tokenizer, batch, known, rng)
        return batch, rollouts, rewards, {"sampled_tokens": 0, "anchored": 1.0}

    size = config.group_size - (config.anchors_per_group if config.every_group else 0)

    def sample_and_reward(rows: list[anchors.Row], part: int) -> tuple[Rollouts, torch.Tensor]:
        prompts = [anchors.prompt_of(tokenizer, row) for row in rows]
        with timed(seconds, "rollout", model), progress(f"step {step}: rollout", "token") as bar:
            rollouts = rollout.sample(
                model,
                tokenizer,
                prompts,
                size,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=rollout.noise_key(config.seed, step, part),
                keep_hidden=config.scorer in scoring.BY_GRADIENT,
                progress=bar.update,
            )
        with timed(seconds, "verify", model), progress(f"step {step}: verify", "answer", len(rollouts.texts)) as bar:
            earned = reward(rollouts.texts, [row for row in rows for _ in range(size)])
            bar.update(len(earned))
        return rollouts, torch.tensor(earned, device=model.device).view(len(rows), size)

    rollouts, rewards = sample_and_reward(batch, 0)
    metrics = {
        "reward": rewards.mean().item(),
        "solve_none": (rewards <= 0).all(1).float().mean().item(),
        "solve_all": (rewards > 0).all(1).float().mean().item(),
        "length/mean": rollouts.lengths.float().mean().item(),
        "length/max": int(rollouts.lengths.max()),
        "truncated": rollouts.truncated.float().mean().item(),
        "sampled_tokens": int(rollouts.lengths.sum()),
    }
    for part in range(1, config.resample + 1):
        same = (rewards == rewards[:, :1]).all(1).nonzero().squeeze(1).tolist()  # groups without signal
        if not same:
            break
        others = [next(stream) for _ in same]
        further, further_rewards = sample_and_reward(others, part)
        metrics["sampled_tokens"] += int(further.lengths.sum())
        rollouts = rollout.replace_groups(model, tokenizer, rollouts, same, further)
        rewards[same] = further_rewards
        for p, row in zip(same, others, strict=True):
            batch[p] = row
    if config.anchors != "none":
        with timed(seconds, "anchors", model):
            rollouts, rewards = anchors.insert(
                model,
                tokenizer,
                rollouts,
                rewards,
                batch,
                known,
                count=config.anchors_per_group,
                hard_below=config.hard_below,
                every_group=config.every_group,
                rng=rng,
            )
    metrics["anchored"] = rollouts.anchor_mask.view(len(batch), -1).any(1).float().mean().item()
    return batch, rollouts, rewards, metrics


def update(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rollouts: Rollouts,
    advantages: torch.Tensor,
    trained: torch.Tensor,
    config: Config,
    label: str,
) -> dict[str, float]:
    """The optimizer steps of one batch, each on its share of the questions; returns sums for the log.

    N rollouts, (P, G) advantages, (N,) bool
    """
    sums: dict[str, float] = defaultdict(float)
    if config.updates > 1:
        rollouts.logps = old_logps(model, rollouts, trained, config)
    row_numbers = torch.arange(len(trained), device=trained.device).view(advantages.shape)  # (N,) -> (P, G)
    for share in row_numbers.tensor_split(config.updates):
        members = share.flatten()
        denominators = torch.ones_like(advantages.flatten())
        denominators[members] = loss_denominators(rollouts.lengths[members], config.loss_norm, config.max_new_tokens)
        learning = members[trained[members]]
        if len(learning) == 0:
            continue  # a step on nothing would still move the policy, by weight decay and momentum
        counted = accumulate_gradients(
            model, reference, rollouts, advantages.flatten(), learning, denominators, config, label
        )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        for name, value in counted.items():
            sums[name] += value
        sums["grad_norm"] = max(sums["grad_norm"], norm.item())
    return sums


def accumulate_gradients(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    rollouts: Rollouts,
    advantages: torch.Tensor,
    rows: torch.Tensor,
    denominators: torch.Tensor,
    config: Config,
    label: str,
) -> dict[str, float]:
    """Backward of the loss (8) over the given rows, in micro-batches; returns the sums of `policy_loss` and `loss`.

    N rollouts, (N,) advantages, (B,) rows, (N,) denominators
    """
    sums: dict[str, float] = defaultdict(float)
    answer_tokens = int(rollouts.lengths[rows].sum())
    with progress(label, "token", answer_tokens) as bar, rollout.checkpointed(model, config.checkpointing):
        for batch in rollout.micro_batches(model, rollouts, rows, config.token_budget):
            picked = batch.rows
            part = rollouts.rows(picked)
            tokens = (part.input_ids, part.attention_mask, part.response_mask)
            options: dict[str, Any] = {"temperature": config.temperature, "packing": batch.packing}
            logps, entropies = rollout.token_logps(model, *tokens, **options)
            reference_logps = None
            if reference is not None:
                with torch.no_grad():
                    reference_logps, _ = rollout.token_logps(reference, *tokens, **options)
            loss, counted = policy_loss(
                logps,
                part.logps[:, 1:] if config.updates > 1 else logps.detach(),
                advantages[picked][:, None] - part.withheld[:, 1:],
                part.response_mask[:, 1:],
                part.anchor_mask,
                denominators[picked],
                clip_low=None if config.clip_low == "none" else float(config.clip_low),
                clip_high=None if config.clip_high == "none" else float(config.clip_high),
                gamma=config.gamma,
                anchor_objective=config.anchor_objective,
                reference_logps=reference_logps,
                kl=config.kl,
                entropies=entropies if config.entropy_bonus else entropies.detach(),
                entropy_bonus=config.entropy_bonus,
            )
            loss.backward()
            own = part.response_mask[:, 1:] & ~part.anchor_mask[:, None]
            counted["loss"] = loss.item()
            counted["sampler_gap"] = (logps.detach() - part.logps[:, 1:])[own].abs().sum().item()
            counted["model_tokens"], counted["padded_tokens"] = batch.tokens, batch.padded_tokens
            for name, value in counted.items():
                sums[name] += value
            bar.update(int(counted["tokens"]))
    return sums


@torch.no_grad()
def old_logps(model: PreTrainedModel, rollouts: Rollouts, trained: torch.Tensor, config: Config) -> torch.Tensor:
    """log π_old of the trained answers, by the same pass that trains them: the ratio then starts at 1 but for rounding.

    N rows, (N,) -> (N, T)
    """
    logps = rollouts.logps.clone()
    rows = trained.nonzero().squeeze(1)
    for batch in rollout.micro_batches(model, rollouts, rows, config.token_budget):
        part = rollouts.rows(batch.rows)
        values, _ = rollout.token_logps(
            model, part.input_ids, part.attention_mask, part.response_mask,
            temperature=config.temperature, packing=batch.packing,
        )  # fmt: skip
        for row, own, own_mask in zip(batch.rows.tolist(), values, part.response_mask[:, 1:], strict=True):
            logps[row, rollouts.response_mask[row]] = own[own_mask]
    return logps


# ---------------------------------------------------------------------------------------------------------------------
# Files of a run
# ---------------------------------------------------------------------------------------------------------------------


def held_out_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: list[anchors.Row],
    config: Config,
    reward: anchors.Reward,
    out: Path,
    step: int,
) -> dict[str, Any]:
    """Evaluate, add the result with every answer to evaluations.jsonl, and print one line. Without `rows` then."""
    start = time.perf_counter()
    result = evaluate(
        model,
        tokenizer,
        held_out,
        k=config.eval_samples,
        temperature=config.eval_temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        reward=reward,
        label=f"step {step}: held out",
    )
    append_json(out / "evaluations.jsonl", {"step": step, **result})
    low, high = result["interval"]
    levels = "  ".join(f"{level}: {figures['accuracy']:.0%}" for level, figures in result["levels"].items())
    say(
        f"held out at step {step}: {result['accuracy']:.1%} ({low:.1%} to {high:.1%})  length {result['length']:.1f}"
        f"  {time.perf_counter() - start:.1f} s" + (f"  by level {levels}" if levels else "")
    )
    del result["rows"]
    return result


def new_run_folder(config: Config) -> Path:
    """The folder of the run, with config.json. Raises ConfigError where another run's results are in it."""
    model = Path(config.model).name.removesuffix(".gguf")
    name = f"{model}-{config.method}-seed{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(config.out or Path("runs") / name)
    if (out / "metrics.jsonl").exists():
        raise ConfigError(f"--out {out}: there is a run in this folder already. Give another one, or delete it.")
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    return out


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    try:
        flags = parse(
            Config,
            "Train a language model with DaGRPO or a baseline. Without --model, the embedded example runs.",
            sys.argv[1:] if arguments is None else arguments,
        )
        train(configure(**flags))
    except (ConfigError, anchors.DataError, OSError, ImportError, NotImplementedError) as error:
        sys.exit(f"dagrpo.py: {error}")


if __name__ == "__main__":
    main()
