"""The comparison on a language model: its questions, the commands that it types, where it takes up, and its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness import checkpoint
from harness.config import configure, parse
from harness.evaluation import options_of
from study import words
from study.tasks import read_lines
from study.words import HELD_OUT, TINY, are_siblings, draw, shingles, tables

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


def problems(word: str, count: int, solution: str | None = None) -> list[dict]:
    """Questions that share no run of four words with another."""
    return [
        {"problem": f"{word}{n} a{n} {word} b{n} c{n} {word} d{n}", "answer": str(n), "solution": solution}
        for n in range(count)
    ]


def sets(**changes: list[dict]) -> dict[str, list[dict]]:
    return {**{name: problems(name, 12) for name in HELD_OUT}, "gsm8k_train": problems("g", 12, "1 + 1 = 2"), **changes}


def line(variant: str, seed: int, right: list[int], **changes: object) -> dict:
    """A kept training in which every held-out set has the same right completions, of 4."""
    return {
        "variant": variant, "seed": seed, "samples": 4, "right": dict.fromkeys(HELD_OUT, right),
        "no_answer": dict.fromkeys(HELD_OUT, 0.25), "training_seconds": 1_800.0, **changes,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "siblings"),
    [
        ("Tom has 3 red apples and 5 pears", "Tom has 3 red apples and 9 plums", True),  # 3 of 5 runs
        ("Tom has 3 red apples and 5 pears", "tom HAS 3 red, apples: and 5 pears!", True),
        ("Tom has 3 red apples and 5 pears", "Ann has 7 red apples and 5 pears", False),  # 2 of 5
        ("Tom has 3 red apples", "Tom has 3 red apples, and Ann has 4 green ones", True),  # 2 of the 2 of the shorter
        ("How many are left now", "How many are there in all", False),
        ("Six?", "Six?", True),
    ],
)
def test_questions_that_share_half_of_their_runs_of_words_are_siblings(one, other, siblings):
    assert are_siblings(shingles(one), shingles(other)) == siblings


def test_no_held_out_question_has_a_sibling_in_training():
    found = sets()
    for question in list(found["svamp"]):  # a copy with another end in what is trained on
        found["mawps"].append({**question, "problem": question["problem"] + " more"})
    drawn = draw(found, TINY)
    training = drawn["training"] + drawn["validation"]
    held_out = [shingles(question["problem"]) for name in HELD_OUT for question in drawn[name]]
    assert [len(drawn[name]) for name in HELD_OUT] == [4] * 4 and len(drawn["validation"]) == 4
    assert not any(are_siblings(shingles(question["problem"]), own) for question in training for own in held_out)
    kept = [question["problem"] for question in training if question["problem"].endswith(" more")]
    assert kept, "those whose sibling is not held out stay"


def test_a_sibling_of_a_held_out_question_is_no_anchor_either():
    found = sets()
    found["gsm8k_train"] += [
        {**question, "problem": question["problem"] + " more", "solution": "s"} for question in found["gsm8k_test"]
    ]
    drawn = draw(found, replace(TINY, held_out=12, with_solutions=100))
    assert drawn["solved"] and not [q for q in drawn["solved"] if q["problem"].endswith(" more")]


def test_a_question_that_stands_in_two_sets_is_there_once():
    drawn = draw(sets(asdiv=problems("mawps", 12) + problems("asdiv", 6)), TINY)
    every = [question["problem"] for name in (*HELD_OUT, "training", "validation") for question in drawn[name]]
    assert len(every) == len(set(every))


def test_only_short_solutions_are_trained_on():
    found = sets(gsm8k_train=problems("g", 6, "short") + problems("h", 6, "long " * 100))
    drawn = draw(found, TINY)
    assert drawn["solved"] and {question["solution"] for question in drawn["solved"]} == {"short"}
    assert all(question in drawn["training"] for question in drawn["solved"])


def test_validation_has_questions_of_every_set_that_is_trained_on():
    problems = [question["problem"] for question in draw(sets(), replace(TINY, validation=8))["validation"]]
    assert all(any(problem.startswith(name) for problem in problems) for name in ("mawps", "asdiv", "g"))


def test_the_same_questions_are_drawn_again():
    assert draw(sets(), TINY) == draw(sets(), TINY)


def test_a_source_without_the_sets_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"--source .*there is no .*eval/mawps\.jsonl"):
        words.main(["questions", "--source", str(tmp_path), "--folder", str(tmp_path / "out")])


# ---------------------------------------------------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """The commands that `run` types. What they would write is written: logs, a checkpoint, a result."""
    commands: list[list[str]] = []

    def command(program: str, *arguments: object) -> None:
        given = [str(argument) for argument in arguments]
        commands.append([program, *given])
        if program == "evaluate.py":
            options = options_of(given)
            rows = [
                {
                    "problem": question["problem"],
                    "answer": question["answer"],
                    "texts": ["a", "b"],
                    "rewards": [1, 0],
                }
                for question in read_lines(Path(options.data[0]))
            ]
            result = {"accuracy": 0.25, "rows": rows, "no_answer": 0.5, "length": 9.0}
            Path(options.out).write_text(json.dumps({name: result for name in options.data}))
            return
        flags = parse(given)
        if "resume" not in flags:
            configure(**flags)
        folder = Path(flags.get("resume") or flags["out"])
        ended = flags.get("steps", 10)
        if commands.count(commands[-1]) == 1 and folder.name in stops:
            ended = 2
        place = folder / "checkpoints" / f"step-{ended}"
        (place / "model").mkdir(parents=True)
        (place / "state.json").write_text(json.dumps({"step": ended, "taken": 0}))
        checkpoint.write_manifest(place)
        step = {"seconds/sampling": 30.0, "peak_memory_gb": 3.0, "grad_norm": 1.0, "trained_sequences": 1.0}
        steps = [{"memory_estimate_gb": 1}, *[{"step": n + 1, **step, "displaced": 0.25} for n in range(ended)]]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps))
        (folder / "evaluations.jsonl").write_text(json.dumps({"step": 0, "accuracy": 0.125}) + "\n")
        if ended == 2 and folder.name in stops:
            raise SystemExit("stopped")

    stops: list[str] = []
    monkeypatch.setattr(words, "command", command)
    monkeypatch.setattr(words, "commit", lambda: "abc")
    drawn = draw(sets(), TINY)
    words.write_sets(tmp_path / "questions", drawn)

    def typed(*variants: str, stop: str = "") -> list[list[str]]:
        commands.clear()
        stops[:] = [stop]
        arguments = [
            "run",
            "--model",
            "m.gguf",
            "--tiny",
            "--folder",
            str(tmp_path),
            "--cells",
            str(tmp_path / "w.jsonl"),
        ]
        words.main([*arguments, "--seeds", "500", "--variants", *variants])
        return list(commands)

    return typed


def flags_of(command: list[str]) -> dict:
    return parse(command[1:])


def test_the_start_is_measured_and_not_trained(typed, tmp_path):
    (measuring,) = typed("start")
    assert measuring[0] == "evaluate.py" and measuring[measuring.index("--model") + 1] == "m.gguf"
    (kept,) = read_lines(tmp_path / "w.jsonl")
    assert kept["right"]["svamp"] == [1] * 4 and kept["steps"] == 0 and kept["training_seconds"] == 0


def test_what_is_finished_is_not_done_again(typed):
    assert len(typed("grpo")) == 2 and typed("grpo") == []


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(typed, tmp_path):
    with pytest.raises(SystemExit, match="stopped"):
        typed("dagrpo", stop="dagrpo-500")
    resumed, measuring = typed("dagrpo")
    assert resumed == ["dagrpo.py", "--resume", str(tmp_path / "dagrpo-500")] and measuring[0] == "evaluate.py"


def test_a_training_that_has_ended_is_only_measured(typed, tmp_path):
    typed("grpo")
    (tmp_path / "w.jsonl").unlink()  # as if it had been stopped in the evaluation
    (tmp_path / "grpo-500.json").unlink()
    (measuring,) = typed("grpo")
    assert measuring[0] == "evaluate.py"


def test_fine_tuning_and_grpo_share_the_steps(typed, tmp_path):
    first, second, measuring = typed("sft-grpo")
    assert flags_of(first)["method"] == "sft" and flags_of(second)["method"] == "grpo"
    assert flags_of(first)["steps"] + flags_of(second)["steps"] == TINY.steps == 3
    assert flags_of(second)["model"] == str(tmp_path / "sft-grpo-500-first" / "model")
    assert measuring[measuring.index("--model") + 1] == str(tmp_path / "sft-grpo-500" / "model")
    assert flags_of(first)["data"] == [str(tmp_path / "questions" / "solved.jsonl")]
    (kept,) = read_lines(tmp_path / "w.jsonl")
    assert kept["steps"] == 3 and kept["training_seconds"] == 90 and kept["curves"]["displaced"] == [0.25] * 3


def test_a_training_that_ended_before_its_first_checkpoint_begins_anew(typed, tmp_path):
    (tmp_path / "grpo-500").mkdir()
    (tmp_path / "grpo-500" / "config.json").write_text("{}")
    training, _ = typed("grpo")
    assert "--resume" not in training and flags_of(training)["out"] == str(tmp_path / "grpo-500")
    assert not (tmp_path / "grpo-500" / "config.json").exists(), "dagrpo.py would refuse a folder with a run"


def test_training_and_evaluation_show_the_same_examples_and_have_one_limit(typed):
    training, measuring = typed("dagrpo")
    flags, options = flags_of(training), options_of(measuring[1 : measuring.index("--out")])
    assert flags["examples"] == options.examples == str(words.EXAMPLES)
    assert flags["max_new_tokens"] == options.max_new_tokens == TINY.max_new_tokens and options.samples == TINY.samples
    assert [Path(file).stem for file in options.data] == list(HELD_OUT)


def test_methods_differ_by_nothing_else(typed):
    (grpo, _), (dagrpo, _) = typed("grpo"), typed("dagrpo")
    one, other = flags_of(grpo), flags_of(dagrpo)
    assert {name for name in one if one[name] != other[name]} == {"method", "out"}


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def test_the_table_has_the_mean_of_the_seeds_and_differences_by_question():
    lines = [line("start", 500, [0, 0]), line("grpo", 500, [4, 0]), line("grpo", 501, [2, 2])]
    said = tables([*lines, line("dagrpo", 500, [4, 4]), line("dagrpo", 501, [4, 4])])
    row = next(each for each in said.splitlines() if each.startswith("| grpo"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "grpo", "2", "50.0", "50.0", "50.0", "50.0", "50.0", "25.0", "0.5",
    ]  # fmt: skip
    # Of each of 8 questions GRPO has 3/4 or 1/4 right, the mean of its seeds: 1/2 on average, and DaGRPO all.
    assert "dagrpo minus start: +100.0 (+100.0 to +100.0), p = 0.0078" in said
    assert "dagrpo minus grpo: +50.0 (+" in said and "grpo minus start: +50.0 (+" in said
    assert "sft-grpo" not in said
