"""Verified anchors, and groups with anchors in place: equation (6)."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import SOLVED, write_questions
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

import anchors
import rollout
from questions import DataError

# --- loading anchors ---------------------------------------------------------------------------------------------


def test_solutions_that_fail_or_are_too_long_are_left_out_by_line(tmp_path, tokenizer):
    long = {"problem": "long?", "answer": "2", "solution": "a" * 50 + "\\boxed{2}"}
    wrong = {"problem": "wrong?", "answer": "3", "solution": "\\boxed{2}"}
    none = {"problem": "none?", "answer": "3"}
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, wrong, none, long])
    loaded = anchors.load(source, tokenizer=tokenizer, max_new_tokens=40)
    assert list(loaded.solutions) == [(("1+1?",), "2")]
    assert [line.split(": ")[0] for line in loaded.left_out] == [f"{source}:2", f"{source}:4"]
    assert "does not reach the answer 3" in loaded.left_out[0] and "limit is 40" in loaded.left_out[1]


def test_the_limit_counts_the_eos(tokenizer):
    tokens = len(SOLVED["solution"])
    assert anchors.load([SOLVED], tokenizer=tokenizer, max_new_tokens=tokens + 1).solutions
    assert not anchors.load([SOLVED], tokenizer=tokenizer, max_new_tokens=tokens).solutions


# --- which question a solution joins ---------------------------------------------------------------------------------

STEM = {"problem": "Which is prime?", "solution": "It is 7: \\boxed{B}"}
FIRST = {**STEM, "choices": ["6", "7"], "answer": "B"}
SECOND = {**STEM, "choices": ["7", "9"], "answer": "A", "solution": "It is 7: \\boxed{A}"}


def test_questions_with_one_stem_and_other_choices_do_not_share_solutions():
    """200 stems of MMLU-Pro stand for several questions: an anchor of another one would be wrong, and rewarded."""
    solutions = anchors.load([FIRST, SECOND])
    for question in (FIRST, SECOND):
        assert solutions.available(question) == [(question["solution"], 1.0)]
    assert solutions.available({**FIRST, "choices": ["7", "6"]}) == []


def test_a_solution_is_graded_against_the_question_that_it_joins(tokenizer):
    """The file of solutions says 5, the training data says 4: a solution that reaches 5 is no anchor there."""
    source = [
        {"problem": "2+2?", "answer": "5", "solution": "\\boxed{5}", "where": "f:1"},
        {"problem": "2+2?", "answer": "5", "solution": "it is \\boxed{4}", "where": "f:2"},
    ]
    training = {"problem": "2+2?", "answer": "4"}
    solutions = anchors.load(source, joining=[training], tokenizer=tokenizer)
    assert [tokenizer.decode(ids[:-1]) for ids, _ in solutions.available(training)] == ["it is \\boxed{4}"]
    assert solutions.left_out == ["f:1: the solution does not reach the answer 4"]
    assert solutions.available(source[0]) == []


def test_a_solution_that_stands_twice_is_one_anchor(tokenizer):
    """Duplicate lines gave a group the same anchor twice."""
    solutions = anchors.load([SOLVED, dict(SOLVED), {**SOLVED, "solution": "\\boxed{2}"}], tokenizer=tokenizer)
    assert len(solutions.available(SOLVED)) == 2


def test_a_solution_that_earns_too_little_is_left_out_for_that_reason():
    """Not for the answer, which a reward of one's own need not look at."""
    solutions = anchors.load([SOLVED], reward=lambda texts, questions: [0.25], right=0.5)
    assert solutions.left_out == ["1+1?: the solution earns 0.25, and 0.5 is right"]


def test_right_is_what_earns_as_much_as_was_said(model, tokenizer):
    """A format reward of 0.1 for everyone makes no anchor of a failing solution; a penalty has 0 as its best value."""

    def with_format(texts, questions):
        return [0.1 + ("2}" in text) for text in texts]

    wrong = {**SOLVED, "solution": "\\boxed{3}"}
    solutions = anchors.load([SOLVED, wrong], reward=with_format, right=1.0, tokenizer=tokenizer)
    assert [reward for _, reward in solutions.available(SOLVED)] == [1.1]
    _, placed, rewards = place(model, tokenizer, [SOLVED], [[0.1, 0.1]], solutions, right=1.0)
    assert placed.anchor_mask.tolist() == [False, True] and rewards[0].tolist() == pytest.approx([0.1, 1.1])
    penalties = anchors.load(
        [SOLVED], reward=lambda texts, questions: [0.0] * len(texts), right=0.0, tokenizer=tokenizer
    )
    _, placed, rewards = place(model, tokenizer, [SOLVED], [[-1.0, -2.0]], penalties, right=0.0)
    assert placed.anchor_mask.tolist() == [False, True] and rewards.tolist() == [[-1.0, 0.0]]


