"""Evaluation: figures by hand from fixed rewards, tables, and the command line."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest

import evaluate
import rollout
from harness import evaluation
from harness.answers import Keeper
from rollout import PromptStyle

ROOT = Path(evaluate.__file__).parent
ROWS = [
    {"problem": "1+1?", "answer": "2", "level": 1},
    {"problem": "2+2?", "answer": "4", "level": 1},
    {"problem": "a longer question?", "answer": "5", "level": 2},
]


def made_up(questions, accuracy, k=1, **changes):
    """A result of `evaluate` without sampling anything."""
    return {"accuracy": accuracy, "interval": (0.0, 1.0), "sampling_interval": None, f"pass@{k}": accuracy,
            f"maj@{k}": accuracy, "length": 1.0, "truncated": 0.0, "no_answer": 0.0, "questions": len(questions),
            "unreadable": 0, "rows": [{"rewards": [0.0] * k}], **changes}  # fmt: skip


def test_accuracy_and_pass_at_k_by_hand(model, tokenizer):
    """Right answers of four: 4, 1, 0. Accuracy 5/12, pass@4 2/3; by level 5/8 and 0."""
    right = {"1+1?": [1, 1, 1, 1], "2+2?": [0, 1, 0, 0], "a longer question?": [0, 0, 0, 0]}

    def reward(texts, rows):
        seen = {problem: iter(values) for problem, values in right.items()}
        return [float(next(seen[row["problem"]])) for row in rows]

    result = evaluate.evaluate(model, tokenizer, ROWS, k=4, temperature=1.0, max_new_tokens=8, seed=0, reward=reward)
    assert result["accuracy"] == result["avg@4"] == pytest.approx(5 / 12)
    assert result["pass@4"] == pytest.approx(2 / 3)
    assert result["levels"]["1"]["accuracy"] == pytest.approx(5 / 8) and result["levels"]["2"]["accuracy"] == 0
    assert [row["rewards"] for row in result["rows"]] == list(right.values())
    assert all(len(row["texts"]) == 4 for row in result["rows"])
    assert 1 <= result["length"] <= 8 and 0 <= result["truncated"] <= 1


def test_same_seed_same_result_and_unreadable_golds_are_counted(model, tokenizer):
    options = {"k": 2, "temperature": 1.0, "max_new_tokens": 8, "seed": 3}
    first = evaluate.evaluate(model, tokenizer, ROWS, **options)
    again = evaluate.evaluate(model, tokenizer, [*ROWS[::-1], {"problem": "?", "answer": "\\frac{1"}], **options)
    assert again["unreadable"] == 1 and first["unreadable"] == 0
    assert [row["texts"] for row in first["rows"]] == [row["texts"] for row in again["rows"]][::-1]


def test_no_readable_question_and_many_greedy_answers_are_errors(model, tokenizer):
    with pytest.raises(ValueError, match="no question whose gold answer"):
        evaluate.evaluate(model, tokenizer, [{"problem": "?", "answer": "\\frac{1"}])
    with pytest.raises(ValueError, match="k = 2 must be 1"):
        evaluate.evaluate(model, tokenizer, ROWS, k=2, temperature=0)


def test_bootstrap_interval_is_the_normal_one_for_many_questions():
    """900 questions, 30 % right: 0.3 ± 1.96·sqrt(0.21/900)."""
    low, high = evaluate.bootstrap(np.repeat([1.0, 0.0], [270, 630]))
    half = 1.96 * np.sqrt(0.21 / 900)
    assert low == pytest.approx(0.3 - half, abs=0.004) and high == pytest.approx(0.3 + half, abs=0.004)


def test_comparison_table_shows_gain_in_points():
    before = {
        "accuracy": 0.25,
        "length": 10.0,
        "questions": 8,
        "levels": {"1": {"accuracy": 0.25, "length": 10.0, "questions": 8}},
    }
    after = {
        "accuracy": 0.75,
        "length": 20.5,
        "questions": 8,
        "levels": {"1": {"accuracy": 0.75, "length": 20.5, "questions": 8}},
    }
    lines = evaluate.comparison_table(before, after).splitlines()
    assert lines[2].split() == ["1", "8", "25.0%", "75.0%", "+50.0", "10.0", "20.5"]
    assert lines[3].split()[0] == "all"


def test_command_line_writes_every_answer(model, tokenizer, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "small.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out = tmp_path / "result.json"
    evaluate.main(
        [
            "--model",
            str(tmp_path / "model"),
            "--data",
            str(data),
            "--samples",
            "2",
            "--max-new-tokens",
            "4",
            "--out",
            str(out),
        ]
    )
    line = capsys.readouterr().out.splitlines()[1].split()
    result = json.loads(out.read_text())[str(data)]
    assert line[:4] == ["small", "3", "2", f"{result['avg@2']:.1%}"]
    assert len(result["rows"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--data", "missing.jsonl"], "no such file"),
        (["--model", "m", "--data", "d", "--samples", "0"], "--samples 0"),
        (["--model", "m", "--data", "d", "--top-p", "0"], "--top-p 0: it must be above 0"),
        (["--model", "m", "--data", "d", "--top-p", "2"], "--top-p 2: it must be above 0 and at most 1"),
        (["--model", "m", "--data", "d", "--samples", "2", "--temperature", "0"], "use --samples 1"),
    ],
)
def test_command_line_errors_say_what_to_do(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert message in f"{stop.value} {capsys.readouterr().err}"


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_question_that_leaves_no_room_is_left_out_and_named_and_the_others_keep_the_limit(
    model, tokenizer, tmp_path, capsys
):
    """256 positions, 200 tokens asked for: a long prompt lowered the limit of all questions, silently."""
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:2], {"problem": "a" * 100, "answer": "1"}]))
    out = tmp_path / "out.json"
    command = ["--model", saved(model, tokenizer, tmp_path / "m"), "--data", str(data), "--out", str(out)]
    evaluate.main([*command, "--max-new-tokens", "200"])
    printed, result = capsys.readouterr().out, json.loads(out.read_text())[str(data)]
    assert "1 questions left out" in printed and "at most 200 tokens each" in printed
    assert result["questions"] == 2 and result["left_out"] == 1 and result["max_new_tokens"] == 200
    evaluate.main(command)
    _, loaded = rollout.load(command[1])
    room = 256 - len(rollout.encode_prompt(loaded, "a" * 100 + "\n"))  # without the flag all fit
    assert f"at most {room} tokens each" in capsys.readouterr().out


def test_prompts_are_those_that_the_run_trained_with(model, tokenizer, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = saved(model, chat, run / "model")
    (run / "config.json").write_text(json.dumps({"system": "be brief", "enable_thinking": False}))
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    seen = []
    plain = evaluate.prompt_of
    monkeypatch.setattr(evaluate, "prompt_of", lambda t, q, style: seen.append(style) or plain(t, q, style))
    evaluate.main(["--model", path, "--data", str(data), "--max-new-tokens", "4"])
    assert "system prompt 'be brief', enable_thinking False" in capsys.readouterr().out
    evaluate.main(["--model", path, "--data", str(data), "--max-new-tokens", "4", "--system", "", "--enable-thinking"])
    assert [(style.system, style.enable_thinking) for style in seen] == [("be brief", False), ("", True)]


def test_a_system_prompt_without_a_chat_template_ends_in_a_sentence(model, tokenizer, tmp_path):
    """With a limit or without one, which is then looked for in the prompts."""
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    command = ["--model", saved(model, tokenizer, tmp_path / "m"), "--data", str(data), "--system", "be brief"]
    for more in ([], ["--max-new-tokens", "4"]):
        with pytest.raises(SystemExit, match="the tokenizer has none: leave them out"):
            evaluate.main([*command, *more])


def test_one_long_prompt_takes_no_more_than_half_of_the_positions_from_all_others(model, tokenizer):
    """256 positions; without a limit that is asked for."""
    for length, limit in ((100, 155), (200, 128)):
        asked = [ROWS[0], {"problem": "a" * length, "answer": "1"}]
        assert evaluate.default_limit(model, tokenizer, asked, rollout.PLAIN) == limit


def test_a_config_beside_any_other_folder_is_no_run(model, tokenizer, tmp_path, capsys):
    """A run has its model in model/. Elsewhere config.json is of something else."""
    (tmp_path / "config.json").write_text(json.dumps({"system": "be brief"}))
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    path = saved(model, tokenizer, tmp_path / "other")
    evaluate.main(["--model", path, "--data", str(data), "--max-new-tokens", "2"])
    assert "system prompt" not in capsys.readouterr().out


def test_several_benchmarks_end_in_the_mean_of_their_accuracies(model, tokenizer, tmp_path, monkeypatch, capsys):
    """Of 1 and of 0, whatever their number of questions."""
    for name, rows in (("a", ROWS[:1]), ("b", [{**row, "answer": "no"} for row in ROWS])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def graded(model, tokenizer, questions, **_):
        return made_up(questions, float(questions[0]["answer"] == "2"))

    monkeypatch.setattr(evaluate, "evaluate", graded)
    data = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    evaluate.main(["--model", saved(model, tokenizer, tmp_path / "m"), "--data", *data, "--max-new-tokens", "2"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["mean", "of", "benchmarks", "50.0%"]


def test_a_question_that_comes_twice_gets_other_completions_in_another_batch_too(model, tokenizer, monkeypatch):
    """Else its completions would count twice as evidence."""
    monkeypatch.setattr(evaluate, "BATCH_COMPLETIONS", 2)
    options = {"k": 2, "temperature": 1.0, "max_new_tokens": 12}
    first, second = evaluate.evaluate(model, tokenizer, [ROWS[0], ROWS[0]], **options)["rows"]
    assert not {*first["texts"]} & {*second["texts"]}


def test_the_rewards_interval_is_over_questions(model, tokenizer):
    """One question earns 1 each time, the other 0: the mean over two questions drawn is 0, 0.5 or 1."""

    def reward(texts, rows):
        return [float(row["answer"] == "2") for row in rows]

    result = evaluate.evaluate(model, tokenizer, ROWS[:2], k=8, temperature=1.0, max_new_tokens=2, reward=reward)
    assert result["reward_interval"] == result["interval"] == (0.0, 1.0)


def test_right_is_what_earns_enough_and_nothing_is_right_where_nothing_says_what_is(model, tokenizer):
    def reward(texts, rows):
        return [0.2 * int(row["answer"]) for row in rows]  # 0.4, 0.8, 1

    options = {"temperature": 0, "max_new_tokens": 2, "reward": reward}
    assert evaluate.evaluate(model, tokenizer, ROWS, right=0.8, **options)["accuracy"] == pytest.approx(2 / 3)
    unknown = evaluate.evaluate(model, tokenizer, ROWS, right=math.inf, **options)
    assert not {"accuracy", "interval", "avg@1", "pass@1", "pass_interval"} & {*unknown}
    assert "accuracy" not in unknown["levels"]["1"] and unknown["reward"] == pytest.approx(2.2 / 3)


# --- figures by hand ---------------------------------------------------------------------------------------------


def row(rewards, answers=None, **fields):
    """A row of the result; `answers` are what was extracted and read alike."""
    answers = ["2"] * len(rewards) if answers is None else answers
    return {"level": None, "subject": None, "rewards": rewards, "lengths": [10] * len(rewards),
            "truncated": [False] * len(rewards), "extracted": answers, "read": answers, **fields}  # fmt: skip


def test_pass_at_j_is_the_share_of_all_drawings_of_j_with_a_right_one():
    """By counting every drawing of j from k completions, c of which are right."""
    for k in range(1, 7):
        expected = [
            [
                np.mean([min(drawn) < c for drawn in itertools.combinations(range(k), j)])  # the first c are right
                for j in range(1, k + 1)
            ]
            for c in range(k + 1)
        ]
        assert evaluate.pass_at(np.arange(k + 1), k) == pytest.approx(np.array(expected))


def test_pass_at_j_of_hand_made_counts():
    """Of 4 completions 2 and 0 are right: pass@1 1/4, pass@2 (1 − 1/6)/2, pass@3 and pass@4 1/2."""
    result = evaluate.figures([row([1.0, 0.0, 1.0, 0.0]), row([0.0] * 4)])
    found = [result[f"pass@{j}"] for j in range(1, 5)]
    assert found == pytest.approx([1 / 4, 5 / 12, 1 / 2, 1 / 2])
    assert result["avg@4"] == result["pass@1"] == result["accuracy"]


def test_the_majority_is_the_most_common_answer_and_of_several_the_mean():
    """Right by 3 of 4; wrong by 3 of 4; 2 against 2; one answer and three texts without any; none at all."""
    rows = [
        row([1.0, 1.0, 0.0, 1.0], ["2", "2", "3", "2"]),
        row([1.0, 0.0, 0.0, 0.0], ["2", "3", "3", "3"]),
        row([1.0, 0.0, 1.0, 0.0], ["2", "3", "2", "3"]),
        row([1.0, 0.0, 0.0, 0.0], ["2", None, None, None]),
        row([0.0] * 4, [None] * 4),
    ]
    result = evaluate.figures(rows)
    assert result["maj@4"] == pytest.approx((1 + 0 + 0.5 + 1 + 0) / 5)
    assert result["consistency"] == pytest.approx((3 / 4 + 3 / 4 + 1 / 2 + 1 / 4 + 0) / 5)
    assert result["no_answer"] == pytest.approx((3 + 4) / 20)


def test_answers_that_read_alike_vote_together_and_what_cannot_be_read_votes_as_it_stands():
    found = row([0.0, 0.0, 1.0, 1.0, 1.0], ["5 +", "5 +", "0.5", "1/2", r"\frac{1}{2} cm"])
    found["read"] = [None, None, "1/2", "1/2", "1/2 (unit cm)"]
    result = evaluate.figures([found])
    assert (result["maj@5"], result["consistency"], result["no_answer"]) == (1.0, 3 / 5, 0.0)


def test_with_choices_a_text_that_names_none_is_without_an_answer():
    found = row([1.0, 0.0], ["B", "Milan"], choices=["Paris", "Rome"])
    found["read"] = ["B", None]
    assert evaluate.figures([found])["no_answer"] == 0.5


def test_the_noise_of_sampling_is_told_apart_from_that_of_the_questions():
    """100 questions, half of them always right: other completions change nothing, other questions would."""
    result = evaluate.figures([row([1.0] * 4)] * 50 + [row([0.0] * 4)] * 50)
    assert result["sampling_interval"] == (0.5, 0.5)
    assert result["interval"] == pytest.approx((0.4, 0.6), abs=0.011)


def test_the_interval_of_sampling_covers_what_other_completions_give():
    """60 questions with chances of their own, 4 completions: 95 of 100 intervals hold the mean chance."""
    rng = np.random.default_rng(0)
    chances = rng.random(60)
    intervals = [evaluate.sampling_interval(rng.random((60, 4)) < chances[:, None]) for _ in range(2_000)]
    held = np.mean([low <= chances.mean() <= high for low, high in intervals])
    assert held == pytest.approx(0.95, abs=0.02)
    assert evaluate.sampling_interval(np.ones((5, 1), dtype=bool)) is None


def test_levels_and_subjects_have_the_means_of_their_questions():
    rows = [
        row([1.0, 0.0], level=2, subject="Algebra"),
        row([1.0, 1.0], level=None, subject="Algebra"),
        row([0.0, 0.0], level=10, subject=None),
    ]
    result = evaluate.figures(rows)
    assert {name: figures["accuracy"] for name, figures in result["subjects"].items()} == {"Algebra": 0.75}
    assert {name: figures["questions"] for name, figures in result["levels"].items()} == {"2": 1, "10": 1}


def test_the_interval_of_many_questions_is_drawn_in_parts_of_the_memory(monkeypatch):
    """Two million numbers of each of 2,000 drawings would take 32 GB."""
    low, high = evaluate.bootstrap(np.repeat([0.0, 1.0], 50_000), resamples=200)
    assert (low, high) == (pytest.approx(0.4969, abs=0.001), pytest.approx(0.5031, abs=0.001))


# --- what the result says ----------------------------------------------------------------------------------------


def test_rows_say_why_what_was_extracted_and_as_what_it_was_read(model, tokenizer, monkeypatch):
    texts = {"1+1?\n": r"so \boxed{\frac{4}{2}}", "which?\nA. 3\nB. 2\nThe answer is the letter of one choice.\n": "B"}
    plain = rollout.sample_each

    def sample_each(model, tokenizer, prompts, k, **options):
        for sampled in plain(model, tokenizer, prompts, k, **options):
            yield dataclasses.replace(sampled, text=texts[prompts[sampled.prompt]])

    monkeypatch.setattr(evaluate.rollout, "sample_each", sample_each)
    asked = [
        {"id": "one", "problem": "1+1?", "answer": "2", "level": 3, "subject": "sums"},
        {"problem": "which?", "answer": "A", "choices": ["3", "2"]},
    ]
    first, second = evaluate.evaluate(model, tokenizer, asked, k=2, max_new_tokens=4)["rows"]
    assert (first["extracted"], first["read"], first["rewards"]) == ([r"\frac{4}{2}"] * 2, ["2"] * 2, [1.0] * 2)
    assert (first["id"], first["level"], first["subject"], "choices" in first) == ("one", 3, "sums", False)
    assert (second["read"], second["rewards"], second["choices"]) == (["B"] * 2, [0.0] * 2, ["3", "2"])
    assert second["id"] == 1 and second["level"] is None
    assert all(len(each[name]) == 2 for each in (first, second) for name in ("lengths", "truncated", "texts"))


def test_the_result_says_what_fixes_its_numbers(model, tokenizer, tmp_path, capsys):
    """Another seed and another limit are other settings; the same model elsewhere is the same model."""
    data = tmp_path / "small.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = []
    for folder, flags in (("m", []), ("other", ["--seed", "3", "--limit", "2"])):
        command = ["--model", saved(model, tokenizer, tmp_path / folder), "--data", str(data), "--samples", "2"]
        evaluate.main([*command, "--max-new-tokens", "4", *flags, "--out", str(tmp_path / f"{folder}.json")])
        found.append(json.loads((tmp_path / f"{folder}.json").read_text())[str(data)]["settings"])
    first, second = found
    assert first["model_hash"] == second["model_hash"] and len(first["model_hash"]) == 16 and first["revision"] is None
    assert (first["seed"], second["seed"]) == (0, 3) and first["data_hash"] != second["data_hash"]
    assert (first["temperature"], first["top_p"], first["samples"], first["max_new_tokens"]) == (0.6, 1.0, 2, 4)
    assert first["data"] == str(data) and first["rel_tol"] == 0.0 and first["chat_template_hash"] is None
    assert first["versions"].keys() == {"dagrpo", "torch", "transformers", "python"}
    assert first["versions"]["dagrpo"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_other_weights_are_another_model(model, new_model, tokenizer, tmp_path):
    hashes = [
        evaluation.hash_of_files(Path(saved(each, tokenizer, tmp_path / name)))
        for name, each in (("a", model), ("b", new_model(seed=1)))
    ]
    assert hashes[0] != hashes[1]
    (tmp_path / "a" / "README.md").write_text("a card is not the model")
    assert evaluation.hash_of_files(tmp_path / "a") == hashes[0]


def test_the_table_has_80_columns_and_says_what_a_question_is_worth():
    """Also where every share is 100 % and the name is long."""
    few = made_up([0] * 30, 1.0, 32, max_new_tokens=32768, consistency=1.0, truncated=1.0, no_answer=1.0,
                  sampling_interval=(1.0, 1.0), interval=(1.0, 1.0), length=32768.0)  # fmt: skip
    lines = [evaluate.HEAD, evaluate.line_of("a_benchmark_with_a_long_name", few), *evaluate.details_of(few)]
    assert all(len(line) <= 78 for line in lines[2:]) and all(len(line) <= 80 for line in lines[:2])
    assert lines[1].split()[1:] == ["30", "32", "100.0%", "100.0", "to", "100.0", "100.0%", "100.0%", "32768"]
    assert any("one of them is 3.3 points" in line for line in lines)
    assert not any("points" in line for line in evaluate.details_of({**few, "questions": 100}))


def test_more_answers_than_any_machine_has_room_for_end_in_a_sentence(tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--model", "m/odel", "--data", str(data), "--samples", "100000000000"])
    assert stop.value.code == 2
    assert "--samples 100000000000: with the 1 questions" in str(stop.value) and "10,000,000 answers" in str(stop.value)


# --- what is measured of what ------------------------------------------------------------------------------------

BY_LENGTH = [ROWS[2], ROWS[0], {"problem": "the longest question of all?", "answer": "7", "level": 2}]  # not sorted


def reward_of_problem(texts, rows):
    """The length of the problem: it shows whose completion a reward was given to."""
    return [float(len(row["problem"])) for row in rows]


def test_rewards_texts_and_lengths_stay_with_their_questions(model, tokenizer):
    """Questions are sampled by the length of their prompts; the result is in their order."""
    options = {"k": 3, "temperature": 1.0, "max_new_tokens": 30, "seed": 3, "reward": reward_of_problem}
    together = evaluate.evaluate(model, tokenizer, BY_LENGTH, **options)
    alone = [evaluate.evaluate(model, tokenizer, [row], **options) for row in BY_LENGTH]
    for row, found, single in zip(BY_LENGTH, together["rows"], alone, strict=True):
        assert found["rewards"] == [float(len(row["problem"]))] * 3
        assert found["texts"] == single["rows"][0]["texts"]
    by_level = {level: together["levels"][level] for level in ("1", "2")}
    assert by_level["1"]["length"] == pytest.approx(alone[1]["length"])
    assert by_level["2"]["length"] == pytest.approx((alone[0]["length"] + alone[2]["length"]) / 2)
    assert (by_level["1"]["questions"], by_level["2"]["questions"]) == (1, 2)
    assert len({single["length"] for single in alone}) == 3


def test_the_result_does_not_depend_on_how_many_are_sampled_at_once(model, tokenizer, monkeypatch):
    """`truncated` counts the completions of all batches."""
    options = {"k": 2, "temperature": 1.0, "max_new_tokens": 12, "seed": 5, "reward": reward_of_problem}
    whole = evaluate.evaluate(model, tokenizer, BY_LENGTH, **options)
    monkeypatch.setattr(evaluate, "BATCH_COMPLETIONS", 1)
    assert evaluate.evaluate(model, tokenizer, BY_LENGTH, **options) == whole
    assert whole["truncated"] == 1.0  # six of six, not the last two


def test_a_share_of_completions_is_cut_off(model, tokenizer):
    """Under a limit of one token all are, whatever k is, but those that are an EOS at once."""
    result = evaluate.evaluate(
        model, tokenizer, ROWS, k=4, temperature=1e-3, max_new_tokens=1, seed=0, reward=reward_of_problem
    )
    assert result["truncated"] == 1.0 and result["length"] == 1.0


def test_intervals_are_over_questions_by_hand(model, tokenizer):
    """Two right of four completions of each of three questions: every mean over questions is 1/2, every pass@4 is 1.

    Over completions the interval would be wide; from all of a question's completions pass@4 would be 0.
    """

    def half(texts, rows):
        return [float(i % 2) for i in range(len(texts))]

    result = evaluate.evaluate(model, tokenizer, ROWS, k=4, temperature=1.0, max_new_tokens=4, seed=0, reward=half)
    assert result["interval"] == (0.5, 0.5)
    assert result["pass@4"] == 1.0 and result["pass_interval"] == (1.0, 1.0)


def test_another_reward_needs_no_gold_that_the_verifier_can_read(model, tokenizer):
    rows = [*ROWS, {"problem": "?", "answer": "\\frac{1"}]
    options = {"temperature": 1.0, "max_new_tokens": 2}
    with_reward = evaluate.evaluate(model, tokenizer, rows, reward=reward_of_problem, **options)
    assert (with_reward["questions"], with_reward["unreadable"]) == (4, 0)
    graded = evaluate.evaluate(model, tokenizer, rows, **options)
    assert (graded["questions"], graded["unreadable"]) == (3, 1)


def test_temperature_top_p_and_seed_reach_the_sampler(model, tokenizer):
    def texts(**options):
        options = {"k": 4, "max_new_tokens": 20, "temperature": 1.0, "reward": reward_of_problem, **options}
        return [row["texts"] for row in evaluate.evaluate(model, tokenizer, ROWS, **options)["rows"]]

    greedy = texts(k=1, temperature=0)
    assert texts(temperature=1e-5) == texts(top_p=1e-6) == [each * 4 for each in greedy]
    assert texts(seed=1) != texts(seed=2) and texts() != [each * 4 for each in greedy]


def test_the_interval_leaves_out_a_fortieth_on_either_side():
    """Of 0 and 1 alike: over two questions the mean is 0 a quarter of the time; over 100 it is 0.5 ± 1.96·0.05."""
    assert evaluate.bootstrap(np.array([0.0, 1.0])) == (0.0, 1.0)
    low, high = evaluate.bootstrap(np.repeat([0.0, 1.0], 50))
    assert (low, high) == (pytest.approx(0.4, abs=0.011), pytest.approx(0.6, abs=0.011))
    narrow = 1.645 * 0.05  # of an interval that leaves out a twentieth
    assert high - low > 2 * narrow + 0.02


def test_each_level_of_the_table_has_its_gain():
    def result(*accuracies):
        figures = [{"accuracy": a, "length": 10.0, "questions": 4} for a in accuracies]
        return {**figures[0], "levels": {"1": figures[1], "2": figures[2]}}

    lines = evaluate.comparison_table(result(0.5, 0.25, 0.75), result(0.75, 0.75, 0.5)).splitlines()[2:]
    assert [line.split()[4] for line in lines] == ["+50.0", "-25.0", "+25.0"]


def test_every_flag_reaches_the_evaluation(model, tokenizer, tmp_path, monkeypatch, capsys):
    """The limit of a completion is what the model has room for behind the longest prompt: 256 − 19 positions."""
    data = tmp_path / "small.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(evaluate.rollout, "load", lambda name, **_: (model, tokenizer))
    asked = []

    def stand_in(model, tokenizer, questions, **options):
        asked.append((len(questions), options))
        return made_up(questions, 0.5, options["k"])

    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    flags = "--samples 3 --temperature 0.9 --top-p 0.8 --seed 7 --limit 2 --max-new-tokens 11"
    evaluate.main(["--model", "m", "--data", str(data), *flags.split()])
    evaluate.main(["--model", "m", "--data", str(data)])
    (limited, options), (all_of_them, defaults) = asked
    assert (limited, all_of_them) == (2, 3)
    expected = {
        "k": 3,
        "temperature": 0.9,
        "top_p": 0.8,
        "seed": 7,
        "max_new_tokens": 11,
        "label": "small",
        "style": PromptStyle(),
        "keeper": Keeper(),
    }
    assert options == expected and defaults["max_new_tokens"] == 256 - 19


# --- where the result goes ---------------------------------------------------------------------------------------


def test_a_result_becomes_a_page_and_is_compared_with_another(model, tokenizer, tmp_path, capsys):
    data = tmp_path / "bench.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["--model", saved(model, tokenizer, tmp_path / "m"), "--data", str(data), "--max-new-tokens", "4"]
    for name, seed in (("a", "1"), ("b", "2")):
        out, page = str(tmp_path / f"{name}.json"), str(tmp_path / f"{name}.html")
        evaluate.main([*command, "--samples", "3", "--seed", seed, "--out", out, "--html", page])
        assert (tmp_path / f"{name}.html").read_text().startswith("<!DOCTYPE html>")
    capsys.readouterr()
    evaluate.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "bench" in (said := capsys.readouterr().out) and "A − B" in said
    data.write_text("not a page")
    with pytest.raises(SystemExit, match=r"--html .*no page of this program"):
        evaluate.main([*command[:4], "--html", str(data)])
    assert data.read_text() == "not a page"


def evaluated_into(out, model, tokenizer, tmp_path, **changes):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    flags = {
        "model": saved(model, tokenizer, tmp_path / "m"),
        "data": str(data),
        "max-new-tokens": "2",
        "out": str(out),
    }
    evaluate.main([word for name, value in {**flags, **changes}.items() for word in (f"--{name}", value)])


def test_a_result_may_be_written_over_an_earlier_one_and_into_a_new_folder(model, tokenizer, tmp_path):
    out = tmp_path / "new" / "folder" / "result.json"
    evaluated_into(out, model, tokenizer, tmp_path)
    first = out.read_text()
    evaluated_into(out, model, tokenizer, tmp_path, seed="3", temperature="9")
    assert json.loads(out.read_text()).keys() == json.loads(first).keys()
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]


def test_an_evaluation_that_is_stopped_leaves_the_earlier_result_as_it_was(model, tokenizer, tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    evaluated_into(out, model, tokenizer, tmp_path)
    before = out.read_text()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate", interrupted)
    with pytest.raises(SystemExit) as stop:
        evaluated_into(out, model, tokenizer, tmp_path)
    assert stop.value.code == 130 and out.read_text() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_place_that_cannot_be_written_is_found_before_anything_is_sampled(model, tokenizer, tmp_path, monkeypatch):
    """Where the system's own answer to "may I" is wrong, the file is tried."""
    monkeypatch.setattr(evaluation.os, "access", lambda *_: True)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("sampled"))

    def read_only(self, **_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(evaluation.Path, "touch", read_only)
    with pytest.raises(SystemExit, match="it cannot be written \\(Read-only file system"):
        evaluated_into(tmp_path / "result.json", model, tokenizer, tmp_path)


def test_two_files_of_one_name_are_told_apart_by_their_folders():
    names = ["a/test.jsonl", "data/b/test.jsonl", "c/other.jsonl", "test.jsonl"]
    assert [evaluation.short_name(name, names) for name in names] == ["a/test", "b/test", "other", "test"]
    assert evaluation.short_name("a/test.jsonl", ["a/test.jsonl"]) == "test"
