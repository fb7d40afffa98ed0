"""Files as rows: every format reads the same, and what is broken is named by line or row."""

from __future__ import annotations

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
    assert questions.from_hub({"question": "?", "answer": 72})["answer"] == "72"


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
