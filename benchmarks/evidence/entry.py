"""A record of the suite as an entry of the evidence: every method against all numbers of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from deltapass.bench.metrics.features import FEATURES
from deltapass.bench.metrics.intervals import as_good_as, holds
from deltapass.bench.record import Difference, Interval, Record, Row, Timing
from evidence.meanings import MEASURES, NAMES

DIGITS: Final = 6
PLAIN: Final = ("plain", "steps")


def entry_of(record: Record, judge: str) -> dict[str, Any]:
    """All of it, the differences from plain runs too.

    Args:
        record: With the full plain run as its reference.
        judge: Who said what is right.
    """
    suite, where = record.suite, record.environment
    told = {measure.name: measure for measure in record.measures}
    measures = [name for name, found in NAMES.items() if found in told]
    steps = {row.name: row.steps for row in record.rows if row.kind in PLAIN}
    timed = any(row.times is not None for row in record.rows)
    rows = [row for row in record.rows if row.failure is None]
    return {
        "date": record.date[:10],
        "commit": record.commit,
        **{name: where.get(name) for name in ("deltapass", "torch", "diffusers", "python")},
        **{name: where.get(name) for name in ("device", "hardware", "threads")},
        "options": {
            "model": record.model.name,
            "steps": suite["steps"],
            "fine": suite["fine_steps"],
            "timed": suite["timed"],
            "rounds": suite["rounds"],
            "clock": "wall",
        },
        "images": len(record.manifest.seeds),
        "first_seed": record.manifest.seeds[0],
        "manifest": record.manifest.sha256,
        "judge": judge,
        "features": FEATURES,
        "timed": {"load_average": _load(where)} if timed else None,
        "plain_over_itself": _share(record.noise),
        "seconds": {
            row.label: {"wall": list(row.times.end_to_end.samples)}
            for row in rows
            if row.times is not None and row.times.end_to_end is not None
        },
        "margins": {name: MEASURES[name].margin for name in measures},
        "methods": [_method(row, measures, steps) for row in rows],
        "real": {
            name: _plain(floor)
            for name in measures
            if (floor := told[NAMES[name]].floor) is not None
        },
    }


def _load(where: Mapping[str, Any]) -> list[float]:
    return [load for load in where.get("load_average", ()) if load is not None]


def _method(row: Row, measures: list[str], steps: Mapping[str, int]) -> dict[str, Any]:
    """One method's numbers; `steps` are those of the plain rows, by name."""
    time = None if row.times is None else row.times.end_to_end
    found = {
        "name": row.label,
        "steps": row.steps,
        "schedule": None if row.kind in PLAIN else row.schedule,
        "time": _share(time),
        "means": {
            name: _plain(row.means[NAMES[name]]) for name in measures if NAMES[name] in row.means
        },
    }
    if row.kind in PLAIN:
        return found
    pairs = {steps[other]: each for other, each in row.against.items() if other in steps}
    return {
        **found,
        "equal_time_plain_steps": None if time is None else steps.get(row.equal_time or ""),
        "as_good_as_plain_steps": {name: _reached(name, pairs) for name in measures},
        "less_plain": {
            str(other): {name: _said(each[NAMES[name]]) for name in measures if NAMES[name] in each}
            for other, each in pairs.items()
        },
    }


def _reached(measure: str, pairs: Mapping[int, Mapping[str, Difference]]) -> int | None:
    """The most plain steps that a method is not worse than in one measure."""
    means, name = MEASURES[measure], NAMES[measure]
    good = {
        steps: holds(each[name], higher=means.higher, margin=means.margin)
        for steps, each in pairs.items()
        if name in each
    }
    return as_good_as(good)


def _said(pair: Difference) -> dict[str, Any]:
    found = {**_plain(pair.difference), "verdict": pair.verdict}
    return {**found, "reason": pair.reason} if pair.reason else found


def _share(time: Timing | None) -> dict[str, float] | None:
    if time is None:
        return None
    ends = {"median": time.share, "low": time.share_low, "high": time.share_high}
    return {name: round(value, DIGITS) for name, value in ends.items()}


def _plain(value: Interval) -> dict[str, float]:
    return {name: round(number, DIGITS) for name, number in msgspec.to_builtins(value).items()}
