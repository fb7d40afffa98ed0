"""What to do where a GPU has no room: the same work again in smaller micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from harness.config import Config
from harness.report import tell

Result = TypeVar("Result")


def with_room(config: Config, lengths: torch.Tensor, work: Callable[[], Result]) -> Result:
    """What `work` gives. Where a GPU runs out of memory it is done again, with half of `config.token_budget`.

    The budget stays halved, and the work must read it from the config and be fit to begin again. `lengths` are the
    tokens of the sequences that it is about, (B,): below the longest of them no budget makes a difference. What the
    new budget is, is said once, when there was room.

    Raises torch.OutOfMemoryError, in words for people, where one sequence at a time is too much.
    """
    before = config.token_budget
    while True:
        try:
            result = work()
            break
        except torch.OutOfMemoryError as error:
            longest = max(lengths.tolist())
            if config.token_budget <= longest:
                remedy = "Lower" if config.checkpointing else "Try --checkpointing, lower"
                raise torch.OutOfMemoryError(
                    f"Out of memory with one completion at a time ({longest} tokens, with its prompt). {remedy} "
                    "--max-new-tokens, or take a smaller model."
                ) from error
            config.token_budget = max(longest, config.token_budget // 2)
        torch.cuda.empty_cache()  # not in the handler, which keeps the tensors of the failed work alive
    if config.token_budget < before:
        tell(f"Out of memory: from here on with --token-budget {config.token_budget} in place of {before}.")
    return result
