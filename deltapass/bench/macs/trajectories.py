"""MACs of whole trajectories: plain, under a schedule, behind a gate, between two places."""

from __future__ import annotations

from deltapass.bench.macs.architectures import architecture, counted
from deltapass.graph.program import Macs
from deltapass.schedule.rules import Schedule, Span


def plain(name: str, batch: int, steps: int) -> Macs:
    """So many full steps."""
    return counted(name, batch).total * steps


def cached(name: str, batch: int, steps: int, schedule: Schedule) -> Macs:
    """Under a schedule; a cached step leaves out the blocks of its span.

    Raises:
        ScheduleError: If the schedule does not fit.
    """
    call = counted(name, batch)
    blocks = call.blocks(architecture(name).blocks)
    table = schedule.table(steps, len(blocks))
    return sum((call.total + _skipped(blocks, span) * -1 for span in table), Macs())


def gated(name: str, batch: int, steps: int, full: int) -> Macs:
    """Full steps up to the gate; after it neither cross-attention nor the unconditional half.

    Without guidance, a batch of one, there is no such half.
    """
    call = counted(name, 1)
    after = call.total + call.within(architecture(name).gated) * -1
    return plain(name, batch, full) + after * (steps - full)


def between(name: str, batch: int, steps: int, interval: int) -> Macs:
    """One full step in `interval`, the others run only what lies outside two places."""
    refreshes = -(-steps // interval)
    call = counted(name, batch)
    return call.total * refreshes + call.within(architecture(name).cached) * (steps - refreshes)


def _skipped(blocks: tuple[Macs, ...], span: Span | None) -> Macs:
    if span is None:
        return Macs()
    return sum(blocks[span.start : span.stop], Macs())
