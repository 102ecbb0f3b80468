"""A record as tables for people, in markdown, and as CSV, which is that of the page.

Nothing is decided here: times, means and verdicts are the record's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from deltapass.bench.macs.table import TITLES, MacsRow, macs_cells, macs_said
from deltapass.bench.page.beside import as_csv
from deltapass.bench.record import Difference, Interval, Measure, Record, Row, Timing

MIB: Final = 2**20
NO_STEPS: Final = (
    "**No fewer plain steps were drawn, so nothing here says whether caching is worth it.**"
)


def markdown(record: Record) -> str:
    """What was measured where, every row, the verdicts at equal time, and the paper's own table."""
    parts = [_circumstances(record), values_table(record), equal_time_table(record)]
    if record.paper:
        parts.append(paper_markdown(record.paper))
    return "\n\n".join(part for part in parts if part)


def _circumstances(record: Record) -> str:
    where, asked = record.environment, record.suite
    machine = where.get("processor") or where.get("hardware") or where.get("name") or "unknown"
    said = [
        f"{record.model.title}: {len(record.manifest.seeds)} images, manifest "
        f"{record.manifest.sha256[:12]}",
        f"{machine}, torch {where.get('torch', 'unknown')}",
        f"commit {record.commit[:10]}, {record.date[:10]}",
    ]
    if asked.get("timed") and record.noise is not None:
        said.append(f"the reference over itself: {_share(record.noise)}")
    lines = ["; ".join(said) + "."]
    if record.model.random_weights:
        lines.append("**Random weights: times count, quality means nothing.**")
    if not any(row.kind == "steps" for row in record.rows):
        lines.append(NO_STEPS)
    return "\n\n".join([*lines, *(f"> {warning}" for warning in record.warnings)])


# ---- every row -----------------------------------------------------------------------------------


def values_table(record: Record) -> str:
    """A line a row: time, costs, every measure with its interval; or why there is nothing."""
    titles = ["method", "time", "speed-up", "by MACs", *_costs(record.rows)]
    measures = record.measures
    lines = [
        [*_head(row), *_costs([row], _costs(record.rows)), *_cells(row, measures)]
        if row.failure is None
        else [row.label, f"failed: {_inline(row.failure)}", *[""] * (len(titles) - 2)]
        + [""] * len(measures)
        for row in record.rows
    ]
    floors = [_shown(measure.floor, measure) for measure in measures]
    if any(floors):
        lines.append(["real images", *[""] * (len(titles) - 1), *floors])
    return table([*titles, *(measure.title for measure in measures)], lines)


def _head(row: Row) -> list[str]:
    timing = None if row.times is None else row.times.end_to_end
    by_macs = "" if row.macs is None else f"{1 / row.macs.share:.2f}x"
    if timing is None:
        return [row.label, "", "", by_macs]
    speed = f"{1 / timing.share:.2f}x"
    if timing.stability != "stable":
        speed = f"{speed} (inconclusive)"
    return [row.label, _share(timing), speed, by_macs]


def _share(timing: Timing) -> str:
    return f"{timing.share:.3f} ({timing.share_low:.3f} to {timing.share_high:.3f})"


COSTS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "compile, s": lambda row: None if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
    "memory, MiB": lambda row: None if row.peak_bytes is None else f"{row.peak_bytes / MIB:.0f}",
    "graphs": lambda row: row.counts.graphs,
    "breaks": lambda row: row.counts.breaks,
    "recompiles": lambda row: row.counts.recompiles,
    "blocks run": lambda row: row.counts.blocks_run,
    "buffers, MiB": lambda row: (
        None if row.counts.buffer_bytes is None else f"{row.counts.buffer_bytes / MIB:.2f}"
    ),
}


def _costs(rows: Sequence[Row], wanted: Sequence[str] | None = None) -> list[str]:
    """Titles of what any of the rows has; or, of one row, what it has of the wanted ones."""
    if wanted is None:
        return [t for t, read in COSTS.items() if any(read(row) is not None for row in rows)]
    found = (COSTS[title](rows[0]) for title in wanted)
    return ["" if value is None else str(value) for value in found]


def _cells(row: Row, measures: Sequence[Measure]) -> list[str]:
    return [_shown(row.means.get(measure.name), measure) for measure in measures]


def _shown(value: Interval | None, measure: Measure) -> str:
    if value is None:
        return ""
    mean, low, high = (number(each, measure) for each in (value.mean, value.low, value.high))
    return f"{mean} ({low} to {high})"


def number(value: float, measure: Measure, sign: str = "") -> str:
    """A value as the measure is shown."""
    return f"{value * measure.scale:{sign}.{measure.digits}f}"


# ---- at equal time -------------------------------------------------------------------------------


def equal_time_table(record: Record) -> str:
    """Every row that caches against the fewest plain steps that take no less time; "" if none.

    Each verdict stands with the interval of the difference, and with the smallest difference that
    so many images could have shown.
    """
    rows = [row for row in record.rows if row.equal_time is not None and row.failure is None]
    labels = {row.name: row.label for row in record.rows}
    measures = record.measures
    lines = []
    for row in rows:
        pairs = row.against.get(str(row.equal_time), {})
        cells = [verdict(pairs.get(measure.name), measure) for measure in measures]
        lines.append([row.label, labels.get(str(row.equal_time), str(row.equal_time)), *cells])
    if not lines or not measures:
        return ""
    return table(
        ["method", "against, of no less time", *(measure.title for measure in measures)], lines
    )


def verdict(found: Difference | None, measure: Measure) -> str:
    """`better (+0.3 to +0.6; 0.2 could be seen)`; losses stand out, and why there is none."""
    if found is None:
        return ""
    low, high = (number(end, measure, "+") for end in (found.difference.low, found.difference.high))
    word = f"**{found.verdict}**" if found.verdict == "worse" else found.said
    return f"{word} ({low} to {high}; {number(found.detectable, measure)} could be seen)"


# ---- the paper's ---------------------------------------------------------------------------------


def paper_markdown(paper: Mapping[str, Any]) -> str:
    """The paper's table as it printed it, under a line that says whose it is."""
    lines = [[_plain(value) for value in row] for row in paper["rows"]]
    label = paper.get("source", "the paper's figures; not ours")
    head = f"{paper.get('title', 'The paper')} of the paper ({label}): {paper.get('about', '')}"
    return f"{head.rstrip(': ')}\n\n{table(list(paper['columns']), lines)}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def csv_text(record: Record) -> str:
    """A line a row in raw units, as beside the page."""
    return as_csv([record])


# ---- MACs ----------------------------------------------------------------------------------------


def macs_markdown(rows: Sequence[MacsRow]) -> str:
    """The paper's MACs and speed-ups as counted here on the real architectures."""
    return f"{macs_said(rows)}\n\n{table(TITLES, (macs_cells(row) for row in rows))}"


# ---- text ----------------------------------------------------------------------------------------


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of markdown; bars within cells are escaped."""
    return "\n".join(_lines(titles, rows))


def _lines(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _inline(text: str) -> str:
    """One line, for a cell."""
    return " ".join(text.split())
