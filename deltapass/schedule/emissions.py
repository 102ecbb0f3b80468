"""Which deltas a table of steps makes worth emitting, reading and holding.

Everything is told for all steps at once, in time linear in the number of steps. `depths` says, for
every step, how many of the newest refreshes a cached step reads the deltas of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from deltapass.schedule.rules import Span

NOTHING: Final[frozenset[Span]] = frozenset()


def reads_after(
    table: Sequence[Span | None], depths: Sequence[int]
) -> tuple[Mapping[Span, int], ...]:
    """For every step, which spans' deltas later cached steps read, and how many of the newest.

    Those counted are the ones made up to and at the step: a delta made at a refresh is among the
    newest `depth` of a later cached step if fewer than `depth` refreshes follow in between.
    """
    needs: dict[Span, int] = {}
    found: list[Mapping[Span, int]] = []
    for row, depth in zip(reversed(table), reversed(depths), strict=True):
        found.append(needs)
        if row is None:  # of those made before it, one fewer is among the newest
            needs = {span: count - 1 for span, count in needs.items() if count > 1}
        elif needs.get(row, 0) < depth:
            needs = {**needs, row: depth}
    return tuple(reversed(found))


def emissions(table: Sequence[Span | None], depths: Sequence[int]) -> tuple[frozenset[Span], ...]:
    """For every step, the spans whose deltas a refresh there must emit; none for cached steps."""
    read = reads_after(table, depths)
    return tuple(
        frozenset(needs) if row is None else NOTHING for row, needs in zip(table, read, strict=True)
    )


def fresh_since(table: Sequence[Span | None]) -> tuple[int, ...]:
    """For every step, the last refresh at or before it; 0 where there is none."""
    refreshes = (step if row is None else 0 for step, row in enumerate(table))
    return tuple(accumulate(refreshes, max))


def held_deltas(table: Sequence[Span | None], depths: Sequence[int]) -> tuple[dict[Span, int], ...]:
    """For every step, how many deltas of each span are held after it.

    A delta is held from the refresh that emits it as long as some later step reads it.
    """
    held: dict[Span, int] = {}
    after = []
    for row, needs in zip(table, reads_after(table, depths), strict=True):
        made = 1 if row is None else 0
        counts = ((span, min(need, held.get(span, 0) + made)) for span, need in needs.items())
        held = {span: count for span, count in counts if count}
        after.append(held.copy())
    return tuple(after)


def made_at(table: Sequence[Span | None], depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """For every step, the refreshes whose deltas a cached step reads, newest first; else none."""
    refreshes: list[int] = []
    made: list[tuple[int, ...]] = []
    emitted = emissions(table, depths)
    for step, (row, depth) in enumerate(zip(table, depths, strict=True)):
        if row is None:
            refreshes.append(step)
            made.append(())
            continue
        known = (at for at in reversed(refreshes) if row in emitted[at])
        made.append(tuple(at for _, at in zip(range(depth), known, strict=False)))
    return tuple(made)
