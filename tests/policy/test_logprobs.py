"""Log-probabilities and micro-batches: against plain full logits, one unpadded row at a time."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from architectures import config_of, model_of
from conftest import Casts, padded_batch, random_model
from transformers import FalconConfig, FalconForCausalLM
from transformers.cache_utils import DynamicCache

import rollout
from policy import attention, logprobs
from policy.model import hidden_states

ROWS = [(0, 5, 9), (3, 5, 4), (1, 6, 7), (6, 5, 1)]


def plain_logps(model, batch, temperature=1.0):
    """log-softmax over full logits, one unpadded row at a time, laid into (N, T−1)."""
    input_ids, attention_mask, response_mask = batch
    logps, entropies = torch.zeros(len(input_ids), input_ids.shape[1] - 1), torch.zeros(input_ids[:, 1:].shape)
    for row in range(len(input_ids)):
        real = attention_mask[row]
        ids, mask = input_ids[row][real], response_mask[row][real][1:]
        all_logps = (model(input_ids=ids[None]).logits[0, :-1].float() / temperature).log_softmax(-1)
        place = response_mask[row, 1:].clone()
        logps = logps.index_put(
            (torch.tensor([row]), place.nonzero()[:, 0]), all_logps[range(len(mask)), ids[1:]][mask]
        )
        entropies[row, place] = -(all_logps.exp() * all_logps).sum(-1)[mask].detach()
    return logps, entropies


# --- log-probabilities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [logprobs.CHUNK_ELEMENTS, 64 * 3])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logps_equal_plain_log_softmax_values_and_gradients(model, monkeypatch, chunk, temperature):
    """In one piece, and three positions at a time with recomputation in the backward pass."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    batch = padded_batch(ROWS, 64)
    weights = torch.randn(batch[0].shape[0], batch[0].shape[1] - 1)
    gradients = []
    for function in (logprobs.token_logps, lambda m, *b, temperature: plain_logps(m, b, temperature)):
        logps, entropies = function(model, *batch, temperature=temperature)
        gradients.append(torch.autograd.grad((logps * weights).sum(), list(model.parameters())))
        if function is logprobs.token_logps:
            ours = (logps.detach(), entropies.detach())
    torch.testing.assert_close(ours[0], logps.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], entropies, atol=1e-5, rtol=1e-5)
    for found, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_token_logps_in_bf16():
    """The same bf16 hidden states through the same bf16 head, softmax in fp32: equal to bf16's rounding."""
    model = random_model(hidden_size=16).to(torch.bfloat16)
    batch = padded_batch([(0, 5, 6), (0, 3, 8)], 64)
    ours, plain = logprobs.token_logps(model, *batch)[0], plain_logps(model, batch)[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, atol=0.15, rtol=0.05)
    weights = torch.randn_like(ours)
    head = model.get_output_embeddings().weight
    found, other = (torch.autograd.grad((v * weights).sum(), head)[0].float() for v in (ours, plain))
    assert float((found - other).norm() / other.norm()) < 0.05


def test_padding_and_garbage_in_padded_places_change_nothing(model):
    input_ids, attention_mask, response_mask = padded_batch(ROWS, 64)
    reference = logprobs.token_logps(model, input_ids, attention_mask, response_mask)[0]
    garbage = torch.where(attention_mask, input_ids, 63)
    torch.testing.assert_close(logprobs.token_logps(model, garbage, attention_mask, response_mask)[0], reference)
    pad = torch.zeros(4, 5, dtype=torch.bool)
    further = logprobs.token_logps(
        model,
        torch.cat([torch.full((4, 5), 17), input_ids], 1),
        torch.cat([pad, attention_mask], 1),
        torch.cat([pad, response_mask], 1),
    )[0]
    torch.testing.assert_close(further[:, 5:], reference, atol=1e-5, rtol=1e-5)
    assert torch.equal(reference != 0, response_mask[:, 1:])


def test_logits_of_a_row_do_not_depend_on_the_other_rows(model):
    batch = padded_batch(ROWS, 64)
    together = logprobs.token_logps(model, *batch)[0]
    for row in range(4):
        alone = logprobs.token_logps(model, *(part[row : row + 1] for part in batch))[0]
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient_and_keeps_less_even_where_the_model_has_dropout(new_model):
    model = new_model(attention_dropout=0.5)
    input_ids = torch.randint(3, 60, (3, 20))
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    response_mask = attention_mask.clone()
    response_mask[:, :5] = False
    gradients, kept = [], [0, 0]
    for enabled in (False, True):
        model.zero_grad()

        def count(tensor, enabled=enabled):
            kept[enabled] += tensor.numel()
            return tensor

        with logprobs.checkpointed(model, enabled):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                logps, _ = logprobs.token_logps(model, input_ids, attention_mask, response_mask)
            logps.sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without)
    assert kept[1] < 0.5 * kept[0]
    assert not model.training


