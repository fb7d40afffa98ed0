"""Sampling: against uncached decoding, prompts by hand, and rows that stay what they are in other batches."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest
import torch
from conftest import completions_of
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import anchors
import rollout
import scoring
from policy import decoding

PROMPTS = ["a+b=", "what is 2*(3+4)?", "x", "find the sum of 1 and 2."]


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


def test_same_seed_gives_the_same_answers_in_any_batch_order(model, tokenizer, monkeypatch):
    """Also when the cache has room for one group only; another seed gives others."""
    options = {"max_new_tokens": 30, "temperature": 1.0}
    first = completions_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=5, **options))
    again = completions_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=5, **options))
    backwards = completions_of(rollout.sample(model, tokenizer, PROMPTS[::-1], 4, seed=5, **options))
    assert first == again
    assert first == [answer for p in range(3, -1, -1) for answer in backwards[4 * p : 4 * p + 4]]
    monkeypatch.setattr(decoding, "CACHE_BYTES", 1)
    assert first == completions_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=5, **options))
    assert first != completions_of(rollout.sample(model, tokenizer, PROMPTS, 4, seed=6, **options))


def test_answers_of_a_group_and_of_a_repeated_prompt_differ(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, ["a+b=", "a+b="], 4, max_new_tokens=30, seed=1)
    assert len({tuple(answer) for answer in completions_of(sampled)}) == 8


def test_where_memory_runs_out_half_as_many_questions_are_decoded_at_once(model, tokenizer, monkeypatch):
    expected = rollout.sample(model, tokenizer, PROMPTS, 2, max_new_tokens=6, seed=0)
    decode, tried = rollout.decode, []

    def decode_one_question(model, prompt_ids, *rest, **options):
        tried.append(len(prompt_ids))
        if len(prompt_ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return decode(model, prompt_ids, *rest, **options)

    monkeypatch.setattr(rollout, "decode", decode_one_question)
    with pytest.warns(UserWarning, match=r"[42] completions at once"):
        found = rollout.sample(model, tokenizer, PROMPTS, 2, max_new_tokens=6, seed=0)
    assert tried == [4, 2, 1, 1, 1, 1]
    assert found.texts == expected.texts


def test_what_does_not_fit_alone_is_an_error(model, tokenizer, monkeypatch):
    def decode(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(rollout, "decode", decode)
    with pytest.raises(torch.OutOfMemoryError, match=r"completions of one question, 2 at once .* lower --max-new"):
        rollout.sample(model, tokenizer, PROMPTS[:1], 2, max_new_tokens=6, seed=0)


def test_sampled_logps_equal_recomputed_ones(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, PROMPTS, 4, max_new_tokens=30, temperature=0.8, seed=2)
    logps, _ = rollout.token_logps(
        model, sampled.input_ids, sampled.attention_mask, sampled.response_mask, temperature=0.8
    )
    torch.testing.assert_close(sampled.logps, logps.detach(), atol=1e-4, rtol=1e-4)


def test_every_stop_token_ends_an_answer_and_is_part_of_it(model, tokenizer):
    """The generation config names two; the one that was sampled is in the response mask, nothing after it is."""
    model.generation_config.eos_token_id = [1, 7, 20]
    sampled = rollout.sample(model, tokenizer, PROMPTS, 16, max_new_tokens=60, seed=3)
    ends = set()
    for answer, truncated in zip(completions_of(sampled), sampled.truncated.tolist(), strict=True):
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
    ended = [answer for answer, cut in zip(completions_of(sampled), sampled.truncated.tolist(), strict=True) if not cut]
    assert ended and all(answer[-1] == 1 and 1 not in answer[:-1] for answer in ended)


def test_prompt_and_answer_beyond_the_positions_of_the_model_are_an_error(model, tokenizer):
    with pytest.raises(ValueError, match=r"--max-new-tokens 250.*256 positions"):
        rollout.sample(model, tokenizer, ["seven++"], 2, max_new_tokens=250)


def test_prompt_and_answer_may_take_every_position_of_the_model(model, tokenizer, monkeypatch):
    """A prompt of 6 tokens beside 250 of completion: 256 positions."""

    def decode(*_, **__):
        raise KeyError("it fits")

    monkeypatch.setattr(rollout, "decode", decode)
    with pytest.raises(KeyError, match="it fits"):
        rollout.sample(model, tokenizer, ["seven+"], 2, max_new_tokens=250)


def test_every_completion_has_noise_of_its_own(model, tokenizer, monkeypatch):
    """Of other prompts as of its own, and of a prompt that is there twice; with the cache full they are the same."""
    decode, drawn = rollout.decode, []

    def watched(model, prompt_ids, keys, *rest, **options):
        drawn.append(keys.tolist())
        return decode(model, prompt_ids, keys, *rest, **options)

    monkeypatch.setattr(rollout, "decode", watched)
    prompts = ["a", "b", "a"]
    rollout.sample(model, tokenizer, prompts, 2, max_new_tokens=1, seed=0)
    (together,) = drawn
    assert len(set(together)) == 6
    drawn.clear()
    monkeypatch.setattr(rollout, "rows_at_once", lambda *_: 1)
    rollout.sample(model, tokenizer, prompts, 2, max_new_tokens=1, seed=0)
    assert drawn == [together[0:2], together[2:4], together[4:6]]


def test_as_many_questions_are_decoded_at_once_as_the_cache_has_room_for_all_their_completions(
    model, tokenizer, monkeypatch
):
    """Room for seven sequences of the longest prompt and completion: three questions of two completions each."""
    decode, tried = rollout.decode, []

    def watched(model, prompt_ids, *rest, **options):
        tried.append(len(prompt_ids))
        return decode(model, prompt_ids, *rest, **options)

    lengths = []
    monkeypatch.setattr(rollout, "decode", watched)
    monkeypatch.setattr(rollout, "rows_at_once", lambda model, length: lengths.append(length) or 7)
    rollout.sample(model, tokenizer, PROMPTS, 2, max_new_tokens=5, seed=0)
    assert tried == [3, 1] and lengths == [max(map(len, PROMPTS)) + 5]


def test_noise_keys_depend_on_every_part_and_use_63_bits():
    keys = {rollout.noise_key(*parts) for parts in ((1, 12), (11, 2), (112,), (1, 1, 2), ("1", "12"))}
    assert len(keys) == 4  # a number and its text are the same part
    many = [rollout.noise_key("bits", number) for number in range(200)]
    assert min(many) >= 0 and 2**62 < max(many) < 2**63


def test_top_p_narrows_what_is_sampled(model, tokenizer):
    """With next to nothing of the probability mass, the likeliest tokens are left."""
    options = {"max_new_tokens": 12, "seed": 1}
    greedy = rollout.sample(model, tokenizer, PROMPTS, 2, temperature=0, **options)
    assert rollout.sample(model, tokenizer, PROMPTS, 2, top_p=1e-6, **options).texts == greedy.texts


def test_kept_hidden_states_do_not_hold_on_to_those_of_the_batch(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, PROMPTS, 2, max_new_tokens=12, seed=0, keep_hidden=True)
    for state in sampled.hidden:
        assert state.untyped_storage().nbytes() == 4 * state.numel()


def test_the_tokenizers_eos_ends_a_completion_too(model, tokenizer):
    """The generation config may name another token, several, the same, or none."""
    for configured, expected in ((7, [1, 7]), ([20, 7], [1, 20, 7]), (1, [1]), (None, [1])):
        model.generation_config.eos_token_id = configured
        assert rollout.stop_ids(model, tokenizer) == expected


def test_texts_are_without_special_tokens(model, tokenizer):
    record = rollout.assemble(model, tokenizer, [rollout.Completion([5], [*tokenizer("4 = 4")["input_ids"], 1])], 1)
    assert record.texts == ["4 = 4"] and record.input_ids[0, -1] == 1


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


def with_template(tokenizer, template: str):
    """A copy of the tokenizer with a chat template, and further tokens that end a turn."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>", "<think>", "</think>"]})
    copied.chat_template = template
    return copied


