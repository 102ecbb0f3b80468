"""What a session says it did."""

from __future__ import annotations

from deltapass.report import Entry, SessionReport
from deltapass.schedule import Span

SPAN = Span(2, 6)


def entry(step: int, planned: Span | None, realised: Span | None, reason: str = "") -> Entry:
    return Entry(step=step, branch=None, planned=planned, realised=realised, reason=reason)


def test_report_counts_refreshes_and_cached_steps() -> None:
    report = SessionReport((entry(0, None, None), entry(1, SPAN, SPAN), entry(2, None, None)))
    assert (report.refreshes, report.cached, report.as_planned) == (2, 1, True)


def test_report_says_where_and_why_a_step_differs_from_the_plan() -> None:
    report = SessionReport((entry(0, None, None), entry(1, SPAN, None, "the weights changed")))
    assert not report.as_planned
    assert "planned: cached blocks 2..5; the weights changed" in str(report)
