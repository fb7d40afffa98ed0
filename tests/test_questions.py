"""Questions: broken lines named by file and line, Hub sets, gold answers, and the questions of a run."""

from __future__ import annotations

import copy
import math
import os
import sys
import threading
import types
from pathlib import Path

import pytest
from conftest import SOLVED, write_questions

import questions
from questions import DataError
from rollout import PromptStyle

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
        ({"problem": "1+1?", "answer": [2]}, "`answer` is [2]; it must be a string that is not empty, or a number"),
        ({"problem": "1+1?", "answer": True}, "`answer` is True; it must be a string"),
        ({"problem": "1+1?", "answer": "2", "level": ["easy"]}, "`level` is ['easy']; it must be a string, a number"),
        ('{"problem": "\\ud83d?", "answer": "2"}', "`problem` has half a character"),
        ('{"problem": "1+1?", "answer": NaN}', "`answer` is nan; it must be a string that is not empty, or a number"),
        ("[" * 100_000, "too deep to be read"),
        ({"question": "1+1?", "answer": "2"}, "Is it `question` there? Rename that."),
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


def test_lines_that_are_wrong_in_the_same_way_are_counted(tmp_path):
    """Two without an answer, one that is no JSON; the first is told in full."""
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, {"problem": "?"}, "{", {"problem": "!"}, {"problem": "."}])
    with pytest.raises(DataError) as error:
        questions.read_questions([source])
    text = str(error.value)
    assert text.startswith(f"{source}:2: the field `answer` is missing")
    assert "Lines like it: 2 more. Lines with other faults: 1, the first of them " + f"{source}:3." in text


def test_bad_lines_are_left_out_and_counted_where_that_is_asked_for(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, *["{"] * 5, SOLVED])
    found, notes = questions.read_data([source], skip_bad=True)
    assert [question["where"] for question in found] == [f"{source}:1", f"{source}:7"]
    assert [note.split(": left out")[0] for note in notes[:3]] == [f"{source}:{number}" for number in (2, 3, 4)]
    assert notes[3:] == [f"{source}: 5 of 7 lines left out (--skip-bad)."]
    with pytest.raises(DataError, match="No line can be used"):
        questions.read_data([write_questions(tmp_path / "b.jsonl", ["{"])], skip_bad=True)


@pytest.mark.parametrize(
    ("written", "read"),
    [("72", "72"), ("1.50", "1.50"), ("-3e2", "-3e2"), ("1" + "0" * 30, "1" + "0" * 30), ('"7"', "7")],
)
def test_a_number_as_answer_is_its_text_as_it_is_written(tmp_path, written, read):
    line = f'{{"problem": "?", "answer": {written}, "level": 3}}'
    (found,) = questions.read_questions([write_questions(tmp_path / "a.jsonl", [line])])
    assert found["answer"] == read and found["level"] == 3
    assert questions.from_hub({"question": "?", "answer": 72})["answer"] == "72"


@pytest.mark.parametrize("text", ["\ufeff{}\n", "{}\r\n\r\n{}\r\n", "{}\r{}\r", "\n{}", "{}"])
def test_a_byte_order_mark_and_any_line_ends_are_taken(tmp_path, text):
    line = '{"problem": "1+1?\u2028", "answer": "2"}'
    (tmp_path / "a.jsonl").write_bytes(text.replace("{}", line).encode())
    found = questions.read_questions([str(tmp_path / "a.jsonl")])
    assert len(found) == text.count("{}") and found[0]["problem"] == "1+1?\u2028"


@pytest.mark.parametrize("length", [1_000_001, 50_000_000])
def test_a_line_without_an_end_is_named_and_not_read_whole(tmp_path, length):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, "x" * length, SOLVED])
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 1,000,000 characters"):
        questions.read_questions([source])
    assert [each["where"][-2:] for each in questions.read_data([source], skip_bad=True)[0]] == [":1", ":3"]


def test_a_pipe_is_read_like_a_file(tmp_path):
    """As of `--data <(zcat questions.jsonl.gz)`."""
    os.mkfifo(tmp_path / "pipe")
    line = '{"problem": "1+1?", "answer": "2"}\n'
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(line,))
    writer.start()
    assert questions.read_questions([str(tmp_path / "pipe")])[0]["answer"] == "2"
    writer.join()


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
    assert questions.load_reward([f"{file}:short"])(["a", "bcd"], [{}, {}]) == [1.0, 3.0]
    with pytest.raises(DataError, match="is no Python file"):
        questions.load_reward([f"{write_questions(tmp_path / 'mine.txt', [])}:short"])


def test_questions_that_leave_no_room_for_a_completion_are_left_out(model, tokenizer):
    """256 positions: a prompt of 5 tokens fits beside 250 tokens of completion, one of 8 does not."""
    given = [{"problem": "1+1?"}, {"problem": "what ??"}]
    kept, notes = questions.fitting(model, tokenizer, given, 250)
    assert kept == given[:1] and "1 questions left out" in notes[0]
    assert questions.fitting(model, tokenizer, given[:1], 250) == (given[:1], [])
    with pytest.raises(DataError, match="--max-new-tokens 256: no question fits"):
        questions.fitting(model, tokenizer, given, 256)


# --- fields ------------------------------------------------------------------------------------------------------


