"""Whatever fails, and wherever: the next trajectory is right, nothing is held, nothing is active.

Errors come from inside compiled code (faults.py). Compiled code is kept for the whole module.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from driving import by_timestep, oracle, sampled, tensors
from faults import Trap, fails, held, trapped
from models import make
from raising import raises_in_compile
from reference import Call
from torch import Tensor

import deltapass
from deltapass.errors import LoweringError
from deltapass.sessions.report import Cause
from deltapass.sessions.session import active_session

pytestmark = pytest.mark.keeps_compiled

STEPS = 8
SCHEDULE: dict[str, Any] = {"cached_blocks": 4, "boundary": 0.5}
TABLE = deltapass.Schedule(**SCHEDULE).table(STEPS, 6)
REFRESH, CACHED = 6, 5  # steps of either kind, with two deltas held before them
MIDDLE = 2  # which body of a call fails


@dataclass(frozen=True)
class Subject:
    """A compiled toy with the trap in it, and the results of a trajectory without faults."""

    toy: Any
    model: Callable[..., Any]
    calls: list[Call]
    right: list[Tensor]
    untold: list[Tensor]  # without a session, where the first steps are full

    def of(self, way: str) -> list[Tensor]:
        return self.untold if way == "untold" else self.right

    def call(self, step: int) -> Tensor:
        args, kwargs = self.calls[step]
        with torch.no_grad():
            return self.model(*args, **kwargs)


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    with trapped() as trap:
        yield trap


def subject_of(name: str, dynamic: bool | None = None, **options: Any) -> Subject:
    toy = make(name)
    calls = sampled([toy.inputs(999.0 * (1 - step / STEPS), step) for step in range(STEPS)])
    chosen = {"lowering": "eager", **SCHEDULE, **options}
    model = torch.compile(toy, backend="deltadit", fullgraph=True, dynamic=dynamic, options=chosen)
    right, untold = (tensors(oracle(toy, table, calls)) for table in (TABLE, by_timestep(TABLE)))
    return Subject(toy, model, calls, right, untold)


@pytest.fixture(scope="module")
def subject(trap: Trap) -> Iterator[Subject]:
    """Of two streams, so that half of the deltas of a step can be there."""
    subject = subject_of("two_stream")
    trajectory(subject, "untold")
    gc.collect()
    gc.freeze()  # so that `held` looks at what is new, and quickly
    yield subject
    gc.unfreeze()


# ---- ways to run a trajectory -------------------------------------------------------------------

WAYS = ("entered", "placed", "untold")
every_way = pytest.mark.parametrize("way", WAYS)


def nothing(step: int) -> None: ...


def trajectory(
    subject: Subject,
    way: str,
    session: Any = None,
    before: Callable[[int], None] = nothing,
) -> list[Tensor]:
    """By `with session:` and `step`, by `with session.at(step):`, or with no session at all."""
    session = session or deltapass.session(steps=STEPS)
    outputs = []
    with session if way == "entered" else nullcontext():
        for step in range(STEPS):
            if way == "entered":
                session.step(step)
            with session.at(step) if way == "placed" else nullcontext():
                before(step)
                outputs.append(subject.call(step))
    return outputs


def same(outputs: list[Tensor], right: list[Tensor]) -> bool:
    return len(outputs) == len(right) and all(map(torch.equal, outputs, right))


def survives(
    subject: Subject, way: str, error: type[BaseException], before: Callable[[int], None]
) -> None:
    """The same session, new ones and none give right trajectories, and no more memory is held."""
    for each in WAYS:  # the last deltas of a trajectory without a session stay with the thread
        assert same(trajectory(subject, each), subject.of(each))
    memory, session = held(), deltapass.session(steps=STEPS)
    fails(lambda: trajectory(subject, way, session, before), error)
    assert active_session() is None
    session.restart()  # which `with session:` has done already
    assert session.nbytes == 0
    assert way == "untold" or held() == memory
    for again in (way, *WAYS):
        assert same(trajectory(subject, again, session), subject.of(again))
        session.restart()
        assert same(trajectory(subject, again), subject.of(again))
        assert active_session() is None
    assert held() == memory


# ---- inside a call and between calls ------------------------------------------------------------


@every_way
@pytest.mark.parametrize(
    ("error", "step", "after", "body"),
    [
        (RuntimeError, REFRESH, 0, ""),
        (RuntimeError, REFRESH, MIDDLE, ""),
        (KeyboardInterrupt, REFRESH, MIDDLE, ""),
        (torch.OutOfMemoryError, REFRESH, 0, "delta"),  # the first delta: nothing is stored yet
        (torch.OutOfMemoryError, REFRESH, 1, "delta"),  # the last one: half of them are made
        (KeyboardInterrupt, REFRESH, 0, "epilogue"),  # all of them are made
        (RuntimeError, CACHED, 0, ""),
        (torch.OutOfMemoryError, CACHED, 0, "predict"),
        (KeyboardInterrupt, CACHED, MIDDLE, ""),
    ],
)
def test_failing_call(
    way: str, error: type[BaseException], step: int, after: int, body: str,
    *, subject: Subject, trap: Trap,
) -> None:  # fmt: skip
    def before(now: int) -> None:
        assert trap.error is None, "the fault should have come at its own step"
        if now == step:
            trap.set(error(), after=after, body=body)

    survives(subject, way, error, before)


@every_way
@pytest.mark.parametrize("step", [1, REFRESH, CACHED])
def test_interrupt_between_calls(way: str, step: int, subject: Subject) -> None:
    def before(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    survives(subject, way, KeyboardInterrupt, before)


@pytest.mark.parametrize("way", ["entered", "placed"])
def test_failing_first_call(way: str, subject: Subject, trap: Trap) -> None:
    survives(subject, way, RuntimeError, lambda step: trap.set(RuntimeError(), after=MIDDLE))


def test_failing_first_call_without_a_session(subject: Subject, trap: Trap) -> None:
    """The next first call has the same timestep: what cannot be told apart runs in full."""
    trap.set(RuntimeError(), after=MIDDLE)
    fails(lambda: subject.call(0), RuntimeError)
    full = [subject.toy(*args, **kwargs) for args, kwargs in subject.calls]
    outputs = zip(trajectory(subject, "untold"), full, subject.untold, strict=True)
    assert all(torch.equal(out, plain) or torch.equal(out, right) for out, plain, right in outputs)
    assert same(trajectory(subject, "untold"), subject.untold)


@pytest.mark.parametrize("way", ["entered", "placed"])
@pytest.mark.parametrize(("step", "body"), [(0, ""), (REFRESH, "delta"), (CACHED, "predict")])
def test_failed_call_tried_again(
    way: str, step: int, body: str, subject: Subject, trap: Trap
) -> None:
    """The second try is a refresh and no other branch, and later steps read its deltas."""
    session = deltapass.session(steps=STEPS)

    def before(now: int) -> None:
        if now == step:
            trap.set(RuntimeError(), body=body)
            fails(lambda: subject.call(now), RuntimeError)

    outputs = trajectory(subject, way, session, before)
    table = (*TABLE[:step], None, *TABLE[step + 1 :])
    assert same(outputs, tensors(oracle(subject.toy, table, subject.calls)))
    assert {entry.branch for entry in session.entries} == {(None, 0)}
    assert session.entries[step].cause is Cause.FAILED


def test_cancelled_tasks(subject: Subject) -> None:
    sessions = [deltapass.session(steps=STEPS) for _ in range(STEPS)]

    async def serve(session: Any, stop: int) -> None:
        with session:
            for step in range(STEPS):
                session.step(step)
                subject.call(step)
                await asyncio.sleep(0)
                if step == stop:
                    await asyncio.sleep(60)

    async def serve_all() -> None:
        tasks = [asyncio.create_task(serve(one, stop)) for stop, one in enumerate(sessions)]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    memory = held()
    asyncio.run(serve_all())
    assert active_session() is None
    assert held() == memory
    for session in sessions:
        assert len(session.entries) > 0
        assert same(trajectory(subject, "entered", session), subject.right)


# ---- while compiling ----------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])  # in Dynamo's compile, or in the first call
def test_body_that_cannot_be_lowered_once(dynamic: bool, trap: Trap) -> None:
    torch._dynamo.reset()
    other = subject_of("adaln", dynamic)
    with deltapass.session(steps=STEPS) as session:
        session.step(0)
        trap.refused = ["block_0"]
        with raises_in_compile(LoweringError, match="no such operator"):
            other.call(0)
    assert active_session() is None
    for way in WAYS:
        assert same(trajectory(other, way, session), other.of(way))
        session.restart()


@pytest.mark.parametrize("step", [0, 3])
def test_variant_that_cannot_be_lowered_once(step: int, trap: Trap) -> None:
    """A session's own schedule may need a variant that is compiled in mid-run: fuse="whole"."""
    torch._dynamo.reset()
    other = subject_of("adaln", fuse="whole", steps=STEPS)
    schedule = deltapass.delta_cache("middle", cached_blocks=2, interval=4)
    session = deltapass.session(steps=STEPS, schedule=None if step else schedule)

    def before(now: int) -> None:
        if now == step:
            session.schedule = schedule
            trap.refused = ["cached_2_4"]

    with pytest.warns(deltapass.RefusalWarning, match="no such operator"):
        outputs = trajectory(other, "entered", session, before)
    table = (*TABLE[:step], *(None,) * (STEPS - step))
    assert same(outputs, tensors(oracle(other.toy, table, other.calls)))
    again = tensors(oracle(other.toy, schedule.table(STEPS, 6), other.calls))
    assert same(trajectory(other, "entered", session), again)


