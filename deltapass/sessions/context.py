"""Which session is active in this thread or task, and at which step it stands there.

Kept in one context variable, as an immutable tuple: threads and tasks never see each other's
place, a task keeps its own across awaits, and sessions may be left in any order. The last of the
tuple is active: the session that was entered or told its step last. Generators, which share a
context, are told apart by generators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, NamedTuple, final

from deltapass.errors import StateError
from deltapass.sessions.generators import FAR, NEAR, Teller, generator_here, running

MANY: Final = 8  # generators that tell one session its steps, of which it is remembered


@final
@dataclass(eq=False, slots=True)
class Stay:
    """One entering of a session. A task that inherited it and outlives it finds it closed.

    Attributes:
        session: The session; None once it is closed.
        open: Whether it was not left yet.
        brief: Whether it is for the calls inside alone: on leaving, all is as it was before.
        under: Of a brief one: the stays below it, in their order, once that was changed inside.
        owner: The generator that entered it, if one did.
        tellers: The generators that entered it or told it a step.
    """

    session: Any
    open: bool = True
    brief: bool = False
    under: tuple[Stay, ...] = ()
    owner: Teller | None = None
    tellers: tuple[Teller, ...] = ()

    def teller(self, frame: FrameType) -> Teller:
        """What is remembered of a generator that tells now."""
        for known in self.tellers:
            if known.frame is frame:
                return known
        if len(self.tellers) >= MANY:
            self.tellers[0].frame = None
        self.tellers = (*self.tellers[-MANY + 1 :], Teller(frame))
        return self.tellers[-1]

    def close(self) -> None:
        """A context copied inside would hold what it refers to for ever."""
        self.open, self.session = False, None
        for teller in self.tellers:
            teller.frame = None


@final
@dataclass(eq=False, slots=True)  # frozen ones take three times as long to make, one a step
class Position:
    """A step that was told, the token of its trajectory, and the calls of each model at it.

    Models are known by their number on the trajectory.
    """

    of: object
    step: int
    branch: Hashable
    calls: dict[int, int] = field(default_factory=dict)


@final
class _Frame(NamedTuple):
    """A stay, where it stands, who said so, and which other generators waited then."""

    stay: Stay
    position: Position | None
    teller: Teller | None
    asleep: tuple[Teller, ...]

    @property
    def known(self) -> tuple[Teller, ...]:
        """The generators whose calls it is for: who told it, and who entered it."""
        return tuple([one for one in (self.teller, self.stay.owner) if one is not None])

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is for the calls of generators that all wait now."""
        owner, waits = self.stay.owner, self.teller is not None and self.teller.waits
        return waits and owner is not None and owner.is_elsewhere


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
        self._stay = enter(self._session, self._announce(), brief=True)
        return self._session

    def __exit__(self, *_: object) -> None:
        if self._stay is not None:
            leave(self._stay)


def enter(session: Any, position: Position | None = None, *, brief: bool = False) -> Stay:
    """Make a session the active one of this context; None covers those that are active."""
    stay, frames = Stay(session, brief=brief or session is None), _open_frames()
    frame = _told(stay, position, frames)
    stay.owner = frame.teller
    _FRAMES.set((*frames, frame))
    return stay


def leave(stay: Stay) -> None:
    """Close a stay, in whichever context that happens, wherever its frame stands there.

    The one below it is active again. After a brief one that is the one that was before it, even
    if another was told its step inside.
    """
    stay.close()
    frames = _open_frames()
    if stay.under:
        back = [f for known in stay.under for f in frames if f.stay is known]
        frames = (*back, *(f for f in frames if f.stay not in stay.under))
        stay.under = ()
    _FRAMES.set(frames)


def move(session: Any, position: Position) -> bool:
    """Say where a session stands in this context, and make it the active one.

    False if it is not entered here.
    """
    frame = _frame_of(session)
    if frame is None:
        return False
    frames = _open_frames()
    if frames[-1] is not frame:
        _note_order(frames, frames.index(frame))
    others = tuple([other for other in frames if other is not frame]) if len(frames) > 1 else ()
    _FRAMES.set((*others, _told(frame.stay, position, others)))
    return True


def _told(stay: Stay, position: Position | None, others: Sequence[_Frame]) -> _Frame:
    """The frame of a session that is entered or told now, which the caller's caller does."""
    # Looking far takes microseconds: only where it matters, or once for each session.
    alone = not others or (len(others) == 1 and others[0].stay.session is stay.session)
    telling = generator_here(NEAR if alone and position is not None else FAR)
    asleep = () if alone else tuple([t for frame in others for t in frame.known if t.waits])
    return _Frame(stay, position, None if telling is None else stay.teller(telling), asleep)


def _note_order(frames: Sequence[_Frame], at: int) -> None:
    """Before the frame at `at` goes up: what is under the brief stays that it passes."""
    for above, frame in enumerate(frames[at + 1 :], at + 1):
        if frame.stay.brief and not frame.stay.under:
            frame.stay.under = tuple([other.stay for other in frames[:above]])


def stay_of(session: Any) -> Stay | None:
    """The innermost open stay of a session in this context."""
    frame = _frame_of(session)
    return None if frame is None else frame.stay


def position_of(session: Any) -> Position | None:
    """Where a session stands in this context."""
    frame = _frame_of(session)
    return None if frame is None else frame.position


def innermost() -> Any:
    """The session that is active in this context, or None."""
    frame = _active()
    return None if frame is None else frame.stay.session


def called(session: Any) -> Position | None:
    """Where the session stands that is active here, for a call of a model.

    Raises:
        StateError: If iterators told two sessions their steps, and nothing says whose the call is.
    """
    frame = _frame_of(session)
    if frame is None or (frame.teller is None and not frame.stay.tellers):
        return None if frame is None else frame.position
    for teller in frame.known:
        teller.calls = teller.calls or not teller.waits
    if frame.teller is not None and frame.teller.waits:
        _check_that_others_were_called(frame)
    return frame.position


def _check_that_others_were_called(told: _Frame) -> None:
    for frame in _open_frames():
        uncalled = frame.position is not None and not frame.position.calls
        if frame.teller in told.asleep and uncalled:
            raise StateError(
                "two sessions were told their steps before either's model was called",
                "Tell a session its step right before each call, or call inside "
                "`with session.at(i):`",
            )


def _open_frames() -> tuple[_Frame, ...]:
    return tuple([frame for frame in _FRAMES.get() if frame.stay.open])


def _frame_of(session: Any) -> _Frame | None:
    active = _active()
    if active is not None and active.stay.session is session:
        return active
    for frame in reversed(_FRAMES.get()):
        if frame.stay.session is session:  # a closed stay has none
            return frame
    return None


def _active() -> _Frame | None:
    frames = _FRAMES.get()
    for frame in reversed(frames):
        if frame.stay.open:
            if not frame.asleep and not frame.stay.tellers:
                return frame
            return _active_among_generators([f for f in reversed(frames) if f.stay.open])
    return None


def _active_among_generators(frames: Sequence[_Frame]) -> _Frame | None:
    """The newest of some frames that is meant for the code that runs.

    What a generator told is for the calls it makes itself, also after others were advanced. Only
    one that never calls a model, an iterator over steps, tells them for whoever advances it.
    """
    alone = len(frames) == 1
    here = None if alone else running([teller for frame in frames for teller in frame.known])
    for frame in frames:
        if here is not None and any(known.frame is here for known in frame.known):
            return frame
        resumed = here is not None and any(known.frame is here for known in frame.asleep)
        if not resumed and not frame.is_elsewhere:
            return frame
    return None