def test_the_answer_to_choices_may_have_spaces_around_it(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": " B ", "choices": ["3", "2"]}])
    assert questions.read_questions([source])[0]["answer"] == " B "


def test_the_last_mark_of_a_hub_row_stands_before_its_answer():
    question = questions.from_hub({"question": "?", "answer": "#### is the mark\n#### 7"})
    assert question["answer"] == "7" and question["solution"].startswith("#### is the mark\n")


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


@pytest.mark.parametrize("tolerance", [-0.1, 1, True, "0.01", [0.01], math.nan])
def test_a_tolerance_that_is_no_share_is_named(tmp_path, tolerance):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, {**SOLVED, "rel_tol": tolerance}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: `rel_tol` is .*; it must be a number of at least 0 and below 1"):
        questions.read_questions([source])


def test_choices_are_graded_as_letters():
    """`the first, A` is the text of no answer, and the letter of one."""
    question = {"problem": "1+1?", "answer": "A", "choices": ["2", "3"]}
    assert questions.correctness(["I take (A), the first", "B"], [question, question]) == [1.0, 0.0]


def own_reward(tmp_path, values, name="mine.py"):
    (tmp_path / name).write_text(f"def f(texts, questions):\n    return {values}\n")
    return questions.load_reward([f"{tmp_path / name}:f"])


def test_a_reward_of_ones_own_is_read_from_its_file(tmp_path):
    """Also where there is a colon in its path, as in every path of Windows."""
    assert own_reward(tmp_path, "[1, -0.5]")(["a", "b"], [SOLVED] * 2) == [1.0, -0.5]
    assert own_reward(tmp_path, "[1, 2]", name="C:mine.py")(["a", "b"], [SOLVED] * 2) == [1.0, 2.0]
    with pytest.raises(DataError, match="has no function 'g'"):
        questions.load_reward([f"{tmp_path / 'mine.py'}:g"])


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
    reward = questions.load_reward([f"{tmp_path / 'mine.py'}:f"])
    with pytest.raises(DataError) as error:
        reward(["a", "", "c"], [{**SOLVED, "where": f"d.jsonl:{n}"} for n in range(3)])
    assert "mine.py:f: it raised ZeroDivisionError: division by zero (mine.py, line 2)" in str(error.value)
    assert "at d.jsonl:1, ''." in str(error.value)
    (tmp_path / "mine.py").write_text(
        "def f(texts, questions):\n    return [len(texts) / (len(texts) < 3)] * len(texts)\n"
    )
    with pytest.raises(DataError, match="with 3 answers at once, but with none of them alone"):
        questions.load_reward([f"{tmp_path / 'mine.py'}:f"])(["a", "b", "c"], [SOLVED] * 3)


def test_what_a_function_does_to_its_arguments_reaches_nobody_else(tmp_path):
    """Nor does what it is told of an error: "with none of them alone" would be wrong where the first call ate them."""
    (tmp_path / "mine.py").write_text(
        "def clears(texts, questions):\n"
        "    for question in questions:\n        question.clear()\n    texts[:] = ['']\n    return [1.0, 2.0]\n\n"
        "def pops(texts, questions):\n    return [float(question.pop('answer')) / 0 for question in questions]\n"
    )
    texts, asked = ["a", "b"], [dict(SOLVED), dict(SOLVED)]
    assert questions.load_reward([f"{tmp_path / 'mine.py'}:clears"])(texts, asked) == [1.0, 2.0]
    with pytest.raises(DataError, match="ZeroDivisionError") as stopped:
        questions.load_reward([f"{tmp_path / 'mine.py'}:pops"])(texts, asked)
    assert "with none of them alone" not in str(stopped.value)
    assert texts == ["a", "b"] and asked == [SOLVED, SOLVED]


def test_several_functions_are_summed_by_their_weights_and_what_they_gave_is_kept(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "def length(texts, questions):\n    return [len(t) for t in texts]\n\n"
            "def half(texts, questions):\n    return [0.5] * len(texts)\n"
        )
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    reward = questions.load_reward([f"{one}:length", f"{one}:half=-2", f"{two}:length=0.5"])
    assert reward(["a", "bcd"], [SOLVED] * 2) == [0.5, 3.5]
    assert questions.given_by_functions(reward) == {"one.length": [1, 3], "half": [0.5, 0.5], "two.length": [1, 3]}
    assert questions.given_by_functions(questions.correctness) == {}
    assert reward([], []) == []


@pytest.mark.parametrize("weight", ["", "0", "nan", "inf", "half", "1e999"])
def test_a_weight_must_be_a_number_that_is_not_0(tmp_path, weight):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [1.0] * len(texts)\n")
    with pytest.raises(DataError, match=r"the weight is '.*'; it must be a number that is not 0"):
        questions.load_reward([f"{tmp_path / 'mine.py'}:f={weight}"])


def test_one_function_twice_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def f(texts, questions):\n    return [1.0] * len(texts)\n")
    with pytest.raises(DataError, match="named twice"):
        questions.load_reward([f"{tmp_path / 'mine.py'}:f", f"{tmp_path / 'mine.py'}:f=2"])


def test_a_reward_file_finds_the_modules_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_helper_of_rewards.py").write_text("def weigh(text):\n    return 2.0 * len(text)\n")
    (tmp_path / "mine.py").write_text(
        "from my_helper_of_rewards import weigh\n\ndef f(texts, questions):\n    return [weigh(t) for t in texts]\n"
    )
    assert questions.load_reward([f"{tmp_path / 'mine.py'}:f"])(["abc"], [SOLVED]) == [6.0]


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
        questions.load_reward([f"{tmp_path / 'mine.py'}:f"])


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
