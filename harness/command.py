"""What dagrpo.py and evaluate.py do with a command line that is wrong: they say so in one sentence, no traceback.

What a user can mend ends the program with one line that names flag or file, with exit code 2 for the command line
itself and 1 for what stands in files. All else is a mistake of the program, and keeps its traceback.
"""

from __future__ import annotations

import argparse
import difflib
import re
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from huggingface_hub.utils import enable_progress_bars
from transformers import logging

from harness.signals import CLOSED_PIPE, Interrupted, complain, interrupt, signals_to, to_nowhere
from policy.model import ModelError
from sources.faults import DataError
from sources.formats import DATA_FILES

LIKE = 0.75  # share of letters in common from which on a flag is taken for a mistyped one
LEAST_TEMPERATURE = 1e-6

# What users of other programs type, and what it is here.
SAME_IN_BOTH = {
    "model-name-or-path": "it is --model here.",
    "model-name": "it is --model here.",
    "dataset": "it is --data here.",
    "dataset-name": "it is --data here.",
    "train-file": "it is --data here.",
    "output-dir": "it is --out here.",
    "output": "it is --out here.",
    "save-dir": "it is --out here.",
    "temp": "it is --temperature here.",
    "max-length": "it is --max-new-tokens here: the limit of a completion, without its prompt.",
    "max-tokens": "it is --max-new-tokens here.",
    "max-completion-length": "it is --max-new-tokens here.",
    "max-prompt-length": "a prompt is never cut: a question that does not fit is left out and counted.",
    "max-seq-length": "it is --max-new-tokens here: the limit of a completion, without its prompt.",
    "system-prompt": "it is --system here.",
    "prompt-template": "it is --prompt-file here.",
    "chat-template-kwargs": "it is --template-arg here, one NAME=VALUE each.",
    "chat-template-args": "it is --template-arg here, one NAME=VALUE each.",
    "few-shot": "it is --examples here.",
    "fewshot": "it is --examples here.",
    "num-fewshot": "it is --examples here, a file of solved questions.",
    "version": "the version is in pyproject.toml: grep ^version pyproject.toml",
    "vllm": "not here: completions are sampled by the program itself.",
    "use-vllm": "not here: completions are sampled by the program itself.",
    "top-k": "not here: sampling is by --temperature and --top-p.",
    "min-p": "not here: sampling is by --temperature and --top-p.",
    "load-in-4bit": "not here: weights are fp32.",
    "load-in-8bit": "not here: weights are fp32.",
    "num-gpus": "not here: the program runs on one GPU; CUDA_VISIBLE_DEVICES says on which.",
    "tensor-parallel-size": "not here: the program runs on one GPU.",
}
ONE_BATCH = "a step is --questions times --group-size completions here; --token-budget bounds the memory."
PRECISION = "not a flag here: on a GPU products are bf16 over fp32 weights, on a CPU all is fp32."
LOGGED = "not here: figures are in metrics.jsonl of the run folder, one JSON object a step."
ADAPTER = "it is --lora RANK here."
OF_TRAINING = {
    **SAME_IN_BOTH,
    "lr": "it is --learning-rate here.",
    "beta": "it is --kl here, the weight of the divergence from the start model; AdamW's first beta is --beta1.",
    "kl-coef": "it is --kl here.",
    "kl-beta": "it is --kl here.",
    "num-generations": "it is --group-size here.",
    "num-samples": "it is --group-size here; of evaluations --eval-samples.",
    "n": "it is --group-size here.",
    "batch-size": ONE_BATCH,
    "train-batch-size": ONE_BATCH,
    "per-device-train-batch-size": ONE_BATCH,
    "micro-batch-size": ONE_BATCH,
    "gradient-accumulation-steps": f"not needed: {ONE_BATCH}",
    "gradient-checkpointing": "it is --checkpointing here.",
    "num-train-epochs": "a run has --steps here; --epochs is how often each batch is gone through.",
    "max-steps": "it is --steps here.",
    "num-steps": "it is --steps here.",
    "warmup-steps": "it is --warmup here.",
    "warmup-ratio": "it is --warmup here, in optimizer steps.",
    "lr-scheduler-type": "not here: the learning rate is constant after --warmup.",
    "max-grad": "it is --max-grad-norm here.",
    "grad-clip": "it is --max-grad-norm here.",
    "epsilon": "it is --clip-low and --clip-high here.",
    "clip-range": "it is --clip-low and --clip-high here.",
    "cliprange": "it is --clip-low and --clip-high here.",
    "epsilon-high": "it is --clip-high here.",
    "num-iterations": "it is --epochs here.",
    "reward-funcs": "it is --reward here.",
    "reward-model": "not here: --reward takes a function, file.py:function.",
    "reward-weights": "the weight stands behind its function: --reward file.py:function=0.5",
    "scale-rewards": "it is --scale here: std or none.",
    "loss-type": "it is --loss-norm here.",
    "eval-dataset": "it is --eval-data here.",
    "test-file": "it is --eval-data here.",
    "eval-steps": "it is --eval-every here.",
    "val-split": "it is --hold-out here, a number of questions.",
    "logging-steps": LOGGED,
    "wandb": "it is --track wandb here.",
    "wandb-project": "it is the environment variable WANDB_PROJECT here, with --track wandb.",
    "report-to": "it is --track here: trackio, wandb or tensorboard.",
    "tensorboard": "it is --track tensorboard here.",
    "trackio": "it is --track trackio here.",
    "use-peft": ADAPTER,
    "lora-r": ADAPTER,
    "lora-rank": ADAPTER,
    "lora-target-modules": "it is --lora-targets here.",
    "target-modules": "it is --lora-targets here.",
    "qlora": "not here: weights are fp32; --lora RANK trains an adapter beside them.",
    "optim": "it is --optimizer here: adamw, or adamw8bit.",
    "bf16": PRECISION,
    "fp16": PRECISION,
    "dtype": PRECISION,
    "torch-dtype": PRECISION,
    "gpu": "it is --device cuda here, or cuda:N.",
    "cpu": "it is --device cpu here.",
}
OF_EVALUATION = {
    **SAME_IN_BOTH,
    "n": "it is --samples here.",
    "k": "it is --samples here.",
    "num-samples": "it is --samples here.",
    "num-generations": "it is --samples here.",
    "group-size": "it is --samples here.",
    "eval-samples": "it is --samples here.",
    "eval-temperature": "it is --temperature here.",
    "eval-data": "it is --data here.",
    "benchmark": "it is --bench here, for a file --data.",
    "benchmarks": "it is --bench here, for files --data.",
    "tasks": "it is --bench here, for files --data.",
    "num-questions": "it is --limit here.",
    "max-samples": "it is --limit here.",
    "batch-size": "not needed: as many completions are sampled at once as the memory holds.",
    "greedy": "it is --temperature 0 here.",
    "device": "not here: the GPU is taken where there is one; CUDA_VISIBLE_DEVICES= hides it.",
    "reward": "not here: the verifier grades.",
    "bf16": PRECISION,
    "dtype": PRECISION,
}


