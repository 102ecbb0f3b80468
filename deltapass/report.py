"""What a session did: per call, the planned step, the realised one, and why they differ."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

from deltapass.schedule import Span


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One call: `planned` and `realised` are None for a refresh, else the span skipped."""

    step: int
    branch: Hashable
    planned: Span | None
    realised: Span | None
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class SessionReport:
    """All calls of a session, in order; a refused call has a reason and no plan."""

    entries: tuple[Entry, ...]

    @property
    def refreshes(self) -> int:
        """Calls that ran the full graph."""
        return sum(entry.realised is None for entry in self.entries)

    @property
    def cached(self) -> int:
        """Calls that skipped a span."""
        return len(self.entries) - self.refreshes

    @property
    def as_planned(self) -> bool:
        """Whether every call did what the schedule says, and none was refused."""
        return not any(entry.reason for entry in self.entries)

    def __str__(self) -> str:
        lines = [f"{len(self.entries)} calls: {self.refreshes} refresh, {self.cached} cached"]
        for entry in self.entries:
            done = f"cached {entry.realised}" if entry.realised else "refresh"
            plan = f"cached {entry.planned}" if entry.planned else "refresh"
            why = f" (planned: {plan}; {entry.reason})" if entry.reason else ""
            lines.append(f"step {entry.step:3d} branch {entry.branch}: {done}{why}")
        return "\n".join(lines)
