"""The study of predictors: sums of products by hand, the parts of a real step, tables, and a tiny training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scorers.gradients import Measure
from scoring import pair_advantages
from study import predict
from study.cells import read_kept
from study.tasks import ROOT

TINY = ["--seeds", "3", "--steps", "0", "2", "--questions", "6", "--group-size", "6"]


def test_sums_by_unit_by_hand():
    """Two groups of two; the first completion of each is right, A = (1, −1)."""
    gram = torch.tensor([[4.0, 5.0, 1.0, 0.0], [5.0, 9.0, 0.0, 3.0], [1.0, 0.0, 2.0, -1.0], [0.0, 3.0, -1.0, 1.0]])
    pairs = pair_advantages(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), eps=0.0)
    found = {name: values[[0, 2]].tolist() for name, values in predict.sums_of(gram, pairs).items()}
    assert found == {
        "pair": [4 - 5, 2 + 1],  # K_ii − K_ij
        "group": [4 - 5, 2 + 1],
        "batch": [4 - 5 + 1 - 0, 2 + 1 + 1 - 0],
    }


def test_the_worst_pair_counts():
    gram = torch.tensor([[4.0, 1.0, 3.0], [1.0, 9.0, 0.0], [3.0, 0.0, 9.0]])
    found = predict.sums_of(gram, pair_advantages(torch.tensor([[1.0, 0.0, 0.0]])))
    assert found["pair"][0] == 1.0


def test_head_gradients_have_the_products_of_the_scorer(model, tokenizer):
    from conftest import small_rollouts

    import scoring

    rollouts = small_rollouts(model, tokenizer)
    found = predict.head_gradients(model, rollouts, Measure())
    gram = scoring.gradient_gram(model, *rollouts.tokens, 4)
    torch.testing.assert_close(found[4:8] @ found[4:8].T, gram[1], rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A tiny training, measured before its first and its third step."""
    file = tmp_path_factory.mktemp("predict") / "predict.jsonl"
    predict.main([*TINY, "--json", str(file)])
    return file, [json.loads(line) for line in file.read_text().splitlines()]


def test_the_step_as_taken_and_its_parts_explain_the_change(measured):
    """To first order: the parts of AdamW's formula add up to the step, but for weight decay, and both to the change."""
    _, lines = measured
    assert [line["steps"] for line in lines] == [0, 2]
    for line in lines:
        columns = {name: np.array(values) for name, values in line["columns"].items()}
        assert len(columns["change"]) > 3
        parts = columns["own group"] + columns["rest of the batch"] + columns["earlier batches"]
        np.testing.assert_allclose(parts, columns["the step as taken"], atol=2e-3, rtol=2e-2)
        assert np.corrcoef(parts, columns["change"])[0, 1] > 0.8
    assert not np.array(lines[0]["columns"]["earlier batches"]).any()
    assert np.array(lines[1]["columns"]["earlier batches"]).any()


def test_predictors_in_the_metric_of_adam_need_its_moments(measured):
    _, (first, later) = measured
    assert "full, SGD, batch" in first["columns"] and not any("AdamW" in name for name in first["columns"])
    for name in ("full, AdamW, batch and momentum", "gradient, AdamW, batch and momentum", "state, SGD, group"):
        assert len(later["columns"][name]) == len(later["columns"]["change"])


def test_what_is_kept_is_not_measured_again(measured, monkeypatch, capsys):
    file, _ = measured
    monkeypatch.setattr(predict, "measure_training", lambda *_: pytest.fail("measured again"))
    predict.main([*TINY, "--json", str(file)])
    printed = capsys.readouterr().out
    for other in (["--rate", "0.1"], ["--seeds", "4"], ["--steps", "0", "5"], ["--examples", "solved.jsonl"]):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            predict.main([*TINY, *other, "--json", str(file)])
    assert "| the step as taken |" in printed and "| full, AdamW, batch | – | – |" in printed


def test_other_settings_and_repeated_measurements_do_not_mix():
    """Of one model: two settings, and a line that was measured twice."""
    first = {"model": "m", "settings": {"rate": 0.1, "data": "ab"}, "seed": 1, "steps": 0, "columns": {"change": [1.0]}}
    again = {**first, "columns": {"change": [2.0]}}
    other = {**first, "settings": {"rate": 0.1, "data": "cd"}}
    assert predict.by_setting([first, again]) == {"m": [again]}
    found = predict.by_setting([first, other, again])
    assert found == {'m, {"data": "ab", "rate": 0.1}': [again], 'm, {"data": "cd", "rate": 0.1}': [other]}


