"""A page as a file: what is in it and what is not, where it may be written. test_page_in_browser.py opens it."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from harness import page
from harness.command import ConfigError
from harness.page_data import BLOCK, Blocks, by_length, changed_settings, kinds_of, metrics_of
from questions import DataError

EVIL = '</script><script>document.title="hurt"</script><img src=x onerror=\'document.title="hurt"\'><!--'


def row(problem: str, rewards: list[float], **more: Any) -> dict[str, Any]:
    return {"problem": problem, "answer": "4", "texts": [f"{problem} 4"] * len(rewards), "rewards": rewards, **more}


def result(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"questions": len(rows), "rows": rows, "max_new_tokens": 64, "accuracy": 0.5, **more}


def overview_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="overview">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(text: str) -> list[dict[str, Any]]:
    """What all blocks of a page hold, in order."""
    packed = re.findall(r'<script type="text/plain" id="block-\d+">([\w+/=]*)</script>', text)
    return [item for block in packed for item in json.loads(zlib.decompress(base64.b64decode(block)))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run of two steps, with a group and two evaluations."""
    config = {"method": "grpo", "steps": 2, "scale": "std", "rectify": "none", "scorer": "gradient", "threshold": None}
    config |= {"anchors": None, "loss_norm": "token", "learning_rate": 1e-3, "new_flag": 3}
    answers = [
        {"text": f"so {n}", "reward": float(n == 2), "advantage": 0.1, "anchor": False, "tokens": 3} for n in range(3)
    ]
    group = {
        "step": 2,
        "problem": "1 + 1?",
        "answer": "2",
        "answers": answers,
        "distinctiveness": None,
        "masked_pairs": [],
    }
    evaluations = [{"step": n, **result([row("2 + 2?", [float(n)])], interval=[0.4, 0.6])} for n in (0, 1)]
    lines = {
        "metrics.jsonl": [{"memory_estimate_gb": {}}, {"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5}],
        "samples.jsonl": [group],
        "evaluations.jsonl": evaluations,
    }  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config))
    for name, records in lines.items():
        (run / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


# ---------------------------------------------------------------------------------------------------------------------
# What is in the page
# ---------------------------------------------------------------------------------------------------------------------


def test_no_text_of_a_model_can_become_html(tmp_path):
    """In an answer, a question, a name and a setting alike: the only tags are those of the page itself."""
    harmless = result([row("1?", [1.0], level="x", subject="y")], settings={"model": "m", "system": "s"})
    harmful = result(
        [row(EVIL, [1.0], level=EVIL, subject=EVIL, extracted=[EVIL], read=[EVIL])],
        settings={"model": EVIL, "system": EVIL, EVIL: EVIL},
    )
    texts = []
    for name, each in (("a", harmless), (EVIL, harmful)):
        page.write_evaluation({name: each}, tmp_path / "page.html")
        texts.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "hurt" in texts[1], "it is there, as text"
    assert EVIL[:9] + EVIL[9:17] not in texts[1] and "<img" not in texts[1]
    tags = [re.findall(r"<[a-z/!][^\s>]*", text) for text in texts]
    assert tags[0] == tags[1]
    assert unpacked(texts[1])[0]["problem"] == EVIL and overview_of(texts[1])["evaluation"]["names"] == [EVIL]


def test_the_page_loads_nothing_and_its_policy_names_its_own_program(tmp_path):
    page.write_evaluation({"a": result([row("1?", [1.0])])}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    program = text.rpartition("<script>")[2].partition("</script>")[0]
    assert "default-src 'none'; style-src 'sha256-" in text and f"script-src {page.hash_of(program)}" in text
    outside = [address for address in re.findall(r"https?://[\w./]+", text) if "w3.org" not in address]
    assert not outside and not re.search(r"\b(?:src|href)=", text) and "innerHTML" not in program


def test_every_answer_is_in_the_page_whatever_its_characters(tmp_path):
    """Long texts fill several blocks; a lone surrogate and a figure that is not finite do not stop the page."""
    rows = [row(f"question {n}", [1.0, 0.0]) | {"texts": [f"{n} é∑𝄞\u2028" + "x" * BLOCK, "b"]} for n in range(3)]
    rows.append(row("last", [math.nan]) | {"texts": ["\ud800 here"]})
    page.write_evaluation({"a": result(rows, reward=math.inf)}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    items = unpacked(text)
    assert [item["sides"][0]["texts"] for item in items[:3]] == [own["texts"] for own in rows[:3]]
    assert items[3]["sides"][0] == {"texts": ["? here"], "rewards": [None]}
    overview = overview_of(text)["evaluation"]["benchmarks"][0]
    assert (
        overview["blocks"] == {"first": 0, "starts": [0, 1, 2, 3]} and overview["sides"][0]["figures"]["reward"] is None
    )


def test_blocks_of_several_lists_do_not_mix():
    blocks = Blocks()
    assert blocks.add(["a", "b"]) == {"first": 0, "starts": [0]}
    assert blocks.add([]) == {"first": 1, "starts": [0]}
    assert blocks.add(["x" * (BLOCK + 1), "y"]) == {"first": 2, "starts": [0, 1]} and len(blocks.packed) == 4


def test_bits_tell_right_cut_off_and_unanswered_before_texts_are_unpacked(tmp_path):
    rows = [
        row("1?", [1.0, 0.0], truncated=[False, True], extracted=["4", None], lengths=[5, 64]),
        row("2?", [0.0, 0.5], truncated=[False, False], extracted=["3", "5"], lengths=[6, 7]),
    ]
    page.write_evaluation({"a": result(rows)}, tmp_path / "page.html")
    side = overview_of((tmp_path / "page.html").read_text())["evaluation"]["benchmarks"][0]["sides"][0]
    assert side["bits"] == ["16", "00"] and side["knows"] == ["truncated", "extracted"]


def test_two_sides_share_their_classes_of_length():
    """Up to 64 tokens, so ten classes of 7; a file without lengths has none, and two without them no classes."""
    ours = result([row("1?", [1.0, 0.0], lengths=[5, 64]), row("2?", [0.0, 0.5], lengths=[6, 7])])
    theirs = result([row("1?", [1.0], lengths=[4])])
    assert by_length([ours]) == [[0, 6, [2], [0.5]], [7, 13, [1], [0.0]], [63, 64, [1], [0.0]]]
    assert by_length([ours, theirs])[0] == [0, 6, [2, 1], [0.5, 1.0]]
    assert by_length([ours, theirs])[1] == [7, 13, [1, 0], [0.0, None]]
    older = result([row("1?", [1.0])])
    assert by_length([ours, older])[0] == [0, 6, [2, 0], [0.5, None]] and by_length([older]) == []


def test_levels_are_in_the_order_of_their_numbers():
    assert kinds_of([10, 9, None, "easy", 10]) == {"names": ["9", "10", "easy"], "of": [1, 0, -1, 2, 1]}
    assert kinds_of([None, None]) is None


def test_against_another_evaluation_each_question_is_won_lost_or_equal(tmp_path):
    """Paired by the question, wherever it stands; what only one side has, and other settings, are told."""
    ours = result(
        [row("1?", [1.0]), row("2?", [0.0]), row("3?", [1.0]), row("4?", [1.0])], settings={"temperature": 1.0}
    )
    theirs = result([row("3?", [1.0]), row("2?", [1.0]), row("1?", [0.0])], settings={"temperature": 0.5})
    page.write_evaluation({"d/a.jsonl": ours}, tmp_path / "page.html", against={"a": theirs}, names=("new", "old"))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    overview = overview_of(text)["evaluation"]
    (benchmark,) = overview["benchmarks"]
    assert benchmark["outcomes"] == "wle-" and overview["names"] == ["new", "old"]
    comparison = benchmark["comparison"]
    assert (comparison["won"], comparison["lost"], comparison["mean"]) == (1, 1, 0)
    assert any("temperature: 1.0 and 0.5" in note for note in overview["notes"])
    assert any("new has 1 question that old has not" in note for note in overview["notes"])
    assert [item["sides"][1] and item["sides"][1]["rewards"] for item in unpacked(text)] == [[0.0], [1.0], [1.0], None]
    with pytest.raises(DataError, match="no benchmark in common"):
        page.write_evaluation({"a": ours}, tmp_path / "page.html", against={"b": theirs})


# ---------------------------------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------------------------------


def test_the_page_of_a_run_has_its_curves_groups_settings_and_held_out_questions(folder, tmp_path):
    page.write_run(folder, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    overview = overview_of(text)["run"]
    assert overview["metrics"] == {"step": [1, 2], "reward": [0.25, 0.5]}
    assert overview["held_out"] == [[0, 0.5, 0.4, 0.6], [1, 0.5, 0.4, 0.6]]
    assert overview["settings"] == [["steps", "2", "200"], ["learning_rate", "0.001", "1e-06"], ["new_flag", "3", "–"]]
    group, question = unpacked(text)
    assert [answer["text"] for answer in group["answers"]] == ["so 2", "so 0", "so 1"], "best first"
    assert group["unmasked"] == pytest.approx([2**0.5, -(0.5**0.5), -(0.5**0.5)], abs=1e-3)
    assert question["problem"] == "2 + 2?" and overview["evaluation"]["benchmarks"][0]["outcomes"] == "w"


def test_a_figure_of_some_steps_alone_leaves_gaps_in_the_others():
    steps = [{"step": 1, "kl": 0.1234567}, {"step": 2, "kl": None, "note": "text"}, {"step": 3}]
    assert metrics_of(steps) == {"step": [1, 2, 3], "kl": [0.123457, None, None]}


def test_defaults_are_those_of_the_method():
    assert changed_settings({"method": "dapo", "resample": 3, "clip_high": 0.28}) == []
    assert changed_settings({"method": "dapo", "resample": 0}) == [["resample", "0", "3"]]


def test_a_run_without_groups_and_evaluations_has_a_page_too(folder, tmp_path):
    (folder / "samples.jsonl").unlink()
    (folder / "evaluations.jsonl").unlink()
    page.write_run(folder, tmp_path / "page.html")
    overview = overview_of((tmp_path / "page.html").read_text())["run"]
    assert overview["group_steps"] == overview["held_out"] == [] and "evaluation" not in overview


# ---------------------------------------------------------------------------------------------------------------------
# The command, and where it writes
# ---------------------------------------------------------------------------------------------------------------------


def test_the_command_writes_beside_its_source_and_replaces_only_its_own_pages(folder, tmp_path, capsys):
    source = tmp_path / "base.json"
    source.write_text(json.dumps({"a": result([row("1?", [1.0])])}))
    for _ in range(2):
        page.main([str(source)])
        page.main([str(folder)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "base.html"), str(folder / "page.html")] * 2
    assert "Evaluation: base" in (tmp_path / "base.html").read_text()
    first = (folder / "page.html").read_bytes()
    page.main([str(folder), "--out", str(tmp_path / "new" / "again.html")])
    assert (tmp_path / "new" / "again.html").read_bytes() == first, "the same run, the same page"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("", "the name of the file is empty"),
        ("there", "it is a folder"),
        ("new/", "it is a folder"),
        ("notes.html", "no page of this program"),
        ("notes.html/page.html", "notes.html is not a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_done(file, said, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "notes.html").write_text("<p>my notes")
    place = f"{tmp_path}/{file}" if file else ""
    with pytest.raises(ConfigError, match=f"^--html.*{said}"):
        page.check_out(place, "--html")


def test_an_empty_file_and_a_new_folder_are_places_to_write(tmp_path):
    (tmp_path / "empty.html").touch()
    page.check_out(str(tmp_path / "empty.html"), "--html")
    page.check_out(str(tmp_path / "a" / "b" / "page.html"), "--html")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: source"),
        (["{}/nowhere.json"], "there is no such file"),
        (["{}"], "there is no run in this folder"),
        (["{}", "--against", "b.json"], "only two result files can be compared"),
        (["{}/bad.json"], "it is no JSON"),
        (["{}/bad.json", "--html", "x"], "--html"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_sentence(arguments, said, tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SystemExit):
        page.main([argument.format(tmp_path) for argument in arguments])
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert not list(tmp_path.glob("*.html"))


def test_a_run_before_its_first_step_and_a_broken_one_are_named(folder, capsys):
    for name, content, said in (
        ("metrics.jsonl", '{"memory_estimate_gb": {}}\n', "no step yet"),
        ("config.json", "[1]", "it is no JSON object"),
    ):
        (folder / name).write_text(content)
        with pytest.raises(SystemExit):
            page.main([str(folder)])
        assert said in capsys.readouterr().err
