"""What settings may be, and which of them go together.

`check` is run for every Config (harness/config.py), whoever makes it. `check_effects` in that file refuses the flags of
WITHOUT_EFFECT on a command line alone: a program may set what changes nothing.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.command import LEAST_TEMPERATURE, ConfigError, flag_name
from harness.mapping import names_of
from policy.lora import check_peft
from policy.optimizer import check_optimizer
from scoring import BY_GRADIENT, SCORERS

if TYPE_CHECKING:
    from harness.config import Config


def check(config: Config) -> None:
    """Raise ConfigError for the first field out of its range, or for two that do not go together."""
    check_ranges(config)
    check_update(config)
    if config.rectify not in ("none", "threshold") and config.scorer not in BY_GRADIENT:
        allowed = " or ".join(BY_GRADIENT)
        raise ConfigError(
            f"--rectify {config.rectify}: rule (5) compares gradients, so --scorer {allowed}, not {config.scorer}."
        )
    if config.metric == "optimizer" and config.scorer != "gradient":
        raise ConfigError(
            f"--metric optimizer: it is known of the output embedding alone, so --scorer gradient, not {config.scorer}."
        )
    if config.metric == "optimizer" and config.lora:
        raise ConfigError(
            "--metric optimizer: with --lora the output embedding is not trained, so that AdamW has no moments of it; "
            "leave it out."
        )
    if config.negative_weight != 1 and config.rectify not in ("none", "threshold", "pair"):
        raise ConfigError(
            f"--negative-weight {config.negative_weight:g}: --rectify {config.rectify} adds up what every completion "
            "does with its whole weight; use --rectify none, threshold or pair, or leave it out."
        )
    check_judge(config)
    names_of(config.map)
    twice = next((source for source in config.eval_data if config.eval_data.count(source) > 1), None)
    if twice:
        raise ConfigError(f"--eval-data {twice}: it is named twice; leave one of them out.")
    if config.threshold is not None and config.rectify != "threshold":
        raise ConfigError(
            f"--threshold {config.threshold}: with --rectify {config.rectify} nothing is compared with it; leave it "
            "out, or use --rectify threshold."
        )
    if config.rollouts and config.group_size < 2:
        raise ConfigError(
            f"--group-size {config.group_size}: it must be at least 2: one completion has no other to differ from."
        )
    if not config.rollouts and config.group_size != 1:
        raise ConfigError(f"--group-size {config.group_size}: without rollouts each group is one anchor; leave it out.")
    if not config.rollouts and config.anchors is None:
        raise ConfigError(
            "--anchors none: without rollouts (--method sft) there is nothing else to train on; give data or a FILE."
        )
    if config.right_at is not None and not config.reward:
        raise ConfigError(
            f"--right-at {config.right_at}: the verifier gives 1 for right and 0 for wrong; leave it out."
        )
    if config.reward and config.right_at is None and config.anchors is not None:
        raise ConfigError(
            "--right-at is missing: with --reward, an anchor is a solution that earns at least this much. Give it, or "
            "train with --anchors none."
        )
    if not config.rollouts and config.kl:
        raise ConfigError(
            f"--kl {config.kl}: it is estimated on sampled completions, and without rollouts there are none."
        )
    if not config.rollouts and config.temperature != 1:
        raise ConfigError(f"--temperature {config.temperature}: without rollouts nothing is sampled; leave it out.")
    if config.every_group and config.anchors is None:
        raise ConfigError("--anchors none: with an anchor in every group (--every-group) it must be data or a FILE.")
    if config.every_group and config.anchors_per_group >= config.group_size:
        raise ConfigError(f"--anchors-per-group {config.anchors_per_group}: it must be less than --group-size.")
    if config.anchors not in ("data", None) and not is_there(config.anchors):
        raise ConfigError(f"--anchors {config.anchors}: it must be data, none, or a file of solutions that exists.")
    for name in ("temperature", "eval_temperature"):
        if getattr(config, name) < LEAST_TEMPERATURE:
            raise ConfigError(
                f"{flag_name(name)} {getattr(config, name)}: it must be at least {LEAST_TEMPERATURE:g}: logits divided "
                "by less overflow."
            )
    check_device(config.device)
    check_tracker(config.track)
    if config.updates > config.questions:
        raise ConfigError(f"--updates {config.updates}: it must be at most --questions ({config.questions}).")


def is_there(source: str) -> bool:
    """Is there such a file or folder, or one of which the source names a part?"""
    return os.path.exists(source) or os.path.exists(source.rpartition(":")[0])


def check_update(config: Config) -> None:
    """Raise ConfigError where no step of AdamW can be a good one, or fp32 not hold it."""
    rate, decay = config.learning_rate, config.weight_decay
    highest = torch.finfo(torch.float32).max * (1 - config.beta1)
    if rate > highest:
        raise ConfigError(
            f"--learning-rate {rate:g}: it must be at most {highest:.2g}: AdamW's first step divides it by "
            "1 − --beta1, and fp32 has no larger number."
        )
    if rate * decay > 1:
        raise ConfigError(
            f"--learning-rate {rate:g} with --weight-decay {decay:g}: their product must be at most 1: that share of "
            "every weight is taken from it in each step, and more than the whole turns its sign."
        )


def check_device(device: str) -> None:
    """Raise ConfigError for a device that is not there."""
    if not re.fullmatch(r"(cpu|cuda(:\d+)?)?", device):
        raise ConfigError(f"--device {device}: it must be cpu, cuda, or cuda:N for the GPU number N.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: PyTorch finds no GPU here; leave the flag out to run on the CPU.")
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        raise ConfigError(f"--device {device}: there is no such GPU; there are {there}.")


def check_tracker(name: str) -> None:
    """Raise ConfigError for a tracker whose package is not there."""
    package = importlib.util.find_spec(name) if name != "none" else None
    if name != "none" and (package is None or package.origin is None):  # a folder of that name has no origin
        raise ConfigError(
            f"--track {name}: its package is not there. Run: pip install {name}, or leave the flag out (--track none): "
            "metrics.jsonl has all figures."
        )


def check_judge(config: Config) -> None:
    """Raise ConfigError where --scorer judge or file.py:function cannot work, or a flag of the judge has no use."""
    if config.scorer not in SCORERS and config.rectify != "threshold":
        raise ConfigError(
            f"--scorer {config.scorer}: with --rectify {config.rectify} no pair is compared by it; leave it out, or "
            "use --rectify threshold."
        )
    if config.scorer != "judge":
        for item in fields(config):
            if item.name.startswith("judge_") and getattr(config, item.name) != item.default:
                name, value = flag_name(item.name), getattr(config, item.name)
                raise ConfigError(
                    f"{name} {value}: without --scorer judge nothing is asked; leave it out, or add that."
                )
        return
    if not config.judge_model:
        raise ConfigError(
            "--judge-model is missing: --scorer judge needs one, the name of a model of the endpoint (--judge-url), or "
            "the directory of a local one."
        )
    if config.judge_url:
        check_url(config.judge_url)
    elif config.judge_model != config.model and not Path(config.judge_model).exists():
        raise ConfigError(
            f"--judge-model {config.judge_model}: there is no such directory. A model of an endpoint: add --judge-url "
            "URL. A local one: its directory, or what --model names."
        )


def check_url(url: str) -> None:
    """Raise ConfigError where --judge-url is no base of an endpoint, or holds what must not be kept with the run."""
    must = "it must be an address such as http://127.0.0.1:8000/v1."
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:  # brackets that are no address, or a port that is none; the address may hold a password
        raise ConfigError(f"--judge-url: {must}") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "--judge-url: it must have no user, password, query or fragment, because it is kept with the run; the key "
            "belongs in the environment variable JUDGE_API_KEY."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", url):
        raise ConfigError(f"--judge-url {url}: {must}")


def check_ranges(config: Config) -> None:
    """Raise ConfigError for the first field that is out of its range."""
    for item in fields(config):
        value, rules = getattr(config, item.name), dict(item.metadata)
        if value is None and item.type.endswith("| None"):
            continue
        if item.type == "float | None" and not {"least", "above"} & rules.keys():
            rules["least"] = -math.inf
        if "choices" in rules:
            allowed = "one of " + ", ".join(rules["choices"])
            right = value in rules["choices"]
            if rules.get("function"):
                allowed += ", or file.py:function"
                right = right or bool(re.fullmatch(r".+\.py:\w+", str(value)))
        elif "least" in rules or "above" in rules:
            low, high = rules.get("least", rules.get("above")), rules.get("most")
            allowed = "a whole number" if item.type == "int" else "a number"
            allowed += f" {'of at least' if 'least' in rules else 'above'} {low}" if low != -math.inf else ""
            allowed += f" and at most {high}" if high is not None else ""
            allowed += ", or the word none" if rules.get("none") else ""
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            number = number and (item.type != "int" or isinstance(value, int))
            right = number and (value >= low if "least" in rules else value > low) and (high is None or value <= high)
        else:
            continue
        if not right:
            raise ConfigError(f"{flag_name(item.name)} {value}: it must be {allowed}.")


def check_packages(config: Config) -> None:
    """Raise ModelError for a package that a setting needs and that is missing."""
    if config.lora:
        check_peft(f"--lora {config.lora}")
    check_optimizer(config.optimizer)


# Flags that change nothing where something else is so: (flags, is it so, why).
WITHOUT_EFFECT: list[tuple[tuple[str, ...], Callable[[Config], bool], str]] = [
    (
        ("top_p", "resample", "overlong", "hard_below", "anchors_per_group"),
        lambda config: not config.rollouts,
        "without rollouts (--method sft) nothing is sampled, and each group is one anchor",
    ),
    (
        ("scale", "scorer", "metric", "rectify", "negative_weight"),
        lambda config: not config.rollouts,
        "without rollouts (--method sft) a group has no pair to compare",
    ),
    (
        ("gamma", "anchor_objective", "hard_below", "anchors_per_group"),
        lambda config: config.anchors is None,
        "without anchors nothing of theirs counts",
    ),
    (("gamma",), lambda config: config.anchor_objective == "sft", "with --anchor-objective sft anchors have no f(π)"),
    (("force",), lambda config: not config.resume, "without --resume there is nothing that it would overrule"),
    (("hard_below",), lambda config: config.every_group, "with --every-group anchors join every group, hard or not"),
    (
        ("scorer",),
        lambda config: config.rectify == "none" and config.scorer not in SCORERS,
        "with --rectify none no pair is compared by it",
    ),
    (
        ("metric",),
        lambda config: config.scorer not in BY_GRADIENT,
        "without --scorer gradient or state no gradients are multiplied",
    ),
    (
        ("clip_low", "clip_high"),
        lambda config: config.updates * config.epochs == 1,
        "with one update of each batch every ratio is 1 and no clip acts; add --updates or --epochs",
    ),
    (
        ("compile",),
        lambda config: config.device == "cpu" or not torch.cuda.is_available(),
        "on a CPU nothing is compiled",
    ),
    (("lora_alpha", "lora_targets", "merge"), lambda config: not config.lora, "without --lora there is no adapter"),
]
