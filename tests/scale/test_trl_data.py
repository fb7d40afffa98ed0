"""Data for TRL's trainer: this project's JSONL, TRL's own format, rewards. Skipped where TRL is not installed."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import write_questions

pytest.importorskip("trl")

from trl_training import TOKENIZER, one_batch, questions_of_example

from harness.config import EXAMPLE, ConfigError, configure
from harness.config import parse as parse_core
from harness.rewards import load_reward
from questions import DataError, prompt_of
from rollout import INSTRUCTION, PLAIN, PromptStyle, sample, turns_of
from scale import data
from scale.trl_dagrpo import new_trainer, parse

TEMPLATE = (
    "{% for turn in messages %}{% if turn['role'] == 'assistant' and effort is defined %}{{ effort }}{% endif %}"
    "{{ turn['content'] }}\n{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The embedded model with a chat template, which writes each turn in a line."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(EXAMPLE, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return folder


def common(folder):
    flags = "--use_cpu --num_generations 2 --per_device_train_batch_size 4 --max_completion_length 160"
    return f"{flags} --report_to none --output_dir {folder} --rectify none".split()


def trainer_of(folder, flags):
    return new_trainer(*parse([*common(folder), *flags.split()]))


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


def held_out(folder):
    return write_questions(folder / "held_out.jsonl", questions_of_example(12)[9:])


def test_questions_become_the_prompts_of_dagrpo(chat_model):
    questions = questions_of_example(2)
    plain = data.as_dataset(questions, TOKENIZER, PLAIN)
    assert plain["prompt"] == [f"{question['problem']}\n" for question in questions]
    assert plain["question"] == [0, 1]
    assert data.as_dataset([{**questions[0], "prompt": "Hi"}], TOKENIZER, PLAIN)["prompt"] == plain["prompt"][:1]
    style = PromptStyle(system="Be brief.")
    chat = data.as_dataset(questions, data.read_tokenizer(str(chat_model)), style, first=5)
    assert list(chat["prompt"][0]) == turns_of(questions[0]["problem"], None, style)
    assert chat["question"] == [5, 6]


CHAT = "--template-arg effort=9 --enable-thinking --system 1+2="


@pytest.mark.parametrize("flags", ["", "--prompt-file {0}/asked.txt --examples {0}/solved.jsonl"])
@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_a_prompt_is_the_same_to_the_token_as_in_dagrpo(chat_model, tmp_path, kind, flags):
    (tmp_path / "asked.txt").write_text("3*{problem}\n{choices}7=")
    solved = [
        {"problem": "2+2?", "answer": "4", "solution": "2+2=4"},
        {"problem": "?", "answer": "A", "choices": ["4"]},
    ]
    write_questions(tmp_path / "solved.jsonl", solved)
    asked = [{"problem": "5-1?", "answer": "4"}, {"problem": "1+1?", "answer": "B", "choices": ["1", "2"]}]
    path, others = write_questions(tmp_path / "asked.jsonl", asked), EXAMPLE / "held_out.jsonl"
    model = chat_model if kind == "chat" else EXAMPLE
    given = (
        f"--model {model} --data {path} --eval-data {others} {flags.format(tmp_path)} {CHAT if kind == 'chat' else ''}"
    )

    trainer = trainer_of(tmp_path / "out", f"{given} --anchors none --rectify threshold --max_completion_length 4")
    _, sampled, _ = one_batch(trainer)

    config = configure(**parse_core(given.split()))
    tokenizer = data.read_tokenizer(str(model))
    prompts = [prompt_of(tokenizer, question, config.prompt_style) for question in trainer.questions]
    rollouts = sample(trainer.model, tokenizer, prompts, 2, max_new_tokens=1)
    of_prompt = rollouts.attention_mask & ~rollouts.response_mask
    assert sampled.prompts == [ids[mask].tolist() for ids, mask in zip(rollouts.input_ids, of_prompt, strict=True)]
    assert len(trainer.questions) == 2 and (("3*5-1?\n7=" in prompts[0]) == bool(flags))
    assert prompts[0].endswith("True") == (kind == "chat")


def test_arguments_of_the_template_have_one_flag_which_anchors_follow_too(chat_model, tmp_path):
    path, _ = prompts_in_trl_format(tmp_path / "trl.jsonl")
    given = f"--model {chat_model} --data {path} --eval_data {held_out(tmp_path)}"
    with pytest.raises(ConfigError, match="--chat_template_kwargs: it is --template-arg NAME=VALUE here"):
        new_trainer(*parse([*common(tmp_path / "out"), *given.split(), "--chat_template_kwargs", '{"effort": 9}']))
    with pytest.raises(DataError, match="--template-arg mood: the model's chat template does not know it"):
        trainer_of(tmp_path / "out", f"{given} --template-arg mood=1")
    assert trainer_of(tmp_path / "out", f"{given} --enable-thinking false").chat_template_kwargs == {
        "enable_thinking": False
    }
    trainer = trainer_of(tmp_path / "out", f"{given} --template-arg effort=9")
    assert trainer.chat_template_kwargs == {"effort": 9}
    tokenizer, question = trainer.processing_class, trainer.questions[0]
    anchor, _ = trainer.solutions.available(question)[0]
    assert anchor == tokenizer(f"9{question['solution']}\n{tokenizer.eos_token}")["input_ids"]


def test_messages_of_trl_are_rendered_by_the_chat_template_and_their_solutions_become_anchors(chat_model, tmp_path):
    path, rows = prompts_in_trl_format(tmp_path / "trl.jsonl")
    others = held_out(tmp_path)
    trainer = trainer_of(tmp_path / "out", f"--model {chat_model} --data {path} --eval_data {others}")
    trainer.reward_funcs = [lambda completion_ids, **_: [0.0] * len(completion_ids)]  # all hard
    batch, sampled, _ = one_batch(trainer)
    tokenizer = trainer.processing_class
    for n, row in enumerate(rows):
        asked = f"{row['prompt'][0]['content']}\n\n{INSTRUCTION}\n"
        assert sampled.prompts[2 * n] == tokenizer(asked)["input_ids"]
        anchor = batch["completion_ids"][2 * n + 1][batch["completion_mask"][2 * n + 1].bool()].tolist()
        assert anchor == tokenizer(row["solution"] + "\n" + tokenizer.eos_token)["input_ids"]


def test_a_solution_is_written_behind_several_turns_as_the_policy_would(chat_model, tmp_path):
    solved = {"answer": "2", "solution": "1+1 = 2. So \\boxed{2}"}
    turns = [("system", "3"), ("user", "4"), ("assistant", "5"), ("user", "1+1?")]
    row = {"prompt": [{"role": role, "content": content} for role, content in turns], **solved}
    path = write_questions(tmp_path / "turns.jsonl", [row])
    given = f"--model {chat_model} --data {path} --eval_data {held_out(tmp_path)} --template-arg effort=9"
    trainer = trainer_of(tmp_path / "out", given)
    anchor, earned = trainer.solutions.available(trainer.questions[0])[0]
    tokenizer = data.read_tokenizer(str(chat_model))
    assert anchor == tokenizer(f"9{solved['solution']}\n{tokenizer.eos_token}")["input_ids"] and earned == 1.0
    (prompt,) = trainer.train_dataset["prompt"]
    assert [turn["content"] for turn in prompt] == ["3", "4", "5", f"1+1?\n\n{INSTRUCTION}"]


def test_anchors_of_a_file_of_its_own_join_prompts_in_trls_format(chat_model, tmp_path):
    path, _ = prompts_in_trl_format(tmp_path / "trl.jsonl", 2)
    write_questions(tmp_path / "solved.jsonl", questions_of_example(1))
    given = f"--model {chat_model} --data {path} --eval_data {held_out(tmp_path)} --anchors {tmp_path}/solved.jsonl"
    trainer = trainer_of(tmp_path / "out", given)
    assert [len(trainer.solutions.available(question)) for question in trainer.questions] == [1, 0]


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
