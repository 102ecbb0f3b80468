"""Refresh and cached steps on each lowering, beside plain ones: run by `make bench`.

Plain and ours run in turns first, each going first every other time: `over_plain` in `extra_info`
is the median of our time over the plain one of the same turn. The table's times are of ours alone.
Plain is the model itself for "eager", and torch.compile for the other lowerings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from denoisers import Denoiser
from measure import in_turn, median, seconds, trajectory_timesteps

import deltapass
from deltapass.schedule.rules import Span

STEPS = 20
TURNS = 10
KINDS = ("refresh", "cached-deep", "cached-shallow")


class Subject(NamedTuple):
    """A model under one lowering, and a step of each kind with the one before it."""

    denoiser: Denoiser
    lowering: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    at: dict[str, tuple[int, ...]]

    def call(self, model: Callable[..., Any], step: int) -> None:
        args, kwargs = self.denoiser.inputs(trajectory_timesteps(STEPS)[step])
        model(*args, **kwargs)

    def ready(self, kind: str) -> tuple[tuple[deltapass.Session, int], dict[str, Any]]:
        """A session at the step, with the delta that it reads."""
        *before, step = self.at[kind]
        session = deltapass.session(steps=STEPS)
        for earlier in before:
            self.step(session, earlier)
        return (session, step), {}

    def step(self, session: deltapass.Session, step: int) -> None:
        with session.at(step):
            self.call(self.ours, step)


@pytest.fixture(scope="module", params=["eager", "inductor", "onnx"])
def subject(request: pytest.FixtureRequest, denoiser: Denoiser) -> Subject:
    """The paper's schedule, compiled and warm."""
    lowering = request.param
    if lowering == "onnx":
        pytest.importorskip("onnxruntime")
    options = {"schedule": "delta-dit", "steps": STEPS, "lowering": lowering}
    how: dict[str, Any] = {"dynamic": False, "fullgraph": True}
    ours = torch.compile(denoiser.model, backend="deltadit", options=options, **how)
    plain = denoiser.model if lowering == "eager" else torch.compile(denoiser.model, **how)
    made = Subject(denoiser, lowering, ours, plain, {})
    with deltapass.session(steps=STEPS) as session:
        for step in range(STEPS):
            made.step(session, step)
    made.call(plain, 0)
    return made._replace(at=places([entry.realised for entry in session.report().entries]))


def places(table: list[Span | None]) -> dict[str, tuple[int, ...]]:
    """Kind -> a step of it, after the refresh that it reads."""
    found: dict[str, tuple[int, ...]] = {"refresh": (0,)}
    for step, span in enumerate(table):
        if span is not None and table[step - 1] is None:
            found["cached-shallow" if span.start == 0 else "cached-deep"] = (step - 1, step)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_step(benchmark: Any, gate: Callable[[str], None], subject: Subject, kind: str) -> None:
    """One step of a kind."""
    gate("run of tiny dit")
    if kind not in subject.at:
        pytest.skip("the schedule has no such step for this model")
    device = subject.denoiser.model.device.type
    step = subject.at[kind][-1]
    plain = functools.partial(subject.call, subject.plain, step)

    def ours(session: deltapass.Session, step: int) -> None:
        seconds(lambda: subject.step(session, step), device)  # the device has finished

    shares = []
    for turn in range(TURNS):
        given, _ = subject.ready(kind)
        taken = in_turn([functools.partial(subject.step, *given), plain], turn, device)
        shares.append(taken[0] / taken[1])
    last = given[0].report().entries[-1].realised
    assert (last is not None) == kind.startswith("cached")
    benchmark.extra_info["over_plain"] = median(shares)
    benchmark.group = f"a step of {subject.denoiser.name}, {subject.lowering}"
    benchmark.pedantic(ours, setup=lambda: subject.ready(kind), rounds=TURNS)
