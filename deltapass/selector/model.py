"""What the run time must know of a model: the same for one compiled here and one loaded from disk.

Takes nothing of graphs: a plan bundle has none. `ModelInfo` says what a call's inputs mean
and what is planned; a `Repertoire` gives the variants that can be run.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, final

import torch

from deltapass.graph.program import Input, Macs, Role
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.made_for import shapes_key
from deltapass.schedule.rules import Span, Table
from deltapass.sessions.weights import WeightWatch


@final
@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """How one model is run under one schedule.

    Attributes:
        inputs: The model's inputs, in calling order.
        conditioning: Position -> name of the inputs that stay the same along a trajectory.
        structure: Equal for graphs that compute the same.
        macs: Multiply-accumulates of one full call.
        blocks: Number of blocks in the stack.
        schedule: Which span at which step.
        steps: Steps of a trajectory, where they are known.
        caches: Whether the schedule ever skips a span.
        owner: What stands for the model, weakly; None: its first weight, which all its graphs
            share.
    """

    inputs: tuple[Input, ...]
    conditioning: Mapping[int, str]
    structure: int
    macs: Macs
    blocks: int
    schedule: AnySchedule
    steps: int | None
    caches: bool
    owner: weakref.ref[Any] | None = None

    @cached_property
    def shapes(self) -> str:
        """Equal for models whose weights have the same shapes; empty where these are not known."""
        weights = [given.spec for given in self.inputs if given.role is Role.WEIGHT]
        known = [spec.shape for spec in weights if spec is not None]
        return shapes_key(known) if known else ""


def weight_watch(inputs: Sequence[Input]) -> WeightWatch:
    """What looks at the weights among a model's inputs, and at the tensors that they hold."""
    weights = {at: given.spec for at, given in enumerate(inputs) if given.role is Role.WEIGHT}
    within = {at: spec.wrapped.paths for at, spec in weights.items() if spec and spec.wrapped}
    return WeightWatch(tuple(weights), within)


class Variant(Protocol):
    """One variant that can be run: inputs (then deltas) -> the model's outputs, new deltas."""

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one run."""

    def __call__(
        self, arguments: Sequence[Any], /
    ) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
        """Run it."""


class Repertoire(Protocol):
    """The variants of a model, by what they skip or emit."""

    def actual(self, wanted: Span | None) -> Span | None:
        """The span that is really skipped where a schedule wants one skipped."""

    def realised(self, table: Table) -> Table:
        """A table with every span replaced by the one that is really skipped."""

    def prepare(self, table: Table, schedule: AnySchedule) -> None:
        """Make ready what a schedule needs on a table of its realised spans."""

    def fitting(self, span: Span, taken: int) -> int:
        """The weighted deltas a stream of the variant that serves for `taken` of them."""

    def streams(self, span: Span) -> int:
        """Number of residual streams over a span: its deltas."""

    def shapes(self, span: Span) -> tuple[tuple[int, ...], ...]:
        """Shape of what is kept of each of these streams."""

    def refresh(self, spans: Sequence[Span]) -> Variant:
        """The full model that also gives the deltas of `spans`."""

    def cached(self, span: Span, taken: int = 0) -> Variant:
        """The model without the blocks of `span`, by so many weighted deltas a stream."""

    def full(self) -> Variant:
        """The full model, as it is made already where it is; deltas it gives may be left unread."""
