"""Benchmarks by name: rows as their authors publish them, files, and what is said of a name that is none."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
import types

import pytest
from conftest import write_questions

import evaluate
import questions
from harness import benchmarks
from harness.benchmarks import BENCHMARKS, Source, named_benchmarks, read_benchmark
from harness.command import ConfigError
from harness.evaluation import options_of, samples_of
from questions import DataError

# A row of each Hub set, in its fields, with made-up questions.
MATHARENA = {"problem_idx": 1, "problem": "1+1?", "answer": 2, "problem_type": ["Algebra", "Geometry"]}
ROWS = {
    "aime24": {"id": 60, "problem": "1+1?", "solution": "It is 2.", "answer": "2", "url": "u", "year": "2024"},
    "aime25": MATHARENA,
    "aime26": {"problem_idx": 1, "problem": "1+1?", "answer": 2},
    "amc": {"id": 0, "problem": "1+1?", "answer": 2.0, "url": "u"},
    "amc23": {"id": 0, "question": "1+1?", "answer": "2", "url": "u"},
    "math500": {"problem": "1+1?", "solution": "s", "answer": "2", "subject": "Algebra", "level": 2,
                "unique_id": "t/1"},
    "minerva": {"question": "1+1?", "answer": "2"},
    "olympiadbench": {"id": 1606, "question": "1+1?", "solution": ["s"], "final_answer": ["$2$"],
                      "subfield": "Algebra"},
    "arc_c": {"id": "M_1", "question": "1+1?", "choices": {"text": ["1", "2"], "label": ["1", "2"]}, "answerKey": "2"},
    "mmlu_pro": {"question_id": 70, "question": "1+1?", "options": ["1", "2"], "answer": "B", "answer_index": 1,
                 "cot_content": "", "category": "math", "src": "s"},
    "gsm8k": {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
    "svamp": {"ID": "chal-1", "Body": "There is one.", "Question": "1+1?", "Answer": "2.0", "Type": "Addition"},
    "asdiv": {"body": "There is one.", "question": "1+1?", "solution_type": "Addition", "answer": "2 (apples)"},
    "hmmt_feb25": MATHARENA,
    "hmmt_nov25": MATHARENA,
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets`: each set has the row of ROWS in the configuration and split that the table names."""
    sets = {
        BENCHMARKS[name].hub.partition(":")[0]: (BENCHMARKS[name].hub.partition(":")[2], ROWS[name]) for name in ROWS
    }

    def load_dataset(name, configuration, split):
        path = name if configuration == "default" else f"{name}/{configuration}"
        there, row = sets[path]
        assert split == there
        return [row]

    package = types.ModuleType("datasets")
    package.get_dataset_config_names = lambda name: next(
        [path[len(name) + 1 :] or "default"] for path in sets if path == name or path.startswith(name + "/")
    )
    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_hub_is_a_question_whose_right_answer_is_right(hub, name):
    ((question,), notes) = read_benchmark(named_benchmarks([name], None)[0])
    assert question["problem"].endswith("1+1?") and not notes
    right, wrong = ("B", "A") if BENCHMARKS[name].answers == "letter" else ("2", "3")
    assert question["answer"] == right
    texts = [f"So it is \\boxed{{{letter}}}." for letter in (right, wrong)]
    assert questions.correctness(texts, [question, question]) == [1.0, 0.0]


def test_every_benchmark_has_a_set_on_the_hub_or_says_that_it_needs_a_file():
    assert {name for name, each in BENCHMARKS.items() if not each.hub} == {"gpqa_diamond", "mawps"}
    for name in ("gpqa_diamond", "mawps"):
        with pytest.raises(
            ConfigError, match=rf"--bench {name}: no set on the Hub .* --bench {name}=FILE, or a folder"
        ):
            named_benchmarks([name], None)


