r"""How fast and how large: sampling, update, scoring and the whole step, side by side with what one would else run.

    python benchmarks/speed.py rollout               answers/s against Hugging Face generate, ragged lengths
    python benchmarks/speed.py logps                 forward and backward of log-probabilities against full logits
    python benchmarks/speed.py memory                peak memory of an update against full logits, fresh processes
    python benchmarks/speed.py scoring               what scoring costs, and what skipping answers saves
    python benchmarks/speed.py scaling               seconds against tokens and group size, with a log-log fit
    python benchmarks/speed.py masking               what rule (5') and the witness of displacement cost
    python benchmarks/speed.py step                  the whole step against TRL's GRPOTrainer (pip install trl)
    python benchmarks/speed.py compiling             what torch.compile costs and saves on this machine
    python benchmarks/speed.py warm-up               the first batch of completions against later ones

--model takes what dagrpo.py takes, and `random:1.5b`: random weights in the shape of Qwen2.5-1.5B, for which nothing is
downloaded. Without it the embedded model runs. `rollout --against` compares with continuous batching (generate_batch),
with vLLM where it is installed, or with this sampler where each prompt is computed by itself (whole-prompts). Each
command prints a table of medians over alternating runs; --json FILE adds the figures to FILE as one line, with machine
and versions. On a GPU, gpu.py runs them all.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
from measuring import (
    WEIGHTS,
    load,
    name_of,
    peak_of_allocator,
    questions_for,
    report,
    resident,
    seconds_of,
    spread,
    trainable,
)
from sampling import SIDES, rollout_speed, warm_up
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import dagrpo
import rollout
import scoring
from harness.config import EXAMPLE, configure
from policy import logprobs
from policy.logprobs import checkpointed
from policy.model import autocast, text_config
from scorers import gradients as scorer

# ---------------------------------------------------------------------------------------------------------------------
# Memory of an update
# ---------------------------------------------------------------------------------------------------------------------


def batch_of(
    model: PreTrainedModel, rows: int, length: int, prompt: int, group_size: int, begin: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random token ids: answers behind prompts of `prompt` tokens, shared by groups. -> (rows, length) three times

    All prompts begin with the same `begin` tokens.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, text_config(model).vocab_size, (rows, length), generator=generator)
    ids[:, :prompt] = ids[::group_size, :prompt].repeat_interleave(group_size, dim=0)[:rows]
    ids[:, :begin] = ids[0, :begin]
    response_mask = torch.zeros_like(ids, dtype=torch.bool)
    response_mask[:, prompt:] = True
    return ids.to(model.device), torch.ones_like(response_mask).to(model.device), response_mask.to(model.device)


def update_once(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    side: str,
    rows: int,
    length: int,
    prompt: int,
    group_size: int,
    begin: int = 0,
) -> None:
    """Forward and backward of all rows at once: as a training does it, or by full logits as one writes it first."""
    input_ids, attention_mask, response_mask = batch_of(model, rows, length, prompt, group_size, begin)
    if side == "whole prompts":
        with mock.patch.object(logprobs, "SHARED_PREFIX", sys.maxsize):
            update_once(model, tokenizer, "ours", rows, length, prompt, group_size, begin)
        return
    if side != "full":
        completions = [rollout.Completion(ids[:prompt], ids[prompt:]) for ids in input_ids.tolist()]
        record = rollout.assemble(model, tokenizer, completions, group_size)
        with checkpointed(model, side == "checkpointing"):
            for batch in rollout.micro_batches(model, record, torch.arange(rows), rows * length):
                part = record.rows(batch.rows)
                logps, _ = rollout.token_logps(model, *part.tokens, packing=batch.packing)
                logps.sum().backward()
        return
    with autocast(model):
        logits = model(input_ids=input_ids, attention_mask=attention_mask.long()).logits[:, :-1].float()
        logps = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
        (logps * response_mask[:, 1:]).sum().backward()


OTHERS = {"full": "full logits", "whole prompts": "with each prompt by itself"}


def log_probabilities(arguments: argparse.Namespace) -> None:
    """Seconds of forward and backward of one micro-batch, ours and with full logits; with --begin ours in two ways."""
    model, tokenizer = load(arguments.model, arguments.weights)
    shape = (arguments.rows, arguments.length, arguments.prompt, arguments.group_size, arguments.begin)
    seconds: dict[str, list[float]] = {"ours": [], "whole prompts" if arguments.begin else "full": []}
    for turn in range(arguments.runs + 1):
        for side in seconds:
            spent, _ = seconds_of(model, functools.partial(update_once, model, tokenizer, side, *shape))
            model.zero_grad(set_to_none=True)
            if turn:  # the first run of each is a warm-up
                seconds[side].append(spent)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    other = list(seconds)[1]
    report(
        arguments,
        f"Forward and backward of {batch_name(arguments)}: {name_of(arguments)}",
        [
            (f"token_logps, seconds (median of {arguments.runs})", f"{statistics.median(seconds['ours']):9.3f}"),
            (OTHERS[other], f"{statistics.median(seconds[other]):9.3f}"),
            (f"{OTHERS[other]} / token_logps", spread(ratios)),
        ],
        {"seconds": seconds, "ratio": statistics.median(ratios)},
    )


def batch_name(arguments: argparse.Namespace) -> str:
    answer = arguments.length - arguments.prompt
    text = f"{arguments.rows} answers of {answer} tokens, {arguments.group_size} behind a prompt of {arguments.prompt}"
    return f"{text}, {arguments.begin} of them the same in all" if arguments.begin else text


def measure_memory(arguments: argparse.Namespace) -> None:
    """In a process of its own: print the peak above weights, gradients and optimizer states."""
    model, tokenizer = load(arguments.model, arguments.weights)
    shape = (arguments.rows, arguments.length, arguments.prompt, arguments.group_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the states
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update_once(model, tokenizer, arguments.side, *shape)
        print(torch.cuda.max_memory_allocated() - before)
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    update_once(model, tokenizer, arguments.side, *shape)
    print(resident("VmHWM") - before)


def memory(arguments: argparse.Namespace) -> None:
    """Peak memory of an update, ours and with full logits, each in a fresh process."""
    peaks: dict[str, list[int]] = {"ours": [], "checkpointing": [], "full": []}
    for _ in range(arguments.runs):
        for side in peaks:
            command = [sys.executable, __file__, "measure", "--side", side, "--model", arguments.model]
            for flag in ("rows", "length", "prompt", "group_size"):
                command += ["--" + flag.replace("_", "-"), str(getattr(arguments, flag))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"the run of {side} failed:\n{done.stderr[-2000:]}")
            peaks[side].append(int(done.stdout.split()[-1]))
    ours, layers, full = (statistics.median(peaks[side]) for side in peaks)
    report(
        arguments,
        f"Peak memory of forward and backward above weights, gradients and states, {batch_name(arguments)}:"
        f" {name_of(arguments)}",
        [
            (f"token_logps (median of {arguments.runs})", f"{ours / 2**20:9.0f} MB"),
            ("token_logps with --checkpointing", f"{layers / 2**20:9.0f} MB"),
            ("full logits", f"{full / 2**20:9.0f} MB"),
            ("token_logps / full logits", f"{ours / full:9.2f}"),
            ("the same with --checkpointing", f"{layers / full:9.2f}"),
        ],
        {"bytes": peaks, "ratio": ours / full, "ratio_with_checkpointing": layers / full},
    )


# ---------------------------------------------------------------------------------------------------------------------
# Scoring, and how cost grows
# ---------------------------------------------------------------------------------------------------------------------


def scoring_cost(arguments: argparse.Namespace) -> None:
    """The parts of a training run's steps, from its own log; on the embedded example, or with --model and --data."""
    parts: dict[str, list[float]] = {}
    saved = []
    for turn in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            flags: dict[str, Any] = {"out": folder, "steps": arguments.steps, "eval_every": 0, "seed": turn}
            if arguments.model:
                data = arguments.data or str(EXAMPLE / "train.jsonl")
                flags |= {"model": arguments.model, "data": [data], "hold_out": 1, "eval_samples": 1}
                flags |= {name: getattr(arguments, name) for name in ("questions", "group_size", "max_new_tokens")}
            if arguments.model.startswith("random:"):  # never right: without another reward there are no pairs
                flags |= {"reward": [f"{__file__}:every_other"], "anchors": None}
            with trainable(arguments.model):
                dagrpo.train(configure(**flags))
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        records = [record for record in lines if "step" in record]
        for record in records[1 if torch.cuda.is_available() else 0 :]:  # in the first, a GPU waits for the compiler
            skipped, spent = 1 - record["trained_sequences"], record["seconds/train"]
            saved.append(spent * skipped / max(1e-9, record["trained_sequences"]) - record["seconds/score"])
            for name, value in record.items():
                if name.startswith("seconds/"):
                    parts.setdefault(name.removeprefix("seconds/"), []).append(value)
    total = sum(sum(values) for values in parts.values())
    rows = [(name, f"{statistics.median(v):8.3f} s a step, {sum(v) / total:6.1%}") for name, v in parts.items()]
    rows.append(
        ("net of skipping", f"{statistics.mean(saved):+8.3f} s a step: forward and backward saved less scoring")
    )
    report(
        arguments,
        f"Parts of {arguments.steps} steps x {arguments.runs} runs: {name_of(arguments)}",
        rows,
        {"share_of_scoring": sum(parts["score"]) / total, "net_seconds": statistics.mean(saved)},
    )


