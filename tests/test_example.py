"""The embedded example: small, verified, and with nothing of the held-out set in training."""

from __future__ import annotations

import json

import pytest

import anchors
import dagrpo
import rollout


@pytest.fixture(scope="module")
def rows():
    return {name: anchors.read_questions([str(dagrpo.EXAMPLE / f"{name}.jsonl")]) for name in ("train", "held_out")}


def test_no_training_question_is_held_out(rows):
    training = {row["problem"] for row in rows["train"]}
    held_out = {row["problem"] for row in rows["held_out"]}
    assert len(training) == len(rows["train"]) and len(held_out) == len(rows["held_out"])
    assert not training & held_out


def test_every_worked_solution_is_verified_and_fits(rows):
    _, tokenizer = rollout.load(str(dagrpo.EXAMPLE), "cpu")
    limit = json.loads((dagrpo.EXAMPLE / "run.json").read_text())["max_new_tokens"]
    for part in rows.values():
        assert not anchors.load(part, tokenizer=tokenizer, max_new_tokens=limit).left_out


def test_every_word_of_the_questions_is_a_token(rows):
    _, tokenizer = rollout.load(str(dagrpo.EXAMPLE), "cpu")
    for row in rows["train"] + rows["held_out"]:
        ids = tokenizer(row["problem"] + "\n" + row["solution"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["problem"] + "\n" + row["solution"]


def test_it_stays_small():
    assert sum(path.stat().st_size for path in dagrpo.EXAMPLE.iterdir() if path.is_file()) < 6_000_000
