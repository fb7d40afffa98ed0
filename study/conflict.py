"""Do the gradients of right and wrong completions collide, does a cheap score see it, and does masking then help?

    python -m study.conflict                     the embedded model, after 0, 10 and 20 steps of GRPO
    python -m study.conflict --steps 0 --repetitions 0 --model MODEL --data FILE.jsonl    any other model, as it is

Four Markdown tables are printed, over the checkpoints of a training:

    1. How often the full-parameter gradients of a right/wrong pair of a group collide. Rule (5) of docs/method.md
       calls a pair displacing where g_i·g_j > |g_i|², i the right completion: its own update lowers it.
    2. How well each cheap score ranks the pairs as the full gradients do.
    3. What one small optimizer step does to the log-likelihood of right completions, by mask: of those that it is
       taken on, and of other questions' from the same policy. One mask applies rule (5) to the full gradients: what
       masking could do if its score were right.
    4. What a threshold masks, skips, costs and saves, in CPU time (on a GPU, wall time). Accuracy by threshold is
       measured by study.run.

Pairs of a group share completions, so intervals of 1 and 2 resample groups; those of 3 and 4 resample repetitions, each
of which draws questions and completions anew. All are 95 % bootstrap intervals. The measured questions are not trained
on.
--json FILE adds the figures to FILE as one line, with machine and versions. --quick is a tiny version.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import dagrpo
import rollout
import scoring
from harness.config import EXAMPLE, Config, configure
from harness.report import machine, say, synchronize
from questions import correctness, drop_unreadable, prompt_of, read_questions
from rollout import Rollouts
from scorers.gradients import completion_states
from scoring import Rectification, Rectified
from study import tasks
from study.cells import commit
from study.conflict_tables import (
    FULL,
    MEASURED,
    OPTIMIZERS,
    STEPPED,
    Figures,
    Pairs,
    mask_tables,
    mean_or_nan,
    pair_tables,
    summary_of_masks,
    summary_of_pairs,
)
from study.tasks import Question

MASKS: dict[str, dict[str, Any]] = {
    "none": {"rectify": "none"},
    **{
        f"{scorer} {t}": {"rectify": "threshold", "scorer": scorer, "threshold": t}
        for scorer, thresholds in (
            ("token", (0.1,)),
            ("gradient", (0.2, 0.3, 0.35, 0.4, 0.45)),
            ("state", (0.1, 0.2, 0.3)),
        )
        for t in thresholds
    },
    "auto": {"rectify": "pair", "scorer": "gradient"},
    FULL: {},  # by `rectify_in_full`
}
QUICK = {"steps": [0, 1], "questions": 6, "batch": 4, "group_size": 4, "repetitions": 2, "max_new_tokens": 64}


# ---------------------------------------------------------------------------------------------------------------------
# 1 and 2. Pairs: full gradients and the cheap scores
# ---------------------------------------------------------------------------------------------------------------------


def full_gram(model: PreTrainedModel, group: Rollouts, temperature: float) -> torch.Tensor:
    """Inner products of the completions' log-likelihood gradients with respect to all parameters.

    G sequences -> (1, G, G)
    """
    parameters = list(model.parameters())
    gradients = []
    for i in range(len(group.texts)):
        one = group.rows(torch.tensor([i]))
        logps, _ = rollout.token_logps(model, *one.tokens, temperature=temperature)
        gradients.append(torch.autograd.grad(logps.sum(), parameters))
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.double)
    for parts in zip(*gradients, strict=True):  # parameter by parameter, so that the gradients are never held twice
        flat = torch.stack([part.flatten() for part in parts])
        gram += (flat @ flat.T).double().cpu()
    return gram[None]


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """cos = 1 − 2d, 0 where a norm is 0. (1, G, G) -> (G, G)"""
    return 1 - 2 * scoring.gradient_distinctiveness(gram)[0]


def pairs_of_group(model: PreTrainedModel, group: Rollouts, rewards: torch.Tensor, temperature: float) -> Pairs:
    """Every pair of a right completion i and a wrong one j, by full gradients and by scores, higher for more alike.

    G sequences, (G,) -> columns (n,)
    """
    size, tokens = group.group_size, group.tokens
    full = full_gram(model, group, temperature)
    grams = {
        scorer: scoring.gradient_gram(
            model, *tokens, size, temperature=temperature, hidden=group.hidden, scorer=scorer
        ).double()
        for scorer in scoring.BY_GRADIENT
    }
    with torch.no_grad():
        states = completion_states(model, *tokens, group.hidden)
    means = torch.stack([hidden.mean(0) for hidden in states]).double()
    right, wrong = (rewards[:, None] > rewards[None, :]).nonzero().T
    norms = full[0].diagonal().sqrt()
    tables = {
        "cosine": cosines(full),
        "displaced": full[0] > full[0].diagonal()[:, None],
        "right_norm": norms[:, None].expand(size, size),
        "wrong_norm": norms[None, :].expand(size, size),
        **{scorer: cosines(gram) for scorer, gram in grams.items()},
        "rule": grams["gradient"][0] / grams["gradient"][0].diagonal()[:, None],
        "token": 1 - scoring.distinctiveness("token", model, *tokens, size)[0],
        "hidden": cosines((means @ means.T)[None]),
    }
    return {name: table.cpu().numpy()[right.cpu(), wrong.cpu()] for name, table in tables.items()}


def measure_pairs(model: PreTrainedModel, rollouts: Rollouts, rewards: torch.Tensor, temperature: float) -> Pairs:
    """The pairs of all groups, with the column `group`. N sequences, (P, G)"""
    size = rollouts.group_size
    found = []
    for p in (rewards != rewards[:, :1]).any(1).nonzero().flatten().tolist():
        group = rollouts.rows(torch.arange(p * size, (p + 1) * size))
        pairs = pairs_of_group(model, group, rewards[p], temperature)
        found.append({**pairs, "group": np.full(len(pairs["cosine"]), p)})
    return {name: np.concatenate([pairs[name] for pairs in found]) for name in found[0]} if found else {}


# ---------------------------------------------------------------------------------------------------------------------
# 3 and 4. One step, and what masks cost
# ---------------------------------------------------------------------------------------------------------------------


def completions_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], config: Config, seed: int
) -> tuple[Rollouts, torch.Tensor]:
    """Completions with their hidden states, and the rewards. P questions -> N sequences, (P, G)"""
    rollouts = rollout.sample(
        model, tokenizer, [prompt_of(tokenizer, question) for question in questions], config.group_size,
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed, keep_hidden=True,
    )  # fmt: skip
    repeated = [question for question in questions for _ in range(config.group_size)]
    rewards = correctness(rollouts.texts, repeated)
    return rollouts, torch.tensor(rewards, device=model.device).view(len(questions), -1)


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, rollouts: Rollouts, rows: torch.Tensor, config: Config) -> np.ndarray:
    """Σ_t log π of some completions. N sequences, (B,) -> (B,)"""
    values = torch.zeros(len(rollouts.texts), dtype=torch.double)
    for batch in rollout.micro_batches(model, rollouts, rows, config.token_budget):
        part = rollouts.rows(batch.rows)
        logps, _ = rollout.token_logps(model, *part.tokens, temperature=config.temperature, packing=batch.packing)
        values[batch.rows.cpu()] = logps.double().sum(1).cpu()
    return values[rows.cpu()].numpy()


def rectify_in_full(model: PreTrainedModel, rollouts: Rollouts, rewards: torch.Tensor, how: Rectification) -> Rectified:
    """As `scoring.rectify` by rule (5), but with the gradients of all parameters: what a cheap score could come to.

    N sequences, (P, G)
    """
    size = rollouts.group_size
    grams = torch.zeros(len(rewards), size, size, dtype=torch.double)
    for p in (rewards != rewards[:, :1]).any(1).nonzero().flatten().tolist():
        group = rollouts.rows(torch.arange(p * size, (p + 1) * size))
        grams[p] = full_gram(model, group, how.temperature)[0]
    mask = scoring.safe_pairs(grams.to(rewards.device), rewards)
    advantages = scoring.rectified_advantages(rewards, mask, scale=how.scale)
    return Rectified(mask, grams, advantages, torch.zeros_like(rollouts.logps))


def gradients_under(
    model: PreTrainedModel, rollouts: Rollouts, advantages: torch.Tensor, config: Config
) -> list[torch.Tensor]:
    """Gradient of the loss (8), as in training: what has advantage 0 is skipped. N sequences, (P, G)

    It is taken from an update whose step does not move, and whose gradients are not scaled down.
    """
    flat, parameters = advantages.flatten(), list(model.parameters())
    gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def keep(*_: Any) -> None:
        gradients[:] = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    optimizer = torch.optim.SGD(parameters, lr=0.0)
    optimizer.register_step_pre_hook(keep)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    learner = dagrpo.Learner(model, None, None, optimizer, schedule)  # type: ignore[arg-type]
    by_token = flat[:, None].expand(rollouts.logps.shape)
    dagrpo.update(learner, rollouts, by_token, flat != 0, replace(config, max_grad_norm=1e30), "backward")
    return gradients


@contextlib.contextmanager
def stepped(
    model: PreTrainedModel, gradients: list[torch.Tensor], config: Config, optimizer: str, rate: float
) -> Iterator[float]:
    """Inside, the model is one step further; gives the length of that step. AdamW clips first, as in training."""
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()  # clipping works in place
    if optimizer == "AdamW":
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay).step()
    else:
        torch.optim.SGD(parameters, lr=rate).step()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        yield norm_of([p - before for p, before in zip(parameters, start, strict=True)])
        for parameter, before in zip(parameters, start, strict=True):
            parameter.copy_(before)


def seconds_of(model: PreTrainedModel, run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time on a GPU, and CPU time of all threads on a CPU, to which other programs on the machine do not add."""
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    synchronize(model)
    start = clock()
    result = run()
    synchronize(model)
    return clock() - start, result


