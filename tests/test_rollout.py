"""Sampling and log-probabilities: against plain full logits, uncached decoding, and the exact softmax."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import padded_batch, random_model
from transformers import CohereConfig, CohereForCausalLM, FalconConfig, FalconForCausalLM, MambaConfig, MambaForCausalLM

import anchors
import rollout
import scoring

PROMPTS = ["a+b=", "what is 2*(3+4)?", "x", "find the sum of 1 and 2."]
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


@pytest.mark.parametrize("chunk", [rollout.CHUNK_ELEMENTS, 64 * 3])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logps_equal_plain_log_softmax_values_and_gradients(model, monkeypatch, chunk, temperature):
    """In one piece, and three positions at a time with recomputation in the backward pass."""
    monkeypatch.setattr(rollout, "CHUNK_ELEMENTS", chunk)
    batch = padded_batch(ROWS, 64)
    weights = torch.randn(batch[0].shape[0], batch[0].shape[1] - 1)
    gradients = []
    for function in (rollout.token_logps, lambda m, *b, temperature: plain_logps(m, b, temperature)):
        logps, entropies = function(model, *batch, temperature=temperature)
        gradients.append(torch.autograd.grad((logps * weights).sum(), list(model.parameters())))
        if function is rollout.token_logps:
            ours = (logps.detach(), entropies.detach())
    torch.testing.assert_close(ours[0], logps.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], entropies, atol=1e-5, rtol=1e-5)
    for own, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(own, plain, atol=1e-4, rtol=1e-4)


def test_token_logps_in_bf16():
    """The same bf16 hidden states through the same bf16 head, softmax in fp32: equal to bf16's rounding."""
    model = random_model(hidden_size=16).to(torch.bfloat16)
    batch = padded_batch([(0, 5, 6), (0, 3, 8)], 64)
    ours, plain = rollout.token_logps(model, *batch)[0], plain_logps(model, batch)[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, atol=0.15, rtol=0.05)
    weights = torch.randn_like(ours)
    head = model.get_output_embeddings().weight
    own, other = (torch.autograd.grad((v * weights).sum(), head)[0].float() for v in (ours, plain))
    assert float((own - other).norm() / other.norm()) < 0.05


def test_padding_and_garbage_in_padded_places_change_nothing(model):
    input_ids, attention_mask, response_mask = padded_batch(ROWS, 64)
    reference = rollout.token_logps(model, input_ids, attention_mask, response_mask)[0]
    garbage = torch.where(attention_mask, input_ids, 63)
    torch.testing.assert_close(rollout.token_logps(model, garbage, attention_mask, response_mask)[0], reference)
    pad = torch.zeros(4, 5, dtype=torch.bool)
    further = rollout.token_logps(
        model,
        torch.cat([torch.full((4, 5), 17), input_ids], 1),
        torch.cat([pad, attention_mask], 1),
        torch.cat([pad, response_mask], 1),
    )[0]
    torch.testing.assert_close(further[:, 5:], reference, atol=1e-5, rtol=1e-5)
    assert torch.equal(reference != 0, response_mask[:, 1:])


def test_logits_of_a_row_do_not_depend_on_the_other_rows(model):
    batch = padded_batch(ROWS, 64)
    together = rollout.token_logps(model, *batch)[0]
    for row in range(4):
        alone = rollout.token_logps(model, *(part[row : row + 1] for part in batch))[0]
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


# --- sampling ----------------------------------------------------------------------------------------------------


def test_cached_greedy_decoding_equals_uncached(model, tokenizer):
    """Prompt once, cache shared by the group, rows leaving the batch, against one forward pass for every token."""
    sampled = rollout.sample(model, tokenizer, PROMPTS, 3, max_new_tokens=40, temperature=0)
    for p, prompt in enumerate(PROMPTS):
        ids = rollout.encode_prompt(tokenizer, rollout.render_prompt(tokenizer, prompt)[:-1])
        start = len(ids)
        while len(ids) < start + 40 and (len(ids) == start or ids[-1] != 1):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        for g in range(3):
            row = 3 * p + g
            assert sampled.input_ids[row][sampled.response_mask[row]].tolist() == ids[start:]


def answers_of(sampled):
    return [ids[mask].tolist() for ids, mask in zip(sampled.input_ids, sampled.response_mask, strict=True)]


