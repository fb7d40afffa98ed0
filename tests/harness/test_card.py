"""The model card: what the Hub can read of it, what a reader learns, and that no text of a user becomes markup."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import metadata_load

import dagrpo
from harness import card
from harness.checkpoint import records_of
from harness.config import EXAMPLE, Config, configure
from rollout import render_prompt, turns_of

RESULT = {"questions": 4, "accuracy": 0.25, "interval": [0.1, 0.4], "length": 9.5}
BEFORE = {"step": 0, **RESULT, "levels": {"easy": {"accuracy": 0.5, "questions": 2}}}
AFTER = {"step": 4, **RESULT, "accuracy": 0.75, "levels": {"easy": {"accuracy": 1.0, "questions": 2}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the embedded model over two checkpoints."""
    out = tmp_path_factory.mktemp("card") / "run"
    dagrpo.train(configure(
        out=str(out), steps=2, questions=2, group_size=4, max_new_tokens=30, save_every=1, keep=2, eval_samples=1,
        eval_every=0, data=[str(EXAMPLE / "train.jsonl")], model=str(EXAMPLE), hold_out=6, learning_rate=1e-4,
    ))  # fmt: skip
    return out


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The Hub cannot be asked, and nothing is remembered of an answer."""

    def unreachable(*_, **__):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    card.base_of.cache_clear()


def metadata_of(text, folder):
    """What the Hub's own library reads of a card."""
    (folder / "README.md").write_text(text, encoding="utf-8")
    return metadata_load(folder / "README.md")


def of(tmp_path, config, evaluations=(), step=4, **saved):
    text = card.model_card(config, list(evaluations), step, card.Saved(**saved))
    return text, metadata_of(text, tmp_path)


# --- a real run ---------------------------------------------------------------------------------------------------


def test_every_checkpoint_and_the_model_of_a_run_have_a_card_that_the_hub_reads(run):
    cards = [run / "checkpoints" / f"step-{step}" / "model" / "README.md" for step in (1, 2)]
    for path in (*cards, run / "model" / "README.md"):
        metadata = metadata_load(path)
        assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "text-generation"
        assert metadata["license"] == "apache-2.0", "the embedded model's own card says so"
        assert "dagrpo" in metadata["tags"] and "base_model" not in metadata, "it is not on the Hub"
    assert cards[1].read_bytes() == (run / "model" / "README.md").read_bytes() != cards[0].read_bytes()


