"""LoRA (Hu et al. 2021, arXiv 2106.09685): beside each linear map W stands BA, of low rank; only A and B are trained.

A map computes W x + s·B(A x), with s = α/rank. B begins at 0, so that a new adapter changes nothing. The layers are
those of `peft`, an optional package; they are put into the model itself, which stays the object and the class that it
was. All else here is what this project needs of them: W + s·BA as one matrix for the sampler, the model without its
adapter as the reference of --kl, and adapters as files.

    adapter_config.json             rank, α, which maps, and the name of the base model
    adapter_model.safetensors       A and B of each map
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from policy.model import ModelError, backbone, check_files, damage, named

NAME = "default"  # of the adapter in peft's layers
PREFIX = "base_model.model."  # begins the names of tensors in the files of peft
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Fields of adapter_config.json that make an adapter what it is here, and those without effect on a finished one.
READ = ("r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora",
        "fan_in_fan_out", "layers_to_transform", "layers_pattern", "base_model_name_or_path", "task_type")  # fmt: skip
IGNORED = ("peft_type", "peft_version", "inference_mode", "revision", "lora_dropout", "auto_mapping")


@dataclass(frozen=True)
class Adapter:
    """What --lora asks for."""

    rank: int
    alpha: float = 32.0  # B A is multiplied by alpha/rank
    targets: tuple[str, ...] = ()  # last names of linear maps, such as q_proj; none: all but the head


def check_peft(what: str) -> None:
    """Raise ModelError, which begins with `what`, where peft is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{what}: to use an adapter (LoRA), run: pip install peft")


# ---------------------------------------------------------------------------------------------------------------------
# A model and its adapter
# ---------------------------------------------------------------------------------------------------------------------


def begin(model: PreTrainedModel, base: str, adapter: Adapter) -> None:
    """Make a loaded model fit to be trained: with a new adapter, or without one, all weights by themselves.

    An adapter that it was loaded with becomes a part of the weights. Raises ModelError as `add`, and where a new one
    would stand beside it, on a base that is in no file.
    """
    if has_adapter(model) and adapter.rank:
        raise ModelError(
            f"--lora {adapter.rank}: --model {base} is an adapter already, and a new one needs a whole model below it. "
            "Name the model/ of a run with --merge, or go on with the adapter by --resume."
        )
    merge(model)
    if adapter.rank:
        add(model, base, adapter)


def add(model: PreTrainedModel, base: str, adapter: Adapter) -> None:
    """Put a new adapter into the model, and freeze all other weights. A is drawn from PyTorch's random numbers.

    `base` is the name or path of the model, which the adapter's files will give.

    Raises ModelError where peft is missing, or for a target that is no linear map of the model.
    """
    check_peft(f"--lora {adapter.rank}")
    from peft import LoraConfig, inject_adapter_in_model

    names = linear_maps(model)
    for target in adapter.targets:
        if target not in names:
            allowed = f"there are {', '.join(names)}" if names else "there are none"
            raise ModelError(
                f"--lora-targets {target}: {type(model).__name__} has no linear map of this name in its layers; "
                f"{allowed}."
            )
    if not names:
        raise ModelError(f"--lora {adapter.rank}: {type(model).__name__} has no linear maps in its layers.")
    targets = list(adapter.targets or names)
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    excluded = [re.escape(name) for name in head if name.rpartition(".")[2] in targets]
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # it takes any number
        target_modules=targets,
        exclude_modules="|".join(excluded) or None,  # of whole names; in a list, they would be of ends of names
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=os.path.abspath(base) if os.path.exists(base) else base,
    )
    inject_adapter_in_model(config, model, NAME)


def linear_maps(model: PreTrainedModel) -> list[str]:
    """The last names of the linear maps below the head, in alphabetical order."""
    head = model.get_output_embeddings()
    modules = backbone(model).named_modules()
    return sorted(
        {name.rpartition(".")[2] for name, m in modules if isinstance(m, nn.Linear | Conv1D) and m is not head}
    )


def has_adapter(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "peft_config", None))


def is_adapted(module: nn.Module) -> bool:
    """Is it a linear map with an adapter?"""
    return hasattr(module, "lora_A")


def is_plain(module: nn.Module) -> bool:
    """Does `whole_weight` say all of what the map computes, but for a bias: a linear map, with BA beside it or not?"""
    if not is_adapted(module):
        return type(module) is nn.Linear
    plain: Any = module
    return type(plain.base_layer) is nn.Linear and not plain.lora_variant and not any(plain.lora_bias.values())


@torch.no_grad()
def whole_weight(module: Any) -> torch.Tensor:
    """The matrix of a linear map, W + s·BA where it has an adapter that is not turned off: then a copy, in fp32.

    (out, in), or (in, out) for a map that keeps its weight so
    """
    if not is_adapted(module) or module.disable_adapters:
        return module.weight
    return module.base_layer.weight + product(module, module.lora_A[NAME].weight, module.lora_B[NAME].weight)


