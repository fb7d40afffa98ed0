"""Anchors: verified solutions that join the group of a hard question. Equation (6).

On a question that no completion solves, every advantage is 0 and nothing is learned. There a solution from elsewhere,
verified by the same reward as everything else, takes the place of a failing completion. Nothing here prints: what there
is to say comes back as `notes`. The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from questions import DataError, Question, Reward, correctness, prompt_of, read_questions
from rollout import Completion, Rollouts, assemble, combined, encode_prompt


@dataclass
class Anchors:
    """Verified solutions by question."""

    solutions: dict[str, list[tuple[Any, float]]] = field(default_factory=dict)  # problem -> (solution, reward)s
    left_out: list[str] = field(default_factory=list)  # "file:line: why" for each solution that cannot be used

    def available(self, question: Question) -> list[tuple[Any, float]]:
        """(solution, reward) pairs of a question; the solution as token ids, or as text without a tokenizer."""
        return self.solutions.get(question["problem"].strip(), [])


def load(
    path_or_questions: str | list[Question],
    *,
    reward: Reward = correctness,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int | None = None,
) -> Anchors:
    """The `solution` of each question, where it earns a positive reward and fits the token limit with its EOS.

    With a tokenizer, solutions are kept as token ids that end in EOS; without one, as texts. What is left out is
    named by file and line in `left_out`. Raises DataError for a broken file.
    """
    given = read_questions([path_or_questions]) if isinstance(path_or_questions, str) else path_or_questions
    questions = [question for question in given if question.get("solution")]
    anchors = Anchors()
    rewards = reward([question["solution"] for question in questions], questions)
    for question, earned in zip(questions, rewards, strict=True):
        where = question.get("where", question["problem"])
        if earned <= 0:
            anchors.left_out.append(f"{where}: the solution does not reach the answer {question['answer']}")
            continue
        solution: list[int] | str = question["solution"]
        if tokenizer is not None:
            solution = tokenizer(question["solution"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            if max_new_tokens is not None and len(solution) > max_new_tokens:
                anchors.left_out.append(
                    f"{where}: the solution has {len(solution)} tokens with its EOS, the limit is {max_new_tokens}"
                )
                continue
        anchors.solutions.setdefault(question["problem"].strip(), []).append((solution, earned))
    return anchors


def verified(
    questions: list[Question],
    source: list[Question],
    *,
    needed: int,
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> tuple[Anchors, list[Question], list[str]]:
    """The anchors among the source's solutions, the questions that have at least `needed` of them, and notes.

    Raises DataError where no question has as many, or none has any.
    """
    anchors = load(source, reward=reward, tokenizer=tokenizer, max_new_tokens=max_new_tokens)
    notes = [f"Anchor left out, {line}" for line in anchors.left_out[:3]]
    covered = sum(bool(anchors.available(question)) for question in questions)
    left_out = len(anchors.left_out)
    notes.append(f"Anchors: {covered} of {len(questions)} questions have one; {left_out} solutions left out.")
    enough = [question for question in questions if len(anchors.available(question)) >= needed]
    if len(enough) < len(questions):
        notes.append(f"{len(questions) - len(enough)} questions have fewer than {needed} anchors: left out.")
    if not covered or not enough:
        raise DataError("--anchors: no question has enough usable solutions. Use --anchors none, or fewer per group.")
    return anchors, enough, notes


def is_hard(rewards: torch.Tensor, right: float, hard_below: float) -> torch.Tensor:
    """Is a question's pass rate at or under `hard_below`? A completion passes that earns `right`. Equation (6).

    (..., G) -> (...) bool
    """
    return (rewards >= right).float().mean(-1) <= hard_below


def insert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,  # N rows
    rewards: torch.Tensor,  # (P, G)
    questions: list[Question],  # P questions
    anchors: Anchors,
    *,
    count: int,
    hard_below: float,
    every_group: bool,
    rng: random.Random,
) -> tuple[Rollouts, torch.Tensor]:  # N' rows, (P, G')
    """Groups with anchors in place. Equation (6).

    In a hard group min(count, failing, available) anchors replace the last failing completions, so that G' = G. With
    `every_group` (LUFFY), `count` anchors are appended to every group: G' = G + count.
    """
    size = rollouts.group_size
    rows = [list(range(p * size, (p + 1) * size)) for p in range(len(questions))]  # of each group
    earned = rewards.tolist()
    placed: list[Completion] = []

    def place(p: int, g: int, solution: list[int], reward: float) -> None:
        """Completion g of question p is the next anchor."""
        of_prompt = rollouts.attention_mask[p * size] & ~rollouts.response_mask[p * size]
        prompt = rollouts.input_ids[p * size][of_prompt].tolist()
        rows[p][g : g + 1], earned[p][g : g + 1] = [len(rollouts.texts) + len(placed)], [reward]
        placed.append(Completion(prompt, solution, is_anchor=True))

    for p, question in enumerate(questions):
        available = anchors.available(question)
        right = min((reward for _, reward in available), default=0.0)  # a completion is right that earns as much
        if every_group:
            for solution, reward in rng.sample(available, count):
                place(p, len(rows[p]), solution, reward)
        elif available and bool(is_hard(rewards[p], right, hard_below)):  # (6)
            failing = [g for g, reward in enumerate(earned[p]) if reward < right]
            chosen = rng.sample(available, min(count, len(failing), len(available)))
            for g, (solution, reward) in zip(failing[len(failing) - len(chosen) :], chosen, strict=True):
                place(p, g, solution, reward)
    if not placed:
        return rollouts, rewards
    record = combined(rollouts, assemble(model, tokenizer, placed, 1), [row for group in rows for row in group])
    return replace(record, group_size=len(rows[0])), torch.tensor(earned, device=rewards.device)


def only(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    anchors: Anchors,
    rng: random.Random,
) -> tuple[Rollouts, torch.Tensor]:
    """Groups of one anchor each and no sampled completion, for fine-tuning. P questions -> P rows, (P, 1)"""
    prompts = [encode_prompt(tokenizer, prompt_of(tokenizer, question)) for question in questions]
    chosen = [rng.choice(anchors.available(question)) for question in questions]
    placed = [
        Completion(prompt, solution, is_anchor=True) for prompt, (solution, _) in zip(prompts, chosen, strict=True)
    ]
    rewards = torch.tensor([[reward] for _, reward in chosen], device=model.device)
    return assemble(model, tokenizer, placed, 1), rewards
