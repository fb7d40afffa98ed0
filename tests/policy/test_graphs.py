"""CUDA graphs of decoding, with a stand-in for CUDA: what may be captured, what an error means, whose memory it is."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch

import rollout
from policy import decoding, graphs


class Gpu:
    """What `captured` needs of torch.cuda, on a CPU. A graph here is the recorded call of `FastSteps.step`, repeated.

    As with PyTorch's: no pool is taken again of which all graphs are gone, and a call that a capture does not allow
    ends it.
    """

    def __init__(self, monkeypatch):
        self.current, self.capturing, self.captures = "default", None, 0
        self.users, self.fault = {}, None  # graphs alive by pool; what the next captured step raises
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, function in (
            ("CUDAGraph", lambda: Graph(self)),
            ("Stream", lambda device: stream),
            ("current_stream", lambda device: stream),
            ("stream", self.on_side),
            ("graph_pool_handle", object),
            ("synchronize", self.synchronize),
        ):
            monkeypatch.setattr(graphs.torch.cuda, name, function)
        monkeypatch.setattr(decoding.FastSteps, "step", self.step(decoding.FastSteps.step))
        monkeypatch.setattr(decoding.FastSteps, "__init__", self.with_graphs(decoding.FastSteps.__init__))
        monkeypatch.setattr(decoding, "GRAPH_PLACES", 32)
        monkeypatch.setattr(decoding, "GRAPH_ROWS", 2)

    def with_graphs(self, plain):
        def run(steps, *arguments):
            plain(steps, *arguments)
            steps.use_graphs = True
            for room in (room for pair in steps.caches for room in pair):
                room[:, :, steps.copied_prompt :] = 0.0

        return run

    def step(self, plain):
        def run(steps, places, layer, *inputs):
            result = plain(steps, places, layer, *inputs)
            if self.capturing is not None:
                assert self.current == "side", "captured on the stream of everything else"
                self.capturing.again = lambda: result.copy_(plain(steps, places, layer, *inputs))
                if self.fault is not None:
                    raise self.fault
            return result

        return run

    @contextlib.contextmanager
    def on_side(self, stream):
        self.current = "side"
        try:
            yield
        finally:
            self.current = "default"

    def synchronize(self):
        assert self.capturing is None, "not allowed during a capture"


class Graph:
    def __init__(self, gpu):
        self.gpu, self.pool = gpu, None

    def capture_begin(self, pool, capture_error_mode):
        users = self.gpu.users
        assert users.get(pool) != 0, "a pool of which all graphs are gone"
        users[pool] = users.get(pool, 0) + 1
        self.pool, self.gpu.capturing = pool, self
        self.gpu.captures += 1

    def capture_end(self):
        self.gpu.capturing = None
        if self.gpu.fault is not None:
            raise cuda_error(901)

    def replay(self):
        self.again()

    def __del__(self):
        if self.pool is not None:
            self.gpu.users[self.pool] -= 1


def cuda_error(code):
    error = torch.AcceleratorError(f"CUDA error: number {code}\nmore of it")
    error.error_code = code
    return error


OF_GRAPHS = {"max_new_tokens": 100, "temperature": 1.0, "seed": 3}


def test_answers_by_replayed_graphs_are_those_of_plain_steps_also_after_rows_leave(model, tokenizer, monkeypatch):
    """Each number of rows has graphs of its own, in memory of their own."""
    prompts = ["a+b=", "what is 2*(3+4)?", "x"]
    expected = rollout.sample(model, tokenizer, prompts, 8, **OF_GRAPHS)
    gpu = Gpu(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rollout.sample(model, tokenizer, prompts, 8, **OF_GRAPHS)
    assert found.texts == expected.texts and gpu.captures >= 4 and len(gpu.users) >= 2
    assert 0 in gpu.users.values(), "graphs of rows that have left are gone"
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("code", [900, 901])
def test_a_step_that_no_graph_can_hold_runs_without_one_and_says_so(model, tokenizer, monkeypatch, code):
    """And on the stream that it ran on before."""
    expected = rollout.sample(model, tokenizer, ["a+b="], 4, **OF_GRAPHS)
    gpu = Gpu(monkeypatch)
    gpu.fault = cuda_error(code)
    with pytest.warns(UserWarning, match=f"decoding goes on without: CUDA error: number {code}$"):
        found = rollout.sample(model, tokenizer, ["a+b="], 4, **OF_GRAPHS)
    assert found.texts == expected.texts and gpu.captures == 1 and gpu.current == "default"


@pytest.mark.parametrize("fault", [cuda_error(700), torch.OutOfMemoryError("out of memory"), RuntimeError("other")])
def test_a_fault_of_the_gpu_during_a_capture_is_not_taken_for_a_missing_graph(model, tokenizer, monkeypatch, fault):
    """An illegal address is told as it is, memory that has run out with what to do: not as the capture that broke."""
    gpu = Gpu(monkeypatch)
    gpu.fault = fault
    with pytest.raises(type(fault)) as found:
        rollout.sample(model, tokenizer, ["a+b="], 1, **OF_GRAPHS)
    assert fault in (found.value, found.value.__cause__) and gpu.current == "default"


def test_a_graph_that_gives_other_values_is_not_used(model, tokenizer, monkeypatch):
    expected = rollout.sample(model, tokenizer, ["a+b="], 4, **OF_GRAPHS)
    gpu = Gpu(monkeypatch)

    def wrong(steps, places, layer, *inputs, plain=decoding.FastSteps.step):
        return plain(steps, places, layer, *inputs) * (2.0 if gpu.capturing else 1.0)

    monkeypatch.setattr(decoding.FastSteps, "step", wrong)
    with pytest.warns(UserWarning, match="goes on without: its values differ"):
        found = rollout.sample(model, tokenizer, ["a+b="], 4, **OF_GRAPHS)
    assert found.texts == expected.texts
