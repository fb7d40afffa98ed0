"""The study: disjoint questions, statistics that can be computed by hand, cells that are run once, and a tiny run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import anchors
import dagrpo
import rollout
from study import run as study
from study import tables, tasks

NAN = math.nan


@pytest.fixture(scope="module")
def sets():
    return tasks.questions(30, 5, 5)


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def test_no_question_is_in_two_sets_or_was_held_out_of_pretraining(sets):
    assert list(sets) == ["training", "validation", *tasks.BENCHMARKS]
    problems = [row["problem"] for rows in sets.values() for row in rows]
    example = {row["problem"] for name in ("train", "held_out") for row in example_rows(name)}
    assert len(problems) == len(set(problems)) == 11 * 30
    assert {row["problem"] for row in sets["training"]} == example & set(problems)


def example_rows(name: str) -> list[dict]:
    return anchors.read_questions([str(dagrpo.EXAMPLE / f"{name}.jsonl")])


def test_the_answers_are_what_the_problems_say(sets):
    for rows in sets.values():
        for row in rows:
            *quantities, asked = row["problem"].rstrip(".").split(". ")
            values = dict(map(value_of, quantities))
            assert sum(values[name] for name in asked.removeprefix("Find ").split(" + ")) == int(row["answer"])


def value_of(sentence: str) -> tuple[str, int]:
    """`Let x = 7, add 5` -> (x, 12)"""
    first, *operations = sentence.removeprefix("Let ").split(", ")
    name, start = first.split(" = ")
    value = int(start)
    for operation in operations:
        word, number = operation.split(" ")
        value = {"add": value + int(number), "subtract": value - int(number), "times": value * int(number)}[word]
    return name, value


def test_the_model_can_read_every_question_and_has_room_to_answer(sets):
    model, tokenizer = rollout.load(str(dagrpo.EXAMPLE), "cpu")
    for rows in sets.values():
        for row in rows:
            ids = tokenizer(row["problem"])["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) + 1 + study.MAX_NEW_TOKENS <= model.config.max_position_embeddings


def test_the_questions_out_of_distribution_differ_from_training_as_they_are_meant_to(sets):
    training = example_rows("train")
    assert max(map(operations_of, training)) < min(map(operations_of, sets["longer"]))
    assert not set(map(asked_of, training)) & set(map(asked_of, sets["reordered"]))
    two = [row for row in training if row["level"] in (3, 4)]
    assert max(map(largest_result, two)) < min(map(largest_result, sets["larger"]))


def operations_of(row: dict) -> int:
    return len(re.findall("add|subtract|times", row["problem"]))


def asked_of(row: dict) -> str:
    return row["problem"][row["problem"].index("Find") :]


def largest_result(row: dict) -> int:
    """The largest value of a quantity after any of its operations, read from the text."""
    largest = 0
    for sentence in row["problem"].split(". ")[:-1]:
        parts = sentence.split(", ")
        largest = max(largest, *(value_of(", ".join(parts[:n]))[1] for n in range(1, len(parts) + 1)))
    return largest


def test_terse_solutions_are_right_and_take_half_the_steps(sets):
    for own, terse in zip(sets["training"], tasks.with_terse_solutions(sets["training"], 1.0), strict=True):
        assert {**own, "solution": ""} == {**terse, "solution": ""}
        assert anchors.correctness([terse["solution"]], [terse]) == [1.0]
        operations = [len(sentence.split(", ")) - 1 for sentence in own["problem"].split(". ")[:-1]]
        single, taken = sum(operations), sum(map(math.ceil, np.array(operations) / 2))
        sums = len(operations) - 1  # of the quantities
        assert own["solution"].count(" = ") == single + sums
        assert terse["solution"].count(" = ") == taken + sums
        for left, right in re.findall(r"([\d(][\d +*()-]*) = (\d+)\.", terse["solution"]):
            assert eval(left) == int(right)


def test_in_the_mixed_task_half_of_the_solutions_are_terse():
    worked, mixed, terse = (study.questions(study.FULL, task)["training"] for task in ("", "-mixed", "-terse"))
    picked = [own == other for own, other in zip(mixed, terse, strict=True)]
    assert mixed == [b if pick else a for pick, a, b in zip(picked, worked, terse, strict=True)]
    assert 0.45 < sum(picked) / len(picked) < 0.55
    assert worked == tasks.questions(300, 80, 40)["training"]


def test_a_question_can_be_read_back_as_the_problem_that_it_was_made_from(sets):
    for rows in sets.values():
        for row in rows:
            problem = tasks.as_problem(row["problem"])
            assert problem.answer == int(row["answer"])
            if row["problem"].endswith(f"Find {' + '.join(problem.names)}."):  # not reordered
                assert problem.text == row["problem"]


def test_the_seeds_alone_fix_the_questions(sets):
    assert tasks.questions(30, 5, 5) == sets


def test_the_real_study_is_large_enough():
    assert study.FULL.benchmark_each >= 300 and len(study.FULL.seeds) >= tables.ENOUGH_SEEDS
    parts = ("grid_seeds", "settings_seeds", "seeds", "further_seeds")
    seeds = [seed for part in parts for seed in getattr(study.FULL, part)]
    assert len(set(seeds)) == len(seeds)  # no cell is chosen for its own luck, or counted twice
    assert len(study.FULL.further_seeds) >= tables.ENOUGH_SEEDS


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def test_a_spike_is_measured_by_what_came_before_it():
    assert tables.spikes([1.0, 1.0, 1.0, 1.0, 1.0, 11.0, 9.0, 10.5]) == 2  # 11 and 10.5 against a median of 1
    assert tables.spikes([50.0, 1.0, 1.0]) == 0  # nothing to compare the first ones with
    assert tables.spikes([1.0] * 5 + [10.0]) == 0  # exactly ten times is not over ten times


def test_steps_without_an_update_do_not_lower_the_median_norm():
    assert tables.norm_summary([0.0, 2.0, 0.0, 4.0]) == {
        "p50": 3.0,
        "p99": pytest.approx(3.98),
        "max": 4.0,
        "spikes": 0,
    }
    assert math.isnan(tables.norm_summary([0.0])["p99"])


def test_differences_are_paired_by_seed_and_unknown_ones_left_out():
    ours, others = {2: 0.5, 0: 0.7, 1: NAN, 3: 0.9}, {0: 0.4, 1: 0.2, 2: 0.6}
    assert tables.paired_differences(ours, others) == pytest.approx([0.3, -0.1])


def test_an_interval_needs_two_seeds():
    assert tables.mean_and_interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)  # means 0, ½, 1 at ¼, ½, ¼
    assert tables.mean_and_interval(np.array([0.2, 0.2, 0.2])) == pytest.approx((0.2, 0.2, 0.2))
    middle, low, high = tables.mean_and_interval(np.array([0.3]))
    assert middle == 0.3 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, tables.mean_and_interval(np.array([]))))


def cell(variant: str, seed: int, accuracy: float, validation: float, **changes: object) -> dict:
    """A cell with the same sampled accuracy on all benchmarks; greedy is 0.1 more."""
    return {
        "variant": variant, "seed": seed, "learning_rate": 1e-4, "commit": "abc", "data": "d",
        "configuration": {"samples": 8, "sample_temperature": 0.6, "steps": 30},
        "validation": {"steps": [0, 5], "accuracy": [0.1, validation], "right_length": [NAN, 30.0]},
        "gradient_norm": {"p50": 1.0, "p99": 4.0, "max": 5.0, "spikes": 1},
        "curves": {
            name: [0.5, 0.25]
            for name in ("grad_norm", "no_signal", "masked_pairs", "skipped", "entropy", "seconds")
        },
        "sampled_tokens": 1000,
        "benchmarks": {name: {"sampled": accuracy, "greedy": accuracy + 0.1} for name in tasks.BENCHMARKS},
        **changes,
    }  # fmt: skip


def by_seed(variant: str, accuracies: list[float], validation: float) -> dict[int, dict]:
    return {seed: cell(variant, seed, accuracy, validation) for seed, accuracy in enumerate(accuracies)}


@pytest.fixture
def cells():
    return {
        "grpo": by_seed("grpo", [0.4, 0.6], 0.5),
        "dapo": by_seed("dapo", [0.9, 0.9], 0.3),
        "luffy": by_seed("luffy", [0.5, 0.5], 0.8),
        "dagrpo": by_seed("dagrpo", [0.5, 0.8], 0.9),
    }


def test_norm_growth_compares_the_end_of_a_run_with_its_start():
    assert tables.norm_growth([1.0, 3.0, 5.0, 0.0, 8.0], count=2) == 6.5 / 2.0
    assert math.isnan(tables.norm_growth([0.0, 0.0]))


def test_the_best_baseline_is_picked_on_validation_not_on_the_benchmarks(cells):
    assert tables.best_baseline(cells) == "luffy"


def test_the_table_holds_paired_differences_in_points(cells):
    rows = tables.difference_table(cells, "mean of nine", 8).splitlines()
    assert "avg@8 − grpo (95 %)" in rows[0] and "greedy − luffy (95 %)" in rows[0]
    columns = [column.strip() for column in rows[-1].strip("|").split("|")]
    # 0.5 − 0.4 and 0.8 − 0.6 against grpo; 0 and 0.3 against luffy.
    assert columns[:5] == ["dagrpo", "2", "65.0", "+15.0 (+10.0 to +20.0)", "+15.0 (+0.0 to +30.0)"]
    assert columns[5] == "75.0"


def test_each_part_is_what_a_variant_with_it_has_over_one_without_it(cells):
    cells["dagrpo-no-mask"] = by_seed("dagrpo-no-mask", [0.3, 0.7, 0.1], 0.5)
    # 0.5 − 0.3 and 0.8 − 0.7; the third seed has no partner. Greedy is 0.1 more on both sides.
    differences = "+15.0 (+10.0 to +20.0) | +15.0 (+10.0 to +20.0)"
    row = f"| masks | dagrpo − dagrpo-no-mask | 2 | 0.0001 | {differences} |"
    assert row in tables.pair_table(cells, 8).splitlines()
    assert row in tables.markdown(cells)


def test_a_pair_says_where_its_learning_rates_differ(cells):
    for own in cells["dagrpo"].values():
        own["learning_rate"] = 8e-4
    row = "| DaGRPO rather than GRPO | dagrpo − grpo | 2 | 0.0008, 0.0001 |"
    assert row in tables.pair_table(cells, 8)


def test_further_seeds_are_reported_by_themselves_and_together_with_the_first(tmp_path, capsys):
    for variant, accuracies in (("grpo", [0.4, 0.6]), ("sft", [0.5, 0.5]), ("dagrpo", [0.5, 0.8])):
        for seed, accuracy in enumerate(accuracies):  # --quick has seed 0, and 1 as its further seed
            written = json.dumps(cell(variant, seed, accuracy, 0.5))
            (tmp_path / f"{variant}-seed{seed}.json").write_text(written)
    study.main(["report", "--quick", "--folder", str(tmp_path)])
    printed = capsys.readouterr()
    assert "other settings or questions than today's: sft-seed0, sft-seed1, grpo-seed0" in printed.err
    first, further, both = re.split("Only these seeds|All seeds", printed.out)
    pair = "| DaGRPO rather than GRPO | dagrpo − grpo |"
    assert f"{pair} 1 | 0.0001 | +10.0 | +10.0 |" in first and "| grpo | 1 | 0.0001 | 50.0 | 40.0 |" in first
    assert f"{pair} 1 | 0.0001 | +20.0 | +20.0 |" in further
    assert f"{pair} 2 | 0.0001 | +15.0 (+10.0 to +20.0) | +15.0 (+10.0 to +20.0) |" in both


def test_figures_are_of_the_first_seeds_alone(tmp_path, monkeypatch):
    for seed in (0, 1):  # --quick has 1 as its further seed
        (tmp_path / f"{seed}.json").write_text(json.dumps(cell("grpo", seed, 0.5, 0.5)))
    drawn = []
    monkeypatch.setattr(study, "draw", lambda cells, _: drawn.append(cells) or [])
    study.main(["figures", "--quick", "--folder", str(tmp_path)])
    assert {variant: list(own) for variant, own in drawn[0].items()} == {"grpo": [0]}


def test_only_what_is_repeated_has_further_seeds(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "run_cells", lambda cells, workers: asked.extend(cells))
    study.main(["run", "--quick", "--only", "base", "dagrpo", "dapo", "--folder", str(tmp_path)])
    assert [(c["variant"], c["seed"]) for c in asked] == [("base", 0), ("dagrpo", 0), ("dapo", 0), ("dagrpo", 1)]
    asked.clear()
    study.main(["run", "--quick", "--only", "dapo", "--seeds", "0", "1", "--folder", str(tmp_path)])
    assert [c["seed"] for c in asked] == [0, 1]


def test_the_mean_of_nine_weighs_every_benchmark_alike():
    own = cell("grpo", 0, 0.0, 0.5)
    own["benchmarks"]["level-1"]["sampled"] = 0.9
    assert tables.accuracies({0: own}, "mean of nine", "sampled")[0] == pytest.approx(0.1)
    assert tables.accuracies({0: own}, "mean of six", "sampled")[0] == pytest.approx(0.15)
    assert tables.accuracies({0: own}, "mean of three", "sampled")[0] == 0


def test_the_report_says_how_few_seeds_there_are_and_bears_what_is_not_known(cells):
    text = tables.markdown(cells)
    assert "Fewer than 8 seeds: grpo (2), dapo (2), luffy (2), dagrpo (2)" in text
    assert "nan" not in text
    assert "| grpo | 2 | 1.000 | 4.000 | 5.000 | 4.00 (4.00 to 4.00) | 1.00 | 1.00 | 37.5 |" in text


def test_the_figures_bear_a_missing_variant_and_a_length_that_is_not_known(cells, tmp_path):
    pytest.importorskip("matplotlib")
    paths = tables.draw(cells, tmp_path / "figures")
    names = {name + suffix for name in tables.FIGURES for suffix in (".png", ".svg")}
    assert {path.name for path in paths} == names
    assert all(path.stat().st_size > 5_000 for path in paths)
    # No date, no random names; the names of clip paths hash places whose last digits the layout does not fix.
    clip = re.compile(rb"p[0-9a-f]{10}")
    first = [clip.sub(b"", path.read_bytes()) for path in paths]
    assert [clip.sub(b"", path.read_bytes()) for path in tables.draw(cells, tmp_path)] == first


def test_a_task_has_its_own_variants_and_on_the_same_seeds_those_without_solutions(cells):
    cells = {**cells, "sft": cells["grpo"], "sft-terse": {1: cells["dapo"][1]}, "dagrpo-terse": {1: cells["luffy"][1]}}
    assert list(tables.cells_of_task(cells, "")) == ["grpo", "dapo", "luffy", "dagrpo", "sft"]
    assert tables.cells_of_task(cells, "-terse") == {
        "grpo": {1: cells["grpo"][1]}, "dapo": {1: cells["dapo"][1]},
        "sft": cells["sft-terse"], "dagrpo": cells["dagrpo-terse"],
    }  # fmt: skip
    assert tables.cells_of_task({"grpo": cells["grpo"]}, "-terse") == {}


def test_what_learns_from_no_solution_is_in_every_task():
    for variant in study.VARIANTS:
        config = study.configuration(variant, 0, 1e-4, study.FULL, Path())
        own = variant == study.BASE or config.anchors == "none"
        assert own == (variant in tables.WITHOUT_SOLUTIONS), variant


def test_the_table_of_settings_compares_each_with_the_start_seed_by_seed():
    start, other = by_seed("start", [0.1, 0.1], 0.5), by_seed("gamma 1", [0.1, 0.1], 0.7)
    start[1]["validation"]["accuracy"] = [0.1, 0.5, 0.7]
    lines = tables.settings_table({"start": start, "gamma 1": other}).splitlines()
    # At the end 0.5 and 0.7 against 0.7 twice; means of the curves, without step 0: 0.5 and 0.6.
    assert lines[-2].startswith("| start | 2 | 60.0 | – | 55.0 | – | 37.5 | 37.5 | 1 |")
    assert lines[-1].startswith("| gamma 1 | 2 | 70.0 | +10.0 (+0.0 to +20.0) | 70.0 | +15.0 (+10.0 to +20.0) |")


def test_of_equal_learning_rates_the_smaller_is_picked():
    assert study.picked_rate({4e-4: 0.7, 1e-4: 0.7, 2e-4: 0.6}) == 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


def test_a_cell_is_run_again_only_where_configuration_or_data_changed(tmp_path):
    path = tmp_path / "cell.json"
    wanted = study.made_from("dagrpo", 0, 1e-4, study.QUICK, True)
    assert not study.is_finished(path, wanted)
    path.write_text(json.dumps(wanted))
    assert study.is_finished(path, wanted)
    assert not study.is_finished(path, study.made_from("dagrpo", 0, 2e-4, study.QUICK, True))
    assert not study.is_finished(path, study.made_from("dagrpo", 1, 1e-4, study.QUICK, True))
    assert not study.is_finished(path, {**wanted, "data": "others"})


def test_a_flag_that_is_new_leaves_finished_cells_as_they_are_unless_it_is_set(tmp_path):
    path = tmp_path / "cell.json"
    wanted = study.made_from("dagrpo", 0, 1e-4, study.QUICK, True)
    before = {name: value for name, value in wanted["configuration"].items() if name != "kl"}
    path.write_text(json.dumps({**wanted, "configuration": before}))
    assert study.is_finished(path, wanted)
    changed = {**wanted, "configuration": {**wanted["configuration"], "kl": 0.1}}
    assert not study.is_finished(path, changed)


def test_every_variant_and_every_setting_is_a_valid_run():
    for variant in [*study.VARIANTS, *study.SETTINGS]:
        config = study.configuration(variant, 3, 1e-4, study.FULL, Path())
        assert (config.seed, config.learning_rate, config.steps) == (3, 1e-4, study.FULL.steps)
        assert config.method == study.method_of(variant)


WHAT_A_PAIR_CHANGES = {
    "masks": ("scorer", "gradient", "none"),
    "masks where there are no anchors": ("scorer", "gradient", "none"),
    "anchors": ("anchors", "data", "none"),
    "anchors where there are no masks": ("anchors", "data", "none"),
    "its loss norm, in GRPO": ("loss_norm", "constant", "token"),
    "gradients of one norm, in GRPO": ("max_grad_norm", 0.01, 1.0),
    "γ, in LUFFY": ("gamma", 0.03, 0.1),
    "the scorer gradient rather than state": ("scorer", "gradient", "state"),
    "the scorer gradient rather than token": ("scorer", "gradient", "token"),
    "masking pairs rather than tokens": ("rectify", "pair", "token"),
    "the threshold 0.35 rather than 0.2": ("threshold", 0.35, 0.2),
    "the threshold 0.35 rather than 0.45": ("threshold", 0.35, 0.45),
    "the threshold 0.35 rather than auto": ("threshold", 0.35, "auto"),
}
FOLLOWS = {"method", "threshold"}  # from the name, and from another scorer or rectification


def test_a_pair_changes_what_it_names_and_has_it_on_its_left():
    """Swapped, it would report a gain as a loss."""
    for name, pair in tables.PAIRS.items():
        assert set(pair) <= study.VARIANTS.keys()
        left, right = (study.configuration(variant, 0, 1e-4, study.FULL, Path()) for variant in pair)
        changed = {field for field, value in vars(left).items() if vars(right)[field] != value}
        if name in WHAT_A_PAIR_CHANGES:
            field, with_it, without_it = WHAT_A_PAIR_CHANGES[name]
            assert (vars(left)[field], vars(right)[field]) == (with_it, without_it), name
            assert changed - FOLLOWS == {field} - FOLLOWS, name
        elif name == "masks and anchors":
            assert (left.scorer, left.anchors, right.scorer, right.anchors) == ("gradient", "data", "none", "none")
            assert changed - FOLLOWS == {"scorer", "anchors"}
        else:
            assert name.startswith("DaGRPO rather than ") and pair[0] == "dagrpo" != pair[1], name


def test_no_two_settings_are_the_same_and_one_of_them_became_the_default():
    runs = [study.configuration(setting, 0, 1e-4, study.FULL, Path()) for setting in study.SETTINGS]
    assert all(run not in runs[:n] for n, run in enumerate(runs))
    assert study.configuration("dagrpo", 0, 1e-4, study.FULL, Path()) in runs


def test_a_cell_without_shaped_anchors_stays_finished_where_gamma_changes(tmp_path):
    for variant, finished in (("grpo", True), ("sft", True), ("dagrpo-no-anchors", True), ("dagrpo", False)):
        wanted = study.made_from(variant, 0, 1e-4, study.QUICK, True)
        path = tmp_path / f"{variant}.json"
        path.write_text(json.dumps({**wanted, "configuration": {**wanted["configuration"], "gamma": 0.5}}))
        assert study.is_finished(path, wanted) == finished


def test_workers_end_with_the_process_that_started_them():
    """Killed, it cannot end them itself; they would go on beside the next study."""
    program = (
        "import os; from study import run as study; from concurrent.futures import ProcessPoolExecutor;"
        "pool = ProcessPoolExecutor(1, initializer=study.start_worker, initargs=(1,));"
        "print(pool.submit(os.getpid).result(), flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tasks.ROOT, capture_output=True, text=True, timeout=60)
    worker = int(ended.stdout)
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("the worker goes on")


def is_running(process: int) -> bool:
    """Not so for a zombie, which only waits to be forgotten."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_terse_variant_has_a_learning_rate_and_data_of_its_own():
    assert [study.grid_of(name) for name in ("sft-terse", "dagrpo-no-mask")] == ["sft-terse", "dagrpo"]
    names = [f"dagrpo{task}" for task in tables.TASKS]
    made = [study.made_from(name, 0, 1e-4, study.QUICK, True) for name in names]
    assert made[0]["configuration"] == made[1]["configuration"] == made[2]["configuration"]
    assert len({own["data"] for own in made}) == len(tables.TASKS)


