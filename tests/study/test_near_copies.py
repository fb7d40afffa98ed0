"""The model of long answers that are nearly alike: its documents, how alike answers are, and that it is made once."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

import rollout
from examples.arithmetic import make
from harness.config import EXAMPLE
from questions import correctness
from study import near_copies, tasks
from study.variants import FULL, question_sets

PROBLEM = make.Problem(3, ["x", "y"], [7, 4], [[("+", 5)], [("*", 2)]])


def test_every_operation_is_told_in_the_same_words():
    assert near_copies.near_copy(random.Random(0), PROBLEM, off=0, skips=0) == (
        "Now x = 7, add 5. Let us see. 7 + 5 = 12. So it is 12. Now y = 4, times 2. Let us see. 4 * 2 = 8. So it is 8. "
        "Adding up, 12 + 8 = 20. We get \\boxed{20}"
    )


def test_an_answer_goes_on_from_a_result_that_is_off():
    text = near_copies.near_copy(random.Random(0), PROBLEM, off=1, skips=0)
    x, y = (int(text.split(f"{sum_of} = ")[1].split(".")[0]) for sum_of in ("7 + 5", "4 * 2"))
    assert 1 <= abs(x - 12) <= 2 and 1 <= abs(y - 8) <= 2
    assert f"So it is {x}. Now y" in text and text.endswith(
        f"Adding up, {x} + {y} = {x + y}. We get \\boxed{{{x + y}}}"
    )


def test_no_result_is_below_0():
    problem = make.Problem(1, ["x"], [3], [[("-", 3), ("+", 1)]])
    for seed in range(20):
        assert " = -" not in near_copies.near_copy(random.Random(seed), problem, off=1, skips=0)


def test_a_step_of_fit_follows_the_clipped_gradient_of_the_answers_alone():
    model, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    batch = next(make.packed_batches(tokenizer, near_copies.documents(seed=1), rows=1, width=300))
    input_ids, position_ids, labels = batch
    logps = model(input_ids=input_ids, position_ids=position_ids).logits[0].log_softmax(1)
    places = [place for place in range(300) if labels[0, place] != -100]
    loss = -sum(logps[place - 1, labels[0, place]] for place in places) / len(places)
    weight = model.model.norm.weight
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norm > 1, "nothing would be clipped"
    own = next(g for p, g in zip(model.parameters(), gradients, strict=True) if p is weight)
    expected = weight.detach() - 0.1 * own / norm
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    make.fit(model, iter([batch]), optimizer, schedule, tqdm(range(1), disable=True))
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
    assert weight.grad is None and schedule.get_last_lr() == [0.05]


def test_an_operation_that_is_left_out_makes_the_answer_shorter():
    text = near_copies.near_copy(random.Random(0), PROBLEM, off=0, skips=1)
    assert text.count("Let us see") == 1 and ("7 + 5" in text) != ("4 * 2" in text)


def test_documents_have_known_tokens():
    _, tokenizer = rollout.load(str(EXAMPLE), "cpu")
    for _, answer in itertools.islice(near_copies.documents(seed=1), 200):
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in tokens and 120 < len(tokens) < near_copies.MAX_NEW_TOKENS


@pytest.mark.parametrize("kept_back", ["validation", "held_out"])
def test_no_document_has_a_question_that_is_kept_back(kept_back, monkeypatch):
    validation = question_sets(FULL, "")["validation"]
    questions = validation if kept_back == "validation" else tasks.read_lines(make.HERE / "held_out.jsonl")
    problems = iter([tasks.as_problem(questions[-1]["problem"]), PROBLEM])
    monkeypatch.setattr(make, "draw_problem", lambda *_: next(problems))
    assert next(near_copies.documents(seed=1))[0] == PROBLEM.text + "\n"


def test_shares_of_errors_leave_right_and_wrong_answers():
    rng, problems = random.Random(0), [make.draw_problem(random.Random(n), 5) for n in range(300)]
    questions = [{**tasks.as_question(problem), "choices": None} for problem in problems]
    right = correctness([near_copies.near_copy(rng, problem) for problem in problems], questions)
    assert sum(right) / len(right) == pytest.approx(0.9 * 0.95**6, abs=0.08)  # skips, and six results


def test_agreement_counts_what_two_answers_share_in_order():
    assert near_copies.agreement([1, 2, 3, 4], [1, 2, 9, 4]) == pytest.approx(0.75)
    assert near_copies.agreement([1, 2, 3, 4], [1, 2, 4]) == pytest.approx(6 / 7)
    assert near_copies.agreement([1, 2], [3, 4]) == 0


def test_the_recipe_knows_documents_and_settings(monkeypatch):
    found = near_copies.recipe()
    assert near_copies.recipe() == found != near_copies.recipe(steps=2)
    monkeypatch.setattr(near_copies, "ROWS", 8)
    assert near_copies.recipe() != found
    monkeypatch.undo()
    monkeypatch.setattr(near_copies, "near_copy", lambda *_: "We get \\boxed{1}")
    assert near_copies.recipe() != found


def test_the_model_is_made_once_and_again_where_its_recipe_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(near_copies, "KEPT", tmp_path / "near-copies")
    trained, made = near_copies.trained, []
    monkeypatch.setattr(near_copies, "trained", lambda steps: made.append(steps) or trained(steps))
    folder = near_copies.kept_model(quick=True)
    assert folder == str(tmp_path / "near-copies-quick") == near_copies.kept_model(quick=True) and made == [2]
    monkeypatch.setattr(near_copies, "RATE", 1e-4)
    near_copies.kept_model(quick=True)
    assert made == [2, 2]
    monkeypatch.setattr(near_copies, "data_hash", lambda *_: "another embedded model")
    near_copies.kept_model(quick=True)
    assert made == [2, 2, 2]


def test_the_full_model_takes_all_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(near_copies, "KEPT", tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(near_copies, "trained", lambda steps: asked.append(steps) or rollout.load(str(EXAMPLE), "cpu"))
    assert near_copies.kept_model() == str(tmp_path) and asked == [near_copies.STEPS]


def test_the_rate_rises_for_20_steps_and_falls_to_0_in_the_last_two_thirds(monkeypatch):
    rates = []

    def look_at_the_schedule(model, batches, optimizer, schedule, steps):
        peak, of_peak = schedule.base_lrs[0], schedule.lr_lambdas[0]
        rates.extend(peak * of_peak(step) for step in (0, 9, 19, 133, 200, 300, 400))

    monkeypatch.setattr(near_copies.make, "fit", look_at_the_schedule)
    near_copies.trained(400)
    assert rates == pytest.approx([5e-5, 5e-4, 1e-3, 1e-3, 7.5e-4, 3.75e-4, 0])


def test_levels_with_short_answers_are_left_out():
    levels = near_copies.of_levels(tasks.draw_sets(1, 2, 2))
    assert {question["level"] for question in levels["training"]} == {4, 5, 6}
    assert len(levels["validation"]) == 6


def test_the_report_tells_how_alike_right_and_wrong_answers_are(monkeypatch):
    question = {"problem": "Find x.", "answer": "3"}
    texts = ["2 + 1 = 3. We get \\boxed{3}", "2 + 1 = 4. We get \\boxed{4}"]
    monkeypatch.setattr(near_copies.rollout, "sample", lambda *_, **__: SimpleNamespace(texts=texts))
    said = near_copies.report(str(EXAMPLE), [question], group_size=2).splitlines()
    assert said[1].split()[-1] == "50.0%"
    assert said[2].endswith("11 (11 to 11)")  # two of them are the wrong number
    assert said[3].endswith(f"{9 / 11:.1%} (1 pairs)")


def test_the_command_writes_the_questions_beside_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(near_copies, "kept_model", lambda: str(tmp_path))
    monkeypatch.setattr(near_copies, "report", lambda folder, questions: f"{folder}: {len(questions)}")
    near_copies.main([])
    assert capsys.readouterr().out == f"{tmp_path}: 30\n"
    assert len(tasks.read_lines(tmp_path / "questions.jsonl")) == 3 * (80 + 40)
    with pytest.raises(SystemExit):
        near_copies.main(["--help"])
    assert "study.conflict" in capsys.readouterr().out