class ConfigError(ValueError):
    """A command line that is wrong; the message names flag, value and what is allowed."""


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def shown(value: Any) -> str:
    """The value as its flag takes it."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return "none" if value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# One sentence
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """Inside, what a user can mend ends the program with one line, and so does a signal, with 128 and its number."""
    try:
        with signals_to(interrupt):
            bars_of_downloads_alone()
            yield
    except ConfigError as error:
        stop(f"{program}: {error}", 2)
    except BrokenPipeError:
        to_nowhere(sys.stdout)
        stop(f"{program}: interrupted: nobody reads any more what it prints.", 128 + CLOSED_PIPE)
    except (
        DataError, ModelError, OSError, NotImplementedError, FloatingPointError, torch.OutOfMemoryError
    ) as error:  # fmt: skip
        stop(f"{program}: {told(error)}", 1)
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, Interrupted) else int(signal.SIGINT)
        stop(f"{program}: {str(stopped) or 'interrupted.'}", 128 + number)


def bars_of_downloads_alone() -> None:
    """No bars of transformers for loading and saving, which stay between the lines of a log; where somebody looks,
    those of downloads, which take long."""
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


def told(error: Exception) -> str:
    """What an error says with its notes: of a file its name and what is wrong; of PyTorch's page about a full GPU its
    first sentences and what to do."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) and text.startswith("CUDA out of memory"):
        needed = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        text = f"the GPU has no room{f' for another {needed[1]}' if needed else ''}. Does another program use it "
        text += "(nvidia-smi)? If not, lower --max-new-tokens, or take a smaller model."
    elif isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}."
    return " ".join([text, *getattr(error, "__notes__", [])])


