"""What one branch of one trajectory leaves behind on one model, and what made it worthless."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch

from deltapass.graph.program import TensorSpec
from deltapass.schedule.rules import AnySchedule, Span
from deltapass.sessions.changes import Seen
from deltapass.sessions.report import Cause
from deltapass.sessions.weights import Weighed


@final
class Doubt(NamedTuple):
    """Why no delta can be read: the cause, and a sentence with numbers and names."""

    cause: Cause
    reason: str


@final
@dataclass(slots=True)
class History:
    """The newest deltas of one span, at most two refreshes old; `at` holds their steps."""

    deltas: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)

    def push(self, deltas: tuple[torch.Tensor, ...], step: int, keep: int) -> None:
        """Add the newest deltas and keep the last `keep`."""
        self.deltas = [deltas, *self.deltas][:keep]
        self.at = [step, *self.at][:keep]

    def make_room(self, keep: int) -> None:
        """Let go of what a refresh is about to replace, before it needs the memory."""
        del self.deltas[keep:], self.at[keep:]


@final
@dataclass(frozen=True, slots=True)
class Row:
    """What the schedule says of one step of a trajectory, for one model.

    Attributes:
        planned: The span to skip, or None for a refresh.
        emits: Spans whose deltas later cached steps read, should the step refresh; sorted.
        fresh_since: The last planned refresh; deltas from before it are too old.
        keeps: Spans that later steps read; the deltas of others can go. None: not known.
    """

    planned: Span | None
    emits: tuple[Span, ...]
    fresh_since: int
    keeps: frozenset[Span] | None


@final
class LaneTable(NamedTuple):
    """The rows of a whole trajectory, and what they were made for, compared by identity.

    `model` is a token that stands for the compiled graph: the graph itself must not be held.
    """

    model: object
    schedule: AnySchedule
    steps: int
    rows: tuple[Row, ...]


@final
@dataclass(slots=True, weakref_slot=True)
class Lane:
    """One branch of one trajectory on one model: its deltas, and what they were made from.

    `histories` is replaced rather than emptied: a call in another thread may be reading it.

    Attributes:
        doubt: Why the next call finds nothing to read; None if there is no reason to doubt.
        histories: Span -> its newest deltas.
        last_step: Step of the last call, whether it was full or cached.
        weights: How the weights were at the last call.
        graph: The compiled graph of the last call (weakly held), with the hash of its structure
            and the specs of its data inputs.
        conditioning: What the conditioning inputs looked like at the last call.
        changed: Names of the conditioning inputs that had changed at the last call.
        changes: Calls in a row whose conditioning had changed.
        table: The schedule's rows, found once.
    """

    doubt: Doubt | None
    histories: dict[Span, History] = field(default_factory=dict)
    last_step: int | None = None
    weights: Weighed | None = None
    graph: weakref.ref[Any] | None = None
    structure: int = 0
    specs: tuple[tuple[str, TensorSpec], ...] = ()
    conditioning: dict[int, Seen] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    changes: int = 0
    table: LaneTable | None = None

    def drop(self, doubt: Doubt) -> None:
        """Forget the deltas: the next call refreshes, and this is why."""
        self.histories = {}
        self.doubt = self.doubt or doubt

    def belong_to(
        self, graph: Any, specs: tuple[tuple[str, TensorSpec], ...], structure: int = 0
    ) -> None:
        """Note which graph is called now; nobody can read its deltas once it is gone."""
        if self.graph is None or self.graph() is not graph:
            mine = weakref.ref(self)  # a lane in a cycle would hold its deltas too long
            self.graph = weakref.ref(graph, lambda gone: _let_go(mine(), gone))
            self.structure, self.specs = structure, specs

    def keep_only(self, spans: frozenset[Span] | None) -> None:
        """Let go of the deltas of all other spans; None keeps all."""
        if spans is not None and not spans.issuperset(self.histories):
            self.histories = {span: h for span, h in self.histories.items() if span in spans}

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of the deltas held."""
        return sum(
            delta.nbytes
            for history in list(self.histories.values())  # a call may be adding one
            for deltas in list(history.deltas)
            for delta in deltas
        )


def _let_go(lane: Lane | None, gone: weakref.ref[Any]) -> None:
    """Nobody can read the deltas of a graph that is gone."""
    if lane is not None and lane.graph is gone:
        lane.histories = {}
