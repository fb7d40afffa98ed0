"""The model: load it, run it forward, and make logits of its hidden states.

`load` refuses what the rest of `policy` cannot compute (policy/checks.py). `hidden_states` and `logits_from_hidden` are
the two halves of the forward pass: decoding (policy/decoding.py) and training (policy/logprobs.py) use the same head at
the same temperature, so that the importance ratio (7) starts at 1. The letters of shapes are in the docstring of
dagrpo.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer


def load(
    model: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a Hub name, a local directory, or a `.gguf` file.

    The weights are fp32 unless `dtype` says otherwise, whatever the file holds: AdamW needs fp32 master weights, and
    many CPUs multiply bf16 matrices a hundred times slower. The device is the GPU where there is one.

    Raises FileNotFoundError for a missing `.gguf` file, ImportError where a package that reads it is missing (`gguf`,
    `accelerate`), and NotImplementedError for a model whose completions the sampler or the trainer would get wrong.
    """
    from policy.checks import check_model  # not above: the checks decode, and decoding imports this module

    source = model
    options: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    if model.endswith(".gguf"):
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"--model {model}: there is no such file.")
        missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
        if missing:
            raise ImportError(f"--model {model}: to read a .gguf file, run: pip install {' '.join(missing)}")
        # Packed weights cannot be trained: they are unpacked once, here.
        source, options = str(path.parent), {"gguf_file": path.name}
        weights = {"quantization_config": GgufConfig(dequantize=True)}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype or torch.float32, output_loading_info=True, **options, **weights
    )
    policy, info = loaded
    if info["missing_keys"]:  # transformers fills them in at random
        raise OSError(
            f"--model {model}: the checkpoint lacks {len(info['missing_keys'])} of the model's tensors, such as "
            f"{min(info['missing_keys'])}. Is it whole, and of this architecture?"
        )
    policy.to(device)
    # Out of the file's memory: there a tensor may begin at any byte, and a matrix product rounds by where it does, so
    # that a resumed run would not be equal to one that never stopped.
    for parameter in policy.parameters():
        parameter.data = parameter.data.clone()
    policy.eval()  # no dropout: the ratio compares the policy with itself
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_model(policy)
    return policy, tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# What a configuration says
# ---------------------------------------------------------------------------------------------------------------------


def text_config(model: PreTrainedModel) -> Any:
    """The fields of the language model: of the whole configuration, or of its part where images have another one."""
    return model.config.get_text_config(decoder=True)


def layer_configs(model: PreTrainedModel) -> list[Any]:
    """The same for each layer: in some models (Gemma 4) they have heads of unlike sizes."""
    config = text_config(model)
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * config.num_hidden_layers


def position_limit(model: PreTrainedModel) -> int | None:
    """How many positions a sequence may have; None where there is no limit.

    Of a `longrope` rotation these are the original positions alone: it turns all tokens of a batch otherwise as soon as
    one row is longer, so that log-probabilities would depend on the rows beside, and the sampler's would not be the
    trainer's. (`dynamic` does so beyond max_position_embeddings.)
    """
    config = text_config(model)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    rotations = getattr(config, "rope_parameters", None) or {}
    for rotation in (rotations, *rotations.values()):  # some models have one for each kind of layer
        if isinstance(rotation, dict) and rotation.get("rope_type") == "longrope":
            limits.append(rotation.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)


# ---------------------------------------------------------------------------------------------------------------------
# Forward pass and head
# ---------------------------------------------------------------------------------------------------------------------


def autocast(model: PreTrainedModel) -> torch.autocast:
    """bf16 matrix products on CUDA over fp32 weights; nothing on a CPU or for weights of another type."""
    enabled = model.device.type == "cuda" and model.dtype == torch.float32
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled)


def backbone(model: PreTrainedModel) -> Any:
    """The model without its head; Llama 4 has it under another name than the one it gives."""
    base = model.base_model
    return getattr(model, "model", model) if base is model else base


def hidden_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, L)
    attention_mask: torch.Tensor,  # (N, T) of the cached tokens and the new ones
    cache: DynamicCache | None = None,
) -> torch.Tensor:  # (N, L, H)
    """Last hidden states; positions count real tokens, so that padding on the left changes nothing."""
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    output = backbone(model)(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return output.last_hidden_state


def takes_any_mask(model: PreTrainedModel) -> bool:
    """Does every layer attend through PyTorch's own attention to whatever a (N, 1, T, T) mask allows?"""
    layers = DynamicCache(config=model.config).layers
    config = text_config(model)
    plain = config._attn_implementation == "sdpa" and all(type(layer) is DynamicLayer for layer in layers)
    return plain and not getattr(config, "alibi", False)  # ALiBi makes its bias from the mask of single tokens


def logits_from_hidden(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's head makes of hidden states, in fp32. (..., H) -> (..., V)"""
    logits = model.get_output_embeddings()(hidden).float()
    scale, cap = head_scale_and_cap(model)
    if scale != 1:
        logits = logits * scale
    return cap * torch.tanh(logits / cap) if cap else logits


def head_scale_and_cap(model: PreTrainedModel) -> tuple[float, float | None]:
    """What some heads do to logits: a factor (Cohere, Granite) and a soft cap (Gemma 2)."""
    config = text_config(model)
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return scale / divisor, getattr(config, "final_logit_softcapping", None)


def vocabulary_gradients(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """∂ log π(token)/∂z for z = W h: (e_token − p)/temperature behind a plain head. (M, H), (M,) -> (M, V)

    A bias in the head shifts p alone; a logit factor and a soft cap multiply by their derivative.
    """
    head = model.get_output_embeddings()
    scale, cap = head_scale_and_cap(model)
    with autocast(model):
        logits = head(hidden.to(head.weight.dtype)).float() * scale
    slope = torch.full((), scale, device=logits.device)
    if cap:
        bent = torch.tanh(logits / cap)
        logits, slope = cap * bent, scale * (1 - bent**2)
    gradients = -(logits / temperature).softmax(-1)
    gradients[torch.arange(len(targets), device=targets.device), targets] += 1
    return gradients * slope / temperature
