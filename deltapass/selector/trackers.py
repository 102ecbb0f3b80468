"""The implicit trajectories of a thread or task: one tracker for each model that it calls."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final

from deltapass.selector.timestep import TimestepTracker
from deltapass.sessions.owners import ByOwner

# A new thread or task starts with none. With whose they are, because a copied context takes its
# variables to another thread or task.
_TRACKERS: Final[ContextVar[tuple[weakref.ref[Any], ByOwner[TimestepTracker]] | None]] = ContextVar(
    "deltapass_trackers", default=None
)


def tracker_of(owner: Any) -> TimestepTracker:
    """This thread's or task's tracker of the model that owns a weight; a new one at first."""
    caller = _caller()
    known = _TRACKERS.get()
    if known is None or known[0] is not caller:
        known = (caller, ByOwner(TimestepTracker))
        _TRACKERS.set(known)
    return known[1].of(owner)


def known_tracker(owners: Iterable[Any]) -> TimestepTracker | None:
    """The tracker here of the model that has one of these weights, if it was ever called here."""
    known = _TRACKERS.get()
    if known is None or known[0] is not _caller():
        return None
    found = map(known[1].get, owners)
    return next((tracker for tracker in found if tracker is not None), None)


def _caller() -> weakref.ref[Any]:
    """Who is calling: the task, or outside an event loop the thread.

    Not by number, which may be given again to another once they have ended. The same object has
    the same weak reference.
    """
    running = asyncio._get_running_loop() is not None
    task = asyncio.current_task() if running else None
    return weakref.ref(task if task is not None else threading.current_thread())
