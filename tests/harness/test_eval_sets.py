"""Several --eval-data sets: each by itself and their mean, in log, table, card, page and tracker."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from conftest import write_questions
from test_runs import broken_at, left_by, lines_of, resumed, settings

import dagrpo
import evaluate
import questions
from harness import card, page_data, report, tracking
from harness.config import EXAMPLE, Config
from harness.evaluation import hash_of, hash_of_questions
from harness.runs import Run
from questions import DataError


def row(eval_set, rewards, **more):
    size = len(rewards)
    common = {"problem": "?", "answer": "1", "level": 1, "subject": None, "texts": ["1"] * size, "lengths": [4] * size}
    common |= {"truncated": [False] * size, "extracted": ["1"] * size, "read": ["1"] * size}
    return {**common, "rewards": rewards, "eval_set": eval_set, **more}


ROWS = [
    row("small", [1.0, 0.0]),
    row("large", [1.0, 1.0]),
    row("large", [1.0, 0.0], lengths=[10, 10]),
    row("large", [1.0, 1.0]),
]


def test_the_mean_is_of_the_sets_and_not_of_their_questions():
    found = evaluate.figures_of_sets(ROWS)
    assert found["sets"]["small"]["accuracy"] == 0.5 and found["sets"]["large"]["accuracy"] == 5 / 6
    assert found["accuracy"] == found["avg@2"] == pytest.approx((1 / 2 + 5 / 6) / 2) != 6 / 8
    assert found["length"] == pytest.approx((4 + 6) / 2) and found["questions"] == 4
    assert found["sets"]["large"] == evaluate.figures(ROWS[1:])
    low, high = found["interval"]
    assert low < found["accuracy"] < high


def test_one_set_has_the_figures_that_it_always_had():
    assert evaluate.figures_of_sets(ROWS[1:]) == evaluate.figures(ROWS[1:])


def test_the_interval_of_a_mean_adds_squares():
    """Half widths of 0.1 and 0.1 above: sqrt(0.02)/2; below 0.3 and 0.4: 0.5/2."""
    low, high = evaluate.interval_of_mean([(0.4, (0.1, 0.5)), (0.8, (0.4, 0.9))])
    assert (low, high) == pytest.approx((0.6 - 0.25, 0.6 + math.sqrt(0.02) / 2))
    assert evaluate.interval_of_mean([(0.4, (0.1, 0.5)), (0.8, None)]) is None


def test_the_best_checkpoint_is_that_of_the_best_mean(tmp_path):
    """By questions step 2 is ahead, 3/4 to 2/4; by sets step 4 is, 3/6 to 4/6."""
    run = Run(tmp_path)
    right = {2: [0, 1, 1, 1], 4: [1, 1, 0, 0]}
    for step, values in right.items():
        rows = [row(each["eval_set"], [float(value)]) for each, value in zip(ROWS, values, strict=True)]
        run.evaluated(step, evaluate.figures_of_sets(rows))
    assert run.best == (pytest.approx(4 / 6), 4)


def test_lines_tables_card_page_and_tracker_have_every_set(tmp_path):
    before = {"step": 0, **evaluate.figures_of_sets(ROWS), "rows": ROWS}
    after = {"step": 4, **evaluate.figures_of_sets([row(each["eval_set"], [1.0, 1.0]) for each in ROWS]), "rows": ROWS}
    line = report.evaluation_line(0, before, 1.0)
    assert line.startswith("held out at step 0: mean of 2 sets 66.7% (")
    assert line.splitlines()[-1].strip() == "small = 50.0%, large = 83.3%"
    table = [line.split() for line in evaluate.comparison_table(before, after).splitlines()]
    assert table[0][0] == "set" and table[2][:5] == ["small", "1", "50.0%", "100.0%", "+50.0"]
    assert table[3][:2] == ["large", "3"] and table[4][:5] == ["mean", "4", "66.7%", "100.0%", "+33.3"]
    text = card.held_out(Config(model="m"), [before, after])
    assert "| accuracy, mean of the sets | 4 | 66.7 % (" in text and "| set `small` | 1 | 50.0 % | 100.0 % |" in text
    sent = tracking.held_out_of(before)
    assert sent["held_out/small/accuracy"] == 0.5 and sent["held_out/accuracy"] == pytest.approx(2 / 3)
    results = page_data.results_of(after)
    assert [len(results[name]["rows"]) for name in ("small", "large")] == [1, 3]
    overview = page_data.held_out_questions([before, after], page_data.Blocks())
    assert [each["name"] for each in overview["benchmarks"]] == ["small", "large"]


def test_sets_are_called_by_their_files_and_by_more_where_two_have_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("test.jsonl", f"{folder}.csv"):
            (tmp_path / folder / name).touch()
    sources = [f"{tmp_path}/a/test.jsonl", f"{tmp_path}/b/test.jsonl", f"{tmp_path}/b/b.csv", "openai/gsm8k:test"]
    assert list(questions.set_names(sources)) == [*sources[:2], "b", "openai/gsm8k:test"]
    assert list(questions.set_names(sources).values()) == sources


@pytest.fixture
def two_sets(tmp_path):
    lines = [json.loads(line) for line in (EXAMPLE / "held_out.jsonl").read_text().splitlines()[:5]]
    return [write_questions(tmp_path / "easy.jsonl", lines[:2]), write_questions(tmp_path / "other.jsonl", lines[2:])]


def test_a_run_with_several_sets_tells_each_and_resumes_to_the_bit(tmp_path, two_sets, monkeypatch, capsys):
    def with_sets(out, **changes):
        return replace(settings(out, **changes, steps=4, eval_every=2), eval_data=two_sets)

    result = dagrpo.train(with_sets(tmp_path / "unbroken"))
    said = capsys.readouterr().out
    assert said.count("mean of 2 sets") == 3 and "\nset        questions" in said and "\nmean " in said
    assert list(result["after"]["sets"]) == ["easy", "other"] and "rows" not in result["after"]
    records = lines_of(tmp_path / "unbroken" / "evaluations.jsonl")
    assert [each["eval_set"] for each in records[0]["rows"]] == ["easy"] * 2 + ["other"] * 3
    assert all(each["accuracy"] == sum(s["accuracy"] for s in each["sets"].values()) / 2 for each in records)
    monkeypatch.setattr("test_runs.settings", with_sets)
    broken_at(tmp_path / "run", 3, monkeypatch)
    resumed(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "unbroken")


def test_a_set_of_which_nothing_is_left_is_named(tmp_path, two_sets):
    unreadable = write_questions(tmp_path / "bad.jsonl", [{"problem": "?", "answer": "\\frac{1"}])
    train = [str(EXAMPLE / "train.jsonl")]
    with pytest.raises(DataError, match=r"--eval-data .*bad\.jsonl: no question has an answer that the verifier can"):
        questions.split_questions(train, [two_sets[0], unreadable], 1)
    long = write_questions(tmp_path / "long.jsonl", [{"problem": "1 " * 999, "answer": "1"}])
    with pytest.raises(DataError, match=r"--eval-data: no question of long leaves room for a completion"):
        dagrpo.train(replace(settings(tmp_path / "run"), eval_data=[two_sets[0], long]))


def test_the_hash_of_a_set_is_of_all_that_is_asked_and_of_what_is_right():
    """Of what is said before a question too; a set without such things has the hash that it always had."""
    asked = {"problem": "1+1?", "answer": "2"}
    system = [{"role": "system", "content": "be brief."}]
    others = [{**asked, "problem": "3-1?"}, {**asked, "answer": "3"}, {**asked, "rel_tol": 0.1}]
    others += [{**asked, "choices": ["2"]}, {**asked, "earlier_turns": system}]
    assert len({hash_of_questions([each]) for each in (asked, *others)}) == 6
    assert hash_of_questions([asked]) == hash_of(b'[["1+1?", "2", null, null]]')
