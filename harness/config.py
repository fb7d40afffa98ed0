"""The settings of a run: one dataclass, the rows of defaults of each method, where they come from, the command line.

A setting comes from the first of these that has it: its flag, the file of --recipe, the row of METHODS, the run.json of
the embedded example (where its model runs), the default of Config. What it may be is checked by harness/limits.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import textwrap
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.command import OF_TRAINING, Parser, flag_name, parsed, shown
from harness.command import ConfigError as ConfigError  # a name that others import from here
from harness.limits import WITHOUT_EFFECT, check
from harness.prompting import Contents, arguments_of, contents_of, contents_of_record
from harness.recipe import read_recipe
from policy.compiling import CHOICES
from policy.lora import Adapter
from policy.optimizer import KINDS, AdamW
from rollout import PromptStyle
from scorers.judge import THRESHOLD as JUDGED_THRESHOLD
from scoring import RULES, SCORERS, Rectification

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "arithmetic"
METHODS: dict[str, dict[str, Any]] = {
    "dagrpo": {},
    "grpo": {"rectify": "none", "anchors": None, "loss_norm": "token"},
    "dr_grpo": {"rectify": "none", "anchors": None, "scale": "none", "loss_norm": "constant"},
    "dapo": {
        "rectify": "none",
        "anchors": None,
        "loss_norm": "token",
        "clip_high": 0.28,
        "updates": 4,  # with one, every ratio is 1 and no clip acts
        "resample": 3,
        "overlong": 0.2,
    },
    "luffy": {
        "rectify": "none",
        "every_group": True,
        "scale": "none",
        "loss_norm": "constant",
        "clip_low": None,
        "clip_high": None,
        "gamma": 0.1,
        "updates": 2,
        "entropy_bonus": 0.001,
    },
    # Groups of one anchor, which is imitated: (8) is then the negative log-likelihood.
    "sft": {
        "rollouts": False,
        "rectify": "none",
        "group_size": 1,
        "anchor_objective": "sft",
        "loss_norm": "token",
        "clip_low": None,
        "clip_high": None,
    },
}
TRACKERS = ("trackio", "wandb", "tensorboard")
LOSS_NORMS = ("token", "sequence", "constant")
RECTIFY_REASON = (
    "what is masked: nothing; pairs below --threshold (3); pairs that lower their better completion (5); pairs until "
    "those of the group, or of the batch, lower no better completion (5'); the same by single tokens"
)
METRIC_REASON = (
    "of (5'): gradients as they are, or as AdamW's moments will scale and move them; without the flag the second where "
    "it can be, with --scorer gradient"
)
SCORER_REASON = "by what pairs are judged (2): " + ", ".join(scorer.reason for scorer in SCORERS.values())
SCORER_REASON += ", a language model's scores, or a function from questions and texts to scores or distances"
COMPILE_REASON = (
    "what torch.compile fuses on a GPU: nothing, and no CUDA graphs either; the sampler's layer; masks and loss too, "
    "which takes seconds once and saves microseconds a step"
)
THRESHOLD_REASON = "pairs less distinct than this are masked (3); without the flag " + ", ".join(
    f"{scorer.threshold:g} for {name}" for name, scorer in SCORERS.items()
)
THRESHOLD_REASON += f", {JUDGED_THRESHOLD:g} for judge and for a function"


def flag(default: Any, reason: str, **rules: Any) -> Any:
    """A field of Config: its default and its reason, the text of --help.

    Rules: `least`, `most` or `above` bound a number; `choices` are all there are, but for file.py:function with
    `function`; `none`: the word none is allowed and means None; `group` opens a new heading of --help.
    """
    metadata = {"reason": reason, **rules}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# fmt: off
@dataclass
class Config:
    """One run. Each field but the last is a flag, `group_size` is --group-size; `configure` adds a row of METHODS."""

    model: str = flag("", "Hub name, local directory or .gguf file; without it the embedded example runs", group="what")
    recipe: str = flag("", "TOML file of settings, such as those in recipes/; flags go before it")
    data: list[str] = flag([], "training questions: files (JSONL, JSON, CSV, Parquet), folders, Hub sets name[:split]")
    eval_data: list[str] = flag([], "held-out questions, of several sets each by itself and their mean; without it "
                                "--hold-out of --data are kept back")
    map: list[str] = flag([], "NAME=FIELD, where fields of the data have other names: problem=question,answer=target")
    reward: list[str] = flag([], "file.py:function, from texts and questions to floats, in place of the verifier; of "
                             "several, each with =WEIGHT behind it or 1, the sum")
    right_at: float | None = flag(None, "with --reward: what a right completion earns at least; anchors need it")
    system: str = flag("", "system prompt, for models with a chat template")
    enable_thinking: bool | None = flag(None, "passed to the chat template (Qwen3 thinks unless told not to)")
    template_arg: list[str] = flag([], "NAME=VALUE, further arguments of the chat template; a value is JSON, or text")
    prompt_file: str = flag("", "file with a template of the prompt: {problem} and {choices} stand in it")
    examples: str = flag("", "file of solved questions, as --data, that every prompt shows first")
    out: str = flag("", "folder of the run; the default is a new one under runs/")
    resume: str = flag("", "folder of a run that goes on where its newest checkpoint is, with its own settings")
    force: bool = flag(False, "with --resume: go on although other settings have changed")
    seed: int = flag(0, "order of questions and all sampling; the same seed repeats the run", least=0, most=2**63 - 1)
    device: str = flag("", "cpu, cuda or cuda:N; the default is the GPU where there is one")
    track: str = flag("none", "a tracker that gets the figures of the log too; its package is to be installed, and "
                      "WANDB_MODE=offline keeps wandb's here", choices=("none", *TRACKERS))
    trust_remote_code: bool = flag(False, "run Python code that comes with the model; read it first")
    skip_bad: bool = flag(False, "leave out lines of data that cannot be used, and count them, in place of stopping")

    method: str = flag("dagrpo", "a set of defaults; single flags override it", choices=tuple(METHODS), group="method")
    rollouts: bool = flag(True, "sample completions; without them each group is one anchor, which is imitated (sft)")
    rectify: str = flag("threshold", RECTIFY_REASON, choices=RULES)
    scorer: str = flag("gradient", SCORER_REASON, choices=(*SCORERS, "judge"), function=True)
    metric: str | None = flag(None, METRIC_REASON, choices=("gradient", "optimizer"))
    threshold: float | None = flag(None, THRESHOLD_REASON, least=0, most=1)
    judge_url: str = flag("", "with --scorer judge: the endpoint, to which /chat/completions is added; the key is in "
                          "JUDGE_API_KEY or OPENAI_API_KEY; without a URL the judge is a local model")
    judge_model: str = flag("", "the endpoint's name of the judge, or a directory; the run's own --model may be it")
    judge_timeout: float = flag(60.0, "seconds per step; what has no score by then is not masked; a "
                                "local model ends the batch that it has begun", above=0)
    judge_calls: int = flag(8, "calls to the endpoint at once", least=1)
    judge_cache: str = flag("runs/judge-cache", "folder of the scores, which runs share; what was scored once is not "
                            "asked again")
    anchors: str | None = flag("data", "verified solutions: data (field `solution`), a FILE of them, or none",
                               none=True)
    anchors_per_group: int = flag(1, "anchors that join a group, at most (6)", least=1)
    every_group: bool = flag(False, "anchors are appended to every group, hard or not, as LUFFY does")
    hard_below: float = flag(0.0, "a question is hard at this pass rate or less (6); 0: none right", least=0, most=1)
    anchor_objective: str = flag("shaped", "what an anchor's token raises: f(π) of (7), which spares tokens that are "
                                 "already likely; sft: log π", choices=("shaped", "sft"))
    gamma: float = flag(0.03, "γ of f(π) = π/(π+γ): tokens with a probability near it move most (LUFFY: 0.1)", above=0)
    scale: str = flag("std", "divide advantages by the group's deviation, or not (Dr. GRPO)", choices=("std", "none"))
    negative_weight: float = flag(1.0, "of completions worse than their group; 0: the better ones alone are trained "
                                  "on, which holds up better where a batch is gone through several times", least=0,
                                  most=1)
    loss_norm: str = flag("constant", "denominator of (8): all tokens, the sequence, or a constant", choices=LOSS_NORMS)
    clip_low: float | None = flag(0.2, "below 1 − this, a token's ratio π/π_old has no gradient that lowers it further "
                                  "(7); none: no limit", least=0, most=1, none=True)
    clip_high: float | None = flag(0.2, "above 1 + this, the ratio has no gradient that raises it further (7); DAPO: "
                                   "0.28; none: no limit", least=0, none=True)
    resample: int = flag(0, "rounds in which groups without signal give way to new questions (dapo: 3)", least=0)
    overlong: float = flag(0.0, "share of the token limit, at its end, over which a completion loses up to 0.5 (DAPO: "
                           "0.2)", least=0, most=1)
    kl: float = flag(0.0, "weight of the k3 divergence from the start model; above 0 a copy of it is kept", least=0)
    entropy_bonus: float = flag(0.0, "weight of the tokens' mean entropy (LUFFY: 0.001)", least=0)

    questions: int = flag(16, "questions per step: P", least=1, group="sampling")
    group_size: int = flag(8, "completions of each question: G; at least 2, or nothing can differ", least=1)
    max_new_tokens: int = flag(1024, "limit of a completion; longer ones are cut off and graded as they are", least=1)
    temperature: float = flag(1.0, "of training completions; the policy is trained at the same one", above=0)
    top_p: float = flag(1.0, "below 1 the sampled and the trained policy differ: a warning says so", above=0, most=1)

    steps: int = flag(200, "rollout batches", least=1, group="optimization")
    updates: int = flag(1, "optimizer steps per batch, each on a share of it; clipping acts from the second on",
                        least=1)
    epochs: int = flag(1, "times that a batch is gone through; clipping acts from the second on", least=1)
    optimizer: str = flag("adamw", "moments in fp32, or in 8 bits (adamw8bit): a quarter of their memory; needs "
                          "bitsandbytes", choices=KINDS)
    learning_rate: float = flag(1e-6, "of AdamW, constant after the warm-up", least=0)
    beta1: float = flag(0.9, "of AdamW: the share of a step that comes from earlier gradients", least=0, most=0.999)
    warmup: int = flag(10, "optimizer steps to reach the learning rate: early gradients are noisy", least=0)
    weight_decay: float = flag(0.01, "of AdamW", least=0)
    max_grad_norm: float = flag(1.0, "longer gradients are scaled down to this", above=0)
    token_budget: int = flag(4_096, "padded tokens in a micro-batch: bounds memory, not the result", least=1)
    checkpointing: bool = flag(False, "compute activations again in the backward pass: a third slower, far less memory")
    compile: str = flag("sampler", COMPILE_REASON, choices=tuple(CHOICES))
    lora: int = flag(0, "rank of an adapter (LoRA), trained in place of the weights, at a higher learning rate; "
                     "0: none; needs peft", least=0)
    lora_alpha: float = flag(32.0, "the adapter is multiplied by this, divided by its rank", above=0)
    lora_targets: list[str] = flag([], "last names of the linear maps that get it, q_proj ...; without them all but "
                                   "the head")
    merge: bool = flag(False, "with --lora: model/ is a whole model, with the adapter in its weights")

    save_every: int = flag(50, "steps between checkpoints, beside those with an evaluation; 0: those alone", least=0,
                           group="evaluation and checkpoints")
    keep: int = flag(1, "newest checkpoints that stay; the best by held-out accuracy always does", least=1)
    max_bad_steps: int = flag(3, "steps in a row without a finite gradient that end the run", least=1)
    eval_every: int = flag(50, "steps between held-out evaluations; 0: start and end", least=0)
    eval_at_start: bool = flag(True, "evaluate before the first step too")
    eval_samples: int = flag(2, "completions of each held-out question", least=1)
    eval_temperature: float = flag(0.6, "of held-out completions", above=0)
    hold_out: int = flag(64, "questions kept back from --data, a fifth at most, without --eval-data", least=1)

    # What the files of --prompt-file and --examples say, no flag: a run keeps it, and can go on without them.
    prompt_contents: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.reward, str):  # one function, as config.json of older runs has it
            self.reward = [self.reward] if self.reward else []
        check(self)
        arguments_of(self.template_arg)
        if self.prompt_contents is None and (self.prompt_file or self.examples):
            self.prompt_contents = contents_of(self.prompt_file, self.examples).record()

    @property
    def resolved_threshold(self) -> float:
        """τ of (3): --threshold, or what suits the scorer."""
        if self.scorer not in SCORERS and self.threshold is None:
            return JUDGED_THRESHOLD
        return SCORERS[self.scorer].threshold if self.threshold is None else self.threshold

    @property
    def resolved_metric(self) -> str:
        """--metric, or what predicts best of what the scorer can (study/README.md); an adapter has no moments of W."""
        return self.metric or ("optimizer" if self.scorer == "gradient" and not self.lora else "gradient")

    @property
    def right(self) -> float:
        """What a right completion earns at least; infinite where nothing says so."""
        if not self.reward:
            return 1.0
        return math.inf if self.right_at is None else self.right_at

    def evaluates(self, step: int) -> bool:
        """Is there a held-out evaluation after this step?"""
        if step == 0:
            return self.eval_at_start
        return step == self.steps or bool(self.eval_every and step % self.eval_every == 0)

    @property
    def adapter(self) -> Adapter:
        return Adapter(self.lora, self.lora_alpha, tuple(self.lora_targets))

    @property
    def adamw(self) -> AdamW:
        return AdamW(self.optimizer, self.learning_rate, self.beta1, self.weight_decay)

    @property
    def prompt_style(self) -> PromptStyle:
        contents = contents_of_record(self.prompt_contents) if self.prompt_contents else Contents()
        arguments = arguments_of(self.template_arg)
        return PromptStyle(self.system, self.enable_thinking, contents.template, arguments, contents.examples)

    @property
    def rectification(self) -> Rectification:
        """What `scoring.rectify` has to know."""
        return Rectification(
            rule=self.rectify, scorer=self.scorer, threshold=self.resolved_threshold, scale=self.scale,
            temperature=self.temperature, per_token=self.loss_norm == "sequence",
            gamma=self.gamma if self.anchor_objective == "shaped" else None,
            negative_weight=self.negative_weight, token_budget=self.token_budget,
        )
# fmt: on


# ---------------------------------------------------------------------------------------------------------------------
# Where settings come from
# ---------------------------------------------------------------------------------------------------------------------


def settings_by_source(flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that are given, by where they come from; the later ones win. Raises ConfigError as `configure`."""
    recipe = read_recipe(flags["recipe"], Config) if flags.get("recipe") else {}
    given = {**recipe, **flags}
    method = given.get("method", "dagrpo")
    if method not in METHODS:
        raise ConfigError(f"--method {method}: it must be one of {', '.join(METHODS)}.")
    model, data = given.get("model"), given.get("data")
    if data and not model:
        raise ConfigError(
            f"--data {data[0]} without --model: which model is to learn from it? A language model: add --model NAME. "
            "The embedded one, which knows nothing but its sums: add --model examples/arithmetic."
        )
    if given.get("eval_data") and "hold_out" in given:
        raise ConfigError(
            f"--hold-out {given['hold_out']}: with --eval-data nothing is held out of --data; leave one of them out."
        )
    example: dict[str, Any] = {}
    if not model or os.path.realpath(model) == str(EXAMPLE):
        example = json.loads((EXAMPLE / "run.json").read_text(encoding="utf-8"))
        example["model"] = str(EXAMPLE / example["model"])
        for name in ("data", "eval_data"):
            example[name] = [str(EXAMPLE / path) for path in example[name]]
        if data and not given.get("eval_data"):
            del example["eval_data"]  # other questions are held out of themselves
    by_recipe = {f"--recipe {flags['recipe']}": recipe} if recipe else {}
    return {"run.json": example, f"--method {method}": METHODS[method], **by_recipe, "flags": flags}


