"""The model: load it, run it forward, and make logits of its hidden states.

`load` refuses what the rest of `policy` cannot compute (policy/checks.py). `hidden_states` and `logits_from_hidden` are
the two halves of the forward pass: decoding (policy/decoding.py) and training (policy/logprobs.py) use the same head at
the same temperature, so that the importance ratio (7) starts at 1. The letters of shapes are in the docstring of
dagrpo.py.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging,
    modeling_gguf_pytorch_utils,
)
from transformers.cache_utils import DynamicCache, DynamicLayer


class ModelError(ValueError):
    """A model that cannot be used; the message names flag and path, the fault, and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def load(
    model: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    flag: str = "--model",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a Hub name, a local directory, or a `.gguf` file.

    A directory may hold an adapter: then the base model that it names is loaded, with the adapter in it
    (policy/lora.py).

    The weights are fp32 unless `dtype` says otherwise, whatever the file holds: AdamW needs fp32 master weights, and
    many CPUs multiply bf16 matrices a hundred times slower. The device is the GPU where there is one. Code that comes
    with a model runs only with `trust_remote_code`. `check_files` tells before what can be seen without loading.

    Raises ModelError, whose message begins with `flag` and the model, where it cannot be read, is damaged, or is no
    language model; and NotImplementedError for one whose completions the sampler or the trainer would get wrong.
    """
    from policy import lora  # neither above: both import this module
    from policy.checks import check_model

    source, named_so = model, f"{flag} {model}"
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # None would ask at the terminal
    weights: dict[str, Any] = {}
    if lora.is_adapter(model):
        base, of_base = lora.base_of(Path(model), named_so), f"{named_so}, whose base model is"
        policy, tokenizer = load(base, device, dtype, flag=of_base, **options)
        lora.load_adapter(policy, Path(model), named_so)
        if (Path(model) / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(model, named_so, options)
        check_loaded(policy, tokenizer, named_so)
        with named_model(named_so):
            check_model(policy)
        return policy, tokenizer
    if model.endswith(".gguf"):
        path = Path(model)
        # Packed weights cannot be trained: they are unpacked once, here.
        source, options = str(path.parent), {"gguf_file": path.name}
        weights = {"quantization_config": GgufConfig(dequantize=True)}
        modeling_gguf_pytorch_utils.tqdm = functools.partial(tqdm, disable=None)  # its bar knows no switch
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with named(named_so):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or torch.float32, output_loading_info=True, **options, **weights
        )
    policy, info = loaded
    if info["missing_keys"]:  # transformers fills them in at random
        raise ModelError(
            f"{named_so}: the checkpoint lacks {len(info['missing_keys'])} of the model's tensors, such as "
            f"{min(info['missing_keys'])}. Is it whole, and of this architecture?"
        )
    tokenizer = load_tokenizer(source, named_so, options)
    check_loaded(policy, tokenizer, named_so)
    policy.to(device)
    if policy.device.type == "cpu":
        # Out of the file's memory: there a tensor may begin at any byte, and a matrix product rounds by where it does,
        # so that a resumed run would not be equal to one that never stopped.
        for parameter in policy.parameters():
            parameter.data = parameter.data.clone()
    policy.eval()  # no dropout: the ratio compares the policy with itself
    with named_model(named_so):
        check_model(policy)
    return policy, tokenizer


@contextmanager
def named_model(named_so: str) -> Iterator[None]:
    """Inside, a model is looked at: what is not done for it here is told with its name."""
    try:
        yield
    except NotImplementedError as error:
        raise NotImplementedError(f"{named_so}: {error}") from error


def load_tokenizer(source: str, named_so: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """A tokenizer that can pad. Raises ModelError where it cannot be read."""
    with named(f"{named_so}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def named(what: str) -> Iterator[None]:
    """Inside is one call of transformers: whatever it raises for a file is told as a ModelError about `what`.

    A file can be wrong in so many ways that there is no list of what it raises; nothing of this program runs inside.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its tables of tensors say in 20 lines what the error says in one
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(f"{what} {cause(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def cause(error: Exception) -> str:
    """What transformers complains about, in a few words."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            "comes with Python code of its own, and this program does not run code from model folders. If you have "
            "read that code and trust it: --trust-remote-code."
        )
    if "Weights only load failed" in text:
        return (
            "has a pickle file that holds more than weights, and that may run code when it is read: it is not read. "
            "Take weights in safetensors format."
        )
    if "ignore_mismatched_sizes" in text:
        return "has weights of other shapes than its config.json says. Is config.json that of these weights?"
    if "Unrecognized configuration class" in text:
        kind = re.search(r"configuration class <class '[\w.]*?(\w+)Config'>", text)
        name = kind.group(1) if kind else "another kind"
        return f"is no causal language model ({name}). Take one that writes text from left to right: Qwen, Llama, ..."
    if "model type `" in text and "does not recognize" in text:
        name = text.split("model type `")[1].split("`")[0]
        return (
            f"is of the architecture {name!r}, which this transformers does not know. Run: pip install -U transformers"
        )
    if isinstance(error, OSError) and re.search("is not a local folder|couldn't connect|Can't load", text):
        return (
            "is neither a folder nor a model that the Hub gives out. Check the name, the network, and `hf auth login`."
        )
    line = (text.strip().splitlines() or ["no message"])[0].rstrip(".:")
    if isinstance(error, ImportError):
        return f"cannot be read without a package that is missing ({line[:200]})."
    return f"cannot be read ({type(error).__name__}: {line[:200]}). Is it whole? Copy or download it again."


def looks_like_path(source: str, slashes: int = 1) -> bool:
    """Is it meant as a path, not as a Hub name, which is `name` or `owner/name` (of data with a configuration behind)?

    A name that begins with a folder of this machine is a path.
    """
    first = re.split(r"[/\\]", source)[0]
    return (
        not re.fullmatch(r"[\w.\-/]+", source)
        or source.startswith((".", "/"))
        or source.count("/") > slashes
        or ("/" in source and os.path.isdir(first))
    )


def check_files(model: str, flag: str) -> None:
    """Raise ModelError for what can be seen of a path without loading anything. Seconds at most, for any size.

    A name that is no path of this machine is left to the Hub.
    """
    path, named_so = Path(model), f"{flag} {model}"
    if model.endswith(".gguf"):
        if not os.path.isfile(model):
            raise ModelError(f"{named_so}: there is no such file.")
        if first_bytes(path, 4) != b"GGUF":
            raise ModelError(f"{named_so}: it is no GGUF file. Was it downloaded whole, and not as a web page?")
        missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
        if missing:
            raise ModelError(f"{named_so}: to read a .gguf file, run: pip install {' '.join(missing)}")
    elif os.path.isfile(model):
        raise ModelError(f"{named_so}: it is a file. Name the folder with config.json, or a .gguf file.")
    elif os.path.isdir(model):
        check_folder(path, named_so)
    elif not model.strip():
        raise ModelError(f"{flag}: the name of the model is empty.")
    elif looks_like_path(model):
        raise ModelError(f"{named_so}: there is no such folder.")


def check_folder(folder: Path, named_so: str) -> None:
    """Raise ModelError for a folder without a model, its tokenizer, or whole weights."""
    from policy import lora

    if lora.is_adapter(str(folder)):
        lora.check_adapter(folder, named_so)
        return
    config = {}
    if (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise ModelError(f"{named_so}: its config.json is no JSON. Is it damaged?") from None
        config = config if isinstance(config, dict) else {}
    if not (config.get("model_type") or config.get("auto_map")):
        if (folder / "model" / "config.json").is_file():
            raise ModelError(f"{named_so}: it is the folder of a run. Did you mean {folder / 'model'}?")
        if "learning_rate" in config or (folder / "metrics.jsonl").exists():
            raise ModelError(f"{named_so}: it is the folder of a run that has saved no model. Take another one.")
        missing = "has no model_type" if config else "is missing"
        raise ModelError(f"{named_so}: it is no model folder: config.json {missing}.")
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{named_so}: {config['model_type']} has an encoder and is no causal language model. Take one that writes "
            "text from left to right: Qwen, Llama, ..."
        )
    made_for = [str(name) for name in config.get("architectures") or []]
    if made_for and not any("CausalLM" in name or "LMHead" in name or "Generation" in name for name in made_for):
        masked = [name for name in made_for if re.search("MaskedLM|Classification|QuestionAnswering|PreTraining", name)]
        if masked:
            raise ModelError(
                f"{named_so}: {masked[0]} is no causal language model. Take one that writes text from left to right: "
                "Qwen, Llama, ..."
            )
    weights = [*folder.glob("*.safetensors*"), *folder.glob("*.bin")]
    if not weights:
        raise ModelError(f"{named_so}: there are no weights in it (model.safetensors).")
    for path in sorted(folder.glob("*.safetensors")):
        fault = damage(path)
        if fault:
            raise ModelError(f"{named_so}: {path.name} {fault}. Copy or download it again.")
    for index in folder.glob("*.safetensors.index.json"):
        absent = absent_shards(index)
        if absent:
            raise ModelError(
                f"{named_so}: {absent[0]} is missing, which {index.name} names. Copy or download it again."
            )
    names = ("tokenizer*", "vocab.*", "*.model", "merges.txt", "*.tiktoken", "tekken.json")
    if not any(path for name in names for path in folder.glob(name)):
        raise ModelError(
            f"{named_so}: there is no tokenizer in it (tokenizer.json, tokenizer_config.json). Copy those of the model "
            "that it was made of."
        )


def damage(path: Path) -> str:
    """What is wrong with a safetensors file as a whole, from its header and size alone; nothing where it is right."""
    size, start = path.stat().st_size, first_bytes(path, 8)
    if start[:8] == b"version " or size == 0:
        return "is a pointer of Git LFS: run git lfs pull" if size else "is empty"
    (length,) = struct.unpack("<Q", start) if len(start) == 8 else (size,)
    if length + 8 > size:
        return "is damaged or cut off (its header is longer than the file)"
    try:
        header = json.loads(first_bytes(path, 8 + length)[8:])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "is damaged (its header cannot be read)"
    return "" if whole == size else f"is cut off or damaged ({size} bytes, its header says {whole})"


def absent_shards(index: Path) -> list[str]:
    """The files with weights that an index names and that are not beside it; the index itself, where it is broken."""
    try:
        named_there = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return [f"all that can be read of {index.name}"]
    return sorted(str(name) for name in named_there if not (index.parent / str(name)).is_file())


def first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


@torch.no_grad()
def check_loaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, named_so: str) -> None:
    """Raise ModelError where weights are not finite, or the tokenizer has tokens that the model has not."""
    damaged = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.sum().isfinite() and not parameter.isfinite().all()  # the sum alone makes no large copy
    ]
    if damaged:
        raise ModelError(
            f"{named_so}: {len(damaged)} of its {len(list(model.parameters()))} tensors hold NaN or infinity, such as "
            f"{damaged[0]}: the weights are damaged, or a learning rate too high has made them so."
        )
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if weight is None:
        return
    rows = weight.shape[0]
    used = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id]
    # Tokens that were added behind the vocabulary may have no row: Gemma 3's of images, which no text has.
    needed = max([tokenizer.vocab_size, *(token + 1 for token in used if token is not None)])
    if needed > rows:
        raise ModelError(
            f"{named_so}: its tokenizer has {needed} tokens, its embedding {rows}. Is the tokenizer that of another "
            "model?"
        )


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


def head_of(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The output layer, for several calls under one autocast: (..., H) -> (..., V)

    Autocast keeps its bf16 copies of weights that require a gradient, and casts all others at every call. A head that
    does not, such as that of a reference model, is cast here, once: at a vocabulary of 152,000 it has as many bytes as
    a hundred tokens have logits.
    """
    head, device = model.get_output_embeddings(), model.device.type
    if not torch.is_autocast_enabled(device) or type(head) is not torch.nn.Linear or head.weight.requires_grad:
        return head
    dtype = torch.get_autocast_dtype(device)
    weight, bias = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
    return functools.partial(F.linear, weight=weight, bias=bias)


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


def logits_from_hidden(
    model: PreTrainedModel, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """What the model's head makes of hidden states, in fp32; `head` is that of `head_of`. (..., H) -> (..., V)"""
    logits = (head or model.get_output_embeddings())(hidden).float()
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
