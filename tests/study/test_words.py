"""The comparison on a language model: its questions, the commands that it types, where it takes up, and its tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import verify
from harness import checkpoint
from harness.config import configure, parse
from harness.evaluation import options_of
from study import words
from study.tasks import read_lines
from study.words import HELD_OUT, RATE, TINY, are_siblings, draw, shingles, solution_of, tables

SUMS = [
    {"problem": f"What is {n} + 2?", "answer": str(n + 2), "solution": f"{n} + 2 = \\boxed{{{n + 2}}}"}
    for n in range(9)
]


def problems(word: str, count: int) -> list[dict]:
    """Questions with two numbers to be added, which share no run of four words with another."""
    return [
        {"problem": f"{word} a{x} 3 {word} b{x} c{x} {n + 4} d{x}", "answer": str(n + 7), "solution": None}
        for n, x in enumerate("klmnopqrstuv"[:count])
    ]


def sets(**changes: list[dict]) -> dict[str, list[dict]]:
    return {**{name: problems(name, 12) for name in HELD_OUT}, **changes}


def line(variant: str, seed: int, right: list[int], **changes: object) -> dict:
    """A kept training in which every held-out set has the same right completions, of 4."""
    is_start = variant == "start"
    return {
        "variant": variant, "seed": seed, "learning_rate": 0.0 if is_start else 1e-5, "samples": 4,
        "validation": [] if is_start else [[20, 0.25], [40, 0.5]], "right": dict.fromkeys(HELD_OUT, right),
        "no_answer": dict.fromkeys(HELD_OUT, 0.25), "training_seconds": 1_800.0,
        "curves": {"displaced": [None, 0.25, 0.0], "displaced_left": [None, None, None], "entropy": [1.0, 0.5, 0.0]},
        **changes,
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


@pytest.mark.parametrize(
    ("problem", "answer", "solution"),
    [
        ("Tom has 7 pears and buys 5.", "12", r"7 + 5 = \boxed{12}"),
        ("Seven pears, and twelve plums: how many more plums?", "5.0", r"12 - 7 = \boxed{5}"),
        ("Of 12 pears Tom eats 7. One is left on the table?", "5", r"12 - 7 = \boxed{5}"),  # `one` is no number
        ("$20 and $3.00 together", "23", r"20 + 3 = \boxed{23}"),
        ("Of 1,200 pears Tom eats 7", "1193", None),  # too large
        ("4 pears, 4 plums, how many more plums?", "0", r"4 - 4 = \boxed{0}"),
        ("2 rows of 9 pears", "18", None),  # neither sum nor difference
        ("7 pears and 5 plums and 3 nuts", "12", None),  # a third number
        ("7 pears", "7", None),
        ("Tom has 2.5 pears and buys 5.", "7.5", None),
        ("Who has more, with 7 pears and 5?", "Tom", None),
        ("Billy ate seventy-four pears of 8", "4", None),  # 8 - 4, but for the seventy
        ("What is the greatest divisor of 10 and 15?", "5", None),  # 15 - 10, by chance
    ],
)
def test_a_solution_is_the_one_sum_or_difference_of_two_small_numbers_that_is_the_answer(problem, answer, solution):
    assert solution_of({"problem": problem, "answer": answer}) == solution


def test_no_held_out_question_has_a_sibling_in_training():
    found = sets()
    for question in list(found["svamp"]):  # a copy with another end in what is trained on
        found["mawps"].append({**question, "problem": question["problem"] + " more"})
    drawn = draw(found, SUMS, TINY)
    training = drawn["training"] + drawn["validation"]
    held_out = [shingles(question["problem"]) for name in HELD_OUT for question in drawn[name]]
    assert [len(drawn[name]) for name in HELD_OUT] == [4] * 3 and len(drawn["validation"]) == 4
    assert not any(are_siblings(shingles(question["problem"]), own) for question in training for own in held_out)
    kept = [question["problem"] for question in training if question["problem"].endswith(" more")]
    assert kept, "those whose sibling is not held out stay"


def test_nothing_of_svamp_is_trained_on():
    drawn = draw(sets(), SUMS, TINY)
    problems = [question["problem"] for question in drawn["training"] + drawn["validation"]]
    assert not [problem for problem in problems if problem.startswith("svamp")]
    assert all(any(problem.startswith(name) for problem in problems) for name in ("mawps", "asdiv", "What is"))


def test_as_many_sums_as_word_problems_are_trained_on_as_far_as_there_are():
    def counts(sums: list[dict]) -> tuple[int, int]:
        training = draw(sets(), sums, TINY)["training"]
        bare = sum(question["problem"].startswith("What is") for question in training)
        return bare, len(training) - bare

    assert counts(SUMS * 10) == (12, 12) and counts(SUMS) == (9, 12)  # 2 sets of 12, less 4 each and 4 of validation


def test_a_question_that_stands_in_two_sets_is_there_once():
    drawn = draw(sets(asdiv=problems("mawps", 12) + problems("asdiv", 6)), SUMS, TINY)
    every = [question["problem"] for name in (*HELD_OUT, "training", "validation") for question in drawn[name]]
    assert len(every) == len(set(every))


def test_every_question_has_a_solution_that_the_verifier_takes_for_right():
    for questions in draw(sets(), SUMS, TINY).values():
        assert questions
        solutions, answers = [[question[name] for question in questions] for name in ("solution", "answer")]
        assert verify.grade(solutions, answers) == [True] * len(questions)


def test_the_same_questions_are_drawn_again():
    assert draw(sets(), SUMS, TINY) == draw(sets(), SUMS, TINY)


def test_a_source_without_the_sets_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"--source .*there is no .*/mawps\.jsonl"):
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
        if flags.get("method") != "sft":
            step |= {"displaced": 0.25, "reward": 0.5}
        steps = [{"memory_estimate_gb": 1}, *[{"step": n + 1, **step} for n in range(ended)]]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps))
        (folder / "evaluations.jsonl").write_text(json.dumps({"step": 0, "accuracy": 0.125}) + "\n")
        if ended == 2 and folder.name in stops:
            raise SystemExit("stopped")

    stops: list[str] = []
    monkeypatch.setattr(words, "command", command)
    monkeypatch.setattr(words, "commit", lambda: "abc")
    drawn = draw(sets(), SUMS, TINY)
    words.write_sets(tmp_path / "questions", drawn)

    cells = tmp_path / "w.jsonl"

    def typed(*variants: str, stop: str = "", rates: tuple[float, ...] = (RATE,)) -> list[list[str]]:
        commands.clear()
        stops[:] = [stop]
        arguments = ["run", "--model", "m.gguf", "--tiny", "--folder", str(tmp_path), "--cells", str(cells)]
        words.main([*arguments, "--seeds", "500", "--learning-rates", *map(str, rates), "--variants", *variants])
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
        typed("dagrpo", stop="dagrpo-1e-05-500")
    resumed, measuring = typed("dagrpo")
    assert resumed == ["dagrpo.py", "--resume", str(tmp_path / "dagrpo-1e-05-500")] and measuring[0] == "evaluate.py"


def test_a_training_that_has_ended_is_only_measured(typed, tmp_path):
    typed("grpo")
    lines = (tmp_path / "w.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "w.jsonl").write_text("".join(lines[:-1]))  # as if it had been stopped in the evaluation
    (tmp_path / "grpo-1e-05-500.json").unlink()
    (measuring,) = typed("grpo")
    assert measuring[0] == "evaluate.py"


def test_fine_tuning_and_grpo_share_the_steps(typed, tmp_path):
    first, second, measuring = typed("sft-grpo")
    assert flags_of(first)["method"] == "sft" and flags_of(second)["method"] == "grpo"
    assert flags_of(first)["steps"] + flags_of(second)["steps"] == TINY.steps == 3
    assert flags_of(second)["model"] == str(tmp_path / "sft-grpo-1e-05-500-first" / "model")
    assert measuring[measuring.index("--model") + 1] == str(tmp_path / "sft-grpo-1e-05-500" / "model")
    assert flags_of(first)["seed"] != flags_of(second)["seed"], "the questions would come in the same order"
    (kept,) = read_lines(tmp_path / "w.jsonl")
    assert kept["steps"] == 3 and kept["training_seconds"] == 90
    assert kept["curves"]["displaced"] == [None, 0.25, 0.25] and kept["curves"]["reward"] == [None, 0.5, 0.5]


def test_a_training_that_ended_before_its_first_checkpoint_begins_anew(typed, tmp_path):
    (tmp_path / "grpo-1e-05-500").mkdir()
    (tmp_path / "grpo-1e-05-500" / "config.json").write_text("{}")
    training, _ = typed("grpo")
    assert "--resume" not in training and flags_of(training)["out"] == str(tmp_path / "grpo-1e-05-500")
    assert not (tmp_path / "grpo-1e-05-500" / "config.json").exists(), "dagrpo.py would refuse a folder with a run"


def test_training_and_evaluation_show_the_same_examples_and_have_one_limit(typed):
    training, measuring = typed("dagrpo")
    flags, options = flags_of(training), options_of(measuring[1 : measuring.index("--out")])
    assert flags["examples"] == options.examples == str(words.EXAMPLES)
    assert flags["max_new_tokens"] == options.max_new_tokens == TINY.max_new_tokens and options.samples == TINY.samples
    assert [Path(file).stem for file in options.data] == list(HELD_OUT)


def test_methods_differ_by_nothing_else(typed):
    (grpo, _), (dagrpo, _), (bare, _), (sft, _) = map(typed, ("grpo", "dagrpo", "dagrpo-no-mask", "sft"))
    base = flags_of(dagrpo)

    def changes(command: list[str]) -> dict:
        return {name: value for name, value in flags_of(command).items() if base.get(name) != value and name != "out"}

    assert base["learning_rate"] == RATE and changes(grpo) == {"method": "grpo"}
    assert changes(bare) == {"rectify": "none"} and changes(sft) == {"method": "sft", "group_size": 1}


def test_each_part_of_a_training_warms_up_in_the_same_share_of_its_steps(typed):
    first, second, _ = typed("sft-grpo")
    assert [flags_of(each)["warmup"] for each in (first, second)] == [1, 1]
    of_sixty = words.flags_of("sft", argparse.Namespace(folder=Path("f")), words.FULL, 1e-5, 60)
    assert parse(list(map(str, of_sixty)))["warmup"] == 10


def test_other_learning_rates_are_other_trainings_and_the_start_is_measured_once(typed, tmp_path):
    commands = typed("start", "sft-grpo", rates=(1e-5, 3e-5))
    rates = [flags_of(each)["learning_rate"] for each in commands if each[0] == "dagrpo.py"]
    assert rates == [1e-5, 1e-5, 3e-5, 3e-5], "both parts of a training have one"
    kept = [(line["variant"], line["learning_rate"]) for line in read_lines(tmp_path / "w.jsonl")]
    assert kept == [("start", 0.0), ("sft-grpo", 1e-5), ("sft-grpo", 3e-5)]
    assert typed("start", "sft-grpo", rates=(3e-5,)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def test_the_table_has_the_mean_of_the_seeds_and_differences_by_question():
    lines = [line("start", 500, [0, 0]), line("grpo", 500, [4, 0]), line("grpo", 501, [2, 2])]
    said = tables([*lines, line("dagrpo", 500, [4, 4]), line("dagrpo", 501, [4, 4])])
    on_the_way, row = (each for each in said.splitlines() if each.startswith("| grpo"))
    assert on_the_way == "| grpo | 1e-05 | 2 | 25.0, 50.0 | 12.5 | – | – | 0.50 |"
    # Of each of 6 questions GRPO has 3/4 or 1/4 right, the mean of its seeds: 1/2 on average, and DaGRPO all.
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:7] == ["grpo", "1e-05", "2", "50.0", "50.0", "50.0", "50.0"] and cells[8] == "30"
    assert cells[7].startswith("+50.0 (+") and "| +100.0 (+100.0 to +100.0) | 30 |" in said
    assert said.count("dagrpo minus") == 1 and "dagrpo minus grpo: +50.0 (+" in said


def test_each_variant_is_shown_at_the_rate_that_ends_best_on_the_validation_set():
    """Over its seeds; of equal rates at the lower one."""
    lines = [
        line("grpo", seed, [1, 1], learning_rate=rate, validation=[[20, 0.75], [40, end]])
        for seed, rate, end in [(500, 1e-5, 0.5), (501, 1e-5, 0.5), (500, 3e-5, 0.625), (501, 3e-5, 0.25)]
    ]
    lines += [line("sft", 500, [1, 1], learning_rate=rate, validation=[[20, 0.5]]) for rate in (3e-5, 1e-5)]
    picked = words.at_picked_rates([line("start", 500, [0, 0]), *lines])
    assert [(each["variant"], each["seed"], each["learning_rate"]) for each in picked] == [
        ("start", 500, 0.0), ("grpo", 500, 1e-5), ("grpo", 501, 1e-5), ("sft", 500, 1e-5),
    ]  # fmt: skip
