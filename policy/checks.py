"""Can completions of a model be sampled and trained here? `load` looks before anything is computed.

transformers has hundreds of architectures, and no list says which of them decode rows of unlike length, take a mask of
any form, or keep a state that this project's sampler can divide. So `check_sampling` tries: what the sampler and the
trainer make of a few tokens must be what the model makes of them by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, logging
from transformers.cache_utils import DynamicCache

from policy.decoding import NOT_FINITE, Sampling, decode
from policy.logprobs import Packing, token_logps
from policy.model import autocast, hidden_states, logits_from_hidden, takes_any_mask, text_config

PROMPTS = ([5, 6, 7, 8], [9])  # token ids; unlike lengths, so that the second is padded
# Differences of log-probabilities, in nats, that rounding explains: in fp32, and in bf16, where hundredths are common.
EXACT, ROUNDED = 0.01, 0.5
GROUP_SIZE, NEW_TOKENS = 3, 2
INSTEAD = "Take another model: Llama, Qwen, Gemma and most others that have attention layers only are right."


def check_model(model: PreTrainedModel) -> None:
    """Raise NotImplementedError for a model that the sampler or the trainer would get wrong."""
    check_cache(model)
    check_sampling(model)


def check_cache(model: PreTrainedModel) -> None:
    """Raise NotImplementedError for a model that keeps another state than keys and values: rows could not leave."""
    if not all(hasattr(layer, "batch_repeat_interleave") for layer in DynamicCache(config=model.config).layers):
        raise NotImplementedError(
            f"{type(model).__name__} has layers that keep another state than keys and values (linear attention, a "
            "state space, a convolution). Completions cannot be sampled from it here; take one of attention layers "
            "only."
        )


def check_sampling(model: PreTrainedModel) -> None:
    """Raise NotImplementedError where sampler and trainer do not give the log-probabilities of the model itself.

    The message says what differs, or which error the first tokens end in.
    """
    name = type(model).__name__
    try:
        with undisturbed(model):
            differences = differences_from_own_pass(model)
    except torch.OutOfMemoryError:
        raise
    except FloatingPointError as error:
        raise NotImplementedError(f"{name} cannot be trained: {error}") from error
    except Exception as error:  # whatever it is, it would end a run
        reason = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise NotImplementedError(
            f"Completions cannot be sampled from {name} here: two tokens of two prompts end in "
            f"{type(error).__name__}: {reason}. {INSTEAD}"
        ) from error
    exact = model.dtype == torch.float32 and model.device.type != "cuda"  # there products are in bf16
    for what, difference in differences.items():
        if not difference <= (EXACT if exact else ROUNDED):
            check_head(model)
            raise NotImplementedError(
                f"{what} {name} differ by up to {difference:.2g} from those of its forward pass over each sequence "
                f"alone: it reads padding, positions or its cache in a way that is not known here. {INSTEAD}"
            )


@torch.no_grad()
def differences_from_own_pass(model: PreTrainedModel) -> dict[str, float]:
    """Largest differences of log-probabilities from those of the model over unpadded sequences, by what gave them.

    Completions of two tokens are sampled to each of PROMPTS, and then go through the trainer as one batch.
    """
    vocabulary, device = text_config(model).vocab_size, model.device
    prompts = [[token % vocabulary for token in prompt] for prompt in PROMPTS]
    keys = torch.arange(len(prompts) * GROUP_SIZE, device=device)
    decoded = decode(model, prompts, keys, Sampling(NEW_TOKENS, temperature=1.0, top_p=1.0, stop_ids=[-1]))
    width = max(map(len, prompts))
    input_ids = F.pad(decoded.tokens, (width, 0))  # (N, L) -> (N, T)
    response_mask = F.pad(torch.ones_like(decoded.tokens, dtype=torch.bool), (width, 0))
    attention_mask = response_mask.clone()
    alone = []
    for number, prompt in enumerate(prompts):
        rows, start = slice(number * GROUP_SIZE, (number + 1) * GROUP_SIZE), width - len(prompt)
        input_ids[rows, start:width] = torch.tensor(prompt, device=device)
        attention_mask[rows, start:] = True
        with autocast(model):
            logits = model(input_ids=input_ids[rows, start:]).logits[:, -NEW_TOKENS - 1 : -1].float()
        alone.append(logits.log_softmax(-1).gather(2, decoded.tokens[rows, :, None]).squeeze(2))

    def trained(packing: Packing | None) -> torch.Tensor:
        return token_logps(model, input_ids, attention_mask, response_mask, packing=packing)[0][:, -NEW_TOKENS:]

    found = {
        "The sampled log-probabilities of": decoded.logps,
        "The trained log-probabilities of": trained(None),
    }
    if takes_any_mask(model):
        together = "The trained log-probabilities, with several rows in one sequence, of"
        found[together] = trained([[GROUP_SIZE] * len(prompts)])
    return {what: float((logps - torch.cat(alone)).abs().max()) for what, logps in found.items()}


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, nothing is printed, and random numbers that are drawn are not missing afterwards."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise NotImplementedError where `logits_from_hidden` is not what the model itself computes."""
    input_ids = torch.arange(1, 5, device=model.device)[None]
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    expected = model(input_ids=input_ids, attention_mask=attention_mask.long()).logits.float()
    if not expected.isfinite().all():
        raise NotImplementedError(f"{type(model).__name__} cannot be trained: {NOT_FINITE}")
    found = logits_from_hidden(model, hidden_states(model, input_ids, attention_mask))
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise NotImplementedError(
            f"The output head of {type(model).__name__} computes more than a linear map, a factor and a soft cap. "
            "Add what it does to logits_from_hidden and to vocabulary_gradients in policy/model.py."
        )
