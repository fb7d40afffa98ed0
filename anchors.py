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

from questions import DataError, Key, Question, Reward, correctness, key_of, prompt_of, read_questions, style_of
from rollout import PLAIN, Completion, PromptStyle, Rollouts, assemble, combined, encode_prompt, encode_solution

Solution = tuple[Any, float]  # as token ids, or as text without a tokenizer; and the reward that it earns


@dataclass
class Anchors:
    """Verified solutions by question and gold: one that reaches another answer to the same problem is no anchor."""

    solutions: dict[tuple[Key, str], list[Solution]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # "file:line: why" for each solution that cannot be used

    def available(self, question: Question) -> list[Solution]:
        return self.solutions.get(place_of(question), [])

    def cover(self, questions: list[Question]) -> torch.Tensor:
        """Which of the questions have an anchor. P questions -> (P,) bool"""
        return torch.tensor([bool(self.available(question)) for question in questions])


def place_of(question: Question) -> tuple[Key, str]:
    """Where the anchors of a question stand."""
    return key_of(question), question["answer"].strip()


def load(
    path_or_questions: str | list[Question],
    *,
    joining: list[Question] | None = None,
    reward: Reward = correctness,
    right: float = 1.0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stops: list[int] | None = None,
    style: PromptStyle = PLAIN,
    max_new_tokens: int | None = None,
) -> Anchors:
    """The solutions of a file or of questions, for the questions that they join: without `joining`, their own.

    A solution is graded against the question that it joins, and is an anchor where it earns `right` or more and fits
    the token limit. With a tokenizer it is kept as the token ids that the policy would have to write, up to one of
    `stops` (by default the EOS), without as text. What is left out is named by file and line in `left_out`.

    Raises DataError for a broken file.
    """
    given = read_questions([path_or_questions]) if isinstance(path_or_questions, str) else path_or_questions
    by_key: dict[Key, dict[str, Question]] = {}  # of each question its different solutions
    for question in given:
        if question.get("solution"):
            by_key.setdefault(key_of(question), {}).setdefault(question["solution"], question)
    joined: dict[tuple[Key, str], Question] = {}
    for question in given if joining is None else joining:
        joined.setdefault(place_of(question), question)
    pairs = [(question, source) for question in joined.values() for source in by_key.get(key_of(question), {}).values()]
    rewards = reward([source["solution"] for _, source in pairs], [question for question, _ in pairs])
    anchors = Anchors()
    for (question, source), earned in zip(pairs, rewards, strict=True):
        where = source.get("where", source["problem"])
        if earned < right:
            reached = f"does not reach the answer {question['answer']}"
            why = reached if reward is correctness else f"earns {earned:g}, and {right:g} is right"
            anchors.left_out.append(f"{where}: the solution {why}")
            continue
        solution: list[int] | str = source["solution"]
        if tokenizer is not None:
            ends = [tokenizer.eos_token_id] if stops is None else stops
            prompt = question["problem"], question.get("choices"), style_of(question, style)
            solution = encode_solution(tokenizer, ends, prompt, source["solution"])
            if max_new_tokens is not None and len(solution) > max_new_tokens:
                anchors.left_out.append(
                    f"{where}: the solution has {len(solution)} tokens with its EOS, the limit is {max_new_tokens}"
                )
                continue
        anchors.solutions.setdefault(place_of(question), []).append((solution, earned))
    return anchors


def verified(anchors: Anchors, questions: list[Question], needed: int) -> tuple[list[Question], list[str]]:
    """The questions that have at least `needed` anchors, and notes.

    Raises DataError where none has as many.
    """
    notes = [f"Anchor left out, {line}" for line in anchors.left_out[:3]]
    covered = int(anchors.cover(questions).sum())
    left_out = len(anchors.left_out)
    notes.append(f"Anchors: {covered} of {len(questions)} questions have one; {left_out} solutions left out.")
    enough = [question for question in questions if len(anchors.available(question)) >= needed]
    if not enough:
        raise DataError(
            f"--anchors: no question has {needed} solutions that reach its answer and fit the token limit, as this "
            "method needs. Give data with solutions, or train without anchors (--method grpo)."
        )
    if len(enough) < len(questions):
        notes.append(f"{len(questions) - len(enough)} questions have fewer than {needed} anchors: left out.")
    if not covered:
        notes.append("No question has an anchor: training goes on without.")
    return enough, notes


def is_hard(rewards: torch.Tensor, right: float, hard_below: float) -> torch.Tensor:
    """Is a question's pass rate at or under `hard_below`? A completion passes if it earns `right` at least. (6)

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
    right: float = 1.0,
) -> tuple[Rollouts, torch.Tensor]:  # N' rows, (P, G')
    """Groups with anchors in place. Equation (6).

    A completion is right that earns `right` or more. In a hard group min(count, failing, available) anchors replace the
    last failing completions, so that G' = G. With `every_group` (LUFFY), `count` anchors are appended to every group:
    G' = G + count.
    """
    size = rollouts.group_size
    rows = [list(range(p * size, (p + 1) * size)) for p in range(len(questions))]  # of each group
    earned = rewards.tolist()
    placed: list[Completion] = []

    places = placements(
        rewards, questions, anchors, count=count, hard_below=hard_below, every_group=every_group, rng=rng, right=right
    )
    for p, g, (solution, reward) in places:
        of_prompt = rollouts.attention_mask[p * size] & ~rollouts.response_mask[p * size]
        prompt = rollouts.input_ids[p * size][of_prompt].tolist()
        rows[p][g : g + 1], earned[p][g : g + 1] = [len(rollouts.texts) + len(placed)], [reward]
        placed.append(Completion(prompt, solution, is_anchor=True))
    if not placed:
        return rollouts, rewards
    record = combined(rollouts, assemble(model, tokenizer, placed, 1), [row for group in rows for row in group])
    return replace(record, group_size=len(rows[0])), torch.tensor(earned, device=rewards.device)


def placements(
    rewards: torch.Tensor,  # (P, G)
    questions: list[Question],  # P questions
    anchors: Anchors,
    *,
    count: int,
    hard_below: float,
    every_group: bool,
    rng: random.Random,
    right: float = 1.0,
) -> list[tuple[int, int, Solution]]:
    """Which solution becomes completion g of question p, for all of them in order: (p, g, solution). As `insert`."""
    size = rewards.shape[1]
    places: list[tuple[int, int, Solution]] = []
    waits = is_hard(rewards, right, hard_below).cpu() & anchors.cover(questions)  # (6)
    for p, question in enumerate(questions):
        available = anchors.available(question)
        if every_group:
            places += [(p, size + n, solution) for n, solution in enumerate(rng.sample(available, count))]
        elif waits[p]:
            failing = (rewards[p] < right).nonzero().flatten().tolist()
            chosen = rng.sample(available, min(count, len(failing), len(available)))
            places += [(p, g, s) for g, s in zip(failing[len(failing) - len(chosen) :], chosen, strict=True)]
    return places


def only(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    anchors: Anchors,
    rng: random.Random,
    style: PromptStyle = PLAIN,
) -> tuple[Rollouts, torch.Tensor]:
    """Groups of one anchor each and no sampled completion, for fine-tuning. P questions -> P rows, (P, 1)"""
    prompts = [encode_prompt(tokenizer, prompt_of(tokenizer, question, style)) for question in questions]
    chosen = [rng.choice(anchors.available(question)) for question in questions]
    placed = [
        Completion(prompt, solution, is_anchor=True) for prompt, (solution, _) in zip(prompts, chosen, strict=True)
    ]
    rewards = torch.tensor([[reward] for _, reward in chosen], device=model.device)
    return assemble(model, tokenizer, placed, 1), rewards
