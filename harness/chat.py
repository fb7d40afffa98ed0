"""Questions typed at the terminal: the model's answer as it is written, and its verdict where the right one is given.

    python evaluate.py --model RUN --chat

A line is a question. `=> 42` behind it says what is right: the verifier then says what it found in the answer, and
whether it is right. `/samples` shows the groups that the run kept of its last step, `/samples 20` those of step 20.
Ctrl-C stops an answer; at the prompt it ends the program, as Ctrl-D and the end of a file do.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

import rollout
from evaluate import default_limit
from harness.command import printable
from harness.evaluation import style_of
from harness.prompting import told
from harness.samples import Group, all_groups, sorted_by_reward
from policy.model import autocast, check_files, position_limit
from questions import DataError, correctness, drop_unreadable, prompt_of
from rollout import PLAIN, PromptStyle
from verify import read_answer

HELP = "Type a question; behind => the right answer, where you know it. Ctrl-D ends, Ctrl-C stops an answer."
OF_A_RUN = " /samples shows what the run kept of its last step, /samples 20 of step 20."
PROMPT = "> "
WIDTH = 80


def model_of(name: str) -> tuple[str, Path | None]:
    """What is loaded, and the folder of its run: a run is named by its folder too, or by the model/ in it."""
    path = Path(name)
    if (path / "model" / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return str(path / "model"), path
    return name, path.parent if path.name == "model" and (path.parent / "metrics.jsonl").is_file() else None


def talk(options: argparse.Namespace, read_line: Callable[[], str | None] | None = None) -> None:
    """Load the model, and answer line after line until there is none."""
    options.model, run = model_of(options.model)
    check_files(options.model, "--model")
    style = style_of(options)
    if style != PLAIN:
        print(printable(told(style)))
    model, tokenizer = rollout.load(options.model, trust_remote_code=options.trust_remote_code)
    torch.manual_seed(options.seed)
    print(textwrap.fill(HELP + (OF_A_RUN if run else ""), WIDTH), flush=True)
    read_line = read_line or typed
    while (line := read_line()) is not None:
        if line.split()[:1] == ["/samples"]:
            print(shown_samples(run, line.split()[1:]))
        elif line.strip():
            problem, gold = question_of(line)
            text = answer(model, tokenizer, problem, style, options)
            if text is not None and gold:
                print(verdict(text, problem, gold))
        sys.stdout.flush()


def typed() -> str | None:
    """The next line; None at the end. At a terminal the prompt stands before it."""
    try:
        return input(PROMPT if sys.stdin.isatty() else "")
    except EOFError:
        if sys.stdin.isatty():
            print()
        return None


def question_of(line: str) -> tuple[str, str]:
    """Problem and right answer of a line, the second empty where none is given."""
    problem, _, gold = line.rpartition("=>") if "=>" in line else (line, "", "")
    return problem.strip(), gold.strip()


# ---------------------------------------------------------------------------------------------------------------------
# The answer
# ---------------------------------------------------------------------------------------------------------------------


class Printed(TextStreamer):
    """Prints a completion word by word, with control characters spelled out."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(printable(text), end="\n" if stream_end else "", flush=True)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problem: str,
    style: PromptStyle,
    options: argparse.Namespace,
) -> str | None:
    """Print the answer while it is sampled. Returns it, or None where it was stopped or the question does not fit.

    It is sampled as evaluate.py samples: --temperature, --top-p, and no other cut. One sequence needs no batches, so
    that it is made by transformers' `generate`, which hands out its tokens one by one.
    """
    question = {"problem": problem}
    prompt = rollout.encode_prompt(tokenizer, prompt_of(tokenizer, question, style))
    room = (position_limit(model) or sys.maxsize) - len(prompt)
    if room < 1:
        print(f"The question has {len(prompt)} tokens: more than the model has room for.")
        return None
    sampled = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
    # In place of the model's own, whose penalties and cuts `generate` would add where another one is only handed to it.
    model.generation_config = GenerationConfig(
        max_new_tokens=min(options.max_new_tokens or default_limit(model, tokenizer, [question], style), room),
        eos_token_id=rollout.stop_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **(sampled if options.temperature > 0 else {"do_sample": False}),
    )
    ids = torch.tensor([prompt], device=model.device)
    generate: Any = model.generate
    try:
        with torch.no_grad(), autocast(model):
            printed = Printed(tokenizer, skip_prompt=True, skip_special_tokens=True)
            made = generate(ids, attention_mask=torch.ones_like(ids), streamer=printed)
    except KeyboardInterrupt:
        print("\n(stopped)")
        return None
    new = made[0, len(prompt) :].tolist()
    if new[-1] not in rollout.stop_ids(model, tokenizer):
        print(f"   (cut off after {len(new)} tokens)")
    return str(tokenizer.decode(new, skip_special_tokens=True))


def verdict(text: str, problem: str, gold: str) -> str:
    """What the verifier found in the answer, as what it read that, and whether it is right."""
    question = {"problem": problem, "answer": gold}
    if drop_unreadable([question])[1]:
        return printable(f"   {gold}: the verifier cannot read this as an answer.")
    right = correctness([text], [question])[0] >= 1
    found = read_answer(text)
    if found.extracted is None:
        return "   wrong: no answer was found in it"
    read = "" if found.read in (None, found.extracted) else f", read as {found.read}"
    return printable(f"   {'right' if right else 'wrong'}: found {found.extracted}{read}")


# ---------------------------------------------------------------------------------------------------------------------
# Samples of a run
# ---------------------------------------------------------------------------------------------------------------------


def shown_samples(run: Path | None, words: list[str]) -> str:
    """The groups of a step, the last one without a number; or why there are none."""
    if run is None:
        return "The model is none of a run: there are no samples."
    try:
        groups = all_groups(run)
    except DataError as error:
        return printable(str(error))
    steps = sorted({group["step"] for group in groups})
    if not steps:
        return f"{run / 'samples.jsonl'} is empty."
    step = int(words[0]) if words and words[0].isdigit() else steps[-1]
    of_step = [group for group in groups if group["step"] == step]
    if not of_step or len(words) > 1 or (words and not words[0].isdigit()):
        return f"/samples takes a step that was kept: {', '.join(map(str, steps))}."
    return "\n\n".join(group_text(group) for group in of_step)


def group_text(group: Group) -> str:
    """A group as lines of 80 columns: the question, then its answers with reward and advantage, the best first."""
    lines = [f"Step {group['step']}", *wrapped(f"{group['problem']} => {group['answer']}", ""), ""]
    for answer in sorted_by_reward(group)["answers"]:
        kind = ", an anchor" if answer["anchor"] else ""
        lines.append(f"  reward {answer['reward']:g}, advantage {answer['advantage']:+.2f}{kind}")
        lines += wrapped(answer["text"], "    ")
    return "\n".join(lines)


def wrapped(text: str, indent: str) -> list[str]:
    """The lines of a text, none longer than 80 columns, and without control characters."""
    found: list[str] = []
    for line in printable(text).splitlines() or [""]:
        found += textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=indent) or [""]
    return found
