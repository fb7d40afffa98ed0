"""The comparison on a language model: the commands that it types, where it takes up, and its tables."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from made_up_problems import sets

from harness import checkpoint
from harness.config import configure, parse
from harness.evaluation import options_of
from study import words
from study.tasks import read_lines, write_sets
from study.word_questions import HELD_OUT, WHOLE
from study.words import RATE, TINY, tables


def line(variant: str, seed: int, right: list[int], **changes: object) -> dict:
    """A kept training in which every held-out set has the same right completions, of 4."""
    is_start = variant == "start"
    return {
        "variant": variant, "seed": seed, "learning_rate": 0.0 if is_start else 1e-5, "samples": 4,
        "validation": [] if is_start else [[20, 0.25], [40, 0.5]], "right": dict.fromkeys(HELD_OUT, right),
        "no_answer": dict.fromkeys(HELD_OUT, 0.25), "training_seconds": 1_800.0, "peak_memory_gb": 5.5,
        "curves": {"displaced": [None, 0.25, 0.0], "displaced_left": [None, None, None], "entropy": [1.0, 0.5, 0.0]},
        **changes,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """The commands that `run` types. What they would write is written: logs, a checkpoint, a result."""
    commands: list[list[str]] = []

    def command(*given_words: object) -> None:
        program, *given = map(str, given_words)
        commands.append([program, *given])
        if program == "-m":
            given = given[2:]  # without the module and the change
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
    monkeypatch.setattr(words, "commit", functools.cache(lambda: "abc"))
    write_sets(tmp_path / "source", sets())
    words.main(["questions", "--tiny", "--source", str(tmp_path / "source"), "--folder", str(tmp_path)])
    cells = tmp_path / "w.jsonl"

    def typed(
        *variants: str,
        stop: str = "",
        rates: tuple[float, ...] = (RATE,),
        flags: tuple[str, ...] = (),
        model: str = "m.gguf",
    ) -> list[list[str]]:
        commands.clear()
        stops[:] = [stop]
        arguments = ["run", "--model", model, "--tiny", "--folder", str(tmp_path), "--cells", str(cells)]
        words.main(
            [*arguments, "--seeds", "500", "--learning-rates", *map(str, rates), *flags, "--variants", *variants]
        )
        return list(commands)

    return typed


def flags_of(command: list[str]) -> dict:
    return parse(command[1:])


def test_the_start_is_measured_and_not_trained(typed, tmp_path):
    measuring, whole = typed("start")
    assert measuring[0] == whole[0] == "evaluate.py" and measuring[measuring.index("--model") + 1] == "m.gguf"
    (kept,) = read_lines(tmp_path / "w.jsonl")
    assert (
        kept["right"]["svamp"] == [1] * 4 == kept["whole"]["gsm8k_test"]
        and kept["steps"] == 0
        and kept["training_seconds"] == 0
    )


def test_what_is_finished_is_not_done_again(typed):
    assert len(typed("grpo")) == 3 and typed("grpo") == []


def test_other_questions_sizes_or_models_are_another_training(typed, tmp_path, monkeypatch):
    typed("start")
    with pytest.raises(SystemExit, match="are of another model, other questions or another size: give another --fold"):
        typed("start", model="other.gguf")  # its runs would go on with those of the first

    def begin_anew() -> None:
        for file in (*tmp_path.glob("start*.json"), tmp_path / "made-from.json"):
            file.unlink()

    assert typed("start") == []
    begin_anew()
    assert len(typed("start", model="other.gguf")) == 2
    begin_anew()
    training = tmp_path / "questions" / "training.jsonl"
    training.write_text("".join(training.read_text().splitlines(keepends=True)[1:]))
    assert len(typed("start")) == 2
    kept = read_lines(tmp_path / "w.jsonl")
    assert [line["model"] for line in kept] == ["m.gguf", "other.gguf", "m.gguf"]
    assert kept[0]["size"] == asdict(TINY) and kept[0]["questions"] == kept[1]["questions"] != kept[2]["questions"]
    assert words.newest(tmp_path / "w.jsonl") == kept[2:], "the report has the last one"
    drawn: list[list[dict]] = []
    monkeypatch.setattr(words, "draw_figures", lambda lines, *_: drawn.append(lines) or [])
    words.main(["figure", "--cells", str(tmp_path / "w.jsonl")])
    assert drawn == [kept[2:]], "and the figure too"


def test_a_tiny_study_has_its_own_files(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(words, "questions", lambda options, size: asked.append((options.folder, options.cells, size)))
    words.main(["questions", "--tiny"])
    words.main(["questions"])
    words.main(["questions", "--tiny", "--folder", str(tmp_path)])
    assert asked == [
        (words.TINY_FOLDER, words.TINY_FOLDER / "words.jsonl", TINY),
        (words.FOLDER, words.FILE, words.FULL),
        (tmp_path, words.TINY_FOLDER / "words.jsonl", TINY),
    ]


def test_the_commit_is_that_of_the_code_when_the_training_began(typed, tmp_path, monkeypatch):
    commits = iter(["before", "after"])

    @functools.cache
    def commit() -> str:
        return next(commits)

    monkeypatch.setattr(words, "commit", commit)
    typed("start", "grpo")
    assert [line["commit"] for line in read_lines(tmp_path / "w.jsonl")] == ["before", "after"]


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(typed, tmp_path):
    with pytest.raises(SystemExit, match="stopped"):
        typed("dagrpo", stop="dagrpo-1e-05-500")
    resumed, measuring, _ = typed("dagrpo")
    assert resumed == ["dagrpo.py", "--resume", str(tmp_path / "dagrpo-1e-05-500")] and measuring[0] == "evaluate.py"


def test_the_sets_as_they_are_can_be_left_out(typed, tmp_path):
    (measuring,) = typed("start", flags=("--held-out-only",))
    assert [Path(file).stem for file in options_of(measuring[1 : measuring.index("--out")]).data] == list(HELD_OUT)
    (kept,) = read_lines(tmp_path / "w.jsonl")
    assert "whole" not in kept and kept["right"]["svamp"] == [1] * 4


def test_the_placebo_is_dagrpo_but_for_the_pairs_that_it_masks(typed, tmp_path):
    (dagrpo, *_), (chance, measuring, _) = typed("dagrpo"), typed("dagrpo-chance")
    assert chance[:3] == ["-m", "study.arms", "chance"] and measuring[0] == "evaluate.py"
    others = {name: value for name, value in parse(chance[3:]).items() if name != "out"}
    assert others == {name: value for name, value in flags_of(dagrpo).items() if name != "out"}
    with pytest.raises(SystemExit, match="stopped"):
        typed("dagrpo-chance", stop="dagrpo-chance-3e-05-500", rates=(3e-5,))
    resumed, *_ = typed("dagrpo-chance", rates=(3e-5,))
    assert resumed == ["-m", "study.arms", "chance", "--resume", str(tmp_path / "dagrpo-chance-3e-05-500")]


def test_a_training_that_has_ended_is_only_measured(typed, tmp_path):
    typed("grpo")
    lines = (tmp_path / "w.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "w.jsonl").write_text("".join(lines[:-1]))  # as if it had been stopped in the evaluation
    for result in tmp_path.glob("grpo-1e-05-500*.json"):
        result.unlink()
    measuring, whole = typed("grpo")
    assert measuring[0] == whole[0] == "evaluate.py"


def test_fine_tuning_and_grpo_share_the_steps(typed, tmp_path):
    first, second, measuring, _ = typed("sft-grpo")
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
    training, *_ = typed("grpo")
    assert "--resume" not in training and flags_of(training)["out"] == str(tmp_path / "grpo-1e-05-500")
    assert not (tmp_path / "grpo-1e-05-500" / "config.json").exists(), "dagrpo.py would refuse a folder with a run"


def test_training_and_evaluation_show_the_same_examples_and_have_one_limit(typed):
    training, measuring, whole = typed("dagrpo")
    flags, options = flags_of(training), options_of(measuring[1 : measuring.index("--out")])
    assert flags["examples"] == options.examples == str(words.EXAMPLES)
    assert flags["max_new_tokens"] == options.max_new_tokens == TINY.max_new_tokens and options.samples == TINY.samples
    assert [Path(file).stem for file in options.data] == list(HELD_OUT)
    of_whole = options_of(whole[1 : whole.index("--out")])
    assert of_whole.examples == options.examples and of_whole.prompt_file == options.prompt_file == str(words.PROMPT)
    assert [Path(file).stem for file in of_whole.data] == [f"whole-{name}" for name in WHOLE]
    assert of_whole.max_new_tokens == TINY.whole_tokens > TINY.max_new_tokens and of_whole.samples == TINY.samples


def test_methods_differ_by_nothing_else(typed):
    (grpo, *_), (dagrpo, *_), (bare, *_), (sft, *_) = map(typed, ("grpo", "dagrpo", "dagrpo-no-mask", "sft"))
    base = flags_of(dagrpo)

    def changes(command: list[str]) -> dict:
        return {name: value for name, value in flags_of(command).items() if base.get(name) != value and name != "out"}

    assert base["learning_rate"] == RATE and changes(grpo) == {"method": "grpo"}
    assert changes(bare) == {"rectify": "none"} and changes(sft) == {"method": "sft", "group_size": 1}


def test_each_part_of_a_training_warms_up_in_the_same_share_of_its_steps(typed):
    first, second, *_ = typed("sft-grpo")
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


def test_a_source_without_the_sets_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"--source .*there is no .*/mawps\.jsonl"):
        words.main(["questions", "--source", str(tmp_path), "--folder", str(tmp_path / "out")])


def test_every_set_that_is_trained_on_or_measured_is_written(typed, tmp_path):
    counts = {file.stem: len(read_lines(file)) for file in (tmp_path / "questions").glob("*.jsonl")}
    assert counts.pop("training") == 2 * (24 - 2 * TINY.held_out - TINY.validation)  # and as many sums
    assert counts.pop("validation") == TINY.validation
    assert counts == {name: 4 for name in (*HELD_OUT, *(f"whole-{name}" for name in WHOLE))}


def test_no_question_of_a_whole_set_is_trained_or_validated_on(typed, tmp_path):
    written = {file.stem: read_lines(file) for file in (tmp_path / "questions").glob("*.jsonl")}
    problems = {name: {question["problem"] for question in own} for name, own in written.items()}
    whole = set().union(*(problems[f"whole-{name}"] for name in WHOLE))
    assert len(whole) == 16 and not whole & (problems["training"] | problems["validation"])


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def test_the_table_has_the_mean_of_the_seeds_and_differences_by_question():
    lines = [line("start", 500, [0, 0]), line("grpo", 500, [4, 0]), line("grpo", 501, [2, 2])]
    said = tables([*lines, line("dagrpo", 500, [4, 4]), line("dagrpo", 501, [4, 4])])
    on_the_way, row = (each for each in said.splitlines() if each.startswith("| grpo"))
    assert on_the_way == "| grpo | 1e-05 | 2 | 25.0, 50.0 | 50.0 | 12.5 | – | – | 0.50 |"
    # Of each of 6 questions GRPO has 3/4 or 1/4 right, the mean of its seeds: 1/2 on average, and DaGRPO all.
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:7] == ["grpo", "1e-05", "2", "50.0", "50.0", "50.0", "50.0"] and cells[8:] == [
        "30",
        "5.5",
        "50.0, 50.0",
    ]
    assert cells[7].startswith("+50.0 (+") and "| +100.0 (+100.0 to +100.0) | 30 | 5.5 | 100.0, 100.0 |" in said
    assert said.count("dagrpo minus") == 1 and "dagrpo minus grpo: +50.0 (+" in said
    assert said.endswith("; by seed +50.0, +50.0: +50.0 (+50.0 to +50.0)"), "of each, with the same questions"


def test_what_the_seeds_say_apart_is_told_where_there_are_several():
    lines = [line("grpo", 500, [4, 0]), line("dagrpo", 500, [4, 4]), line("dagrpo", 501, [0, 0])]
    assert tables([*lines, line("grpo", 501, [2, 2])]).endswith("; by seed +50.0, -50.0: +0.0 (-635.3 to +635.3)")
    assert "; by seed" not in tables(lines), "GRPO has one"


def test_a_seed_that_only_one_of_two_variants_has_is_in_no_difference():
    lines = [line("grpo", 500, [4, 0]), line("dagrpo", 500, [4, 4]), line("dagrpo", 502, [0, 0])]
    assert "dagrpo minus grpo: +50.0 (+" in tables(lines) and "| dagrpo | 1e-05 | 2 | " in tables(lines)
    assert "dagrpo minus" not in tables(lines[::2])


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


def test_sets_as_they_are_have_a_table_of_the_trainings_that_were_measured_on_them():
    whole = {name: [4, 0] for name in WHOLE} | {"gsm8k_test": [0, 0]}
    none_right = {name: [0, 0] for name in WHOLE}
    lines = [line("start", 500, [0, 0], whole=none_right), line("grpo", 500, [4, 4])]
    said = tables([*lines, line("grpo", 501, [0, 0], whole=whole), line("sft", 500, [4, 4])])
    _, table = said.rsplit("\n\n", 1)
    head, _, start, grpo = table.splitlines()
    assert head.startswith(
        "| variant, whole sets | rate | seeds | mawps | asdiv | svamp | gsm8k_test | mean | minus start"
    )
    assert grpo.startswith("| grpo | 1e-05 | 1 | 50.0 | 50.0 | 50.0 | 0.0 | 37.5 | +37.5 (")
    assert start.startswith("| start | 0 | 1 | 0.0")
    assert "whole sets" not in tables(lines[1:]), "where nothing was"