def test_questions_and_the_run_of_a_model_are_part_of_what_is_kept(monkeypatch, tmp_path):
    """Each run's model is in a folder of the name `model`, and a file of questions can change."""
    monkeypatch.setattr(predict, "measure_training", lambda options, seed: [{"seed": seed, "steps": 0, "columns": {}}])
    monkeypatch.setattr(predict, "tables", lambda lines: "")
    file, data = tmp_path / "p.jsonl", tmp_path / "q.jsonl"
    for run in ("a", "b"):
        (tmp_path / run / "model").mkdir(parents=True)
    for text, run in (("1", "a"), ("1", "a"), ("2", "a"), ("2", "b")):
        data.write_text(text)
        model = str(tmp_path / run / "model")
        predict.main(["--model", model, "--data", str(data), "--seeds", "1", "--steps", "0", "--json", str(file)])
    assert [line["model"] for line in read_kept(file)] == ["a/model", "a/model", "b/model"]


@pytest.mark.filterwarnings("error")
def test_of_one_answer_no_share_of_the_variance_is_told():
    columns = {name: np.array([1.0]) for name in (*predict.PARTS[:-1], "change", "group")}
    *_, row = predict.part_table({0: columns}).splitlines()
    assert row.startswith("| 0 | 1 | 1 | 0% | +1.000 |") and row.count("–%") == len(predict.PARTS)


def test_the_commit_is_that_of_the_code_that_was_loaded(monkeypatch, tmp_path):
    called: list[str] = []
    monkeypatch.setattr(predict, "commit", lambda: called.append("commit") or "abc")
    monkeypatch.setattr(predict, "measure_training", lambda *_: called.append("measured") or [])
    with pytest.raises(SystemExit, match="nothing is kept"):
        predict.main([*TINY, "--json", str(tmp_path / "p.jsonl")])
    assert called == ["commit", "measured"]


def test_a_file_of_questions_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--model", "examples/arithmetic", "--data", "absent.jsonl"])
    assert "--data absent.jsonl: there is no such file." in capsys.readouterr().err


def test_another_model_is_asked_as_the_flags_say(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(predict, "measure_training", lambda options, seed: seen.append(options) or [])
    prompt, examples = tmp_path / "prompt.txt", ROOT / "study" / "words-examples.jsonl"
    prompt.write_text("{problem}")
    data = tmp_path / "x.jsonl"
    data.write_text("")
    asked = [*TINY, "--model", "examples/arithmetic", "--data", str(data), "--json", str(tmp_path / "p.jsonl")]
    with pytest.raises(SystemExit, match="nothing is kept"):
        predict.main([*asked, "--examples", str(examples), "--prompt-file", str(prompt)])
    config = predict.configuration(seen[0], 3, tmp_path)
    assert (config.examples, config.prompt_file, config.warmup) == (str(examples), str(prompt), 1)
    assert config.prompt_contents["template"] == "{problem}"


def test_tables_by_hand():
    """Four right answers in two groups, of which the predictor finds one of the two that fell, and calls another."""
    columns = {
        "change": np.array([-1.0, 1.0, -2.0, 2.0]), "group": np.array([0, 0, 1, 1]),
        "own group": np.array([-1.0, 1.0, -2.0, 2.0]), "rest of the batch": np.zeros(4),
        "earlier batches": np.zeros(4), "a": np.array([-0.5, -0.1, 0.3, 0.9]),
    }  # fmt: skip
    row = predict.curve_table({0: columns}).splitlines()[2]
    assert row.startswith("| a | 0.75 ") and " | 0.40 " in row
    assert predict.calibration_table({0: columns}).splitlines()[2] == "| a | 50%: 50%, 50% |"
    row = predict.part_table({0: columns}).splitlines()[2]
    assert row == "| 0 | 4 | 2 | 50% | +0.000 | +0.000, 100% | +0.000, 0% | +0.000, 0% | +0.000, 0% |"