GEMMA = (  # ends a turn with a token that is not the EOS
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
QWEN = GEMMA.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
).replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
OPENS_THINKING = GEMMA.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def solution_behind_its_prompt(tokenizer, style=rollout.PLAIN, solution="so it is 2."):
    end = tokenizer.convert_tokens_to_ids("<end>")
    ids = rollout.encode_solution(tokenizer, [1, end], ("1+1?", None, style), solution)
    prompt = rollout.encode_prompt(tokenizer, rollout.render_prompt(tokenizer, "1+1?", None, style))
    assert ids[-1] == end and end not in ids[:-1]
    return tokenizer.decode(prompt), tokenizer.decode(ids[:-1])


def test_a_solution_ends_as_the_template_ends_a_turn(tokenizer):
    """With the EOS in its place, anchors would teach Gemma, Phi or GLM another end of turn than it samples."""
    prompt, said = solution_behind_its_prompt(with_template(tokenizer, GEMMA))
    assert said == "so it is 2." and prompt.endswith("<turn>assistant\n")
    plain = rollout.encode_solution(tokenizer, [1], ("1+1?", None, rollout.PLAIN), "so it is 2.")
    assert plain[-1] == 1 and tokenizer.decode(plain[:-1]) == "so it is 2."


def test_where_the_template_ends_a_turn_with_no_stop_token_the_eos_does(tokenizer):
    chat = with_template(tokenizer, GEMMA.replace("<end>", "."))
    ids = rollout.encode_solution(chat, [1], ("1+1?", None, rollout.PLAIN), "so it is 2")
    assert ids[-1] == 1 and 1 not in ids[:-1]


