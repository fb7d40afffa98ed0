"""Questions typed at the terminal: what is answered, what the verdict says, the samples of a run, and how it ends."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

import rollout
from evaluate import evaluate, main
from harness import chat
from harness.config import EXAMPLE
from harness.evaluation import options_of
from questions import read_questions

MODEL = str(EXAMPLE)


@pytest.fixture
def typed(monkeypatch, capsys):
    """What is printed for some lines of stdin."""

    def typed(*lines: str, model: str = MODEL, flags: str = "--temperature 0 --max-new-tokens 60") -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        main(["--model", model, "--chat", *flags.split()])
        printed = capsys.readouterr().out.splitlines()
        start = next(n for n, line in enumerate(printed) if line.startswith("Type a question"))
        return printed[start + (2 if "Ctrl-C" not in printed[start] else 1) :]

    return typed


@pytest.fixture
def run(tmp_path):
    """The folder of a run with two steps of samples; its model is a link to the embedded one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(MODEL)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    answers = [
        {"text": "wrong \x1b[2J one", "reward": 0.0, "advantage": -0.5, "anchor": False, "tokens": 3},
        {"text": "right one " * 12, "reward": 1.0, "advantage": 0.5, "anchor": True, "tokens": 3},
    ]
    group = {"problem": "1 + 1?", "answer": "2", "answers": answers, "distinctiveness": None, "masked_pairs": []}
    lines = [json.dumps({**group, "step": step}) for step in (1, 5)]
    (tmp_path / "run" / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "run"


# ---------------------------------------------------------------------------------------------------------------------
# Answers and verdicts
# ---------------------------------------------------------------------------------------------------------------------


def test_the_answer_is_the_one_that_an_evaluation_gets(typed):
    questions = read_questions([f"{MODEL}/held_out.jsonl"])[:3]
    model, tokenizer = rollout.load(MODEL, "cpu")
    measured = evaluate(model, tokenizer, questions, k=1, temperature=0.0, max_new_tokens=60)["rows"]
    printed = typed(*[f"{question['problem']} => {question['answer']}" for question in questions])
    texts = [row["texts"][0] for row in measured]
    assert [line for line in printed if line in texts] == texts
    verdicts = [line.split(":")[0].strip() for line in printed if line.strip().startswith(("right", "wrong"))]
    assert verdicts == ["right" if row["rewards"][0] else "wrong" for row in measured]


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(typed):
    question, flags = "Let x = 14, subtract 1, subtract 9. Find x.", "--max-new-tokens 60 --temperature 1 --seed "
    first, again, other = (typed(question, flags=flags + seed) for seed in ("1", "1", "2"))
    assert first == again != other


def test_without_a_right_answer_there_is_no_verdict(typed):
    assert not [
        line for line in typed("Let x = 14, add 1. Find x.") if line.startswith("   ") and "cut off" not in line
    ]


def test_an_answer_that_reaches_the_limit_is_said_to(typed):
    assert typed("Let x = 14, add 1. Find x.", flags="--temperature 0 --max-new-tokens 2")[-1].strip() == (
        "(cut off after 2 tokens)"
    )


@pytest.mark.parametrize(
    ("text", "gold", "said"),
    [
        (r"so \boxed{\frac{2}{4}}", "0.5", r"right: found \frac{2}{4}, read as 1/2"),
        (r"so \boxed{7}", "8", "wrong: found 7"),
        ("so much talk", "8", "wrong: no answer was found in it"),
        (r"so \boxed{7}", r"\frac{1", r"\frac{1: the verifier cannot read this as an answer."),
        ("so \\boxed{7\x1b[2J}", "8", "wrong: found 7\\x1b[2J"),
    ],
)
def test_the_verdict_says_what_was_found(text, gold, said):
    assert chat.verdict(text, "?", gold).strip().startswith(said)


@pytest.mark.parametrize(
    ("line", "problem", "gold"),
    [("2 + 2 => 4", "2 + 2", "4"), ("2 + 2", "2 + 2", ""), ("a => b => 4", "a => b", "4"), ("2 + 2 =>", "2 + 2", "")],
)
def test_what_stands_behind_the_last_arrow_is_right(line, problem, gold):
    assert chat.question_of(line) == (problem, gold)


def test_without_a_flag_the_limit_is_that_of_an_evaluation_and_what_the_model_has_room_for(monkeypatch):
    model, tokenizer = rollout.load(MODEL, "cpu")
    limits = []

    def generate(ids, **_):
        limits.append((model.generation_config.max_new_tokens, ids.shape[1]))
        assert model.generation_config.top_p == 0.9
        return ids.repeat(1, 2)

    monkeypatch.setattr(model, "generate", generate)
    for positions, flags in ((None, ""), (5_000, ""), (40, ""), (40, "--max-new-tokens 500")):
        monkeypatch.setattr(chat, "position_limit", lambda _, positions=positions: positions)
        monkeypatch.setattr(sys.modules["evaluate"], "position_limit", lambda _, positions=positions: positions)
        options = options_of(["--model", MODEL, "--chat", "--top-p", "0.9", *flags.split()])
        chat.answer(model, tokenizer, "1 + 1", chat.PLAIN, options)
    (endless, _), (wide, _), (narrow, prompt), (asked, _) = limits
    assert (endless, wide, narrow, asked) == (1024, 1024, 40 - prompt, 40 - prompt)


def test_a_question_that_does_not_fit_the_model_is_said_and_not_fatal(typed, monkeypatch):
    monkeypatch.setattr(chat, "position_limit", lambda model: 12)
    printed = typed("Let x = 14, subtract 1, subtract 9, subtract 1, subtract 9. Find x.", "2")
    assert "more than the model has room for" in printed[0] and len(printed) > 1


def test_ctrl_c_stops_the_answer_and_the_next_question_is_taken(typed, monkeypatch):
    written = []

    def interrupted(self: chat.Printed, text: str, stream_end: bool = False) -> None:
        written.append(text)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat.Printed, "on_finalized_text", interrupted)
    printed = typed("Let x = 14, add 1. Find x. => 15", "Let x = 14, add 1. Find x. => 15")
    assert printed[1] == "(stopped)" and sum(line.strip().startswith(("right", "wrong")) for line in printed) == 1


