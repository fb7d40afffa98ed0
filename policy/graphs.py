"""CUDA graphs: the kernels of a step of decoding, launched by one call of the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

CAPTURE_ERRORS = range(900, 910)  # cudaErrorStreamCapture...: CUDA's codes for what a capture does not allow


class NoGraphError(RuntimeError):
    """No CUDA graph can be made of a step, or the one that was made gives other values."""


class GraphMemory:
    """Where CUDA graphs keep what they compute: one pool, which graphs share that are captured on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)


def captured(
    memory: GraphMemory, step: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> Callable[..., torch.Tensor]:
    """`step` as a CUDA graph with memory from `memory`: all its kernels by one launch.

    To run `step` again on equal inputs must change nothing.

    Raises NoGraphError where CUDA does not allow a part of the step in a graph, and where the graph gives other values
    than `plain`, the same without compiler and graph. Whatever else fails, fails as it would without a graph.
    """
    expected = plain(*inputs)
    static = [tensor.clone() for tensor in inputs]
    graph, stream, current = torch.cuda.CUDAGraph(), memory.stream, torch.cuda.current_stream(expected.device)
    stream.wait_stream(current)
    # Not by `torch.cuda.graph`: it empties PyTorch's cache of memory each time, and stays on its stream after an error.
    with torch.cuda.stream(stream):
        step(*static)  # compiles, and sets up libraries, which a capture must not do
        torch.cuda.synchronize()  # a fault of an earlier kernel shows here, and is not taken for one of the capture
        try:
            graph.capture_begin(pool=memory.pool, capture_error_mode="thread_local")
            try:
                result = step(*static)
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the capture has failed already; what made it fail is told
                    graph.capture_end()
                raise
            graph.capture_end()
        except torch.AcceleratorError as error:
            if getattr(error, "error_code", None) not in CAPTURE_ERRORS:
                raise
            raise NoGraphError(str(error).strip().splitlines()[0]) from error
    current.wait_stream(stream)

    def replay(*inputs: torch.Tensor) -> torch.Tensor:
        for kept, given in zip(static, inputs, strict=True):
            kept.copy_(given)
        graph.replay()
        return result.clone()

    if not torch.allclose(replay(*inputs), expected, rtol=0.05, atol=0.05 * float(expected.abs().max())):
        raise NoGraphError("its values differ from those of the same step without it.")
    return replay