def masking(arguments: argparse.Namespace) -> None:
    """Rule (5') on random gradients; products of a model's gradients, of groups alone and of the whole batch too.

    The products are those that --metric optimizer takes, by moments that are random. What the whole batch adds is what
    the witness costs: in seconds, and in bytes of tensors at most.
    """
    rows: list[tuple[str, str]] = []
    figures: dict[str, Any] = {}
    for name, groups, size, common, as_batch in (
        ("64 groups of 64, a few displaced", 64, 64, 0.3, False),
        ("64 groups of 64, many displaced", 64, 64, 2.0, False),
        ("a batch of 64 groups of 16", 64, 16, 0.3, True),
    ):
        torch.manual_seed(0)
        gradients = torch.randn(groups, size, 200) * (0.2 + 2 * torch.rand(groups, size, 1))
        gradients += common * torch.randn(groups, 1, 200)
        pairs = scoring.pair_advantages((torch.rand(groups, size) < 0.5).float())
        if as_batch:
            gradients, pairs = gradients.flatten(0, 1)[None], torch.block_diag(*pairs)[None]
        cross = gradients @ gradients.transpose(1, 2)
        plain = pairs.sum(2)
        displaced = scoring.displaced(cross, plain, plain)[plain > 0].float().mean().item()
        masked = (~scoring.safe_sums(cross, pairs))[pairs > 0].float().mean().item()
        seconds = []
        for _ in range(arguments.runs):
            start = time.perf_counter()
            scoring.safe_sums(cross, pairs)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        rows.append((name, f"{1000 * median:.0f} ms: {displaced:.0%} displaced, {masked:.0%} of the pairs masked"))
        figures[name] = {"seconds": median, "displaced": displaced, "masked": masked}
    model, tokenizer = load(arguments.model, arguments.weights)
    count, size = arguments.rows, arguments.group_size
    batch = batch_of(model, count, arguments.length, arguments.prompt, size)
    sequences = scorer.Sequences(*batch, size)
    tokens = arguments.length - arguments.prompt
    states = torch.randn(count, tokens, text_config(model).hidden_size, device=model.device)
    sequences = replace(sequences, hidden=list(states))  # those of a model would take as long to multiply
    first = torch.randn_like(model.get_output_embeddings().weight, dtype=torch.float32)
    second = torch.rand_like(first)
    group = {"eps": 1e-8, "betas": (0.9, 0.999)}

    def multiply() -> None:
        metric = scorer.metric_of_moments(first, second, group)
        scorer.gradient_products(model, sequences, scorer.Measure(metric=metric))

    products: dict[str, list[float]] = {"groups alone": [], "groups and batch": []}
    peaks = dict.fromkeys(products, 0)
    for _ in range(arguments.runs + 1):
        for name, elements in zip(products, (count, scorer.BATCH_ELEMENTS), strict=True):
            with mock.patch.object(scorer, "BATCH_ELEMENTS", elements):
                products[name].append(seconds_of(model, multiply)[0])
                peaks[name] = peaks[name] or peak_of_allocator(multiply)
    medians = {name: statistics.median(spent[1:]) for name, spent in products.items()}  # the first is a warm-up
    rows += [
        (f"products of {name}, {count} answers", f"{spent:.3f} s, {peaks[name] / 1e9:.2f} GB")
        for name, spent in medians.items()
    ]
    arguments.rows = arguments.update_rows or count
    shape = (arguments.rows, arguments.length, arguments.prompt, size)
    update, _ = seconds_of(model, functools.partial(update_once, model, tokenizer, "ours", *shape))
    rows.append((f"forward and backward of {batch_name(arguments)}", f"{update:.3f} s"))
    report(
        arguments,
        f"Rule (5') and its products: {name_of(arguments)}",
        rows,
        {**figures, **medians, "bytes": peaks, "update": update},
    )