def test_a_solution_stands_behind_the_thinking_not_inside_of_it(tokenizer):
    """Qwen3 writes a think block before each answer; other templates open one in the prompt."""
    _, said = solution_behind_its_prompt(with_template(tokenizer, QWEN))
    assert said == "<think>\n\n</think>\n\nso it is 2."
    prompt, said = solution_behind_its_prompt(
        with_template(tokenizer, QWEN), rollout.PromptStyle(enable_thinking=False)
    )
    assert prompt.endswith("</think>\n\n") and said == "so it is 2."
    prompt, said = solution_behind_its_prompt(with_template(tokenizer, OPENS_THINKING))
    assert prompt.endswith("<think>\n") and said == "\n</think>\n\nso it is 2."


def test_the_system_prompt_comes_first_and_stays_out_of_the_anchor(tokenizer):
    style = rollout.PromptStyle(system="be brief.")
    prompt, said = solution_behind_its_prompt(with_template(tokenizer, GEMMA), style)
    assert prompt.startswith("<turn>system\nbe brief.<end>\n<turn>user\n1+1?") and said == "so it is 2."
    assert rollout.render_prompt(tokenizer, "1+1?", None, style) == "1+1?\n", "without a template there are no turns"


def test_a_solution_is_tokenized_as_it_would_follow_the_prompt(tokenizer):
    """A SentencePiece tokenizer begins every text with a mark, which the model would not write behind the prompt."""
    marking = copy.deepcopy(tokenizer)
    marking.backend_tokenizer.normalizer = normalizers.Prepend("_")
    alone = marking("2.", add_special_tokens=False)["input_ids"]
    behind = rollout.encode_solution(marking, [1], ("1+1?", None, rollout.PLAIN), "2.")
    assert marking.decode(alone) == "_2." and marking.decode(behind[:-1]) == "2."


def test_where_prompt_and_solution_meet_inside_of_a_token_the_solution_is_whole(tokenizer):
    joining = copy.deepcopy(tokenizer)
    joining.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("ab|[\\s\\S]"), behavior="isolated")
    joining.add_tokens("ab")
    assert len(joining("ab")["input_ids"]) == 1
    assert joining.decode(rollout.encode_behind(joining, "xa", "bc")) == "bc"


def test_a_tokenizer_without_an_end_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="no EOS token"):
        rollout.encode_solution(tokenizer, [], ("1+1?", None, rollout.PLAIN), "2")


def test_equal_questions_in_two_calls_get_further_completions_where_they_are_counted(model, tokenizer):
    """Evaluation samples in batches: duplicates in two of them had equal answers, counted as independent ones."""
    seen = Counter()
    options = {"max_new_tokens": 20, "seed": 1}
    first, second = (rollout.sample(model, tokenizer, ["a+b="], 3, seen=seen, **options) for _ in range(2))
    assert not set(map(tuple, completions_of(first))) & set(map(tuple, completions_of(second)))
    together = rollout.sample(model, tokenizer, ["a+b=", "a+b="], 3, **options)
    assert completions_of(together) == completions_of(first) + completions_of(second)


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1.5])
def test_a_top_p_that_leaves_nothing_to_choose_from_is_an_error(model, tokenizer, top_p):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        rollout.sample(model, tokenizer, ["a"], 2, max_new_tokens=3, top_p=top_p)


def test_a_text_has_one_beginning_of_sequence(tokenizer):
    """The tokenizer's where there is no chat template; with one, the template has written it."""
    with_beginning = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    with_beginning.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    beginning = PreTrainedTokenizerFast(tokenizer_object=with_beginning, bos_token="<unk>", eos_token="<eos>")
    plain = tokenizer("1+1?\n")["input_ids"]
    assert rollout.encode_prompt(beginning, "1+1?\n") == [2, *plain]
    beginning.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    prompt = rollout.render_prompt(beginning, "1+1?")
    assert prompt.startswith("<unk>1+1?")
    ids = rollout.encode_prompt(beginning, prompt)
    assert ids[:5] == [2, *plain[:4]] and ids.count(2) == 1 + sum(letter.isupper() for letter in rollout.INSTRUCTION)


# --- records and micro-batches -----------------------------------------------------------------------------------