def test_the_card_has_the_held_out_figures_of_before_and_after_with_their_intervals(run):
    """The last evaluation is made after its checkpoint: the card is written again then."""
    before, after = records_of(run / "evaluations.jsonl")
    text = (run / "model" / "README.md").read_text()
    (row,) = re.findall(r"^\| accuracy .*$", text, re.MULTILINE)
    expected = [
        f"{100 * record['accuracy']:.1f} % ({100 * record['interval'][0]:.1f} to {100 * record['interval'][1]:.1f})"
        for record in (before, after)
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["accuracy", "6", *expected]
    assert "| before | after step 2 |" in text
    of_first = (run / "checkpoints" / "step-1" / "model" / "README.md").read_text()
    assert "| before |" in of_first and "after step 2" not in of_first, "a later evaluation is not of this model"


def test_the_card_names_what_was_set_and_no_folder_of_this_machine(run):
    text = (run / "model" / "README.md").read_text()
    assert "| `--learning-rate` | `0.0001` |" in text and "| `--questions` | `2` |" in text
    assert "`--temperature`" not in text, "it is the default"
    assert "`train.jsonl`" in text and "`arithmetic`" in text
    assert str(EXAMPLE.parent) not in text and str(run) not in text


def test_the_snippet_of_the_card_asks_the_model(run, capsys):
    text = (run / "model" / "README.md").read_text()
    snippet = text.split("The prompt is that of training:\n\n")[1].split("\n\nTo measure")[0]
    torch.manual_seed(0)
    exec(re.sub(r"^    ", "", snippet, flags=re.MULTILINE).replace('"..."', '"Let x = 7, add 5. Find x."'),
         {"MODEL": str(run / "model")})  # fmt: skip
    assert "\\boxed" in capsys.readouterr().out


# --- texts of flags and data ----------------------------------------------------------------------------------------

HOSTILE = [
    'x\n---\nlicense: gpl"\\',
    "`|` ``code`` \\\\| pipe",
    "<script>alert(1)</script>",
    "\x85\u2028\ufeff\u202e é 😀",
    "  ",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_flag_or_of_data_breaks_front_matter_or_tables(tmp_path, text):
    def made(value):
        config = Config(model=value, data=[value], system=value, reward=[f"{value}.py:f=0.5"], right_at=1.0)
        levels = {value: {"accuracy": 0.5, "questions": 2}}
        return of(tmp_path, config, [{**BEFORE, "levels": levels}, {**AFTER, "levels": levels}], has_template=True)

    (plain, expected), (hostile, metadata) = made("a b"), made(text)
    assert metadata == expected
    cells = [[line.count("|") for line in each.split("\n") if line[:1] == "|"] for each in (plain, hostile)]
    assert cells[0] == cells[1], "as many rows, and as many cells in each"
    assert [line[:2] for line in plain.split("\n")] == [line[:2] for line in hostile.split("\n")]


def test_quoted_texts_are_read_by_yaml_as_they_were_written(tmp_path):
    import yaml

    for text in (*HOSTILE, "yes", "1e3", "- a", "{b: c}", "# no comment", "'"):
        assert yaml.safe_load(f"key: {card.quoted(text)}") == {"key": text}


def test_code_spans_hold_backticks_of_any_number():
    assert card.code("plain") == "`plain`"
    assert card.code("a `b` ``c``") == "``` a `b` ``c`` ```"
    assert card.code("a|b\n", in_table=True) == r"<code>a&#124;b&#92;n</code>"


# --- the base model -------------------------------------------------------------------------------------------------


def test_a_hub_name_is_the_base_model_and_hub_sets_are_the_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "hub_metadata", lambda name: {"license": "other", "license_name": "qwen", "x": "y"})
    config = Config(model="Qwen/some-model", data=["openai/gsm8k/main:train", "missing.jsonl"])
    text, metadata = of(tmp_path, config)
    assert metadata["base_model"] == "Qwen/some-model" and metadata["datasets"] == ["openai/gsm8k"]
    assert metadata["license"] == "other" and metadata["license_name"] == "qwen" and "x" not in metadata
    assert "- Base model: `Qwen/some-model`, licence `qwen`" in text


def test_a_part_of_a_folder_is_no_hub_set_and_stands_without_the_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "saved").mkdir(parents=True)
    text, metadata = of(tmp_path, Config(model="m", data=["mine/saved:train"]))
    assert "datasets" not in metadata and "- Trained on: `saved:train`" in text


def test_without_the_hub_the_licence_is_told_to_be_unknown(tmp_path):
    text, metadata = of(tmp_path, Config(model="owner/never-seen", data=["d.jsonl"]))
    assert metadata["base_model"] == "owner/never-seen" and "license" not in metadata
    assert "whose licence is not known here" in text


def test_a_folder_of_the_hubs_cache_is_known_by_its_name_there(tmp_path):
    folder = tmp_path / "models--owner--some-model" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: other/thing\n---\n")
    assert card.base_of(str(folder)) == card.Base("0123", "owner/some-model", {"license": "mit"})


def test_a_model_of_a_run_names_the_model_that_run_began_with(tmp_path):
    folder = tmp_path / "first" / "model"
    folder.mkdir(parents=True)
    config = Config(model="owner/some-model", data=["d.jsonl"])
    (folder / "README.md").write_text(card.model_card(config, [], 3, card.Saved()))
    text, metadata = of(tmp_path, Config(model=str(folder), data=["d.jsonl"]))
    assert metadata["base_model"] == "owner/some-model"
    assert "`first/model`" in text and "it goes back to `owner/some-model`" in text


@pytest.mark.parametrize(
    "content", ["---\nlicense: [\n---\n", "no front matter", "---\n- a list\n---\n", "---\nlicense: 3\n---"]
)
def test_a_base_card_that_cannot_be_read_says_nothing_and_stops_nothing(tmp_path, content):
    (tmp_path / "README.md").write_text(content)
    assert card.base_of(str(tmp_path)) == card.Base(tmp_path.name)


