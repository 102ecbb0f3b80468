"""Before a search: which spans can be skipped, what steps cost, and how deltas hang together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from deltapass.errors import TuneError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span, Table
from deltapass.schedule.weights import Weights
from deltapass.tuning.fit.walk import Sharing
from deltapass.tuning.loops import Loop, Sampled
from deltapass.tuning.search.asked import Asked
from deltapass.tuning.search.candidates import Forecast, Space, default_spans, span_named
from deltapass.tuning.search.costs import TIME, Costs, costs_of, probing
from deltapass.tuning.search.pairs import Pairs, Recorder
from deltapass.tuning.search.scoring import Batch
from deltapass.tuning.subject import Subject

TIMED: Final = 3  # trajectories that are timed for every table
Advance = Callable[[], None]


def spans_wanted(given: Sequence[str | Span] | None, blocks: int) -> tuple[Span, ...]:
    """The spans to search, as the user or the default says.

    Raises:
        OptionError: If one is none of this model.
    """
    if given is None:
        return default_spans(blocks)
    return tuple(dict.fromkeys(span_named(text, blocks) for text in given))


def measured_space(
    loop: Loop, subject: Subject, asked: Asked, spans: Sequence[Span]
) -> tuple[Space, Costs]:
    """The space of what can really be skipped, and its costs.

    Runs a trajectory for every kind of variant there will be, so that no trial makes the first of
    its kind; in time, some more.

    Raises:
        TuneError: If no span can be cached.
    """
    kinds, seeds = kinds_of(asked.forecasts), asked.batches[0].seeds
    first = [probe(rows, kind) for kind in kinds for rows in _tables(spans, subject.steps, kind)]
    runs = [loop.run(seeds, schedule) for schedule in first]
    skipped = _skipped(runs)
    if not skipped:
        raise TuneError(
            "none of the spans to search can be cached",
            "Give other spans; deltapass.explain says of each why not",
        )
    if asked.unit == TIME:
        deepest = [probe(rows, kinds[0]) for rows in _tables(skipped, subject.steps, kinds[0])]
        runs = [loop.run(seeds, each) for _ in range(TIMED) for each in deepest]
    space = Space(
        steps=subject.steps, blocks=subject.blocks, spans=skipped, forecasts=asked.forecasts
    )
    return space, costs_of(asked.unit, runs)


def kinds_of(names: Sequence[str]) -> tuple[Forecast, ...]:
    """One forecast for each kind of variant: the deepest weighted one serves all shallower."""
    forecasts = [Forecast.named(name) for name in names]
    weighted = [f for f in forecasts if f.taken and not f.predictor.accumulates]
    deepest = sorted(weighted, key=lambda f: -f.depth)[:1]
    apart = [f for f in forecasts if not f.taken or f.predictor.accumulates]
    return tuple(dict.fromkeys((*deepest, *apart)))


def _tables(spans: Sequence[Span], steps: int, kind: Forecast) -> Iterator[Table]:
    return probing(spans, steps, kind.depth)


def probe(rows: Table, kind: Forecast) -> ExplicitSchedule:
    """A table by one kind of variant, with weights that only say how many deltas are read."""
    if not kind.fitted:
        return ExplicitSchedule(rows, kind.predictor.name)
    depth = min(kind.fitted, sum(row is None for row in rows))  # all refreshes come first
    newest = Weights(((1.0, *[0.0] * (depth - 1)),))
    weights = tuple(None if row is None else newest for row in rows)
    return ExplicitSchedule(rows, kind.predictor.name, weights)


def _skipped(runs: Sequence[Sampled]) -> tuple[Span, ...]:
    """The spans that were really skipped, in the order in which they were wanted."""
    found = (entry.realised for run in runs for entry in run.report.entries)
    return tuple(dict.fromkeys(span for span in found if span is not None))


def recorded(
    loop: Loop, space: Space, batches: Sequence[Batch], advance: Advance | None = None
) -> Pairs:
    """The products of the deltas of all steps: for each span one plain trajectory a seed.

    The deltas of one batch and span are held until its trajectory ends, and no longer.
    """
    products = {span: np.zeros((space.steps, space.steps)) for span in space.spans}
    for span in space.spans:
        for batch in batches:
            recorder = Recorder(space.steps)
            rows = Recorder.table(span, space.steps)
            loop.run(batch.seeds, ExplicitSchedule(rows, "linear"), observer=recorder)
            products[span] += recorder.products
            if advance is not None:
                advance()
    return Pairs(products, Sharing().share(sum(batch.count for batch in batches)))
