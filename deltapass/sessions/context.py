"""Which session is active in this thread or task, and at which step it stands there.

Kept in one context variable, as an immutable tuple: threads and tasks never see each other's
place, a task keeps its own across awaits, and sessions may be left in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

from deltapass.errors import StateError


@final
@dataclass(eq=False, slots=True)
class Stay:
    """One entering of a session. A task that inherited it and outlives it finds it closed."""

    session: Any
    open: bool = True


@final
@dataclass(eq=False, slots=True)  # frozen ones take three times as long to make, one a step
class Position:
    """A step that was told, the token of its trajectory, and the calls of each model at it.

    Models are known by the id of their first weight.
    """

    of: object
    step: int
    branch: Hashable
    calls: dict[int, int] = field(default_factory=dict)


@final
class _Frame(NamedTuple):
    stay: Stay
    position: Position | None


_FRAMES: Final[ContextVar[tuple[_Frame, ...]]] = ContextVar("deltapass_sessions", default=())


@final
class Visit:
    """A session active for the calls inside, at a position that is asked for on entering.

    Entered once a call of an attached pipeline: a class, for a generator costs three times as much.
    """

    __slots__ = ("_announce", "_session", "_stay")

    def __init__(self, session: Any, announce: Callable[[], Position]) -> None:
        self._session, self._announce = session, announce
        self._stay: Stay | None = None

    def __enter__(self) -> Any:
        if self._stay is not None:
            raise StateError("at() was entered twice", "Call it again for every `with`")
        self._stay = enter(self._session, self._announce())
        return self._session

    def __exit__(self, *_: object) -> None:
        if self._stay is not None:
            leave(self._stay)


def enter(session: Any, position: Position | None = None) -> Stay:
    """Make a session the innermost one of this context; None covers those that are active."""
    stay = Stay(session)
    _FRAMES.set((*_open_frames(), _Frame(stay, position)))
    return stay


def leave(stay: Stay) -> None:
    """Close a stay, in whichever context that happens, wherever its frame stands there."""
    stay.open, stay.session = False, None  # a context copied inside would hold it for ever
    _FRAMES.set(_open_frames())


def move(session: Any, position: Position) -> bool:
    """Say where a session stands in this context; False if it is not active here."""
    frame = _frame_of(session)
    if frame is not None:
        moved = _Frame(frame.stay, position)
        _FRAMES.set(tuple([moved if other is frame else other for other in _open_frames()]))
    return frame is not None


def stay_of(session: Any) -> Stay | None:
    """The innermost open stay of a session in this context."""
    frame = _frame_of(session)
    return None if frame is None else frame.stay


def position_of(session: Any) -> Position | None:
    """Where a session stands in this context."""
    frame = _frame_of(session)
    return None if frame is None else frame.position


def innermost() -> Any:
    """The innermost session of this context, or None."""
    for frame in reversed(_FRAMES.get()):
        if frame.stay.open:
            return frame.stay.session
    return None


def _open_frames() -> tuple[_Frame, ...]:
    return tuple([frame for frame in _FRAMES.get() if frame.stay.open])


def _frame_of(session: Any) -> _Frame | None:
    for frame in reversed(_FRAMES.get()):
        if frame.stay.session is session:  # a closed stay has none
            return frame
    return None
