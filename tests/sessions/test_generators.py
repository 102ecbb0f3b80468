"""Generators that hold sessions open share a context, and each still gets what it gets alone."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from driving import compiled
from models import make

import deltapass
from deltapass.errors import StateError
from deltapass.sessions import context
from deltapass.sessions.session import active_session

pytestmark = pytest.mark.keeps_compiled

LENGTHS = (6, 4, 7)  # trajectories that are advanced in turn are seldom at the same step
OPTIONS = {"cached_blocks": 2, "boundary": 0.5}
Outputs = list[torch.Tensor]
PAUSES = list(itertools.product([False, True], repeat=3))


@pytest.fixture(scope="module")
def toy() -> Any:
    return make("adaln", depth=4)


@pytest.fixture(scope="module")
def model(toy: Any) -> Callable[..., torch.Tensor]:
    made = compiled(toy, **OPTIONS)

    @torch.no_grad()
    def call(request: int, step: int, branch: int = 0) -> torch.Tensor:
        args, kwargs = toy.inputs(999.0 * (1 - step / 8), 1000 * request + 10 * step + branch)
        out: torch.Tensor = made(*args, **kwargs)
        return out

    return call


def sampling(model: Any, request: int, pauses: Sequence[bool] = (False,) * 3) -> Iterator[Outputs]:
    """Two branches a step by order; waits before the first, between them, and after them."""
    outputs: Outputs = []
    with deltapass.session(steps=LENGTHS[request]) as session:
        for step in range(LENGTHS[request]):
            session.step(step)
            if pauses[0]:
                yield outputs
            outputs.append(model(request, step))
            if pauses[1]:
                yield outputs
            outputs.append(model(request, step, 1))
            if pauses[2]:
                yield outputs
    assert session.report().as_planned
    assert session.report().cached
    yield outputs


@pytest.fixture(scope="module")
def alone(model: Any) -> list[Outputs]:
    return [next(sampling(model, request)) for request in range(len(LENGTHS))]


def equal(outputs: Sequence[Outputs], alone: Sequence[Outputs]) -> bool:
    return all(
        len(mine) == len(right) and all(map(torch.equal, mine, right))
        for mine, right in zip(outputs, alone, strict=True)
    )


def in_turn(generators: Sequence[Iterator[Outputs]]) -> list[Outputs]:
    """The last thing each gives; all of them are advanced by one step at a time."""
    last: dict[int, Outputs] = {}
    waiting = dict(enumerate(generators))
    while waiting:
        for at, generator in list(waiting.items()):
            given = next(generator, None)
            if given is None:
                del waiting[at]
            else:
                last[at] = given
    return [last[at] for at in sorted(last)]


def advanced_by_one_task(generators: Sequence[AsyncIterator[Outputs]]) -> list[Outputs]:
    """The last thing each gives."""

    async def together() -> list[Outputs]:
        found: dict[int, Outputs] = {}
        waiting = dict(enumerate(generators))
        while waiting:
            for at, generator in list(waiting.items()):
                given = await anext(generator, None)
                if given is None:
                    del waiting[at]
                else:
                    found[at] = given
        return [found[at] for at in sorted(found)]

    return asyncio.run(together())


# ---- in turn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pauses", PAUSES)
def test_generators_that_are_advanced_in_turn(
    model: Any, alone: Any, pauses: tuple[bool, ...]
) -> None:
    generators = [sampling(model, request, pauses) for request in range(len(LENGTHS))]
    assert equal(in_turn(generators), alone)
    assert active_session() is None


def test_generators_that_begin_and_end_in_the_midst_of_others(model: Any, alone: Any) -> None:
    every = (True, True, True)
    long, short, late = (sampling(model, request, every) for request in (2, 1, 0))
    for _ in range(4):
        next(long), next(short)
    outputs = {1: list(short)[-1], 0: list(late)[-1], 2: list(long)[-1]}
    assert equal([outputs[request] for request in range(3)], alone)


def test_generators_of_steps_at_a_time_inside_a_session_of_the_driver(
    model: Any, alone: Any
) -> None:
    generators = [sampling(model, request, (True, False, True)) for request in (0, 1)]
    outputs: Outputs = []
    with deltapass.session(steps=LENGTHS[2]) as session:
        for step in range(LENGTHS[2]):
            for generator in generators:
                next(generator, None)
            session.step(step)
            outputs += [model(2, step)]
            for generator in generators:
                next(generator, None)
            session.step(step, branch="second")
            outputs += [model(2, step, 1)]
    assert session.report().as_planned
    assert equal([outputs], alone[2:])
    for generator in generators:
        generator.close()


@pytest.mark.parametrize("pauses", PAUSES[1:])
@pytest.mark.parametrize("tasks", [False, True], ids=["one task", "a task each"])
def test_asynchronous_generators(model: Any, alone: Any, pauses: Any, tasks: bool) -> None:
    async def sample(request: int) -> AsyncIterator[Outputs]:
        for outputs in sampling(model, request, pauses):
            await asyncio.sleep(0)
            yield outputs

    async def last(request: int) -> Outputs:
        return [outputs async for outputs in sample(request)][-1]

    async def together() -> list[Outputs]:
        return await asyncio.gather(*map(last, range(3)))

    if tasks:
        assert equal(asyncio.run(together()), alone)
    else:
        assert equal(advanced_by_one_task([sample(request) for request in range(3)]), alone)


@pytest.mark.parametrize("pauses", PAUSES)
def test_asynchronous_generators_that_hold_the_sessions_themselves(
    model: Any, alone: Any, pauses: tuple[bool, ...]
) -> None:
    async def sample(request: int) -> AsyncIterator[Outputs]:
        outputs: Outputs = []
        with deltapass.session(steps=LENGTHS[request]) as session:
            for step in range(LENGTHS[request]):
                session.step(step)
                for branch in range(2):
                    await asyncio.sleep(0)
                    if pauses[branch]:
                        yield outputs
                    outputs.append(model(request, step, branch))
                if pauses[2]:
                    yield outputs
        yield outputs

    assert equal(advanced_by_one_task([sample(request) for request in range(3)]), alone)


def in_threads(model: Any, request: int, pause: bool) -> AsyncIterator[Outputs]:
    async def sample() -> AsyncIterator[Outputs]:
        outputs: Outputs = []
        with deltapass.session(steps=LENGTHS[request]) as session:
            for step in range(LENGTHS[request]):
                for branch in range(2):
                    session.step(step, branch=branch)
                    if pause:
                        yield outputs
                    outputs.append(await asyncio.to_thread(model, request, step, branch))
                    yield outputs
        yield outputs

    return sample()


def test_asynchronous_generators_whose_calls_run_in_threads(model: Any, alone: Any) -> None:
    generators = [in_threads(model, request, pause=False) for request in range(3)]
    assert equal(advanced_by_one_task(generators), alone)


def test_a_call_in_a_thread_that_could_be_of_two_generators_is_refused(model: Any) -> None:
    generators = [in_threads(model, request, pause=True) for request in range(2)]
    with pytest.raises(StateError, match="before either's model was called"):
        advanced_by_one_task(generators)


def test_a_generator_that_waits_for_a_thread_is_the_one_that_calls(model: Any, alone: Any) -> None:
    def sample(request: int, pool: ThreadPoolExecutor) -> Iterator[Outputs]:
        outputs: Outputs = []
        with deltapass.session(steps=LENGTHS[request]) as session:
            for step in range(LENGTHS[request]):
                session.step(step)
                for branch in range(2):
                    yield outputs
                    carried = contextvars.copy_context()
                    call = pool.submit(carried.run, model, request, step, branch)
                    outputs.append(call.result())
        yield outputs

    with ThreadPoolExecutor(1) as pool:
        assert equal(in_turn([sample(request, pool) for request in range(3)]), alone)


def test_visits_that_wait(model: Any, alone: Any) -> None:
    def sample(request: int) -> Iterator[Outputs]:
        session, outputs = deltapass.session(steps=LENGTHS[request]), []
        for step in range(LENGTHS[request]):
            for branch in range(2):
                with session.at(step, again=True):
                    yield outputs
                    outputs.append(model(request, step, branch))
                    yield outputs
        assert session.report().as_planned
        yield outputs

    assert equal(in_turn([sample(request) for request in range(3)]), alone)


def test_steps_told_and_calls_made_by_functions_and_context_managers(
    model: Any, alone: Any
) -> None:
    @contextmanager
    def opened(request: int) -> Iterator[deltapass.Session]:
        with deltapass.session(steps=LENGTHS[request]) as session:
            yield session

    def tell(session: deltapass.Session, step: int) -> None:
        session.step(step)

    def sample(request: int) -> Iterator[Outputs]:
        outputs: Outputs = []
        with opened(request) as session:
            for step in range(LENGTHS[request]):
                tell(session, step)
                yield outputs
                outputs += [model(request, step, branch) for branch in range(2)]
        yield outputs

    assert equal(in_turn([sample(request) for request in range(3)]), alone)


# ---- whose call it is ---------------------------------------------------------------------------


@pytest.fixture
def told() -> Iterator[list[deltapass.Session]]:
    with ExitStack() as stack:
        yield [stack.enter_context(deltapass.session(steps=4)) for _ in range(3)]


def test_the_session_told_last_is_active(toy: Any, model: Any) -> None:
    with deltapass.session(steps=4) as one, deltapass.session(steps=4) as other:
        for step in range(2):
            for session in (other, one):
                session.step(step)
                model(0, step)
    assert [entry.step for entry in one.entries] == [0, 1]
    assert one.report().as_planned
    assert other.report().as_planned


@pytest.mark.parametrize("left", list(itertools.permutations(range(3))))
def test_a_session_that_is_left_gives_back_to_the_one_told_before(left: Sequence[int]) -> None:
    sessions = [deltapass.session(steps=4) for _ in range(3)]
    for session in sessions:
        session.__enter__()
    order = [2, 0, 1]
    for at in order:
        sessions[at].step(0)
    for at in left:
        assert active_session() is sessions[order[-1]]
        sessions[at].__exit__(None)
        order.remove(at)
    assert active_session() is None


def test_what_is_told_inside_a_visit_holds_inside(told: list[deltapass.Session]) -> None:
    one, other, visited = told
    one.step(0)
    with visited.at(1):
        other.step(2)
        assert active_session() is other
        with visited.at(2):
            one.step(1)
            assert active_session() is one
        assert active_session() is other
    assert active_session() is one
    position = context.position_of(one)
    assert position is not None
    assert position.step == 1
    other.step(3)
    assert active_session() is other


def test_a_callback_apart_from_its_run_does_not_take_the_run_over() -> None:
    with deltapass.session(steps=4) as mine, deltapass.session(steps=4) as run:
        run.step(0)
        apart = context.enter(None)
        mine.step(0)
        assert active_session() is mine
        context.leave(apart)
        assert active_session() is run


def test_a_call_of_somebody_else_is_not_in_the_session_of_a_generator_that_waits(
    model: Any, alone: Any
) -> None:
    generator = sampling(model, 0, (False, False, True))
    for _ in range(3):
        next(generator)
        assert active_session() is None
    assert torch.equal(list(generator)[-1][-1], alone[0][-1])


def steps_of(session: deltapass.Session) -> Iterator[int]:
    """An iterator over steps, which tells them to whoever advances it."""
    with session:
        for step in range(session.steps or 0):
            session.step(step)
            yield step


def test_an_iterator_over_steps_tells_them_for_its_driver(model: Any, alone: Any) -> None:
    session = deltapass.session(steps=LENGTHS[1])
    outputs = [model(1, step, branch) for step in steps_of(session) for branch in range(2)]
    assert session.report().as_planned
    assert equal([outputs], alone[1:2])


def test_iterators_over_steps_in_turn(model: Any) -> None:
    sessions = [deltapass.session(steps=4) for _ in range(2)]
    iterators = list(map(steps_of, sessions))
    for _ in range(4):
        for request, iterator in enumerate(iterators):
            model(request, next(iterator))
    assert all(len(session.entries) == 4 for session in sessions)
    assert all(session.report().as_planned for session in sessions)
    assert not any(map(list, iterators))


def test_iterators_that_both_tell_before_a_call_are_refused(model: Any) -> None:
    one, other = (deltapass.session(steps=4) for _ in range(2))
    iterators = list(map(steps_of, (one, other)))
    assert list(map(next, iterators)) == [0, 0]
    with pytest.raises(StateError, match="before either's model was called"):
        model(0, 0)
    with one.at(0, again=True):
        model(0, 0)
    for iterator in iterators:
        iterator.close()


def test_what_a_generator_holds_is_not_held_by_its_session() -> None:
    class Latents:
        """Stands for tensors of a request."""

    session, held = deltapass.session(steps=4), []

    def sample() -> Iterator[None]:
        latents = Latents()
        held.append(weakref.ref(latents))
        with session:
            session.step(0)
            yield

    generator = sample()
    next(generator)
    copied = context.innermost()
    assert copied is session
    del generator
    assert held[0]() is None
    assert not session.active
    assert active_session() is None


def test_a_session_is_told_by_any_number_of_generators() -> None:
    with deltapass.session(steps=1) as session:

        def tell() -> Iterator[None]:
            session.step(0)
            yield

        kept = [tell() for _ in range(100)]
        for generator in kept:
            next(generator)
        stay = context.stay_of(session)
        assert stay is not None
        assert len(stay.tellers) <= context.MANY
        assert active_session() is session
