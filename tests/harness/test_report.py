"""What a run writes and prints, by hand: metrics of groups and tokens, samples, lines, memory, seconds."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from conftest import small_rollouts

from harness import report
from harness.config import Config
from harness.estimate import Prompts
from harness.runs import Run
from scoring import Rectified, rectified_advantages

NAN = math.nan


@pytest.fixture
def rollouts(model, tokenizer):
    """Three groups of four completions; number 2 is an anchor."""
    made = small_rollouts(model, tokenizer)
    made.anchor_mask[2] = True
    return made


REWARDS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])


def rectified_of(rollouts, masked, d=None):
    """With pairs (group, i, j) masked, and a distinctiveness that is NaN unless it is given."""
    pair_mask = torch.ones(3, 4, 4, dtype=torch.bool)
    for p, i, j in masked:
        pair_mask[p, i, j] = pair_mask[p, j, i] = False
    d = torch.full((3, 4, 4), NAN) if d is None else d
    return Rectified(pair_mask, d, rectified_advantages(REWARDS, pair_mask), torch.zeros_like(rollouts.logps))


# --- metrics -----------------------------------------------------------------------------------------------------


def test_group_metrics_count_pairs_of_unequal_rewards_once(rollouts):
    """Of 4 + 0 + 3 such pairs two are masked; a masked pair of equal rewards does not count."""
    masked = [(0, 0, 1), (0, 1, 2), (2, 0, 3)]
    trained = torch.arange(12) < 3
    metrics = report.group_metrics(REWARDS, rollouts, rectified_of(rollouts, masked), trained)
    assert metrics == {
        "no_signal": pytest.approx(1 / 3),
        "masked_pairs": pytest.approx(2 / 7),
        "trained_sequences": pytest.approx(1 / 4),
        "masked_tokens": 0.0,
    }


def test_distinctiveness_is_that_of_pairs_of_unequal_rewards(rollouts):
    """0.1, 0.2, ..., 0.7 for the seven pairs, 0 or 1 for all others: mean and median are 0.4."""
    d = torch.zeros(3, 4, 4)
    d[0, 1, 2] = d[0, 0, 3] = 1.0
    differ = [(0, 0, 1), (0, 0, 2), (0, 1, 3), (0, 2, 3), (2, 0, 1), (2, 0, 2), (2, 0, 3)]
    for number, (p, i, j) in enumerate(differ, start=1):
        d[p, i, j] = number / 10
    d[1] = NAN
    metrics = report.group_metrics(REWARDS, rollouts, rectified_of(rollouts, [], d), torch.ones(12, dtype=torch.bool))
    found = [metrics[f"distinctiveness/{name}"] for name in ("mean", "p10", "p50", "p90")]
    assert found == pytest.approx([0.4, 0.16, 0.4, 0.64])


def test_masked_tokens_are_a_share_of_the_completions_tokens(rollouts):
    rectified = rectified_of(rollouts, [])
    rectified.withheld[0, rollouts.prediction_mask[0].nonzero()[0]] = 0.5
    rectified.withheld[1, rollouts.prediction_mask[1].nonzero()[0]] = -0.5
    metrics = report.group_metrics(REWARDS, rollouts, rectified, torch.ones(12, dtype=torch.bool))
    assert metrics["masked_tokens"] == pytest.approx(2 / int(rollouts.lengths.sum()))


def test_a_group_is_without_signal_where_all_its_advantages_are_0(rollouts):
    """In group 2 two pairs of three are masked: completions 1 and 2 have advantage 0, the others have not."""
    rectified = rectified_of(rollouts, [(2, 0, 1), (2, 0, 2)])
    assert (rectified.advantages[2] == 0).tolist() == [False, True, True, False]
    metrics = report.group_metrics(REWARDS, rollouts, rectified, torch.ones(12, dtype=torch.bool))
    assert metrics["no_signal"] == pytest.approx(1 / 3)


SUMS = {
    "loss": 3.0, "grad_norm": 2.0, "tokens": 40.0, "policy_tokens": 30.0, "anchor_tokens": 10.0, "entropy": 60.0,
    "kl": 8.0, "clip_low": 3.0, "clip_high": 6.0, "sampler_gap": 1.5, "model_tokens": 45.0, "padded_tokens": 60.0,
    "anchor_prob": 4.0, "updates": 1.0, "learning_rate": 1e-5, "bad_updates": 0.0,
}  # fmt: skip


def test_token_metrics_are_means_over_the_tokens_that_they_are_of():
    expected = {
        "loss": 3.0, "grad_norm": 2.0, "entropy": 1.5, "kl": 8 / 30, "clip_low": 0.1, "clip_high": 0.2,
        "sampler_gap": 0.05, "padding": 0.25, "anchor_prob": 0.4, "learning_rate": 1e-5, "bad_updates": 0,
    }  # fmt: skip
    assert report.token_metrics(SUMS, 1) == pytest.approx(expected)


def test_token_metrics_of_several_updates_have_the_mean_loss_and_no_gap_to_the_sampler():
    metrics = report.token_metrics({**SUMS, "updates": 2.0}, 3)  # the third had nothing to learn
    assert metrics["loss"] == pytest.approx(1.5) and "sampler_gap" not in metrics


def test_token_metrics_of_a_step_on_nothing_are_0():
    metrics = report.token_metrics({}, 1)
    names = {"loss", "grad_norm", "bad_updates", "learning_rate", "entropy", "kl", "clip_low", "clip_high"}
    assert set(metrics) == names and not any(metrics.values())


def test_tokens_per_second_are_of_the_part_that_made_them():
    metrics = report.clock_metrics({"rollout": 2.0, "train": 4.0}, 100, {"tokens": 20.0})
    assert metrics == {
        "seconds/rollout": 2.0, "seconds/train": 4.0, "tokens_per_s/rollout": 50.0, "tokens_per_s/train": 5.0,
    }  # fmt: skip


def test_seconds_of_several_rounds_add_up(model, monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
    seconds = {}
    for _ in range(2):
        with report.timed(seconds, "rollout", model):
            pass
    assert seconds == {"rollout": 5.0}


# --- files and lines ---------------------------------------------------------------------------------------------


def test_lines_are_added_and_figures_that_are_no_number_are_null(tmp_path):
    """JSON has no word for NaN."""
    path = tmp_path / "metrics.jsonl"
    report.append_json(path, {"step": 1, "a": NAN, "b": 2.0})
    report.append_json(path, {"step": 2, "a": 0.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "a": None, "b": 2.0},
        {"step": 2, "a": 0.0},
    ]


def samples(tmp_path, rollouts, rectified):
    path = tmp_path / "samples.jsonl"
    questions = [{"problem": f"q{p}", "answer": str(p)} for p in range(3)]
    report.write_samples(path, 7, questions, rollouts, REWARDS, rectified)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_are_the_group_with_most_masked_pairs_and_another_with_an_anchor(tmp_path, rollouts):
    """Group 1 has more masked pairs, but of equal rewards: they would say nothing."""
    masked = [(2, 0, 1), (2, 0, 3), (2, 1, 2), (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 2)]
    first, second = samples(tmp_path, rollouts, rectified_of(rollouts, masked))
    assert (first["problem"], second["problem"], first["step"]) == ("q2", "q0", 7)
    assert first["masked_pairs"] == [[1, 0], [3, 0]] and second["masked_pairs"] == []
    assert [answer["text"] for answer in first["answers"]] == rollouts.texts[8:]
    assert [answer["anchor"] for answer in second["answers"]] == [False, False, True, False]
    assert [answer["reward"] for answer in second["answers"]] == [1.0, 0.0, 0.0, 1.0]
    assert [answer["tokens"] for answer in first["answers"]] == rollouts.lengths[8:].tolist()
    assert first["distinctiveness"] is None


def test_a_group_with_most_masked_pairs_and_an_anchor_is_shown_once(tmp_path, rollouts):
    (only,) = samples(tmp_path, rollouts, rectified_of(rollouts, [(0, 0, 1)]))
    assert only["problem"] == "q0" and only["masked_pairs"] == [[1, 0]]


RECORD = {
    "step": 3, "reward": 0.25, "length/mean": 12.5, "no_signal": 0.5, "masked_pairs": 0.25, "anchored": 0.0,
    "trained_sequences": 0.75, "entropy": 1.0, "grad_norm": 0.5, "seconds/rollout": 1.0, "seconds/train": 2.5,
    "bad_updates": 0,
}  # fmt: skip


def test_the_line_of_a_step_fits_a_terminal_and_has_no_notes_where_all_is_well():
    assert report.step_line(RECORD, 10, 200.0) == " ".join(
        ["step  3/10 ", "reward 0.250 ", "length   12 ", "no signal  50% ", "masked  25% ", "eta 3m"]
    )
    assert report.step_line(RECORD, 3).endswith("masked  25%"), "nothing is left to wait for"
    longest = {
        **RECORD,
        "step": 1_500,
        "reward": -12345.678,
        "length/mean": 8192.0,
        "no_signal": 1.0,
        "masked_pairs": 1.0,
    }
    assert len(report.step_line({**longest, "reward": 0.5}, 2_000, 5_000.0)) <= 80
    assert len(report.step_line({**longest, "step": 150}, 200, 5_000.0)) <= 80


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0s"), (99, "99s"), (99.6, "2m"), (3_600, "60m"), (5_969, "99m"), (5_971, "2h"), (47 * 3_600, "47h"),
     (48 * 3_600, "2d"), (99 * 86_400, "99d")],
)  # fmt: skip
def test_a_time_is_three_characters_at_most(seconds, shown):
    assert report.span(seconds) == shown and len(shown) <= 3


def test_sentences_are_broken_at_spaces_within_80_columns():
    path = "x" * 100
    note = f"{'word ' * 30}--max-new-tokens {path}\n  an indented line\n\n" + "  1" * 40
    lines = report.wrapped(note).splitlines()
    assert [line for line in lines if len(line) > 80] == [f"  {path}"], "a path stays whole"
    assert lines[0] == ("word " * 16).rstrip() and all(line.startswith("  ") for line in lines[1:4])
    assert lines[4:6] == ["  an indented line", ""] and lines[7].startswith("    1")
    assert " ".join(report.wrapped(note).split()) == " ".join(note.split())


def test_what_somebody_should_look_at_gets_a_line_of_its_own():
    bad = {"bad_updates": 2, "bad_losses": 2, "bad_questions": ["a.jsonl:3", *"bcde"], "truncated": 0.5}
    lines = report.step_line({**RECORD, **bad, "trained_sequences": 0.0}, 10).splitlines()
    assert lines[1:] == [
        "     50% cut off at the limit: raise --max-new-tokens",
        "     2 updates skipped: their loss was not finite, on a.jsonl:3, b, c, d, ...",
        "     nothing to learn: in every group rewards are equal or all pairs masked",
    ]
    assert len(report.step_line({**RECORD, "truncated": 0.2}, 10).splitlines()) == 1


@pytest.mark.parametrize(
    ("updates", "losses", "said"),
    [
        (1, 0, "1 update skipped: its gradient was not finite, of a loss that was, on a.jsonl:3"),
        (1, 1, "1 update skipped: its loss was not finite, on a.jsonl:3"),
        (3, 1, "3 updates skipped: their gradient was not finite, nor the loss of 1, on a.jsonl:3"),
    ],
)
def test_a_skipped_update_says_whether_its_loss_was_a_number(updates, losses, said):
    bad = {"bad_updates": updates, "bad_losses": losses, "bad_questions": ["a.jsonl:3"]}
    assert " ".join(report.step_line({**RECORD, **bad}, 10).split()).endswith(said)


def test_there_are_no_bars_in_a_file(capsys):
    with report.progress("step 1", "token") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


# --- memory ------------------------------------------------------------------------------------------------------


def announced(model, tmp_path, monkeypatch, capsys, available=1e3, **flags):
    """What a run says at its start, and the arguments of its memory estimate."""
    asked = {}

    def estimate(model, config, **lengths):
        asked.update(lengths, config=config)
        return {"total": 2.0, "available": available}

    monkeypatch.setattr(report, "memory_estimate", estimate)
    config = Config(model="m", data=["d"], questions=3, group_size=4, **flags)
    report.announce(model, config, Run(tmp_path), Prompts(20), 5)
    return asked, capsys.readouterr().out


def test_the_estimate_is_of_the_settings_and_of_the_lengths(model, tmp_path, monkeypatch, capsys):
    asked, _ = announced(model, tmp_path, monkeypatch, capsys, kl=0.1)
    assert (asked["prompts"], asked["held_out"], asked["config"].kl) == (Prompts(20), 5, 0.1)


@pytest.mark.parametrize(("available", "too_much"), [(1.0, True), (3.0, False), (0.0, False)])
def test_too_little_memory_is_warned_of_where_it_is_known(model, tmp_path, monkeypatch, capsys, available, too_much):
    """0 stands for a system that does not tell."""
    _, said = announced(model, tmp_path, monkeypatch, capsys, available)
    assert ("That is too much" in said) == too_much
    assert "--top-p" not in said


def test_a_narrower_policy_is_warned_of(model, tmp_path, monkeypatch, capsys):
    assert "--top-p 0.9: " in announced(model, tmp_path, monkeypatch, capsys, top_p=0.9)[1]


def test_a_rate_above_the_size_of_the_weights_is_warned_of(model, tmp_path, monkeypatch, capsys):
    values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    size = values.abs().mean().item()
    for factor, warned in ((1.01, True), (0.99, False)):
        _, said = announced(model, tmp_path, monkeypatch, capsys, learning_rate=factor * size)
        assert (f"the weights are {size:.2g} on average" in " ".join(said.split())) == warned


@pytest.mark.parametrize(("seconds", "crowded"), [(0.012, True), (2e-5, False)])
def test_threads_that_wait_for_each_other_are_told_of_with_what_helps(
    model, tmp_path, monkeypatch, capsys, seconds, crowded
):
    ticks = itertools.count(0.0, seconds)
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(ticks))
    _, said = announced(model, tmp_path, monkeypatch, capsys)
    assert ("OMP_WAIT_POLICY=passive" in said) == crowded


def test_a_run_on_a_gpu_does_not_look_for_a_crowd(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(model), "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(report, "is_crowded", lambda: True)
    assert "OMP_WAIT_POLICY" not in announced(model, tmp_path, monkeypatch, capsys)[1]


def test_one_operation_that_was_interrupted_is_no_crowd(monkeypatch):
    ends = iter([time for n in range(31) for time in (n, n + (0.1 if n < 10 else 2e-5))])
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(ends))
    assert not report.is_crowded()


def test_figures_that_are_not_finite_become_null(tmp_path):
    """NaN and Infinity are no JSON: a strict reader stops at the line, and a figure left out looks like none."""
    path = tmp_path / "metrics.jsonl"
    report.append_json(path, {"loss": math.nan, "grad_norm": math.inf, "levels": {"1": [1.0, math.nan]}, "step": 1})
    line = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert line == {"loss": None, "grad_norm": None, "levels": {"1": [1.0, None]}, "step": 1}


def test_solve_rates_count_what_earns_as_much_as_is_right():
    rewards = torch.tensor([[0.1, 0.2], [0.6, 0.9], [0.1, 0.9]])
    assert report.solve_metrics(rewards, 0.5) == pytest.approx({"solve_none": 1 / 3, "solve_all": 1 / 3})
    assert report.solve_metrics(rewards, math.inf) == {}, "what is not known is not logged"


def test_an_evaluation_is_told_in_percent_only_where_right_is_known():
    known = {"accuracy": 0.25, "interval": (0.2, 0.3), "reward": 1.5, "reward_interval": (1, 2), "length": 9.0}
    known |= {"levels": {"1": {"accuracy": 0.5, "reward": 2.5}}}
    assert report.evaluation_line(4, known, 1.0) == (
        "held out at step 4: 25.0% (20.0% to 30.0%)  length 9.0  1.0 s\n     by level: 1 = 50%"
    )
    unknown = {name: value for name, value in known.items() if name not in ("accuracy", "interval")}
    assert report.evaluation_line(4, unknown, 1.0) == (
        "held out at step 4: reward 1.5 (1 to 2)  length 9.0  1.0 s\n     by level: 1 = 2.5"
    )
