"""The agreement with Math-Verify: answers made of a gold answer, who is right where the two differ, the table."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import agreement
import pytest
from agreement import CUT, MADE, Answer, Verdict, kept_lines, made_answers, report, who_is_right, why_refused

import verify

QUESTIONS = [
    {"id": "math500-1", "problem": "a", "answer": r"\frac{3}{4}", "solution": r"So it is \boxed{\frac{3}{4}}."},
    {"id": "math500-2", "problem": "b", "answer": "12", "solution": None},
    {"id": "math500-3", "problem": "c", "answer": r"(1,2)", "solution": None},
    {"id": "math500-4", "problem": "d", "answer": "3,5,7", "solution": None},
    {"id": "math500-5", "problem": "e", "answer": r"\frac{2}{3}", "solution": None},
]


@pytest.fixture
def folder(tmp_path):
    for name in agreement.BENCHMARKS:
        rows = QUESTIONS if name == "math500" else []
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answer(kind: str, text: str, gold: str = "5", right: bool | None = True) -> Answer:
    return Answer("math500-9", kind, gold, text, r"\boxed{{{}}}", right)


@pytest.mark.parametrize(
    ("kind", "gold", "made"),
    [
        ("rounded", r"\frac{2}{3}", "0.667"),
        ("rounded", r"\frac{3}{4}", None),  # 0.75 is the same value
        ("tuple reordered", "(1,2)", "(2, 1)"),
        ("tuple reordered", "(2,2)", None),
        ("list reordered", "3,5,7", "7, 5, 3"),
        ("list cut short", "3,5,7", "5, 7"),
        ("list reordered", "(1,2)", None),
        ("another value", "0", None),  # twice nothing is nothing
        ("with a unit", "x + 1", None),
    ],
)
def test_what_is_made_of_a_gold_answer(kind, gold, made):
    assert MADE[kind][0](gold, random.Random(0)) == made


@pytest.mark.parametrize("gold", ["12", "-7", r"\frac{22}{7}", r"\frac{3}{4}", "1.5"])
def test_another_form_of_a_number_has_its_value(gold):
    for seed in range(8):
        form = MADE["other number form"][0](gold, random.Random(seed))
        if form is not None:
            plain = form.replace(r"\frac{", "(").replace("}{", ")/(").replace("}", ")").replace(r"\cdot", "*")
            assert eval(plain) == pytest.approx(float(agreement.value_of(gold)), rel=1e-12)


def test_the_same_answers_are_made_again_and_each_says_what_it_is(folder):
    answers = list(made_answers(folder))
    assert answers == list(made_answers(folder))
    assert {a.kind for a in answers} >= {"as it is", "solution", CUT, "rounded", "tuple reordered", "gold of another"}
    assert next(a for a in answers if a.kind == CUT).text == r"So it is \boxed{\\"[:-1]
    assert len({(a.id, a.answer, a.right) for a in answers if a.kind in MADE}) == sum(a.kind in MADE for a in answers)


def test_this_verifier_agrees_with_how_they_were_made(folder):
    answers = [a for a in made_answers(folder) if a.kind != CUT]
    verdicts = verify.grade([a.text for a in answers], [a.gold for a in answers])
    assert [bool(v) for v in verdicts] == [a.right for a in answers]


@pytest.mark.parametrize(
    ("kind", "right", "here", "there", "who"),
    [
        ("other LaTeX", True, True, False, "here"),
        ("other LaTeX", True, False, True, "there"),
        ("another value", False, True, False, "there"),
        ("another value", False, False, True, "here"),
        ("another value", False, None, True, "there"),
        (CUT, False, False, True, "open"),
        ("of the model", None, True, False, "open"),
    ],
)
def test_the_making_of_an_answer_says_who_is_right(kind, right, here, there, who):
    assert who_is_right(answer(kind, "5", right=right), here, there, lambda _: False)[0] == who


@pytest.mark.parametrize(
    ("text", "accepted", "reason"),
    [
        ("5.", ("5",), "a full stop inside of the formula"),
        (r"5 \text{ cm}", ("5 ",), "a unit behind the number"),
        (r"$\dfrac12$", (r"\frac{1}{2}",), "several of these in one answer"),
        ("6 - 1", (), "the same value in another form (to be computed)"),
    ],
)
def test_the_reason_for_a_refusal_is_the_change_that_ends_it(text, accepted, reason):
    assert why_refused(answer("to be computed", text), lambda changed: changed.answer in accepted) == reason


def test_a_gold_in_the_notation_of_programs_is_a_reason_of_its_own():
    assert "1.07e16" in why_refused(answer("as it is", "5", gold="2e3"), lambda _: False)


def test_the_table_counts_agreement_and_who_is_right(capsys):
    verdicts = [
        Verdict("math500-1", "solution", True, True),
        Verdict("math500-1", "as it is", True, False, "here", "refused there: a"),
        Verdict("math500-2", "as it is", False, True, "there", "not read yet"),
        Verdict("minerva-1", "as it is", False, False),
        Verdict("minerva-2", "as it is", None, True, "there", "left out"),
        Verdict("minerva-3", "as it is", False, False, "neither", "both against what its making says"),
    ]
    lines = kept_lines(verdicts)
    assert lines[0] == {"benchmark": "math500", "kind": "solution", "answers": 1, "both right": 1, "both wrong": 0}
    assert [line for line in lines if "id" in line] == [asdict(verdict) for verdict in verdicts if verdict.who]
    report(lines)
    rows = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines() if "%" in line}
    assert rows["all"] == ["6", "3", "50.00%", "1", "2", "0"]
    assert rows["as it is"] == ["5", "2", "40.00%", "1", "2", "0"]
    assert rows["all of minerva"] == ["3", "2", "66.67%", "0", "1", "0"]


def test_of_every_disagreement_that_is_kept_the_reason_is_known():
    verdicts = [v for v in agreement.verdicts_of(agreement.rows_of(agreement.KEPT)) if v.differ]
    assert verdicts and {verdict.who for verdict in verdicts} <= {"here", "there", "open"}
    unread = [verdict for verdict in verdicts if "not read yet" in verdict.reason]
    assert all(verdict.kind.startswith("of the model") for verdict in unread)
    kept = {(verdict.id, verdict.kind) for verdict in verdicts}
    assert set(agreement.READ) <= kept, "what was read is still there"