def norm_of(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([tensor.detach().norm() for tensor in tensors]).norm())


def measure_masks(
    model: PreTrainedModel,
    batch: tuple[Rollouts, torch.Tensor],
    held_out: tuple[Rollouts, torch.Tensor],
    config: Config,
) -> dict[str, dict[str, float]]:
    """One repetition: for each mask its shares and seconds, and for STEPPED what a step changes.

    Twice N sequences, (P, G). The unmasked AdamW step is the first of a training, at the rate that the warm-up starts
    with; SGD gets the rate at which its unmasked step has the same length, and keeps it under every mask.
    """
    rollouts, rewards = batch
    differs = rewards[:, :, None] > rewards[:, None, :]
    sets = [(*batch, 1), (*held_out, 1), (*held_out, 0)]
    measured = [(sampled, (earned.flatten() == wanted).nonzero().flatten()) for sampled, earned, wanted in sets]
    before = [log_likelihoods(model, sampled, picked, config) for sampled, picked in measured]
    unmasked = scoring.rectify(model, rollouts, rewards, replace(config, **MASKS["none"]).rectification)
    gradients_under(
        model, rollouts, unmasked.advantages, config
    )  # warms up: otherwise the first mask would seem slower
    results: dict[str, dict[str, float]] = {}
    rates = {"AdamW": config.learning_rate / max(1, config.warmup)}
    for name, flags in MASKS.items():
        how = replace(config, **flags).rectification
        rectify = rectify_in_full if name == FULL else scoring.rectify
        score_seconds, rectified = seconds_of(model, partial(rectify, model, rollouts, rewards, how))
        advantages = rectified.advantages
        train_seconds, gradients = seconds_of(model, partial(gradients_under, model, rollouts, advantages, config))
        results[name] = {
            "masked": mean_or_nan((~rectified.pair_mask)[differs].double().cpu().numpy()),
            "trained": float((advantages != 0).sum()),
            "score_seconds": score_seconds,
            "train_seconds": train_seconds,
        }
        if name not in STEPPED:
            continue
        for optimizer in OPTIMIZERS:
            # The unmasked AdamW step comes first of all and sets the rate of SGD.
            if optimizer not in rates:
                rates[optimizer] = results["none"]["AdamW length"] / max(norm_of(gradients), 1e-30)
            with stepped(model, gradients, config, optimizer, rates[optimizer]) as length:
                after = [log_likelihoods(model, sampled, picked, config) for sampled, picked in measured]
            results[name][f"{optimizer} length"] = length
            changes = [new - old for old, new in zip(before, after, strict=True)]
            for what, change in zip(MEASURED, changes, strict=True):
                results[name][f"{optimizer} {what}"] = mean_or_nan(change)
            results[name][f"{optimizer} lowered"] = mean_or_nan(changes[0] < 0)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def two_sets(data: str) -> tuple[list[Question], list[Question]]:
    """(to train on, to measure on): training and validation set of the study, or the two halves of --data, shuffled."""
    if not data:
        sets = tasks.draw_sets(1, 80, 40)  # as the study draws them; of the benchmarks none is needed here
        return sets["training"], sets["validation"]
    questions, _ = drop_unreadable(read_questions([data]))
    random.Random(0).shuffle(questions)
    return questions[: len(questions) // 2], questions[len(questions) // 2 :]


def configuration(options: argparse.Namespace, folder: Path) -> Config:
    """GRPO as dagrpo.py trains it, on the questions in `folder`: the mask must not shape what it is measured on."""
    flags = {
        "model": options.model or str(EXAMPLE), "data": [str(folder / "training.jsonl")], "method": "grpo",
        "questions": options.batch, "group_size": options.group_size, "max_new_tokens": options.max_new_tokens,
        "eval_every": 0, "eval_samples": 1, "hold_out": 1,  # at least one question is evaluated; nobody looks at it
    }  # fmt: skip
    return configure(**{name: value for name, value in flags.items() if value is not None})


def checkpoint_path(config: Config, steps: int, folder: Path) -> str:
    """The model after so many steps. Runs of one seed begin alike, so that checkpoints are of one training."""
    if steps == 0:
        return config.model
    out = folder / f"steps-{steps}"
    with contextlib.redirect_stdout(sys.stderr):
        dagrpo.train(replace(config, steps=steps, out=str(out)))
    return str(out / "model")


def measure_checkpoint(
    path: str, steps: int, questions: list[Question], config: Config, options: argparse.Namespace
) -> Figures:
    model, tokenizer = rollout.load(path)
    rollouts, rewards = completions_of(model, tokenizer, questions[: options.questions], config, seed=0)
    pairs = measure_pairs(model, rollouts, rewards, config.temperature)
    repetitions = []
    for seed in range(1, options.repetitions + 1):
        chosen = random.Random(seed).sample(questions, 2 * options.batch)
        batch, held_out = (
            completions_of(model, tokenizer, part, config, seed)
            for part in (chosen[: options.batch], chosen[options.batch :])
        )
        repetitions.append(measure_masks(model, batch, held_out, config))
    return {
        "steps": steps,
        "questions": len(rewards),
        "accuracy": float(rewards.mean()),
        "length": float(rollouts.lengths.float().mean()),
        **summary_of_pairs(pairs),
        "repetitions": options.repetitions,
        "masks": summary_of_masks(repetitions) if repetitions else {},
    }


def without_nan(value: Any) -> Any:
    """The figures as JSON knows them: four significant digits, null for NaN."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.conflict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as dagrpo.py takes it; the embedded model without it")
    parser.add_argument("--data", default="", help="JSONL file; half of it is trained on, the other half measured")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 10, 20], help="of GRPO before each checkpoint")
    parser.add_argument("--questions", type=int, default=96, help="whose pairs are measured")
    parser.add_argument(
        "--batch", type=int, default=24, help="questions per training step, and per repetition of one step"
    )
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=6, help="of one step by each mask; 0: pairs only")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--json", default="", help="add the figures to this file")
    parser.add_argument("--quick", action="store_true", help="a tiny version, in seconds")
    options = parser.parse_args(arguments)
    if options.model and not options.data:
        parser.error("--data is missing: with --model, name the JSONL file of its questions.")
    if options.quick:
        vars(options).update(QUICK)
    commit()  # kept from now on: the code that was loaded, whatever is committed while it runs
    training, measured = two_sets(options.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tasks.write_sets(folder, {"training": training})
        random.Random(0).shuffle(measured)  # the study's come level by level
        config = configuration(options, folder)
        checkpoints = [
            measure_checkpoint(checkpoint_path(config, steps, folder), steps, measured, config, options)
            for steps in options.steps
        ]
    here = machine()
    name = Path(options.model).name if options.model else "the embedded model"
    title = f"Conflict in groups of {config.group_size} answers: {name}"
    say(f"## {title}\n\nCommit {commit()}, {', '.join(f'{name} {value}' for name, value in here.items())}.\n")
    say(pair_tables(checkpoints))
    if options.repetitions:
        say(f"\n{mask_tables(checkpoints)}")
    if options.json:
        settings = {**vars(options), "model": name, "data": Path(options.data).name}  # folders differ by machine
        del settings["json"]
        line = {"title": title, "commit": commit(), "machine": here, "options": settings, "checkpoints": checkpoints}
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(line)) + "\n")


if __name__ == "__main__":
    main()
