"""Rows that get another prompt where one has ended: the same completions as in one batch, for fewer steps."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from conftest import random_model
from test_decoding import NAMES, model_of
from transformers import Gemma2Config, Gemma2ForCausalLM

import rollout
from policy import decoding, refilling
from policy.decoding import Sampling, decode
from policy.refilling import Request, decode_batches, decode_each

SAMPLING = Sampling(max_new_tokens=45, temperature=0.9, top_p=1.0, stop_ids=[1])


def requests_of(count: int, each: int = 3) -> list[Request]:
    """Prompts of 1 to 11 tokens, sorted by length; `each` completions of every one."""
    numbers = random.Random(0)
    prompts = sorted(
        ([numbers.randrange(2, 64) for _ in range(numbers.randrange(1, 12))] for _ in range(count)), key=len
    )
    return [Request(prompt, rollout.noise_key(n, g)) for n, prompt in enumerate(prompts) for g in range(each)]


def in_one_batch(model, requests, sampling=SAMPLING) -> list[list[int]]:
    """The completions as the usual sampler gives them."""
    keys = torch.tensor([request.key for request in requests])
    decoded = decode(model, [request.prompt for request in requests], keys, sampling)
    return [ids[:length] for ids, length in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_completions_are_those_of_one_batch_however_few_rows_there_are(name):
    model, requests = model_of(name), requests_of(9)
    expected = in_one_batch(model, requests)
    assert len({len(tokens) for tokens in expected}) > 5, "they end at many places"
    for rows in (3, 8, 100):
        found = dict(decode_each(model, requests, SAMPLING, rows))
        assert [found[number] for number in range(len(requests))] == expected


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 16])
def test_a_completion_ends_at_the_limit_wherever_a_block_ends(model, limit):
    requests = requests_of(9)
    sampling = Sampling(limit, 0.9, 1.0, [1])
    expected = in_one_batch(model, requests, sampling)
    assert {len(tokens) for tokens in expected if tokens[-1] != 1} == {limit}
    found = dict(decode_each(model, requests, sampling, 4))
    assert [found[number] for number in range(len(requests))] == expected


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.6}])
def test_greedy_and_narrow_sampling_are_the_same_too(model, options):
    requests = requests_of(9)
    sampling = Sampling(**{"max_new_tokens": 30, "temperature": 1.0, "top_p": 1.0, "stop_ids": [1], **options})
    found = dict(decode_each(model, requests, sampling, 5))
    assert [found[number] for number in range(len(requests))] == in_one_batch(model, requests, sampling)


def counted(monkeypatch) -> list[int]:
    """The rows of each forward pass of one token."""
    rows: list[int] = []
    step = decoding.FastSteps.step

    def count(self, places, layer, tokens, *rest):
        rows.append(len(tokens))
        return step(self, places, layer, tokens, *rest)

    monkeypatch.setattr(decoding.FastSteps, "step", count)
    return rows


def test_a_queue_costs_the_sum_of_its_completions_and_not_the_longest_of_each_batch(model, monkeypatch):
    """160 completions of 1 to 100 tokens in 16 rows: two fifths of the forward passes of ten batches are saved, and
    few rows of the others are of completions that have ended."""
    requests = requests_of(160, each=1)
    sampling = Sampling(100, 1.0, 1.0, [1])
    rows = counted(monkeypatch)
    lengths = [len(tokens) for _, tokens in decode_each(model, requests, sampling, 16)]
    refilled = list(rows)
    rows.clear()
    dict(decode_batches(model, requests, sampling, 16))
    in_batches = list(rows)
    assert len(refilled) < 0.62 * len(in_batches)
    assert sum(refilled) < 1.08 * sum(lengths) and sum(refilled) < sum(in_batches)
    assert len(refilled) < 1.2 * sum(lengths) / 16


def test_a_prompt_is_computed_once_for_the_completions_that_begin_together(model, monkeypatch):
    prompts = []
    plain = refilling.of_prompts
    monkeypatch.setattr(refilling, "of_prompts", lambda model, ids: prompts.append(len(ids)) or plain(model, ids))
    dict(decode_each(model, requests_of(8, each=4), SAMPLING, 32))
    assert prompts == [8]


def test_each_completion_comes_when_it_has_ended(model):
    """And not when all have: the first long before the last prompt begins."""
    made = []
    for number, tokens in decode_each(model, requests_of(40, each=1), SAMPLING, 4):
        made.append((number, len(tokens)))
    order = [number for number, _ in made]
    assert sorted(order) == list(range(40)) and order != sorted(order)
    assert max(order[:10]) < 20


def test_a_row_that_nan_has_reached_ends_sampling(model, monkeypatch):
    seen = []

    def head(hidden, plain=model.lm_head.forward):
        seen.append(plain(hidden))
        return seen[-1] * (torch.nan if len(seen) == 20 else 1)

    monkeypatch.setattr(model.lm_head, "forward", head)
    with pytest.raises(FloatingPointError, match="the model gives NaN"):
        dict(decode_each(model, requests_of(20), SAMPLING, 4))


def test_what_stands_in_a_cache_before_it_is_filled_counts_for_nothing(model, monkeypatch):
    """Rows read as many places as the longest one has; 0 times what is no number would be no number."""
    requests = requests_of(23)
    expected = in_one_batch(model, requests)
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: plain(*shape, **options).fill_(torch.nan))
    found = dict(decode_each(model, requests, SAMPLING, 7))
    assert [found[number] for number in range(len(requests))] == expected


# --- from texts ----------------------------------------------------------------------------------------------------

PROMPTS = ["a+b=", "what is 2*(3+4)?", "x", "1", "a+b="]
OPTIONS = {"max_new_tokens": 40, "temperature": 0.9, "seed": 3}


def gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = Gemma2Config(
        **sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0,
        bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 256])
def test_each_completion_is_that_of_sample_also_by_a_models_own_pass(tokenizer, fast, rows):
    """A prompt that stands twice gets further completions."""
    model = random_model() if fast else gemma()
    assert decoding.is_fast(model) == fast
    expected = rollout.sample(model, tokenizer, PROMPTS, 3, **OPTIONS)
    found = {
        (each.prompt, each.number): each
        for each in rollout.sample_each(model, tokenizer, PROMPTS, 3, rows=rows, **OPTIONS)
    }
    pairs = [(p, g) for p in range(5) for g in range(3)]
    assert [found[pair].text for pair in pairs] == expected.texts
    assert [found[pair].length for pair in pairs] == expected.lengths.tolist()
    assert [found[pair].truncated for pair in pairs] == expected.truncated.tolist()
    assert {found[0, g].text for g in range(3)} != {found[4, g].text for g in range(3)}


def test_what_is_done_is_left_out_and_the_rest_is_as_it_was(model, tokenizer):
    whole = {(each.prompt, each.number): each for each in rollout.sample_each(model, tokenizer, PROMPTS, 3, **OPTIONS)}
    done = {(0, 0), (0, 2), (3, 1), (4, 0), (4, 1), (4, 2)}
    rest = list(rollout.sample_each(model, tokenizer, PROMPTS, 3, done=done, **OPTIONS))
    assert {(each.prompt, each.number) for each in rest} == whole.keys() - done
    assert all(whole[each.prompt, each.number] == each for each in rest)
    everything = {(each.prompt, each.number) for each in whole.values()}
    assert list(rollout.sample_each(model, tokenizer, PROMPTS, 3, done=everything, **OPTIONS)) == []


def test_where_memory_runs_out_half_as_many_rows_go_on_with_what_is_left(model, tokenizer, monkeypatch):
    expected = rollout.sample(model, tokenizer, PROMPTS, 3, **OPTIONS)
    tried = []

    def short_of_memory(model, requests, sampling, rows, progress):
        tried.append((len(requests), rows))
        for count, each in enumerate(decode_each(model, requests, sampling, rows, progress)):
            if rows > 2 and count == 3:
                raise torch.OutOfMemoryError
            yield each

    monkeypatch.setattr(rollout, "decode_each", short_of_memory)
    with pytest.warns(UserWarning, match=r"going on with [42] completions at once"):
        found = list(rollout.sample_each(model, tokenizer, PROMPTS, 3, rows=8, **OPTIONS))
    assert tried == [(15, 8), (12, 4), (9, 2)]
    assert Counter(each.text for each in found) == Counter(expected.texts)


def test_a_single_completion_without_room_ends_in_a_sentence(model, tokenizer, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError
        yield

    monkeypatch.setattr(rollout, "decode_each", none)
    with pytest.raises(torch.OutOfMemoryError, match=r"one completion of up to 40 tokens\. Lower --max-new-tokens"):
        list(rollout.sample_each(model, tokenizer, PROMPTS, 3, rows=1, **OPTIONS))


def test_progress_tells_of_about_as_many_tokens_as_are_made(model, tokenizer):
    told: list[int] = []
    found = list(rollout.sample_each(model, tokenizer, PROMPTS, 8, rows=8, progress=told.append, **OPTIONS))
    assert sum(told) == pytest.approx(sum(each.length for each in found), rel=0.25)