def scaling(arguments: argparse.Namespace) -> None:
    """Seconds of log-probabilities with backward, and of scoring, against tokens an answer and answers a group."""
    model, tokenizer = load(arguments.model, arguments.weights)
    rows: list[tuple[str, str]] = []
    figures: dict[str, Any] = {}

    def logps(count: int, length: int) -> None:
        update_once(model, tokenizer, "ours", count, length, length // 2, min(count, 8))
        model.zero_grad(set_to_none=True)

    def score(count: int, length: int) -> None:
        scoring.gradient_gram(model, *batch_of(model, count, length, length // 2, count), count)

    sizes = [64, 128, 256, 512]
    groups = [8, 16, 32, 64]
    for name, run in [("log-probabilities and backward", logps), ("scoring", score)]:
        for axis, points in [
            ("tokens", [(8, length) for length in sizes]),
            ("group size", [(count, 64) for count in groups]),
        ]:
            medians = []
            for count, length in points:
                run(count, length)  # a warm-up
                call = functools.partial(run, count, length)
                medians.append(statistics.median(seconds_of(model, call)[0] for _ in range(arguments.runs)))
            x = [length if axis == "tokens" else count for count, length in points]
            slope = float(numpy.polyfit(numpy.log(x), numpy.log(medians), 1)[0])
            spelled = ", ".join(f"{size}: {1000 * second:.0f} ms" for size, second in zip(x, medians, strict=True))
            rows.append((f"{name} against {axis}", f"exponent {slope:.2f}   ({spelled})"))
            figures[f"{name} against {axis}"] = {"exponent": slope, "seconds": medians, "sizes": x}
    report(arguments, f"How cost grows: {name_of(arguments)}; linear is an exponent of 1", rows, figures)


# ---------------------------------------------------------------------------------------------------------------------
# The whole step against TRL
# ---------------------------------------------------------------------------------------------------------------------


def whole_step(arguments: argparse.Namespace) -> None:
    """Sampling, reward, scoring and update of one batch: `dagrpo.train` and TRL's GRPOTrainer, in turns."""
    seconds: dict[str, list[float]] = {"dagrpo": [], "trl": []}
    tokens: dict[str, list[float]] = {"dagrpo": [], "trl": []}
    for _ in range(arguments.runs):
        for side in seconds:
            command = [sys.executable, __file__, "measure-step", "--side", side, *sys.argv[2:]]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"the run of {side} failed:\n{done.stderr[-2000:]}")
            second, made = map(float, done.stdout.split()[-2:])
            seconds[side].append(second)
            tokens[side].append(made)
    ratios = [a / b for a, b in zip(seconds["trl"], seconds["dagrpo"], strict=True)]
    count = arguments.questions * arguments.group_size
    report(
        arguments,
        f"A whole step, {count} answers of up to {arguments.max_new_tokens} tokens: {name_of(arguments)}",
        [
            *(
                (f"{n}, seconds a step (median of {arguments.runs})", f"{statistics.median(v):8.2f}")
                for n, v in seconds.items()
            ),
            *((f"{name}, tokens a step", f"{statistics.median(v):8.0f}") for name, v in tokens.items()),
            ("trl / dagrpo", spread(ratios)),
        ],
        {"seconds": seconds, "ratio": statistics.median(ratios)},
    )


def measure_step(arguments: argparse.Namespace) -> None:
    """In a process of its own: print the median seconds of a step after the first, and its tokens."""
    questions = questions_for(arguments.data, "train.jsonl", 200)
    step_of = step_of_dagrpo if arguments.side == "dagrpo" else step_of_trl
    with tempfile.TemporaryDirectory() as folder:
        seconds, tokens = step_of(arguments, questions, Path(folder))
    print(statistics.median(seconds[1:]), statistics.median(tokens[1:]))


def every_other(texts: list[str], questions: list[Any]) -> list[float]:
    """A reward that gives every group a signal, on both sides alike."""
    return [float(number % 2) for number in range(len(texts))]


def step_of_dagrpo(
    arguments: argparse.Namespace, questions: list[dict[str, Any]], folder: Path
) -> tuple[list[float], list[float]]:
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    with trainable(arguments.model):
        dagrpo.train(
            configure(
                model=arguments.model or str(EXAMPLE), data=[str(data)], reward=f"{__file__}:every_other",
                out=str(folder / "run"), steps=arguments.steps, questions=arguments.questions,
                group_size=arguments.group_size, max_new_tokens=arguments.max_new_tokens, eval_every=0, hold_out=1,
                eval_samples=1, method="grpo", learning_rate=1e-6, token_budget=4_096,
            )
        )  # fmt: skip
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "step" in record]
    total = [sum(value for name, value in record.items() if name.startswith("seconds/")) for record in steps]
    return total, [record["sampled_tokens"] for record in steps]


def step_of_trl(
    arguments: argparse.Namespace, questions: list[dict[str, Any]], folder: Path
) -> tuple[list[float], list[float]]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load(arguments.model, arguments.weights)
    made: list[float] = []
    starts: list[float] = []
    ends: list[float] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        made.append(float(sum(map(len, completion_ids))))
        return every_other([""] * len(completions), [])

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            starts.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    count = arguments.questions * arguments.group_size
    config = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=count, num_generations=arguments.group_size,
        max_completion_length=arguments.max_new_tokens, max_steps=arguments.steps, learning_rate=1e-6, beta=0.0,
        temperature=1.0, report_to=[], save_strategy="no", logging_strategy="no", bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, seed=0, loss_type="grpo",
    )  # fmt: skip
    prompts = [{"prompt": rollout.render_prompt(tokenizer, question["problem"])} for question in questions]
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config,  # type: ignore[arg-type]
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    # TRL samples before the callback of a step's begin is called for the next one, so a step is end to end.
    marks = [starts[0], *ends]
    return [after - before for before, after in pairwise(marks)], made


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile
# ---------------------------------------------------------------------------------------------------------------------