def test_a_penalty_in_the_models_own_generation_config_does_not_act(monkeypatch):
    model, tokenizer = rollout.load(MODEL, "cpu")
    options = options_of(["--model", MODEL, "--chat", "--temperature", "0", "--max-new-tokens", "60"])
    problem = "Let x = 14, subtract 1, subtract 9. Find x."
    plain = chat.answer(model, tokenizer, problem, chat.PLAIN, options)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    assert chat.answer(model, tokenizer, problem, chat.PLAIN, options) == plain


def test_the_model_changes_nothing_of_the_state_of_training():
    model, tokenizer = rollout.load(MODEL, "cpu")
    options = options_of(["--model", MODEL, "--chat", "--max-new-tokens", "4"])
    chat.answer(model, tokenizer, "1 + 1", chat.PLAIN, options)
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.is_grad_enabled()


# ---------------------------------------------------------------------------------------------------------------------
# Samples, flags
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/model"])
def test_a_run_is_named_by_its_folder_or_by_the_model_in_it(run, name):
    assert chat.model_of(f"{run}{name}") == (str(run / "model"), run)
    assert chat.model_of(MODEL) == (MODEL, None) and chat.model_of("Qwen/x") == ("Qwen/x", None)


def test_samples_are_those_of_the_last_step_the_best_first(run):
    shown = chat.shown_samples(run, [])
    assert "Step 5" in shown and "Step 1" not in shown and "1 + 1? => 2" in shown
    assert shown.index("reward 1, advantage +0.50, an anchor") < shown.index("reward 0, advantage -0.50")
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80


def test_samples_of_a_step_and_what_is_kept(run):
    assert "Step 1" in chat.shown_samples(run, ["1"])
    for words in (["3"], ["one"], ["1", "5"]):
        assert chat.shown_samples(run, words) == "/samples takes a step that was kept: 1, 5."
    (run / "samples.jsonl").unlink()
    assert "samples.jsonl does not exist" in chat.shown_samples(run, [])
    assert "none of a run" in chat.shown_samples(None, [])


def test_samples_are_shown_between_questions(typed, run):
    printed = typed("/samples 1", "Let x = 14, add 1. Find x.", model=str(run))
    assert "Step 1" in printed and "  reward 1, advantage +0.50, an anchor" in printed


@pytest.mark.parametrize("flag", ["--data x.jsonl", "--bench gsm8k", "--samples 2", "--out r.json", "--limit 3"])
def test_flags_of_a_measurement_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--model", MODEL, "--chat", *flag.split()])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"evaluate.py: {flag.split()[0]}: with --chat nothing is measured")
