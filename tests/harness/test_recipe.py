"""Recipes: what a file of settings gives, what goes before it, what is refused, and the recipes of the project."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from harness.config import EXAMPLE, Config, ConfigError, configure, not_defaults, parse

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_flags_go_before_a_recipe_and_a_recipe_before_its_method(recipe):
    file = recipe('method = "dapo"\nclip-high = 0.5\nsteps = 7\nmax_new_tokens = 32\n')
    config = configure(**parse(["--recipe", file, "--steps", "9"]))
    assert (config.method, config.updates, config.clip_high) == ("dapo", 4, 0.5)  # dapo has 4 and 0.28
    assert (config.steps, config.max_new_tokens) == (9, 32)
    assert configure(recipe=file, method="grpo").updates == 1  # of another method nothing is left


def test_the_program_says_what_comes_from_the_recipe(recipe):
    file = recipe("steps = 7\ngroup-size = 4\n")
    said = not_defaults({"recipe": file, "steps": 9})
    by_recipe, by_flags = " ".join(said.split("--recipe")[1].split()).split("flags:")
    assert "group_size 4" in by_recipe and "steps" not in by_recipe  # the flag's 9 counts
    assert "steps 9" in by_flags


def test_lists_may_be_single_names_and_none_is_a_word(recipe):
    config = configure(recipe=recipe('model = "m"\ndata = "a.jsonl"\nanchors = "none"\nclip-low = "none"\n'))
    assert (config.data, config.anchors, config.clip_low) == (["a.jsonl"], None, None)
    config = configure(recipe=recipe('model = "m"\ndata = ["a.jsonl", "b.jsonl"]\nlearning-rate = 1\n'))
    assert config.data == ["a.jsonl", "b.jsonl"] and config.learning_rate == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 7", "there is no setting stepz. Did you mean steps?"),
        ("resume = 'run'", "there is no setting resume. `python dagrpo.py --help` lists them all."),
        ("steps = 7.5", "steps = 7.5: it must be a whole number."),
        ("steps = true", "steps = True: it must be a whole number."),
        ("learning-rate = 'fast'", "learning-rate = 'fast': it must be a number."),
        ("checkpointing = 1", "checkpointing = 1: it must be true or false."),
        ("data = [1]", "data = [1]: it must be text in quotes, or a list of such."),
        ("system = 1", "system = 1: it must be text in quotes."),
        ("clip-low = 'no'", "clip-low = 'no': it must be a number, or \"none\"."),
        ("anchors = 1", 'anchors = 1: it must be text in quotes, or "none".'),
        ("group-size = 4\ngroup_size = 8", "group-size is given twice"),
        ("steps 7", "it is not TOML"),
        ("group-size = 1", "--group-size 1: it must be at least 2"),
        ('data = "a.jsonl"', "--data a.jsonl without --model"),
        (
            'model = "m"\ndata = "a"\neval-data = "b"\nhold-out = 3',
            "--hold-out 3: with --eval-data",
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(recipe, text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        configure(recipe=recipe(text))


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--recipe .*/none.toml: it cannot be read \(No such file"):
        configure(recipe=str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not TOML"):
        configure(recipe=str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_a_valid_run_whose_settings_have_an_effect(path):
    given = {"recipe": str(path)}
    if "data" not in tomllib.loads(path.read_text()) and path.stem != "embedded":
        given["data"] = ["questions.jsonl"]  # the file says where the user gives them
        assert "--data" in path.read_text()
    configure(**given)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_how_to_run_it_and_what_to_expect(path):
    text = path.read_text()
    assert f"python dagrpo.py --recipe recipes/{path.name}" in text or "python dagrpo.py --recipe my.toml" in text
    assert "# Expect" in text
    assert path.name in (path.parent / "README.md").read_text()


def test_the_recipe_of_the_example_is_its_run():
    example = json.loads((EXAMPLE / "run.json").read_text())
    embedded = tomllib.loads((RECIPES[0].parent / "embedded.toml").read_text())
    assert {key.replace("-", "_"): value for key, value in embedded.items()} == {
        key: value for key, value in example.items() if key not in ("model", "data", "eval_data")
    }


def test_every_setting_but_those_of_one_command_can_stand_in_a_recipe(recipe):
    from harness.config import flags_of
    from harness.recipe import EXPECTED, NOT_IN_A_RECIPE

    kinds = {item.type.removesuffix(" | None") for item in flags_of(Config) if item.name not in NOT_IN_A_RECIPE}
    assert kinds <= EXPECTED.keys()
