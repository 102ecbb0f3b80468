"""The variants of a loaded bundle: what compiler/variants.py answers, answered from plan.json."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch

from deltapass.bundles.manifest import BundlePlan, VariantSpec
from deltapass.errors import ScheduleError
from deltapass.graph.executable import Executable, Lowered
from deltapass.graph.program import Macs
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

    def prepare(self, table: Table) -> None:
        """Nothing to do: all variants are there."""

    def streams(self, span: Span) -> int:
        """Number of residual streams over a span: its deltas."""
        return next(known.streams for known in self.plan.spans if known.span == span)

    def refresh(self, spans: Sequence[Span]) -> Variant:
        """The full model that also gives the deltas of `spans`."""
        return self._variant("refresh", tuple(spans))

    def cached(self, span: Span) -> Variant:
        """The model without the blocks of `span`."""
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
        if kind == "cached" or chosen.spans == spans:
            return run
        return _Fewer(run, self._kept(chosen, spans), run.macs)

    def _kept(self, chosen: VariantSpec, spans: Sequence[Span]) -> tuple[int, ...]:
        """Positions of the deltas of `spans` among those of a variant that gives more."""
        given = [span for span in chosen.spans for _ in range(self.streams(span))]
        return tuple(at for span in spans for at, owner in enumerate(given) if owner == span)


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