def test_same_seed_gives_the_same_answers_in_any_batch_order(model, tokenizer, monkeypatch):
    """Also when the cache has room for one group only; another seed gives others."""
    options = {"max_new_tokens": 30, "temperature": 1.0}
    first = answers_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=5, **options))
    again = answers_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=5, **options))
    backwards = answers_of(rollout.sample(model, tokenizer, PROMPTS[::-1], 4, seed=5, **options))
    assert first == again
    assert first == [answer for p in range(3, -1, -1) for answer in backwards[4 * p : 4 * p + 4]]
    monkeypatch.setattr(rollout, "CACHE_BYTES", 1)
    assert first == answers_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=5, **options))
    assert first != answers_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=6, **options))


def test_answers_of_a_group_and_of_a_repeated_prompt_differ(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, ["a+b=", "a+b="], 4, max_new_tokens=30, seed=1)
    assert len({tuple(answer) for answer in answers_of(sampled)}) == 8


def test_where_memory_runs_out_half_as_many_questions_are_decoded_at_once(model, tokenizer, monkeypatch):
    expected = rollout.sample(model, tokenizer, PROMPTS, 2, max_new_tokens=6, seed=0)
    decode, tried = rollout.decode, []

    def decode_one_question(model, prompt_ids, *rest, **options):
        tried.append(len(prompt_ids))
        if len(prompt_ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return decode(model, prompt_ids, *rest, **options)

    monkeypatch.setattr(rollout, "decode", decode_one_question)
    with pytest.warns(UserWarning, match=r"[42] answers at once"):
        found = rollout.sample(model, tokenizer, PROMPTS, 2, max_new_tokens=6, seed=0)
    assert tried == [4, 2, 1, 1, 1, 1]
    assert found.texts == expected.texts


def test_what_does_not_fit_alone_is_an_error(model, tokenizer, monkeypatch):
    def decode(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(rollout, "decode", decode)
    with pytest.raises(torch.OutOfMemoryError):
        rollout.sample(model, tokenizer, PROMPTS[:1], 2, max_new_tokens=6, seed=0)


def test_sampled_logps_equal_recomputed_ones(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, PROMPTS, 4, max_new_tokens=30, temperature=0.8, seed=2)
    logps, _ = rollout.token_logps(
        model, sampled.input_ids, sampled.attention_mask, sampled.response_mask, temperature=0.8
    )
    torch.testing.assert_close(sampled.logps[:, 1:], logps.detach(), atol=1e-4, rtol=1e-4)


def test_every_stop_token_ends_an_answer_and_is_part_of_it(model, tokenizer):
    """The generation config names two; the one that was sampled is in the response mask, nothing after it is."""
    model.generation_config.eos_token_id = [1, 7, 20]
    sampled = rollout.sample(model, tokenizer, PROMPTS, 16, max_new_tokens=60, seed=3)
    ends = set()
    for answer, truncated in zip(answers_of(sampled), sampled.truncated.tolist(), strict=True):
        assert not {1, 7, 20} & set(answer[:-1])
        assert truncated == (answer[-1] not in {1, 7, 20})
        ends.add(answer[-1])
    assert {1, 7, 20} <= ends


def test_pad_token_that_is_the_eos_token_keeps_the_eos_in_the_loss(model, tokenizer):
    """A mask built from `!= pad` would lose it."""
    saved = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    try:
        sampled = rollout.sample(model, tokenizer, PROMPTS, 8, max_new_tokens=100, seed=4)
    finally:
        tokenizer.pad_token = saved
    ended = [answer for answer, cut in zip(answers_of(sampled), sampled.truncated.tolist(), strict=True) if not cut]
    assert ended and all(answer[-1] == 1 and 1 not in answer[:-1] for answer in ended)


def test_prompt_and_answer_beyond_the_positions_of_the_model_are_an_error(model, tokenizer):
    with pytest.raises(ValueError, match=r"--max-new-tokens 250.*256 positions"):
        rollout.sample(model, tokenizer, ["seven++"], 2, max_new_tokens=250)


# --- prompts -----------------------------------------------------------------------------------------------------


def test_without_a_chat_template_the_prompt_is_the_problem(tokenizer):
    assert rollout.render_prompt(tokenizer, "1+1?") == "1+1?\n"


def test_with_a_chat_template_the_prompt_asks_for_a_box(tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[go]{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    prompt = rollout.render_prompt(tokenizer, "1+1?", ["2", "3"])
    assert prompt == (
        "[user]1+1?\nA. 2\nB. 3\nThe answer is the letter of one choice.\n\n"
        "Please reason step by step, and put your final answer within \\boxed{}.[go]"
    )


# --- records and micro-batches -----------------------------------------------------------------------------------


def test_rows_are_moved_to_the_left_and_cut_to_the_longest(model, tokenizer):
    pairs = [([3, 4], [5, 6, 1]), ([3, 4, 5, 6], [7, 1]), ([3], [8, 9, 10, 1])]
    record = rollout.assemble(
        model, tokenizer, [rollout.Answer(prompt, answer, [-1.0] * len(answer)) for prompt, answer in pairs], 1
    )
    part = record.rows(torch.tensor([2, 0]))
    assert part.input_ids.tolist() == [[3, 8, 9, 10, 1], [3, 4, 5, 6, 1]]
    assert part.response_mask.int().tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert part.logps.tolist() == [[0.0, -1.0, -1.0, -1.0, -1.0], [0.0, 0.0, -1.0, -1.0, -1.0]]
    assert part.texts == [record.texts[2], record.texts[0]]


def test_groups_without_signal_give_way_to_others_in_place(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, PROMPTS[:3], 2, max_new_tokens=12, seed=0)
    others = rollout.sample(model, tokenizer, PROMPTS[3:], 2, max_new_tokens=30, seed=0)
    placed = rollout.replace_groups(model, tokenizer, sampled, [1], others)
    before, after, further = (answers_of(record) for record in (sampled, placed, others))
    assert after == before[:2] + further + before[4:]
    assert placed.texts == sampled.texts[:2] + others.texts + sampled.texts[4:]
    recomputed, _ = rollout.token_logps(model, placed.input_ids, placed.attention_mask, placed.response_mask)
    torch.testing.assert_close(placed.logps[:, 1:], recomputed.detach(), atol=1e-4, rtol=1e-4)


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

        with rollout.checkpointed(model, enabled):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                logps, _ = rollout.token_logps(model, input_ids, attention_mask, response_mask)
            logps.sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without)
    assert kept[1] < 0.5 * kept[0]
    assert not model.training


def drawn_rollouts(model, tokenizer, questions=6, size=5, seed=0):
    """Groups of answers of 1 to 60 tokens to prompts of 2 to 20, without a sampler."""
    generator = torch.Generator().manual_seed(seed)

    def draw(least, most):
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(2, 64, (length,), generator=generator).tolist()

    prompts = [draw(2, 20) for _ in range(questions)]
    return rollout.assemble(
        model, tokenizer, [rollout.Answer(prompt, [*draw(0, 59), 1]) for prompt in prompts for _ in range(size)], size
    )


@pytest.mark.parametrize("budget", [1, 64, 300, 100_000])
def test_micro_batches_hold_every_row_once_within_the_budget(model, tokenizer, budget):
    record = drawn_rollouts(model, tokenizer)
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
    answers = [rollout.Answer([3] * 100, [4] * 9 + [1]) for _ in range(5)]
    record = rollout.assemble(model, tokenizer, answers, 5)
    (batch,) = rollout.micro_batches(model, record, torch.arange(5), 10_000)
    assert batch.tokens == 100 + 5 * 9 and batch.packing == [[5]]


def test_runs_of_a_shared_prompt_end_where_attention_costs_more_than_the_prompt(model, tokenizer):
    """√(6·32·20) is 62: beside a prompt of 20 tokens, three answers of 20 further tokens make a run, not four."""
    record = rollout.assemble(model, tokenizer, [rollout.Answer([3] * 20, [4] * 20 + [1]) for _ in range(8)], 8)
    runs = rollout.shared_prompt_runs(record, torch.arange(8), 100_000, 32)
    assert [len(run) for run in runs] == [3, 3, 2]


@pytest.mark.parametrize("budget", [40, 300, 100_000])
def test_packed_log_probabilities_equal_those_of_single_rows_values_and_gradients(model, tokenizer, budget):
    record = drawn_rollouts(model, tokenizer)
    weights = torch.randn(record.input_ids.shape)
    packed_share = 0
    for batch in rollout.micro_batches(model, record, torch.arange(30), budget):
        part = record.rows(batch.rows)
        tokens = (part.input_ids, part.attention_mask, part.response_mask)
        own_weights = weights[batch.rows][:, : part.input_ids.shape[1] - 1]
        results = []
        for packing in (None, batch.packing):
            logps, entropies = rollout.token_logps(model, *tokens, temperature=0.8, packing=packing)
            model.zero_grad()
            ((logps + 0.3 * entropies) * own_weights).sum().backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
            results.append((logps.detach(), entropies.detach(), gradients))
        (logps, entropies, gradients), (packed_logps, packed_entropies, packed_gradients) = results
        torch.testing.assert_close(packed_logps, logps, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed_entropies, entropies, atol=1e-4, rtol=1e-4)
        for ours, expected in zip(packed_gradients, gradients, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)
        packed_share += any(run > 1 for sequence in batch.packing for run in sequence)
    assert packed_share, "at least one prompt was shared"


def test_a_packing_that_joins_answers_to_different_prompts_is_an_error(model, tokenizer):
    answers = [rollout.Answer([3, 4], [5, 1]), rollout.Answer([3, 4, 5], [5, 1])]
    part = rollout.assemble(model, tokenizer, answers, 1)
    with pytest.raises(AssertionError, match="one prompt"):
        rollout.token_logps(model, part.input_ids, part.attention_mask, part.response_mask, packing=[[2]])


def test_a_model_that_does_not_take_any_mask_gets_a_sequence_for_each_row(model, tokenizer):
    """Sliding windows, state spaces, soft-capped attention: such a model sees rows as they are."""
    record = drawn_rollouts(model, tokenizer)
    model.config._attn_implementation = "eager"
    batches = list(rollout.micro_batches(model, record, torch.arange(30), 200))
    assert all(batch.packing is None for batch in batches)
    for batch in batches:
        longest = int(record.attention_mask[batch.rows].sum(1).max())
        assert batch.padded_tokens == len(batch.rows) * longest <= 200


def test_kept_hidden_states_stay_with_their_answers(model, tokenizer):
    """Through replaced groups, anchors and reordered rows, scoring gives the same with them as without."""
    sampled = rollout.sample(model, tokenizer, PROMPTS[:3], 3, max_new_tokens=12, seed=0, keep_hidden=True)
    others = rollout.sample(model, tokenizer, PROMPTS[3:], 3, max_new_tokens=20, seed=0, keep_hidden=True)
    placed = rollout.replace_groups(model, tokenizer, sampled, [1], others)
    rows = [{"problem": f"q{p}", "answer": "1"} for p in range(3)]
    known = anchors.Anchors(solutions={"q2": [([7, 8, 9, 1], 1.0)]})
    placed, _ = anchors.insert(
        model, tokenizer, placed, torch.zeros(3, 3), rows, known,
        count=1, hard_below=0.0, every_group=False, rng=random.Random(0),
    )  # fmt: skip
    part = placed.rows(torch.tensor([8, 6, 7, 2, 0, 1, 3, 5, 4]))
    assert [own is None for own in part.hidden] == part.anchor_mask.tolist() and part.anchor_mask.any()
    tokens = (part.input_ids, part.attention_mask, part.response_mask)
    expected = scoring.gradient_gram(model, *tokens, 3)
    torch.testing.assert_close(
        scoring.gradient_gram(model, *tokens, 3, hidden=part.hidden), expected, rtol=1e-3, atol=1e-2
    )


# --- loading -----------------------------------------------------------------------------------------------------


def test_loaded_weights_are_fp32_whatever_the_file_holds(model, tokenizer, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = rollout.load(str(tmp_path), "cpu")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded_tokenizer.decode(loaded_tokenizer("x+1")["input_ids"]) == "x+1"


def test_missing_gguf_file_and_missing_gguf_package(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        rollout.load(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(rollout.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf accelerate"):
        rollout.load(str(tmp_path / "model.gguf"))


def test_a_head_with_a_logit_factor_is_understood():
    config = CohereConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.5,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    rollout.check_head(CohereForCausalLM(config).eval())


def test_a_head_that_computes_something_else_is_refused(model):
    plain = model.forward
    model.forward = lambda **inputs: type("Output", (), {"logits": plain(**inputs).logits.square()})
    with pytest.raises(NotImplementedError, match="output head of Qwen2ForCausalLM"):
        rollout.check_head(model)


def test_a_model_that_keeps_another_state_than_keys_and_values_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(NotImplementedError, match="attention layers only"):
        rollout.check_cache(model)


def test_rows_of_a_model_with_alibi_are_not_packed(tokenizer):
    """It reads its mask as one of tokens."""
    config = FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    record = drawn_rollouts(FalconForCausalLM(config).eval(), tokenizer)
    batches = rollout.micro_batches(FalconForCausalLM(config).eval(), record, torch.arange(30), 200)
    assert all(batch.packing is None for batch in batches)
