"""benchmarks/trial.py: as many inputs of each kind as the trial had, and what is counted as clear and as lost."""

from __future__ import annotations

from collections import Counter

import pytest
import trial
import trial_rows
from trial import Outcome, category, table, tried
from trial_rows import KINDS, Row


def test_there_are_as_many_inputs_of_each_kind_as_the_trial_had_and_none_twice():
    rows = trial_rows.all_rows()
    assert Counter(row.kind for row in rows) == KINDS and sum(KINDS.values()) == 258
    assert len({(row.command, row.event) for row in rows}) == 258
    assert {row.event for row in rows} - {""} == set(trial.EVENTS)


REFUSED = Row("flags", "dagrpo.py --lr 1", "it is --learning-rate", 2)
TAKEN = Row("data", "dagrpo.py --data x.jsonl", "step 1/1", 0)
SAID = "dagrpo.py: --lr: it is\n  --learning-rate here.\n".replace("\n  ", " ")


@pytest.mark.parametrize(
    ("row", "outcome", "expected"),
    [
        (REFUSED, Outcome(2, "", SAID), "clear"),
        (REFUSED, Outcome(1, "", SAID), "unclear"),
        (REFUSED, Outcome(2, "", "dagrpo.py: --lr: what?\n"), "unclear"),
        (REFUSED, Outcome(2, "", SAID + "more\n"), "unclear"),
        (REFUSED, Outcome(2, "", "Traceback (most recent call last):\n" + SAID), "traceback"),
        (TAKEN, Outcome(0, "step\n1/1 ...\n", ""), "clear"),
        (TAKEN, Outcome(0, "nothing\n", ""), "unclear"),
        (TAKEN, Outcome(-1, "step 1/1", "no end after 300 s"), "unclear"),
    ],
)
def test_what_is_clear(row, outcome, expected):
    assert category(row, outcome) == expected


def test_a_file_that_has_changed_or_is_gone_is_lost(tmp_path, monkeypatch):
    world = tmp_path / "world"
    world.mkdir()
    for name in ("a", "b", "c"):
        (world / name).write_text(name)

    def careless(command, folder, forked):
        (folder / "a").write_text("aa")
        (folder / "b").unlink()
        (folder / "new").write_text("a run may make files")
        return Outcome(0, "step 1/1", "")

    monkeypatch.setattr(trial, "run", careless)
    assert sorted(tried(TAKEN, world, tmp_path / "here", False).lost) == ["a has changed", "b has changed"]
    assert (world / "a").read_text() == "a"


def test_the_table_adds_up():
    counted = Counter({("flags", True, "clear"): 3, ("flags", False, "traceback"): 1, ("data", True, "unclear"): 2})
    lines = table(counted, Counter({"data": 1})).splitlines()
    assert lines[2] == "| flags | 4 | 3 | 3 | 0 | 1 | 0 |"
    assert lines[-1] == "| all | 6 | 5 | 3 | 2 | 1 | 1 |"