def test_rows_are_moved_to_the_left_and_cut_to_the_longest(model, tokenizer):
    pairs = [([3, 4], [5, 6, 1]), ([3, 4, 5, 6], [7, 1]), ([3], [8, 9, 10, 1])]
    record = rollout.assemble(
        model, tokenizer, [rollout.Completion(prompt, answer, [-1.0] * len(answer)) for prompt, answer in pairs], 1
    )
    part = record.rows(torch.tensor([2, 0]))
    assert part.input_ids.tolist() == [[3, 8, 9, 10, 1], [3, 4, 5, 6, 1]]
    assert part.response_mask.int().tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert part.logps.tolist() == [[-1.0, -1.0, -1.0, -1.0], [0.0, -1.0, -1.0, -1.0]]  # of the predictions
    assert part.texts == [record.texts[2], record.texts[0]]


def test_groups_without_signal_give_way_to_others_in_place(model, tokenizer):
    sampled = rollout.sample(model, tokenizer, PROMPTS[:3], 2, max_new_tokens=12, seed=0)
    others = rollout.sample(model, tokenizer, PROMPTS[3:], 2, max_new_tokens=30, seed=0)
    placed = rollout.replace_groups(sampled, [1], others)
    before, after, further = (completions_of(record) for record in (sampled, placed, others))
    assert after == before[:2] + further + before[4:]
    assert placed.texts == sampled.texts[:2] + others.texts + sampled.texts[4:]
    recomputed, _ = rollout.token_logps(model, placed.input_ids, placed.attention_mask, placed.response_mask)
    torch.testing.assert_close(placed.logps, recomputed.detach(), atol=1e-4, rtol=1e-4)


def test_kept_hidden_states_stay_with_their_answers(model, tokenizer):
    """Through replaced groups, anchors and reordered rows, scoring gives the same with them as without."""
    sampled = rollout.sample(model, tokenizer, PROMPTS[:3], 3, max_new_tokens=12, seed=0, keep_hidden=True)
    others = rollout.sample(model, tokenizer, PROMPTS[3:], 3, max_new_tokens=20, seed=0, keep_hidden=True)
    placed = rollout.replace_groups(sampled, [1], others)
    questions = [{"problem": f"q{p}", "answer": "1"} for p in range(3)]
    solutions = anchors.Anchors(solutions={(("q2",), "1"): [([7, 8, 9, 1], 1.0)]})
    placed, _ = anchors.insert(
        model, tokenizer, placed, torch.zeros(3, 3), questions, solutions,
        count=1, hard_below=0.0, every_group=False, rng=random.Random(0),
    )  # fmt: skip
    part = placed.rows(torch.tensor([8, 6, 7, 2, 0, 1, 3, 5, 4]))
    assert [state is None for state in part.hidden] == part.anchor_mask.tolist() and part.anchor_mask.any()
    expected = scoring.gradient_gram(model, *part.tokens, 3)
    torch.testing.assert_close(
        scoring.gradient_gram(model, *part.tokens, 3, hidden=part.hidden), expected, rtol=1e-3, atol=1e-2
    )


def test_what_is_known_of_a_row_goes_with_it(model, tokenizer):
    """Marks and limits of rows 2 and 0, not of the first two."""
    completions = [rollout.Completion([3], [5, 1]), rollout.Completion([3], [6, 1]), rollout.Completion([3], [7, 8])]
    completions[2].is_anchor = True
    record = rollout.assemble(model, tokenizer, completions, 1)
    assert record.truncated.tolist() == [False, False, True]
    part = record.rows(torch.tensor([2, 0]))
    assert part.truncated.tolist() == [True, False] and part.anchor_mask.tolist() == [True, False]
    other = rollout.assemble(model, tokenizer, [rollout.Completion([3], [9, 9]), rollout.Completion([3], [4, 1])], 1)
    joined = rollout.combined(record, other, [3, 0, 4, 2])
    assert joined.truncated.tolist() == [True, False, False, True]
    assert joined.anchor_mask.tolist() == [False, False, False, True]


def test_lengths_of_prompts_and_completions(model, tokenizer):
    record = rollout.assemble(
        model, tokenizer, [rollout.Completion([3, 4, 5], [6, 1]), rollout.Completion([3], [7, 8, 9, 1])], 1
    )
    assert record.prompt_lengths.tolist() == [3, 1] and record.lengths.tolist() == [2, 4]


def test_every_group_that_gives_way_gets_the_next_of_the_others(model, tokenizer):
    sampled, others = (rollout.sample(model, tokenizer, PROMPTS[:3], 2, max_new_tokens=9, seed=s) for s in (0, 1))
    placed = rollout.replace_groups(sampled, [2, 0], others)
    assert placed.texts == others.texts[2:4] + sampled.texts[2:4] + others.texts[0:2]
