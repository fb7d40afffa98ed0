"""DaGRPO in TRL's GRPOTrainer, for more than one GPU.

    accelerate launch --config_file scale/fsdp.yaml -m scale.trl_dagrpo --model MODEL --data DATA [flags of TRL]

TRL has the data loader, generation (transformers or vLLM), accelerate with FSDP and DeepSpeed, adapters, checkpoints
and trackers. What is DaGRPO comes from scoring.py, anchors.py, dagrpo.py and verify, which are called here. The letters
of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, NoReturn, cast

from harness.command import one_sentence, stop, unknown
from scale.versions import fault_of_trl

if fault := fault_of_trl():
    if __name__ == "__main__":
        stop(f"scale.trl_dagrpo: {fault}", 1)
    raise ImportError(fault)

from transformers import HfArgumentParser, PreTrainedModel
from trl import GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config

from harness.config import ConfigError
from harness.task import read_task, verified_task
from policy.model import check_files
from scale.data import Described, as_dataset, read_tokenizer, trl_rewards
from scale.settings import OF_DAGRPO, DaGRPOConfig, DataFlags, core_config


class DaGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, whose advantages are those of DaGRPO."""


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
    check_files(config.model, "--model")
    tokenizer = read_tokenizer(config.model, args.trust_remote_code)
    described = cast(PreTrainedModel, Described.of(config.model, args.trust_remote_code))
    with contextlib.ExitStack() as stack:
        if args.process_index != 0:  # what there is to say is said once
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        task = verified_task(read_task(config), described, tokenizer, config)
    evaluates = args.eval_strategy != "no"
    questions = [*task.questions, *(task.held_out if evaluates else [])]
    rewards, args.reward_weights = trl_rewards(task.reward, questions, tokenizer)
    style, held_out = config.prompt_style, None
    if evaluates:
        held_out = as_dataset(task.held_out, tokenizer, style, first=len(task.questions))
    if config.enable_thinking is not None:
        args.chat_template_kwargs = {"enable_thinking": config.enable_thinking, **(args.chat_template_kwargs or {})}
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
    )


if __name__ == "__main__":
    main()