def compiling_cost(arguments: argparse.Namespace) -> None:
    """Seconds of the first call of fused loss and fused advantages, and what a later call takes with and without.

    Run with an empty TORCHINDUCTOR_CACHE_DIR: what was compiled before is read from there.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    questions, group_size, length = 16, 8, 128
    answers = questions * group_size
    torch.manual_seed(0)
    logps = -torch.rand(answers, length, device=device).requires_grad_()
    old = logps.detach() - 0.01
    mask = torch.rand(answers, length, device=device) < 0.7
    advantages = torch.randn(answers, length, device=device)
    anchors, denominators = mask[:, 0], torch.full((answers,), 1000.0, device=device)
    objective = dagrpo.Objective(gamma=0.1)
    pair_mask = torch.rand(questions, group_size, group_size, device=device) >= 0.35
    rewards = (torch.rand(questions, group_size, device=device) < 0.5).float()

    def loss(function: Callable[..., Any]) -> None:
        value, _ = function(logps, old, advantages, mask, anchors, denominators, objective)
        value.backward()

    def masked_advantages(function: Callable[..., Any]) -> None:
        function(rewards, pair_mask)

    rows: list[tuple[str, str]] = []
    figures: dict[str, Any] = {}
    for name, run, eager in [
        ("ratio and loss, with backward", loss, dagrpo.policy_loss.eager),
        ("advantages under a mask", masked_advantages, scoring.rectified_advantages.eager),
    ]:
        fused = torch.compile(eager, dynamic=True)
        start = time.perf_counter()
        run(fused)
        first = time.perf_counter() - start
        calls: dict[str, list[float]] = {"eager": [], "fused": []}
        for _ in range(200):
            for side, function in (("eager", eager), ("fused", fused)):
                start = time.perf_counter()
                run(function)
                if device == "cuda":
                    torch.cuda.synchronize()
                calls[side].append(time.perf_counter() - start)
        medians = {side: statistics.median(spent) for side, spent in calls.items()}
        spelled = ", ".join(f"{side} {1e6 * second:.0f} µs" for side, second in medians.items())
        rows.append((name, f"first call {first:.1f} s, then {spelled}"))
        figures[name] = {"first_call": first, **medians}
    report(arguments, f"torch.compile on {answers} answers of {length} tokens", rows, figures)


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, command in [
        ("rollout", rollout_speed), ("logps", log_probabilities), ("memory", memory), ("measure", measure_memory),
        ("scoring", scoring_cost), ("scaling", scaling), ("step", whole_step), ("measure-step", measure_step),
        ("compiling", compiling_cost), ("masking", masking), ("warm-up", warm_up),
    ]:  # fmt: skip
        flags = commands.add_parser(name, help=command.__doc__)
        flags.set_defaults(command=command)
        flags.add_argument("--model", default="")
        flags.add_argument("--data", default="")
        flags.add_argument("--examples", default="", help="of rollout: as of dagrpo.py")
        flags.add_argument("--prompt-file", default="", help="of rollout: as of dagrpo.py")
        flags.add_argument("--runs", type=int, default=5)
        flags.add_argument("--json", default="")
        flags.add_argument("--questions", type=int, default=8)
        flags.add_argument("--group-size", type=int, default=8)
        flags.add_argument("--max-new-tokens", type=int, default=128)
        flags.add_argument("--mean", type=float, default=0, help="end answers after so many tokens on average")
        flags.add_argument("--rows", type=int, default=16)
        flags.add_argument("--update-rows", type=int, default=0, help="of masking: answers of the update; 0: --rows")
        flags.add_argument("--length", type=int, default=201)
        flags.add_argument("--prompt", type=int, default=137, help="of the tokens of --length; of random: models too")
        flags.add_argument("--begin", type=int, default=0, help="of logps: tokens that all prompts begin with")
        flags.add_argument("--against", default="generate", choices=tuple(SIDES))
        flags.add_argument("--weights", default="fp32", choices=tuple(WEIGHTS))
        flags.add_argument("--steps", type=int, default=4)
        flags.add_argument("--side", default="")
    return parser


def main() -> None:
    arguments = new_parser().parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
