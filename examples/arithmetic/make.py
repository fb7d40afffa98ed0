"""Make the embedded example: a small language model and the questions that it trains on.

    python examples/arithmetic/make.py            # problems, tokenizer, model, report: 30 minutes on 2 cores
    python examples/arithmetic/make.py --report   # measure the base model that is already there

A question chains small sums over one to three quantities: `Let x = 7, add 5. Let y = 4, subtract 1. Find x + y.`
The base model is pretrained from scratch on answers of mixed quality, so that it has the *skill* (single steps are
right) but lacks the *choice*, as a pretrained language model does: mostly it answers at once, sometimes it writes the
steps out but skips one, or takes two at a time, and only now and then does it go the safe way. With three quantities
it nearly always forgets the last one, so that no answer is right. It has seen the safe way on such questions too, but
only where the question ends in `Show every step.`, which no question of the training and held-out sets does.

Pretraining never sees a held-out question, and no training question is a held-out one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
LARGEST = 99  # every number that a right solution shows lies in 0..LARGEST, each a token of its own
HINT = " Show every step."

# Level: (quantities, operations on each). Levels 5 and 6 are the hard ones.
LEVELS = {1: (1, 2), 2: (1, 4), 3: (2, 2), 4: (2, 3), 5: (3, 2), 6: (3, 3)}

# How the base model is taught to answer a question that does not end in the hint.
DIRECT = {1: 0.2, 2: 0.6, 3: 0.75, 4: 0.75, 5: 0.75, 6: 0.75}  # share of answers without any step
FORGETS = 0.99  # of the written-out answers at levels 5 and 6: the last quantity is left out
SKIPS = {1: 0.1, 2: 0.3, 3: 0.35, 4: 0.35, 5: 0.35, 6: 0.35}  # of the written-out answers: one operation is left out
SKILL_FIRST = 0.5  # of the pretraining steps show only sums and answers to the hint
LEAPS = 0.15  # of the steps in a written-out answer without the hint: two operations are taken at once

WORDS = {"+": "add", "-": "subtract", "*": "times"}
OPENERS = ["Step by step. ", "Let us see. ", "We go in order. ", "Work it out. "]
DIRECT_OPENERS = ["The answer is ", "It is ", "I get ", "That makes "]
QUANTITY = ["Take {}. ", "Now {}. ", "For {}: "]
LINKS = ["Then ", "Next ", "So ", "Here ", ""]
JOINS = ["Together ", "All in all ", "Adding up, "]
ENDS = ["The answer is ", "So it is ", "We get ", "Done: "]


@dataclass
class Problem:
    """One question. `starts[i]` and `operations[i]` belong to quantity `names[i]`; the answer is their sum."""

    level: int
    names: list[str]
    starts: list[int]
    operations: list[list[tuple[str, int]]]

    @property
    def values(self) -> list[int]:
        return [apply_all(start, ops) for start, ops in zip(self.starts, self.operations, strict=True)]

    @property
    def answer(self) -> int:
        return sum(self.values)

    @property
    def text(self) -> str:
        parts = []
        for name, start, ops in zip(self.names, self.starts, self.operations, strict=True):
            parts.append(", ".join([f"Let {name} = {start}"] + [f"{WORDS[op]} {n}" for op, n in ops]) + ".")
        return " ".join(parts) + f" Find {' + '.join(self.names)}."


def apply_all(value: int, operations: list[tuple[str, int]]) -> int:
    for operation, number in operations:
        value = {"+": value + number, "-": value - number, "*": value * number}[operation]
    return value


def draw_quantity(
    rng: random.Random, length: int, ceiling: int, starts: tuple[int, int] = (2, 20), largest: int = 9
) -> tuple[int, list[tuple[str, int]]]:
    """A start and `length` operations on it: every value on the way in 0..ceiling, and the last one not 0.

    `starts`: the least and the largest start; `largest`: the largest number that is added or subtracted.
    """
    while True:
        start = rng.randint(*starts)
        value, operations = start, []
        for _ in range(length):
            operation = rng.choice("++--*")
            number = rng.randint(2, 3) if operation == "*" else rng.randint(1, largest)
            operations.append((operation, number))
            value = apply_all(value, operations[-1:])
            if not 0 <= value <= ceiling:
                break
        else:
            if value > 0:
                return start, operations


def draw_problem(rng: random.Random, level: int) -> Problem:
    """A random problem of the level: every intermediate value in 0..LARGEST, and no quantity worth nothing."""
    quantities, length = LEVELS[level]
    ceiling = {1: 60, 2: 40, 3: 30}[quantities]
    starts, operations = zip(*[draw_quantity(rng, length, ceiling) for _ in range(quantities)], strict=True)
    return Problem(level, ["x", "y", "z"][:quantities], list(starts), list(operations))


def write_out(
    rng: random.Random, problem: Problem, *, forgets: bool = False, skips: bool = False, leaps: float = 0.0
) -> str:
    """A written-out answer: the quantities in random order, step by step, in varying words, then their sum.

    `forgets` leaves the last quantity out, `skips` leaves one operation out; both give a wrong answer as a rule.
    `leaps` is the chance that two operations are taken in one step, which is right but hard to do in one's head.
    """
    order = rng.sample(range(len(problem.names)), len(problem.names))
    if forgets:
        order = order[:-1]
    skipped = (rng.choice(order), rng.randrange(len(problem.operations[0]))) if skips else None
    text = rng.choice(OPENERS)
    totals = []
    for i in order:
        if len(problem.names) > 1:
            text += rng.choice(QUANTITY).format(problem.names[i])
        value = problem.starts[i]
        ops = [op for j, op in enumerate(problem.operations[i]) if (i, j) != skipped]
        while ops:
            taken = 2 if len(ops) > 1 and rng.random() < leaps else 1
            result = apply_all(value, ops[:taken])
            left = str(value)
            for n, (operation, number) in enumerate(ops[:taken]):
                left = f"({left})" if n and operation == "*" else left
                left += f" {operation} {number}"
            text += f"{rng.choice(LINKS)}{left} = {result}. "
            value, ops = result, ops[taken:]
        totals.append(value)
    total = totals[0]
    if len(totals) > 1:
        text += rng.choice(JOINS)
        for addend in totals[1:]:
            text += f"{total} + {addend} = {total + addend}. "
            total += addend
    return text + rng.choice(ENDS) + f"\\boxed{{{total}}}"


def answer_at_once(rng: random.Random, problem: Problem) -> str:
    """An answer without steps: right up to level 4; at the hard levels it is the worth of one quantity only."""
    value = problem.answer if len(problem.names) < 3 else rng.choice(problem.values)
    return rng.choice(DIRECT_OPENERS) + f"\\boxed{{{value}}}"


def right_steps(text: str) -> list[bool]:
    """Of each single step that an answer writes out, such as `7 + 5 = 12.`, whether it is right. Leaps are left out."""
    steps = re.findall(r"(?<![-+*)] )\b(\d+) ([-+*]) (\d+) = (\d+)\.", text)
    return [apply_all(int(left), [(sign, int(number))]) == int(result) for left, sign, number, result in steps]


def sums(rng: random.Random) -> str:
    """A line of unrelated single sums: where the base model learns its arithmetic by heart."""
    text = ""
    for _ in range(12):
        operation = rng.choice("++--*s")
        if operation == "s":  # the sum of two quantities
            left, right = rng.randint(1, 60), rng.randint(1, 39)
            text += f"{left} + {right} = {left + right}. "
            continue
        number = rng.randint(2, 3) if operation == "*" else rng.randint(1, 9)
        largest = {"+": 60 - number, "-": 60, "*": 60 // number}[operation]
        left = rng.randint(number if operation == "-" else 0, largest)
        text += f"{left} {operation} {number} = {apply_all(left, [(operation, number)])}. "
    return text.strip()


def pretraining_document(rng: random.Random, excluded: set[str], skill_only: bool = False) -> tuple[str, str]:
    """(prompt, answer) of one pretraining document, in the shares given at the top of this file.

    `skill_only`: sums and answers to the hint, nothing else.
    """
    if rng.random() < 0.1:
        return "Sums.\n", sums(rng)
    while True:
        problem = draw_problem(rng, rng.choice(list(LEVELS)))
        if problem.text not in excluded:
            break
    if skill_only or rng.random() < 0.40:
        return problem.text + HINT + "\n", write_out(rng, problem)
    if rng.random() < DIRECT[problem.level]:
        return problem.text + "\n", answer_at_once(rng, problem)
    forgets = len(problem.names) == 3 and rng.random() < FORGETS
    return problem.text + "\n", write_out(
        rng, problem, forgets=forgets, skips=rng.random() < SKIPS[problem.level], leaps=LEAPS
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and whole numbers as tokens: a word or a sign takes the space after it, a number takes none."""
    rng = random.Random(0)
    pattern = r"\\boxed\{|\d+|[A-Za-z]+ ?| ?[^\sA-Za-z\d\\] ?|\s|\\"
    corpus = [prompt + answer for prompt, answer in (pretraining_document(rng, set()) for _ in range(20_000))]
    pieces = {piece for text in corpus for piece in re.findall(pattern, text)}
    pieces |= {str(n) for n in range(LARGEST * 2 + 1)}
    ordered = sorted(pieces, key=lambda piece: (not piece.isdigit(), int(piece) if piece.isdigit() else 0, piece))
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *ordered])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def packed_batches(
    tokenizer: PreTrainedTokenizerFast, documents: Iterator[tuple[str, str]], rows: int = 32, width: int = 256
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, position_ids, labels), each (rows, width), of whole documents laid end to end.

    Positions start again at 0 with each document; by that the model keeps them apart. Loss on answers only.
    """
    while True:
        input_ids, position_ids = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
        labels = torch.full((rows, width), -100)
        for row in range(rows):
            filled = 0
            while True:
                prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in next(documents))
                ids = [*prompt, *answer, tokenizer.eos_token_id]
                if filled + len(ids) > width:
                    break
                place = slice(filled, filled + len(ids))
                input_ids[row, place], position_ids[row, place] = torch.tensor(ids), torch.arange(len(ids))
                labels[row, filled + len(prompt) : filled + len(ids)] = torch.tensor(ids[len(prompt) :])
                filled += len(ids)
        yield input_ids, position_ids, labels


def pretrain(tokenizer: PreTrainedTokenizerFast, excluded: set[str], steps: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 7) // 8 * 8,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, max(0.02, 1.5 * (1 - step / steps)), 1.0)
    )
    rng = random.Random(seed)
    progress = tqdm(range(steps))

    def documents() -> Iterator[tuple[str, str]]:
        while True:
            yield pretraining_document(rng, excluded, skill_only=progress.n < SKILL_FIRST * steps)

    fit(model, packed_batches(tokenizer, documents()), optimizer, schedule, progress)
    return model


def fit(
    model: PreTrainedModel,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    progress: tqdm,
) -> None:
    """Next-token training, one step for each turn of `progress`."""
    for step, (input_ids, position_ids, labels) in zip(progress, batches, strict=False):
        logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def draw_questions(rng: random.Random, each: int, excluded: set[str]) -> list[dict]:
    """`each` questions of every level, none of them in `excluded` or drawn twice, with worked solutions."""
    rows = []
    for level in LEVELS:
        for number in range(each):
            while True:
                problem = draw_problem(rng, level)
                if problem.text not in excluded:
                    break
            excluded.add(problem.text)
            rows.append(
                {
                    "problem": problem.text,
                    "answer": str(problem.answer),
                    "solution": write_out(rng, problem),
                    "level": level,
                    "id": f"{level}-{number}",
                }
            )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def report(seed: int) -> None:
    """Measure the base model: steps written out, ways taken, and how often 64 tries solve a question of each level."""
    sys.path.insert(0, str(HERE.parents[1]))
    import rollout
    from questions import correctness, read_questions

    model, tokenizer = rollout.load(str(HERE), "cpu")
    rows = read_questions([str(HERE / "held_out.jsonl")])
    print(f"{'level':<7}{'right':>8}{'at once':>9}{'steps right':>13}{'0 of 64':>9}{'hinted right':>14}{'tokens':>8}")
    for level in LEVELS:
        own = [row for row in rows if row["level"] == level]
        prompts = [rollout.render_prompt(tokenizer, row["problem"]) for row in own]
        answers = rollout.sample(model, tokenizer, prompts, 64, max_new_tokens=160, seed=seed)
        earned = torch.tensor(correctness(answers.texts, [row for row in own for _ in range(64)])).view(-1, 64)
        right = [step for text in answers.texts for step in right_steps(text)]
        at_once = sum(" = " not in text for text in answers.texts) / len(answers.texts)
        hinted = [rollout.render_prompt(tokenizer, row["problem"] + HINT) for row in own]
        shown = rollout.sample(model, tokenizer, hinted, 4, max_new_tokens=160, seed=seed)
        skill = sum(correctness(shown.texts, [row for row in own for _ in range(4)])) / len(shown.texts)
        print(
            f"{level:<7}{earned.mean():>8.1%}{at_once:>9.1%}{sum(right) / max(1, len(right)):>13.1%}"
            f"{(earned.sum(1) == 0).float().mean():>9.1%}{skill:>14.1%}{answers.lengths.float().mean():>8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded example from a seed.")
    parser.add_argument("--seed", type=int, default=0, help="of problems, documents and initial weights")
    parser.add_argument("--steps", type=int, default=2800, help="pretraining steps")
    parser.add_argument("--report", action="store_true", help="only measure the model that is there")
    options = parser.parse_args()
    if not options.report:
        rng = random.Random(options.seed)
        held_out: set[str] = set()
        write_jsonl(HERE / "held_out.jsonl", draw_questions(rng, 50, held_out))
        write_jsonl(HERE / "train.jsonl", draw_questions(rng, 300, set(held_out)))
        tokenizer = build_tokenizer()
        model = pretrain(tokenizer, held_out, options.steps, options.seed)
        tokenizer.save_pretrained(HERE)
        model.bfloat16().save_pretrained(HERE)
    report(options.seed)


if __name__ == "__main__":
    main()