def test_a_cell_that_fails_leaves_no_file_and_shows_what_it_printed(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        print("step 1")
        raise ValueError("out of luck")

    monkeypatch.setattr(study, "measure_cell", fail)
    with pytest.raises(RuntimeError, match=r"out of luck.*step 1"):
        study.run_cell("grpo", 0, 1e-4, study.QUICK, tmp_path / "cell.json")
    assert not list(tmp_path.iterdir())


def test_a_cell_is_trained_on_its_task_and_measures_what_was_trained(monkeypatch):
    seen = {}

    def train(config):
        run = Path(config.out)
        run.mkdir()
        seen["training"] = anchors.read_questions(config.data)
        record = {name: 0.5 for name in ("grad_norm", "no_signal", "masked_pairs", "anchored", "entropy", "reward")}
        record |= {"length/mean": 9.0, "trained_sequences": 0.75, "sampled_tokens": 40}
        record |= {"seconds/rollout": 2.0, "seconds/train": 1.0}
        lines = [{"memory_estimate_gb": {}}, {"step": 1, **record}, {"step": 2, **record}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = [{"texts": ["one two", "a right one", "wrong"], "rewards": [1.0, 1.0, 0.0]}]
        (run / "evaluations.jsonl").write_text(json.dumps({"step": 0, "accuracy": 0.1, "length": 5.0, "rows": rows}))

    def measure(path, names, folder, k, seed, temperature=study.TEMPERATURE):
        assert Path(path) == folder / "run" / "model" and names == tasks.BENCHMARKS
        return {"levels": {name: {"accuracy": temperature / k, "length": float(k)} for name in names}}

    monkeypatch.setattr(dagrpo, "train", train)
    monkeypatch.setattr(study, "measure", measure)
    monkeypatch.setattr(rollout, "load", lambda path, _: (None, lambda text, **_: {"input_ids": text.split()}))
    own = study.measure_cell("sft-terse", 0, 1e-4, study.QUICK, True)
    assert [row["solution"] for row in seen["training"]] == [
        row["solution"] for row in study.questions(study.QUICK, "-terse")["training"]
    ]
    assert own["benchmarks"]["larger"] == {"sampled": 0.3, "greedy": 0.0, "length": 2.0}  # 0.6 of 2 answers; 0 of 1
    assert own["validation"] == {"steps": [0], "accuracy": [0.1], "length": [5.0], "right_length": [2.5]}
    assert own["curves"]["skipped"] == [0.25, 0.25] and own["curves"]["seconds"] == [3.0, 3.0]
    assert own["sampled_tokens"] == 80


def test_the_study_does_not_start_without_picked_learning_rates(tmp_path):
    with pytest.raises(SystemExit, match=r"run study\.run grid first"):
        study.main(["run", "--only", "grpo", "--folder", str(tmp_path)])


def write_grid(folder: Path, variant: str, accuracies: tuple[float, float]) -> Path:
    """The two cells of a tiny grid; returns the path of the second."""
    for rate, accuracy in zip(study.QUICK.learning_rates, accuracies, strict=True):
        path = study.grid_path(folder, variant, rate, 100)
        path.parent.mkdir(exist_ok=True)
        made = study.made_from(variant, 100, rate, study.QUICK, False)
        path.write_text(json.dumps({**made, "validation": {"accuracy": [0.9, accuracy]}}))
    return path


def test_settings_are_compared_at_the_rate_of_what_they_start_from(tmp_path, monkeypatch):
    """The default may have become another since, with another rate; a grid without --only searches both."""
    write_grid(tmp_path, "start", (0.6, 0.5))
    write_grid(tmp_path, "dagrpo", (0.5, 0.6))
    asked = []

    def no_run(cells, workers):
        asked.extend((cell["variant"], cell["rate"]) for cell in cells)
        raise InterruptedError

    monkeypatch.setattr(study, "run_cells", no_run)
    for command in (["settings", "--only", "gamma 1.0"], ["grid"]):
        with pytest.raises(InterruptedError):
            study.main([*command, "--quick", "--folder", str(tmp_path)])
    assert asked[0] == ("gamma 1.0", 1e-4)
    assert {("start", 1e-4), ("start", 2e-4), ("dagrpo", 1e-4)} <= set(asked[1:])
    assert study.grid_of("gamma 1.0") == "start"


def test_a_variant_is_run_at_the_rate_that_was_picked_for_its_method(tmp_path, monkeypatch):
    write_grid(tmp_path, "grpo", (0.6, 0.5))
    write_grid(tmp_path, "dagrpo", (0.5, 0.6))
    asked = {}
    monkeypatch.setattr(study, "run_cells", lambda cells, _: asked.update({c["variant"]: c["rate"] for c in cells}))
    only = ["base", "grpo", "grpo-equal-norms", "dagrpo", "dagrpo-no-mask"]
    study.main(["run", "--quick", "--only", *only, "--seeds", "0", "--folder", str(tmp_path)])
    assert [asked[variant] for variant in only] == [0.0, 1e-4, 1e-4, 2e-4, 2e-4]


def test_a_seed_that_settings_were_picked_with_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="--seeds 100"):
        study.main(["run", "--quick", "--only", "base", "--seeds", "0", "100", "--folder", str(tmp_path)])


def test_a_rate_counts_only_with_all_seeds_of_the_grid(tmp_path):
    path = write_grid(tmp_path, "grpo", (0.6, 0.5))
    assert study.grid_accuracies("grpo", study.QUICK, tmp_path) == {1e-4: 0.6, 2e-4: 0.5}
    assert study.learning_rates(study.QUICK, tmp_path, ["grpo"]) == {"grpo": 1e-4}
    path.unlink()
    assert study.grid_accuracies("grpo", study.QUICK, tmp_path) == {1e-4: 0.6}


def test_each_task_has_questions_of_its_own(tmp_path):
    for variant, data in (("grpo", "a"), ("sft", "a"), ("sft-terse", "b"), ("sft-mixed", "c")):
        (tmp_path / f"{variant}.json").write_text(json.dumps(cell(variant, 0, 0.5, 0.5, data=data)))
    assert list(study.load_cells(tmp_path)) == ["sft", "grpo", "sft-mixed", "sft-terse"]


def test_cells_of_different_questions_are_not_compared(tmp_path):
    for seed, data in enumerate("ab"):
        (tmp_path / f"{seed}.json").write_text(json.dumps(cell("grpo", seed, 0.5, 0.5, data=data)))
    with pytest.raises(SystemExit, match="different questions"):
        study.load_cells(tmp_path)


def test_a_tiny_study_runs_once_and_is_reported(tmp_path, capsys):
    command = ["run", "--quick", "--only", "base", "grpo", "dagrpo", "--workers", "1", "--folder", str(tmp_path)]
    command += ["--seeds", "0"]
    study.main(command)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(written) == {"base-seed0.json", "grpo-seed0.json", "dagrpo-seed0.json"}
    study.main(command)
    assert "3 of 3 cells are finished" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written

    result = json.loads((tmp_path / "dagrpo-seed0.json").read_text())
    assert result["validation"]["steps"] == [0, 1, 2]
    assert len(result["curves"]["grad_norm"]) == 2 and result["sampled_tokens"] > 0
    assert set(result["benchmarks"]) == set(tasks.BENCHMARKS)
    assert (tmp_path / "dagrpo-seed0.json").stat().st_size < 10_000  # no answers in it

    study.main(["report", "--folder", str(tmp_path)])
    assert "| dagrpo | 1 |" in capsys.readouterr().out
    study.main(["report", "--quick", "--folder", str(tmp_path)])
    assert "other settings" not in capsys.readouterr().err


def test_tiny_settings_are_compared_on_the_validation_set_alone(tmp_path, capsys):
    study.main(["settings", "--quick", "--only", "start", "gamma 1.0", "--workers", "1", "--folder", str(tmp_path)])
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "settings").iterdir()}
    assert set(written) == {"start-seed102.json", "gamma-1.0-seed102.json"}
    assert all(cell["benchmarks"] == {} and len(cell["validation"]["accuracy"]) == 3 for cell in written.values())
    assert written["gamma-1.0-seed102.json"]["configuration"]["gamma"] == 1.0
    printed = capsys.readouterr().out
    assert "| start | 1 |" in printed and "| gamma 1.0 | 1 |" in printed
