"""Which generator told a session its step, and whether it is the code that runs now.

Generators run in the context of whoever advances them, so those that are advanced in turn share
one: which session was told last does not say whose code is calling. Their frames do: while a
generator waits it has no caller.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from threading import get_ident
from types import FrameType
from typing import Final, final

KINDS: Final = CO_GENERATOR | CO_ASYNC_GENERATOR  # coroutines are run by tasks: contexts of theirs
NEAR: Final = 2  # callers to look at: a session's own method, and who calls that
FAR: Final = 8


@final
class Teller:
    """A generator that entered a session or told it a step.

    Attributes:
        frame: Its frame; None once the session is closed, for a frame holds what is in it.
        calls: Whether it called a model itself. If not, it may be an iterator over steps: what it
            told is for whoever advances it.
        thread: The thread it told it in.
    """

    __slots__ = ("calls", "frame", "thread")

    def __init__(self, frame: FrameType) -> None:
        self.frame: FrameType | None = frame
        self.calls = False
        self.thread = get_ident()

    @property
    def waits(self) -> bool:
        """Whether it has handed control back, or has ended."""
        return self.frame is not None and self.frame.f_back is None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it waits, and this is not a call that it handed to another thread."""
        return self.waits and self.calls and self.thread == get_ident()


def generator_here(reach: int) -> FrameType | None:
    """The innermost generator among so many callers of the function that calls this one's caller.

    Not one that is a context manager: what it does is done for whoever enters it.
    """
    frame: FrameType | None = sys._getframe(2)
    for _ in range(reach + 1):
        if frame is None:
            return None
        if frame.f_code.co_flags & KINDS and not _manages_context(frame.f_back):
            return frame
        frame = frame.f_back
    return None


def _manages_context(caller: FrameType | None) -> bool:
    return caller is not None and caller.f_code.co_filename == contextlib.__file__


def running(tellers: Sequence[Teller]) -> FrameType | None:
    """The innermost of some generators that the running code is in; None if it is in none.

    A thread that works for a generator is in none: then the only one that does not wait.
    """
    frames = {id(one.frame): one.frame for one in tellers if one.frame and not one.waits}
    here: FrameType | None = sys._getframe(1) if frames else None
    while here is not None and id(here) not in frames:
        here = here.f_back
    return next(iter(frames.values())) if here is None and len(frames) == 1 else here
