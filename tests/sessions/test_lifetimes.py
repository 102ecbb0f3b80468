"""No result hangs on how long an object lives, and nothing is kept longer than it can be read."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from driving import by_timestep, compiled, oracle, sampled, tensors
from models import make

import deltapass
from deltapass.errors import RefusalWarning
from deltapass.schedule.rules import Span
from deltapass.sessions import log
from deltapass.sessions.report import Cause, Entry
from deltapass.sessions.trajectory import MAX_BRANCHES, Trajectory

STEPS = 8
OPTIONS = {"cached_blocks": 2, "boundary": 0.5}
DEEP, SHALLOW = Span(2, 4), Span(0, 2)
TABLE = (None, DEEP, None, DEEP, None, SHALLOW, None, SHALLOW)


def toy_of(depth: int = 4) -> Any:
    torch.manual_seed(0)
    return make("adaln", depth=depth)


def calls_of(toy: Any, steps: int = STEPS) -> list[Any]:
    return [toy.inputs(999.0 * (1 - step / steps), step) for step in range(steps)]


# ---- the collector ------------------------------------------------------------------------------


@pytest.fixture(params=["never", "always"])
def collect(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Collects garbage at every point; or never, and the collector does not run by itself."""
    gc.collect()
    if request.param == "never":
        gc.disable()
        yield lambda: None
        gc.enable()
        gc.collect()
    else:
        yield lambda: [gc.collect(), None][1]


def nothing(*_: Any) -> None:
    return None


def hooked(toy: Any, step: int, hooks: list[Any]) -> None:
    """Hooks of blocks come and go, so that Dynamo compiles anew what computes the same."""
    if step in (1, 4):
        hooks.append(toy.blocks[step % 3].register_forward_hook(nothing))
    if step in (3, 5):
        hooks.pop().remove()


def forgotten(toy: Any, step: int, hooks: list[Any]) -> None:
    """Dynamo forgets what it compiled, as it does where an object of its guards is gone."""
    if step in (1, 5):
        torch._dynamo.reset()


def called_elsewhere(toy: Any, step: int, hooks: list[Any]) -> None:
    """Another graph of the model is called and forgotten in between."""
    if step not in (1, 5):
        return
    other = compiled(toy, **OPTIONS)
    with torch.no_grad(), deltapass.session(steps=1) as session:
        session.step(0)
        args, kwargs = toy.inputs(999.0, 1)
        other(args[0][:1], *(value[:1] for value in args[1:]), **kwargs)


def as_rows(report: deltapass.SessionReport | None) -> list[tuple[Any, ...]]:
    def row(entry: Entry) -> tuple[Any, ...]:
        return entry.step, entry.planned, entry.realised, entry.cause, entry.reason

    return [] if report is None else [row(entry) for entry in report.entries]


@pytest.mark.parametrize("happens", [hooked, forgotten, called_elsewhere])
@pytest.mark.parametrize("told", [True, False], ids=["session", "timestep"])
@torch.no_grad()
def test_image_and_log_do_not_depend_on_the_collector(
    collect: Callable[[], None], happens: Callable[..., None], told: bool
) -> None:
    toy, hooks, outputs = toy_of(), list[Any](), []
    calls, table = sampled(calls_of(toy)), TABLE if told else by_timestep(TABLE)
    model = compiled(toy, **OPTIONS)
    session = deltapass.session(steps=STEPS)
    with session if told else nullcontext():
        for step, (args, kwargs) in enumerate(calls):
            happens(toy, step, hooks)
            collect()
            if told:
                session.step(step)
            outputs.append(model(*args, **kwargs))
            del args, kwargs
            collect()
    report = session.report() if told else deltapass.last_report(model)
    assert report is not None
    assert report.as_planned, as_rows(report)
    assert [row[2] for row in as_rows(report)] == list(table)
    wanted = oracle(toy, table, calls)
    assert all(map(torch.equal, tensors(outputs), tensors(wanted)))


class Model:
    """Stands for a model."""


def test_calls_of_a_model_that_is_gone_are_not_those_of_one_that_is_given_its_id() -> None:
    told = Trajectory(0)
    position = told.announce(0, None)
    for _ in range(100):
        model = Model()
        assert told.place(position, model).branch == (None, 0)
        told.take_back(position, model)
        assert told.place(position, model).branch == (None, 0)
        del model


# ---- what is held -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> Any:
    return toy_of()


@pytest.fixture
def call(toy: Any) -> Callable[[int], Any]:
    model = compiled(toy, **OPTIONS)
    calls = calls_of(toy)

    @torch.no_grad()
    def run(step: int) -> Any:
        args, kwargs = calls[step % STEPS]
        return model(*args, **kwargs)

    return run


def one_delta(call: Any) -> int:
    with deltapass.session(steps=2) as session:
        session.step(0)
        call(0)
        return session.nbytes


