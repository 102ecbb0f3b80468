"""Which session is active in this thread or task, and at which step it stands there.

Kept in one context variable, as an immutable tuple: threads and tasks never see each other's
place, a task keeps its own across awaits, and sessions may be left in any order.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, final


class Holder(Protocol):
    """A session, as far as this file needs to know it."""

    @property
    def active(self) -> bool:
        """Whether it is entered anywhere."""


@final
@dataclass(frozen=True, slots=True)
class Position:
    """A step that was announced, of which trajectory, and the calls of each model (by id) at it."""

    of: object
    step: int
    branch: Hashable
    calls: dict[int, int] = field(default_factory=dict)

    @property
    def called(self) -> bool:
        """Whether any model has been called at it."""
        return any(self.calls.values())


@final
@dataclass(frozen=True, slots=True)
class _Frame:
    holder: Holder
    position: Position | None


_FRAMES: Final[ContextVar[tuple[_Frame, ...]]] = ContextVar("deltapass_sessions", default=())


def enter(holder: Holder, position: Position | None = None) -> None:
    """Make a session the innermost one of this context."""
    _FRAMES.set((*_FRAMES.get(), _Frame(holder, position)))


def leave(holder: Holder) -> None:
    """Take the innermost frame of a session away, wherever it stands; none is no harm."""
    frames, at = _FRAMES.get(), _find(holder)
    if at is not None:
        _FRAMES.set((*frames[:at], *frames[at + 1 :]))


def move(holder: Holder, position: Position) -> bool:
    """Say where a session stands in this context; False if it is not active here."""
    frames, at = _FRAMES.get(), _find(holder)
    if at is None:
        return False
    _FRAMES.set((*frames[:at], replace(frames[at], position=position), *frames[at + 1 :]))
    return True


def position_of(holder: Holder) -> Position | None:
    """Where a session stands in this context."""
    at = _find(holder)
    return None if at is None else _FRAMES.get()[at].position


def innermost() -> Holder | None:
    """The innermost session of this context that is still entered somewhere.

    A task may outlive the session it inherited: that session is no longer active.
    """
    return next((f.holder for f in reversed(_FRAMES.get()) if f.holder.active), None)


def _find(holder: Holder) -> int | None:
    frames = _FRAMES.get()
    return next((at for at in reversed(range(len(frames))) if frames[at].holder is holder), None)
