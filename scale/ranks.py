"""A model that may lie in pieces on several processes: its states, and its head with the moments of AdamW.

Under FSDP and DeepSpeed's stage 3, a forward pass and the gathering of a weight are calls that every process must make
alike, or all of them wait for ever. So each function here is called by every process, with as many rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from policy.model import backbone
from rollout import Rollouts


def without_adapter(model: Any) -> Any:
    """The model of transformers inside of an adapter's; its layers are those with the adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@torch.no_grad()
def completion_states(
    model: Any,  # as it is called in training: on several processes wrapped
    accelerator: Accelerator,
    rollouts: Rollouts,  # N rows; as many on every process
    args: Any,
) -> list[torch.Tensor]:  # N times (M, H)
    """The states that predict the completions' tokens, in fp32."""
    found: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    inside = backbone(without_adapter(accelerator.unwrap_model(model)))
    hook = inside.register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    training = model.training
    model.eval()  # no dropout, as in dagrpo.py
    try:
        for rows in torch.arange(len(rollouts.texts)).split(args.per_device_train_batch_size):
            part = rollouts.rows(rows)
            mask = part.attention_mask.long()
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            options = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
            with accelerator.autocast():  # of the logits, only those of the last token are made
                model(input_ids=part.input_ids, **options, logits_to_keep=1)
            made = found.pop()[:, :-1]
            states += [h[predicts].float() for h, predicts in zip(made, part.prediction_mask, strict=True)]
    finally:
        hook.remove()
        model.train(training)
    return states


class Output(torch.nn.Module):
    """A model's last linear map, of a weight that lies elsewhere in pieces."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:  # (V, H), (V,)
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight, requires_grad=False), bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # (..., H) -> (..., V)
        return F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class Head:
    """What scorers need of a model whose states are known: its configuration and its output layer, whole."""

    config: Any
    generation_config: Any
    device: torch.device
    dtype: torch.dtype
    output: Output
    moments: tuple[torch.Tensor, torch.Tensor] | None  # of AdamW for the weight, (V, H) each
    bytes: int  # that were gathered for it

    def get_output_embeddings(self) -> Output:
        return self.output


@contextmanager
def whole_head(trainer: Any, with_moments: bool) -> Iterator[Head]:
    """The head of a trainer's model, gathered where processes share it; inside, memory holds all of it.

    Under an adapter it is the base model's. `with_moments` gathers AdamW's moments of its weight too, twice as much;
    there are none before the first step, of a head that is not trained, and under FSDP 1, which cuts weights anywhere.
    """
    accelerator: Accelerator = trainer.accelerator
    for module in trainer.model.modules():  # FSDP 2 leaves some whole after a forward pass, and those AdamW knows not
        if hasattr(module, "reshard"):
            module.reshard()
    model = without_adapter(accelerator.unwrap_model(trainer.model))
    layer = model.get_output_embeddings()  # TRL refuses adapters of it
    moments = moments_of(trainer, layer.weight) if with_moments else None
    given = [value for value in (layer.weight, layer.bias) if value is not None]
    everywhere = trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False, writeback=False)  # of FSDP 1
    with trainer._dist.gather_params(given), everywhere:
        weight, bias = whole(layer.weight).detach(), layer.bias
        bias = None if bias is None else whole(bias).detach()
        gathered = [weight, *(moments or ())] if trainer._dist.is_fsdp or trainer._dist.is_zero3 else []
        size = sum(tensor.numel() * tensor.element_size() for tensor in gathered)
        output = Output(weight, bias)
        yield Head(model.config, model.generation_config, accelerator.device, weight.dtype, output, moments, size)


def whole(value: torch.Tensor) -> torch.Tensor:
    """The tensor of which FSDP 2 has given each process some rows."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def moments_of(trainer: Any, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """AdamW's moments of a weight; None where it has none, or none of the weight's shape."""
    if trainer._dist.is_zero3:
        from deepspeed.utils import safe_get_full_optimizer_state

        if trainer.state.global_step == 0 or not weight.requires_grad:  # of which DeepSpeed raises a KeyError
            return None
        return safe_get_full_optimizer_state(weight, "exp_avg"), safe_get_full_optimizer_state(weight, "exp_avg_sq")
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    if "exp_avg_sq" not in state or state["exp_avg_sq"].shape != weight.shape or weight.dim() != 2:
        return None
    return whole(state["exp_avg"]), whole(state["exp_avg_sq"])