def test_where_no_question_has_an_anchor_training_goes_on_without():
    kept, notes = anchors.verified(anchors.Anchors(), [SOLVED], 0)
    assert kept == [SOLVED] and notes[-1] == "No question has an anchor: training goes on without."
    with pytest.raises(DataError, match="no question has 1 solutions"):
        anchors.verified(anchors.Anchors(), [SOLVED], 1)


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "hard_below", "hard"),
    [([0, 0, 0, 0], 0.0, True), ([0, 0, 0, 1], 0.0, False), ([0, 0, 0, 1], 0.25, True), ([0, 1, 0, 1], 0.25, False)],
)
def test_a_question_is_hard_at_or_under_the_pass_rate(rewards, hard_below, hard):
    assert bool(anchors.is_hard(torch.tensor(rewards, dtype=torch.float), 1.0, hard_below)) is hard


def sampled_groups(model, tokenizer, questions, size):
    prompts = [rollout.render_prompt(tokenizer, question["problem"]) for question in questions]
    return rollout.sample(model, tokenizer, prompts, size, max_new_tokens=12, seed=0)


def place(model, tokenizer, questions, rewards, solutions, **options):
    rewards = torch.tensor(rewards, dtype=torch.float)
    sampled = sampled_groups(model, tokenizer, questions, rewards.shape[1])
    options = {"count": 1, "hard_below": 0.0, "every_group": False, "rng": random.Random(0), **options}
    placed, new_rewards = anchors.insert(model, tokenizer, sampled, rewards, questions, solutions, **options)
    return sampled, placed, new_rewards


def tokens(record, row):
    return record.input_ids[row][record.response_mask[row]].tolist()


@pytest.mark.parametrize("size", [2, 3, 8])
def test_anchors_enter_hard_groups_only_and_replace_the_last_failing_answer(model, tokenizer, size):
    questions = [
        SOLVED,
        {"problem": "2+2?", "answer": "4", "solution": "\\boxed{4}"},
        {"problem": "no anchor", "answer": "1"},
    ]
    solutions = anchors.load(questions, tokenizer=tokenizer)
    rewards = [[0.0] * size, [1.0] + [0.0] * (size - 1), [0.0] * size]
    sampled, placed, new_rewards = place(model, tokenizer, questions, rewards, solutions)
    assert placed.group_size == size and placed.anchor_mask.nonzero().flatten().tolist() == [size - 1]
    assert new_rewards.tolist() == [[0.0] * (size - 1) + [1.0], rewards[1], rewards[2]]
    for row in range(3 * size):
        if row != size - 1:
            assert tokens(placed, row) == tokens(sampled, row)
            assert torch.equal(
                placed.logps[row][placed.prediction_mask[row]], sampled.logps[row][sampled.prediction_mask[row]]
            )
    anchor = tokens(placed, size - 1)
    assert anchor[-1] == tokenizer.eos_token_id and tokenizer.decode(anchor[:-1]) == SOLVED["solution"]
    prompt = placed.input_ids[size - 1][placed.attention_mask[size - 1] & ~placed.response_mask[size - 1]]
    assert tokenizer.decode(prompt.tolist()) == "1+1?\n"
    assert not bool(placed.truncated[size - 1])


def test_right_answers_of_a_hard_group_are_not_replaced(model, tokenizer):
    """With --hard-below 0.5 a group with two right answers is hard: three anchors are asked for, two places fail."""
    further = [{**SOLVED, "solution": f"{SOLVED['solution']}{end}"} for end in (".", "!")]
    solutions = anchors.load([SOLVED, *further], tokenizer=tokenizer)
    sampled, placed, rewards = place(
        model, tokenizer, [SOLVED], [[1.0, 0.0, 1.0, 0.0]], solutions, count=3, hard_below=0.5
    )
    assert placed.anchor_mask.tolist() == [False, True, False, True]
    assert rewards.tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert tokens(placed, 0) == tokens(sampled, 0) and tokens(placed, 2) == tokens(sampled, 2)