def dropouts(config):
    """Every field of a configuration that acts in training mode alone: dropouts, dropped layers, router noise."""
    fields = config.to_dict()
    return {name: 0.2 for name in fields if ("drop" in name or "jitter" in name) and fields[name] is not None}


@pytest.mark.parametrize(
    "name", ["opt", "xglm", "biogpt", "falcon", "persimmon", "phimoe", "mixtral", "bloom", "gpt_bigcode", "qwen2"]
)
def test_checkpointing_turns_no_dropout_on_whatever_its_field_is_called(name):
    fields = dropouts(config_of(name))
    model = model_of(config_of(name, **fields))
    batch = padded_batch(ROWS, 64)
    weights = torch.randn(batch[0].shape[0], batch[0].shape[1] - 1)
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with logprobs.checkpointed(model, enabled):
            logps, _ = logprobs.token_logps(model, *batch)
            (logps * weights).sum().backward()
        found.append([logps.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for without, with_it in zip(*found, strict=True):
        torch.testing.assert_close(with_it, without)
    assert fields and {name: getattr(model.config, name) for name in fields} == fields, "a field was changed"


def test_checkpointing_leaves_mode_and_layers_as_they_were_also_after_an_exception(model):
    def hooked(*arguments, plain=model.model.layers[1].forward, **options):
        return plain(*arguments, **options)

    model.model.layers[1].forward = hooked  # as accelerate does it
    with pytest.raises(RuntimeError, match="in the middle"), logprobs.checkpointed(model, True):
        assert not any(module.training for module in model.modules())
        assert model.model.layers[1].forward is not hooked
        raise RuntimeError("in the middle")
    assert not any(module.training for module in model.modules())
    assert "forward" not in vars(model.model.layers[0]) and model.model.layers[1].forward is hooked


def test_checkpointing_refuses_a_cache_that_computing_again_would_fill_twice(model):
    """A second call of the layer would append the same keys and values."""
    ids = torch.tensor([[5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with logprobs.checkpointed(model, True):
        with pytest.raises(ValueError, match="cache"):
            hidden_states(model, ids, mask, DynamicCache(config=model.config))
        with torch.no_grad():
            hidden_states(model, ids, mask, DynamicCache(config=model.config))


def test_checkpointing_of_a_model_without_layers_that_it_finds_says_so():
    with (
        pytest.raises(NotImplementedError, match=r"OpenAIGPTLMHeadModel.*--checkpointing"),
        logprobs.checkpointed(model_of(config_of("openai-gpt")), True),
    ):
        pass


def test_entropy_where_a_token_is_impossible(model):
    """A logit of −∞ has probability 0, and adds nothing to the entropy: not 0·∞, which is no number."""
    batch = padded_batch(ROWS, 64)
    _, whole = logprobs.token_logps(model, *batch)
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([63]), -torch.inf))
    logps, entropies = logprobs.token_logps(model, *batch)
    possible = batch[2][:, 1:] & (batch[0][:, 1:] != 63)
    assert logps[possible].isfinite().all() and entropies.isfinite().all() and not torch.equal(entropies, whole)
    for row in range(len(ROWS)):
        ids = batch[0][row][batch[1][row]]
        rest = model(input_ids=ids[None]).logits[0, :-1, :63].softmax(-1)
        expected = -(rest * rest.log()).sum(-1)[-ROWS[row][2] :]
        torch.testing.assert_close(entropies[row][batch[2][row, 1:]], expected, atol=1e-5, rtol=1e-5)


def test_logits_of_one_chunk_only_are_kept_for_the_backward_pass(monkeypatch):
    """With a vocabulary of 4,096, thirty logits a token would be most of what is kept."""
    model = random_model(vocab_size=4_096)
    batch = padded_batch([(0, 3, 30), (0, 3, 30)], 4_096)
    kept = {}
    for chunk in (logprobs.CHUNK_ELEMENTS, 4_096 * 4):
        monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            logprobs.token_logps(model, *batch)
        kept[chunk] = sum(size for size in sizes if size >= 4_096 * 4 and size != 4_096 * 32)  # but for the weight
    whole, in_chunks = kept.values()
    assert whole > 60 * 4_096 and in_chunks == 0


@pytest.mark.parametrize("entropy_gradient", [True, False])
def test_no_chunk_of_logits_is_left_behind_a_backward_pass_that_has_no_use_for_entropies(monkeypatch, entropy_gradient):
    """What their gradient would need is made again with each chunk, and stays as long as the entropies do."""
    model = random_model(vocab_size=4_096)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 4_096 * 4)
    batch = padded_batch([(0, 3, 30), (0, 3, 30)], 4_096)
    logps, entropies = logprobs.token_logps(model, *batch, entropy_gradient=entropy_gradient)
    logps.sum().backward()
    # By `type`: isinstance would look through proxies of other tests, whose objects may be gone.
    left = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (4, 4_096)]
    assert entropies.requires_grad == entropy_gradient and bool(left) == entropy_gradient
    expected, of_loss = [p.grad.clone() for p in model.parameters()], float(logps.sum())
    model.zero_grad()
    other, same = logprobs.token_logps(model, *batch)
    other.sum().backward()
    assert float(other.sum()) == of_loss and torch.equal(entropies, same)
    assert all(torch.equal(a, p.grad) for a, p in zip(expected, model.parameters(), strict=True))


def test_the_head_of_a_reference_model_is_cast_once_and_not_for_each_chunk(model, monkeypatch):
    """In bf16, imitated on a CPU, 17 tokens in chunks of three."""
    model.requires_grad_(False)
    monkeypatch.setattr(logprobs, "autocast", lambda model: torch.autocast("cpu", torch.bfloat16))
    batch = padded_batch(ROWS, 64)
    with torch.no_grad():
        whole, _ = logprobs.token_logps(model, *batch)
        monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 64 * 3)
        with Casts((64, 32)) as casts:
            in_chunks, _ = logprobs.token_logps(model, *batch)
    assert casts.count == 1
    torch.testing.assert_close(in_chunks, whole)


