"""Rewards of the user's own: read from a file, held to one finite float a text, weighted and summed."""

from __future__ import annotations

import sys

import pytest
from conftest import SOLVED, write_questions

from harness.rewards import given_by_functions, load_reward
from questions import DataError, correctness


def test_a_reward_file_is_an_ordinary_module(tmp_path):
    """A dataclass with postponed annotations looks its module up in sys.modules."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Rule:\n"
        "    length: int\n\ndef short(texts, questions):\n    return [Rule(len(t)).length for t in texts]\n"
    )
    assert load_reward([f"{file}:short"])(["a", "bcd"], [{}, {}]) == [1.0, 3.0]
    with pytest.raises(DataError, match="is no Python file"):
        load_reward([f"{write_questions(tmp_path / 'mine.txt', [])}:short"])


def own_reward(tmp_path, values, name="mine.py"):
    (tmp_path / name).write_text(f"def f(texts, questions):\n    return {values}\n")
    return load_reward([f"{tmp_path / name}:f"])


def test_a_reward_of_ones_own_is_read_from_its_file(tmp_path):
    """Also where there is a colon in its path, as in every path of Windows."""
    assert own_reward(tmp_path, "[1, -0.5]")(["a", "b"], [SOLVED] * 2) == [1.0, -0.5]
    assert own_reward(tmp_path, "[1, 2]", name="C:mine.py")(["a", "b"], [SOLVED] * 2) == [1.0, 2.0]
    with pytest.raises(DataError, match="has no function 'g'"):
        load_reward([f"{tmp_path / 'mine.py'}:g"])


@pytest.mark.parametrize("values", ["[1.0]", "[1.0, 2.0, 3.0]", "[1.0, float('nan')]", "[float('inf'), 0.0]"])
def test_a_reward_must_give_one_finite_float_for_each_text(tmp_path, values):
    with pytest.raises(ValueError, match="one finite float for each of the 2 texts"):
        own_reward(tmp_path, values)(["a", "b"], [SOLVED] * 2)


@pytest.mark.parametrize("value", ["'1'", "None", "1e+30", "[1]"])
def test_a_value_that_is_no_number_is_named_with_its_answer(tmp_path, value):
    with pytest.raises(DataError) as error:
        own_reward(tmp_path, f"[0.5, {value}]")(["a", "b"], [{**SOLVED, "where": "d.jsonl:7"}] * 2)
    assert f"mine.py:f: it gave {value} at d.jsonl:7, 'b'; it must give one finite float" in str(error.value)


def test_a_function_that_raises_is_named_with_its_line_and_the_answer_that_it_failed_on(tmp_path):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [1 / len(text) for text in texts]\n")
    reward = load_reward([f"{tmp_path / 'mine.py'}:f"])
    with pytest.raises(DataError) as error:
        reward(["a", "", "c"], [{**SOLVED, "where": f"d.jsonl:{n}"} for n in range(3)])
    assert "mine.py:f: it raised ZeroDivisionError: division by zero (mine.py, line 2)" in str(error.value)
    assert "at d.jsonl:1, ''." in str(error.value)
    (tmp_path / "mine.py").write_text(
        "def f(texts, questions):\n    return [len(texts) / (len(texts) < 3)] * len(texts)\n"
    )
    with pytest.raises(DataError, match="with 3 answers at once, but with none of them alone"):
        load_reward([f"{tmp_path / 'mine.py'}:f"])(["a", "b", "c"], [SOLVED] * 3)


def test_what_a_function_does_to_its_arguments_reaches_nobody_else(tmp_path):
    """Nor does what it is told of an error: "with none of them alone" would be wrong where the first call ate them."""
    (tmp_path / "mine.py").write_text(
        "def clears(texts, questions):\n"
        "    for question in questions:\n        question.clear()\n    texts[:] = ['']\n    return [1.0, 2.0]\n\n"
        "def pops(texts, questions):\n    return [float(question.pop('answer')) / 0 for question in questions]\n"
    )
    texts, asked = ["a", "b"], [dict(SOLVED), dict(SOLVED)]
    assert load_reward([f"{tmp_path / 'mine.py'}:clears"])(texts, asked) == [1.0, 2.0]
    with pytest.raises(DataError, match="ZeroDivisionError") as stopped:
        load_reward([f"{tmp_path / 'mine.py'}:pops"])(texts, asked)
    assert "with none of them alone" not in str(stopped.value)
    assert texts == ["a", "b"] and asked == [SOLVED, SOLVED]


def test_several_functions_are_summed_by_their_weights_and_what_they_gave_is_kept(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "def length(texts, questions):\n    return [len(t) for t in texts]\n\n"
            "def half(texts, questions):\n    return [0.5] * len(texts)\n"
        )
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    reward = load_reward([f"{one}:length", f"{one}:half=-2", f"{two}:length=0.5"])
    assert reward(["a", "bcd"], [SOLVED] * 2) == [0.5, 3.5]
    assert given_by_functions(reward) == {"one.length": [1, 3], "half": [0.5, 0.5], "two.length": [1, 3]}
    assert given_by_functions(correctness) == {}
    assert reward([], []) == []


@pytest.mark.parametrize("weight", ["", "0", "nan", "inf", "half", "1e999"])
def test_a_weight_must_be_a_number_that_is_not_0(tmp_path, weight):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [1.0] * len(texts)\n")
    with pytest.raises(DataError, match=r"the weight is '.*'; it must be a number that is not 0"):
        load_reward([f"{tmp_path / 'mine.py'}:f={weight}"])


def test_one_function_twice_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [1.0] * len(texts)\n")
    with pytest.raises(DataError, match="named twice"):
        load_reward([f"{tmp_path / 'mine.py'}:f", f"{tmp_path / 'mine.py'}:f=2"])


def test_a_reward_file_finds_the_modules_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_helper_of_rewards.py").write_text("def weigh(text):\n    return 2.0 * len(text)\n")
    (tmp_path / "mine.py").write_text(
        "from my_helper_of_rewards import weigh\n\ndef f(texts, questions):\n    return [weigh(t) for t in texts]\n"
    )
    assert load_reward([f"{tmp_path / 'mine.py'}:f"])(["abc"], [SOLVED]) == [6.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all' \\(mine.py, line 1\\)"),
        ("\ndef f(:", "SyntaxError: invalid syntax .*\\(mine.py, line 2\\)"),
        ("raise SystemExit(3)", "SystemExit: 3 \\(mine.py, line 1\\)"),
        ("def g(texts, questions): ...", "has no function 'f'. It has g."),
        ("f = 3", "has no function 'f'"),
    ],
)
def test_a_reward_file_that_cannot_be_run_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text + "\n")
    with pytest.raises(DataError, match=said):
        load_reward([f"{tmp_path / 'mine.py'}:f"])
