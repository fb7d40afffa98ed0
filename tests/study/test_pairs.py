"""Pairs of completions by what they differ in: by hand on short texts, and the table of a run."""

from __future__ import annotations

import json

import pytest

from study import pairs


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (r"7 + 5 = \boxed{12}", r"7 + 5 = \boxed{13}", "result"),
        (r"7 + 5 = \boxed{12}", r"7 + 5 = \boxed{-2.5}", "result"),
        (r"7 + 5 = \boxed{12}", r"5 + 7 = \boxed{13}", "numbers"),
        (r"7 + 5 = \boxed{12}", "7 + 5 = 12", "words"),
        (r"7 + 5 = \boxed{12}", r"7 - 5 = \boxed{2}", "words"),
        ("twelve", "twelve", "result"),
        ("twelve", "thirteen", "words"),
    ],
)
def test_in_what_two_completions_differ(one, other, kind):
    assert pairs.difference(one, other) == pairs.difference(other, one) == kind


def answer(text: str, reward: float, anchor: bool = False) -> dict:
    return {"text": text, "reward": reward, "anchor": anchor}


def test_the_table_counts_pairs_of_different_rewards(tmp_path, capsys):
    """The right answer beside three wrong ones, of which the first two pairs are masked; an anchor beside one."""
    samples = [
        {
            "answers": [answer("1 + 1 = 2", 1.0), answer("1 + 1 = 3", 0.0), answer("2", 0.0), answer("1 + 1 = 4", 0.0)],
            "masked_pairs": [[1, 0], [2, 0]],
        },
        {"answers": [answer("1 + 2 = 4", 0.0), answer("1 + 2 = 3", 1.0, True)], "masked_pairs": [[1, 0]]},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    pairs.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| result | 2 | 50.0 | 1 | 100.0 |",
        "| numbers | 0 | – | 0 | – |",
        "| words | 1 | 100.0 | 0 | – |",
    ]
    with pytest.raises(SystemExit, match="does not exist"):
        pairs.main([str(tmp_path / "nowhere")])
