"""The picture of a group: long answers, what is drawn, files that come out the same each time."""

from __future__ import annotations

import json

import picture
import pytest
from conftest import same_drawing


def answer(text: str, reward: float, advantage: float = 0.0, anchor: bool = False) -> dict:
    return {"text": text, "reward": reward, "advantage": advantage, "anchor": anchor, "tokens": 3}


@pytest.fixture
def group():
    """Answers b and c are right; the pair of a and c is masked."""
    return {
        "step": 4, "problem": "1 + 1?", "answer": "2",
        "answers": [answer("a", 0.0, -0.5), answer("b", 1.0, 0.5), answer("c", 1.0, 0.0)],
        "distinctiveness": [[0.0, 0.5, 0.1], [0.5, 0.0, 0.4], [0.1, 0.4, 0.0]],
        "masked_pairs": [[2, 0]],
    }  # fmt: skip


def test_a_long_answer_keeps_its_end():
    text = " ".join(f"step{n}" for n in range(100)) + " \\boxed{7}"
    lines = picture.shortened(text).split("\n")
    assert len(lines) == picture.LINES and all(len(line) <= picture.WRAP for line in lines)
    assert lines[0].startswith("step0 step1") and lines[-1].endswith("\\boxed{7}")
    assert picture.shortened("two\nlines") == "two lines"


def run_folder(tmp_path, groups: list[dict]):
    (tmp_path / "config.json").write_text(
        json.dumps({"scale": "std", "rectify": "threshold", "scorer": "gradient", "threshold": None})
    )
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    return tmp_path


def test_the_figure_shows_every_answer_and_the_masked_pair(group, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    unscored = {**group, "distinctiveness": None, "masked_pairs": [], "problem": "No formula: $1_000_$"}
    folder = run_folder(tmp_path, [{**group, "step": 3}, group, unscored])
    command = [str(folder), "--step", "4", "--out", str(tmp_path / "docs" / "group")]
    picture.main(command)
    written = [tmp_path / "docs" / f"group.{suffix}" for suffix in ("png", "svg")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    drawn = written[1].read_text()
    for text in ("1 + 1?", "No formula: $1_000_$", "not scored", "framed: masked, d &lt; 0.35", "DaGRPO (4)"):
        assert text in drawn
    picture.main(command)
    assert same_drawing(written[1].read_text(), drawn), "no date, no random names"


def test_a_step_that_was_not_kept_is_named_with_those_that_were(group, tmp_path):
    with pytest.raises(SystemExit, match="has the steps 4 to 4"):
        picture.main([str(run_folder(tmp_path, [group])), "--step", "9"])
    with pytest.raises(SystemExit, match=r"samples\.jsonl does not exist"):
        picture.main([str(tmp_path / "nowhere")])
