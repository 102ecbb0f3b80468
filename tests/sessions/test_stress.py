"""Many requests on one compiled model: each gets, bit for bit, what it gets alone.

A short form of benchmarks/stress.py, whose code it runs. Compiled code is kept for the module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("diffusers")

import stress_check as check
import stress_load as load
import stress_systems as systems
from deltapass.backends.eager import EagerLowering
from models import B, C, make, noise

import deltapass
from deltapass.graph.program import Body
from deltapass.sessions.session import active_session

pytestmark = pytest.mark.keeps_compiled

WORKERS, EACH = 4, 4
REQUESTS = load.make_requests(0, WORKERS * EACH)


@dataclass(frozen=True)
class Served:
    """The same compiled model behind sessions and without, and what every request gets alone."""

    sessions: Any
    implicit: Any
    alone: dict[Any, torch.Tensor]
    alone_implicit: dict[Any, torch.Tensor]
    uncached: dict[Any, torch.Tensor]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    sessions = systems.Sessions("eager")
    implicit = systems.Implicit(sessions.model)
    results = [check.alone(system, REQUESTS) for system in (sessions, implicit, systems.Plain())]
    yield Served(sessions, implicit, *results)
    torch._dynamo.reset()


def assert_survives(
    serve: Callable[..., Any], system: Any, requests: Sequence[Any], alone: Any
) -> None:
    held = check.tensor_bytes()
    counts = check.count(serve(system, requests, WORKERS), alone, alone)
    assert not counts.messages
    assert counts.wrong == 0
    assert counts.survived
    assert check.tensor_bytes() == held
    assert active_session() is None


def test_the_requests_are_worth_running(served: Served) -> None:
    assert len({request.size for request in REQUESTS}) > 1
    assert {request.guidance for request in REQUESTS} == {None, 3.0}
    assert 0 < sum(request.abort_at is not None for request in REQUESTS) < len(REQUESTS)
    far = check.approximation(served.alone, served.uncached)
    assert far["approximated"] == len(REQUESTS), "every one of them reads deltas"
    assert far["approximation"] > 0.01, "so that a delta too many or too few is seen"


@pytest.mark.parametrize(
    "serve", [load.threads, load.interleaved, load.event_loop, load.event_loop_pool]
)
def test_requests_under_load_get_what_they_get_alone(
    serve: Callable[..., Any], served: Served
) -> None:
    assert_survives(serve, served.sessions, REQUESTS, served.alone)


def test_threads_without_sessions_one_trajectory_at_a_time_each(served: Served) -> None:
    # Aborted after one call, a trajectory cannot be told from a branch: the next one is uncached.
    later = [replace(r, abort_at=r.abort_at or None) for r in REQUESTS]
    assert_survives(load.threads, served.implicit, later, served.alone_implicit)


def test_harm_is_seen(served: Served) -> None:
    """Without sessions, interleaved requests take each other's place: the counts must say so."""
    with pytest.warns(deltapass.RefusalWarning):
        outcomes = load.interleaved(served.implicit, REQUESTS, WORKERS)
    counts = check.count(outcomes, served.alone_implicit, served.uncached)
    assert counts.wrong > 0
    assert not counts.survived


# ---- a new size in the middle of it -------------------------------------------------------------


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], torch.Tensor]]:
    """While another thread compiles a new size, and traces as Inductor does: calls the model."""
    traces, goes_on = threading.Event(), threading.Event()
    armed: list[bool] = []
    toy = make("adaln")
    torch._dynamo.reset()  # so that both sizes are new
    model = torch.compile(
        toy, backend="deltadit", dynamic=True, options={"lowering": "eager", "cached_blocks": 2}
    )

    def wait(x: Any) -> Any:
        traces.set()
        goes_on.wait(10)
        return x

    def lower(self: EagerLowering, body: Body) -> Any:
        if armed:
            armed.clear()
            make_fx(wait)(torch.zeros(1))
        return body.module.forward

    def call(tokens: int) -> torch.Tensor:
        with torch.no_grad(), deltapass.session(steps=2) as session, session.at(0):
            return model(noise(0, B, tokens, C), torch.full((B,), 999.0))

    monkeypatch.setattr(EagerLowering, "lower", lower)
    call(16)
    armed.append(True)
    thread = threading.Thread(target=call, args=(24,))
    thread.start()
    assert traces.wait(10)
    try:
        yield call
    finally:
        goes_on.set()
        thread.join()


def test_calls_go_on_while_another_thread_compiles(
    compiling: Callable[[int], torch.Tensor],
) -> None:
    assert compiling(16).shape == (B, 16, C)


def test_dynamo_waits_while_another_thread_compiles(
    compiling: Callable[[int], torch.Tensor],
) -> None:
    """Two tracers at once can leave torch.nn.Module.__call__ replaced for good."""
    lock = torch._dynamo.convert_frame.compile_lock
    free = lock.acquire(blocking=False)
    if free:
        lock.release()
    assert not free
