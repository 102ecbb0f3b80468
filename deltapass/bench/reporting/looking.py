"""How a claim of the paper is looked for in a record: what was found, and whether it agrees.

None where the record does not hold what the claim is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np

from deltapass.bench.metrics.judging import difference_of
from deltapass.bench.metrics.table import MEASURES
from deltapass.bench.record import Difference, Figure, Measure, Record, Row
from deltapass.bench.reporting.tables import number

Outcome = Literal["agrees", "does not", "partly", "not told"]
Look = Callable[[Record], tuple[str, Outcome] | None]
ALIKE: Final = 0.9  # the paper's Fig. 4c: above this
LATENCY: Final = 2290.668 / 1534.551  # Table 1: what 1.60x by MACs was by the clock, on an A100

# ---- pairs of rows -------------------------------------------------------------------------------


def _outcome(pairs: Mapping[str, Difference]) -> Outcome:
    """Whether a row that is said to be better is, over all measures."""
    said = {pair.verdict for pair in pairs.values()}
    if {"better", "worse"} <= said:
        return "partly"
    if "worse" in said:
        return "does not"
    return "agrees" if "better" in said else "not told"


def _words(pairs: Mapping[str, Difference], record: Record) -> str:
    shown = {measure.name: measure for measure in record.measures}
    return "; ".join(
        f"{_title(shown[name])} {pair.said} ({number(pair.difference.mean, shown[name], '+')})"
        for name, pair in pairs.items()
        if name in shown
    )


def _title(measure: Measure) -> str:
    return measure.title.removesuffix(", dB").removesuffix(", %")


def equal_time(record: Record) -> tuple[str, Outcome] | None:
    """The paper's schedule against fewer plain steps that take no less time."""
    parts, outcomes = [], []
    labels = {row.name: row.label for row in record.rows}
    for row in _rows(record, "delta-dit"):
        pairs = row.against.get(row.equal_time or "", {})
        if pairs and row.equal_time:
            words = _words(pairs, record)
            parts.append(f"{row.label} against {labels[row.equal_time]}: {words}")
            outcomes.append(_outcome(pairs))
    return (". ".join(parts), _together(outcomes)) if parts else None


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several rows: what all that told anything say, else partly."""
    told = {each for each in outcomes if each != "not told"}
    if not told:
        return "not told"
    return told.pop() if len(told) == 1 else "partly"


def one_against_other(better: str, worse: str) -> Look:
    """Rows of two methods with the same settings, where the paper has one in front."""

    def look(record: Record) -> tuple[str, Outcome] | None:
        others = {_rest(row, worse): row for row in _rows(record, worse)}
        parts, outcomes = [], []
        for row in _rows(record, better):
            other = others.get(_rest(row, better))
            pairs = {} if other is None else _pairs(row, other)
            if pairs and other is not None:
                parts.append(f"{row.label} against {other.label}: {_words(pairs, record)}")
                outcomes.append(_outcome(pairs))
        return (". ".join(parts), _together(outcomes)) if parts else None

    return look


def _rows(record: Record, method: str) -> list[Row]:
    """Rows of a method that did not fail, whatever their settings."""
    found = [row for row in record.rows if row.name == method or row.name.startswith(f"{method}-")]
    return [row for row in found if row.failure is None]


def _rest(row: Row, method: str) -> str:
    return row.name.removeprefix(method)


def _pairs(ours: Row, theirs: Row) -> dict[str, Difference]:
    return {
        name: difference_of(name, np.array(ours.values[name]), np.array(theirs.values[name]))
        for name in ours.values
        if name in theirs.values and name in MEASURES
    }


# ---- solvers, 8 bits, time -----------------------------------------------------------------------


def each_solver(record: Record) -> tuple[str, Outcome] | None:
    """The paper's schedule against the plain run of the same solver, by distance to real images."""
    parts, outcomes = [], []
    for row in _rows(record, "delta-dit"):
        solver = row.settings.get("solver")
        plain = [
            other
            for other in record.rows
            if other.kind in ("plain", "steps")
            and other.settings.get("solver") == solver
            and other.steps == row.steps
        ]
        pairs = _pairs(row, plain[0]) if plain else {}
        real = {name: pair for name, pair in pairs.items() if name in {"kid", "right"}}
        if real:
            parts.append(f"{row.label}: {_words(real, record)}")
            outcomes.append(_outcome(real))
    return (". ".join(parts), _together(outcomes)) if parts else None


