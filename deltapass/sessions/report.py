"""What a session did: per call, the planned step, the realised one, and why they differ.

`SessionReport` reads as text, as a rich table, as a dict and as JSON; `timeline` draws it.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, final

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from deltapass.graph.program import Macs
from deltapass.schedule.files import table_rows
from deltapass.schedule.rules import Span

SCHEMA: Final = 1  # of `SessionReport.to_dict`; raised when a key changes its meaning or goes
NO_MACS: Final = Macs()
NO_WRAP: Final = 100_000  # columns of the console that `str` prints to


def branch_label(branch: Hashable) -> str:
    """A branch for people: "-", "#1", "cond", "cond #1"; anything else as its `str`.

    A session calls the branches of a step (name, number): the n-th call of that name.
    """
    match branch:
        case None | (None, 0):
            return "-"
        case (None, int(nth)):
            return f"#{nth}"
        case (name, int(nth)):
            return f"{name} #{nth}" if nth else str(name)
    return str(branch)


@final
class Cause(StrEnum):
    """Why a call could not read a delta. Every one of them is answered with the full graph."""

    NEW_TRAJECTORY = "new trajectory"
    BACK = "went back"
    REPEATED = "step repeated"
    SKIPPED = "step skipped"
    BRANCH = "branch first seen"
    GUIDANCE = "guidance switched"
    BATCH = "batch changed"
    SHAPE = "shape changed"
    DTYPE = "dtype changed"
    DEVICE = "device changed"
    GRAPH = "graph changed"
    WEIGHTS = "weights changed"
    CONDITIONING = "conditioning changed"
    SCHEDULE = "schedule changed"
    FAILED = "call failed"
    NO_DELTA = "no delta"
    REFUSED = "refused"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One call of one compiled model.

    Attributes:
        trajectory: Which trajectory of the session, from 0.
        step: Step of the trajectory, from 0; None where it was not known.
        branch: Which call of the step: a name, and a number where one name is called again.
        planned: The span the schedule skips here; None for a refresh.
        realised: The span that was skipped; None for a refresh.
        cause: Why no delta could be read; None if that did not matter or did not happen. A
            planned refresh may have a cause too: what made older deltas worthless.
        reason: The cause in a sentence, with numbers and names.
        milliseconds: Wall time of the call on the host. A GPU may still be at work then.
        macs: Multiply-accumulates of the variant that ran.
        full_macs: Multiply-accumulates of the full graph.
    """

    trajectory: int = 0
    step: int | None
    branch: Hashable = None
    planned: Span | None
    realised: Span | None
    cause: Cause | None = None
    reason: str = ""
    milliseconds: float = 0.0
    macs: Macs = NO_MACS
    full_macs: Macs = NO_MACS

    @property
    def as_planned(self) -> bool:
        """Whether the call did what the schedule says."""
        return self.planned == self.realised and not self.refused

    @property
    def refused(self) -> bool:
        """Whether the full graph ran because nothing could be planned for the call."""
        return self.cause is Cause.REFUSED

    @property
    def forced(self) -> bool:
        """Whether the schedule skips a span here and the full graph had to run instead."""
        return self.planned is not None and self.realised is None and not self.refused

    @property
    def why(self) -> str:
        """Cause and reason as one text; empty if there is neither."""
        cause = self.cause or ""
        if cause.casefold() in self.reason.casefold():  # also where there is no cause
            return self.reason
        return f"{cause}: {self.reason}" if self.reason else str(cause)

    @property
    def branch_label(self) -> str:
        """The branch for people, as `branch_label` of it."""
        return branch_label(self.branch)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes; spans as in a schedule file, the branch as its label."""
        planned, realised = table_rows((self.planned, self.realised))
        return {
            "trajectory": self.trajectory,
            "step": self.step,
            "branch": self.branch_label,
            "planned": planned,
            "realised": realised,
            "cause": None if self.cause is None else self.cause.value,
            "reason": self.reason,
            "milliseconds": self.milliseconds,
            "macs": asdict(self.macs),
            "full_macs": asdict(self.full_macs),
        }


@final
@dataclass(frozen=True, slots=True)
class SessionReport:
    """All calls of a session, in order.

    Calls of unknown cost, such as refused ones, have no MACs and so count neither as saved nor as
    spent. `forgotten` counts the calls before `entries` that a long session no longer remembers.
    """

    entries: tuple[Entry, ...]
    forgotten: int = 0

    @property
    def calls(self) -> int:
        """Calls of compiled models."""
        return len(self.entries)

    @property
    def refreshes(self) -> int:
        """Calls that ran the full graph: planned, forced and refused ones."""
        return sum(entry.realised is None for entry in self.entries)

    @property
    def cached(self) -> int:
        """Calls that skipped a span."""
        return self.calls - self.refreshes

    @property
    def forced(self) -> int:
        """Calls that ran the full graph where the schedule skips a span."""
        return sum(entry.forced for entry in self.entries)

    @property
    def refused(self) -> int:
        """Calls for which nothing could be planned."""
        return sum(entry.refused for entry in self.entries)

    @property
    def as_planned(self) -> bool:
        """Whether every call did what the schedule says, and none was refused."""
        return all(entry.as_planned for entry in self.entries)

    @property
    def causes(self) -> Counter[Cause]:
        """How often each cause made deltas worthless or missing."""
        return Counter(entry.cause for entry in self.entries if entry.cause is not None)

    @property
    def milliseconds(self) -> float:
        """Wall time of all calls on the host."""
        return sum(entry.milliseconds for entry in self.entries)

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of what ran."""
        return sum((entry.macs for entry in self.entries), NO_MACS)

    @property
    def full_macs(self) -> Macs:
        """Multiply-accumulates of the full graph on every call."""
        return sum((entry.full_macs for entry in self.entries), NO_MACS)

    @property
    def saved_macs(self) -> Macs:
        """Multiply-accumulates that were not run."""
        return self.full_macs + self.macs * -1.0

    @property
    def saved_share(self) -> float:
        """Saved part of the MACs, with attention counted; 0.0 if none are known."""
        plain = self.full_macs.full
        return self.saved_macs.full / plain if plain else 0.0

    @property
    def speedup(self) -> float:
        """Full over realised MACs, with attention counted as in `explain`; 1.0 if none are known.

        It is what the run would gain if time went with MACs.
        """
        plain, ours = self.full_macs.full, self.macs.full
        return plain / ours if plain and ours else 1.0

    @property
    def summary(self) -> str:
        """One line: calls, refreshes, saved MACs with attention counted, wall time."""
        if not self.entries:
            return "no calls"
        parts = [
            f"{_extent(self.entries)}: {_number(self.refreshes, 'refresh', 'refreshes')} "
            f"({self.forced} forced, {self.refused} refused)",
            f"{self.cached} cached",
        ]
        if self.full_macs.full:
            parts.append(f"{100 * self.saved_share:.1f} % of MACs saved ({self.speedup:.2f}x)")
        parts.append(f"{self.milliseconds:.{0 if self.milliseconds >= 100 else 1}f} ms")
        if self.forgotten:
            parts.append(f"after {_number(self.forgotten, 'call', 'calls')} no longer remembered")
        return ", ".join(parts)

    def table(self) -> RichTable:
        """One row a call; the trajectory is left out where there is only one."""
        table = RichTable(box=None, pad_edge=False)
        several = len({entry.trajectory for entry in self.entries}) > 1
        if several:
            table.add_column("trajectory", justify="right", no_wrap=True)
        table.add_column("step", justify="right", no_wrap=True)
        for title in ("branch", "planned", "realised"):
            table.add_column(title, no_wrap=True)
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("reason")
        for entry in self.entries:
            cells = (
                *((str(entry.trajectory),) if several else ()),
                "-" if entry.step is None else str(entry.step),
                entry.branch_label,
                str(entry.planned or "refresh"),
                str(entry.realised or "refresh"),
                f"{entry.milliseconds:.1f}",
                entry.why,
            )
            table.add_row(*map(Text, cells))  # as Text: brackets in a reason are not markup
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes: a schema number, the totals, and one dict a call."""
        totals = ("calls", "refreshes", "cached", "forced", "refused", "as_planned", "milliseconds")
        costs = ("macs", "full_macs", "saved_macs")
        return {
            "schema": SCHEMA,
            "summary": self.summary,
            "totals": {
                **{name: getattr(self, name) for name in totals},
                "forgotten": self.forgotten,
                "causes": {cause.value: count for cause, count in self.causes.items()},
                **{name: asdict(getattr(self, name)) for name in costs},
                "saved_share": self.saved_share,
                "speedup": self.speedup,
            },
            "entries": [entry.to_dict() for entry in self.entries],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        return plain_text(self.__rich__(), NO_WRAP)

    def __rich__(self) -> Group:
        summary = Text(self.summary)
        return Group(summary, self.table()) if self.entries else Group(summary)


def plain_text(shown: RenderableType, width: int) -> str:
    """What a terminal without colours would show, in lines of at most `width` letters."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(map(str.rstrip, captured.get().splitlines()))


def _extent(entries: tuple[Entry, ...]) -> str:
    """Trajectories x steps x branches where every combination was called once, else calls."""
    places = {(entry.trajectory, entry.step, entry.branch) for entry in entries}
    trajectories, steps, branches = (len(set(values)) for values in zip(*places, strict=True))
    several = _number(trajectories, "trajectory", "trajectories")
    known = all(entry.step is not None for entry in entries)
    if not known or len(entries) != len(places) or len(places) != trajectories * steps * branches:
        calls = _number(len(entries), "call", "calls")
        return f"{calls} in {several}" if trajectories > 1 else calls
    text = _number(steps, "step", "steps")
    if branches > 1:
        text += f" x {branches} branches"
    return f"{several} x {text}" if trajectories > 1 else text


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