def test_a_gguf_file_tells_its_licence(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "some.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    assert card.base_of(str(tmp_path / "some.gguf")) == card.Base("some.gguf", "", {"license": "apache-2.0"})
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert card.base_of(str(tmp_path / "broken.gguf")) == card.Base("broken.gguf")


# --- what is not there ----------------------------------------------------------------------------------------------


def test_a_reward_of_ones_own_is_named_and_measured_by_its_mean(tmp_path):
    config = Config(model="a", data=["d.jsonl"], reward=["length.py:short"], anchors=None)
    records = [{"step": step, "questions": 4, "reward": -1.5 + step, "reward_interval": [-2, -1]} for step in (0, 1)]
    text, _ = of(tmp_path, config, records)
    assert "- Reward: `length.py:short`" in text and "| reward | 4 | -1.5 (-2 to -1) | -0.5 (-2 to -1) |" in text
    assert "Verified solutions" not in text


def test_the_card_of_a_step_has_no_figure_of_a_later_one(tmp_path):
    """A resumed run writes the card of a step again, and its log may know more."""
    text, _ = of(tmp_path, Config(model="a", data=["d.jsonl"]), [BEFORE, AFTER], step=3)
    assert "25.0 % (10.0 to 40.0)" in text and "75.0 %" not in text


def test_what_a_method_stands_for_is_not_listed_as_set(tmp_path):
    text, metadata = of(tmp_path, configure(model="a", data=["d.jsonl"], method="grpo", gamma=0.1))
    assert "`--gamma`" in text and "`--rectify`" not in text and "`--loss-norm`" not in text
    assert "grpo" in metadata["tags"] and "after 4 steps of grpo" in text


def test_what_was_not_measured_is_not_stated(tmp_path):
    text, _ = of(tmp_path, Config(model="a", data=["d.jsonl"]))
    assert "## Held-out questions\n\nNot measured." in text
    text, _ = of(tmp_path, Config(model="a", data=["d.jsonl"]), [AFTER])
    assert "| before |" not in text and "| after step 4 |" in text


SOLVED = {"problem": "2+2?", "answer": "4", "solution": "It is \\boxed{4}."}


@pytest.fixture
def asked_otherwise(tmp_path):
    """A run with a prompt of its own, a solved example, and arguments of the chat template."""
    (tmp_path / "prompt.txt").write_text("Solve {problem}\n{choices}Now!")
    (tmp_path / "examples.jsonl").write_text(json.dumps(SOLVED) + "\n")
    return Config(
        model="a", data=["d.jsonl"], prompt_file=str(tmp_path / "prompt.txt"),
        examples=str(tmp_path / "examples.jsonl"), template_arg=["lang=en"],
    )  # fmt: skip


def test_a_template_gets_the_turns_of_training(tmp_path, asked_otherwise):
    for config in (Config(model="a", data=["d.jsonl"], system='be "brief"', enable_thinking=False), asked_otherwise):
        text, _ = of(tmp_path, config, has_template=True)
        made = text.split("turns = [")[1].split("]\n")[0]
        turns = eval(f"[{made}]", {"problem": "1+1?"})
        assert turns == turns_of("1+1?", None, config.prompt_style)
        assert ("{'enable_thinking': False}" in text) != ("{'lang': 'en'}" in text)


def test_without_a_template_the_prompt_is_the_text_of_training(tmp_path, asked_otherwise):
    for config in (Config(model="a", data=["d.jsonl"]), dataclasses.replace(asked_otherwise, template_arg=[])):
        text, _ = of(tmp_path, config)
        (made,) = re.findall(r"^    prompt = (.*)$", text, re.MULTILINE)
        plain = SimpleNamespace(chat_template=None)
        assert eval(made, {"problem": "1+1?"}) == render_prompt(plain, "1+1?", None, config.prompt_style)


def test_what_files_of_the_prompt_say_is_in_the_snippet_and_in_no_setting(tmp_path, asked_otherwise):
    text, _ = of(tmp_path, asked_otherwise)
    assert "| `--prompt-file` | `prompt.txt` |" in text and "--prompt-contents" not in text


def test_an_adapter_says_that_it_is_one(tmp_path):
    pytest.importorskip("peft")
    for merge in (False, True):
        out = tmp_path / f"merge-{merge}"
        dagrpo.train(configure(
            out=str(out), steps=1, questions=2, group_size=2, max_new_tokens=8, eval_samples=1, hold_out=2, lora=2,
            merge=merge, data=[str(EXAMPLE / "train.jsonl")], model=str(EXAMPLE),
        ))  # fmt: skip
        metadata, checkpoint = metadata_load(out / "model" / "README.md"), out / "checkpoints" / "step-1"
        assert metadata["library_name"] == ("transformers" if merge else "peft")
        assert metadata_load(checkpoint / "model" / "README.md")["library_name"] == "peft"
        assert (checkpoint / "merged" / "README.md").exists() == merge
        text = (out / "model" / "README.md").read_text()
        assert ("It is an adapter" in text) != merge and "| `--lora` | `2` |" in text