def eight_bits(record: Record) -> tuple[str, Outcome] | None:
    """Time of caching, of 8 bits, and of both."""
    both = [row for row in _rows(record, "delta-dit") if row.settings.get("weights") == "int8"]
    alone = [row for row in _rows(record, "delta-dit") if "weights" not in row.settings]
    bits = [
        row
        for row in record.rows
        if row.kind in {"plain", "steps"} and row.settings.get("weights") == "int8"
        if row.failure is None
    ]
    speeds = [_speed(row[0]) if row else None for row in (both, alone, bits)]
    if None in speeds:
        return None
    together, caching, eight = (float(speed or 0) for speed in speeds)
    said = f"caching {caching:.2f}x, 8 bits {eight:.2f}x, both {together:.2f}x"
    return said, "agrees" if together > max(caching, eight) else "does not"


def _speed(row: Row) -> float | None:
    timing = None if row.times is None else row.times.end_to_end
    return None if timing is None else 1 / timing.share


def _steady(row: Row) -> bool:
    timing = None if row.times is None else row.times.end_to_end
    return timing is None or timing.stability == "stable"


def clock(record: Record) -> tuple[str, Outcome] | None:
    """What a speed-up by MACs is by the clock; the paper kept nine tenths of it."""
    parts, kept, steady = [], [], True
    for row in _rows(record, "delta-dit"):
        speed = _speed(row)
        steady = steady and _steady(row)
        if speed is not None and row.macs is not None:
            by_macs = 1 / row.macs.share
            parts.append(f"{row.label}: {by_macs:.2f}x by MACs is {speed:.2f}x")
            kept.append(speed / by_macs)
    if not parts:
        return None
    if not steady:
        return f"{'; '.join(parts)}; the times were not steady", "not told"
    return "; ".join(parts), "agrees" if min(kept) >= 0.95 * LATENCY / 1.6 else "does not"


# ---- sweeps and figures --------------------------------------------------------------------------


def best_setting(setting: str, least: float, most: float) -> Look:
    """Whether the best row of a sweep, by distance to real images, lies where the paper's does."""

    def look(record: Record) -> tuple[str, Outcome] | None:
        rows = [row for row in record.rows if setting in row.settings and "kid" in row.means]
        if len(rows) < 3:
            return None
        ordered = sorted(rows, key=lambda row: row.means["kid"].mean)
        best, last = ordered[0], ordered[-1]
        where = float(best.settings[setting])
        pair = _pairs(best, last).get("kid")
        said = f"KID is best at {setting} = {where:g}, worst at {float(last.settings[setting]):g}"
        if pair is None or pair.verdict != "better":
            return f"{said}, and the two cannot be told apart", "not told"
        return said, "agrees" if least <= where <= most else "does not"

    return look


def alike(record: Record) -> tuple[str, Outcome] | None:
    """How many blocks and steps have deltas as alike as the paper says all have."""
    figure = _figure(record, "cosine")
    if figure is None:
        return None
    found = [value for row in figure.grid for value in row if value is not None]
    above = sum(value > ALIKE for value in found) / len(found)
    said = f"{above:.0%} of all blocks and steps lie above 0.9; the least is {min(found):.2f}"
    return said, "agrees" if above == 1 else "partly" if above > 0.5 else "does not"


def detail(record: Record) -> tuple[str, Outcome] | None:
    """Whether deep caching changes fine patterns more than coarse ones, by shallow's measure."""
    figure = _figure(record, "spectrum")
    shares = {} if figure is None else {at: _fine_share(figure, at) for at in ("deep", "shallow")}
    deep, shallow = shares.get("deep"), shares.get("shallow")
    if deep is None or shallow is None:
        return None
    said = (
        f"of the change of the spectrum {deep:.0%} lies in the finer half of frequencies where "
        f"deep blocks are cached, {shallow:.0%} where shallow ones are"
    )
    return said, "agrees" if deep > shallow else "does not"


def _fine_share(figure: Figure, region: str) -> float | None:
    for series in figure.series[1:]:
        if region in series.name.lower():
            change = np.abs(np.array(series.y[1:]))
            total = float(change.sum())
            return float(change[len(change) // 2 :].sum()) / total if total else None
    return None


def _figure(record: Record, name: str) -> Figure | None:
    return next((figure for figure in record.figures if figure.name == name), None)
