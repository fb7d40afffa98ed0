"""Answers of an evaluation: kept one by one, taken up again after a kill, graded beside the sampling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import write_questions

import evaluate
from harness import answers
from harness.answers import Answer, Keeper, PartFile, grading
from harness.checkpoint import records_of
from harness.command import ConfigError
from questions import correctness
from rollout import Sampled

ROOT = Path(evaluate.__file__).parent
QUESTIONS = [{"problem": f"{number}+{number}?", "answer": str(2 * number)} for number in range(30)]
RIGHT = Answer("so 2", 3, False, 1.0, "2", "2")


@pytest.fixture
def command(model, tokenizer, tmp_path):
    """An evaluation of 240 answers, most of which end long after the first ones."""
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    data = write_questions(tmp_path / "d.jsonl", QUESTIONS)
    flags = ["--samples", "8", "--max-new-tokens", "150", "--temperature", "1.2", "--seed", "5"]
    return ["--model", str(tmp_path / "m"), "--data", data, *flags]


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# --- after a kill --------------------------------------------------------------------------------------------------


def test_an_evaluation_killed_in_the_middle_goes_on_to_the_result_of_an_unbroken_one(command, tmp_path, capsys):
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    part = tmp_path / "broken.json.part.jsonl"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *command, "--out", str(broken)], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(lines_of(part)) < 30 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    kept = len(records_of(part)) - 1  # the first line has the settings, the last one may be half of one
    assert 20 < kept < 240 and not broken.exists()

    evaluate.main([*command, "--out", str(broken)])
    assert f"{kept} answers are those of an evaluation that was interrupted" in capsys.readouterr().out
    evaluate.main([*command, "--out", str(whole)])
    assert json.loads(broken.read_text()) == json.loads(whole.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "d.jsonl", "m", "whole.json"]


def interrupted(command, out, monkeypatch, after: int) -> list[str]:
    """The lines that an evaluation leaves in which Ctrl-C comes after so many answers."""
    plain, made = evaluate.rollout.sample_each, []

    def sample_each(*arguments, **options):
        for sampled in plain(*arguments, **options):
            if len(made) == after:
                raise KeyboardInterrupt
            made.append(sampled)
            yield sampled

    with monkeypatch.context() as patches:
        patches.setattr(evaluate.rollout, "sample_each", sample_each)
        with pytest.raises(SystemExit) as stop:
            evaluate.main([*command, "--out", str(out)])
    assert stop.value.code == 130
    return lines_of(out.with_name(out.name + ".part.jsonl"))


def sampled_by(command, out, monkeypatch) -> int:
    """How many answers the rest of an evaluation samples."""
    plain, made = evaluate.rollout.sample_each, []

    def sample_each(*arguments, **options):
        for sampled in plain(*arguments, **options):
            made.append(sampled)
            yield sampled

    with monkeypatch.context() as patches:
        patches.setattr(evaluate.rollout, "sample_each", sample_each)
        evaluate.main([*command, "--out", str(out)])
    return len(made)


def test_what_is_kept_is_not_sampled_again_and_a_line_that_was_cut_off_is(command, tmp_path, monkeypatch, capsys):
    command = [*[word if word != "150" else "20" for word in command], "--limit", "4"]
    out, part = tmp_path / "r.json", tmp_path / "r.json.part.jsonl"
    lines = interrupted(command, out, monkeypatch, after=20)
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{len(lines) - 1} answers are in {part}; the same command goes on from there." in said
    assert len(lines) == 21, "the settings, and all that was sampled"
    part.write_text("\n".join(lines[:10]) + '\n{"benchmark": "d", "question": 3, "numb')
    assert sampled_by(command, out, monkeypatch) == 32 - 9
    assert "9 answers are those of an evaluation that was interrupted" in capsys.readouterr().out
    again = tmp_path / "again.json"
    evaluate.main([*command, "--out", str(again)])
    assert json.loads(out.read_text()) == json.loads(again.read_text())


def test_answers_of_other_settings_are_not_mixed_in_and_stay(command, tmp_path, monkeypatch, capsys):
    short = [word if word != "150" else "20" for word in command]
    out = tmp_path / "r.json"
    lines = interrupted(short, out, monkeypatch, after=20)
    other = [word if word != "1.2" else "0.7" for word in short]
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*other, "--out", str(out)])
    said = f"{len(lines) - 1} answers of an evaluation that did not end, with another temperature (1.2, now 0.7)"
    assert stop.value.code == 2 and said in str(stop.value)
    assert lines_of(tmp_path / "r.json.part.jsonl") == lines


def test_another_version_of_a_library_is_no_other_evaluation(tmp_path):
    file = PartFile(tmp_path / "r.json")
    file.begin("d", {"seed": 1, "versions": {"torch": "1"}}).add((0, 0), RIGHT)
    assert PartFile(tmp_path / "r.json").begin("d", {"seed": 1, "versions": {"torch": "2"}}).answers == {(0, 0): RIGHT}


def test_benchmarks_have_their_answers_apart(tmp_path):
    file = PartFile(tmp_path / "r.json")
    for name, reward in (("a", 1.0), ("b", 0.0)):
        file.begin(name, {"seed": 1}).add((2, 1), Answer("x", 1, True, reward))
    again = PartFile(tmp_path / "r.json")
    assert again.count() == 2 and again.begin("a", {"seed": 1}).answers[2, 1].reward == 1.0
    assert again.begin("b", {"seed": 1}).answers[2, 1] == Answer("x", 1, True, 0.0)
    assert again.begin("c", {"seed": 1}).answers == {}


@pytest.mark.parametrize("line", ['{"problem": "1+1?"}', "[1]", '{"benchmark": "a", "question": 0, "number": 0}'])
def test_a_file_of_another_kind_in_its_place_is_named_and_stays(tmp_path, line):
    path = tmp_path / "r.json.part.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"beside it is r\.json\.part\.jsonl, and not what an evaluation leaves"):
        PartFile(tmp_path / "r.json")
    assert path.read_text() == line + "\n"


def test_an_evaluation_that_fails_before_its_first_answer_leaves_nothing(command, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate.rollout, "sample_each", lambda *_, **__: (_ for _ in ()).throw(FloatingPointError("x"))
    )
    with pytest.raises(SystemExit):
        evaluate.main([*command, "--out", str(tmp_path / "r.json")])
    assert not list(tmp_path.glob("r.json*"))


# --- grading beside the sampling -----------------------------------------------------------------------------------


def completion(number: int, text: str = r"\boxed{2}", prompt: int = 0) -> Sampled:
    return Sampled(prompt, number, text, 3, False)


def test_the_verifier_works_while_completions_come():
    """And hands a mistake of its own to who gives it the next ones."""
    question = {"problem": "1+1?", "answer": "2"}
    with grading([question], 3, correctness, Keeper(), [[0]]) as grader:
        grader.add(0, completion(0))
        deadline = time.monotonic() + 60
        while not grader.keeper.answers and time.monotonic() < deadline:
            time.sleep(0.01)
        assert grader.keeper.answers[0, 0].reward == 1.0, "before the last has come"
        grader.add(0, completion(1, "so 3"))
        grader.add(0, completion(2, "I cannot tell"))
        grader.finish()
    found = [grader.keeper.answers[0, number] for number in range(3)]
    assert [(each.reward, each.extracted, each.read) for each in found] == [
        (1.0, "2", "2"), (0.0, "3", "3"), (0.0, None, None),
    ]  # fmt: skip


def test_a_mistake_of_the_verifier_ends_the_evaluation(monkeypatch):
    monkeypatch.setattr(answers, "correctness", lambda *_: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        grading([{"problem": "?", "answer": "2"}], 1, answers.correctness, Keeper(), [[0]]) as grader,
    ):
        grader.add(0, completion(0))
        grader.finish()


def test_another_reward_is_called_in_the_same_thread_with_whole_batches_in_order():
    """It may be a model, or count on the order, as some tests do."""
    calls = []

    def reward(texts, questions):
        calls.append((threading.current_thread(), texts, [question["problem"] for question in questions]))
        return [0.5] * len(texts)

    asked = [{"problem": name, "answer": "2"} for name in "abc"]
    with grading(asked, 2, reward, Keeper(), [[1, 0], [2]]) as grader:
        for question, number in [(2, 0), (0, 1), (1, 1), (2, 1), (1, 0), (0, 0)]:
            assert calls == []
            grader.add(question, completion(number, f"{question}{number}"))
        grader.finish()
    here = threading.current_thread()
    assert calls == [(here, ["10", "11", "00", "01"], ["b", "b", "a", "a"]), (here, ["20", "21"], ["c", "c"])]
    assert len(grader.keeper.answers) == 6 and grader.keeper.answers[0, 0].read is None


def test_the_share_so_far_is_over_questions_by_hand():
    """Of three questions 2 of 2, 0 of 1 and 1 of 2 are right: 3 of 5, and shares of 1, 0 and 1/2."""
    rewards = {(0, 0): 1.0, (0, 1): 1.0, (3, 0): 0.0, (5, 0): 0.0, (5, 1): 1.0}
    keeper = Keeper(answers={place: Answer("", 1, False, reward) for place, reward in rewards.items()})
    with grading([], 2, correctness, keeper, []) as grader:
        half = 1.96 * float(torch.tensor([1.0, 0.0, 0.5]).std(correction=0)) / 3**0.5
        assert grader.so_far(1.0) == f"right 60.0% ± {half:.1%}"
        keeper.answers.clear()
        assert grader.so_far(1.0) == ""


# --- the bar -------------------------------------------------------------------------------------------------------


def test_a_file_gets_no_fragments_of_a_bar(command, capsys):
    evaluate.main([*command[:4], "--limit", "2", "--max-new-tokens", "9"])
    assert "answers" not in capsys.readouterr().err


def test_the_bar_tells_tokens_and_the_share_that_is_right_but_not_at_every_token(model, tokenizer, monkeypatch):
    """Also where other answers are there already."""
    said, moves = [], []

    class Terminal:
        disable = False

        def __init__(self, **options):
            self.options = options
            said.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self):
            moves.append(1)

        def set_postfix_str(self, text):
            said.append(text)

    monkeypatch.setattr(answers, "tqdm", Terminal)
    monkeypatch.setattr(answers, "LOOK_AGAIN", 0.0)
    keeper = Keeper(answers={(0, 0): RIGHT})
    evaluate.evaluate(model, tokenizer, QUESTIONS[:3], k=2, max_new_tokens=30, keeper=keeper)
    assert (said[0]["total"], said[0]["initial"], len(moves)) == (6, 1, 5)
    assert any("tokens, right " in text and "±" in text for text in said[1:])
    monkeypatch.setattr(answers, "LOOK_AGAIN", 1e9)
    said.clear()
    evaluate.evaluate(model, tokenizer, QUESTIONS[:3], k=2, max_new_tokens=30)
    assert len(said) <= 2
