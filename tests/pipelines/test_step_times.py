"""What the line after an image says: of runs that gained, lost, or were not cached."""

from __future__ import annotations

import re

import pytest

from deltapass.pipelines.step_times import line, step_times
from deltapass.schedule.rules import Span
from deltapass.sessions.report import Cause, Entry, SessionReport

ALL = Span(0, 4)


def entry(step: int, *, cached: bool, **others: object) -> Entry:
    span = ALL if cached else None
    return Entry(**{"step": step, "planned": span, "realised": span, **others})  # type: ignore[arg-type]


def said(*entries: Entry, full: float = 0.2, cached: float = 0.1) -> str:
    report = SessionReport(entries)
    seconds = {e.step: cached if e.realised else full for e in entries if e.step is not None}
    return line(step_times(report, seconds), report)


@pytest.mark.parametrize(
    ("cached", "text"),
    [
        (0.1, "6 steps, 3 of them cached, saved 0.30 s of 1.20 s (1.33x), measured: 200.0 ms"),
        (0.3, "6 steps, 3 of them cached, cost 0.30 s on top of 1.20 s (0.80x), measured"),
    ],
)
def test_a_gain_is_saved_and_a_loss_is_cost(cached: float, text: str) -> None:
    told = said(*(entry(step, cached=step % 2 == 1) for step in range(6)), cached=cached)
    assert told.startswith(text)


REFUSED = entry(0, cached=False, cause=Cause.REFUSED, reason="its weights want gradients")
FORCED = entry(0, cached=False, planned=ALL, cause=Cause.WEIGHTS, reason="the weights changed")
HALVES = (entry(0, cached=True, branch="cond"), entry(0, cached=False, branch="uncond"))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ((), "nothing cached: no call of a denoiser got as far as a schedule"),
        ((entry(0, cached=False),), "1 step, 0 of them cached: the schedule plans none in this"),
        ((REFUSED,), "0 of them cached: refused: its weights want gradients"),
        ((FORCED,), "0 of them cached: the weights changed"),
        (HALVES, "0 of them cached: only some of the calls of a step were"),
    ],
)
def test_why_no_step_was_cached(entries: tuple[Entry, ...], text: str) -> None:
    assert re.search(re.escape(text), said(*entries))
