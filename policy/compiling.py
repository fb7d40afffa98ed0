"""Small tensor functions as one kernel each on a GPU, by torch.compile."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

# What --compile takes, and the parts that it fuses. A layer of the sampler runs some ten thousand times a step, and
# wins its compiler's seconds back within a few. Masks and loss run a few times, between matrix products that take a
# thousand times as long: to compile them takes seconds, and wins microseconds (`python benchmarks/speed.py compiling`).
CHOICES: dict[str, tuple[str, ...]] = {"none": (), "sampler": ("sampler",), "all": ("sampler", "update")}
chosen = {"parts": CHOICES["sampler"]}  # of the whole process, as the settings of torch.compile are


def choose(choice: str) -> None:
    """Compile the parts of one of CHOICES from now on, and no other."""
    chosen["parts"] = CHOICES[choice]


def is_compiled(part: str) -> bool:
    return part in chosen["parts"]


def compiled(part: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function is compiled on its first call with tensors on a GPU, where its part is chosen.

    `f.eager` is the function itself. On a CPU it always runs as it is: there, compiling takes longer than a run of the
    embedded example can win back. Where there is no compiler it runs as it is too, and a warning says so once.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        state: dict[str, Any] = {}

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            given = [*arguments, *options.values()]
            on_gpu = any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in given)
            if not (on_gpu and is_compiled(part)):
                return function(*arguments, **options)
            return with_compiler(function, state, *arguments, **options)

        run.eager = function  # type: ignore[attr-defined]
        return run

    return decorate


def with_compiler(function: Callable[..., Any], state: dict[str, Any], *arguments: Any, **options: Any) -> Any:
    """`function` through torch.compile, or as it is where compiling fails; `state` keeps which of the two it is."""
    if "run" not in state:
        import torch._dynamo.config
        import torch.fx.experimental._config

        torch._dynamo.config.recompile_limit = 64  # by default functions run uncompiled after eight shapes
        torch.fx.experimental._config.use_duck_shape = False  # sizes that happen to be equal are not the same size
        state["run"] = torch.compile(function, dynamic=True)
    if state["run"] is not function:
        from torch._dynamo.exc import TorchDynamoException  # a second of imports that a CPU never needs

        try:
            return state["run"](*arguments, **options)
        except TorchDynamoException as error:
            state["run"] = function
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"torch.compile does not work here, {function.__name__} runs without: {reason}", stacklevel=3)
    return function(*arguments, **options)