def test_first_call_of_what_was_compiled(trap: Trap) -> None:
    torch._dynamo.reset()
    other = subject_of("adaln")
    trap.set(RuntimeError(), after=MIDDLE)
    fails(lambda: trajectory(other, "entered"), RuntimeError)
    for way in WAYS:
        assert same(trajectory(other, way), other.of(way))


# ---- in a pipeline ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # as models/zoo says
def test_attached_pipeline(trap: Trap) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from models.zoo import make_pipe

    torch._dynamo.reset()
    zoo = make_pipe("pixart-dpm")
    options = {"lowering": "eager", "cached_blocks": 2, "boundary": 0.5}
    zoo.pipe.transformer = torch.compile(zoo.denoiser, backend="deltadit", options=options)
    attachment, right = deltapass.attach(zoo.pipe), zoo.run()
    assert attachment.last is not None and attachment.last.cached == 3
    scheduler, memory = type(zoo.pipe.scheduler), held()
    faults: list[tuple[type[BaseException], dict[str, Any]]] = [
        (RuntimeError, {"after": 1}),
        (RuntimeError, {"after": 25}),
        (KeyboardInterrupt, {"after": 12}),
        (torch.OutOfMemoryError, {"body": "delta"}),
        (torch.OutOfMemoryError, {"body": "delta", "after": 1}),
        (torch.OutOfMemoryError, {"body": "predict"}),
    ]
    for error, place in faults:
        trap.set(error(), **place)
        fails(zoo.run, error)
        assert active_session() is None
        assert type(zoo.pipe.scheduler) is scheduler
        assert attachment.last.calls < zoo.steps_run(), "the last report is of the failed call"
        assert held() <= memory  # early on, the scheduler has kept less
        assert torch.equal(zoo.run(), right)
        assert attachment.last.as_planned
    assert held() == memory
