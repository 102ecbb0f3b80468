"""Setting the deltas of a preempted request aside, and bringing them back unchanged."""

from __future__ import annotations

import contextlib
import pickle
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch

from deltapass.errors import StateError
from deltapass.schedule.rules import Span
from deltapass.sessions.deltas import History, Lane
from deltapass.sessions.streams import to_host, use

Deltas = list[tuple[torch.Tensor, ...]]
# What torch.load raises for files that are gone, cut short, altered, or something else altogether.
UNREADABLE: Final = (
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError),
    *(ValueError, TypeError, LookupError, AttributeError),
)


@final
@dataclass(frozen=True, slots=True)
class Aside:
    """The deltas of one span of one branch, taken out: whose, from which steps and devices.

    `keep` is how many there may be, `done` the event at which they are in the host's memory.
    """

    lane: Lane
    span: Span
    at: tuple[int, ...]
    keep: int
    devices: tuple[torch.device, ...]
    done: Any = None


@final
@dataclass(frozen=True, slots=True)
class Suspended:
    """Deltas set aside; `kept` holds them in host memory, or is None where they are in the file.

    `token` stands in the file too: another request's file is not mistaken for it.
    """

    asides: tuple[Aside, ...]
    kept: list[Deltas] | None
    path: Path | None
    token: str


def set_aside(lanes: Sequence[Lane], path: Path | None) -> Suspended:
    """Take the deltas out of the lanes, into host memory or a new file.

    This thread's stream waits for the one that made them. Into host memory the copies are only
    started: the host waits for them when they are brought back, or written.

    Raises:
        StateError: If the file exists already, or cannot be written; the lanes are untouched.
    """
    taken = [(lane, lane.histories) for lane in lanes]
    asides, host = [], []
    for lane, histories in taken:
        for span, history in histories.items():
            devices = tuple(deltas[0].device for deltas in history.deltas)
            copies, done = to_host(history)
            asides.append(Aside(lane, span, history.at, history.keep, devices, done))
            host.append(copies)
    token = uuid.uuid4().hex
    if path is not None:
        _wait_for(asides)
        _write({"token": token, "deltas": host}, path)
    for lane, histories in taken:
        if lane.histories is histories:  # not what a call has made meanwhile
            lane.histories = {}
    return Suspended(tuple(asides), host if path is None else None, path, token)


def bring_back(suspended: Suspended) -> None:
    """Put the deltas back where they were, on the devices they came from; removes the file.

    A span that a call was refreshing meanwhile has them after its newer deltas, if there is room.

    Raises:
        StateError: If the file is gone or cannot be read.
    """
    host = suspended.kept
    _wait_for(suspended.asides)
    if host is None and suspended.path is not None:
        host = _read(suspended.path, suspended.token)
    for aside, deltas in zip(suspended.asides, host or [], strict=True):
        pairs = zip(deltas, aside.devices, strict=True)
        back = [
            tuple(delta.to(device, non_blocking=True) for delta in some) for some, device in pairs
        ]
        older = History(back, aside.at, aside.keep)
        newer = aside.lane.histories.setdefault(aside.span, History())
        for history in (older, newer):  # from now on both are this stream's
            use(history)
        newer.put_back(older)
    throw_away(suspended)


def _wait_for(asides: Sequence[Aside]) -> None:
    """Let the host wait until all copies are made."""
    for aside in asides:
        if aside.done is not None:
            aside.done.synchronize()


def throw_away(suspended: Suspended | None) -> None:
    """Let go of what was set aside, and of its file."""
    if suspended is not None and suspended.path is not None:
        with contextlib.suppress(OSError):
            suspended.path.unlink()


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        with path.open("xb") as file:
            torch.save(content, file)
    except FileExistsError as error:
        raise StateError(f"{path} exists already", "Name a new file") from error
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            path.unlink()  # nothing half-written stays behind
        fact = f"cannot set deltas aside in {path}: {error}"
        raise StateError(fact, "Name a new file where there is room") from error


def _read(path: Path, token: str) -> list[Deltas]:
    try:
        content: Any = torch.load(path, weights_only=True)
        if content["token"] != token:
            raise ValueError("it was written for another request")
        read: list[Deltas] = content["deltas"]
    except UNREADABLE as error:
        first = str(error).split("\n")[0].rstrip(".")
        fact = f"cannot read the deltas set aside in {path}: {type(error).__name__}: {first}"
        raise StateError(fact, "Call session.free() and go on: the next step refreshes") from error
    return read