@pytest.mark.parametrize(("device", "least", "most"), [("cpu", 200, 250), ("cuda", 500, 1_000)])
def test_a_chunk_of_a_large_vocabulary_is_larger_on_a_gpu_which_would_wait_for_memory(device, least, most):
    """Qwen2.5's vocabulary; the logits of a chunk stay below 1 GB in fp32."""
    logits = logprobs.chunk_elements(SimpleNamespace(device=torch.device(device)))
    assert least <= logits // 151_936 <= most and 4 * logits < 1e9


def test_the_longest_rows_come_first(model, tokenizer):
    """What needs most memory fails in the first micro-batch, or not at all."""
    record = drawn_rollouts(model, tokenizer)
    widest = [
        batch.padded_tokens / len(batch.packing) for batch in rollout.micro_batches(model, record, torch.arange(30), 64)
    ]
    assert widest == sorted(widest, reverse=True) and widest[0] > widest[-1]


def test_runs_are_of_completions_of_like_length_of_one_question():
    """Whatever the order of the rows."""
    runs = logprobs.shared_prompt_runs([10] * 6, [4, 4, 9, 9, 30, 30], [0, 1, 0, 1, 0, 1], 100_000, 32)
    assert runs == [[0, 2, 4], [1, 3, 5]]


def test_a_run_is_within_the_budget():
    """√(6·32·100) is 138 further tokens; a budget of 120 leaves room for 20, which are two completions of 11."""
    runs = logprobs.shared_prompt_runs([100] * 5, [11] * 5, [0] * 5, 120, 32)
    assert [len(run) for run in runs] == [2, 2, 1]
    assert [len(run) for run in logprobs.shared_prompt_runs([100] * 5, [11] * 5, [0] * 5, 1_000, 32)] == [5]


def test_a_response_mask_that_is_not_bool_is_an_error_that_says_so(model):
    """As an index, 0 and 1 would pick the first two rows of the hidden states, and fail far away or not at all."""
    input_ids, attention_mask, response_mask = padded_batch(ROWS, 64)
    with pytest.raises(TypeError, match=r"response_mask is of type torch.int64; it must be torch.bool"):
        logprobs.token_logps(model, input_ids, attention_mask, response_mask.long())
    whole = logprobs.token_logps(model, input_ids, attention_mask, response_mask)[0]
    torch.testing.assert_close(logprobs.token_logps(model, input_ids, attention_mask.long(), response_mask)[0], whole)


# --- micro-batches -----------------------------------------------------------------------------------------------


