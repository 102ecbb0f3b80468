"""Tables of records: whose figures, at which time, with which doubt."""

from __future__ import annotations

import msgspec
from bench_records import record, row, timing, values

from deltapass.bench.metrics.table import MEASURES
from deltapass.bench.paper import paper_table
from deltapass.bench.record import Counts, Interval, Row, Times
from deltapass.bench.reporting.tables import (
    NO_STEPS,
    csv_text,
    equal_time_table,
    markdown,
    values_table,
)


def rows() -> tuple[Row, ...]:
    return (
        row("plain", 1.0, {"right": values(0.9)}),
        row("plain-13", 0.65, {"psnr": values(30, 1), "right": values(0.5, 1)}),
        row(
            "ours",
            0.6,
            {"psnr": values(31, 2), "right": values(0.9, 2)},
            equal_time="plain-13",
            compile_seconds=3.25,
            counts=Counts(graphs=1),
        ),
    )


def cells(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_row_stands_with_time_costs_and_intervals() -> None:
    table = values_table(record(*rows()))
    titles = [cell.strip() for cell in table.splitlines()[0].strip("|").split(" | ")]
    assert titles[:6] == ["method", "time", "speed-up", "by MACs", "compile, s", "graphs"]
    ours = dict(zip(titles, cells(table, "ours"), strict=True))
    assert ours["time"] == "0.600 (0.590 to 0.610)"
    assert ours["speed-up"] == "1.67x"
    assert (ours["compile, s"], ours["graphs"]) == ("3.2", "1")
    assert ours[MEASURES["psnr"].means.title].startswith("31.")
    assert dict(zip(titles, cells(table, "plain"), strict=True))[MEASURES["psnr"].means.title] == ""


def test_few_images_have_the_reason_in_place_of_a_verdict() -> None:
    few = [
        msgspec.structs.replace(each, values={name: v[:5] for name, v in each.values.items()})
        for each in rows()
    ]
    ours = cells(equal_time_table(record(*few)), "ours")
    assert ours[3].startswith("inconclusive: 5 images; a verdict takes 30 (+")


def test_verdicts_are_against_fewer_steps_of_no_less_time() -> None:
    table = equal_time_table(record(*rows()))
    ours = cells(table, "ours")
    assert ours[1] == "plain-13"
    assert ours[3].startswith("better (+")
    assert "could be seen" in ours[3]
    worse = msgspec.structs.replace(rows()[2], **_swapped(29.0))
    assert cells(equal_time_table(record(*rows()[:2], worse)), "ours")[3].startswith("**worse**")


def _swapped(mean: float) -> dict[str, object]:
    made = row("ours", 0.6, {"psnr": values(mean, 2)})
    return {"means": made.means, "values": made.values}


def test_what_is_unsure_or_failed_is_said() -> None:
    unsure = msgspec.structs.replace(rows()[2], times=Times(end_to_end=timing(0.6, "inconclusive")))
    failed = Row(name="rival", label="rival", kind="rival", steps=20, failure="it broke\nhere | so")
    made = record(*rows()[:2], unsure, failed, warnings=("a crowded machine",))
    table = markdown(made)
    assert "1.67x (inconclusive)" in table
    assert "| rival | failed: it broke here \\| so |" in table
    assert "> a crowded machine" in table
    widths = {line.replace("\\|", "").count("|") for line in values_table(made).splitlines()}
    assert len(widths) == 1


def test_a_record_without_fewer_steps_says_that_it_proves_nothing() -> None:
    assert NO_STEPS in markdown(record(rows()[0], rows()[2]))
    assert NO_STEPS not in markdown(record(*rows()))


def test_the_paper_s_figures_stand_beside_ours_and_are_called_the_paper_s() -> None:
    table = markdown(record(*rows(), paper=paper_table("table1_pixart_alpha")))
    head = next(line for line in table.splitlines() if line.startswith("Table 1 of the paper"))
    assert "not ours" in head
    assert "| PixArt-a T=13 | 55.673 |" in table


def test_the_floor_is_a_line_of_its_own() -> None:
    made = record(*rows())
    floor = Interval(mean=0.5, low=0.4, high=0.6)
    measures = tuple(msgspec.structs.replace(each, floor=floor) for each in made.measures)
    table = values_table(msgspec.structs.replace(made, measures=measures))
    assert "50.0 (40.0 to 60.0)" in cells(table, "real images")


def test_csv_has_a_line_a_row() -> None:
    assert len(csv_text(record(*rows())).splitlines()) == 4
