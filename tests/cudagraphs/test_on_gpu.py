"""What only a GPU can prove of graphs: `pytest -m gpu tests/cudagraphs`."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from driving import compiled, in_session
from models import make

import deltapass

pytestmark = pytest.mark.gpu

STEPS = 8
MODE = {"mode": "reduce-overhead"}
WAYS: dict[str, dict[str, Any]] = {
    "paper": {"cached_blocks": 4, "interval": 3},
    "default": {"preset": "balanced"},
    "chebyshev": {"predictor": "chebyshev", "cached_blocks": 4},
    "inductor": {"lowering": "inductor", "cached_blocks": 4},
    "whole": {"lowering": "inductor", "fuse": "whole", "cached_blocks": 4, "steps": STEPS},
}


def both(**options: Any) -> tuple[Any, Any, Any]:
    """A toy on the GPU, compiled with graphs and launched."""
    toy = make("cross_attention").cuda()
    return toy, compiled(toy, **options, **MODE), compiled(toy, **options)


def calls_of(toy: Any, seed: int = 0) -> list[Any]:
    """One prompt, and a sample for each step."""
    args, kwargs = toy.inputs(500.0, seed)
    text = {name: (given + seed).cuda() for name, given in kwargs.items()}
    return [
        ((toy.inputs(0.0, 100 * seed + step)[0][0].cuda(), (args[1] - step).cuda()), text)
        for step in range(STEPS)
    ]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(map(torch.equal, one, other))


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """The host must not wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_trajectory_has_the_bits_of_the_launched_one(way: str, inference: bool) -> None:
    toy, graphed, launched = both(**WAYS[way])
    calls = calls_of(toy)
    with torch.inference_mode(inference):
        wanted, report = in_session(launched, calls)
        for _ in range(2):
            results, again = in_session(graphed, calls)
            assert same(results, wanted)
            assert again.cached == report.cached > 0


def test_steps_on_several_streams() -> None:
    toy, graphed, launched = both(cached_blocks=4, predictor="linear")
    calls = calls_of(toy)
    for model in (graphed, launched):
        wanted, _ = in_session(model, calls)
        streams = [torch.cuda.Stream() for _ in range(3)]
        before, results = torch.cuda.current_stream(), []
        with torch.no_grad(), deltapass.session(steps=STEPS) as session:
            for step, (args, kwargs) in enumerate(calls):
                stream = streams[step % 3]
                stream.wait_stream(before)
                with torch.cuda.stream(stream):
                    session.step(step)
                    results.append(model(*args, **kwargs))
                    torch.empty(1 << 20, device="cuda").fill_(float("nan"))  # takes freed memory
                before = stream
        torch.cuda.synchronize()
        assert same(results, wanted)


def test_requests_in_threads_with_streams_of_their_own() -> None:
    toy, graphed, launched = both(cached_blocks=4, predictor="linear")
    many = [calls_of(toy, seed) for seed in range(4)]
    wanted = [in_session(launched, calls)[0] for calls in many]
    in_session(graphed, many[0])
    results: list[Any] = [None] * len(many)
    torch.cuda.synchronize()

    def request(which: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            results[which] = in_session(graphed, many[which])[0]

    threads = [threading.Thread(target=request, args=(which,)) for which in range(len(many))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    torch.cuda.synchronize()
    assert all(map(same, results, wanted))


@pytest.mark.parametrize("mode", [MODE, {}])
@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_no_step_waits_for_the_device(mode: dict[str, Any], lowering: str) -> None:
    toy = make("cross_attention").cuda()
    model = compiled(toy, lowering=lowering, cached_blocks=4, predictor="linear", **mode)
    calls = calls_of(toy)
    in_session(model, calls)
    with waiting_is_an_error():
        _, report = in_session(model, calls)
    assert report.cached > 0


def test_moved_weights_are_captured_anew() -> None:
    toy, graphed, launched = both(cached_blocks=4)
    calls = calls_of(toy)
    in_session(graphed, calls)
    for weight in toy.parameters():
        old, weight.data = weight.data, weight.data.clone()
        old.fill_(float("nan"))
    assert same(in_session(graphed, calls)[0], in_session(launched, calls)[0])


def test_graphs_let_go_of_their_memory() -> None:
    toy, graphed, _ = both(cached_blocks=4)
    calls = calls_of(toy)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    in_session(graphed, calls)
    assert torch.cuda.memory_allocated() > before
    del graphed
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
