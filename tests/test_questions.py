"""Questions: broken lines named by file and line, Hub sets, gold answers, and the questions of a run."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from conftest import SOLVED, write_questions

import questions
from questions import DataError

ROOT = Path(questions.__file__).parent


# --- files and Hub sets ------------------------------------------------------------------------------------------


def test_rows_keep_their_fields_and_where_they_came_from(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, "", {**SOLVED, "level": 3}])
    found = questions.read_questions([source])
    assert found[1] == {**SOLVED, "level": 3, "where": f"{source}:3"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "holds a list"),
        ({"answer": "2"}, "`problem` is missing; the line has answer"),
        ({"problem": "1+1?"}, "`answer` is missing"),
        ({"problem": "1+1?", "answer": 2}, "`answer` is 2; it must be a string"),
        ({"problem": " ", "answer": "2"}, "`problem` is ' '"),
        ({"problem": "1+1?", "answer": "2", "solution": 5}, "`solution` is 5"),
        ({"problem": "1+1?", "answer": "2", "choices": "AB"}, "`choices` must be a list"),
        ({"problem": "1+1?", "answer": "C", "choices": ["2", "3"]}, "one of A, B"),
    ],
)
def test_a_broken_line_is_named_by_file_line_and_fault(tmp_path, line, fault):
    source = write_questions(tmp_path / "broken.jsonl", [SOLVED, line])
    with pytest.raises(DataError) as error:
        questions.read_questions([source])
    assert f"{source}:2: " in str(error.value) and fault in str(error.value)


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(DataError, match=r"--data missing\.jsonl: there is no such file"):
        questions.read_questions(["missing.jsonl"])
    with pytest.raises(DataError, match="no questions"):
        questions.read_questions([write_questions(tmp_path / "empty.jsonl", [""])])


def test_a_hub_set_without_the_package_names_it(monkeypatch):
    monkeypatch.setattr(questions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install datasets"):
        questions.read_questions(["openai/gsm8k:train"])


@pytest.mark.parametrize(
    ("source", "configurations", "loaded"),
    [
        ("openai/gsm8k:test", ["socratic", "main"], ("openai/gsm8k", "main", "test")),
        ("some/set", ["all"], ("some/set", "all", "train")),
        ("openai/gsm8k/socratic:test", ["socratic", "main"], ("openai/gsm8k", "socratic", "test")),
        ("some/set/algebra", ["algebra", "zoology"], ("some/set", "algebra", "train")),
    ],
)
def test_a_hub_set_is_read_by_name_and_split(monkeypatch, source, configurations, loaded):
    """With a stand-in for the package; the real one needs a network."""
    calls = []
    package = types.ModuleType("datasets")
    package.get_dataset_config_names = lambda name: configurations
    package.load_dataset = lambda name, configuration, split: (
        calls.append((name, configuration, split)) or [{"question": "1+1?", "answer": "2 it is\n#### 2"}]
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(questions.importlib.util, "find_spec", lambda name: package)
    found = questions.read_questions([source])
    assert calls == [loaded]
    assert (found[0]["problem"], found[0]["answer"], found[0]["where"]) == ("1+1?", "2", f"{source}:1")


@pytest.mark.parametrize("source", ["some/set", "some/set:train", "some/set/botany"])
def test_of_several_configurations_of_a_hub_set_none_is_taken_in_silence(monkeypatch, source):
    """The first one of hendrycks_math is a seventh of it."""
    package = types.ModuleType("datasets")
    package.get_dataset_config_names = lambda name: ["algebra", "zoology"]
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(questions.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(DataError, match="name one of some/set/algebra, some/set/zoology"):
        questions.read_questions([source])


def test_gsm8k_rows_of_the_hub_are_mapped():
    question = questions.from_hub({"question": "How many?", "answer": "24+48 = <<24+48=72>>72 clips.\n#### 1,072"})
    assert question == {
        "problem": "How many?",
        "answer": "1072",
        "solution": "24+48 = 72 clips.\nThe answer is \\boxed{1072}.",
    }


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


def test_a_reward_file_is_an_ordinary_module(tmp_path):
    """A dataclass with postponed annotations looks its module up in sys.modules."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Rule:\n"
        "    length: int\n\ndef short(texts, questions):\n    return [Rule(len(t)).length for t in texts]\n"
    )
    assert questions.load_reward(f"{file}:short")(["a", "bcd"], [{}, {}]) == [1.0, 3.0]
    with pytest.raises(DataError, match="is no Python file"):
        questions.load_reward(f"{write_questions(tmp_path / 'mine.txt', [])}:short")


def test_questions_that_leave_no_room_for_a_completion_are_left_out(model, tokenizer):
    """256 positions: a prompt of 5 tokens fits beside 250 tokens of completion, one of 8 does not."""
    given = [{"problem": "1+1?"}, {"problem": "what ??"}]
    kept, notes = questions.fitting(model, tokenizer, given, 250)
    assert kept == given[:1] and "1 questions left out" in notes[0]
    assert questions.fitting(model, tokenizer, given[:1], 250) == (given[:1], [])
    with pytest.raises(DataError, match="--max-new-tokens 256: no question fits"):
        questions.fitting(model, tokenizer, given, 256)