def test_gsm8k_keeps_its_solution_and_levels_and_subjects_stay(hub):
    read = {name: read_benchmark(Source(name))[0][0] for name in ("gsm8k", "math500", "aime25", "mmlu_pro", "aime26")}
    assert read["gsm8k"]["solution"].startswith("It is 2.")
    assert (read["math500"]["level"], read["math500"]["subject"], read["math500"]["id"]) == (2, "Algebra", "t/1")
    assert read["aime25"]["subject"] == "Algebra, Geometry" and read["mmlu_pro"]["subject"] == "math"
    assert read["aime26"]["subject"] is None


def test_a_row_of_the_hub_that_lacks_a_field_is_named(hub, monkeypatch):
    """As where the set was changed after this table was written."""
    monkeypatch.setitem(ROWS["arc_c"], "choices", None)
    with pytest.raises(
        DataError, match=r"ARC-Challenge:test:1: the row is not what was expected .*; it has id, question"
    ):
        read_benchmark(Source("arc_c"))


# --- files -------------------------------------------------------------------------------------------------------


def test_a_folder_has_the_benchmarks_by_their_names_or_by_those_of_other_evaluations(tmp_path):
    for name in ("aime24", "gsm8k_test", "amc83"):
        write_questions(tmp_path / f"{name}.jsonl", [{"problem": f"{name}?", "answer": "2"}])
    sources = named_benchmarks(["aime24,gsm8k", "amc"], str(tmp_path))
    found = [read_benchmark(source)[0][0]["problem"] for source in sources]
    assert found == ["aime24?", "gsm8k_test?", "amc83?"]
    assert [source.data for source in sources] == [str(tmp_path / f"{name[:-1]}.jsonl") for name in found]
    write_gpqa(tmp_path / "gpqa_diamond.csv", [GPQA])
    assert len(read_benchmark(named_benchmarks(["gpqa_diamond"], str(tmp_path))[0])[0]) == 1
    with pytest.raises(
        ConfigError, match=r"there is no math500\.jsonl in it; it has aime24\.jsonl, amc83\.jsonl, gsm8k"
    ):
        named_benchmarks(["math500"], str(tmp_path))


def test_a_file_of_ones_own_takes_the_place_of_the_hub(tmp_path):
    source = write_questions(tmp_path / "mine.jsonl", [{"problem": "1/3?", "answer": "0.3333333333"}])
    ((question,), _) = read_benchmark(named_benchmarks([f"mawps={source}"], None)[0])
    assert question["rel_tol"] == BENCHMARKS["mawps"].rel_tol


def test_tolerances_are_for_what_upstream_rounded():
    """Whole numbers of word problems are exact; constants of physics are rounded, whole or not; letters have none."""

    def tolerance(name, answer, **fields):
        question = {"problem": "?", "answer": answer, **fields}
        return benchmarks.with_tolerance(question, BENCHMARKS[name]).get("rel_tol")

    assert tolerance("mawps", "0.6666666667") == 1e-4 and tolerance("mawps", "2400000") is None
    assert tolerance("minerva", "6630") == tolerance("minerva", "8.7e8") == 0.01
    assert tolerance("math500", "3.21") is None
    assert tolerance("minerva", "6630", rel_tol=0.0) == 0.0
    third = {"problem": "?", "answer": "0.3333333333", "rel_tol": tolerance("svamp", "0.3333333333")}
    assert questions.correctness([r"\boxed{1/3}", r"\boxed{0.3}"], [third] * 2) == [1.0, 0.0]


GPQA = {"Question": "Which?", "Correct Answer": " right\n", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
        "Incorrect Answer 3": "w3", "Record ID": "rec1", "High-level domain": "Physics", "Canary": "x"}  # fmt: skip


