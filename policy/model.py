"""The model: load it, run it forward, and make logits of its hidden states.

`load` refuses what the rest of `policy` cannot compute. `hidden_states` and `logits_from_hidden` are the two halves of
the forward pass: decoding (policy/decoding.py) and training (policy/logprobs.py) use the same head at the same
temperature, so that the importance ratio (7) starts at 1. The letters of shapes are in the docstring of dagrpo.py.
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
    `accelerate`), and NotImplementedError for a head that computes something `logits_from_hidden` does not know, or
    for layers that keep another state than keys and values.
    """
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
    policy = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or torch.float32, **options, **weights)
    policy.to(device)  # type: ignore[arg-type]
    policy.eval()  # no dropout: the ratio compares the policy with itself
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_cache(policy)
    check_head(policy)
    return policy, tokenizer


def check_cache(model: PreTrainedModel) -> None:
    """Raise NotImplementedError for a model that keeps another state than keys and values: rows could not leave."""
    if not all(hasattr(layer, "batch_repeat_interleave") for layer in DynamicCache(config=model.config).layers):
        raise NotImplementedError(
            f"{type(model).__name__} has layers that keep another state than keys and values (linear attention, a "
            "state space, a convolution). Completions cannot be sampled from it here; take one of attention layers "
            "only."
        )


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise NotImplementedError where `logits_from_hidden` is not what the model itself computes."""
    input_ids = torch.arange(1, 5, device=model.device)[None]
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    expected = model(input_ids=input_ids, attention_mask=attention_mask.long()).logits.float()
    found = logits_from_hidden(model, hidden_states(model, input_ids, attention_mask))
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise NotImplementedError(
            f"The output head of {type(model).__name__} computes more than a linear map, a factor and a soft cap. "
            "Add what it does to logits_from_hidden and to vocabulary_gradients in policy/model.py."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Forward pass and head
# ---------------------------------------------------------------------------------------------------------------------


def autocast(model: PreTrainedModel) -> torch.autocast:
    """bf16 matrix products on CUDA over fp32 weights; nothing on a CPU or for weights of another type."""
    enabled = model.device.type == "cuda" and model.dtype == torch.float32
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled)


def hidden_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # (N, L)
    attention_mask: torch.Tensor,  # (N, T) of the cached tokens and the new ones
    cache: DynamicCache | None = None,
) -> torch.Tensor:  # (N, L, H)
    """Last hidden states; positions count real tokens, so that padding on the left changes nothing."""
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    output = model.base_model(
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
    plain = model.config._attn_implementation == "sdpa" and all(type(layer) is DynamicLayer for layer in layers)
    return plain and not getattr(model.config, "alibi", False)  # ALiBi makes its bias from the mask of single tokens


def logits_from_hidden(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's head makes of hidden states, in fp32. (..., H) -> (..., V)"""
    logits = model.get_output_embeddings()(hidden).float()
    scale, cap = head_scale_and_cap(model)
    if scale != 1:
        logits = logits * scale
    return cap * torch.tanh(logits / cap) if cap else logits


def head_scale_and_cap(model: PreTrainedModel) -> tuple[float, float | None]:
    """What some heads do to logits: a factor (Cohere, Granite) and a soft cap (Gemma 2)."""
    scale = getattr(model.config, "logit_scale", None) or 1.0
    divisor = getattr(model.config, "logits_scaling", None) or 1.0
    return scale / divisor, getattr(model.config, "final_logit_softcapping", None)


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
