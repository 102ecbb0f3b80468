"""What one branch of one trajectory leaves behind on one model, and what made it worthless."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, final

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
    """The newest deltas of one span; `at` holds the steps at which they were made, newest first.

    `keep` is how many there may be; 0 stands for a fit, of which `deltas` are the coefficients and
    `at` the steps of all deltas that went into it. `stream` is the one of the device that made or
    read them last; see `streams.py`.
    """

    deltas: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    at: tuple[int, ...] = ()
    keep: int = 2
    stream: Any = None

    def push(self, deltas: tuple[torch.Tensor, ...], step: int, keep: int) -> None:
        """Add the newest deltas and keep the last `keep`."""
        self.deltas = [deltas, *self.deltas][:keep]
        self.at = (step, *self.at)[:keep]
        self.keep = keep

    def put_back(self, older: History) -> None:
        """Add deltas that were taken out, as far as newer ones leave room for them."""
        if not self.deltas:
            self.deltas, self.at, self.keep = older.deltas, older.at, older.keep
            self.stream = older.stream
            return
        if self.keep == 0:  # a fit that began anew meanwhile
            return
        self.deltas = [*self.deltas, *older.deltas][: self.keep]
        self.at = (*self.at, *older.at)[: self.keep]

    def trim(self, keep: int) -> None:
        """Let go of all but the newest `keep`; a fit stays whole."""
        if self.keep and len(self.deltas) > keep:
            self.deltas, self.at = self.deltas[:keep], self.at[:keep]


class Weigh(Protocol):
    """Gives the weights of the deltas of one row, as they are handed to a cached variant."""

    def __call__(self, at: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
        """One float32 vector a stream, for deltas made at these steps, newest first."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """What the schedule says of one step of a trajectory, for one model.

    Attributes:
        planned: The span to skip, or None for a refresh.
        emits: Spans whose deltas later cached steps read, should the step refresh; sorted.
        fresh_since: The last planned refresh; deltas from before it are too old.
        keeps: Spans whose deltas, made until now, later steps read, and how many of the newest;
            others can go.
        taken: Weighted deltas a stream that the cached variant takes; 0: the newest, unweighted.
        weigh: Gives their weights, where there are any.
        absorb: Brings the fit of a predictor that accumulates up to date with new deltas.
        halves: Whether a call of half the batch reads the mean of what both halves kept.
    """

    planned: Span | None
    emits: tuple[Span, ...]
    fresh_since: int
    keeps: Mapping[Span, int]
    taken: int = 0
    weigh: Weigh | None = None
    absorb: Absorb | None = None
    halves: bool = False


# Takes in the deltas of a refresh at a step.
Absorb = Callable[[History, tuple[torch.Tensor, ...], int], None]


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

    def keep_only(self, keeps: Mapping[Span, int]) -> None:
        """Let go of the deltas of all other spans, and of those too old to be read."""
        if not self.histories.keys() <= keeps.keys():
            self.histories = {span: h for span, h in self.histories.items() if span in keeps}
        for span, history in self.histories.items():
            if len(history.deltas) > keeps[span]:
                history.trim(keeps[span])

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of the deltas held."""
        return sum(
            delta.nbytes
            for history in list(self.histories.values())  # a call may be adding one
            for deltas in list(history.deltas)
            for delta in deltas
        )
