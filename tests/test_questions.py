"""Questions: broken lines named by file and line, Hub sets, gold answers, and the questions of a run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from conftest import SOLVED, write_questions

import questions
from questions import DataError
from rollout import PromptStyle

ROOT = Path(questions.__file__).parent


# --- copies ------------------------------------------------------------------------------------------------------


def test_copies_stay_and_are_counted(tmp_path):
    """1/2 and 0.5 are the same answer; two ids of one file are noted too."""
    half = [{"problem": "half?", "answer": "\\frac{1}{2}"}, {"problem": "half? ", "answer": "0.5"}]
    source = write_questions(
        tmp_path / "a.jsonl", [*half, {**SOLVED, "id": 1}, {"problem": "?", "answer": "1", "id": 1}]
    )
    given = questions.read_questions([source])
    kept, notes = questions.without_contradictions(given)
    assert kept == given
    assert notes == [
        f"1 questions repeat another one ({source}:2 that of {source}:1): each copy counts by itself.",
        f"1 questions have the `id` of another one ({source}:4 that of {source}:3): ids are not used.",
    ]


def test_one_question_with_two_answers_is_an_error_that_names_both_lines(tmp_path):
    lines = [SOLVED, *numbered(6), {**SOLVED, "answer": "3"}]
    source = write_questions(tmp_path / "a.jsonl", lines)
    with pytest.raises(
        DataError, match=r"a\.jsonl:1 and .*a\.jsonl:8 are the same question with different answers, 2 and 3"
    ):
        questions.split_questions([source], [], 1)
    split = questions.split_questions([source], [], 1, skip_bad=True)
    assert len(split.training) == 5 and "2 questions left out: their copies have other answers" in " ".join(split.notes)
    assert len(questions.split_questions([source], [], 1, check_golds=False).training) == 7  # a reward may want both


def test_choices_of_one_stem_with_two_letters_are_a_contradiction():
    one = {"problem": "Which?", "choices": ["1", "2"], "answer": "A"}
    with pytest.raises(DataError, match="different answers, A and B"):
        questions.without_contradictions([one, {**one, "answer": "B"}])
    assert questions.without_contradictions([one, {**one, "answer": " A"}])[0]


def test_golds_that_nobody_can_read_are_said_to_be_that(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", numbered(6))
    unreadable = write_questions(tmp_path / "b.jsonl", numbered(2, "\\frac{1"))
    with pytest.raises(
        DataError, match=r"--eval-data .*b\.jsonl: no question has an answer that the verifier can read"
    ):
        questions.split_questions([source], [unreadable], 1)


# --- Hub sets ----------------------------------------------------------------------------------------------------


def test_questions_with_an_unreadable_gold_are_set_apart():
    given = [SOLVED, {"problem": "?", "answer": "\\frac{1"}]
    assert questions.drop_unreadable(given) == ([SOLVED], [given[1]])


# --- questions of a run ----------------------------------------------------------------------------------------------


def test_held_out_questions_are_never_trained_on():
    both = [str(ROOT / "examples" / "arithmetic" / f"{name}.jsonl") for name in ("train", "held_out")]
    split = questions.split_questions(both, both[1:], 4)
    assert len(split.training) == 1800 and len(split.held_out) == 300
    assert not {q["problem"] for q in split.training} & {q["problem"] for q in split.held_out}
    assert split.notes == ["300 training questions are held-out ones too: left out of training."]
    split = questions.split_questions(both, [], 1000)
    assert len(split.held_out) == 420 and len(split.training) == 1680  # at most a fifth
    assert split.notes == ["--hold-out 1000: only 420 questions are held out, a fifth of the data."]
    assert not {q["problem"] for q in split.training} & {q["problem"] for q in split.held_out}


def test_too_few_different_questions_are_told_what_would_do(tmp_path):
    """30 copies of one question are one question."""
    source = write_questions(tmp_path / "copies.jsonl", [SOLVED] * 30)
    with pytest.raises(
        DataError, match=r"1 different usable questions are too few.*five or more, or others by --eval-data"
    ):
        questions.split_questions([source], [], 4)


def test_a_training_question_with_the_stem_of_a_held_out_one_is_not_dropped(tmp_path):
    """With choices of its own it is another question."""
    lines = [{"problem": "Which?", "choices": ["1", str(n)], "answer": "A"} for n in range(6)]
    split = questions.split_questions(
        [write_questions(tmp_path / "train.jsonl", lines)], [write_questions(tmp_path / "held.jsonl", lines[:1])], 1
    )
    assert len(split.training) == 5 and len(split.held_out) == 1


def test_questions_that_leave_no_room_for_a_completion_are_left_out(model, tokenizer):
    """256 positions: a prompt of 5 tokens fits beside 250 tokens of completion, one of 8 does not."""
    given = [{"problem": "1+1?"}, {"problem": "what ??"}]
    kept, notes = questions.fitting(model, tokenizer, given, 250)
    assert kept == given[:1] and "1 questions left out" in notes[0]
    assert questions.fitting(model, tokenizer, given[:1], 250) == (given[:1], [])
    with pytest.raises(DataError, match="--max-new-tokens 256: no question fits"):
        questions.fitting(model, tokenizer, given, 256)


# --- fields ------------------------------------------------------------------------------------------------------


def test_prompts_have_their_choices(tokenizer):
    question = {"problem": "1+1?", "answer": "B", "choices": ["3", "2"]}
    assert questions.prompt_of(tokenizer, question) == ("1+1?\nA. 3\nB. 2\nThe answer is the letter of one choice.\n")


# --- rewards -----------------------------------------------------------------------------------------------------


def test_no_completion_is_right_where_the_gold_cannot_be_read():
    unreadable = {"problem": "?", "answer": "\\frac{1"}
    assert questions.correctness(["\\boxed{2}", "\\boxed{3}", "\\boxed{1}"], [SOLVED, SOLVED, unreadable]) == [1, 0, 0]


def test_a_question_says_how_far_a_number_may_be_from_its_answer():
    exact, rounded = {"problem": "?", "answer": "6.63"}, {"problem": "?", "answer": "6.63", "rel_tol": 0.01}
    assert questions.correctness(["6.626", "6.626", "6.7"], [exact, rounded, rounded]) == [0.0, 1.0, 0.0]


def test_choices_are_graded_as_letters():
    """`the first, A` is the text of no answer, and the letter of one."""
    question = {"problem": "1+1?", "answer": "A", "choices": ["2", "3"]}
    assert questions.correctness(["I take (A), the first", "B"], [question, question]) == [1.0, 0.0]


# --- splits and order --------------------------------------------------------------------------------------------


def numbered(count, answer="1"):
    return [{"problem": f"question {number:02d}", "answer": answer} for number in range(count)]


def test_golds_are_checked_for_the_verifier_only(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [*numbered(10), {"problem": "?", "answer": "\\frac{1"}])
    split = questions.split_questions([source], [], 2)
    assert len(split.training) + len(split.held_out) == 10
    assert split.notes == [
        f"{source}:11: left out, the answer '\\\\frac{{1' cannot be read",
        "1 questions left out: their gold answer cannot be read.",
    ]
    split = questions.split_questions([source], [], 2, check_golds=False)
    assert len(split.training) + len(split.held_out) == 11 and split.notes == []


def test_only_three_of_many_unreadable_golds_are_named(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [*numbered(10), *numbered(6, "\\frac{1")])
    assert len(questions.split_questions([source], [], 2).notes) == 4


def test_as_many_are_held_out_as_asked_for_and_not_the_first_ones(tmp_path):
    """The choice depends on the questions alone: with the file turned round it is the same."""
    lines = numbered(50)
    chosen = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        source = write_questions(tmp_path / f"{name}.jsonl", order)
        chosen.append([question["problem"] for question in questions.split_questions([source], [], 4).held_out])
    assert chosen[0] == chosen[1] and len(chosen[0]) == 4
    assert chosen[0] not in (sorted(each["problem"] for each in lines)[:4], sorted(chosen[0]))


def test_a_space_at_its_end_does_not_make_a_held_out_question_another_one(tmp_path):
    training = write_questions(tmp_path / "a.jsonl", [SOLVED, {**SOLVED, "problem": "1+1? "}, *numbered(3)])
    for problem in ("1+1?", "1+1? "):
        held_out = write_questions(tmp_path / "b.jsonl", [{**SOLVED, "problem": problem}])
        split = questions.split_questions([training], [held_out], 1)
        assert [question["problem"] for question in split.training] == [each["problem"] for each in numbered(3)]


def test_the_systems_turn_is_in_the_prompt_and_counts_where_it_has_to_fit(model, tokenizer):
    """256 positions: 10 of them for the prompt, 5 of these for the turn of the system."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}{{ m.content[:4] }}.{% endfor %}"
    style = PromptStyle(system="be a good one")
    assert questions.prompt_of(chat, SOLVED, style) == "be a.1+1?."
    assert questions.fitting(model, chat, [SOLVED], 246, style)[0] == [SOLVED]
    with pytest.raises(DataError, match="no question fits"):
        questions.fitting(model, chat, [SOLVED], 247, style)
    assert questions.fitting(model, chat, [SOLVED], 251)[0] == [SOLVED]


