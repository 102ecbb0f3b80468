"""Deltas on several streams: waited for, kept for whoever reads them, copied to the host in order.

The streams are played: each operation on a delta is noted, and the notes are checked for the order
that a device needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from driving import compiled, in_session
from models import make

import deltapass
from deltapass.schedule.rules import Span
from deltapass.sessions import streams
from deltapass.sessions.deltas import History, Lane
from deltapass.sessions.suspension import bring_back, set_aside

SPAN = Span(1, 3)


class Played:
    """Streams of the CPU: which is current is told, and everything is noted."""

    def __init__(self) -> None:
        self.here = "a"
        self.log: list[tuple[Any, ...]] = []
        self.kept: dict[int, set[str]] = {}

    def current(self, device: torch.device) -> Any:
        return self.here

    def order(self, stream: Any, after: Any) -> None:
        self.log.append(("order", stream, after))

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        self.kept.setdefault(id(tensor), set()).add(stream)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        self.log.append(("copy", self.here))
        return torch.full_like(tensor, float("nan"))

    def point(self, stream: Any) -> Any:
        played = self

        class Point:
            def synchronize(self) -> None:
                played.log.append(("host waits", stream))

        return Point()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr(streams, "STREAMS", {"cpu": made})
    return made


def history(*deltas: torch.Tensor) -> History:
    return History([(delta,) for delta in deltas], tuple(range(len(deltas), 0, -1)))


def test_a_reader_on_another_stream_waits_and_keeps_the_memory(played: Played) -> None:
    newest, older = torch.ones(2), torch.ones(2)
    held = history(newest, older)
    streams.use(held)
    assert played.log == []
    assert held.stream == "a"
    streams.use(held)
    played.here = "b"
    streams.use(held)
    assert played.log == [("order", "b", "a")]
    assert played.kept == {id(newest): {"b"}, id(older): {"b"}}
    streams.use(held)
    assert len(played.log) == 1
    played.here = "c"
    streams.use(held)
    assert played.log[1:] == [("order", "c", "b")]


def test_a_session_on_two_streams(played: Played) -> None:
    """Every delta that a step reads was made or read before by a stream that this one waits for."""
    toy = make("cross_attention")
    model = compiled(toy, cached_blocks=4, interval=3, predictor="linear")
    calls = [toy.inputs(900.0 - 100 * step, step) for step in range(8)]
    wanted, _ = in_session(model, calls)
    played.log.clear()
    results = []
    with torch.no_grad(), deltapass.session(steps=8) as session:
        for step, (args, kwargs) in enumerate(calls):
            played.here = "ab"[step % 2]
            session.step(step)
            results.append(model(*args, **kwargs))
    assert all(map(torch.equal, results, wanted))
    cached = [entry.step for entry in session.report().entries if entry.realised is not None]
    assert cached
    orders = [entry for entry in played.log if entry[0] == "order"]
    assert {entry[1:] for entry in orders} == {("a", "b"), ("b", "a")}
    assert all(kept <= {"a", "b"} for kept in played.kept.values())
    assert played.kept


@pytest.mark.parametrize("to_file", [False, True])
def test_suspending_waits_for_the_stream_that_made_the_deltas(
    played: Played, to_file: bool, tmp_path: Path
) -> None:
    delta = torch.ones(3)
    lane = Lane(None)
    lane.histories[SPAN] = history(delta)
    streams.use(lane.histories[SPAN])
    played.here = "other thread's"
    suspended = set_aside([lane], tmp_path / "file" if to_file else None)
    copied = [("order", "other thread's", "a"), ("copy", "other thread's")]
    waited = [("host waits", "other thread's")]
    assert played.log == copied + (waited if to_file else [])
    assert played.kept[id(delta)] == {"other thread's"}
    assert not lane.histories
    played.here = "b"
    bring_back(suspended)
    assert played.log[len(copied) :] == (2 * waited if to_file else waited)
    assert lane.histories[SPAN].stream == "b"


def test_devices_without_streams_are_asked_nothing() -> None:
    held = history(torch.ones(2))
    streams.use(held)
    streams.use(History())
    assert held.stream is None
    copies, done = streams.to_host(held)
    assert copies[0][0] is held.deltas[0][0]
    assert done is None