def stop(message: str, code: int) -> NoReturn:
    """End with a line on stderr. The message is in the exception too, for who calls main() from a program."""
    complain(printable(message))
    ending = SystemExit(printable(message))
    ending.code = code
    raise ending from None


def printable(text: str) -> str:
    """The text with control characters spelled out, so that none of a file or a model moves a terminal's cursor."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in CONTROLS else spelled(c) for c in text)


CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, invisible marks of direction, lone surrogates, line separators


def spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


# ---------------------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are sentences like all others."""

    def error(self, message: str) -> NoReturn:
        flag, _, complaint = message.removeprefix("argument ").partition(": ")
        if complaint.startswith("expected"):
            raise ConfigError(f"{flag}: a value is missing behind it.")
        if complaint.startswith("invalid"):
            kind = "a whole number" if "int value" in complaint else "a number"
            raise ConfigError(f"{flag} {complaint.partition('value: ')[2].strip(chr(39))}: it must be {kind}.")
        if complaint.startswith("ignored explicit argument"):
            raise ConfigError(f"{flag}: it takes no value; leave out what stands behind the =.")
        raise ConfigError(f"{message}.")


def parsed(parser: Parser, arguments: list[str], elsewhere: dict[str, str]) -> argparse.Namespace:
    """The flags of a command line. Raises ConfigError for one that is unknown or given twice.

    `elsewhere` says of names of other programs what they are here.
    """
    given = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    twice = next((name for name in given if given.count(name) > 1), None)
    names = [name for action in parser._actions for name in action.option_strings]
    for argument in given:
        if argument not in names and argument != "--":
            raise ConfigError(unknown(argument, names, elsewhere))  # before what it would take for missing
    if twice:
        raise ConfigError(f"{twice}: it is given twice; leave one of them out.")
    found, rest = parser.parse_known_args(arguments)
    if rest:
        raise ConfigError(unknown(rest[0], names, elsewhere))
    return found


def unknown(argument: str, names: list[str], elsewhere: dict[str, str]) -> str:
    """What is said of an argument that is no flag: what it is called here, or which flag is much like it."""
    typed = argument.split("=")[0]
    if not re.match(r"[-–—]", typed):
        if typed.lower().endswith(DATA_FILES):
            return f"{argument}: no flag stands before it; questions are given by --data {argument}"
        return f"{argument}: no flag stands before it; --data takes questions, --model a model, --help lists all flags."
    word = re.sub(r"[_\s]+", "-", typed.lstrip("-–—").lower())
    same = f"--{word}" if f"--{word}" in names else ""  # but for capitals, underscores, or the kind of dash
    if word in elsewhere and not same:
        return f"{typed}: there is no such flag: {elsewhere[word]}"
    near = difflib.get_close_matches(word, [name.lstrip("-") for name in names], n=1, cutoff=LIKE)
    hint = f"Did you mean {same or '--' + near[0]}?" if same or near else "--help lists them all."
    return f"{typed}: there is no such flag. {hint}"