def test_a_system_turn_without_a_chat_template_is_refused(tokenizer):
    """It was left out without a word."""
    with pytest.raises(DataError, match="the tokenizer has none: leave them out"):
        questions.prompt_of(tokenizer, SOLVED, PromptStyle(enable_thinking=False))


def test_too_few_questions_to_hold_some_out_are_an_error(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", numbered(4))
    with pytest.raises(DataError, match="4 different usable questions are too few"):
        questions.split_questions([source], [], 1)
    with pytest.raises(DataError, match="all its 4 questions are in --eval-data too"):
        questions.split_questions([source], [source], 1)


def test_a_question_may_take_all_the_positions_that_are_left(model, tokenizer):
    """A prompt of 5 tokens beside 251 of completion: 256 positions."""
    given = [{"problem": "1+1?"}]
    assert questions.fitting(model, tokenizer, given, 251) == (given, [])
    with pytest.raises(DataError, match="no question fits"):
        questions.fitting(model, tokenizer, given, 252)


def test_every_epoch_has_every_question_once_in_another_order():
    given = numbered(12)
    stream = questions.question_stream(given, 3)
    epochs = [[next(stream)["problem"] for _ in given] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [question["problem"] for question in given]
    orders = {tuple(epoch) for epoch in epochs} | {tuple(question["problem"] for question in given)}
    assert len(orders) == 4
    again, other = (questions.question_stream(given, seed) for seed in (3, 4))
    assert [next(again)["problem"] for _ in given] == epochs[0] != [next(other)["problem"] for _ in given]