def product(module: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """s·BA in the shape of the map's weight, in fp32 also inside of an autocast. (rank, in), (out, rank)"""
    with torch.autocast(a.device.type, enabled=False):
        made = (b.float() @ a.float()) * module.scaling[NAME]
    return made.T if module.fan_in_fan_out else made


@contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes what its base does; nothing changes for a model without an adapter."""
    layers: list[Any] = [module for module in model.modules() if is_adapted(module)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge(model: PreTrainedModel) -> None:
    """Make the adapter a part of the weights, all of which are trained from there on. Nothing to do without one."""
    for name, module in [(name, module) for name, module in model.named_modules() if is_adapted(module)]:
        base: Any = module.base_layer
        base.weight.data = whole_weight(module).to(base.weight.dtype)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base)
    if has_adapter(model):
        del model.peft_config
        model._hf_peft_config_loaded = False
        model.requires_grad_(True)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def adapter_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A and B of every map, by the names that the model has for them."""
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def save_adapter(model: PreTrainedModel, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write an adapter as peft does; `state` is what `adapter_state` gave, or a copy of it."""
    config: Any = copy.copy(model.peft_config[NAME])
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set comes in another order in each process
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {PREFIX + name.replace(f".{NAME}.", "."): value.contiguous().cpu() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def save_merged(model: PreTrainedModel, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the model with the adapter in its weights, on the CPU, as a whole model that knows of no adapter."""
    adapted: dict[str, Any] = {name: module for name, module in model.named_modules() if is_adapted(module)}
    weights: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # what is tied stays tied
    for name, value in model.state_dict().items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        owner, _, last = name.rpartition(".")
        plain = owner.removesuffix(".base_layer")
        if plain in adapted and owner != plain:
            if last == "weight":
                a, b = (state[f"{plain}.{matrix}.{NAME}.weight"].to(value.device) for matrix in ("lora_A", "lora_B"))
                value = (value + product(adapted[plain], a, b)).to(value.dtype)
            name = f"{plain}.{last}"
        weights[name] = copies.setdefault(value.data_ptr(), value.cpu())
    model.save_pretrained(folder, state_dict=weights)


def is_adapter(model: str) -> bool:
    """Is it a folder with an adapter and no model of its own?"""
    folder = Path(model)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path, named_so: str) -> str:
    """The name or path of an adapter's base model. Raises ModelError where it is not given, or not readable here."""
    return str(settings_of(folder, named_so)["base_model_name_or_path"])


def settings_of(folder: Path, named_so: str) -> dict[str, Any]:
    """The fields of adapter_config.json that are read here. Raises ModelError for an adapter of another kind."""
    check_peft(named_so)
    from peft import LoraConfig

    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(found, dict)
    except (ValueError, RecursionError, AssertionError):
        raise ModelError(f"{named_so}: its {CONFIG} is no JSON object. Is it damaged?") from None
    if not found.get("base_model_name_or_path"):
        raise ModelError(
            f"{named_so}: it is an adapter (LoRA) that does not say of which model: {CONFIG} has no "
            "base_model_name_or_path. Write it there, or merge the adapter into its base model and name that folder."
        )
    defaults, kind = LoraConfig().to_dict(), found.get("peft_type", "LORA")
    known = [*READ, *IGNORED, *(name for name, value in found.items() if not value or value == defaults.get(name))]
    other = [name for name in found if name not in known]
    if kind != "LORA" or other:
        raise ModelError(
            f"{named_so}: it is an adapter of a kind that is not read here "
            f"({kind if kind != 'LORA' else other[0]}). Merge it into its base model with peft, and name that folder."
        )
    return {name: found[name] for name in READ if name in found}


def check_adapter(folder: Path, named_so: str) -> None:
    """Raise ModelError for an adapter that cannot be loaded, its base included, as far as files show it."""
    base = base_of(folder, named_so)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{named_so}: there are no weights in it ({WEIGHTS}).")
    fault = damage(folder / WEIGHTS)
    if fault:
        raise ModelError(f"{named_so}: {WEIGHTS} {fault}. Copy or download it again.")
    if Path(base).resolve() == folder.resolve() or (os.path.isdir(base) and is_adapter(base)):
        raise ModelError(f"{named_so}: its base model, {base}, is an adapter itself. Merge that first.")
    check_files(base, f"{named_so}, whose base model is")


def load_adapter(model: PreTrainedModel, folder: Path, named_so: str) -> None:
    """Put the adapter of a folder into its base model, fit to be trained further.

    Raises ModelError where the two do not go together.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = LoraConfig(**settings_of(folder, named_so))
    result: Any
    with named(f"{named_so}: its adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, NAME)
        result = set_peft_model_state_dict(model, load_file(folder / WEIGHTS), NAME)
    lacking = [name for name in result.missing_keys if ".lora_" in name]
    if lacking or result.unexpected_keys:
        raise ModelError(
            f"{named_so}: its adapter is not of the model {config.base_model_name_or_path}: "
            f"{(lacking or result.unexpected_keys)[0]} is {'missing' if lacking else 'not in that model'}."
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if is_adapted(head) or is_adapted(embedding):
        raise ModelError(
            f"{named_so}: its adapter changes the head or the embedding, which is not read here. Merge it into its "
            "base model with peft, and name that folder."
        )
