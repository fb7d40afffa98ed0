"""Small tensor functions as one kernel each on a GPU, by torch.compile."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Any:
    """`function`, compiled on its first call with tensors on a GPU; `compiled(f).eager` is `function` itself.

    On a CPU it runs as it is: there, compiling takes longer than a run of the embedded example can win back
    (`python benchmarks/speed.py compiling`). Where there is no compiler it runs as it is too, and a warning says so
    once.
    """
    state: dict[str, Any] = {}

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        given = [*arguments, *options.values()]
        if not any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in given):
            return function(*arguments, **options)
        return with_compiler(function, state, *arguments, **options)

    run.eager = function  # type: ignore[attr-defined]
    return run


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
