"""Parts of the mask: which pairs are of a kind, how many are drawn by chance, what a part leaves, and a tiny run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import masks
import pytest
import torch

import dagrpo

TEXTS = ["I get 3", "So 1 + 2 = 3. I get 3", "So 1 + 2 = 4. I get 4", "That makes 5"]
WORKED_PAIR, PAIR_AT_ONCE = {(1, 2)}, {(0, 3)}
REST = {(0, 1), (0, 2), (1, 3), (2, 3)}


def pairs_of(table: torch.Tensor) -> set[tuple[int, int]]:
    """The pairs (i, j), i < j, of the first group of a symmetric table without diagonal."""
    assert (table == table.mT).all() and not table.diagonal(dim1=1, dim2=2).any()
    return {(i, j) for i, j in table[0].nonzero().tolist() if i < j}


def test_a_pair_is_worked_where_both_answers_write_a_step():
    kinds = masks.kinds_of_pairs(TEXTS, 4)
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    found = {kind: pairs_of(table & off_diagonal) for kind, table in kinds.items()}
    assert found == {"worked": WORKED_PAIR, "at once": PAIR_AT_ONCE, "one of each": REST}


def symmetric(pairs: set[tuple[int, int]]) -> torch.Tensor:
    table = torch.zeros(1, 4, 4, dtype=torch.bool)
    for i, j in pairs:
        table[0, i, j] = table[0, j, i] = True
    return table


def test_chance_draws_as_many_pairs_of_those_that_differ():
    differ = symmetric({(0, 2), (0, 3), (1, 2), (1, 3)})
    masked = symmetric({(1, 2), (0, 3)})
    draws = [pairs_of(masks.by_chance(masked, differ, torch.Generator().manual_seed(n))) for n in range(50)]
    assert all(len(draw) == 2 and draw <= pairs_of(differ) for draw in draws)
    assert len({frozenset(draw) for draw in draws}) == 6  # 2 of 4
    assert masks.by_chance(symmetric(set()), differ, torch.Generator()).sum() == 0


@pytest.mark.parametrize(
    ("part", "left_out"),
    [("none", set()), ("all", {(0, 3), (1, 2)}), ("worked", {(1, 2)}), ("at once", {(0, 3)})],
)
def test_a_part_of_the_mask_leaves_out_its_pairs_and_no_others(part, left_out, monkeypatch):
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    whole_mask = ~symmetric({(0, 3), (1, 2), (2, 3)})  # the last pair has equal rewards: no matter
    monkeypatch.setattr(dagrpo, "rectify", lambda *_: (whole_mask, torch.zeros(1, 4, 4), None))
    pairs, masked = ({kind: [] for kind in masks.KINDS} for _ in range(2))
    rectify = masks.rectify_in_part(part, 0, pairs, masked)
    mask, _, advantages = rectify(
        None, SimpleNamespace(texts=TEXTS, group_size=4), rewards, dagrpo.Config(scale="none")
    )
    assert pairs_of(~mask) == left_out
    # (4) without σ: a quarter for each of the two pairs of an answer that is left.
    lost = [sum(n in pair for pair in left_out) for n in range(4)]
    expected = [sign * (2 - own) / 4 for sign, own in zip((1, 1, -1, -1), lost, strict=True)]
    assert advantages.tolist() == [pytest.approx(expected)]
    assert pairs == {"at once": [1], "worked": [1], "one of each": [2]}
    assert masked == {"at once": [1], "worked": [1], "one of each": [0]}


def run(part: str, seed: int, last: float) -> dict:
    pairs = {"at once": [10, 10], "worked": [0, 20], "one of each": [4, 0]}
    masked = {"at once": [1, 3], "worked": [0, 5], "one of each": [0, 0]}
    return {"part": part, "seed": seed, "accuracy": [0.2, 0.4, last], "pairs": pairs, "masked_pairs": masked}


def test_the_tables_compare_each_part_with_no_mask_and_say_what_is_masked_when():
    runs = [run("none", 0, 0.6), run("none", 1, 0.8), run("worked", 0, 0.5), run("worked", 1, 0.5), run("all", 0, 0.6)]
    lines = masks.accuracy_table(runs).splitlines()
    assert "| worked | 2 | 50.0 | -20.0 (-30.0 to -10.0) | 45.0 | -10.0 (-15.0 to -5.0) |" in lines
    assert masks.kind_table(runs).splitlines()[2:] == [
        "| at once | 10 | 10.0 | 10 | 30.0 |",
        "| worked | 0 | – | 20 | 25.0 |",
        "| one of each | 4 | 0.0 | 0 | – |",
    ]


def test_a_tiny_run_is_kept_and_not_repeated(tmp_path, capsys):
    file = tmp_path / "masks.jsonl"
    masks.main(["--quick", "--json", str(file)])
    lines = file.read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert [run["part"] for run in runs] == list(masks.PARTS)
    assert all(len(run["accuracy"]) == 3 and len(run["pairs"]["worked"]) == 2 for run in runs)
    masks.main(["--quick", "--json", str(file)])
    assert file.read_text().splitlines() == lines
    assert capsys.readouterr().out.count("| chance | 1 |") == 2
