"""Groups of samples.jsonl: pairs stay with their answers, advantages by hand, steps that were not kept."""

from __future__ import annotations

import json

import pytest

from harness import samples
from questions import DataError


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


def test_sorting_by_reward_moves_rows_columns_and_pairs_alike(group):
    moved = samples.sorted_by_reward(group)
    assert [own["text"] for own in moved["answers"]] == ["b", "c", "a"]
    assert moved["distinctiveness"] == [[0.0, 0.4, 0.5], [0.4, 0.0, 0.1], [0.5, 0.1, 0.0]]
    assert moved["masked_pairs"] == [[1, 2]]  # c and a


def test_grpo_gives_the_plain_advantages(group):
    # Rewards 0, 1, 1: mean 2/3, deviation √2/3.
    assert samples.unmasked_advantages(group, "std") == pytest.approx([-(2**0.5), 0.5**0.5, 0.5**0.5], rel=1e-4)
    assert samples.unmasked_advantages(group, "none") == pytest.approx([-2 / 3, 1 / 3, 1 / 3])


def test_without_its_anchor_a_group_that_has_no_right_answer_has_no_advantage(group):
    hard = {**group, "answers": [answer("a", 0.0, -0.7), answer("b", 1.0, 1.4, anchor=True), answer("c", 0.0, -0.7)]}
    assert samples.unmasked_advantages(hard, "std") == [0.0, 0.0, 0.0]


def test_a_step_has_its_own_groups_and_one_that_was_not_kept_is_named_with_those_that_were(group, tmp_path):
    others = [{**group, "step": 3, "problem": "2 + 2?"}, group, {**group, "problem": "3 + 3?"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in others) + '{"step": 9, "pro')
    assert [each["problem"] for each in samples.groups_of(tmp_path, 4)] == ["1 + 1?", "3 + 3?"]
    with pytest.raises(DataError, match=r"--step 9: .* has the steps 3 to 4"):
        samples.groups_of(tmp_path, 9)
    with pytest.raises(DataError, match=r"samples\.jsonl does not exist; name the folder of a run"):
        samples.all_groups(tmp_path / "nowhere")


def test_the_masking_is_told_in_a_few_words():
    config = {"rectify": "threshold", "scorer": "gradient", "threshold": None}
    assert samples.masking_of(config) == "d < 0.35"
    assert samples.masking_of({**config, "threshold": 0.2}) == "d < 0.2"
    assert samples.masking_of({**config, "scorer": "rewards.py:f"}) == "d < 0.1"
    assert samples.masking_of({**config, "rectify": "none"}) == "none"
    assert samples.masking_of({**config, "rectify": "pair"}) == "rule (5)"
