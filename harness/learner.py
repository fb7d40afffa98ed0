"""What a run starts with: the policy and what changes it, fresh or as a checkpoint has it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rollout
from harness import checkpoint
from harness.config import Config
from policy import lora
from policy.compiling import choose
from policy.optimizer import new_optimizer


@dataclass
class Learner:
    """The policy, and what changes it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None  # the start model, where --kl needs it; with --lora the model, by its base alone
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    half_changed: bool = False  # a step failed when it had changed something: these weights are of no step

    def step(self) -> None:
        """A step of optimizer and schedule. Raises OutOfMemoryError, with what to do, where there is no room for it."""
        before = checkpoint.changes(self)
        try:
            self.optimizer.step()
        except Exception as error:
            self.half_changed = checkpoint.changes(self) != before
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            raise torch.OutOfMemoryError(
                "Out of memory in the optimizer's step, in the first of which AdamW makes two numbers for each weight. "
                "Take a smaller model."
            ) from error
        self.schedule.step()


def new_learner(config: Config, resumed: checkpoint.Checkpoint | None = None) -> Learner:
    """The start model with a fresh optimizer, or both as a checkpoint has them."""
    torch.manual_seed(config.seed)
    choose(config.compile)
    code = config.trust_remote_code
    source = resumed.model if resumed else config.model
    model, tokenizer = rollout.load(source, config.device or None, trust_remote_code=code)
    if not resumed:
        lora.begin(model, config.model, config.adapter)
    reference = model if config.kl else None
    if config.kl and not config.lora:
        reference = copy.deepcopy(model)
        if resumed:
            reference, _ = rollout.load(config.model, config.device or None, trust_remote_code=code)
            lora.merge(reference)
        reference.requires_grad_(False)
    optimizer = new_optimizer(model, config.adamw)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / max(1, config.warmup)))
    learner = Learner(model, tokenizer, reference, optimizer, schedule)
    if resumed:
        checkpoint.restore(learner, resumed)
    return learner
