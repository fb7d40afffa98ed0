"""Hub sets: by name, configuration and split, and the optional package, which a stand-in plays here."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest

import questions
from questions import DataError


def test_a_hub_set_without_the_package_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install datasets"):
        questions.read_questions(["openai/gsm8k:train"])


@pytest.mark.parametrize(
    ("source", "configurations", "loaded"),
    [
        ("openai/gsm8k:test", ["socratic", "main"], ("openai/gsm8k", "main", "test")),
        ("some/set", ["all"], ("some/set", "all", "train")),
        ("openai/gsm8k/socratic:test", ["socratic", "main"], ("openai/gsm8k", "socratic", "test")),
        ("some/set/algebra", ["algebra", "zoology"], ("some/set", "algebra", "train")),
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    found = questions.read_questions([source])
    assert calls == [loaded]
    assert (found[0]["problem"], found[0]["answer"], found[0]["where"]) == ("1+1?", "2", f"{source}:1")


@pytest.mark.parametrize("source", ["some/set", "some/set:train", "some/set/botany"])
def test_of_several_configurations_of_a_hub_set_none_is_taken_in_silence(monkeypatch, source):
    """The first one of hendrycks_math is a seventh of it."""
    package = types.ModuleType("datasets")
    package.get_dataset_config_names = lambda name: ["algebra", "zoology"]
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(DataError, match="name one of some/set/algebra, some/set/zoology"):
        questions.read_questions([source])
