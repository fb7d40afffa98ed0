"""Small random models and a character tokenizer: no network, no GPU, no download."""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import rollout
from harness.config import EXAMPLE

torch.set_num_threads(1)  # models this small gain nothing from more, and lose much beside other work
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # so do the programs that tests start (docs/speed.md)


def random_model(vocab_size: int = 64, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A Qwen2 with two layers, an untied head, and logits that are far from uniform."""
    torch.manual_seed(seed)
    options = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": False,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    config = Qwen2Config(
        vocab_size=vocab_size, bos_token_id=None, eos_token_id=1, pad_token_id=0, **{**options, **changes}
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


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character: <pad>, <eos>, <unk>, then letters, digits and signs; 64 in all."""
    characters = string.ascii_lowercase + string.digits + " \n.,:;?!+-*/=()[]{}\\_'\"$%"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters[:61]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A question of each level to train on, and another of each to hold out."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("train", "held_out"):
        lines = (EXAMPLE / f"{name}.jsonl").read_text().splitlines()
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:: len(lines) // 6][:6]) + "\n")
    return folder


SOLVED = {"problem": "1+1?", "answer": "2", "solution": "1+1 = 2. so \\boxed{2}"}


def write_questions(path: Path, questions: list) -> str:
    """A JSONL file of questions; a string is a line as it stands."""
    lines = [question if isinstance(question, str) else json.dumps(question) for question in questions]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def completions_of(rollouts) -> list[list[int]]:
    """The token ids of each completion."""
    return [ids[mask].tolist() for ids, mask in zip(rollouts.input_ids, rollouts.response_mask, strict=True)]


def same_drawing(one: str, other: str) -> bool:
    """Are two SVGs the same, but for random names, and for places by less than a thousandth of a point?

    The layout of matplotlib does not fix the last digits of places, and the names of clip paths are their hash.
    """
    clip, number = re.compile(r"p[0-9a-f]{10}"), re.compile(r"-?\d+\.\d+")
    texts = [clip.sub("", text) for text in (one, other)]
    places = [torch.tensor([float(value) for value in number.findall(text)], dtype=torch.double) for text in texts]
    alike = len({number.sub("", text) for text in texts}) == 1 and len(places[0]) == len(places[1])
    return alike and bool(torch.allclose(*places, rtol=0, atol=1e-3))


def padded_batch(lengths: list[tuple[int, int, int]], vocab_size: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random rows of (padding on the left, prompt, completion) tokens: input_ids, attention_mask, response_mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(sum, lengths))
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attention_mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    response_mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, (pad, prompt, completion) in enumerate(lengths):
        end = pad + prompt + completion
        input_ids[row, pad:end] = torch.randint(2, vocab_size, (prompt + completion,), generator=generator)
        input_ids[row, end - 1] = 1  # EOS
        attention_mask[row, pad:end] = True
        response_mask[row, pad + prompt : end] = True
    return input_ids, attention_mask, response_mask


class Casts(TorchDispatchMode):
    """Counts how often a tensor of some shape is made into another type."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten._to_copy.default:
            self.count += arguments[0].shape == self.shape
        return function(*arguments, **(options or {}))


def small_rollouts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, size: int = 4) -> rollout.Rollouts:
    """Completions of at most 20 tokens of three questions."""
    prompts = ["1+1?\n", "what is 2+2?\n", "7\n"]
    return rollout.sample(model, tokenizer, prompts, size, max_new_tokens=20, seed=0)
