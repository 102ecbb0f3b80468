"""The variants of a loaded bundle: what compiler/variants.py answers, answered from plan.json."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch

from deltapass.bundles.manifest import BundlePlan, VariantSpec
from deltapass.bundles.older import TREND
from deltapass.errors import InternalError, ScheduleError
from deltapass.graph.executable import Executable, Lowered
from deltapass.graph.program import Macs
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.rules import Span, Table
from deltapass.selector.model import Variant


@final
@dataclass
class LoadedVariants:
    """The variants of a bundle; what it was not exported for cannot be run."""

    plan: BundlePlan
    segments: Mapping[str, Lowered]
    _made: dict[tuple[str, tuple[Span, ...]], Variant] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def actual(self, wanted: Span | None) -> Span | None:
        """The span that is skipped where a schedule wants one skipped.

        Raises:
            ScheduleError: If the bundle was exported without it.
        """
        if wanted is None:
            return None
        for known in self.plan.spans:
            if wanted in (known.wanted, known.span):
                return known.span
        can = ", ".join(str(known.span) for known in self.plan.spans) or "nothing"
        raise ScheduleError(
            f"the bundle cannot skip {wanted}; it can skip {can}",
            "Export the model with this schedule, or use one with these spans",
        )

    def realised(self, table: Table) -> Table:
        """A table with every span replaced by the one that is really skipped."""
        return tuple(self.actual(span) for span in table)

    def prepare(self, table: Table, schedule: AnySchedule) -> None:
        """Make sure that the variants which are there can follow a schedule.

        Raises:
            ScheduleError: If it weighs more deltas than the bundle was exported with, or otherwise
                than a bundle of schema version 1 can.
        """
        spans = {span for span in table if span is not None}
        for span in spans:
            self.fitting(span, schedule.taken)
        weights = schedule.weights if isinstance(schedule, ExplicitSchedule) else ()
        if any(weights) and any(_has_trend(v) for v in self.plan.variants if spans & {*v.spans}):
            raise ScheduleError(
                "the rows have weights, and the bundle, of an older version, predicts by the line "
                "through the last two deltas only",
                "Export the model with this schedule",
            )

    def fitting(self, _span: Span, taken: int) -> int:
        """The weighted deltas a stream that the cached variants take, if they serve for `taken`.

        Raises:
            ScheduleError: If they take fewer.
        """
        ours = self.plan.taken
        if taken <= ours:
            return ours
        can = f"{ours} a stream" if ours else "the newest one as it is, no weighted ones"
        raise ScheduleError(
            f"the schedule weighs {taken} deltas a stream, the bundle's cached variants take {can}",
            "Export the model with this schedule, or use one that reads fewer deltas",
        )

    def streams(self, span: Span) -> int:
        """Number of residual streams over a span: its deltas."""
        return next(known.streams for known in self.plan.spans if known.span == span)

    def shapes(self, span: Span) -> tuple[tuple[int, ...], ...]:
        """None: no bundle keeps cross-attention, which alone is compared by shape."""
        return ()

    def refresh(self, spans: Sequence[Span]) -> Variant:
        """The full model that also gives the deltas of `spans`."""
        return self._variant("refresh", tuple(spans))

    def cached(self, span: Span, taken: int = 0) -> Variant:
        """The model without the blocks of `span`; `taken` is what `fitting` gave."""
        if taken != self.plan.taken:
            ours = self.plan.taken
            raise InternalError(f"a call weighs {taken} deltas, the bundle's variants {ours}")
        return self._variant("cached", (span,))

    def full(self) -> Variant:
        """The full model."""
        return self.refresh(())

    def _variant(self, kind: str, spans: tuple[Span, ...]) -> Variant:
        key = kind, spans
        if key not in self._made:
            with self._lock:
                self._made[key] = self._make(kind, spans)
        return self._made[key]

    def _make(self, kind: str, spans: tuple[Span, ...]) -> Variant:
        alike = [v for v in self.plan.variants if v.kind == kind and set(spans) <= set(v.spans)]
        chosen = min(alike, key=lambda variant: len(variant.spans))
        run = Executable(chosen, self.segments.__getitem__)
        if _has_trend(chosen):
            return _Trend(run, self.streams(spans[0]), run.macs)
        if kind == "cached" or chosen.spans == spans:
            return run
        return _Fewer(run, self._kept(chosen, spans), run.macs)

    def _kept(self, chosen: VariantSpec, spans: Sequence[Span]) -> tuple[int, ...]:
        """Positions of the deltas of `spans` among those of a variant that gives more."""
        given = [span for span in chosen.spans for _ in range(self.streams(span))]
        return tuple(at for span in spans for at, owner in enumerate(given) if owner == span)


def _has_trend(variant: VariantSpec) -> bool:
    """Whether it is a cached one of version 1, order 1: others end with deltas or weights."""
    return variant.kind == "cached" and variant.inputs[-1:] == (TREND,)


@final
@dataclass(frozen=True, slots=True)
class _Trend:
    """A variant that takes w of d + w * (d - d_before), given weights of d and d_before.

    The weights of all streams are those of one line, so any of them tells w.
    """

    run: Variant
    streams: int
    macs: Macs

    def __call__(
        self, arguments: Sequence[Any]
    ) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
        return self.run([*arguments[: -self.streams], -arguments[-1][1]])


@final
@dataclass(frozen=True, slots=True)
class _Fewer:
    """A refresh whose surplus deltas are let go of."""

    run: Variant
    kept: tuple[int, ...]
    macs: Macs

    def __call__(
        self, arguments: Sequence[Any]
    ) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
        results, deltas = self.run(arguments)
        return results, tuple(deltas[at] for at in self.kept)