def drawn_rollouts(model, tokenizer, questions=6, size=5, seed=0, begin=()):
    """Groups of answers of 1 to 60 tokens to prompts of 2 to 20 behind what all begin with, without a sampler."""
    generator = torch.Generator().manual_seed(seed)

    def draw(least, most):
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(2, 64, (length,), generator=generator).tolist()

    prompts = [[*begin, *draw(2, 20)] for _ in range(questions)]
    return rollout.assemble(
        model,
        tokenizer,
        [rollout.Completion(prompt, [*draw(0, 59), 1]) for prompt in prompts for _ in range(size)],
        size,
    )


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], 2),
        ([[1, 2, 3], [1, 2, 3, 4, 5]], 2),  # a prompt that others begin with keeps its last token
        ([[1, 2, 3], [1, 2, 3]], 0),  # one prompt twice has a cache or a run of its own
        ([[1, 2, 3], [1, 2, 3], [1, 4]], 1),
        ([[1, 2], [3, 2]], 0),
        ([[1], [1, 2]], 0),
        ([[1, 2, 3]], 0),
    ],
)
def test_the_tokens_that_different_prompts_begin_with(prompts, shared, monkeypatch):
    monkeypatch.setattr(logprobs, "SHARED_PREFIX", 1)
    assert logprobs.shared_prefix(prompts) == shared
    monkeypatch.setattr(logprobs, "SHARED_PREFIX", 3)
    assert logprobs.shared_prefix(prompts) == 0


BEGIN = [7, 8, 9, 10] * 10  # what all prompts begin with


