"""AdamW, its two moments of each weight in fp32 or in 8 bits, and its states as tensors.

8-bit moments (Dettmers et al. 2021, arXiv 2110.02861) are those of `bitsandbytes`, an optional package: blocks of 256
numbers have a scale of their own, and tensors of less than 4,096 numbers stay in fp32.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from policy.model import ModelError

KINDS = ("adamw", "adamw8bit")
NEEDED = (0, 50)  # of bitsandbytes: the first that has 8-bit moments on a CPU too


@dataclass(frozen=True)
class AdamW:
    """What --optimizer and its numbers ask for."""

    kind: str = "adamw"  # of KINDS
    learning_rate: float = 1e-6
    beta1: float = 0.9
    weight_decay: float = 0.01


def check_optimizer(kind: str) -> None:
    """Raise ModelError where the optimizer needs a package that is missing or too old."""
    if kind == "adamw":
        return
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if tuple(map(int, version.split(".")[:2] if version else (0, 0))) < NEEDED:
        found = f" (this is {version})" if version else ""
        needed = ".".join(map(str, NEEDED))
        raise ModelError(f'--optimizer {kind}: run: pip install "bitsandbytes>={needed}"{found}')


def new_optimizer(model: nn.Module, how: AdamW) -> torch.optim.Optimizer:
    """An optimizer of the parameters that are trained. Raises ModelError as `check_optimizer`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {
        "lr": how.learning_rate, "betas": (how.beta1, 0.999), "weight_decay": how.weight_decay,
    }  # fmt: skip
    if how.kind == "adamw8bit":
        check_optimizer(how.kind)
        import bitsandbytes

        made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(trained, **options)
        return made
    # On a GPU fused: otherwise a copy of all states would be made at every step.
    return torch.optim.AdamW(trained, **options, fused=trained[0].device.type == "cuda")


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The first and second moments of a parameter, in fp32; None before its first step."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg" in state:
        return state["exp_avg"].float(), state["exp_avg_sq"].float()
    if "state1" not in state:
        return None
    first, second = (unpacked(state, number) for number in (1, 2))
    return first, second


def unpacked(state: dict[str, Any], number: int) -> torch.Tensor:
    """Moment 1 or 2 of a state of bitsandbytes, in fp32 and in the shape of the parameter."""
    packed = state[f"state{number}"]
    if packed.dtype != torch.uint8:
        return packed.float()
    from bitsandbytes.functional import dequantize_blockwise

    found: torch.Tensor = dequantize_blockwise(
        packed, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=256
    )
    return found


def state_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """What the optimizer keeps of a parameter, by its own names; the number of steps as a tensor too."""
    state = optimizer.state.get(parameter, {})
    return {name: torch.as_tensor(value).detach() for name, value in state.items()}


def restore_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
    """Give an optimizer of the same kind what `state_tensors` gave, as copies on the parameter's device."""
    state = optimizer.state[parameter]
    for name, value in tensors.items():
        if name == "step" and "state1" in tensors:  # bitsandbytes counts with a Python number
            state[name] = int(value)
        elif name == "step" and not optimizer.param_groups[0].get("fused"):
            state[name] = value.clone()
        else:
            state[name] = value.to(parameter.device, copy=True)
