"""The questions of the comparison on a language model: which are drawn, their solutions, and what is kept apart."""

from __future__ import annotations

import pytest
from made_up_problems import SUMS, problems, sets

import verify
from study.word_questions import HELD_OUT, WHOLE, are_siblings, draw, draw_whole, shingles, solution_of


@pytest.mark.parametrize(
    ("one", "other", "siblings"),
    [
        ("Tom has 3 red apples and 5 pears", "Tom has 3 red apples and 9 plums", True),  # 3 of 5 runs
        ("Tom has 3 red apples and 5 pears", "tom HAS 3 red, apples: and 5 pears!", True),
        ("Tom has 3 red apples and 5 pears", "Ann has 7 red apples and 5 pears", False),  # 2 of 5
        ("Tom has 3 red apples", "Tom has 3 red apples, and Ann has 4 green ones", True),  # 2 of the 2 of the shorter
        ("How many are left now", "How many are there in all", False),
        ("Six?", "Six?", True),
    ],
)
def test_questions_that_share_half_of_their_runs_of_words_are_siblings(one, other, siblings):
    assert are_siblings(shingles(one), shingles(other)) == siblings


@pytest.mark.parametrize(
    ("problem", "answer", "solution"),
    [
        ("Tom has 7 pears and buys 5.", "12", r"7 + 5 = \boxed{12}"),
        ("Seven pears, and twelve plums: how many more plums?", "5.0", r"12 - 7 = \boxed{5}"),
        ("Of 12 pears Tom eats 7. One is left on the table?", "5", r"12 - 7 = \boxed{5}"),  # `one` is no number
        ("$20 and $3.00 together", "23", r"20 + 3 = \boxed{23}"),
        ("Of 1,200 pears Tom eats 7", "1193", None),  # too large
        ("4 pears, 4 plums, how many more plums?", "0", r"4 - 4 = \boxed{0}"),
        ("2 rows of 9 pears", "18", None),  # neither sum nor difference
        ("7 pears and 5 plums and 3 nuts", "12", None),  # a third number
        ("7 pears", "7", None),
        ("Tom has 2.5 pears and buys 5.", "7.5", None),
        ("Who has more, with 7 pears and 5?", "Tom", None),
        ("Billy ate seventy-four pears of 8", "4", None),  # 8 - 4, but for the seventy
        ("What is the greatest divisor of 10 and 15?", "5", None),  # 15 - 10, by chance
    ],
)
def test_a_solution_is_the_one_sum_or_difference_of_two_small_numbers_that_is_the_answer(problem, answer, solution):
    assert solution_of({"problem": problem, "answer": answer}) == solution


def test_no_held_out_question_has_a_sibling_in_training():
    found = sets()
    for question in list(found["svamp"]):  # a copy with another end in what is trained on
        found["mawps"].append({**question, "problem": question["problem"] + " more"})
    drawn = draw(found, SUMS, 4, 4)
    training = drawn["training"] + drawn["validation"]
    held_out = [shingles(question["problem"]) for name in HELD_OUT for question in drawn[name]]
    assert [len(drawn[name]) for name in HELD_OUT] == [4] * 3 and len(drawn["validation"]) == 4
    assert not any(are_siblings(shingles(question["problem"]), own) for question in training for own in held_out)
    kept = [question["problem"] for question in training if question["problem"].endswith(" more")]
    assert kept, "those whose sibling is not held out stay"


def test_nothing_of_svamp_is_trained_on():
    drawn = draw(sets(), SUMS, 4, 4)
    problems = [question["problem"] for question in drawn["training"] + drawn["validation"]]
    assert not [problem for problem in problems if problem.startswith("svamp")]
    assert all(any(problem.startswith(name) for problem in problems) for name in ("mawps", "asdiv", "What is"))


def test_as_many_sums_as_word_problems_are_trained_on_as_far_as_there_are():
    def counts(sums: list[dict]) -> tuple[int, int]:
        training = draw(sets(), sums, 4, 4)["training"]
        bare = sum(question["problem"].startswith("What is") for question in training)
        return bare, len(training) - bare

    assert counts(SUMS * 10) == (12, 12) and counts(SUMS) == (9, 12)  # 2 sets of 12, less 4 each and 4 of validation


def test_a_question_that_stands_in_two_sets_is_there_once():
    drawn = draw(sets(asdiv=problems("mawps", 12) + problems("asdiv", 6)), SUMS, 4, 4)
    every = [question["problem"] for name in (*HELD_OUT, "training", "validation") for question in drawn[name]]
    assert len(every) == len(set(every))


def test_every_question_has_a_solution_that_the_verifier_takes_for_right():
    for questions in draw(sets(), SUMS, 4, 4).values():
        assert questions
        solutions, answers = [[question[name] for question in questions] for name in ("solution", "answer")]
        assert verify.grade(solutions, answers) == [True] * len(questions)


def test_the_same_questions_are_drawn_again():
    assert draw(sets(), SUMS, 4, 4) == draw(sets(), SUMS, 4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Sets as they are
# ---------------------------------------------------------------------------------------------------------------------


def test_a_whole_set_has_questions_of_every_kind_with_their_own_answers():
    every = sets(gsm8k_test=[{"problem": "Of 70 pears 9 are left", "answer": "61", "solution": "Count."}])
    every["svamp"] = [{"problem": "Who is taller?", "answer": "Tom", "solution": None}]
    drawn = draw_whole(every, [], 5)
    assert {name: len(own) for name, own in drawn.items()} == {"mawps": 5, "asdiv": 5, "svamp": 1, "gsm8k_test": 1}
    assert drawn["svamp"] == every["svamp"] and drawn["gsm8k_test"] == every["gsm8k_test"]
    assert all(question in every["mawps"] for question in drawn["mawps"]) and drawn == draw_whole(every, [], 5)


def test_a_whole_set_has_no_sibling_of_what_is_trained_on_and_nothing_twice():
    every = sets()
    every["mawps"] += every["mawps"]
    first = every["mawps"][0]
    sibling = {**first, "problem": first["problem"] + " more"}
    drawn = draw_whole(every, [sibling], 100)
    assert [len(drawn[name]) for name in WHOLE] == [11, 12, 12, 12] and first not in drawn["mawps"]
