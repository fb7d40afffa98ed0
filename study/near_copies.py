"""A model whose answers are long and nearly alike: the embedded one, taught to write every step in the same words.

    python -m study.near_copies    make it in runs/near-copies: 12 minutes on one core; and print what it does
    python -m study.conflict --steps 0 --repetitions 0 --max-new-tokens 400 --model runs/near-copies \\
        --data runs/near-copies/questions.jsonl    do the gradients of its right and wrong answers collide?

An answer goes through the quantities in order, 23 tokens an operation, always in the same words. Errors are taught on
purpose: one result in twenty is off by one or two, and the answer goes on from there; one answer in ten leaves an
operation out. So the model knows how, and is led astray now and then, as a language model is in a long solution, and
the right and the wrong answers to a question differ in few tokens. Questions are those of the embedded task with two or
three quantities and at least six operations. The regimes R3 of study/regimes.py start from it. Its weights differ in
their last digits by the number of threads that made it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import rollout
from examples.arithmetic import make
from harness.config import EXAMPLE
from questions import correctness
from study import tasks
from study.tables import mean
from study.tasks import ROOT, Question
from study.variants import FULL, data_hash, question_sets

KEPT = ROOT / "runs" / "near-copies"
RECIPE = "recipe.txt"  # in that folder: what the model there was made from
LEVELS = (4, 5, 6)
OFF = 0.05  # of the results of single operations
SKIPS = 0.1  # of the answers leave one operation out: they are shorter, and as a rule wrong
STEPS, WARMUP = 400, 20
RATE, BETAS = 1e-3, (0.9, 0.95)
ROWS, WIDTH = 16, 512  # of a batch of documents, in tokens
MAX_NEW_TOKENS = 400  # a right answer has at most 233


def near_copy(rng: random.Random, problem: make.Problem, off: float = OFF, skips: float = SKIPS) -> str:
    """An answer in the words that all answers have; a share `off` of its results is wrong, by one or two.

    No number is below 0. `skips` is the chance that one operation is left out.
    """
    skipped = (rng.choice(problem.names), rng.randrange(len(problem.operations[0]))) if rng.random() < skips else None
    text, totals = "", []
    for name, start, operations in zip(problem.names, problem.starts, problem.operations, strict=True):
        value = start
        for place, (sign, number) in enumerate(operations):
            if (name, place) == skipped:
                continue
            text += f"Now {name} = {value}, {make.WORDS[sign]} {number}. Let us see. {value} {sign} {number} = "
            value = make.apply_all(value, [(sign, number)])
            if rng.random() < off:
                value = max(0, value + rng.choice((-2, -1, 1, 2)))
            text += f"{value}. So it is {value}. "
        totals.append(value)
    total = totals[0]
    for addend in totals[1:]:
        text += f"Adding up, {total} + {addend} = {total + addend}. "
        total += addend
    return text + f"We get \\boxed{{{total}}}"


def documents(seed: int) -> Iterator[tuple[str, str]]:
    """Endless questions with an answer each; none is a held-out one, or of the study's validation set."""
    rng = random.Random(seed)
    excluded = {question["problem"] for question in question_sets(FULL, "")["validation"]}
    excluded |= {question["problem"] for question in tasks.read_lines(make.HERE / "held_out.jsonl")}
    while True:
        problem = make.draw_problem(rng, rng.choice(LEVELS))
        if problem.text not in excluded:
            yield problem.text + "\n", near_copy(rng, problem)


def trained(steps: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The embedded model after `steps` of next-token training on `documents`, and its tokenizer."""
    torch.manual_seed(0)
    model, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1.5 * (1 - step / steps), 1.0)
    )
    batches = make.packed_batches(tokenizer, documents(0), ROWS, WIDTH)
    model.train()
    make.fit(model, batches, optimizer, schedule, tqdm(range(steps), desc="near copies"))
    model.eval()
    return model, tokenizer


def recipe(steps: int = STEPS) -> str:
    """A hash of what makes the model from the embedded one: its first documents, and the settings above."""
    few = list(itertools.islice(documents(0), 100))
    settings = [OFF, SKIPS, steps, WARMUP, RATE, BETAS, ROWS, WIDTH]
    return hashlib.sha256(json.dumps([few, settings]).encode()).hexdigest()[:16]


def kept_model(quick: bool = False) -> str:
    """The model's folder. It is made where it is not there yet, or was made by another recipe.

    Call it before several processes need it: each would make its own.
    """
    folder, steps = (KEPT.with_name("near-copies-quick"), 2) if quick else (KEPT, STEPS)
    wanted, written = f"{recipe(steps)} {data_hash(FULL, '')}", folder / RECIPE  # of the embedded model too
    if not written.is_file() or written.read_text(encoding="utf-8") != wanted:
        model, tokenizer = trained(steps)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        written.write_text(wanted, encoding="utf-8")  # last: without it the folder counts as not made
    return str(folder)


def of_levels(sets: dict[str, list[Question]]) -> dict[str, list[Question]]:
    """Training and validation questions, without the levels whose answers are short."""
    return {
        name: [question for question in sets[name] if question["level"] in LEVELS]
        for name in ("training", "validation")
    }


def agreement(one: list[int], other: list[int]) -> float:
    """The share of tokens that two answers have in common, in the same order, of 0 to 1."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def report(folder: str, questions: list[Question], group_size: int = 8, seed: int = 0) -> str:
    """What it answers at temperature 1: how often right, how long, and how alike right and wrong answers are."""
    model, tokenizer = rollout.load(folder, "cpu")
    prompts = [rollout.render_prompt(tokenizer, question["problem"]) for question in questions]
    texts = rollout.sample(model, tokenizer, prompts, group_size, max_new_tokens=MAX_NEW_TOKENS, seed=seed).texts
    rewards = correctness(texts, [question for question in questions for _ in range(group_size)])
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    alike = [
        agreement(tokens[i], tokens[j])
        for first in range(0, len(texts), group_size)
        for i in range(first, first + group_size)
        for j in range(first, first + group_size)
        if rewards[i] > rewards[j]
    ]
    lengths = [float(len(ids)) for ids in tokens]
    return (
        f"{len(questions)} questions, {group_size} answers to each at temperature 1:\n"
        f"right                                        {mean(rewards):.1%}\n"
        f"tokens, mean (least to most)                 {mean(lengths):.0f} ({min(lengths):.0f} to {max(lengths):.0f})\n"
        f"tokens that a right and a wrong one share    {mean(alike):.1%} ({len(alike)} pairs)"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="study.near_copies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    sets, folder = of_levels(question_sets(FULL, "")), kept_model()
    make.write_jsonl(Path(folder) / "questions.jsonl", sets["training"] + sets["validation"])
    print(report(folder, sets["validation"][::4]))


if __name__ == "__main__":
    main()
