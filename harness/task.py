"""What a run is to learn, and how far it has: questions, anchors and reward, read and checked; held-out accuracy."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import anchors
from anchors import Anchors
from evaluate import evaluate
from harness.checkpoint import records_of
from harness.config import Config
from harness.estimate import Prompts
from harness.mapping import first_question, names_of
from harness.report import append_json, evaluation_line, say, tell
from harness.rewards import load_reward
from harness.runs import Run
from policy.logprobs import shared_prefix
from questions import DataError, Question, Reward, fitting, prompt_of, read_data, split_questions, values_of
from rollout import Rollouts, encode_prompt, stop_ids
from scorers.judge import Distances, Judged, load_distances, of_differing_groups
from scoring import SCORERS

SOME = 256  # questions that tell how long prompts are


@dataclass(frozen=True)
class Task:
    """What is to be learned: questions to train on and others to measure on, anchors, the reward, and the judge."""

    questions: list[Question]
    held_out: list[Question]
    anchor_source: list[Question]  # whose solutions may become anchors
    anchors: Anchors
    reward: Reward
    distances: Distances | None = None  # of --scorer judge, or of a function of one's own


def read_task(config: Config) -> Task:
    """The task as its files have it. Raises DataError for what cannot be used in them.

    A judge that is a local model is loaded here, last of all.
    """
    reward = load_reward(config.reward)
    names = names_of(config.map)
    split = split_questions(
        config.data, config.eval_data, config.hold_out, check_golds=not config.reward, skip_bad=config.skip_bad,
        names=names,
    )  # fmt: skip
    source, notes, files = split.training, split.notes, [*config.data, *config.eval_data]
    if config.anchors not in ("data", None):
        source, further = read_data([config.anchors], "--anchors", skip_bad=config.skip_bad, names=names)
        notes, files = notes + further, [*files, config.anchors]
    names.check(files)
    for note in notes:
        tell(note)
    solved = [question for question in source if question.get("solution")]
    if config.anchors is not None and not solved:
        where = ", ".join(config.data if config.anchors == "data" else [config.anchors])
        if anchors_needed(config):
            raise DataError(f"{where}: no question has a `solution`, and this method learns from them.")
        tell(f"{where}: no question has a `solution`: training without anchors.")
    return Task(split.training, split.held_out, solved, Anchors(), reward, distances_of(config))


def distances_of(config: Config) -> Distances | None:
    """What judges pairs in place of the scorers of SCORERS, where --scorer names such a thing."""
    if config.scorer in SCORERS:
        return None
    return load_distances(
        config.scorer, url=config.judge_url, model=config.judge_model, timeout=config.judge_timeout,
        calls=config.judge_calls, cache=config.judge_cache, seed=config.seed, device=config.device or None,
    )  # fmt: skip


def judged(task: Task, questions: list[Question], rollouts: Rollouts, rewards: torch.Tensor) -> Judged:
    """The distances of a step's groups by the task's judge, if it has one; says what there is to say. (P, G)"""
    found = of_differing_groups(task.distances, questions, rollouts.texts, rewards)
    for note in found.notes:
        tell(note)
    return found


def anchors_needed(config: Config) -> int:
    """How many anchors a question must have to be trained on."""
    return config.anchors_per_group if config.every_group else int(not config.rollouts)


def verified_task(task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> Task:
    """The task with what the model has room for, and with its anchors. Raises DataError where nothing is left."""
    limit, style, stops = config.max_new_tokens, config.prompt_style, stop_ids(model, tokenizer)
    if not stops:
        raise DataError(
            f"--model {config.model}: neither its tokenizer nor its generation config names a token that ends a text "
            "(EOS), so that no completion would ever end. Set eos_token in tokenizer_config.json."
        )
    questions, notes = fitting(model, tokenizer, task.questions, limit, style)
    held_out, further = fitting(model, tokenizer, task.held_out, limit, style)
    lost = {question.get("eval_set", "") for question in task.held_out} - {q.get("eval_set", "") for q in held_out}
    if lost:
        raise DataError(f"--eval-data: no question of {', '.join(sorted(lost))} leaves room for a completion.")
    notes, solutions = notes + further, task.anchors
    if config.anchors is not None and task.anchor_source:
        solutions = anchors.load(
            task.anchor_source, joining=questions, reward=task.reward, right=config.right, tokenizer=tokenizer,
            stops=stops, style=style, max_new_tokens=limit,
        )  # fmt: skip
        questions, further = anchors.verified(solutions, questions, anchors_needed(config))
        notes += further
    for note in notes:
        tell(note)
    say(first_question(tokenizer, questions[0], style))
    return replace(task, questions=questions, held_out=held_out, anchors=solutions)


def prompt_lengths(task: Task, tokenizer: PreTrainedTokenizerBase, config: Config) -> Prompts:
    """Of some prompts, evenly spaced: files are often ordered by level."""
    some = task.questions[:: -(-len(task.questions) // SOME)]
    prompts = [encode_prompt(tokenizer, prompt_of(tokenizer, question, config.prompt_style)) for question in some]
    return Prompts(max(map(len, prompts)), shared_prefix(prompts))


def fingerprint(task: Task) -> str:
    """A hash of all questions and solutions, of training and held out."""
    sets = (task.questions, task.held_out, task.anchor_source)
    listed = [[values_of(question, "solution") for question in questions] for questions in sets]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def held_out_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, config: Config, run: Run, step: int
) -> dict[str, Any]:
    """Evaluate, add the result to evaluations.jsonl, and print a line. The result comes back without completions.

    A resumed run has some evaluations already.
    """
    start = time.perf_counter()
    for known in records_of(run.out / "evaluations.jsonl"):
        if known["step"] == step:
            return {name: value for name, value in known.items() if name not in ("step", "rows")}
    result = evaluate(
        model, tokenizer, task.held_out,
        k=config.eval_samples, temperature=config.eval_temperature, max_new_tokens=config.max_new_tokens,
        seed=config.seed, reward=task.reward, right=config.right, style=config.prompt_style,
        label=f"step {step}: held out",
    )  # fmt: skip
    append_json(run.out / "evaluations.jsonl", {"step": step, **result})
    say(evaluation_line(step, result, time.perf_counter() - start))
    del result["rows"]
    return result
