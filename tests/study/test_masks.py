"""Parts of the mask: which pairs are of a kind, how many are drawn by chance, what a part leaves, and a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import scoring
from harness.config import Config
from scoring import Rectified
from study import arms, masks
from study.variants import FULL, configuration, made_from

TEXTS = ["I get 3", "So 1 + 2 = 3. I get 3", "So 1 + 2 = 4. I get 4", "That makes 5"]
WORKED_PAIR, PAIR_AT_ONCE = {(1, 2)}, {(0, 3)}
REST = {(0, 1), (0, 2), (1, 3), (2, 3)}


def pairs_of(table: torch.Tensor) -> set[tuple[int, int]]:
    """The pairs (i, j), i < j, of the first group of a symmetric table without diagonal."""
    assert (table == table.mT).all() and not table.diagonal(dim1=1, dim2=2).any()
    return {(i, j) for i, j in table[0].nonzero().tolist() if i < j}


def test_a_pair_is_worked_where_both_completions_write_a_step():
    kinds = masks.kinds_of_pairs(TEXTS, 4)
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    found = {kind: pairs_of(table & off_diagonal) for kind, table in kinds.items()}
    assert found == {"worked": WORKED_PAIR, "at once": PAIR_AT_ONCE, "one of each": REST}


def rectified_by(mask: torch.Tensor) -> Rectified:
    """A batch of which the mask alone is known."""
    return Rectified(mask, torch.zeros(mask.shape), torch.zeros(mask.shape[:2]), torch.zeros(1))


def symmetric(pairs: set[tuple[int, int]]) -> torch.Tensor:
    table = torch.zeros(1, 4, 4, dtype=torch.bool)
    for i, j in pairs:
        table[0, i, j] = table[0, j, i] = True
    return table


def test_chance_draws_as_many_pairs_of_each_group_from_its_candidates():
    candidates = torch.cat([symmetric({(0, 1)}), symmetric({(0, 2), (0, 3), (1, 2), (1, 3)})])
    masked = torch.cat([symmetric(set()), symmetric({(1, 2), (0, 3)})])
    draws = [arms.by_chance(masked, candidates, torch.Generator().manual_seed(n)) for n in range(50)]
    second = [pairs_of(draw[1:]) for draw in draws]
    assert all(pairs_of(draw[:1]) == set() for draw in draws)
    assert all(len(draw) == 2 and draw <= pairs_of(candidates[1:]) for draw in second)
    assert len({frozenset(draw) for draw in second}) == 6  # 2 of 4


def test_chance_keeps_to_the_kinds_that_are_masked(monkeypatch):
    """Two of three worked right/wrong pairs are masked: only these three can be drawn, not the pairs with `at once`."""
    texts = ["1 + 2 = 3.", "1 + 2 = 4.", "1 + 2 = 5.", "1 + 2 = 6.", "It is 7", "It is 8"]
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    mask = torch.ones(1, 6, 6, dtype=torch.bool)
    for j in (1, 2):
        mask[0, 0, j] = mask[0, j, 0] = False
    monkeypatch.setattr(scoring, "rectify", lambda *_: rectified_by(mask))
    drawn = set()
    for seed in range(30):
        counts = [{kind: [] for kind in masks.KINDS} for _ in range(2)]
        rectify = masks.rectify_in_part("chance", seed, *counts)
        chosen = rectify(None, SimpleNamespace(texts=texts, group_size=6), rewards, Config().rectification)
        drawn.add(frozenset(pairs_of(~chosen.pair_mask)))
    assert drawn == {frozenset(pair) for pair in ({(0, 1), (0, 2)}, {(0, 1), (0, 3)}, {(0, 2), (0, 3)})}


def test_what_is_trained_is_the_default_mask_without_anchors():
    config = configuration(masks.request_of(masks.SEEDS[0], 1e-4, FULL), Path())
    default = Config()
    assert config.anchors is None and config.rectification == default.rectification
    taken = (*FULL.seeds, *FULL.further_seeds, *FULL.grid_seeds, *FULL.settings_seeds)
    assert not set(masks.SEEDS) & set(taken)


@pytest.mark.parametrize(
    ("part", "left_out"),
    [("none", set()), ("all", {(0, 3), (1, 2)}), ("worked", {(1, 2)}), ("at once", {(0, 3)})],
)
def test_a_part_of_the_mask_leaves_out_its_pairs_and_no_others(part, left_out, monkeypatch):
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    whole_mask = ~symmetric({(0, 3), (1, 2), (2, 3)})  # the last pair has equal rewards: no matter
    monkeypatch.setattr(scoring, "rectify", lambda *_: rectified_by(whole_mask))
    pairs, masked = ({kind: [] for kind in masks.KINDS} for _ in range(2))
    rectify = masks.rectify_in_part(part, 0, pairs, masked)
    rectified = rectify(None, SimpleNamespace(texts=TEXTS, group_size=4), rewards, Config().rectification)
    assert pairs_of(~rectified.pair_mask) == left_out
    # (4): a quarter for each of the two pairs of a completion that is left, over σ = 1/2.
    lost = [sum(n in pair for pair in left_out) for n in range(4)]
    expected = [sign * (2 - count) / 4 / 0.5 for sign, count in zip((1, 1, -1, -1), lost, strict=True)]
    assert rectified.advantages.tolist() == [pytest.approx(expected, rel=1e-4)]
    assert pairs == {"at once": [1], "worked": [1], "one of each": [2]}
    assert masked == {"at once": [1], "worked": [1], "one of each": [0]}


def run(part: str, seed: int, last: float) -> dict:
    pairs = {"at once": [10, 10], "worked": [0, 20], "one of each": [4, 0]}
    masked = {"at once": [1, 3], "worked": [0, 5], "one of each": [0, 0]}
    validation = {"accuracy": [0.2, 0.4, last]}
    return {"part": part, "seed": seed, "validation": validation, "pairs": pairs, "masked_pairs": masked}


def test_the_tables_compare_each_part_with_no_mask_and_say_what_is_masked_when():
    runs = [run("none", 0, 0.6), run("none", 1, 0.8), run("worked", 0, 0.5), run("worked", 1, 0.5)]
    runs += [run("all", 0, 0.6), run("chance", 1, 0.9), run("chance", 5, 0.1)]
    lines = masks.accuracy_table(runs).splitlines()
    ours = "| worked | 2 | 50.0 | -20.0 (-147.1 to +107.1) | -40.0 | 45.0 | -10.0 (-73.5 to +53.5) | -20.0 |"
    assert ours in lines  # chance has one seed, so that the difference to it has no interval
    assert lines[2].startswith("| none | 2 | 70.0 | – | -10.0 |")
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
    assert all(len(run["validation"]["accuracy"]) == 3 and len(run["pairs"]["worked"]) == 2 for run in runs)
    masks.main(["--quick", "--json", str(file)])
    assert file.read_text().splitlines() == lines
    assert capsys.readouterr().out.count("| chance | 1 |") == 2


def test_a_run_of_another_configuration_is_made_anew(tmp_path, monkeypatch):
    file = tmp_path / "masks.jsonl"
    asked = []

    def measured(part, seed, rate, budget):
        asked.append((part, seed))
        return {**run(part, seed, 0.5), **made_from(masks.request_of(seed, rate, budget))}

    monkeypatch.setattr(masks, "measure", measured)
    for rate in (1e-4, 2e-4, 2e-4):
        monkeypatch.setattr(masks, "QUICK_RATE", rate)
        masks.main(["--quick", "--json", str(file)])
    assert asked == 2 * [(part, masks.SEEDS[0]) for part in masks.PARTS]


def test_only_the_seeds_that_are_asked_for_are_in_the_tables(tmp_path, monkeypatch, capsys):
    def measured(part, seed, rate, budget):
        return {**run(part, seed, 0.5), **made_from(masks.request_of(seed, rate, budget))}

    monkeypatch.setattr(masks, "measure", measured)
    for seeds in (["200"], ["201", "202"]):
        masks.main(["--quick", "--json", str(tmp_path / "masks.jsonl"), "--seeds", *seeds])
    assert "| chance | 1 |" in (printed := capsys.readouterr().out) and "| chance | 2 |" in printed
