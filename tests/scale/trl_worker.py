"""One process of runs over several: three steps on completions that are the same on any number of processes.

    accelerate launch ... tests/scale/trl_worker.py '[{"out": FOLDER, settings of DaGRPOConfig...}, ...]'

The first process writes weights.pt, and batches.pt: of each batch rewards, masks, advantages, and the head's bytes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import accelerate  # noqa: E402
import torch  # noqa: E402
from trl_training import TOKENIZER, arbitrary, new, questions_of_example, rows, settings  # noqa: E402

import anchors  # noqa: E402
import rollout  # noqa: E402
from harness.config import EXAMPLE  # noqa: E402
from scale import groups, trl_dagrpo  # noqa: E402


def completions_of(prompts: list[str], size: int) -> dict[str, list[list[int]]]:
    """Completions of the untrained model, by prompt."""
    model, _ = rollout.load(str(EXAMPLE), "cpu")
    sampled = rollout.sample(model, TOKENIZER, prompts, size, max_new_tokens=24, seed=0)
    ids = [row[mask].tolist() for row, mask in zip(sampled.input_ids, sampled.response_mask, strict=True)]
    return {prompt: ids[n * size : (n + 1) * size] for n, prompt in enumerate(prompts)}


def let_fsdp_run_on_a_cpu() -> None:
    """torch shards on a CPU too; accelerate asks for it on GPUs alone, and is told here that it may."""
    real = accelerate.state.AcceleratorState.__init__

    def patched(state: Any, *arguments: Any, **settings: Any) -> None:
        real(state, *arguments, **settings)
        state.distributed_type = accelerate.DistributedType.FSDP
        if not hasattr(state, "fsdp_plugin") or settings.get("fsdp_plugin"):
            state.fsdp_plugin = settings.get("fsdp_plugin") or accelerate.FullyShardedDataParallelPlugin()

    accelerate.state.AcceleratorState.__init__ = patched  # type: ignore[method-assign]


def let_deepspeed_run_on_a_cpu() -> dict[str, Any]:
    """Settings for it. DeepSpeed would first compile, for minutes, a way to add up within a machine; gloo adds too."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return {"use_cpu": False, "ddp_backend": "gloo"}  # with use_cpu accelerate forgets DeepSpeed


def run(options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    out, lora = Path(options.pop("out")), options.pop("lora", False)
    questions, size = questions_of_example(9), options["num_generations"]
    dataset = rows(questions)
    canned = completions_of(dataset["prompt"], size)
    batches: list[dict[str, Any]] = []

    def sampled(prompts: list[str], trainer: Any) -> dict[str, Any]:
        first = trainer.accelerator.process_index * len(prompts)
        ids = [list(canned[prompt][(first + n) % size]) for n, prompt in enumerate(prompts)]
        encoded = [rollout.encode_prompt(TOKENIZER, prompt) for prompt in prompts]
        return {"prompt_ids": encoded, "completion_ids": ids, "logprobs": None}

    def spied(trainer: Any, batch: Any) -> Any:
        found = groups.rectified_groups(trainer, batch)
        logged = trainer._metrics["train"]
        batches.append({
            "rewards": batch.totals, "pair_mask": found.pair_mask, "advantages": found.advantages,
            "withheld": found.withheld, "masked_tokens": list(logged["masked_tokens"]),
            "is_anchor": batch.is_anchor, "bytes": list(logged["bytes/head"]),
        })  # fmt: skip
        return found

    trl_dagrpo.rectified_groups = spied
    model = None
    if lora:
        import peft
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32)
        model = peft.get_peft_model(
            base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
    solutions = anchors.load(questions, joining=questions, tokenizer=TOKENIZER, max_new_tokens=64)
    trainer = new(
        trl_dagrpo.DaGRPOTrainer, settings(out, **options), dataset, model=model, reward_funcs=arbitrary,
        rollout_func=sampled, questions=questions, anchors=solutions,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=options.get("resume_from_checkpoint"))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        torch.save({name: value.cpu() for name, value in weights.items()}, out / "weights.pt")
        torch.save(batches, out / "batches.pt")


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_fsdp_run_on_a_cpu()
    more = let_deepspeed_run_on_a_cpu() if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else {}
    for options in json.loads(sys.argv[1]):
        run({**options, **more})
    accelerate.PartialState().destroy_process_group()
