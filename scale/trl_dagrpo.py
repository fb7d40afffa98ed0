"""DaGRPO in TRL's GRPOTrainer, for more than one GPU.

    accelerate launch --config_file scale/fsdp.yaml -m scale.trl_dagrpo --model MODEL --data DATA [flags of TRL]

TRL has the data loader, generation (transformers or vLLM), accelerate with FSDP and DeepSpeed, adapters, checkpoints
and trackers. What is DaGRPO comes from scoring.py, anchors.py, dagrpo.py and verify, which are called here.
docs/scaling.md has launches for 1, 8 and 64 GPUs. The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import sys
from typing import Any, NoReturn, cast

from harness.command import one_sentence, stop, unknown
from scale.versions import fault_of_trl

if fault := fault_of_trl():
    if __name__ == "__main__":
        stop(f"scale.trl_dagrpo: {fault}", 1)
    raise ImportError(fault)

import torch
import torch.nn.functional as F
from transformers import HfArgumentParser
from trl import GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config

from anchors import Anchors, placements
from harness.config import ConfigError
from harness.task import distances_of
from policy.model import check_files
from questions import Question
from rollout import noise_key
from scale.data import as_dataset, read_any, read_tokenizer, trl_rewards
from scale.groups import Sampled, rectified_groups
from scale.settings import OF_DAGRPO, DaGRPOConfig, DataFlags, core_config
from scorers.judge import Distances


class DaGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with the advantages of (4), anchors in hard groups (6), and the loss of anchors (7).

    Beyond TRL's arguments: `questions`, which the column `question` of the data counts; `anchors`, their verified
    solutions; `distances`, what judges pairs in place of the scorers of SCORERS. The last two need the questions. In
    evaluations TRL is left as it is.
    """

    epsilon_low: Any  # of TRL: a number; in the loss of a batch with anchors (B, 1)
    epsilon_high: Any

    def __init__(
        self,
        *args: Any,
        questions: list[Question] | None = None,
        anchors: Anchors | None = None,
        distances: Distances | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.core = core_config(self.args) if self.args.is_dagrpo else None
        self.questions, self.solutions, self.distances = questions, anchors, distances
        if self.core is not None and distances is None:
            self.distances = distances_of(self.core)
        if questions is None and (anchors is not None or self.distances is not None):
            raise ValueError("`anchors` and `distances` are of questions: give `questions` too.")
        if self.core is not None and (self.tools or self._is_vlm):
            raise ConfigError("DaGRPO compares completions of text alone: no tools, environments or images.")
        self._sampled: Sampled | None = None  # while TRL makes a batch of it
        self._shaped: dict[str, Any] | None = None  # the batch whose anchors get their loss (7)

    # -----------------------------------------------------------------------------------------------------------------
    # A batch: completions with anchors in place, and their advantages
    # -----------------------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.core is None or not self.model.training:
            return dict(super()._generate_and_score_completions(inputs))
        self._sampled = sampled = Sampled(inputs)
        try:
            batch = dict(super()._generate_and_score_completions(inputs))
        finally:
            self._sampled = None
        rectified = rectified_groups(self, sampled)
        first = len(inputs) * self.accelerator.process_index
        mine = slice(first, first + len(inputs))
        batch["advantages"] = rectified.advantages.flatten()[mine]
        if bool((rectified.withheld != 0).any()):
            width = batch["completion_ids"].shape[1]
            withheld = F.pad(rectified.withheld[mine], (0, max(0, width - rectified.withheld.shape[1])))[:, :width]
            batch["advantages"] = batch["advantages"][:, None] - withheld  # (B,) -> (B, C)
        batch["anchor_mask"] = torch.tensor(sampled.is_anchor[mine], device=self.accelerator.device)
        self._logs["advantages"].extend(rectified.advantages.flatten().tolist())  # it has room for a batch: TRL's leave
        return batch

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        prompt_ids, completion_ids, tool_mask, completions, logprobs, *rest = super()._generate(prompts)
        sampled = self._sampled
        if sampled is not None:
            if tool_mask is not None:
                raise ConfigError("DaGRPO compares completions of the policy alone: no masks of an environment.")
            sampled.prompts, sampled.completions = prompt_ids, completion_ids
            if self.questions is not None:
                numbers = torch.tensor([row["question"] for row in sampled.rows], device=self.accelerator.device)
                of_groups = self.accelerator.gather(numbers)[:: self.num_generations]  # (B,) -> (N,) -> (P,)
                sampled.questions = [self.questions[number] for number in of_groups.tolist()]
            if self.solutions is not None:
                self._calculate_rewards(sampled.rows, prompts, completions, completion_ids)
                self._insert_anchors(sampled, logprobs)
        return prompt_ids, completion_ids, tool_mask, completions, logprobs, *rest

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """Of the completions as they were sampled, once for each batch; they are what TRL logs."""
        sampled = self._sampled
        if sampled is not None and sampled.rewards is not None:
            return sampled.rewards
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if sampled is not None:
            weighted = (rewards * self.reward_weights.to(rewards)).nansum(1)  # (N, functions) -> (N,)
            weighted[rewards.isnan().all(1)] = torch.nan
            groups = weighted.view(-1, self.num_generations)
            # Without a reward a completion has no part in its group: it stands at the mean of the others.
            sampled.rewards, sampled.totals = (
                rewards,
                torch.where(groups.isnan(), groups.nanmean(1, keepdim=True).nan_to_num(0.0), groups),
            )
            sampled.is_anchor = [False] * len(rewards)
        return rewards

    def _insert_anchors(self, sampled: Sampled, logprobs: list[Any] | None) -> None:
        """Put anchors in the places that (6) says, on whichever process they are."""
        assert self.core is not None and self.solutions is not None
        places = placements(
            sampled.totals, sampled.questions, self.solutions,
            count=self.core.anchors_per_group, hard_below=self.core.hard_below, every_group=False,
            rng=random.Random(noise_key(self.args.seed, self.state.global_step + 1)), right=self._right,
        )  # fmt: skip
        first = len(sampled.rows) * self.accelerator.process_index
        for p, g, (solution, reward) in places:
            sampled.totals[p, g] = reward
            sampled.is_anchor[p * self.num_generations + g] = True
            row = p * self.num_generations + g - first
            if 0 <= row < len(sampled.rows):
                sampled.completions[row] = list(solution)
                if logprobs is not None:
                    logprobs[row] = [math.nan] * len(solution)  # TRL corrects nothing where vLLM has no value

    @property
    def _right(self) -> float:
        return 1.0 if self.args.right_at is None else float(self.args.right_at)

    # -----------------------------------------------------------------------------------------------------------------
    # The loss of anchors: (7)
    # -----------------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss; where there are anchors, f(π_t) takes the place of their tokens' ratios, without a clip."""
        is_anchor = inputs.get("anchor_mask")
        if is_anchor is None or not bool(is_anchor.any()):
            return cast(torch.Tensor, super()._compute_loss(model, inputs))
        limits = self.epsilon_low, self.epsilon_high
        unclipped = torch.where(is_anchor, torch.inf, 0.0)[:, None]  # (B,) -> (B, 1)
        self._shaped, self.epsilon_low, self.epsilon_high = dict(inputs), limits[0] + unclipped, limits[1] + unclipped
        try:
            return cast(torch.Tensor, super()._compute_loss(model, self._shaped))
        finally:
            self._shaped, (self.epsilon_low, self.epsilon_high) = None, limits

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> tuple[Any, ...]:
        """As TRL's; in the loss, an anchor's token has log f(π) against an old value of 0: its ratio is f(π) then."""
        logps, *rest = super()._get_per_token_logps_and_entropies(*args, **options)
        if self._shaped is None:
            return logps, *rest
        batch, is_anchor = self._shaped, self._shaped["anchor_mask"][:, None]
        old = batch.get("old_per_token_logps")
        shaped = torch.where(is_anchor, logps - (logps.exp() + self.args.gamma).log(), logps)  # log f of (7)
        batch["old_per_token_logps"] = torch.where(is_anchor, 0.0, logps.detach() if old is None else old)
        if "ref_per_token_logps" in batch:  # the divergence is estimated on what the policy has sampled
            batch["ref_per_token_logps"] = torch.where(is_anchor, shaped.detach(), batch["ref_per_token_logps"])
        return shaped, *rest


def main(arguments: list[str] | None = None) -> None:
    with one_sentence("scale.trl_dagrpo"):
        data, args, of_model = parse(sys.argv[1:] if arguments is None else arguments)
        trainer = new_trainer(data, args, of_model)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model(args.output_dir)
        trainer.accelerator.print(f"Saved in {args.output_dir}.")
        trainer.accelerator.end_training()


def parse(arguments: list[str]) -> tuple[DataFlags, DaGRPOConfig, ModelConfig]:
    """The flags by the class that has them. Raises ConfigError for what does not exist or does not go together."""
    classes: Any = (DataFlags, DaGRPOConfig, ModelConfig)
    parser = FlagParser(classes, prog="scale.trl_dagrpo", allow_abbrev=False)
    try:
        data, args, of_model, *rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except ConfigError:
        raise
    except (ValueError, ImportError) as error:  # of TRL and transformers: batch sizes that do not divide, no such GPU
        raise ConfigError(" ".join(str(error).split())) from error
    if rest[0]:
        names = [name for action in parser._actions for name in action.option_strings]
        raise ConfigError(unknown(rest[0][0], names, OF_DAGRPO))
    return data, args, of_model


class FlagParser(HfArgumentParser):
    """The parser of transformers, whose complaints are one sentence without the list of all its flags."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}.")


def new_trainer(data: DataFlags, args: DaGRPOConfig, of_model: ModelConfig) -> DaGRPOTrainer:
    """The trainer of a command line, with questions and rewards read and checked."""
    config = core_config(args, data)
    if args.chat_template_kwargs:
        raise ConfigError("--chat_template_kwargs: it is --template-arg NAME=VALUE here, which anchors follow too.")
    check_files(config.model, "--model")
    tokenizer = read_tokenizer(config.model, args.trust_remote_code)
    with contextlib.ExitStack() as stack:
        if args.process_index != 0:  # what there is to say is said once
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        task = read_any(config, tokenizer, args.trust_remote_code)
    evaluates = args.eval_strategy != "no"
    questions = [*task.questions, *(task.held_out if evaluates else [])]
    rewards, args.reward_weights = trl_rewards(task.reward, questions, tokenizer)
    style, held_out = config.prompt_style, None
    args.chat_template_kwargs = {**style.arguments}
    if style.enable_thinking is not None:
        args.chat_template_kwargs["enable_thinking"] = style.enable_thinking
    if evaluates:
        held_out = as_dataset(task.held_out, tokenizer, style, first=len(task.questions))
    init = {"revision": of_model.model_revision, "attn_implementation": of_model.attn_implementation}
    if of_model.dtype is not None:
        init["dtype"] = of_model.dtype
    args.model_init_kwargs = {**init, **(args.model_init_kwargs or {})}
    return DaGRPOTrainer(
        model=config.model,
        reward_funcs=rewards,
        args=args,
        train_dataset=as_dataset(task.questions, tokenizer, style),
        eval_dataset=held_out,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(of_model),
        peft_config=get_peft_config(of_model),
        questions=questions,
        anchors=task.anchors if config.anchors is not None else None,
        distances=task.distances,
    )


if __name__ == "__main__":
    main()