def test_no_more_anchors_than_there_are(model, tokenizer):
    solutions = anchors.load([SOLVED], tokenizer=tokenizer)
    _, placed, _ = place(model, tokenizer, [SOLVED], [[0.0] * 4], solutions, count=3)
    assert placed.anchor_mask.tolist() == [False, False, False, True]


def test_no_more_anchors_than_asked_for(model, tokenizer):
    solutions = anchors.load([SOLVED, {**SOLVED, "solution": "\\boxed{2}"}], tokenizer=tokenizer)
    _, placed, _ = place(model, tokenizer, [SOLVED], [[0.0] * 4], solutions, count=1)
    assert placed.anchor_mask.tolist() == [False, False, False, True]


def test_one_threshold_says_which_group_is_hard_and_which_completion_fails(model, tokenizer):
    solutions = anchors.load([SOLVED], tokenizer=tokenizer)
    _, placed, _ = place(model, tokenizer, [SOLVED], [[0.0, 0.5, 0.4]], solutions, right=0.5)
    assert not placed.anchor_mask.any()
    _, placed, _ = place(model, tokenizer, [SOLVED], [[0.0, 0.4, 0.5]], solutions, right=0.5, hard_below=0.5)
    assert placed.anchor_mask.tolist() == [False, True, False]


def test_each_anchor_keeps_its_own_reward(model, tokenizer):
    """A reward of one's own may value two solutions differently, whatever their order in the file."""
    other = {**SOLVED, "solution": "\\boxed{2}"}
    solutions = anchors.load(
        [SOLVED, other], reward=lambda texts, questions: [1.0 / len(text) for text in texts], right=0.01,
        tokenizer=tokenizer,
    )  # fmt: skip
    earned = {tokenizer.decode(solution[:-1]): reward for solution, reward in solutions.available(SOLVED)}
    assert earned == {each["solution"]: 1.0 / len(each["solution"]) for each in (SOLVED, other)}
    _, placed, rewards = place(model, tokenizer, [SOLVED], [[0.0, 0.0]], solutions, count=2, right=0.01)
    assert rewards[0].tolist() == pytest.approx([1.0 / len(text) for text in placed.texts])


def test_every_group_appends_the_anchors(model, tokenizer):
    """LUFFY: also to a solved group, behind the sampled answers."""
    solutions = anchors.load([SOLVED], tokenizer=tokenizer)
    sampled, placed, rewards = place(model, tokenizer, [SOLVED], [[1.0, 1.0, 0.0]], solutions, every_group=True)
    assert placed.group_size == 4 and placed.anchor_mask.tolist() == [False, False, False, True]
    assert rewards.tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert [tokens(placed, i) for i in range(3)] == [tokens(sampled, i) for i in range(3)]


def test_where_no_group_gets_an_anchor_the_batch_is_not_touched(model, tokenizer):
    """Nor is what was given changed where one does."""
    solutions = anchors.load([SOLVED], tokenizer=tokenizer)
    sampled, placed, rewards = place(model, tokenizer, [SOLVED], [[1.0, 0.0]], solutions)
    assert placed is sampled and rewards.tolist() == [[1.0, 0.0]]
    rewards = torch.zeros(1, 2)
    before = sampled.input_ids.clone()
    options = {"count": 1, "hard_below": 0.0, "every_group": True, "rng": random.Random(0)}
    placed, new_rewards = anchors.insert(model, tokenizer, sampled, rewards, [SOLVED], solutions, **options)
    assert rewards.tolist() == [[0.0, 0.0]] and torch.equal(sampled.input_ids, before) and sampled.group_size == 2
    assert new_rewards.tolist() == [[0.0, 0.0, 1.0]]


def test_groups_of_one_anchor_for_fine_tuning(model, tokenizer):
    solutions = anchors.load([SOLVED], tokenizer=tokenizer)
    placed, rewards = anchors.only(model, tokenizer, [SOLVED, SOLVED], solutions, random.Random(0))
    assert placed.anchor_mask.all() and placed.group_size == 1 and rewards.tolist() == [[1.0], [1.0]]
    assert tokenizer.decode(tokens(placed, 1)) == SOLVED["solution"] + "<eos>"


