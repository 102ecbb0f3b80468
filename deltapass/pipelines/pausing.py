"""Which pipelines are paused, in this thread or task: their calls run in full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

_PAUSES: Final[ContextVar[tuple[tuple[Any], ...]]] = ContextVar("deltapass_pauses", default=())


@contextmanager
def pause(pipe: Any) -> Iterator[None]:
    """The pipeline is paused for the calls inside; pauses need not be left in order."""
    mine = (pipe,)
    _PAUSES.set((*_PAUSES.get(), mine))
    try:
        yield
    finally:  # no reset, which would bring back those that were left meanwhile
        _PAUSES.set(tuple(one for one in _PAUSES.get() if one is not mine))


def is_paused(pipe: Any) -> bool:
    """Whether a call of the pipeline made here is to run in full."""
    return any(one is pipe for (one,) in _PAUSES.get())
