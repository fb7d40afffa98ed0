"""Data for TRL's trainer: this project's JSONL, TRL's own format, rewards. Skipped where TRL is not installed."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import write_questions

pytest.importorskip("trl")

from trl_training import TOKENIZER, one_batch, questions_of_example

from harness.config import EXAMPLE
from harness.rewards import load_reward
from rollout import INSTRUCTION, PLAIN, PromptStyle, turns_of
from scale import data
from scale.trl_dagrpo import new_trainer, parse

TEMPLATE = (
    "{% for turn in messages %}{{ turn['content'] }}\n{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The embedded model with a chat template, which writes each turn in a line."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(EXAMPLE, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return folder


def trainer_of(folder, flags):
    common = "--use_cpu --num_generations 2 --per_device_train_batch_size 4 --max_completion_length 160"
    common += f" --report_to none --output_dir {folder} --rectify none"
    return new_trainer(*parse(f"{common} {flags}".split()))


def prompts_in_trl_format(path, count=3):
    """Questions as messages, with the gold in `answer` and the solution beside it."""
    rows = [
        {
            "prompt": [{"role": "user", "content": question["problem"]}],
            **{k: question[k] for k in ("answer", "solution")},
        }
        for question in questions_of_example(count)
    ]
    return write_questions(path, rows), rows


def test_questions_become_the_prompts_of_dagrpo(chat_model):
    questions = questions_of_example(2)
    plain = data.as_dataset(questions, TOKENIZER, PLAIN)
    assert plain["prompt"] == [f"{question['problem']}\n" for question in questions]
    assert plain["question"] == [0, 1]
    style = PromptStyle(system="Be brief.")
    chat = data.as_dataset(questions, data.read_tokenizer(str(chat_model)), style, first=5)
    assert list(chat["prompt"][0]) == turns_of(questions[0]["problem"], None, style)
    assert chat["question"] == [5, 6]


def test_messages_of_trl_are_rendered_by_the_chat_template_and_their_solutions_become_anchors(chat_model, tmp_path):
    path, rows = prompts_in_trl_format(tmp_path / "trl.jsonl")
    held_out = write_questions(tmp_path / "held_out.jsonl", questions_of_example(4)[3:])
    trainer = trainer_of(tmp_path / "out", f"--model {chat_model} --data {path} --eval_data {held_out}")
    trainer.reward_funcs = [lambda completion_ids, **_: [0.0] * len(completion_ids)]  # all hard
    batch, sampled, _ = one_batch(trainer)
    tokenizer = trainer.processing_class
    for n, row in enumerate(rows):
        asked = f"{row['prompt'][0]['content']}\n\n{INSTRUCTION}\n"
        assert sampled.prompts[2 * n] == tokenizer(asked)["input_ids"]
        anchor = batch["completion_ids"][2 * n + 1][batch["completion_mask"][2 * n + 1].bool()].tolist()
        assert anchor == tokenizer(row["solution"] + "\n" + tokenizer.eos_token)["input_ids"]


def test_each_function_of_reward_is_one_of_trl_with_its_weight(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def length(texts, questions):\n    return [len(t) for t in texts]\n"
        "def place(texts, questions):\n    return [float(q['problem'][0]) for q in questions]\n"
    )
    reward = load_reward([f"{tmp_path}/mine.py:length=0.5", f"{tmp_path}/mine.py:place"])
    functions, weights = data.trl_rewards(reward, [{"problem": "1+1?"}, {"problem": "7-2?"}], TOKENIZER)
    assert [function.__name__ for function in functions] == ["length", "place"] and weights == [0.5, 1.0]
    ids = TOKENIZER(["12 + 3", "4"])["input_ids"]
    given = {"prompts": [], "completions": [], "completion_ids": ids, "question": [1, 0], "trainer_state": None}
    assert functions[0](**given) == [float(len("12 + 3")), 1.0]
    assert functions[1](**given) == [7.0, 1.0]


def test_two_formats_at_once_are_read_as_one_set(chat_model, tmp_path):
    path, _ = prompts_in_trl_format(tmp_path / "trl.jsonl", 3)
    mine = write_questions(tmp_path / "own.jsonl", questions_of_example(9)[3:])
    trainer = trainer_of(tmp_path / "out", f"--model {chat_model} --data {path} {mine} --hold_out 1")
    assert len(trainer.train_dataset) == 8
    renamed = write_questions(tmp_path / "b.jsonl", [{"q": f"{n}+1?", "answer": str(n + 1)} for n in range(6)])
    flags = f"--model {chat_model} --data {renamed} --map problem=q --hold_out 1"
    assert len(trainer_of(tmp_path / "other", flags).train_dataset) == 5