def configure(**flags: Any) -> Config:
    """The Config of a run from the flags that are given. Raises ConfigError for what does not go together."""
    settings: dict[str, Any] = {}
    for given in settings_by_source(flags).values():
        settings |= given
    config = Config(**settings)
    if not config.data:
        raise ConfigError("--data is missing: with --model, name the file or Hub set to train on.")
    return config


def check_effects(config: Config, flags: dict[str, Any]) -> None:
    """Raise ConfigError for a flag of a command line that would change nothing."""
    without_flags = {**asdict(Config()), **METHODS[config.method]}
    for names, is_so, why in WITHOUT_EFFECT:
        for name in names:
            if name in flags and flags[name] != without_flags[name] and is_so(config):
                given = flag_name(name) if flags[name] is True else f"{flag_name(name)} {shown(flags[name])}"
                raise ConfigError(f"{given}: {why}; leave it out.")


def not_defaults(flags: dict[str, Any]) -> str:
    """Every setting that is not the default of Config, by where it comes from: a line for each source."""
    sources = settings_by_source(flags)
    lines = ["Settings that are not defaults:"]
    defaults = Config()
    for source, settings in sources.items():
        later = [name for other in list(sources)[list(sources).index(source) + 1 :] for name in sources[other]]
        changed = [
            f"{name} {shown(settings[name])}"
            for name in settings
            if name not in later and settings[name] != getattr(defaults, name)
        ]
        if changed:
            text = f"{source}: {', '.join(changed)}"
            lines.append(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(lines) if len(lines) > 1 else "All settings are defaults."


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def flags_of(config: type) -> list[Any]:
    """The fields that are flags: those with a reason."""
    return [item for item in fields(config) if "reason" in item.metadata]


def parse(arguments: list[str]) -> dict[str, Any]:
    """The settings that a command line gives, by name. Raises ConfigError for an unknown flag."""
    parser = Parser(
        prog="dagrpo.py",
        usage="python dagrpo.py [--model MODEL --data FILE] [flags]",
        description="Train a language model with DaGRPO or a baseline. Without --model, the embedded example runs, "
        "whose examples/arithmetic/run.json has other defaults than those in brackets.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80, max_help_position=28),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    group: Any = parser
    for item in flags_of(Config):
        rules = item.metadata
        if "group" in rules:
            group = parser.add_argument_group(rules["group"])
        if item.type in ("bool", "bool | None"):
            group.add_argument(flag_name(item.name), action=argparse.BooleanOptionalAction, help=rules["reason"])
            continue
        default = "" if item.default in ("", None) or not isinstance(item.default, str | int | float) else item.default
        metavar = "|".join(rules["choices"]) if "choices" in rules else item.name.upper()
        metavar += "|file.py:function" if rules.get("function") else ""
        help_text = rules["reason"] + (f" [{default}]" if default != "" else "")
        options = {"nargs": "+"} if item.type == "list[str]" else {}
        group.add_argument(flag_name(item.name), metavar=metavar, help=help_text, **options)
    found = parsed(parser, arguments, OF_TRAINING)
    values = vars(found)
    return {item.name: converted(item, values[item.name]) for item in flags_of(Config) if item.name in values}


def converted(item: Any, value: Any) -> Any:
    """The text of a flag as the field's type; what cannot be read stays text, for `check` to name."""
    if value == "none" and item.metadata.get("none"):
        return None
    kinds = {"int": int, "float": float, "float | None": float}
    try:
        return kinds[item.type](value) if item.type in kinds else value
    except ValueError:
        return value
