"""What one branch leaves behind: its deltas, whose they are, and what made them worthless."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from driving import compiled, follow
from models import make
from reference import Call

import deltapass
from deltapass.schedule.rules import Span
from deltapass.sessions.deltas import Doubt, History, Lane
from deltapass.sessions.report import Cause
from deltapass.sessions.session import active_session

pytestmark = pytest.mark.keeps_compiled

DEEP, SHALLOW = Span(2, 6), Span(0, 4)
WEIGHTS = Doubt(Cause.WEIGHTS, "the weights changed")
FAILED = Doubt(Cause.FAILED, "a call failed")


def history(numbers: int, step: int = 0) -> History:
    return History([(torch.zeros(numbers),)], (step,))


def holding(**spans: int) -> Lane:
    """A state with one delta of so many numbers for each of `deep` and `shallow`."""
    state = Lane(None)
    names = {"deep": DEEP, "shallow": SHALLOW}
    state.histories.update({names[name]: history(numbers) for name, numbers in spans.items()})
    return state


# ---- histories ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "at"), [(1, (4,)), (2, (4, 2))])
def test_history_keeps_the_newest_deltas_first(keep: int, at: tuple[int, ...]) -> None:
    newest = History()
    for step in (0, 2, 4):
        newest.push((torch.full((1,), float(step)),), step, keep)
    assert newest.at == at
    assert [deltas[0].item() for deltas in newest.deltas] == list(map(float, at))


@pytest.mark.parametrize(("keep", "at"), [(0, ()), (1, (2,)), (2, (2, 0))])
def test_trimming_lets_go_of_the_oldest(keep: int, at: tuple[int, ...]) -> None:
    some = History()
    some.push((torch.zeros(1),), 0, keep=2)
    some.push((torch.zeros(1),), 2, keep=2)
    some.trim(keep)
    assert some.at == at
    assert len(some.deltas) == len(at)


def test_trimming_frees_at_once() -> None:
    some = history(4)
    delta = weakref.ref(some.deltas[0][0])
    some.trim(0)
    assert delta() is None


# ---- states ------------------------------------------------------------------------------------


def test_bytes_are_those_of_all_deltas() -> None:
    state = Lane(None)
    assert state.nbytes == 0
    state.histories[DEEP] = History([(torch.zeros(3), torch.zeros(2, dtype=torch.float16))], (0,))
    state.histories[SHALLOW] = History([(torch.zeros(1),), (torch.zeros(1),)], (2, 0))
    assert state.nbytes == 3 * 4 + 2 * 2 + 4 + 4


def test_dropping_forgets_the_deltas_and_says_why() -> None:
    state = holding(deep=3)
    state.drop(WEIGHTS)
    assert state.doubt == WEIGHTS
    assert state.nbytes == 0


def test_the_first_reason_to_doubt_is_the_one_told() -> None:
    state = holding(deep=3)
    state.drop(WEIGHTS)
    state.drop(FAILED)
    assert state.doubt == WEIGHTS


def test_deltas_of_other_spans_are_let_go() -> None:
    state = holding(deep=3, shallow=1)
    state.keep_only({SHALLOW: 1})
    assert set(state.histories) == {SHALLOW}
    state.keep_only({})
    assert not state.histories


def test_deltas_too_old_to_be_read_are_let_go() -> None:
    state = holding(deep=3)
    for step in (2, 4):
        state.histories[DEEP].push((torch.zeros(3),), step, keep=3)
    state.keep_only({DEEP: 2})
    assert state.histories[DEEP].at == (4, 2)


def test_a_fit_stays_whole_however_few_deltas_are_read() -> None:
    state = holding(deep=3)
    state.histories[DEEP] = History([(torch.zeros(3),)] * 4, (6, 4, 2, 1, 0), keep=0)
    state.keep_only({DEEP: 1})
    state.histories[DEEP].trim(1)
    assert len(state.histories[DEEP].deltas) == 4
    newer = History()
    newer.put_back(state.histories[DEEP])
    assert (len(newer.deltas), newer.at, newer.keep) == (4, (6, 4, 2, 1, 0), 0)


def test_deltas_end_with_their_state_and_not_with_the_next_collection() -> None:
    state = holding(deep=3)
    delta = weakref.ref(state.histories[DEEP].deltas[0][0])
    gc.disable()
    try:
        del state
        assert delta() is None
    finally:
        gc.enable()


# ---- a model's deltas end with their trajectory --------------------------------------------------

STEPS = 6
SCHEDULE = {"cached_blocks": 2, "boundary": 0.5}


@pytest.fixture(scope="module")
def toy() -> Any:
    return make("adaln", depth=4)


@pytest.fixture
def model(toy: Any) -> Callable[..., Any]:
    return compiled(toy, **SCHEDULE)


def calls_of(toy: Any) -> list[Call]:
    return [toy.inputs(999.0 * (1 - step / STEPS), step) for step in range(STEPS)]


@torch.no_grad()
def run(model: Callable[..., Any], call: Call) -> Any:
    return model(*call[0], **call[1])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[torch.Tensor]]]:
    """Every delta that was kept; the collector is off, as a sampling loop cannot wait for it."""
    known: list[weakref.ref[torch.Tensor]] = []
    push = History.push

    def noted(self: History, deltas: tuple[torch.Tensor, ...], step: int, keep: int) -> None:
        known.extend(map(weakref.ref, deltas))
        push(self, deltas, step, keep)

    monkeypatch.setattr(History, "push", noted)
    gc.collect()
    gc.disable()
    yield known
    gc.enable()


def alive(made: list[weakref.ref[torch.Tensor]]) -> int:
    return sum(delta() is not None for delta in made)


def test_refresh_frees_what_it_replaces(toy: Any, model: Any, made: Any) -> None:
    with deltapass.session(steps=STEPS) as session:
        for step, call in enumerate(calls_of(toy)):
            session.step(step)
            run(model, call)
            assert alive(made) <= 1
    assert len(made) == 3


@pytest.mark.parametrize("end", ["leave", "back", "restart", "free", "copied context"])
def test_end_of_a_trajectory_frees_its_deltas_at_once(
    toy: Any, model: Any, made: Any, end: str
) -> None:
    call, kept = calls_of(toy)[0], []
    session = deltapass.session(steps=STEPS)
    with session.at(0, branch="cond"):
        run(model, call)
    with session:
        if end == "copied context":  # as every task that is begun in a session has
            kept.append(contextvars.copy_context())
        session.step(1)
        assert alive(made) == 1
        if end in ("restart", "free"):
            getattr(session, end)()
        elif end == "back":
            session.step(0)
        if end in ("restart", "free", "back"):
            assert alive(made) == 0
    assert alive(made) == 0


def test_session_that_is_forgotten_frees_its_deltas_at_once(
    toy: Any, model: Any, made: Any
) -> None:
    session = deltapass.session(steps=STEPS)
    with session.at(0):
        run(model, calls_of(toy)[0])
    assert session.nbytes > 0
    del session
    assert alive(made) == 0


def test_session_that_is_forgotten_is_not_kept_by_a_task_begun_in_it(
    toy: Any, model: Any, made: Any
) -> None:
    session = deltapass.session(steps=STEPS)
    with session.at(0):
        run(model, calls_of(toy)[0])
        context = contextvars.copy_context()  # as that of a task for logging
    del session
    assert alive(made) == 0
    assert context.run(active_session) is None


def test_deltas_of_a_model_that_is_gone_are_freed() -> None:
    toy = make("adaln", depth=4)
    with deltapass.session(steps=STEPS) as session:
        follow(compiled(toy, **SCHEDULE), calls_of(toy)[:1], session)
        assert session.nbytes > 0
        torch._dynamo.reset()
        del toy
        gc.collect()
        assert session.nbytes == 0
