"""Two models compared by their result files: statistics by hand, pairing by question, what is refused, what is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from harness import compare, results

PROBLEMS = [f"What is {n} + {n}?" for n in range(12)]


def row(problem: str, rewards: list[float], **more: object) -> dict:
    return {"problem": problem, "answer": "4", "texts": ["so 4"] * len(rewards), "rewards": rewards, **more}


def result(rewards: list[list[float]], problems: list[str] = PROBLEMS, **settings: object) -> dict:
    """A benchmark's entry with all fields that older files have too."""
    rows = [row(problem, own) for problem, own in zip(problems, rewards, strict=False)]
    entry = {"questions": len(rows), "rows": rows, "max_new_tokens": 64, "accuracy": float(np.mean(rewards))}
    return entry | ({"settings": settings} if settings else {})


def written(path: Path, **benchmarks: dict) -> str:
    path.write_text(json.dumps(benchmarks), encoding="utf-8")
    return str(path)


def complaint(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the command says where it refuses; it is one line, without a traceback."""
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    shown = capsys.readouterr()
    assert stop.value.code in (1, 2) and not shown.out and shown.err.count("\n") == 1
    return shown.err


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def test_the_sign_flip_test_by_hand():
    """Five equal differences: of 32 patterns of signs only all + and all − are as large. Zeros change nothing."""
    assert compare.sign_flip(np.array([0.5] * 5)) == 2 / 32
    assert compare.sign_flip(np.array([0.5] * 5 + [0.0] * 40)) == 2 / 32
    assert compare.sign_flip(-np.array([1.0, 1.0, 1.0, -1.0])) == 10 / 16  # |sum| 2: all but the 6 with sum 0
    assert compare.sign_flip(np.zeros(7)) == 1.0


def test_the_sign_flip_test_of_many_questions_is_close_to_the_binomial_one():
    """40 questions, 27 won and 13 lost: P(X ≥ 27 or X ≤ 13), X ~ B(40, 1/2)."""
    binomial = 2 * sum(math.comb(40, n) for n in range(14)) / 2**40
    assert compare.sign_flip(np.repeat([1.0, -1.0], [27, 13])) == pytest.approx(binomial, abs=0.008)
    assert compare.sign_flip(np.ones(200)) == pytest.approx(1 / 10_001), "never 0: the pattern that is there counts"


def test_of_pure_noise_one_in_twenty_is_below_five_percent():
    rng = np.random.default_rng(1)
    below = [compare.sign_flip(rng.normal(size=10)) < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(below) < 0.09  # 0.05 ± 4 standard errors


def test_in_the_mean_of_benchmarks_each_counts_the_same():
    """A gain of 0.4 on 10 questions and of 0 on 1,000: the mean is 0.2, and its interval is half the small one's."""
    small, large = np.array([1.0] * 4 + [0.0] * 6), np.zeros(1_000)
    both, alone = compare.mean_difference([small, large]), compare.difference_of(small)
    assert both.mean == pytest.approx(0.2)
    assert both.low == pytest.approx(alone.low / 2, abs=0.03) and both.high == pytest.approx(alone.high / 2, abs=0.03)
    assert both.p == alone.p == 2 / 16


# ---------------------------------------------------------------------------------------------------------------------
# Pairing
# ---------------------------------------------------------------------------------------------------------------------


def test_questions_are_paired_by_their_text_not_by_their_place(tmp_path, capsys):
    """Both answer the same questions right; in the second file they stand in another order."""
    right = [[1.0]] * 6 + [[0.0]] * 6
    one = written(tmp_path / "a.json", sums=result(right))
    other = written(tmp_path / "b.json", sums=result(right[::-1], PROBLEMS[::-1]))
    compare.main([one, other])
    assert "A ahead on 0 questions, B on 0, equal on 12" in capsys.readouterr().out


def test_two_questions_of_one_text_and_shuffled_options_stay_apart():
    twice = {"rows": [row("1?", [1.0]), row("1?", [0.0])]}
    assert len(set(results.question_keys(twice))) == 2
    options = row("Which?", [1.0], choices=["red", "blue"]) | {"answer": "A"}
    shuffled = row("Which?", [1.0], choices=["blue", "red"]) | {"answer": "B"}
    others = row("Which?", [1.0], choices=["blue", "green"]) | {"answer": "B"}
    keys = [results.question_keys({"rows": [each]})[0] for each in (options, shuffled, others)]
    assert keys[0] == keys[1] != keys[2]


def test_a_data_file_is_the_same_benchmark_in_whichever_folder(tmp_path, capsys):
    one = written(tmp_path / "a.json", **{"data/sums.jsonl": result([[1.0]] * 12)})
    other = written(tmp_path / "b.json", **{"/other/sums.jsonl": result([[0.0]] * 12)})
    compare.main([one, other])
    assert "\nsums    " in capsys.readouterr().out


def test_two_data_files_of_one_name_in_two_folders_stay_two_benchmarks():
    assert list(results.by_short_name({"a/x.jsonl": {}, "b/x.jsonl": {}})) == ["a/x.jsonl", "b/x.jsonl"]
    assert list(results.by_short_name({"a/x.jsonl": {}, "b/y.jsonl": {}})) == ["x", "y"]


def test_right_is_a_whole_reward_and_where_nothing_says_what_is_right_the_mean_counts():
    rows = [row("1?", [1.0, 0.5]), row("2?", [0.5, 0.5])]
    assert results.question_scores({"rows": rows, "accuracy": 0.25}).tolist() == [0.5, 0.0]
    assert results.question_scores({"rows": rows}).tolist() == [0.75, 0.5]


# ---------------------------------------------------------------------------------------------------------------------
# What is said
# ---------------------------------------------------------------------------------------------------------------------


def test_the_report_has_difference_interval_p_and_the_questions(tmp_path, capsys):
    """A is right on 10 of 12 (one of them at half of its samples), B on 1: +75 points, won 10, lost 1."""
    first = [[1.0, 0.0]] + [[1.0, 1.0]] * 9 + [[0.0, 0.0], [0.0, 0.0]]
    second = [[0.0, 0.0]] * 11 + [[1.0, 1.0]]
    one = written(tmp_path / "a.json", sums=result(first, model="ours"))
    other = written(tmp_path / "b.json", sums=result(second, model="theirs"))
    compare.main([one, other, "--list", "2"])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"A: {one} (ours)" and lines[1] == f"B: {other} (theirs)"
    figures = next(line for line in lines if line.startswith("sums ")).split()
    assert figures[:5] == ["sums", "12", "79.2", "8.3", "+70.8"] and float(figures[-1]) < 0.05
    assert 20 < float(figures[5]) < 60 and 85 < float(figures[7]) <= 100  # the interval
    assert "A is ahead of B by 70.8 points" in out
    assert "sums: A ahead on 10 questions, B on 1, equal on 1" in out
    assert "  A ahead:\n    100% : 0%    What is 1 + 1?" in out, "the largest differences first"
    assert "  0% : 100%  What is 11 + 11?" in out
    assert "and 8 more (--list 10 names them)" in out
    assert all(len(line) <= 80 for line in lines[2:])


def test_chance_is_called_chance(tmp_path, capsys):
    one = written(tmp_path / "a.json", sums=result([[1.0]] * 3 + [[0.0]] * 9))
    other = written(tmp_path / "b.json", sums=result([[0.0]] * 10 + [[1.0]] * 2))
    compare.main([one, other, "--list", "0"])
    out = capsys.readouterr().out
    assert "No difference is shown" in out and "ahead of" not in out and "A ahead:" not in out


def test_several_benchmarks_have_a_mean_and_rewards_are_no_percent(tmp_path, capsys):
    two = {"sums": result([[1.0]] * 12), "more": result([[0.0]] * 12)}
    one = written(tmp_path / "a.json", **two)
    other = written(tmp_path / "b.json", sums=result([[0.0]] * 12), more=result([[0.0]] * 12))
    compare.main([one, other])
    mean = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mean of benchmarks"))
    assert mean.split()[3:7] == ["24", "50.0", "0.0", "+50.0"]

    unjudged = {name: value for name, value in result([[0.25]] * 12).items() if name != "accuracy"}
    lower = {name: value for name, value in result([[0.125]] * 12).items() if name != "accuracy"}
    compare.main([written(tmp_path / "c.json", sums=unjudged), written(tmp_path / "d.json", sums=lower)])
    out = capsys.readouterr().out
    assert "+0.125" in out and "nothing says what is right" in out and "0.125 of reward" in out


def test_three_seeds_never_show_that_others_would(tmp_path, capsys):
    """Over questions the lead is clear; three seeds have p = 2/8 at best, and the report says so."""
    ours = [written(tmp_path / f"a{n}.json", sums=result([[1.0]] * (10 + n % 2) + [[0.0]] * 2)) for n in range(3)]
    others = [written(tmp_path / f"b{n}.json", sums=result([[0.0]] * 12)) for n in range(3)]
    ours[1] = written(tmp_path / "a1.json", sums=result([[1.0]] * 11 + [[0.0]]))
    compare.main([*ours, "--against", *others])
    out = " ".join(capsys.readouterr().out.split())
    assert "With these seeds A is ahead of B" in out
    assert "Over 3 training seeds: +83.3, +91.7, +83.3; mean +86.1" in out and "p = 0.25" in out
    assert "3 are too few for p < 0.05; it takes 6" in out


def test_six_seeds_that_agree_do(tmp_path, capsys):
    ours = [written(tmp_path / f"a{n}.json", sums=result([[1.0]] * 10 + [[0.0]] * 2)) for n in range(6)]
    others = [written(tmp_path / f"b{n}.json", sums=result([[0.0]] * 12)) for n in range(6)]
    compare.main([*ours, "--against", *others])
    out = " ".join(capsys.readouterr().out.split())
    assert "A is ahead of B by 83.3 points" in out and "p = 0.031" in out and "too few" not in out


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def test_other_questions_are_refused_and_force_takes_what_both_have(tmp_path, capsys):
    one = written(tmp_path / "a.json", sums=result([[1.0]] * 12))
    other = written(tmp_path / "b.json", sums=result([[0.0]] * 8))
    text = complaint([one, other], capsys)
    assert f"{one} has 4 questions that {other} has not, such as 'What is 8 + 8?'" in text and "--force" in text
    compare.main([one, other, "--force"])
    out = " ".join(capsys.readouterr().out.split())
    assert "Differs: sums: " in out and "A ahead on 8 questions, B on 0" in out


def test_other_benchmarks_are_refused(tmp_path, capsys):
    one = written(tmp_path / "a.json", sums=result([[1.0]] * 12), more=result([[1.0]] * 12))
    other = written(tmp_path / "b.json", sums=result([[0.0]] * 12))
    assert f"{one} has more, which not every file has" in complaint([one, other], capsys)
    third = written(tmp_path / "c.json", else_=result([[0.0]] * 12))
    assert "no benchmark in common" in complaint([other, third, "--force"], capsys)


def test_other_settings_are_refused_but_those_of_the_model(tmp_path, capsys):
    hot = {"temperature": 1.0, "model": "a", "seed": 1, "system": ""}
    cold = {"temperature": 0.6, "model": "b", "seed": 2, "system": ""}
    one = written(tmp_path / "a.json", sums=result([[1.0]] * 12, **hot))
    other = written(tmp_path / "b.json", sums=result([[0.0]] * 12, **cold))
    text = complaint([one, other], capsys)
    assert "sums, temperature: 1.0 and 0.6" in text and "model:" not in text and "seed:" not in text
    compare.main([one, other, "--force"])
    out = " ".join(capsys.readouterr().out.split())
    assert "temperature: 1.0 and 0.6" in out and "seed: 1 and 2" in out
    older = written(tmp_path / "old.json", sums=result([[0.0]] * 12))  # it says nothing of its temperature
    compare.main([one, older])
    assert "Differs" not in capsys.readouterr().out


def test_verdicts_and_rewards_have_no_common_measure(tmp_path, capsys):
    rewards = {name: value for name, value in result([[0.5]] * 12).items() if name != "accuracy"}
    one, other = written(tmp_path / "a.json", sums=result([[1.0]] * 12)), written(tmp_path / "b.json", sums=rewards)
    assert "no common measure" in complaint([one, other], capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("{", "it is no JSON"),
        ("[]", "it holds no result"),
        ('{"x": {"rows": []}}', "x: it has no rows"),
        ('{"x": {"rows": [{"problem": "1"}]}}', "row 1: it has no problem or no answer"),
        ('{"x": {"rows": [{"problem": "1", "answer": "1", "texts": ["1"], "rewards": []}]}}', "the same number"),
        ('{"x": {"rows": [{"problem": "1", "answer": "1", "texts": ["1"], "rewards": [null]}]}}', "rewards numbers"),
    ],
)
def test_a_file_that_is_no_result_is_named(content, said, tmp_path, capsys):
    good, bad = written(tmp_path / "a.json", sums=result([[1.0]])), tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    text = complaint([good, str(bad)], capsys)
    assert said in text and str(bad) in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.json"], "Name two result files"),
        (["a.json", "b.json", "c.json"], "Name two result files"),
        (["a.json", "b.json", "--against", "c.json"], "1 files against 2"),
        (["a.json", "./a.json"], "it is named twice"),
        (["a.json", "b.json", "--list", "-1"], "--list -1: it must be"),
        (["a.json", "b.json", "--seeds"], "--seeds"),
        ([], "required: FILE"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_sentence(arguments, said, capsys):
    assert said in complaint(arguments, capsys)
