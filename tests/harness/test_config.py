"""Settings: the rows of the methods, where a setting comes from, and the command line."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import dagrpo
import rollout
from harness.command import shown
from harness.config import (
    EXAMPLE,
    Config,
    ConfigError,
    configure,
    flags_of,
    not_defaults,
    parse,
)
from scoring import SCORERS


def test_methods_are_the_rows_of_the_table():
    def cells(method):
        c = configure(model="m", data=["d"], method=method)
        return (c.rectify, c.anchors, c.every_group, c.scale, c.loss_norm, c.clip_low, c.clip_high, c.resample)

    assert cells("dagrpo") == ("threshold", "data", False, "std", "constant", 0.2, 0.2, 0)
    assert configure(model="m", data=["d"]).scorer == "gradient"
    assert cells("grpo") == ("none", None, False, "std", "token", 0.2, 0.2, 0)
    assert cells("dr_grpo") == ("none", None, False, "none", "constant", 0.2, 0.2, 0)
    assert cells("dapo") == ("none", None, False, "std", "token", 0.2, 0.28, 3)
    assert cells("luffy") == ("none", "data", True, "none", "constant", None, None, 0)
    assert configure(model="m", data=["d"], method="luffy").entropy_bonus == 0.001
    assert configure(model="m", data=["d"], method="luffy").updates == 2
    dapo = configure(model="m", data=["d"], method="dapo")
    assert (dapo.updates, dapo.overlong) == (4, 0.2), "with one update no clip acts"
    assert configure(model="m", data=["d"], method="luffy").gamma == 0.1  # of the paper
    assert configure(model="m", data=["d"], method="dagrpo").gamma == 0.03
    sft = configure(model="m", data=["d"], method="sft")
    assert (sft.anchor_objective, sft.loss_norm, sft.rollouts, sft.group_size) == ("sft", "token", False, 1)
    assert configure(model="m", data=["d"], rollouts=False, group_size=1).anchors == "data"  # a row, not a branch


def test_single_flags_override_the_method_and_the_example(tmp_path):
    assert configure(model="m", data=["d"], method="grpo", rectify="threshold", scorer="token").scorer == "token"
    assert configure(model="m", data=["d"], method="dapo", clip_high=0.5).clip_high == 0.5
    example = configure(steps=3)
    assert example.steps == 3 and example.model.startswith(str(EXAMPLE)) and example.data


def test_a_threshold_goes_with_its_scorer():
    config = configure(model="m", data=["d"])
    assert config.rectification.threshold == 0.35 and config.threshold is None
    assert replace(config, scorer="state").rectification.threshold == 0.2
    assert replace(config, scorer="token").rectification.threshold == 0.1
    assert replace(config, scorer="state", threshold=0.3).rectification.threshold == 0.3


def test_scores_of_a_judge_and_of_a_function_have_a_threshold_of_their_own():
    judge = {"scorer": "judge", "judge_model": "m"}  # the run's own model
    for flags in (judge, {"scorer": "some/where/mine.py:f"}):
        assert configure(model="m", data=["d"], **flags).rectification.threshold == 0.1
        assert configure(model="m", data=["d"], **flags, threshold=0.0).rectification.threshold == 0.0
    assert configure(model="m", data=["d"], **judge, judge_url="https://h:8/v1", judge_calls=2).judge_calls == 2


def test_what_rectification_has_to_know_of_the_loss():
    config = configure(model="m", data=["d"], loss_norm="sequence", gamma=0.2)
    assert config.rectification.per_token and config.rectification.gamma == 0.2
    plain = configure(model="m", data=["d"], loss_norm="token", anchor_objective="sft").rectification
    assert not plain.per_token and plain.gamma is None


def test_a_whole_number_is_asked_for_where_there_is_one():
    with pytest.raises(ConfigError, match=r"--steps 2\.5: it must be a whole number"):
        Config(steps=2.5)


def test_what_is_right_is_one_for_the_verifier_and_else_what_is_said():
    assert configure().right == 1.0
    custom = configure(reward="mine.py:f", right_at=-0.5)
    assert custom.right == -0.5
    assert configure(reward="mine.py:f", anchors=None).right == float("inf"), "nothing is known to be right"


def test_every_setting_that_is_not_a_default_is_shown_with_where_it_comes_from():
    shown = not_defaults({"method": "luffy", "steps": 3, "clip_high": 0.5, "seed": 0})
    lines = {line.split(":")[0].strip(): line for line in shown.replace("\n    ", " ").splitlines()[1:]}
    assert list(lines) == ["run.json", "--method luffy", "flags"]
    assert "learning_rate 0.0002" in lines["run.json"] and "steps" not in lines["run.json"]
    assert "clip_low none" in lines["--method luffy"] and "clip_high" not in lines["--method luffy"]
    assert lines["flags"].split(": ")[1] == "method luffy, steps 3, clip_high 0.5"  # 0 is the default seed
    assert not_defaults({"model": "m"}).endswith("flags: model m")


def test_the_example_by_name_has_the_settings_of_the_example():
    """Other questions for the embedded model: its run.json counts, and they are held out of themselves."""
    named = configure(model=str(EXAMPLE), data=["mine.jsonl"], seed=1)
    assert named.learning_rate == 2e-4 and named.data == ["mine.jsonl"] and named.eval_data == []
    assert configure(model=str(EXAMPLE)) == configure()
    assert configure(model="m", data=["d"]).learning_rate == 1e-6


def test_a_broken_anchor_line_stops_before_the_model_is_loaded(monkeypatch, tmp_path):
    anchor_file = tmp_path / "anchors.jsonl"
    anchor_file.write_text('{"problem": "1+2?"}\n')
    monkeypatch.setattr(rollout, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=r"anchors\.jsonl:1: the field `answer` is missing"):
        dagrpo.main(["--anchors", str(anchor_file)])


def test_a_broken_data_line_stops_before_the_model_is_loaded(monkeypatch, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?"}\n')
    monkeypatch.setattr(rollout, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=r"data\.jsonl:2: the field `answer` is missing"):
        dagrpo.main(["--model", "m", "--data", str(data)])


def test_help_gives_every_flag_its_reason(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for item in flags_of(Config):
        reason = " ".join(item.metadata["reason"].split())
        assert re.search(f"--{item.name.replace('_', '-')}[ ,]", shown) and reason in shown
    for heading in ("what:", "method:", "sampling:", "optimization:", "evaluation and checkpoints:"):
        assert heading in shown


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_threshold_of_0_is_a_threshold(scorer):
    """It masks no pair; only without the flag it is the scorer's."""
    assert configure(model="m", data=["d"], scorer=scorer, threshold=0.0).rectification.threshold == 0.0


def test_pairs_are_judged_at_the_temperature_of_sampling_and_scaled_as_asked():
    how = configure(model="m", data=["d"], temperature=0.7, scale="none", rectify="pair", scorer="state").rectification
    assert (how.temperature, how.scale, how.rule, how.scorer) == (0.7, "none", "pair", "state")


def test_the_method_wins_over_the_example():
    """Whose run.json has groups of several completions; sft has groups of one anchor."""
    assert configure().group_size > 1 and configure(method="sft").group_size == 1
    assert configure(method="sft", rollouts=True, group_size=5).group_size == 5


def test_a_flag_must_be_written_out():
    with pytest.raises(ConfigError, match="--group: there is no such flag"):
        parse(["--group", "4"])


def test_the_word_none_means_none_where_it_is_allowed():
    assert parse(["--clip-low", "none", "--anchors", "none"]) == {"clip_low": None, "anchors": None}
    assert shown(None) == "none" and shown(["a", "b"]) == "a b"


def test_lines_of_settings_leave_out_what_a_later_source_changes():
    shown_lines = not_defaults({"method": "luffy", "gamma": 0.5})
    assert shown_lines.count("gamma") == 1 and "gamma 0.5" in shown_lines
