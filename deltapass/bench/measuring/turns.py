"""Two runs that take turns, step by step: what slows the machine for a moment slows both.

On a shared machine a core's speed changes by a tenth and more within a second. Two whole runs, one
after the other, meet different speeds; two that take turns at every call of their denoisers meet
the same ones, and the ratio of their times is steady where neither time is.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, final

StandStill = Callable[[], float]  # after a step: seconds for which the other had the machine


@final
class Turns:
    """Whose turn it is. The one that has done less of its steps goes on; the other stands still.

    Args:
        steps: How many each of the two takes.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps, self._done, self._turn = tuple(steps), [0, 0], 0
        self._ended, self._change = [False, False], threading.Condition()

    def begin(self, who: int) -> None:
        """Wait for the first turn; the first of the two has it."""
        with self._change:
            self._change.wait_for(lambda: self._turn == who)

    def step(self, who: int) -> float:
        """One more is done; seconds until it is this one's turn again."""
        left = time.perf_counter()
        with self._change:
            self._done[who] += 1
            if not self._ended[1 - who] and self._share(1 - who) < self._share(who):
                self._turn = 1 - who
                self._change.notify_all()
                self._change.wait_for(lambda: self._turn == who)
        return time.perf_counter() - left

    def end(self, who: int) -> None:
        """It is done, or failed: the other need not wait any more."""
        with self._change:
            self._ended[who], self._turn = True, 1 - who
            self._change.notify_all()

    def _share(self, who: int) -> float:
        return self._done[who] / max(self._steps[who], 1)


def take_turns(
    first: Callable[[StandStill], Any], second: Callable[[StandStill], Any], steps: tuple[int, int]
) -> tuple[Any, Any]:
    """What two runs give, of which one at a time is under way.

    Args:
        first: Given what it must call after every step; runs in this thread.
        second: The same, in a thread of its own with this one's context.
        steps: How often each calls it.

    Raises:
        BaseException: What either raised, the first's before the second's.
    """
    turns, given, failed = Turns(steps), list[Any](), list[BaseException]()

    def other() -> None:
        try:
            turns.begin(1)
            given.append(second(lambda: turns.step(1)))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failed.append(error)
        finally:
            turns.end(1)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(other,))
    thread.start()
    try:
        mine = first(lambda: turns.step(0))
    finally:
        turns.end(0)
        thread.join()
    if failed:
        raise failed[0]
    return mine, given[0]
