"""What a session remembers of its calls: the newest ones, as entries, and how many there were."""

from __future__ import annotations

import pytest

from deltapass.graph.program import Macs
from deltapass.schedule.rules import Span
from deltapass.sessions.log import MAX_ENTRIES, Log
from deltapass.sessions.report import Cause, Entry

SPAN = Span(2, 6)


def noted(steps: int) -> Log:
    log = Log()
    for step in range(steps):
        planned = SPAN if step % 2 else None
        log.note(
            0, step, (None, 0), planned, planned, None, "", 1.5, Macs(1.0, 2.0), Macs(3.0, 4.0)
        )
    return log


def test_rows_are_entries_when_somebody_asks() -> None:
    log = noted(2)
    assert list(log) == [
        Entry(
            step=step,
            branch=(None, 0),
            planned=span,
            realised=span,
            milliseconds=1.5,
            macs=Macs(1.0, 2.0),
            full_macs=Macs(3.0, 4.0),
        )
        for step, span in enumerate((None, SPAN))
    ]
    assert log[-1].step == 1
    assert [entry.step for entry in log[:1]] == [0]


def test_an_entry_comes_back_as_it_was_noted() -> None:
    log = Log()
    entry = Entry(step=3, planned=SPAN, realised=None, cause=Cause.WEIGHTS, reason="they changed")
    log.note_entry(entry)
    assert list(log) == [entry]


def test_calls_are_counted_also_those_no_longer_remembered() -> None:
    log = noted(MAX_ENTRIES + 10)
    assert (log.count, len(log), log.cached) == (
        MAX_ENTRIES + 10,
        MAX_ENTRIES,
        MAX_ENTRIES // 2 + 5,
    )
    report = log.report()
    assert (len(report.entries), report.forgotten) == (MAX_ENTRIES, 10)
    assert report.summary.endswith("after 10 calls no longer remembered")
    assert report.to_dict()["totals"]["forgotten"] == 10


def test_a_report_since_some_call_leaves_those_before_it_out() -> None:
    log = noted(6)
    assert [entry.step for entry in log.report(since=4).entries] == [4, 5]
    assert log.report(since=4).forgotten == 0
    assert log.report(since=6).entries == ()
    full = noted(MAX_ENTRIES + 10)
    assert full.report(since=4).forgotten == 6
    assert "remembered" not in noted(2).report().summary


def test_calls_noted_while_a_report_is_made_lose_none(monkeypatch: pytest.MonkeyPatch) -> None:
    log = noted(4)

    def noting(row: object) -> object:
        log.note(0, 9, None, None, None, None, "", 1.0, Macs(), Macs())
        return row

    monkeypatch.setattr("deltapass.sessions.log._entry", noting)
    report = log.report()
    assert (len(report.entries), report.forgotten) == (4, 0)


def test_clearing_forgets_all() -> None:
    log = noted(3)
    log.clear()
    assert (log.count, log.cached, len(log), log.report().entries) == (0, 0, 0, ())
