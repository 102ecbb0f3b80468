"""What a session says it did."""

from __future__ import annotations

import io
import json
from collections.abc import Hashable
from typing import Any

import pytest
from rich.console import Console

from deltapass.graph.program import Macs
from deltapass.schedule.rules import Span
from deltapass.sessions.report import SCHEMA, Cause, Entry, SessionReport

SPAN = Span(2, 6)
FULL, LESS = Macs(6.0, 8.0), Macs(1.0, 2.0)


def entry(
    step: int | None, planned: Span | None = None, realised: Span | None = None, **given: Any
) -> Entry:
    given = {"macs": LESS if realised else FULL, "full_macs": FULL, "milliseconds": 10.0} | given
    return Entry(step=step, planned=planned, realised=realised, **given)


def alternating(steps: int, *branches: Hashable, trajectory: int = 0) -> list[Entry]:
    """A refresh and a cached step in turn, all as planned."""
    spans = [SPAN if step % 2 else None for step in range(steps)]
    return [
        entry(step, span, span, branch=branch, trajectory=trajectory)
        for step, span in enumerate(spans)
        for branch in branches
    ]


FORCED = entry(1, SPAN, cause=Cause.WEIGHTS, reason="the weights changed: 3 of 120")
REFUSED = entry(None, cause=Cause.REFUSED, reason="two devices", macs=Macs(), full_macs=Macs())


# ---- counts -----------------------------------------------------------------------------------


def test_counts_of_a_run_as_planned() -> None:
    report = SessionReport((*alternating(3, None),))
    assert (report.calls, report.refreshes, report.cached) == (3, 2, 1)
    assert (report.forced, report.refused, report.as_planned) == (0, 0, True)
    assert not report.causes


def test_forced_and_refused_calls_are_refreshes_that_were_not_planned() -> None:
    report = SessionReport((entry(0, cause=Cause.NEW_TRAJECTORY), FORCED, REFUSED))
    assert (report.calls, report.refreshes, report.cached) == (3, 3, 0)
    assert (report.forced, report.refused, report.as_planned) == (1, 1, False)
    assert report.causes == {Cause.NEW_TRAJECTORY: 1, Cause.WEIGHTS: 1, Cause.REFUSED: 1}
    assert [e.as_planned for e in report.entries] == [True, False, False]


def test_a_refused_call_is_not_forced_whatever_was_planned() -> None:
    one = entry(1, SPAN, cause=Cause.REFUSED)
    assert (one.refused, one.forced, one.as_planned) == (True, False, False)


def test_saved_macs_in_both_counts_and_as_a_share_of_the_full_one() -> None:
    report = SessionReport((*alternating(4, None), REFUSED))
    assert report.full_macs == Macs(24.0, 32.0)
    assert report.macs == Macs(14.0, 20.0)
    assert report.saved_macs == Macs(10.0, 12.0)
    assert report.saved_share == pytest.approx(12 / 32)
    assert report.speedup == pytest.approx(32 / 20)
    free = SessionReport((entry(1, SPAN, SPAN, macs=Macs()),))
    assert (free.saved_share, free.speedup) == (1.0, 1.0)


@pytest.mark.parametrize("entries", [(), (REFUSED,)])
def test_nothing_is_divided_by_zero(entries: tuple[Entry, ...]) -> None:
    report = SessionReport(entries)
    assert (report.saved_share, report.speedup, report.saved_macs) == (0.0, 1.0, Macs())
    assert "MACs" not in report.summary


# ---- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "extent"),
    [
        (alternating(20, ("cond", 0), ("uncond", 0)), "20 steps x 2 branches"),
        (alternating(4, None), "4 steps"),
        (alternating(1, None), "1 step"),
        (alternating(2, 0, 1) + alternating(2, 0, 1, trajectory=1),
         "2 trajectories x 2 steps x 2 branches"),
        (alternating(2, 0) + alternating(3, 0, trajectory=1), "5 calls in 2 trajectories"),
        (alternating(2, None) * 2, "4 calls"),
        (alternating(2, 0, 1)[:3], "3 calls"),
        ([REFUSED], "1 call"),
    ],
)  # fmt: skip
def test_summary_begins_with_what_was_called(entries: list[Entry], extent: str) -> None:
    assert SessionReport((*entries,)).summary.partition(":")[0] == extent


