"""The flags: TRL's own, and those of dagrpo.py that TRL has not, with the same names, defaults, reasons and checks."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from trl import GRPOConfig

from harness.config import Config, ConfigError, configure

# What TRL's norm of the loss is called in (8). bnpo divides by the tokens of a micro-batch, not of the step.
LOSS_NORMS = {"dr_grpo": "constant", "grpo": "sequence", "dapo": "token", "bnpo": "token"}
SCALES = {"group": "std", "none": "none"}
# What flags of dagrpo.py are called here, where TRL has them under another name.
OF_DAGRPO = {
    "steps": "it is --max_steps here.",
    "group-size": "it is --num_generations here.",
    "questions": "a step is --per_device_train_batch_size times --gradient_accumulation_steps completions a process.",
    "token-budget": "it is --per_device_train_batch_size here, in completions.",
    "max-new-tokens": "it is --max_completion_length here.",
    "updates": "it is --steps_per_generation here, in micro-batches.",
    "epochs": "it is --num_iterations here.",
    "loss-norm": "it is --loss_type here.",
    "scale": "it is --scale_rewards here.",
    "clip-low": "it is --epsilon here.",
    "clip-high": "it is --epsilon_high here.",
    "kl": "it is --beta here.",
    "entropy-bonus": "it is --entropy_coef here.",
    "beta1": "it is --adam_beta1 here.",
    "warmup": "it is --warmup_steps here.",
    "out": "it is --output_dir here.",
    "resume": "it is --resume_from_checkpoint here.",
    "save-every": "it is --save_steps here.",
    "eval-every": "it is --eval_strategy steps --eval_steps here.",
    "checkpointing": "it is --gradient_checkpointing here, and on.",
    "no-enable-thinking": "it is --enable_thinking false here.",
    "device": "accelerate launch says which devices a run has.",
    "method": "not here: --rectify none --anchors none is TRL's GRPO, whose --loss_type has the others.",
    "every-group": "not here: a group of TRL keeps its size, so that anchors only join hard groups.",
    "anchor-objective": "not here: anchors have the shaped objective of (7).",
}


def of_core(name: str) -> Any:
    """The flag of dagrpo.py with this name, as a field of one of TRL's classes of flags."""
    item = Config.__dataclass_fields__[name]
    metadata: dict[str, Any] = {"help": item.metadata["reason"].replace("%", "%%")}
    if item.type == "bool | None":  # by itself it is on, as in dagrpo.py
        metadata |= {"nargs": "?", "const": True}
    if item.default_factory is not MISSING:
        return field(default_factory=item.default_factory, metadata=metadata)
    return field(default=item.default, metadata=metadata)


@dataclass
class DataFlags:
    """What is learned from; the trainer itself does not need them."""

    model: str = of_core("model")
    data: list[str] = of_core("data")
    eval_data: list[str] = of_core("eval_data")
    map: list[str] = of_core("map")
    hold_out: int = of_core("hold_out")
    reward: list[str] = of_core("reward")
    skip_bad: bool = of_core("skip_bad")
    system: str = of_core("system")
    enable_thinking: bool | None = of_core("enable_thinking")
    template_arg: list[str] = of_core("template_arg")
    prompt_file: str = of_core("prompt_file")
    examples: str = of_core("examples")


@dataclass
class DaGRPOConfig(GRPOConfig):
    """TRL's settings and DaGRPO's. The norm of the loss is dr_grpo where --loss_type says nothing else.

    With --rectify none --anchors none nothing is left of DaGRPO, and the trainer is TRL's GRPO.
    """

    bf16: bool | None = field(default=None, metadata={"help": "bf16 products, fp32 weights; on where there is a GPU"})
    loss_type: str = field(default="dr_grpo", metadata={"help": "the denominator of (8): dr_grpo, grpo, dapo or bnpo"})
    rectify: str = of_core("rectify")
    scorer: str = of_core("scorer")
    metric: str | None = of_core("metric")
    threshold: float | None = of_core("threshold")
    judge_url: str = of_core("judge_url")
    judge_model: str = of_core("judge_model")
    judge_timeout: float = of_core("judge_timeout")
    judge_calls: int = of_core("judge_calls")
    judge_cache: str = of_core("judge_cache")
    negative_weight: float = of_core("negative_weight")
    anchors: str = of_core("anchors")
    anchors_per_group: int = of_core("anchors_per_group")
    hard_below: float = of_core("hard_below")
    gamma: float = of_core("gamma")
    right_at: float | None = of_core("right_at")

    def __post_init__(self) -> None:
        """Raise ConfigError for settings of DaGRPO that are out of range, or that do not go with TRL's."""
        if self.bf16 is None and not torch.cuda.is_available():
            self.bf16 = False  # TRL's default, on a CPU many times slower than fp32
        super().__post_init__()
        if self.is_dagrpo:
            check(self)
            core_config(self)

    @property
    def has_anchors(self) -> bool:
        return self.anchors != "none"

    @property
    def is_dagrpo(self) -> bool:
        """Is there anything to do that TRL does not?"""
        return self.rectify != "none" or self.has_anchors or self.negative_weight != 1


def check(args: DaGRPOConfig) -> None:
    """Raise ConfigError where DaGRPO does not go with one of TRL's settings."""
    for name, allowed in (("loss_type", tuple(LOSS_NORMS)), ("scale_rewards", tuple(SCALES))):
        if getattr(args, name) not in allowed:
            raise ConfigError(f"--{name} {getattr(args, name)}: DaGRPO needs one of {', '.join(allowed)}.")
    needed: list[tuple[str, Any]] = [("multi_objective_aggregation", "sum_then_normalize")]
    if args.has_anchors:  # each of these would change what an anchor's token earns
        needed += [("importance_sampling_level", "token"), ("top_entropy_quantile", 1.0)]
        needed += [("off_policy_mask_threshold", None), ("use_liger_kernel", False)]
    for name, value in needed:
        if getattr(args, name) != value:
            without = "--rectify none --anchors none" if name == needed[0][0] else "--anchors none"
            raise ConfigError(f"--{name} {getattr(args, name)}: it must be {value}, or train with {without}.")


def core_config(args: DaGRPOConfig, data: DataFlags | None = None) -> Config:
    """The same settings as dagrpo.py has them. Raises ConfigError for what it would refuse.

    With `data` these are the settings of a whole run: without a model, those of the embedded example.
    """
    questions = (args.generation_batch_size or 1) // (args.num_generations or 1)
    flags: dict[str, Any] = {name: getattr(args, name) for name in OURS}
    flags |= {
        "anchors": args.anchors if args.has_anchors else None,
        "scale": SCALES.get(args.scale_rewards, "std"),
        "loss_norm": LOSS_NORMS.get(args.loss_type, "token"),
        "questions": questions,
        "updates": min(questions, max(1, int(args.steps_per_generation) // args.gradient_accumulation_steps)),
        "group_size": args.num_generations,
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    if data is None:
        return Config(**{**flags, "right_at": None})  # the reward is then a function that the trainer was given
    given = {name: value for name, value in vars(data).items() if value != getattr(DataFlags(), name)}
    return configure(**flags, **given)


OURS = {item.name for item in fields(DaGRPOConfig)} - {item.name for item in fields(GRPOConfig)}
