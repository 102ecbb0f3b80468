"""What one branch of one trajectory leaves behind on one model, and what made it worthless."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch

from deltapass.errors import LoweringError
from deltapass.graph.program import TensorSpec
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.rules import Span
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
    """The newest deltas of one span, at most two refreshes old; `at` holds their steps.

    `keep` is how many there may be.
    """

    deltas: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    keep: int = 2

    def push(self, deltas: tuple[torch.Tensor, ...], step: int, keep: int) -> None:
        """Add the newest deltas and keep the last `keep`."""
        self.deltas = [deltas, *self.deltas][:keep]
        self.at = [step, *self.at][:keep]
        self.keep = keep

    def put_back(self, older: History) -> None:
        """Add deltas that were taken out, as far as newer ones leave room for them."""
        if not self.deltas:
            self.keep = older.keep
        self.deltas = [*self.deltas, *older.deltas][: self.keep]
        self.at = [*self.at, *older.at][: self.keep]

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
        keeps: Spans whose deltas, made until now, later steps read; those of others can go.
    """

    planned: Span | None
    emits: tuple[Span, ...]
    fresh_since: int
    keeps: frozenset[Span]


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
@dataclass(slots=True)
class Lane:
    """One branch of one trajectory on one model: its deltas, and what they were made from.

    `histories` is replaced rather than emptied: a call in another thread may be reading it.

    Attributes:
        doubt: Why the next call finds nothing to read; None if there is no reason to doubt.
        histories: Span -> its newest deltas.
        placed: Step of the last call that was announced to come.
        last_step: Step of the last call that ran, whether it was full or cached.
        weights: How the weights were at the last call.
        graph: A token of the compiled graph of the last call, with the hash of its structure and
            the specs of its data inputs. Deltas outlive a graph: another of the same structure,
            which Dynamo may make at any time, reads them.
        conditioning: What the conditioning inputs looked like at the last call.
        changed: Names of the conditioning inputs that had changed at the last call.
        changes: Calls in a row whose conditioning had changed.
        table: The schedule's rows, found once.
        unlowered: Why a variant that the trajectory needs cannot be lowered; not tried again.
    """

    doubt: Doubt | None
    histories: dict[Span, History] = field(default_factory=dict)
    placed: int = 0
    last_step: int | None = None
    weights: Weighed | None = None
    graph: object = None
    structure: int = 0
    specs: tuple[tuple[str, TensorSpec], ...] = ()
    conditioning: dict[int, Seen] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    changes: int = 0
    table: LaneTable | None = None
    unlowered: LoweringError | None = None

    def drop(self, doubt: Doubt) -> None:
        """Forget the deltas: the next call refreshes, and this is why."""
        self.histories = {}
        self.doubt = self.doubt or doubt

    def keep_only(self, spans: frozenset[Span]) -> None:
        """Let go of the deltas of all other spans."""
        if not spans.issuperset(self.histories):
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
