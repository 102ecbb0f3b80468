"""In which threads and tasks a session is active, and that none of them disturbs another."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from driving import compiled, follow, oracle, tensors
from models import make
from reference import Call

import deltapass
from deltapass.errors import StateError
from deltapass.schedule.rules import Span
from deltapass.sessions import context as active
from deltapass.sessions.context import Position
from deltapass.sessions.session import active_session

pytestmark = pytest.mark.keeps_compiled

STEPS = 6
SCHEDULE = {"cached_blocks": 2, "boundary": 0.5}
DEEP, SHALLOW = Span(2, 4), Span(0, 2)
TABLE = (None, DEEP, None, SHALLOW, None, SHALLOW)  # of 6 steps and 4 blocks


class Session:
    """Stands for a session, which `active` only passes on."""


def position(step: int = 0) -> Position:
    return Position(None, step, None)


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in an empty context, so that it may leave sessions open."""

    @functools.wraps(test)
    def run_alone(*args: Any, **kwargs: Any) -> None:
        contextvars.Context().run(test, *args, **kwargs)

    return run_alone


# ---- frames ------------------------------------------------------------------------------------


@alone
def test_nothing_is_active_at_first() -> None:
    assert active.innermost() is None
    assert active.position_of(Session()) is None
    assert active.stay_of(Session()) is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@alone
def test_sessions_may_be_left_in_any_order(order: Sequence[int]) -> None:
    sessions = [Session() for _ in range(3)]
    stays = [active.enter(session) for session in sessions]
    left = set()
    for which in order:
        active.leave(stays[which])
        left.add(which)
        rest = [session for at, session in enumerate(sessions) if at not in left]
        assert active.innermost() is (rest[-1] if rest else None)


@pytest.mark.parametrize("outer_first", [False, True])
@alone
def test_stays_of_one_session_are_left_each_for_itself(outer_first: bool) -> None:
    session, positions = Session(), [position(1), position(2)]
    stays = [active.enter(session, one) for one in positions]
    assert active.position_of(session) is positions[1]
    active.leave(stays[not outer_first])
    assert active.position_of(session) is positions[outer_first]
    assert active.stay_of(session) is stays[outer_first]
    active.leave(stays[outer_first])
    active.leave(stays[outer_first])  # once too often is no harm
    assert active.innermost() is None


@alone
def test_each_session_keeps_its_own_position() -> None:
    outer, inner, here, there = Session(), Session(), position(3), position(5)
    active.enter(outer)
    active.enter(inner)
    active.move(outer, here)
    active.move(inner, there)
    assert (active.position_of(outer), active.position_of(inner)) == (here, there)


@alone
def test_context_that_outlives_a_stay_finds_it_closed() -> None:
    outer, inner = Session(), Session()
    active.enter(outer)
    stay = active.enter(inner)
    context = contextvars.copy_context()
    active.leave(stay)
    assert context.run(active.innermost) is outer
    assert context.run(active.position_of, inner) is None
    active.enter(inner)
    assert context.run(active.innermost) is outer


@alone
def test_threads_start_with_no_session_and_copies_of_a_context_with_the_same() -> None:
    session, here = Session(), position(1)
    active.enter(session, here)
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(active.innermost()))
    thread.start()
    thread.join()
    context = contextvars.copy_context()
    seen.append(context.run(active.innermost))
    context.run(active.move, session, position(2))
    seen.append(active.position_of(session))
    assert seen == [None, session, here]


# ---- models in threads and tasks ---------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> Any:
    return make("adaln", depth=4)


@pytest.fixture
def model(toy: Any) -> Callable[..., Any]:
    """The toy, compiled before the test begins its threads."""
    made = compiled(toy, **SCHEDULE)
    with deltapass.session(steps=STEPS) as session:
        follow(made, calls_of(toy)[:1], session)
    return made


def calls_of(toy: Any, shift: int = 0) -> list[Call]:
    return [toy.inputs(999.0 * (1 - step / STEPS), step + shift) for step in range(STEPS)]


