"""Files as rows: every format reads the same, and what is broken is named by line or row."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
import threading

import pytest
from conftest import SOLVED, write_questions

import questions
from questions import DataError


def test_rows_keep_their_fields_and_where_they_came_from(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, "", {**SOLVED, "level": 3}])
    found = questions.read_questions([source])
    assert found[1] == {**SOLVED, "level": 3, "where": f"{source}:3"}


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(DataError, match=r"--data missing\.jsonl: there is no such file"):
        questions.read_questions(["missing.jsonl"])
    with pytest.raises(DataError, match="no questions"):
        questions.read_questions([write_questions(tmp_path / "empty.jsonl", [""])])


def test_lines_that_are_wrong_in_the_same_way_are_counted(tmp_path):
    """Two without an answer, one that is no JSON; the first is told in full."""
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, {"problem": "?"}, "{", {"problem": "!"}, {"problem": "."}])
    with pytest.raises(DataError) as error:
        questions.read_questions([source])
    text = str(error.value)
    assert text.startswith(f"{source}:2: the field `answer` is missing")
    assert "Lines like it: 2 more. Lines with other faults: 1, the first of them " + f"{source}:3." in text


def test_bad_lines_are_left_out_and_counted_where_that_is_asked_for(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, *["{"] * 5, SOLVED])
    found, notes = questions.read_data([source], skip_bad=True)
    assert [question["where"] for question in found] == [f"{source}:1", f"{source}:7"]
    assert [note.split(": left out")[0] for note in notes[:3]] == [f"{source}:{number}" for number in (2, 3, 4)]
    assert notes[3:] == [f"{source}: 5 of 7 lines left out (--skip-bad)."]
    with pytest.raises(DataError, match="No line can be used"):
        questions.read_data([write_questions(tmp_path / "b.jsonl", ["{"])], skip_bad=True)


@pytest.mark.parametrize(
    ("written", "read"),
    [("72", "72"), ("1.50", "1.50"), ("-3e2", "-3e2"), ("1" + "0" * 30, "1" + "0" * 30), ('"7"', "7")],
)
def test_a_number_as_answer_is_its_text_as_it_is_written(tmp_path, written, read):
    line = f'{{"problem": "?", "answer": {written}, "level": 3}}'
    (found,) = questions.read_questions([write_questions(tmp_path / "a.jsonl", [line])])
    assert found["answer"] == read and found["level"] == 3


@pytest.mark.parametrize("text", ["\ufeff{}\n", "{}\r\n\r\n{}\r\n", "{}\r{}\r", "\n{}", "{}"])
def test_a_byte_order_mark_and_any_line_ends_are_taken(tmp_path, text):
    line = '{"problem": "1+1?\u2028", "answer": "2"}'
    (tmp_path / "a.jsonl").write_bytes(text.replace("{}", line).encode())
    found = questions.read_questions([str(tmp_path / "a.jsonl")])
    assert len(found) == text.count("{}") and found[0]["problem"] == "1+1?\u2028"


@pytest.mark.parametrize("length", [1_000_001, 50_000_000])
def test_a_line_without_an_end_is_named_and_not_read_whole(tmp_path, length):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, "x" * length, SOLVED])
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 1,000,000 characters"):
        questions.read_questions([source])
    assert [each["where"][-2:] for each in questions.read_data([source], skip_bad=True)[0]] == [":1", ":3"]


def test_a_pipe_is_read_like_a_file(tmp_path):
    """As of `--data <(zcat questions.jsonl.gz)`."""
    os.mkfifo(tmp_path / "pipe")
    line = '{"problem": "1+1?", "answer": "2"}\n'
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(line,))
    writer.start()
    assert questions.read_questions([str(tmp_path / "pipe")])[0]["answer"] == "2"
    writer.join()


# --- GSM8K as people have it -------------------------------------------------------------------------------------

GSM8K = [
    ('Nora has 3 boxes, each with "4" pens.\nHow many pens?', "3 * 4 = <<3*4=12>>12 pens.", "12"),
    ("Zoë sells 1,000 maps at $2 each. How much is that?", "1000 * 2 = <<1000*2=2000>>$2000,\nin all.", "2,000"),
    ("He runs half a mile, 5 times. How far?", "0.5 * 5 = <<0.5*5=2.5>>2.5 miles.", "2.5"),
]
QUESTIONS = [(question, gold.replace(",", "")) for question, _, gold in GSM8K]
SOLUTIONS = [
    "3 * 4 = 12 pens.\nThe answer is \\boxed{12}.",
    "1000 * 2 = $2000,\nin all.\nThe answer is \\boxed{2000}.",
    "0.5 * 5 = 2.5 miles.\nThe answer is \\boxed{2.5}.",
]
ORIGINAL = [{"question": question, "answer": f"{worked}\n#### {gold}"} for question, worked, gold in GSM8K]
BY_NAME = {
    "question, answer with ####": ORIGINAL,
    "question, answer, solution": [
        {"question": each, "answer": gold, "solution": solution}
        for (each, gold), solution in zip(QUESTIONS, SOLUTIONS, strict=True)
    ],
    "prompt, answer": [{"prompt": question, "answer": gold} for question, gold in QUESTIONS],
    "question, ground_truth": [{"question": question, "ground_truth": gold} for question, gold in QUESTIONS],
    "problem, solution with a box": [
        {"problem": each, "solution": solution, "level": "Level 1", "type": "Algebra"}
        for (each, _), solution in zip(QUESTIONS, SOLUTIONS, strict=True)
    ],
    "answers as numbers": [{"question": question, "answer": json.loads(gold)} for question, gold in QUESTIONS],
    "messages": [
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
        for row in ORIGINAL
    ],
    "a chat as prompt, answer": [
        {"prompt": [{"role": "user", "content": question}], "answer": gold} for question, gold in QUESTIONS
    ],
}


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)


def save(path, **parts):
    """A data set as save_to_disk writes it; of several parts a dictionary of them."""
    datasets = pytest.importorskip("datasets")
    sets = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    whole = datasets.DatasetDict(sets) if len(sets) > 1 else next(iter(sets.values()))
    whole.save_to_disk(str(path))


def write_table(path, rows, delimiter):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_packed(path, rows):
    """A packed CSV, whose name says both."""
    write_table(path.with_suffix(""), rows, ",")
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


def write_shards(folder):
    folder.mkdir()
    for number, rows in enumerate((ORIGINAL[:2], ORIGINAL[2:])):
        write_parquet(folder / f"train-{number:05d}-of-00002.parquet", rows)
    write_parquet(folder / "test-00000-of-00001.parquet", [{"question": "?", "answer": "#### 1"}])


def dumped(rows, **options):
    return json.dumps(rows, ensure_ascii=False, **options)


def lines_of(rows):
    return "".join(dumped(row) + "\n" for row in rows)


BY_FORMAT = {
    "list.json": lambda path: path.write_text(dumped(ORIGINAL)),
    "pretty.json": lambda path: path.write_text(dumped(ORIGINAL, indent=2)),
    "object.json": lambda path: path.write_text(dumped({"version": "1.0", "data": ORIGINAL})),
    "table.csv": lambda path: write_table(path, ORIGINAL, ","),
    "table.tsv": lambda path: write_table(path, ORIGINAL, "\t"),
    "table.parquet": lambda path: write_parquet(path, ORIGINAL),
    "packed.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines_of(ORIGINAL).encode())),
    "saved": lambda path: save(path, train=ORIGINAL),
    "folder": write_shards,
}


@pytest.mark.parametrize("shape", BY_NAME)
def test_gsm8k_is_the_same_questions_by_whatever_names_its_fields_go(tmp_path, shape):
    rows = BY_NAME[shape]
    (tmp_path / "a.jsonl").write_text(lines_of(rows))
    found = questions.read_questions([str(tmp_path / "a.jsonl")])
    assert [(each["problem"], each["answer"]) for each in found] == QUESTIONS
    solved = any("solution" in row or "####" in str(row) for row in rows)
    assert [each.get("solution") for each in found] == (SOLUTIONS if solved else [None] * 3)
    assert [each["where"][-2:] for each in found] == [":1", ":2", ":3"]


@pytest.mark.parametrize("name", BY_FORMAT)
def test_gsm8k_is_the_same_questions_in_whatever_format_it_lies(tmp_path, name):
    BY_FORMAT[name](tmp_path / name)
    found = questions.read_questions([str(tmp_path / name)])
    assert [(each["problem"], each["answer"]) for each in found] == QUESTIONS
    assert [each["solution"] for each in found] == SOLUTIONS


def test_the_shapes_are_seventeen():
    assert len(BY_NAME) + len(BY_FORMAT) == 17


# --- parts -------------------------------------------------------------------------------------------------------


def test_a_part_of_a_saved_set_a_folder_or_an_object_is_named_behind_a_colon(tmp_path):
    two = {"train": ORIGINAL, "test": ORIGINAL[:1]}
    save(tmp_path / "saved", **two)
    (tmp_path / "two.json").write_text(dumped(two))
    write_shards(tmp_path / "folder")
    for name in ("saved", "two.json", "folder"):
        source = str(tmp_path / name)
        assert len(questions.read_questions([source])) == 3, "without a part it is train"
        assert len(questions.read_questions([f"{source}:test"])) == 1
        with pytest.raises(DataError, match=f"there is no dev in it; name one of .*{name}:te?r?"):
            questions.read_questions([f"{source}:dev"])
    (where,) = (each["where"] for each in questions.read_questions([f"{tmp_path / 'two.json'}:test"]))
    assert where == f"{tmp_path / 'two.json'}:test:row 1"


def test_of_several_lists_none_is_taken_in_silence_and_a_plain_file_has_no_parts(tmp_path):
    (tmp_path / "a.json").write_text(dumped({"easy": ORIGINAL, "hard": ORIGINAL}))
    with pytest.raises(DataError, match=r"a\.json: it has several parts; name one of .*a\.json:easy, .*a\.json:hard"):
        questions.read_questions([str(tmp_path / "a.json")])
    (tmp_path / "a.jsonl").write_text(lines_of(ORIGINAL))
    with pytest.raises(DataError, match=r"a\.jsonl:test: this file has no parts; leave out the :test"):
        questions.read_questions([f"{tmp_path / 'a.jsonl'}:test"])


def test_the_files_of_a_data_set_of_the_hub_may_lie_in_its_folder_data(tmp_path):
    (tmp_path / "README.md").write_text("# GSM8K")
    write_shards(tmp_path / "data")
    assert len(questions.read_questions([str(tmp_path)])) == 3


def test_a_folder_that_says_nothing_of_parts_names_its_files(tmp_path):
    with pytest.raises(DataError, match=r"it is a folder without a file of questions \(.jsonl, .json"):
        questions.read_questions([str(tmp_path)])
    for name in ("easy.jsonl", "hard.csv"):
        (tmp_path / name).write_text(lines_of(ORIGINAL))
    with pytest.raises(DataError, match=r"it has several parts; name one of \S+:easy, \S+:hard\."):
        questions.read_questions([str(tmp_path)])
    (tmp_path / "hard.csv").unlink()
    assert len(questions.read_questions([str(tmp_path)])) == 3


# --- CSV ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_a_spreadsheet_has_its_byte_order_mark_its_line_ends_and_its_separator(tmp_path, delimiter):
    """A place is the line that a row begins in, though a cell before it has several."""
    cells = [["problem", "answer", "solution"], ['"Two"\r\nlines?', "1,5", ""], [], ["1+1?", "2.50", "so 2.5"]]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in quoted) + "\r\n"
    (tmp_path / "a.csv").write_bytes(text.encode())
    found = questions.read_questions([str(tmp_path / "a.csv")])
    assert [(each["problem"], each["answer"]) for each in found] == [('"Two"\r\nlines?', "1,5"), ("1+1?", "2.50")]
    assert [each["where"].rpartition(":")[2] for each in found] == ["2", "5"]
    assert "solution" not in found[0] and found[1]["solution"] == "so 2.5"


def test_cells_may_hold_lists_as_json(tmp_path):
    write_table(
        tmp_path / "a.csv",
        [{"messages": dumped(BY_NAME["messages"][0]["messages"]), "rel_tol": "0.01"}],
        ",",
    )
    write_table(tmp_path / "b.csv", [{"problem": "1+1?", "answer": "B", "choices": '["3", "2"]'}], ",")
    chat, letters = questions.read_questions([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])
    assert (chat["problem"], chat["answer"], chat["rel_tol"]) == (*QUESTIONS[0], 0.01)
    assert letters["choices"] == ["3", "2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("problem,answer\n1+1?,2\n2+2?\n", r":3: the row has 1 columns, and the head of the file 2\. A cell with"),
        ("problem,answer\n1+1?,2,3\n", r":2: the row has 3 columns"),
        (
            'problem,answer\n1+1?,2\n"2+2?,4\n3+3?,6\n',
            r":3: the row that begins here is no CSV \(unexpected end of data",
        ),
        ('problem,answer\n"1"+1?,2\n', r":2: the row that begins here is no CSV"),
        ("problem,answer\n1+1?,2\n,4\n", r":3: the field `problem` is missing; the line has answer"),
        ("problem,answer,answer\n1+1?,2,2\n", r":1: the head of the file has the column 'answer' twice"),
        ("1+1?,2\n2+2?,4\n", r":2: the field `problem` is missing; the line has 1\+1\?, 2"),
        ("problem,answer\n", "the file has no questions"),
        ("", "the file has no questions"),
    ],
)
def test_a_row_of_csv_that_cannot_be_used_is_named_by_its_line(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        questions.read_questions([str(tmp_path / "a.csv")])


def test_an_open_quote_does_not_swallow_the_rows_behind_it_in_silence(tmp_path):
    (tmp_path / "a.csv").write_text('problem,answer\n1+1?,2\n"2+2?,4\n3+3?,6\n')
    found, notes = questions.read_data([str(tmp_path / "a.csv")], skip_bad=True)
    assert [each["problem"] for each in found] == ["1+1?"] and "1 of 2 lines left out" in notes[-1]


def test_a_cell_that_is_not_utf8_or_far_too_long_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("problem,answer\n1+1?,2\ncaf\xe9?,3\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv:3: the line is not UTF-8 \(the byte 0xe9 in column 4\)"):
        questions.read_questions([str(tmp_path / "a.csv")])
    (tmp_path / "b.csv").write_text("problem,answer\n1+1?,2\n" + "x" * 3_000_000)
    with pytest.raises(DataError, match=r"b\.csv:3: the line is longer than 1,000,000 characters"):
        questions.read_questions([str(tmp_path / "b.csv")])


# --- bad rows and files in every format --------------------------------------------------------------------------

BAD = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": None}, {"question": None, "answer": "3"}]


@pytest.mark.parametrize(
    ("name", "write", "where"),
    [
        ("a.jsonl", lambda path: path.write_text(lines_of(BAD)), "a.jsonl:2"),
        ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(lines_of(BAD).encode())), "a.jsonl.gz:2"),
        ("a.json", lambda path: path.write_text(dumped(BAD, indent=1)), "a.json:row 2"),
        ("b.json", lambda path: path.write_text(dumped({"rows": BAD})), "b.json:row 2"),
        ("a.csv", lambda path: write_table(path, BAD, ","), "a.csv:3"),
        ("a.tsv", lambda path: write_table(path, BAD, "\t"), "a.tsv:3"),
        ("a.csv.gz", lambda path: write_packed(path, BAD), "a.csv.gz:3"),
        ("a.parquet", lambda path: write_parquet(path, BAD), "a.parquet:row 2"),
        ("saved", lambda path: save(path, train=BAD), "saved:row 2"),
    ],
)
def test_a_bad_row_is_named_in_every_format_with_how_many_more_there_are(tmp_path, name, write, where):
    write(tmp_path / name)
    with pytest.raises(DataError) as error:
        questions.read_questions([str(tmp_path / name)])
    units = "Rows" if ":row" in where else "Lines"
    assert str(error.value).startswith(f"{tmp_path}/{where}: ") and "`answer` is" in str(error.value)
    assert f" {units} with other faults: 1, the first of them {tmp_path}/" in str(error.value)
    found, notes = questions.read_data([str(tmp_path / name)], skip_bad=True)
    assert len(found) == 1 and f"2 of 3 {units.lower()} left out (--skip-bad)" in " ".join(notes)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.json",
            b'[{"problem": "1+1?",\n "answer": }]',
            r"a\.json:2: the file is not JSON \(Expecting value in column",
        ),
        ("a.json", b'{"name": "x", "size": 3}', r"a\.json:1: the field `problem` is missing; the line has name, size"),
        ("a.json", b'{\n"name": "x"}', r"a\.json:1: the file is one JSON object with name; it must hold a list"),
        ("a.json", b'[{"problem": "caf\xe9"}]', r"a\.json:1: the line is not UTF-8 \(the byte 0xe9 in column 18\)"),
        ("a.json", b"[]", "the file has no questions"),
        ("a.json", b'[{"a": ' + b"[" * 100_000, "brackets within brackets, too deep"),
        (
            "a.json",
            b'[{"problem": "?", "answer": ' + b"1" * 5_000 + b"}]",
            r"cannot be read as JSON \(Exceeds the limit",
        ),
        ("a.parquet", b"PAR1" + b"\0" * 50, r"a\.parquet: it cannot be read"),
        ("a.parquet", b"hello", r"a\.parquet: it cannot be read as Parquet \(ArrowInvalid"),
        ("a.parquet.gz", gzip.compress(b"PAR1" + b"\0" * 50), "Parquet is packed in itself"),
        ("a.jsonl.gz", gzip.compress(b'{"problem": "1+1?"}\n' * 9_999)[:60], r"a\.jsonl\.gz: it is damaged or cut off"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\0" + b"\0" * 9, r"a\.jsonl\.gz: it is damaged or cut off"),
        ("a.arrow", b"\xff\xff\xff\xff", "it is an Arrow file, a part of a data set. Name the folder"),
        ("a.csv", "problem".encode("utf-16"), r"a\.csv:1: the file is UTF-16; it must be UTF-8: iconv"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path, name, content, said):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        questions.read_questions([str(tmp_path / name)])


def test_a_damaged_saved_set_is_named(tmp_path):
    save(tmp_path / "saved", train=ORIGINAL)
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="saved: it cannot be read as a saved data set"):
        questions.read_questions([str(tmp_path / "saved")])


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("saved", "datasets")])
def test_a_package_that_is_missing_is_named_with_the_file_that_needs_it(tmp_path, monkeypatch, name, package):
    BY_FORMAT["table.parquet" if package == "pyarrow" else "saved"](tmp_path / name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(DataError, match=rf"{name}: to read .* one more package is needed. Run: pip install {package}"):
        questions.read_questions([str(tmp_path / name)])


def test_lines_named_json_are_read_as_lines_and_a_list_named_jsonl_as_a_list(tmp_path):
    """What is in a file counts, not what it is called."""
    (tmp_path / "lines.json").write_text(lines_of(ORIGINAL))
    (tmp_path / "list.jsonl").write_text(dumped(ORIGINAL))
    (tmp_path / "one.json").write_text(lines_of(ORIGINAL[:1]))
    (tmp_path / "chat.json").write_text(lines_of(BY_NAME["messages"][:1]))  # one object that holds a list of objects
    counts = [len(questions.read_questions([str(tmp_path / name)])) for name in ("lines.json", "list.jsonl")]
    assert counts == [3, 3]
    for name in ("one.json", "chat.json"):
        assert questions.read_questions([str(tmp_path / name)])[0]["answer"] == "12"


def test_a_list_in_one_line_may_be_longer_than_a_line_of_jsonl(tmp_path):
    rows = [{"problem": f"{n}?" + "x" * 990, "answer": "1"} for n in range(1_500)]
    for name, whole in (("list.json", rows), ("object.json", {"data": rows})):
        (tmp_path / name).write_text(dumped(whole))
        assert len(questions.read_questions([str(tmp_path / name)])) == 1_500
