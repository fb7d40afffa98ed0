"""What settings may be: errors that name the flag and what is allowed, and no error at the edge of it."""

from __future__ import annotations

import re

import pytest
import torch

import dagrpo
import rollout
from harness.config import METHODS, Config, ConfigError, check_effects, configure
from harness.limits import check_url
from scoring import SCORERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--group-sise 4", "--group-sise: there is no such flag. Did you mean --group-size?"),
        ("--wombat", "--wombat: there is no such flag."),
        ("--threshold 1.5", "--threshold 1.5: it must be a number of at least 0 and at most 1."),
        ("--threshold most", "--threshold most: it must be"),
        ("--threshold none", "--threshold none: it must be"),
        ("--steps 2.5", "--steps 2.5: it must be a whole number of at least 1."),
        ("--steps nan", "--steps nan: it must be a whole number"),
        ("--learning-rate -1", "--learning-rate -1.0: it must be a number of at least 0."),
        ("--temperature 0", "--temperature 0.0: it must be a number above 0."),
        ("--clip-high off", "--clip-high off: it must be a number of at least 0, or the word none."),
        (
            "--scorer judgement",
            f"--scorer judgement: it must be one of {', '.join(SCORERS)}, judge, or file.py:function.",
        ),
        ("--scorer mine.py", f"--scorer mine.py: it must be one of {', '.join(SCORERS)}, judge, or file.py:function."),
        ("--scorer mine.py:f", "--scorer mine.py:f: it must be file.py:function, and there is no file"),
        ("--scorer mine.py:f --rectify pair", "--rectify pair: rule (5) compares gradients, so --scorer gradient or"),
        ("--scorer mine.py:f --rectify none", "--scorer mine.py:f: with --rectify none no pair is compared by it"),
        ("--scorer judge", "--judge-model is missing: --scorer judge needs one"),
        ("--scorer judge --judge-url http://h/v1", "--judge-model is missing"),
        (
            "--scorer judge --judge-model gpt",
            "--judge-model gpt: there is no such directory. A model of an endpoint: add",
        ),
        ("--scorer judge --judge-model gpt --judge-url h:1/v1", "--judge-url h:1/v1: it must be an address such as"),
        ("--scorer judge --judge-model gpt --judge-url http:///v1", "--judge-url http:///v1: it must be an address"),
        (
            "--scorer judge --judge-model g --judge-url https://me:pw@h/v1",
            "--judge-url: it must have no user, password",
        ),
        ("--scorer judge --judge-model g --judge-url http://[::1/v1", "--judge-url: it must be an address such as"),
        ("--scorer judge --judge-model g --judge-url http://me:pw@h:99999/v1", "--judge-url: it must be an address"),
        (
            "--scorer judge --judge-model g --judge-url http://h:0/v1",
            "--judge-url http://h:0/v1: it must be an address",
        ),
        (
            "--scorer judge --judge-model g --judge-url https://h/v1?key=pw",
            "--judge-url: it must have no user, password",
        ),
        ("--scorer judge --judge-model gpt --method grpo", "--scorer judge: with --rectify none no pair is compared"),
        ("--scorer judge --judge-model gpt --rectify token", "--rectify token: rule (5) compares gradients"),
        ("--judge-model gpt", "--judge-model gpt: without --scorer judge nothing is asked; leave it out, or add that."),
        ("--judge-calls 3 --scorer token", "--judge-calls 3: without --scorer judge nothing is asked"),
        ("--judge-timeout 0", "--judge-timeout 0.0: it must be a number above 0."),
        ("--judge-calls 0", "--judge-calls 0: it must be a whole number of at least 1."),
        ("--method ppo", f"--method ppo: it must be one of {', '.join(METHODS)}."),
        (
            "--negative-weight 0.5 --rectify group",
            "--negative-weight 0.5: --rectify group adds up what every completion does with its whole weight",
        ),
        ("--negative-weight 2", "--negative-weight 2.0: it must be a number of at least 0 and at most 1."),
        (
            "--negative-weight 0 --method sft",
            "--negative-weight 0.0: without rollouts (--method sft) a group has no pair",
        ),
        ("--rectify pair --scorer token", "--rectify pair: rule (5) compares gradients, so --scorer gradient or state"),
        ("--rectify token --scorer token", "--rectify token: rule (5) compares gradients"),
        ("--rectify token --threshold 0.3", "--threshold 0.3: with --rectify token nothing is compared with it"),
        ("--rectify word", "--rectify word: it must be one of none, threshold, pair, group, batch, token."),
        ("--rectify pair --threshold 0.3", "--threshold 0.3: with --rectify pair nothing is compared with it"),
        ("--threshold 0.5 --method grpo", "--threshold 0.5: with --rectify none nothing is compared with it"),
        ("--group-size 1", "--group-size 1: it must be at least 2"),
        (
            "--method sft --anchors none",
            "--anchors none: without rollouts (--method sft) there is nothing else to train on",
        ),
        ("--method luffy --anchors none", "--anchors none: with an anchor in every group"),
        ("--method luffy --anchors-per-group 8", "--anchors-per-group 8: it must be less than --group-size."),
        ("--updates 30", "--updates 30: it must be at most --questions (24)."),
        ("--device cuda:9", "--device cuda:9: PyTorch finds no GPU here"),
        ("--model m", "--data is missing"),
        ("--reward nowhere.py:f --right-at 1", "--reward nowhere.py:f: it must be file.py:function"),
        ("--reward mine.py:f", "--right-at is missing: with --reward, an anchor is a solution that earns at least"),
        ("--right-at 1", "--right-at 1.0: the verifier gives 1 for right and 0 for wrong"),
        ("--right-at much --reward mine.py:f", "--right-at much: it must be a number."),
        ("--method sft --group-size 4", "--group-size 4: without rollouts each group is one anchor"),
        ("--method sft --top-p 0.9", "--top-p 0.9: without rollouts (--method sft) nothing is sampled"),
        ("--method sft --resample 2", "--resample 2: without rollouts (--method sft) nothing is sampled"),
        ("--method sft --scale none", "--scale none: without rollouts (--method sft) a group has no pair to compare"),
        ("--method grpo --gamma 0.1", "--gamma 0.1: without anchors nothing of theirs counts; leave it out."),
        ("--scorer token --metric gradient", "--metric gradient: without --scorer gradient or state no gradients are"),
        ("--method luffy --hard-below 0.5", "--hard-below 0.5: with --every-group anchors join every group"),
        ("--anchor-objective sft --gamma 0.1", "--gamma 0.1: with --anchor-objective sft anchors have no f(π)"),
        ("--clip-high 0.3", "--clip-high 0.3: with one update of each batch every ratio is 1 and no clip acts; add"),
        ("--compile all --device cpu", "--compile all: on a CPU nothing is compiled; leave it out."),
        ("--steps abc --steps 1", "--steps: it is given twice"),
        ("--model m --data d --eval-data e --hold-out 3", "--hold-out 3: with --eval-data nothing is held out"),
        ("--method sft --kl 0.1", "--kl 0.1: it is estimated on sampled completions"),
        ("--method sft --temperature 0.7", "--temperature 0.7: without rollouts nothing is sampled"),
        (
            "--anchors nowhere.jsonl",
            "--anchors nowhere.jsonl: it must be data, none, or a file of solutions that exists.",
        ),
        ("--model m --data nowhere.jsonl", "--data nowhere.jsonl: there is no such file."),
        ("--data d.jsonl", "--data d.jsonl without --model: which model is to learn from it? A language model: add"),
    ],
)
def test_a_wrong_flag_stops_at_once_and_says_what_is_allowed(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(rollout, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stop:
        dagrpo.main(arguments.split())
    assert str(stop.value).startswith(f"dagrpo.py: {message}")


def test_a_flag_with_the_value_that_it_has_anyway_is_no_mistake():
    """A script that gives every flag to every method."""
    for method in METHODS:
        flags = {name: value for name, value in METHODS[method].items() if name != "group_size"}
        flags |= {"method": method, "gamma": METHODS[method].get("gamma", 0.03), "resample": flags.get("resample", 0)}
        check_effects(configure(model="m", data=["d"], **flags), flags)


def test_what_stands_at_the_edge_of_what_is_allowed_is_allowed():
    edges = {"threshold": 1.0, "hard_below": 1.0, "top_p": 1.0, "updates": 4, "questions": 4, "learning_rate": 0.0}
    config = configure(model="m", data=["d"], **edges)
    assert all(getattr(config, name) == value for name, value in edges.items())
    assert configure(model="m", data=["d"], method="luffy", group_size=4, anchors_per_group=3).group_size == 4
    with pytest.raises(ConfigError, match="--anchors-per-group 4: it must be less"):
        configure(model="m", data=["d"], method="luffy", group_size=4, anchors_per_group=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.1", None])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match=r"--gamma .*: it must be a number above 0"):
        configure(model="m", data=["d"], gamma=value)


@pytest.mark.parametrize(
    ("rate", "beta1", "refused"),
    [
        (3.4e37, 0.9, False),
        (3.5e37, 0.9, "--learning-rate 3.5e+37: it must be at most 3.4e+37: "),
        (1e38, 0.0, False),
        (1e37, 0.99, "--learning-rate 1e+37: it must be at most 3.4e+36: "),
    ],
)
def test_a_rate_whose_first_step_fp32_cannot_hold_is_refused_and_no_other(rate, beta1, refused):
    """The bound is where PyTorch's AdamW raises."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight], lr=rate, betas=(beta1, 0.999), weight_decay=0.0)
    given = {"learning_rate": rate, "beta1": beta1, "weight_decay": 0.0}
    if not refused:
        Config(model="m", data=["d"], **given)
        optimizer.step()
    else:
        with pytest.raises(ConfigError, match=re.escape(refused)):
            Config(model="m", data=["d"], **given)
        with pytest.raises(RuntimeError, match="overflow"):
            optimizer.step()


def test_no_step_takes_more_from_a_weight_than_there_is():
    """By decay AdamW multiplies a weight by 1 − rate · decay."""
    Config(model="m", data=["d"], learning_rate=100.0, weight_decay=0.01)
    with pytest.raises(ConfigError, match=r"--learning-rate 0\.0002 with --weight-decay 1e\+09: their product must"):
        Config(model="m", data=["d"], learning_rate=2e-4, weight_decay=1e9)


def test_an_address_with_a_space_is_no_address():
    with pytest.raises(ConfigError, match="--judge-url http://exa mple/v1: it must be an address"):
        check_url("http://exa mple/v1")
