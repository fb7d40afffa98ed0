"""The loss of three methods against TRL's, value and gradient, on one fixed batch. Skipped where TRL is not installed.

To run it: pip install trl && pytest tests/test_trl_loss.py
"""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import padded_batch

import dagrpo
import rollout

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

LIMIT = 20
ROWS = [(2, 3, 9), (0, 5, 4), (1, 4, 7), (3, 2, 1), (0, 5, 20), (0, 5, 6), (4, 1, 8), (0, 5, 2)]


@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize(
    ("method", "norm", "clip_high"), [("grpo", "sequence", 0.2), ("dr_grpo", "constant", 0.2), ("dapo", "token", 0.28)]
)
def test_loss_equals_trl(model, tokenizer, tmp_path, method, norm, clip_high, kl):
    input_ids, attention_mask, response_mask = padded_batch(ROWS, 64)
    advantages = torch.tensor([1.0, -0.5, 0.0, 2.0, -1.5, 0.3, -2.0, 0.7])
    ours = copy.deepcopy(model)
    logps, _ = rollout.token_logps(ours, input_ids, attention_mask, response_mask)
    torch.manual_seed(0)
    old = logps.detach() + 0.3 * torch.randn_like(logps)  # ratios on both sides of both clips
    reference = logps.detach() + 0.3 * torch.randn_like(logps)
    mask = response_mask[:, 1:]
    loss, counted = dagrpo.policy_loss(
        logps,
        old,
        advantages[:, None].expand_as(logps),
        mask,
        torch.zeros(8, dtype=torch.bool),
        dagrpo.loss_denominators(mask.sum(1), norm, LIMIT),
        dagrpo.Objective(clip_high=clip_high, kl=kl),
        reference_logps=reference if kl else None,
    )
    loss.backward()
    assert counted["clip_low"] > 0 and counted["clip_high"] > 0

    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        loss_type=method,
        epsilon=0.2,
        epsilon_high=clip_high,
        use_bias_correction_kl=False,  # (8) has the plain k3 term
        max_completion_length=LIMIT,
        num_generations=4,
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * 8}),
        processing_class=tokenizer,
    )
    trainer.beta = kl  # given to the configuration, it would load a reference model by name
    trainer.model.eval()
    # TRL wants prompts on the left and completions on the right of one column.
    prompt_width, answer_width = 5, LIMIT
    batch = {name: torch.zeros(8, prompt_width, dtype=torch.long) for name in ("prompt_ids", "prompt_mask")}
    batch |= {name: torch.zeros(8, answer_width, dtype=torch.long) for name in ("completion_ids", "completion_mask")}
    laid = {name: torch.zeros(8, answer_width) for name in ("old_per_token_logps", "ref_per_token_logps")}
    for i, (pad, prompt, answer) in enumerate(ROWS):
        start, end = pad + prompt, pad + prompt + answer
        batch["prompt_ids"][i, prompt_width - prompt :] = input_ids[i, pad:start]
        batch["prompt_mask"][i, prompt_width - prompt :] = 1
        batch["completion_ids"][i, :answer] = input_ids[i, start:end]
        batch["completion_mask"][i, :answer] = 1
        laid["old_per_token_logps"][i, :answer] = old[i, start - 1 : end - 1]
        laid["ref_per_token_logps"][i, :answer] = reference[i, start - 1 : end - 1]
    theirs = trainer._compute_loss(
        trainer.model, {**batch, **laid, "advantages": advantages, "num_items_in_batch": mask.sum()}
    )
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    for own, other in zip(ours.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-3)
