"""--map on the command line, and the first question as it is shown before training and after measuring."""

from __future__ import annotations

import json

import pytest
from conftest import write_questions

import dagrpo
import evaluate
from harness.command import ConfigError
from harness.mapping import first_question, names_of
from questions import prompt_of
from rollout import PLAIN

ROWS = [{"q": f"what is {n}+{n}?", "target": 2 * n} for n in range(1, 9)]
TINY = "--steps 1 --questions 2 --group-size 2 --eval-samples 1 --eval-every 0 --hold-out 1 --max-new-tokens 4"


def test_names_are_given_with_commas_or_spaces():
    both = {"problem": "question", "answer": "reward_model.ground_truth"}
    assert names_of(["problem=question,answer=reward_model.ground_truth"]).places == both
    assert names_of(["problem=question", " answer = reward_model.ground_truth"]).places == both
    assert names_of([]).places == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("problem", "--map problem: it must be NAME=FIELD, such as problem=question,answer=target."),
        ("problem=", "--map problem=: it must be NAME=FIELD"),
        ("problem=q,", "--map : it must be NAME=FIELD"),
        ("question=q", "--map question=q: 'question' is no field here; before the = stands one of problem, answer"),
        ("answer=a,answer=b", "--map answer=b: answer is given twice"),
    ],
)
def test_what_is_no_name_and_field_is_refused(value, said):
    with pytest.raises(ConfigError) as complaint:
        names_of([value])
    assert str(complaint.value).startswith(said)


def test_the_first_question_is_shown_as_the_model_sees_it(tokenizer):
    question = {"problem": "line one\nline two", "answer": "2", "where": "a.csv:2"}
    assert first_question(tokenizer, question, PLAIN).splitlines() == [
        "The first question, a.csv:2, as the model sees it:",
        "  | line one",
        "  | line two",
        "  | ",
        "  Its answer is 2, without a solution.",
    ]
    long = first_question(tokenizer, {**question, "problem": "x" * 9_999, "solution": "so 2"}, PLAIN)
    assert len(long) < 1_400 and long.endswith("...\n  Its answer is 2, with a solution.")


@pytest.fixture
def folder(tmp_path, monkeypatch, model, tokenizer):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    write_questions(tmp_path / "mine.jsonl", ROWS)
    return tmp_path


def test_a_run_says_what_it_took_for_what_and_keeps_it_for_resuming(folder, capsys):
    dagrpo.main(f"--model m --data mine.jsonl --map problem=q,answer=target {TINY} --out run".split())
    said = capsys.readouterr().out
    assert "mine.jsonl: problem from `q`; answer from `target`.\n" in said
    assert "The first question, mine.jsonl:" in said and "\n  | what is " in said
    assert json.loads((folder / "run" / "config.json").read_text())["map"] == ["problem=q,answer=target"]
    dagrpo.main(["--resume", "run", "--steps", "2"])
    with pytest.raises(SystemExit) as stopped:
        dagrpo.main(["--resume", "run", "--steps", "3", "--map", "problem=target"])
    assert "--map problem=q,answer=target -> problem=target it would be another run" in str(stopped.value)


def test_the_names_may_be_those_of_the_held_out_set_alone(folder, capsys):
    write_questions(folder / "own.jsonl", [{"problem": f"{n}?", "answer": str(n)} for n in range(6)])
    flags = TINY.replace("--hold-out 1", "--data own.jsonl --eval-data mine.jsonl").split()
    dagrpo.main(["--model", "m", *flags, "--map", "problem=q,answer=target"])
    assert "mine.jsonl: problem from `q`; answer from `target`." in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        dagrpo.main(["--model", "m", *flags, "--map", "problem=q,answer=target,level=grade"])
    assert "--map level=grade: no question of own.jsonl, mine.jsonl has this field." in str(stopped.value)


def test_evaluate_reads_the_same_and_shows_the_first_prompt(folder, tokenizer, capsys):
    flags = "--model m --data mine.jsonl --max-new-tokens 4"
    evaluate.main([*flags.split(), "--map", "problem=q", "answer=target"])
    said = capsys.readouterr().out
    assert "mine.jsonl: problem from `q`; answer from `target`." in said
    assert f"the first prompt: {prompt_of(tokenizer, {'problem': ROWS[0]['q']})!r}" in said
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(flags.split())
    assert "mine.jsonl:1: the field `problem` is missing; the line has q, target." in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--model", "m", "--bench", "svamp=mine.jsonl", "--map", "problem=q"])
    assert stopped.value.code == 2 and "--map problem=q: it says how --data is read" in str(stopped.value)
