"""Questions with their errors, verified anchors, and groups with anchors in place: equation (6)."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path

import pytest
import torch

import anchors
import rollout
from anchors import DataError
from flags import ConfigError

ROOT = Path(anchors.__file__).parent

SOLVED = {"problem": "1+1?", "answer": "2", "solution": "1+1 = 2. so \\boxed{2}"}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


# --- questions ---------------------------------------------------------------------------------------------------


def test_rows_keep_their_fields_and_where_they_came_from(tmp_path):
    source = write(tmp_path / "a.jsonl", [SOLVED, "", {**SOLVED, "level": 3}])
    rows = anchors.read_questions([source])
    assert rows[1] == {**SOLVED, "level": 3, "where": f"{source}:3"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "holds a list"),
        ({"answer": "2"}, "`problem` is missing; the line has answer"),
        ({"problem": "1+1?"}, "`answer` is missing"),
        ({"problem": "1+1?", "answer": 2}, "`answer` is 2; it must be a string"),
        ({"problem": " ", "answer": "2"}, "`problem` is ' '"),
        ({"problem": "1+1?", "answer": "2", "solution": 5}, "`solution` is 5"),
        ({"problem": "1+1?", "answer": "2", "choices": "AB"}, "`choices` must be a list"),
        ({"problem": "1+1?", "answer": "C", "choices": ["2", "3"]}, "one of A, B"),
    ],
)
def test_a_broken_line_is_named_by_file_line_and_fault(tmp_path, line, fault):
    source = write(tmp_path / "broken.jsonl", [SOLVED, line])
    with pytest.raises(DataError) as error:
        anchors.read_questions([source])
    assert f"{source}:2: " in str(error.value) and fault in str(error.value)


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(DataError, match=r"--data missing\.jsonl: there is no such file"):
        anchors.read_questions(["missing.jsonl"])
    with pytest.raises(DataError, match="no questions"):
        anchors.read_questions([write(tmp_path / "empty.jsonl", [""])])


def test_a_hub_set_without_the_package_names_it(monkeypatch):
    monkeypatch.setattr(anchors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install datasets"):
        anchors.read_questions(["openai/gsm8k:train"])


@pytest.mark.parametrize(
    ("source", "configurations", "loaded"),
    [
        ("openai/gsm8k:test", ["socratic", "main"], ("openai/gsm8k", "main", "test")),
        ("some/set", ["all"], ("some/set", "all", "train")),
    ],
)
def test_a_hub_set_is_read_by_name_and_split(monkeypatch, source, configurations, loaded):
    """With a stand-in for the package; the real one needs a network."""
    calls = []
    package = types.ModuleType("datasets")
    package.get_dataset_config_names = lambda name: configurations
    package.load_dataset = lambda name, configuration, split: (
        calls.append((name, configuration, split)) or [{"question": "1+1?", "answer": "2 it is\n#### 2"}]
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(anchors.importlib.util, "find_spec", lambda name: package)
    rows = anchors.read_questions([source])
    assert calls == [loaded]
    assert (rows[0]["problem"], rows[0]["answer"], rows[0]["where"]) == ("1+1?", "2", f"{source}:1")


def test_gsm8k_rows_of_the_hub_are_mapped():
    row = anchors.from_hub({"question": "How many?", "answer": "24+48 = <<24+48=72>>72 clips.\n#### 1,072"})
    assert row == {
        "problem": "How many?",
        "answer": "1072",
        "solution": "24+48 = 72 clips.\nThe answer is \\boxed{1072}.",
    }


def test_questions_with_an_unreadable_gold_are_set_apart():
    rows = [SOLVED, {"problem": "?", "answer": "\\frac{1"}]
    assert anchors.drop_unreadable(rows) == ([SOLVED], [rows[1]])


# --- loading anchors ---------------------------------------------------------------------------------------------


def test_solutions_that_fail_or_are_too_long_are_left_out_by_line(tmp_path, tokenizer):
    long = {"problem": "long?", "answer": "2", "solution": "a" * 50 + "\\boxed{2}"}
    wrong = {"problem": "wrong?", "answer": "3", "solution": "\\boxed{2}"}
    none = {"problem": "none?", "answer": "3"}
    source = write(tmp_path / "a.jsonl", [SOLVED, wrong, none, long])
    loaded = anchors.load(source, tokenizer=tokenizer, max_new_tokens=40)
    assert list(loaded.solutions) == ["1+1?"]
    assert [line.split(": ")[0] for line in loaded.left_out] == [f"{source}:2", f"{source}:4"]
    assert "does not reach the answer 3" in loaded.left_out[0] and "limit is 40" in loaded.left_out[1]


def test_the_limit_counts_the_eos(tokenizer):
    tokens = len(SOLVED["solution"])
    assert anchors.load([SOLVED], tokenizer=tokenizer, max_new_tokens=tokens + 1).solutions
    assert not anchors.load([SOLVED], tokenizer=tokenizer, max_new_tokens=tokens).solutions


# --- groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "hard_below", "hard"),
    [([0, 0, 0, 0], 0.0, True), ([0, 0, 0, 1], 0.0, False), ([0, 0, 0, 1], 0.25, True), ([0, 1, 0, 1], 0.25, False)],
)
def test_a_question_is_hard_at_or_under_the_pass_rate(rewards, hard_below, hard):
    assert bool(anchors.is_hard(torch.tensor(rewards, dtype=torch.float), 1.0, hard_below)) is hard


def sampled_groups(model, tokenizer, rows, size):
    prompts = [rollout.render_prompt(tokenizer, row["problem"]) for row in rows]
    return rollout.sample(model, tokenizer, prompts, size, max_new_tokens=12, seed=0)


def place(model, tokenizer, rows, rewards, known, **options):
    rewards = torch.tensor(rewards, dtype=torch.float)
    sampled = sampled_groups(model, tokenizer, rows, rewards.shape[1])
    options = {"count": 1, "hard_below": 0.0, "every_group": False, "rng": random.Random(0), **options}
    placed, new_rewards = anchors.insert(model, tokenizer, sampled, rewards, rows, known, **options)
    return sampled, placed, new_rewards


def tokens(record, row):
    return record.input_ids[row][record.response_mask[row]].tolist()


@pytest.mark.parametrize("size", [2, 3, 8])
def test_anchors_enter_hard_groups_only_and_replace_the_last_failing_answer(model, tokenizer, size):
    rows = [
        SOLVED,
        {"problem": "2+2?", "answer": "4", "solution": "\\boxed{4}"},
        {"problem": "no anchor", "answer": "1"},
    ]
    known = anchors.load(rows, tokenizer=tokenizer)
    rewards = [[0.0] * size, [1.0] + [0.0] * (size - 1), [0.0] * size]
    sampled, placed, new_rewards = place(model, tokenizer, rows, rewards, known)
    assert placed.group_size == size and placed.anchor_mask.nonzero().flatten().tolist() == [size - 1]
    assert new_rewards.tolist() == [[0.0] * (size - 1) + [1.0], rewards[1], rewards[2]]
    for row in range(3 * size):
        if row != size - 1:
            assert tokens(placed, row) == tokens(sampled, row)
            assert torch.equal(
                placed.logps[row][placed.response_mask[row]], sampled.logps[row][sampled.response_mask[row]]
            )
    anchor = tokens(placed, size - 1)
    assert anchor[-1] == tokenizer.eos_token_id and tokenizer.decode(anchor[:-1]) == SOLVED["solution"]
    prompt = placed.input_ids[size - 1][placed.attention_mask[size - 1] & ~placed.response_mask[size - 1]]
    assert tokenizer.decode(prompt.tolist()) == "1+1?\n"
    assert not bool(placed.truncated[size - 1])


def test_right_answers_of_a_hard_group_are_not_replaced(model, tokenizer):
    """With --hard-below 0.5 a group with two right answers is hard: three anchors are asked for, two places fail."""
    known = anchors.load([SOLVED] * 3, tokenizer=tokenizer)
    sampled, placed, rewards = place(model, tokenizer, [SOLVED], [[1.0, 0.0, 1.0, 0.0]], known, count=3, hard_below=0.5)
    assert placed.anchor_mask.tolist() == [False, True, False, True]
    assert rewards.tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert tokens(placed, 0) == tokens(sampled, 0) and tokens(placed, 2) == tokens(sampled, 2)


def test_no_more_anchors_than_there_are(model, tokenizer):
    known = anchors.load([SOLVED], tokenizer=tokenizer)
    _, placed, _ = place(model, tokenizer, [SOLVED], [[0.0] * 4], known, count=3)
    assert placed.anchor_mask.tolist() == [False, False, False, True]


def test_each_anchor_keeps_its_own_reward(model, tokenizer):
    """A reward of one's own may value two solutions differently, whatever their order in the file."""
    other = {**SOLVED, "solution": "\\boxed{2}"}
    known = anchors.load(
        [SOLVED, other], reward=lambda texts, rows: [1.0 / len(text) for text in texts], tokenizer=tokenizer
    )
    earned = {tokenizer.decode(solution[:-1]): reward for solution, reward in known.available(SOLVED)}
    assert earned == {row["solution"]: 1.0 / len(row["solution"]) for row in (SOLVED, other)}
    _, placed, rewards = place(model, tokenizer, [SOLVED], [[0.0, 0.0]], known, count=2)
    assert rewards[0].tolist() == pytest.approx([1.0 / len(text) for text in placed.texts])


