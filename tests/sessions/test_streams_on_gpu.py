"""What only a GPU can prove of deltas: `pytest -m gpu tests/sessions`."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from driving import compiled, in_session
from models import make

import deltapass

pytestmark = pytest.mark.gpu

STEPS = 8


def subject() -> tuple[Any, Any, list[Any]]:
    toy = make("adaln").cuda()
    model = compiled(toy, cached_blocks=4, interval=4, predictor="linear")
    calls = []
    for step in range(STEPS):
        args, kwargs = toy.inputs(900.0 - step, step)
        calls.append((tuple(given.cuda() for given in args), kwargs))
    return toy, model, calls


def test_suspending_from_another_thread_waits_for_the_stream_that_made_the_deltas() -> None:
    _, model, calls = subject()
    wanted, _ = in_session(model, calls)
    stream, results = torch.cuda.Stream(), []
    torch.cuda.synchronize()
    with torch.no_grad(), deltapass.session(steps=STEPS) as session, torch.cuda.stream(stream):
        for step, (args, kwargs) in enumerate(calls):
            torch.cuda._sleep(20_000_000)  # so that the deltas are late
            with session.at(step):
                results.append(model(*args, **kwargs))
            suspending = threading.Thread(target=session.suspend)
            suspending.start()
            suspending.join()
            assert session.nbytes == 0
            torch.empty(1 << 20, device="cuda").fill_(float("nan"))  # takes freed memory
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, wanted))
    assert session.report().cached > 0


def test_suspending_does_not_wait_and_copies_to_pinned_memory() -> None:
    _, model, calls = subject()
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        session.step(0)
        model(*calls[0][0], **calls[0][1])
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        session.suspend()
        assert not torch.cuda.current_stream().query(), "the host waited"
        assert session._suspended is not None
        kept = session._suspended.kept or []
        assert all(delta.is_pinned() for some in kept for deltas in some for delta in deltas)


def test_offload_between_steps_leaves_deltas_valid() -> None:
    """Weights that go to the host and come back are the same."""
    toy, model, calls = subject()
    wanted, report = in_session(model, calls)
    results, taken = [], []
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, (args, kwargs) in enumerate(calls):
            toy.cpu()
            taken.append(torch.empty(1 << 16, device="cuda"))  # so that it comes to lie elsewhere
            toy.cuda()
            session.step(step)
            results.append(model(*args, **kwargs))
        assert session.report().cached == report.cached
    assert all(map(torch.equal, results, wanted))