@pytest.mark.parametrize("begin", [(), BEGIN], ids=["prompts that differ", "prompts that begin alike"])
@pytest.mark.parametrize("budget", [1, 64, 300, 100_000])
def test_micro_batches_hold_every_row_once_within_the_budget(model, tokenizer, budget, begin):
    record = drawn_rollouts(model, tokenizer, begin=begin)
    rows = torch.arange(30)[torch.arange(30) % 4 != 1]
    batches = list(rollout.micro_batches(model, record, rows, budget))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == rows.tolist()
    for batch in batches:
        assert sum(map(sum, batch.packing)) == len(batch.rows)
        assert batch.padded_tokens <= budget or len(batch.rows) == 1
        assert batch.tokens <= batch.padded_tokens
        row = 0
        for run in (run for sequence in batch.packing for run in sequence):
            assert len({int(i) // 5 for i in batch.rows[row : row + run]}) == 1, "a run is of one question"
            row += run


def test_padding_of_micro_batches_is_below_a_tenth(model, tokenizer):
    record = drawn_rollouts(model, tokenizer, questions=60)
    batches = list(rollout.micro_batches(model, record, torch.arange(300), 4_096))
    assert 1 - sum(batch.tokens for batch in batches) / sum(batch.padded_tokens for batch in batches) < 0.1


def test_shared_prompts_save_most_of_the_prompts_tokens(model, tokenizer):
    """With a prompt of 100 tokens and five answers of 10, sequences hold 145 tokens in place of 5 times 109."""
    answers = [rollout.Completion([3] * 100, [4] * 9 + [1]) for _ in range(5)]
    record = rollout.assemble(model, tokenizer, answers, 5)
    (batch,) = rollout.micro_batches(model, record, torch.arange(5), 10_000)
    assert batch.tokens == 100 + 5 * 9 and batch.packing == [[5]]


def test_what_all_prompts_begin_with_stands_once_in_a_sequence(model, tokenizer):
    """40 tokens, and behind them three prompts of 4 further ones with an answer of 6, whose last predicts nothing."""
    answers = [rollout.Completion([*BEGIN, n, 5, 5, 5], [4] * 5 + [1]) for n in (11, 12, 13)]
    record = rollout.assemble(model, tokenizer, answers, 1)
    (batch,) = rollout.micro_batches(model, record, torch.arange(3), 10_000)
    assert batch.packing == [[1, 1, 1]] and batch.tokens == batch.padded_tokens == 40 + 3 * (4 + 5)


def test_sequences_that_share_a_beginning_end_where_attention_costs_more_than_it(model, tokenizer):
    """√(6·32·40) is 88: behind 40 tokens, nine runs of 9 fit, and a tenth begins another sequence, which is no waste
    as long as others will fill it."""
    answers = [rollout.Completion([*BEGIN, n, 5, 5, 5], [4] * 5 + [1]) for n in range(2, 56)]
    record = rollout.assemble(model, tokenizer, answers, 1)
    (batch,) = rollout.micro_batches(model, record, torch.arange(54), 10_000)
    assert batch.packing == [[1] * 9] * 6 and batch.tokens == batch.padded_tokens == 6 * (40 + 9 * 9)
    apart = list(rollout.micro_batches(model, record, torch.arange(18), 130))
    assert [each.packing for each in apart] == [[[1] * 9]] * 2, "the second does not fit into the budget"


def test_runs_of_a_shared_prompt_end_where_attention_costs_more_than_the_prompt(model, tokenizer):
    """√(6·32·20) is 62: beside a prompt of 20 tokens, three answers of 20 further tokens make a run, not four."""
    record = rollout.assemble(model, tokenizer, [rollout.Completion([3] * 20, [4] * 20 + [1]) for _ in range(8)], 8)
    prompts, completions = record.prompt_lengths.tolist(), record.lengths.tolist()
    runs = logprobs.shared_prompt_runs(prompts, completions, [0] * 8, 100_000, 32)
    assert [len(run) for run in runs] == [3, 3, 2]


@pytest.mark.parametrize("begin", [(), BEGIN], ids=["prompts that differ", "prompts that begin alike"])
@pytest.mark.parametrize("devices", [(), ("cpu",)], ids=["by a mask", "by rows"])
@pytest.mark.parametrize("budget", [40, 300, 100_000])
def test_packed_log_probabilities_equal_those_of_single_rows_values_and_gradients(
    model, tokenizer, monkeypatch, budget, devices, begin
):
    """As on a CPU, and as on a GPU; and the model sees as many tokens as was said."""
    monkeypatch.setattr(attention, "DEVICES", devices)
    record = drawn_rollouts(model, tokenizer, begin=begin)
    sizes = []
    model.base_model.register_forward_pre_hook(
        lambda module, arguments, options: sizes.append(options["input_ids"].numel()), with_kwargs=True
    )
    weights = torch.randn(record.input_ids.shape)
    packed_share = 0
    for batch in rollout.micro_batches(model, record, torch.arange(30), budget + len(begin)):
        part = record.rows(batch.rows)
        some_weights = weights[batch.rows][:, : part.input_ids.shape[1] - 1]
        results = []
        for packing in (None, batch.packing):
            logps, entropies = logprobs.token_logps(model, *part.tokens, temperature=0.8, packing=packing)
            model.zero_grad()
            ((logps + 0.3 * entropies) * some_weights).sum().backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
            results.append((logps.detach(), entropies.detach(), gradients))
        assert sizes[-1] == batch.padded_tokens
        (logps, entropies, gradients), (packed_logps, packed_entropies, packed_gradients) = results
        torch.testing.assert_close(packed_logps, logps, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed_entropies, entropies, atol=1e-4, rtol=1e-4)
        for ours, expected in zip(packed_gradients, gradients, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)
        packed_share += any(run > 1 for sequence in batch.packing for run in sequence)
    assert packed_share, "at least one prompt was shared"


def test_a_packing_that_joins_answers_to_different_prompts_is_an_error(model, tokenizer):
    answers = [rollout.Completion([3, 4], [5, 1]), rollout.Completion([3, 4, 5], [5, 1])]
    part = rollout.assemble(model, tokenizer, answers, 1)
    with pytest.raises(AssertionError, match="one prompt"):
        logprobs.token_logps(model, *part.tokens, packing=[[2]])


def test_a_model_that_does_not_take_any_mask_gets_a_sequence_for_each_row(model, tokenizer):
    """Sliding windows, state spaces, soft-capped attention: such a model sees rows as they are."""
    record = drawn_rollouts(model, tokenizer)
    model.config._attn_implementation = "eager"
    batches = list(rollout.micro_batches(model, record, torch.arange(30), 200))
    assert all(batch.packing is None for batch in batches)
    for batch in batches:
        longest = int(record.attention_mask[batch.rows].sum(1).max())
        assert batch.padded_tokens == len(batch.rows) * longest <= 200


def test_a_sequence_for_each_row_also_where_short_ones_would_fit_beside_each_other(model):
    """Rows of 30, 10 and 10 tokens under a budget of two times 30."""
    model.config._attn_implementation = "eager"
    for shared in (0, 4):  # what prompts begin with is in each of such rows
        batches = list(logprobs.micro_batches(model, [5, 5, 5], [25, 5, 5], [0, 1, 2], 60, shared))
        assert [(batch.rows.tolist(), batch.tokens, batch.padded_tokens) for batch in batches] == [
            ([0, 1], 40, 60),
            ([2], 10, 10),
        ]


def test_rows_of_a_model_with_alibi_are_not_packed(tokenizer):
    """It reads its mask as one of tokens."""
    config = FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    record = drawn_rollouts(FalconForCausalLM(config).eval(), tokenizer)
    batches = rollout.micro_batches(FalconForCausalLM(config).eval(), record, torch.arange(30), 200)
    assert all(batch.packing is None for batch in batches)