def right(toy: Any, calls: list[Call], outputs: Sequence[Any]) -> bool:
    """Whether the outputs are those of the table, bit for bit."""
    pairs = zip(tensors(oracle(toy, TABLE, calls)), tensors(outputs), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@torch.no_grad()
def run(model: Callable[..., Any], call: Call) -> Any:
    args, kwargs = call
    return model(*args, **kwargs)


def test_trajectories_gathered_with_awaits_between_steps_do_not_meet(toy: Any, model: Any) -> None:
    trajectories = [calls_of(toy, 100 * which) for which in range(3)]

    async def sample(calls: list[Call], naps: int) -> tuple[list[Any], bool]:
        outputs = []
        with deltapass.session(steps=STEPS) as session:
            for step, call in enumerate(calls):
                session.step(step)
                for _ in range(naps):
                    await asyncio.sleep(0)
                outputs.append(run(model, call))
                assert active_session() is session
        return outputs, session.report().as_planned

    async def main() -> list[tuple[list[Any], bool]]:
        tasks = (sample(calls, naps) for naps, calls in enumerate(trajectories))
        return await asyncio.gather(*tasks)

    for calls, (outputs, as_planned) in zip(trajectories, asyncio.run(main()), strict=True):
        assert as_planned
        assert right(toy, calls, outputs)


def test_thread_that_carries_the_context_is_in_the_session(toy: Any, model: Any) -> None:
    calls = calls_of(toy)

    async def main() -> tuple[list[Any], deltapass.Session]:
        outputs = []
        with deltapass.session(steps=STEPS) as session:
            for step, call in enumerate(calls):
                session.step(step)
                outputs.append(await asyncio.to_thread(run, model, call))
        return outputs, session

    outputs, session = asyncio.run(main())
    assert session.report().as_planned
    assert right(toy, calls, outputs)


def test_step_told_in_a_copied_context_is_heard_there_alone(toy: Any, model: Any) -> None:
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        session.step(0)
        context = contextvars.copy_context()
        context.run(session.step, 1)
        run(model, calls[0])
        context.run(run, model, calls[1])
    assert [entry.step for entry in session.entries] == [0, 1]


@pytest.mark.parametrize("names", [("cond", "uncond"), (0, 1)])
def test_named_branches_of_one_session_in_two_threads_at_once(
    toy: Any, model: Any, names: tuple[Any, Any]
) -> None:
    trajectories = {name: calls_of(toy, 100 * at) for at, name in enumerate(names)}
    session, barrier = deltapass.session(steps=STEPS), threading.Barrier(len(names))
    outputs: dict[Any, list[Any]] = {name: [] for name in names}

    def work(name: Any) -> None:
        with session:
            for step in range(STEPS):
                barrier.wait()  # both halves of guidance are needed for the next step
                session.step(step, branch=name)
                outputs[name].append(run(model, trajectories[name][step]))
                barrier.wait()

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(work, names))
    assert all(right(toy, trajectories[name], outputs[name]) for name in names)
    assert session.report().as_planned
    assert session.nbytes == 0


def test_steps_and_branches_handed_to_a_pool_of_threads(toy: Any, model: Any) -> None:
    names = ("cond", "uncond")
    trajectories = {name: calls_of(toy, 100 * at) for at, name in enumerate(names)}
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    session = deltapass.session(steps=STEPS)

    def work(step: int, name: str) -> Any:
        with session.at(step, branch=name):
            return run(model, trajectories[name][step])

    with ThreadPoolExecutor(2) as pool:
        for step in range(STEPS):
            for name, out in zip(names, pool.map(work, (step, step), names), strict=True):
                outputs[name].append(out)
    assert all(right(toy, trajectories[name], outputs[name]) for name in names)
    assert session.report().as_planned


def test_many_threads_with_sessions_of_their_own(toy: Any, model: Any) -> None:
    trajectories = [calls_of(toy, 100 * which) for which in range(4)]

    def work(calls: list[Call]) -> list[Any]:
        with deltapass.session(steps=STEPS) as session:
            outputs = follow(model, calls, session)
        assert session.report().as_planned
        return outputs

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(work, trajectories))
    # All threads first: the oracle replaces methods of the blocks they run.
    for calls, outputs in zip(trajectories, done, strict=True):
        assert right(toy, calls, outputs)


def test_task_that_outlives_its_session_is_not_in_it(toy: Any, model: Any) -> None:
    async def late(go: asyncio.Event) -> Any:
        await go.wait()
        assert active_session() is None
        return run(model, calls_of(toy)[0])

    async def main() -> tuple[deltapass.Session, Any]:
        go = asyncio.Event()
        with deltapass.session(steps=STEPS) as session:
            follow(model, calls_of(toy)[:2], session)
            task = asyncio.create_task(late(go))
            await asyncio.sleep(0)
        go.set()
        return session, await task

    session, out = asyncio.run(main())
    assert len(session.entries) == 2
    assert session.nbytes == 0
    assert torch.equal(out, run(toy, calls_of(toy)[0]))


def test_task_that_outlived_its_session_stays_out_when_it_is_entered_again() -> None:
    with deltapass.session(steps=2) as session:
        context = contextvars.copy_context()
        assert context.run(active_session) is session
    with session:
        assert active_session() is session
        assert context.run(active_session) is None
        with pytest.raises(StateError, match="not active in this thread or task"):
            context.run(session.step, 1)


def test_task_begun_at_a_step_is_not_at_the_next_one() -> None:
    session = deltapass.session(steps=2)
    with session.at(0):
        context = contextvars.copy_context()
    with session.at(1):
        assert context.run(active_session) is None


def test_unnamed_branches_announced_at_once_never_read_each_others_deltas(
    toy: Any, model: Any
) -> None:
    trajectories = [calls_of(toy, 100 * which) for which in range(2)]
    plain = [[run(toy, call) for call in calls] for calls in trajectories]
    with ExitStack() as stack:
        session = stack.enter_context(deltapass.session(steps=STEPS))
        contexts = [contextvars.copy_context() for _ in trajectories]
        for step in range(3):
            for context in contexts:
                context.run(session.step, step)
            for which, context in enumerate(contexts):
                out = context.run(run, model, trajectories[which][step])
                assert torch.equal(out, plain[which][step])


def test_a_visit_is_entered_once() -> None:
    session = deltapass.session(steps=4)
    visit = session.at(1)
    with visit, pytest.raises(StateError, match="entered twice"), visit:
        pass
    assert active_session() is None
