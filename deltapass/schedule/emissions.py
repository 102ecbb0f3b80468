"""Which deltas a table of steps makes worth emitting, reading and holding.

Everything is told for all steps at once, in time linear in the number of steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from deltapass.schedule.rules import Span

NOTHING: Final[frozenset[Span]] = frozenset()


def reads_after(table: Sequence[Span | None], order: int) -> tuple[frozenset[Span], ...]:
    """For every step, the spans whose deltas, if made there, some later cached step reads.

    A cached step reads the deltas of the last `order` + 1 refreshes before it. What is made at a
    step is therefore read by the cached steps up to the next refresh, and by those of `order`
    further runs of cached steps. Of what was made before, nothing else is read.
    """
    runs: deque[frozenset[Span]] = deque(maxlen=order)  # spans of the runs after the present one
    run = read = NOTHING
    found = []
    for row in reversed(table):
        found.append(read)
        if row is None:
            runs.append(run)
            run, read = NOTHING, NOTHING.union(*runs)
        elif row not in run:
            run, read = run | {row}, read | {row}
    return tuple(reversed(found))


def emissions(table: Sequence[Span | None], order: int) -> tuple[frozenset[Span], ...]:
    """For every step, the spans whose deltas a refresh there must emit; none for cached steps."""
    read = reads_after(table, order)
    return tuple(spans if row is None else NOTHING for row, spans in zip(table, read, strict=True))


def fresh_since(table: Sequence[Span | None]) -> tuple[int, ...]:
    """For every step, the last refresh at or before it; 0 where there is none."""
    refreshes = (step if row is None else 0 for step, row in enumerate(table))
    return tuple(accumulate(refreshes, max))


def weight_of_trend(step: int, newest: int, before: int) -> float:
    """W of the linear extrapolation d1 + w * (d1 - d0), over step positions.

    Args:
        step: The cached step.
        newest: The step at which d1 was made.
        before: The step at which d0 was made. With one delta only, d0 is d1 and w is 0: the
            prediction of order 0.
    """
    return (step - newest) / (newest - before) if newest != before else 0.0


def held_deltas(table: Sequence[Span | None], order: int) -> tuple[dict[Span, int], ...]:
    """For every step, how many deltas of each span are held after it.

    A delta is held from the refresh that emits it as long as some later step reads it.
    """
    held: dict[Span, int] = {}
    after = []
    for emitted, kept in zip(emissions(table, order), reads_after(table, order), strict=True):
        for span in emitted:
            held[span] = min(order + 1, held.get(span, 0) + 1)
        held = {span: count for span, count in held.items() if span in kept}
        after.append(held.copy())
    return tuple(after)