def write_gpqa(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, GPQA)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_gpqa_is_read_from_its_authors_file_with_the_right_choice_at_places_that_stay(tmp_path):
    rows = [{**GPQA, "Question": f"Which one, {number}?\nA new line."} for number in range(40)]
    source = named_benchmarks([f"gpqa_diamond={write_gpqa(tmp_path / 'gpqa_diamond.csv', rows)}"], None)[0]
    read, again = read_benchmark(source)[0], read_benchmark(source)[0]
    assert read == again and len(read) == 40
    assert all(each["choices"]["ABCD".index(each["answer"])] == "right" for each in read)
    assert all(sorted(each["choices"]) == ["right", "w1", "w2", "w3"] for each in read)
    counts = [sum(each["answer"] == letter for each in read) for letter in "ABCD"]
    assert sum(counts) == 40 and min(counts) >= 3  # no place is preferred
    assert read[0]["subject"] == "Physics" and read[0]["id"] == "rec1"


def test_a_csv_file_that_is_not_gpqas_is_refused_with_the_column_that_it_lacks(tmp_path):
    (tmp_path / "a.csv").write_text("Question,Answer\n?,2\n")
    with pytest.raises(DataError, match=r"a\.csv: it lacks the column 'Correct Answer'; give the gpqa_diamond\.csv"):
        read_benchmark(Source("gpqa_diamond", str(tmp_path / "a.csv")))
    (tmp_path / "b.csv").write_text(",".join(GPQA) + "\nWhich?,right\n")
    with pytest.raises(DataError, match=r"b\.csv:2: the row has fewer columns"):
        read_benchmark(Source("gpqa_diamond", str(tmp_path / "b.csv")))


# --- the command line --------------------------------------------------------------------------------------------


def test_the_list_has_every_benchmark_within_80_columns(capsys):
    evaluate.main(["--bench", "list"])
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert re.findall(r"^(\w+) +[\d,]+ questions", printed, re.MULTILINE) == list(BENCHMARKS) and len(BENCHMARKS) == 17
    assert len(re.findall(r"Licence:\s", printed)) == 17


def test_samples_are_those_of_the_papers_unless_a_flag_says_otherwise(tmp_path):
    def samples(*flags):
        options = options_of(["--model", "m", "--bench", "aime24", *flags])
        return [samples_of(source, options) for source in [*options.bench, "file.jsonl"]]

    assert samples() == [32, 1] and samples("--samples", "4") == [4, 4] and samples("--temperature", "0") == [1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bench", "aime23"], "--bench aime23: there is no benchmark 'aime23'; there are aime24, aime25"),
        (["--bench", "aime24,"], "--bench aime24,: there is no benchmark ''"),
        (["--bench", "aime24,aime24"], "--bench aime24: it is named twice"),
        (["--bench", "aime24=none.jsonl"], "--bench aime24=none.jsonl: there is no such file"),
        (["--bench", "aime24", "--bench-dir", "none"], "--bench-dir none: there is no such folder"),
        (["--data", "d", "--bench-dir", "none"], "--bench-dir none: without --bench nothing is read from it"),
        ([], "--data is missing: name the files or Hub sets to measure it on, or benchmarks by --bench"),
    ],
)
def test_a_benchmark_that_cannot_be_had_is_told_before_a_model_is_looked_for(flags, message):
    with pytest.raises(ConfigError) as error:
        options_of(["--model", "m", *flags])
    assert message in str(error.value)


def test_a_named_benchmark_is_measured_under_its_name(model, tokenizer, tmp_path, monkeypatch, capsys):
    """The folder's file has more than --limit takes."""
    monkeypatch.setattr(evaluate.rollout, "load", lambda name, **_: (model, tokenizer))
    rows = [{"problem": f"{number}?", "answer": str(number)} for number in range(4)]
    write_questions(tmp_path / "svamp.jsonl", rows)
    out = tmp_path / "r.json"
    flags = ["--bench", "svamp", "--limit", "3", "--samples", "2", "--max-new-tokens", "3"]
    evaluate.main(["--model", "m", *flags, "--bench-dir", str(tmp_path), "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["svamp", "3", "2"]
    (name,) = json.loads(out.read_text())
    assert name == "svamp"
