"""Everything that the page says of a record, decided before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, final

import msgspec

from deltapass.bench.page.advice import Advice, advise, advise_at, value
from deltapass.bench.page.figures import plain_name
from deltapass.bench.page.pictures import Pictures, choose_pictures
from deltapass.bench.page.shares import MACS, costs_of
from deltapass.bench.record import Measure, Record, Row
from deltapass.errors import counted

GLANCE: Final = (1.25, 1.5, 1.75, 2.0, 3.0)  # speed-ups of the first table
MISSING_SHOWN: Final = 3


@final
class PaperTable(msgspec.Struct, frozen=True, kw_only=True):
    """The paper's own table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()


@final
class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A record on the page.

    Attributes:
        anchor: Of its heading, and what its files begin with.
        record: What was measured.
        pictures: The images that are shown.
        costs: Kinds of cost that it has, the best first.
        advice: By kind of cost and measure; empty where quality cannot be judged.
        glance: The advice at each of `GLANCE`, by the first cost and `glance_measure`; neighbours
            of one advice together.
        glance_measure: The first measure that the advice is there for.
        compared: Names of rows that differences are known to.
        contents: Anchor and title of each part.
        warnings: The record's own, and the page's.
        paper: The paper's table.
    """

    anchor: str
    record: Record
    pictures: Pictures
    costs: tuple[str, ...]
    advice: dict[str, dict[str, tuple[Advice, ...]]]
    glance: tuple[tuple[tuple[float, ...], Advice | None], ...]
    glance_measure: Measure | None
    compared: tuple[str, ...]
    contents: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    paper: PaperTable | None


def sections_of(records: Sequence[Record], sources: Sequence[Path]) -> list[Section]:
    """A section each record.

    Args:
        records: What was measured.
        sources: Of each, the folder that its images are relative to.
    """
    return [
        section_of(anchor, record, source)
        for anchor, record, source in zip(anchors_of(records), records, sources, strict=True)
    ]


def section_of(anchor: str, record: Record, source: Path) -> Section:
    """Of one record."""
    costs, judged = costs_of(record), measures_judged(record)
    pictures = choose_pictures(record, source)
    advice = {cost: {each.name: advise(record, cost, each) for each in judged} for cost in costs}
    first = judged[0] if judged and costs else None
    return Section(
        anchor=anchor,
        record=record,
        pictures=pictures,
        costs=costs,
        advice=advice,
        glance=() if first is None else _glance(record, costs[0], first),
        glance_measure=first,
        compared=tuple(dict.fromkeys(name for row in record.rows for name in row.against)),
        contents=tuple(_contents(record, pictures, costs, first is not None)),
        warnings=(*record.warnings, *_own_warnings(record, pictures, costs)),
        paper=None if record.paper is None else paper_table(record.paper),
    )


def _glance(
    record: Record, cost: str, measure: Measure
) -> tuple[tuple[tuple[float, ...], Advice | None], ...]:
    found = [(tier, advise_at(record, cost, measure, tier)) for tier in GLANCE]
    same = groupby(found, key=lambda pair: pair[1] and (pair[1].row, pair[1].passed_over))
    groups = [list(group) for _, group in same]
    return tuple((tuple(tier for tier, _ in group), group[-1][1]) for group in groups)


def has_strip(row: Row) -> bool:
    """Whether its steps are worth a picture: some are not the plain model's."""
    errors = row.kind in ("cache", "rival") and row.step_errors is not None
    return errors or any(span is not None for span in row.schedule or ())


def measures_judged(record: Record) -> tuple[Measure, ...]:
    """Measures that tell quality here; none of a model of random weights."""
    if record.model.random_weights:
        return ()
    return tuple(
        measure
        for measure in record.measures
        if sum(value(row, measure) is not None for row in record.rows) > 1
    )


def paper_table(paper: Mapping[str, Any]) -> PaperTable:
    """The paper's table, its rows given as lists or by column."""
    columns = tuple(str(column) for column in paper["columns"])
    rows = (
        tuple(row.get(column) for column in columns) if isinstance(row, Mapping) else tuple(row)
        for row in paper["rows"]
    )
    return PaperTable(
        title=str(paper.get("title", "The paper's table")),
        columns=columns,
        rows=tuple(rows),
        notes=tuple(str(paper[key]) for key in ("label", "about") if paper.get(key)),
    )


def anchors_of(records: Sequence[Record]) -> list[str]:
    """One a record, by suite and model; numbered where these are equal."""
    anchors: list[str] = []
    for record in records:
        plain = plain_name(f"{record.suite.get('name', 'suite')} {record.model.name}")
        taken = sum(each == plain or each.startswith(f"{plain}--") for each in anchors)
        anchors.append(f"{plain}--{taken + 1}" if taken else plain)
    return anchors


def _contents(
    record: Record, pictures: Pictures, costs: Sequence[str], judged: bool
) -> Iterator[tuple[str, str]]:
    if judged:
        yield from (("use", "What to use"), ("pareto", "Time against quality"))
    yield "methods", "All methods"
    if pictures.uris:
        yield "images", "Images side by side"
    if any(has_strip(row) for row in record.rows):
        yield "schedules", "Schedules, step by step"
    if any(cost != MACS for cost in costs):
        yield "times", "Times"
    if record.paper is not None:
        yield "paper", "The paper's table beside ours"
    if record.figures:
        yield "figures", "Further figures"
    yield "again", "Row by row, and how to measure it again"


def _own_warnings(record: Record, pictures: Pictures, costs: Sequence[str]) -> Iterator[str]:
    """What the page itself has to say of what it shows."""
    if record.commit.endswith("+"):
        yield "Files were changed since the commit: it alone does not give these numbers again."
    failed = [row.label for row in record.rows if row.failure is not None]
    if failed:
        yield f"Without numbers, because they failed: {', '.join(failed)}."
    if MACS in costs and len(costs) == 1:
        yield "Nothing was timed: speed-ups are those of multiply-accumulates, which are no time."
    if pictures.missing:
        some = ", ".join(pictures.missing[:MISSING_SHOWN])
        more = ", ..." if len(pictures.missing) > MISSING_SHOWN else ""
        count = counted(len(pictures.missing), "image")
        yield f"{count} of the record could not be read from its folder: {some}{more}."