def test_summary_is_one_line_of_all_that_matters() -> None:
    assert SessionReport((*alternating(20, "a", "b"),)).summary == (
        "20 steps x 2 branches: 20 refreshes (0 forced, 0 refused), 20 cached, "
        "37.5 % of MACs saved (1.60x), 400 ms"
    )
    one = SessionReport((REFUSED,)).summary
    assert one == "1 call: 1 refresh (0 forced, 1 refused), 0 cached, 10.0 ms"
    assert SessionReport(()).summary == str(SessionReport(())) == "no calls"


@pytest.mark.parametrize(
    ("branch", "label"),
    [
        (None, "-"), ((None, 0), "-"), ((None, 1), "#1"),
        (("cond", 0), "cond"), (("cond", 1), "cond #1"), ((7, 2), "7 #2"),
        ("cond", "cond"), (3, "3"), (("a", "b"), "('a', 'b')"), ((("a", "b"), 0), "('a', 'b')"),
    ],
)  # fmt: skip
def test_branch_is_labelled_for_people(branch: Hashable, label: str) -> None:
    assert entry(0, branch=branch).branch_label == label


@pytest.mark.parametrize(
    ("cause", "reason", "why"),
    [
        (None, "", ""),
        (None, "because", "because"),
        (Cause.SHAPE, "", "shape changed"),
        (Cause.SHAPE, "was [1, 4]", "shape changed: was [1, 4]"),
        (Cause.SHAPE, "Shape changed from 1 to 2", "Shape changed from 1 to 2"),
    ],
)
def test_why_gives_the_cause_once(cause: Cause | None, reason: str, why: str) -> None:
    assert entry(0, cause=cause, reason=reason).why == why


def test_text_is_an_aligned_table_under_the_summary() -> None:
    report = SessionReport((entry(0, branch=("cond", 0), milliseconds=1234.56), FORCED, REFUSED))
    assert str(report).splitlines() == [
        report.summary,
        "step  branch  planned      realised      ms  reason",
        "   0  cond    refresh      refresh   1234.6",
        "   1  -       blocks 2..5  refresh     10.0  the weights changed: 3 of 120",
        "   -  -       refresh      refresh     10.0  refused: two devices",
    ]


def test_text_names_trajectories_where_there_are_several() -> None:
    report = SessionReport((*alternating(1, None), *alternating(1, None, trajectory=1)))
    assert str(report).splitlines()[1:] == [
        "trajectory  step  branch  planned  realised    ms  reason",
        "         0     0  -       refresh  refresh   10.0",
        "         1     0  -       refresh  refresh   10.0",
    ]


def test_long_reasons_stay_on_one_line_and_are_not_markup() -> None:
    reason = "[red]was float32[1, 4][/red] " + "x" * 300
    (_, _, row) = str(SessionReport((entry(0, reason=reason),))).splitlines()
    assert row.endswith(reason)


def test_a_console_shows_the_report_in_its_own_width() -> None:
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(SessionReport((entry(0, cause=Cause.SHAPE, reason="[b] " + "word " * 30),)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 60
    assert "shape changed: [b]" in "".join(lines)


# ---- values -----------------------------------------------------------------------------------


def test_dict_has_schema_totals_and_calls() -> None:
    values = SessionReport((*alternating(2, ("cond", 1)), FORCED)).to_dict()
    assert list(values) == ["schema", "summary", "totals", "entries"]
    assert values["schema"] == SCHEMA
    totals = {"calls": 3, "refreshes": 2, "cached": 1, "forced": 1, "refused": 0}
    assert totals.items() <= values["totals"].items()
    assert values["totals"]["causes"] == {"weights changed": 1}
    assert values["totals"]["saved_macs"] == {"paper": 5.0, "full": 6.0}
    assert values["entries"][1] == {
        "trajectory": 0,
        "step": 1,
        "branch": "cond #1",
        "planned": "2:6",
        "realised": "2:6",
        "cause": None,
        "reason": "",
        "milliseconds": 10.0,
        "macs": {"paper": 1.0, "full": 2.0},
        "full_macs": {"paper": 6.0, "full": 8.0},
    }
    assert values["entries"][2]["realised"] == "refresh"
    assert values["entries"][2]["cause"] == "weights changed"


@pytest.mark.parametrize("entries", [(), (FORCED, REFUSED), (*alternating(3, object()),)])
def test_json_holds_the_dict(entries: tuple[Entry, ...]) -> None:
    report = SessionReport(entries)
    assert json.loads(report.to_json()) == report.to_dict()
    assert "\n" not in report.to_json(indent=None)