def test_a_space_at_the_end_of_a_question_does_not_part_it_from_its_anchor(tokenizer):
    """On either side: in the file of anchors, and in that of questions."""
    spaced = {**SOLVED, "problem": " 1+1? "}
    for of_anchor, of_question in ((SOLVED, spaced), (spaced, SOLVED)):
        assert len(anchors.load([of_anchor], tokenizer=tokenizer).available(of_question)) == 1


def test_anchors_have_no_special_tokens_but_their_eos(tokenizer):
    """A tokenizer that begins every text with a token of its own: a completion does not begin a text."""
    begun = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    begun.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    beginning = PreTrainedTokenizerFast(tokenizer_object=begun, eos_token="<eos>", pad_token="<pad>")
    assert beginning("1")["input_ids"][0] == 2
    ((solution, _),) = anchors.load([SOLVED], tokenizer=beginning).available(SOLVED)
    assert solution == [*tokenizer(SOLVED["solution"])["input_ids"], 1]


def test_failing_is_a_completion_that_earns_less_than_an_anchor(model, tokenizer):
    """Not just one that earns nothing."""
    solutions = anchors.load([SOLVED], tokenizer=tokenizer)
    _, placed, rewards = place(model, tokenizer, [SOLVED], [[0.0, 0.5]], solutions)
    assert placed.anchor_mask.tolist() == [False, True] and rewards.tolist() == [[0.0, 1.0]]


def test_fine_tuning_takes_any_of_a_questions_anchors_with_its_reward(model, tokenizer):
    solutions = anchors.Anchors({(("1+1?",), "2"): [([5, 1], 1.0), ([6, 1], 0.5)]})
    placed, rewards = anchors.only(model, tokenizer, [SOLVED] * 20, solutions, random.Random(0))
    earned = {5: 1.0, 6: 0.5}
    first = [tokens(placed, row)[0] for row in range(20)]
    assert set(first) == {5, 6} and rewards.tolist() == [[earned[token]] for token in first]


# --- the anchors of a run ----------------------------------------------------------------------------------------


BARE = {"problem": "2+2?", "answer": "4"}
OTHER = {**SOLVED, "solution": "Two: \\boxed{2}"}


def verified(tokenizer, questions, source, needed=0):
    solutions = anchors.load(source, joining=questions, tokenizer=tokenizer, max_new_tokens=40)
    return anchors.verified(solutions, questions, needed)


def test_questions_with_as_many_anchors_as_are_needed_stay(tokenizer):
    """One has an anchor, the other has none, and the file has one more question that is not asked."""
    elsewhere = {"problem": "3+3?", "answer": "6", "solution": "\\boxed{6}"}
    source = [SOLVED, BARE, elsewhere]
    enough, notes = verified(tokenizer, [SOLVED, BARE], source)
    assert enough == [SOLVED, BARE] and notes == ["Anchors: 1 of 2 questions have one; 0 solutions left out."]
    enough, notes = verified(tokenizer, [SOLVED, BARE], source, needed=1)
    assert enough == [SOLVED] and notes[1:] == ["1 questions have fewer than 1 anchors: left out."]
    assert verified(tokenizer, [SOLVED, SOLVED, BARE], source)[1][0].startswith("Anchors: 2 of 3 questions have one")
    enough, _ = verified(tokenizer, [SOLVED, BARE], [SOLVED, OTHER], needed=2)
    assert enough == [SOLVED]


def test_only_three_of_many_anchors_that_are_left_out_are_named(tokenizer):
    wrong = [{**SOLVED, "solution": f"\\boxed{{{number}}}"} for number in range(3, 9)]
    _, notes = verified(tokenizer, [SOLVED], [SOLVED, *wrong])
    assert [note.startswith("Anchor left out, 1+1?: ") for note in notes] == [True, True, True, False]
    assert "6 solutions left out" in notes[3]


def test_a_run_without_questions_that_have_enough_anchors_is_an_error(tokenizer):
    with pytest.raises(DataError, match="no question has 2 solutions that reach its answer and fit the token limit"):
        verified(tokenizer, [SOLVED, BARE], [SOLVED], needed=2)