def test_every_group_appends_the_anchors(model, tokenizer):
    """LUFFY: also to a solved group, behind the sampled answers."""
    known = anchors.load([SOLVED], tokenizer=tokenizer)
    sampled, placed, rewards = place(model, tokenizer, [SOLVED], [[1.0, 1.0, 0.0]], known, every_group=True)
    assert placed.group_size == 4 and placed.anchor_mask.tolist() == [False, False, False, True]
    assert rewards.tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert [tokens(placed, i) for i in range(3)] == [tokens(sampled, i) for i in range(3)]


def test_groups_of_one_anchor_for_fine_tuning(model, tokenizer):
    known = anchors.load([SOLVED], tokenizer=tokenizer)
    placed, rewards = anchors.only(model, tokenizer, [SOLVED, SOLVED], known, random.Random(0))
    assert placed.anchor_mask.all() and placed.group_size == 1 and rewards.tolist() == [[1.0], [1.0]]
    assert tokenizer.decode(tokens(placed, 1)) == SOLVED["solution"] + "<eos>"


# --- questions of a run ----------------------------------------------------------------------------------------------


def test_held_out_questions_are_never_trained_on():
    both = [str(ROOT / "examples" / "arithmetic" / f"{name}.jsonl") for name in ("train", "held_out")]
    training, held_out = anchors.split_questions(both, both[1:], 4)
    assert (
        len(training) == 1800
        and len(held_out) == 300
        and not {r["problem"] for r in training} & {r["problem"] for r in held_out}
    )
    training, held_out = anchors.split_questions(both, [], 1000)
    assert len(held_out) == 420 and len(training) == 1680  # at most a fifth
    assert not {r["problem"] for r in training} & {r["problem"] for r in held_out}


def test_questions_that_leave_no_room_for_an_answer_are_left_out(model, tokenizer, capsys):
    """256 positions: a prompt of 5 tokens fits beside 250 answer tokens, one of 8 does not."""
    rows = [{"problem": "1+1?"}, {"problem": "what ??"}]
    assert anchors.fitting(model, tokenizer, rows, 250) == rows[:1]
    assert "1 questions left out" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--max-new-tokens 256: no question fits"):
        anchors.fitting(model, tokenizer, rows, 256)
