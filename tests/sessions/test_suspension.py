"""Setting deltas aside and bringing them back: the same bits, layouts and places, or an error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import compiled, follow, oracle, tensors
from models import make
from reference import Call

import deltapass
from deltapass.errors import StateError
from deltapass.schedule.rules import Span
from deltapass.sessions.deltas import History, Lane
from deltapass.sessions.report import Cause
from deltapass.sessions.suspension import bring_back, set_aside, throw_away

pytestmark = pytest.mark.keeps_compiled

STEPS = 6
SCHEDULE = {"cached_blocks": 2, "boundary": 0.5, "interval": 3}
TABLE = (None, Span(2, 4), Span(2, 4), None, Span(0, 2), Span(0, 2))  # of 6 steps and 4 blocks
DEEP, SHALLOW = Span(2, 6), Span(0, 4)

to_file = pytest.mark.parametrize("to_file", [False, True], ids=["memory", "file"])


def held() -> list[Lane]:
    """Two branches with deltas of several streams, orders, layouts and types."""
    dense, other = torch.randn(3, 4), torch.randn(4, 3).T
    cond, uncond, empty = Lane(None), Lane(None), Lane(None)
    cond.histories[DEEP] = History([(dense, other), (dense + 1, other + 1)], (4, 2))
    cond.histories[SHALLOW] = History([(torch.randn(2).to(torch.bfloat16),)], (4,))
    uncond.histories[DEEP] = History([(torch.randn(1, 5).expand(1, 5),)], (4,))
    return [cond, uncond, empty]


def deltas_of(states: list[Lane]) -> list[torch.Tensor]:
    histories = [history for state in states for history in state.histories.values()]
    return [d.clone() for history in histories for deltas in history.deltas for d in deltas]


def strides_of(states: list[Lane]) -> list[tuple[int, ...]]:
    histories = [history for state in states for history in state.histories.values()]
    return [d.stride() for history in histories for deltas in history.deltas for d in deltas]


# ---- states ------------------------------------------------------------------------------------


@to_file
def test_deltas_come_back_with_the_same_bits_layouts_and_steps(
    to_file: bool, tmp_path: Path
) -> None:
    states = held()
    before, strides = deltas_of(states), strides_of(states)
    suspended = set_aside(states, tmp_path / "deltas" if to_file else None)
    assert sum(state.nbytes for state in states) == 0
    bring_back(suspended)
    assert all(map(torch.equal, deltas_of(states), before))
    assert [d.dtype for d in deltas_of(states)] == [d.dtype for d in before]
    assert strides_of(states) == strides
    assert states[0].histories[DEEP].at == (4, 2)
    assert not list(tmp_path.iterdir())


@to_file
@torch.inference_mode()
def test_deltas_of_inference_mode_come_back(to_file: bool, tmp_path: Path) -> None:
    states = held()
    before = deltas_of(states)
    bring_back(set_aside(states, tmp_path / "deltas" if to_file else None))
    assert all(map(torch.equal, deltas_of(states), before))


@to_file
def test_what_a_call_made_meanwhile_stays_before_what_comes_back(
    to_file: bool, tmp_path: Path
) -> None:
    lane = held()[0]
    old = lane.histories[DEEP]
    suspended = set_aside([lane], tmp_path / "deltas" if to_file else None)
    new = tuple(torch.full_like(delta, 7.0) for delta in old.deltas[0])
    lane.histories[DEEP] = History([new], (6,))
    bring_back(suspended)
    # The newest first: a cached step of order 1 reads the first two.
    history = lane.histories[DEEP]
    assert history.at[:2] == (6, 4)
    for ours, wanted in zip(history.deltas, (new, old.deltas[0]), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert lane.histories[SHALLOW].at == (4,)


def test_what_was_thrown_away_leaves_no_file(tmp_path: Path) -> None:
    suspended = set_aside(held(), tmp_path / "deltas")
    throw_away(suspended)
    throw_away(suspended)
    throw_away(None)
    assert not list(tmp_path.iterdir())


def test_file_that_exists_is_not_overwritten_and_nothing_is_lost(tmp_path: Path) -> None:
    states, path = held(), tmp_path / "deltas"
    path.write_text("mine")
    before = deltas_of(states)
    with pytest.raises(StateError, match="exists already"):
        set_aside(states, path)
    assert path.read_text() == "mine"
    assert all(map(torch.equal, deltas_of(states), before))


@pytest.mark.parametrize(
    "place",
    [
        "missing/deltas",
        "a_file/deltas",
    ],
)
def test_file_that_cannot_be_written_is_an_error_and_nothing_is_lost(
    place: str, tmp_path: Path
) -> None:
    states = held()
    (tmp_path / "a_file").touch()
    before = deltas_of(states)
    with pytest.raises(StateError, match="cannot set deltas aside"):
        set_aside(states, tmp_path / place)
    assert all(map(torch.equal, deltas_of(states), before))


def test_half_written_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StateError, match="No space left"):
        set_aside(held(), tmp_path / "deltas")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"deltas", b"\x80\x02.", b"PK\x03\x04" + bytes(99)])
def test_file_that_is_no_longer_ours_is_an_error(content: bytes, tmp_path: Path) -> None:
    suspended = set_aside(held(), tmp_path / "deltas")
    (tmp_path / "deltas").write_bytes(content)
    with pytest.raises(StateError, match=r"cannot read the deltas.*session\.free"):
        bring_back(suspended)


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_file_that_was_cut_off_is_an_error(cut: float, tmp_path: Path) -> None:
    path = tmp_path / "deltas"
    suspended = set_aside(held(), path)
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(StateError, match="cannot read the deltas"):
        bring_back(suspended)


def test_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    suspended = set_aside(held(), tmp_path / "deltas")
    (tmp_path / "deltas").unlink()
    with pytest.raises(StateError, match="cannot read the deltas"):
        bring_back(suspended)


@pytest.mark.parametrize("other", [held, lambda: held()[:1]], ids=["alike", "fewer"])
def test_file_of_another_request_is_an_error(other: Any, tmp_path: Path) -> None:
    suspended = set_aside(held(), tmp_path / "mine")
    set_aside(other(), tmp_path / "other")
    shutil.copy(tmp_path / "other", tmp_path / "mine")
    with pytest.raises(StateError, match="cannot read the deltas"):
        bring_back(suspended)


# ---- sessions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> Any:
    return make("two_stream", depth=4)


@pytest.fixture
def model(toy: Any) -> Any:
    return compiled(toy, **SCHEDULE)


def calls_of(toy: Any) -> list[Call]:
    text = toy.inputs(999.0)[1]
    return [(toy.inputs(999.0 * (1 - i / STEPS), i)[0], text) for i in range(STEPS)]


@torch.no_grad()
def step(session: deltapass.Session, model: Any, call: Call, at: int) -> Any:
    args, kwargs = call
    session.step(at)
    return model(*args, **kwargs)


@to_file
@pytest.mark.parametrize("resumed", ["resume", "call"])
def test_run_interrupted_at_every_step_gives_the_same_bits(
    toy: Any, model: Any, to_file: bool, resumed: str, tmp_path: Path
) -> None:
    calls, outputs = calls_of(toy), []
    with deltapass.session(steps=STEPS) as session:
        for at, call in enumerate(calls):
            outputs.append(step(session, model, call, at))
            held = session.nbytes
            session.suspend(tmp_path / f"{at}.deltas" if to_file else None)
            assert session.nbytes == 0
            assert len(list(tmp_path.iterdir())) == to_file
            if resumed == "resume":
                session.resume()
                assert session.nbytes == held
                assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    assert session.report().as_planned
    expected = tensors(oracle(toy, TABLE, calls))
    assert all(map(torch.equal, tensors(outputs), expected))


@pytest.mark.parametrize("end", ["leave", "free", "restart", "back"])
def test_end_of_the_trajectory_removes_the_file(
    toy: Any, model: Any, end: str, tmp_path: Path
) -> None:
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:2], session)
        session.suspend(tmp_path / "deltas")
        if end == "back":
            session.step(0)
        elif end != "leave":
            getattr(session, end)()
        assert len(list(tmp_path.iterdir())) == (end == "leave")
        session.resume()
        assert session.nbytes == 0 or end == "leave"
        if end == "leave":
            session.suspend(tmp_path / "deltas")
    assert not list(tmp_path.iterdir())


def test_lost_file_is_an_error_until_the_deltas_are_given_up(
    toy: Any, model: Any, tmp_path: Path
) -> None:
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:1], session)
        session.suspend(tmp_path / "deltas")
        (tmp_path / "deltas").unlink()
        for _ in range(2):
            with pytest.raises(StateError, match="cannot read the deltas"):
                step(session, model, calls[1], 1)
        session.free()
        out = step(session, model, calls[1], 1)
        assert torch.equal(out, follow(toy, calls[1:2])[0])
        cached = step(session, model, calls[2], 2)
    last = session.entries[-2:]
    assert [(entry.cause, entry.branch) for entry in last] == [
        (Cause.NO_DELTA, (None, 0)),
        (None, (None, 0)),
    ]
    assert not torch.equal(cached, follow(toy, calls[2:3])[0])


def test_schedule_changed_while_set_aside_drops_what_comes_back(toy: Any, model: Any) -> None:
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:1], session)
        session.suspend()
        session.schedule = deltapass.delta_cache("deep", cached_blocks=1)
        session.resume()
        assert session.nbytes == 0
        out = step(session, model, calls[1], 1)
    assert torch.equal(out, follow(toy, calls[1:2])[0])
    assert session.entries[-1].cause is Cause.SCHEDULE


def test_suspending_nothing_is_no_harm_and_twice_an_error(
    toy: Any, model: Any, tmp_path: Path
) -> None:
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        session.suspend()
        session.resume()
        session.resume()
        outputs = follow(model, calls[:1], session)
        session.suspend(tmp_path / "deltas")
        for path in (None, tmp_path / "deltas", tmp_path / "others"):
            with pytest.raises(StateError, match=r"suspended already. Call resume\(\) first"):
                session.suspend(path)
        outputs.append(step(session, model, calls[1], 1))
    assert session.report().as_planned
    assert all(map(torch.equal, tensors(outputs), tensors(oracle(toy, TABLE[:2], calls[:2]))))
