"""Which deltas a table of steps makes worth emitting, reading and holding."""

from __future__ import annotations

from collections.abc import Sequence

from deltapass.schedule.rules import Span


def emissions(table: Sequence[Span | None], order: int) -> tuple[frozenset[Span], ...]:
    """For every step, the spans whose deltas a refresh there must emit.

    A cached step reads the deltas of the last `order` + 1 refreshes before it, so a refresh
    emits a span's delta only if a cached step of that span follows within that many refreshes.
    Cached steps emit nothing.
    """
    return tuple(
        frozenset() if span is not None else read_after(table, step, order)
        for step, span in enumerate(table)
    )


def read_after(table: Sequence[Span | None], step: int, order: int) -> frozenset[Span]:
    """Spans whose deltas, if made at `step`, later cached steps read: within `order` refreshes."""
    read: set[Span] = set()
    refreshes = 0
    for span in table[step + 1 :]:
        if span is not None:
            read.add(span)
            continue
        refreshes += 1
        if refreshes > order:
            break
    return frozenset(read)


def held_deltas(table: Sequence[Span | None], order: int) -> tuple[dict[Span, int], ...]:
    """For every step, how many deltas of each span are held after it.

    A delta is held from the refresh that emits it to the last cached step that reads its span.
    """
    held: dict[Span, int] = {}
    after = []
    for step, emitted in enumerate(emissions(table, order)):
        for span in emitted:
            held[span] = min(order + 1, held.get(span, 0) + 1)
        later = set(table[step + 1 :])
        held = {span: count for span, count in held.items() if span in later}
        after.append(dict(held))
    return tuple(after)