def test_branches_that_come_once_are_not_held(call: Any) -> None:
    delta, steps = one_delta(call), 60
    with deltapass.session(steps=steps) as session:
        for step in range(steps):
            for name in ("cond", f"only at {step}", random.Random(step).random()):
                session.step(step, branch=name)
                call(step)
            assert session.nbytes <= 5 * delta, "those of this step and the one before it"
        lanes = list(session._trajectory.lanes)
    regular = [entry for entry in session.report().entries if entry.branch == ("cond", 0)]
    assert all(entry.as_planned for entry in regular)
    assert sum(entry.realised is not None for entry in regular) == steps // 2
    assert len(lanes) < MAX_BRANCHES


@pytest.mark.filterwarnings("ignore:nothing cached:deltapass.RefusalWarning")
@pytest.mark.parametrize("by", ["step", "at"])
def test_steps_that_never_advance_hold_no_more_than_so_many_branches(call: Any, by: str) -> None:
    delta, session = one_delta(call), deltapass.session(steps=4)
    with session:
        for name in range(3 * MAX_BRANCHES):
            if by == "step":
                session.step(0, branch=name)
                call(0)
            else:
                with session.at(0, branch=name):
                    call(0)
            assert session.nbytes <= MAX_BRANCHES * delta
        held = trajectory_size(session)
        for name in range(MAX_BRANCHES):  # those are cached as ever
            session.step(1, branch=name)
            call(1)
    last = session.report().entries
    assert sum(entry.refused for entry in last) == 2 * MAX_BRANCHES
    assert all(entry.realised for entry in last[-MAX_BRANCHES:])
    assert held <= 4 * MAX_BRANCHES


def trajectory_size(session: deltapass.Session) -> int:
    mine = vars(session._trajectory)
    counts = [len(value) for value in mine.values() if isinstance(value, dict | set)]
    return sum(counts) + len(list(session._trajectory.lanes))


def test_branches_beyond_the_most_are_said_once_and_run_in_full(toy: Any, call: Any) -> None:
    args, kwargs = calls_of(toy)[0]
    with deltapass.session(steps=1) as session, pytest.warns(RefusalWarning) as said:
        for name in range(MAX_BRANCHES + 3):
            session.step(0, branch=name)
            out = call(0)
    assert len(said) == 1
    assert f"more than {MAX_BRANCHES} branches" in str(said[0].message)
    with torch.no_grad():
        assert torch.equal(out, toy(*args, **kwargs))


def test_a_delta_goes_with_the_last_step_that_reads_it(call: Any) -> None:
    delta = one_delta(call)
    held = []
    with deltapass.session(steps=STEPS) as session:
        for step in range(STEPS):
            session.step(step)
            call(step)
            held.append(session.nbytes // delta)
    assert held == [1, 0, 1, 0, 1, 0, 1, 0]


def test_a_branch_that_is_left_out_holds_nothing_while_others_go_on(call: Any) -> None:
    delta = one_delta(call)
    with deltapass.session(steps=STEPS) as session:
        for step in range(STEPS):
            for name in ("cond", "uncond") if step == 2 else ("cond",):
                session.step(step, branch=name)
                call(step)
            if step in (2, 4):
                assert session.nbytes == (2 if step == 2 else 1) * delta


def test_what_was_set_aside_of_a_branch_that_is_left_out_is_not_held(call: Any) -> None:
    with deltapass.session(steps=STEPS) as session:
        for name in ("cond", "uncond"):
            session.step(0, branch=name)
            call(0)
        session.suspend()
        session.step(2, branch="cond")
        session.resume()
        assert session.nbytes == 0


@pytest.mark.filterwarnings("ignore:nothing cached:deltapass.RefusalWarning")
def test_a_session_that_is_kept_for_ever_does_not_grow(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of all kinds, one after the other in one session: what is left after each."""
    monkeypatch.setattr(log, "MAX_ENTRIES", 16)
    dice, session, sizes = random.Random(0), deltapass.session(steps=STEPS), []

    def request() -> None:
        with session:
            for step in range(dice.randrange(STEPS)):
                for _ in range(dice.randrange(1, 4)):
                    session.step(step, branch=dice.choice(["cond", dice.random(), object()]))
                    call(step)
                if dice.random() < 0.1:
                    session.suspend()

    for number in range(120):
        request()
        assert session.nbytes == 0
        if number in (59, 119):
            gc.collect()
            sizes.append(len(gc.get_objects()))
    assert sizes[1] <= sizes[0] + 50


def test_freed_deltas_leave_nothing_behind_and_the_next_call_makes_them_anew(call: Any) -> None:
    with deltapass.session(steps=STEPS) as session:
        for step in range(2):
            session.step(step)
            call(step)
            session.free()
            assert session.nbytes == 0
        assert [entry.cause for entry in session.report().entries][1] is Cause.NO_DELTA
        session.step(2)
        call(2)
        assert session.nbytes
    assert session.nbytes == 0
