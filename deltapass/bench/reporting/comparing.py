"""Two runs of one suite: the same images, so every row is compared image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from rich.table import Table

from deltapass.bench.metrics.judging import difference_of
from deltapass.bench.reading import RECORD, read_record, records_in
from deltapass.bench.record import Difference, Measure, Record, Row, Times
from deltapass.errors import BenchError

BEYOND: Final = 0.05  # of a share of time: what a steady machine makes of one method


@final
@dataclass(frozen=True, kw_only=True)
class RowPair:
    """A row of both runs.

    Attributes:
        name: Of the row.
        measures: By the measure's name, the second run less the first.
        time: Its share of the reference's time in both; None where either was not timed.
        time_verdict: Of the second run.
        counts: Exact numbers that differ: name -> (before, after).
    """

    name: str
    measures: dict[str, Difference]
    time: tuple[float, float] | None
    time_verdict: str
    counts: dict[str, tuple[int | None, int | None]]

    @property
    def worse(self) -> bool:
        """Whether anything surely got worse."""
        verdicts = {*(each.verdict for each in self.measures.values()), self.time_verdict}
        return "worse" in verdicts


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two records of one suite and model."""

    title: str
    measures: tuple[Measure, ...]
    rows: tuple[RowPair, ...]
    only_in_one: tuple[str, ...]


def compared(one: Path, other: Path) -> tuple[Pair, ...]:
    """What two runs have in common, compared.

    Args:
        one: A record, or a folder with records: what was before.
        other: The same: what is now.

    Raises:
        BenchError: If they have no suite and model in common, or prompts and seeds differ.
    """
    before, after = _records(one), _records(other)
    both = [key for key in before if key in after]
    if not both:
        raise BenchError(
            f"{one} and {other} have no suite and model in common",
            "Give two runs of one suite on one model",
        )
    return tuple(_pair(before[key], after[key]) for key in both)


def _records(path: Path) -> dict[tuple[str, str], Record]:
    if path.is_file():
        found = [read_record(path)]
    elif (path / f"{RECORD}.json").is_file():
        found = [read_record(path / f"{RECORD}.json")]
    else:
        found = [*records_in(path).values()]
    return {(str(each.suite["name"]), each.model.name): each for each in found}


def _pair(before: Record, after: Record) -> Pair:
    title = f"{before.suite['name']} on {before.model.name}"
    if before.manifest.sha256 != after.manifest.sha256:
        raise BenchError(
            f"{title}: the runs are of other prompts or seeds ({before.manifest.sha256[:12]} and "
            f"{after.manifest.sha256[:12]})",
            "Draw both with the same --prompts, --images and first seed",
        )
    rows = {row.name: row for row in before.rows}
    common = [(rows[row.name], row) for row in after.rows if row.name in rows]
    names = {row.name for row in after.rows}
    return Pair(
        title=title,
        measures=after.measures,
        rows=tuple(_row_pair(*each) for each in common),
        only_in_one=tuple(sorted({*rows} ^ names)),
    )


def _row_pair(before: Row, after: Row) -> RowPair:
    measures = {
        name: difference_of(name, np.array(after.values[name]), np.array(values))
        for name, values in before.values.items()
        if len(after.values.get(name, ())) == len(values)
    }
    old, new = _share(before.times), _share(after.times)
    time = None if old is None or new is None else (old, new)
    return RowPair(
        name=after.name,
        measures=measures,
        time=time,
        time_verdict=_time_verdict(before, after, time),
        counts=dict(_differing(before, after)),
    )


def _share(times: Times | None) -> float | None:
    return None if times is None or times.end_to_end is None else times.end_to_end.share


def _time_verdict(before: Row, after: Row, time: tuple[float, float] | None) -> str:
    if time is None:
        return ""
    for row in (before, after):
        if row.times and row.times.end_to_end and row.times.end_to_end.stability != "stable":
            return "inconclusive"
    old, new = time
    if abs(new - old) <= BEYOND * old:
        return "same"
    return "worse" if new > old else "better"


def _differing(before: Row, after: Row) -> Iterator[tuple[str, tuple[int | None, int | None]]]:
    for name in before.counts.__struct_fields__:
        old, new = getattr(before.counts, name), getattr(after.counts, name)
        if old != new:
            yield name, (old, new)


def shown(pair: Pair) -> Table:
    """A pair as a table: verdicts, with the interval of the difference they rest on."""
    titles = [measure.title for measure in pair.measures]
    table = Table("row", "time", *titles, "counts", title=pair.title, box=None, pad_edge=False)
    for row in pair.rows:
        cells = [_cell(row.measures.get(measure.name), measure) for measure in pair.measures]
        counts = (f"{name} {old} -> {new}" for name, (old, new) in row.counts.items())
        table.add_row(row.name, _time(row), *cells, ", ".join(counts))
    for name in pair.only_in_one:
        table.add_row(name, "in one run alone")
    return table


def _time(row: RowPair) -> str:
    if row.time is None:
        return ""
    old, new = row.time
    return f"{row.time_verdict} ({1 / old:.2f}x -> {1 / new:.2f}x)"


def _cell(found: Difference | None, measure: Measure) -> str:
    if found is None:
        return ""
    low, high = found.difference.low * measure.scale, found.difference.high * measure.scale
    return f"{found.said} ({low:+.{measure.digits}f} to {high:+.{measure.digits}f})"
