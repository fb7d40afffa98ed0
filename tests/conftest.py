"""Small random models and a character tokenizer: no network, no GPU, no download."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(1)  # models this small gain nothing from more, and lose much beside other work


def random_model(vocab_size: int = 64, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A Qwen2 with two layers, an untied head, and logits that are far from uniform."""
    torch.manual_seed(seed)
    options = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": False}
    config = Qwen2Config(
        vocab_size=vocab_size,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **{**options, **changes},
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" not in name and "norm" not in name:
                parameter.mul_(4)  # the default initialization is so small that every token is equally likely
    return model


@pytest.fixture
def new_model() -> Callable[..., PreTrainedModel]:
    return random_model


@pytest.fixture
def model() -> PreTrainedModel:
    return random_model()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character: <pad>, <eos>, <unk>, then letters, digits and signs; 64 in all."""
    characters = string.ascii_lowercase + string.digits + " \n.,:;?!+-*/=()[]{}\\_'\"$%"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters[:61]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def padded_batch(lengths: list[tuple[int, int, int]], vocab_size: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random rows of (padding on the left, prompt, answer) tokens: input_ids, attention_mask, response_mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(sum, lengths))
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attention_mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    response_mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, (pad, prompt, answer) in enumerate(lengths):
        end = pad + prompt + answer
        input_ids[row, pad:end] = torch.randint(2, vocab_size, (prompt + answer,), generator=generator)
        input_ids[row, end - 1] = 1  # EOS
        attention_mask[row, pad:end] = True
        response_mask[row, pad + prompt : end] = True
    return input_ids, attention_mask, response_mask
