from __future__ import annotations

import pytest
from own_loop import toy_loop

from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Span
from deltapass.tuning.loops import Sampled, open_loop
from deltapass.tuning.search.costs import MACS, TIME, Costs, costs_of, probing

FULL, DEEP = Span(0, 6), Span(3, 6)


@pytest.fixture(scope="module")
def runs() -> list[Sampled]:
    with open_loop(toy_loop(), steps=5) as loop:
        return [loop.run([0], ExplicitSchedule(rows)) for rows in probing((FULL, DEEP), 5, 1)]


def test_costs_are_those_that_a_run_counts(runs: list[Sampled]) -> None:
    """What any table will cost is what its own report says afterwards."""
    costs, rows = costs_of(MACS, runs), (None, FULL, DEEP, None, DEEP)
    with open_loop(toy_loop(), steps=5) as loop:
        report = loop.run([0], ExplicitSchedule(rows)).report
    assert costs.share(rows) == pytest.approx(1.0 - report.saved_share)
    assert costs.share((None,) * 5) == 1.0 and costs.plain_share(3) == pytest.approx(0.6)
    assert costs.spans[FULL] < costs.spans[DEEP] < costs.full


def test_times_count_what_lies_between_the_steps(runs: list[Sampled]) -> None:
    costs = costs_of(TIME, runs)
    assert not costs.in_macs and costs.full > 0.0 and {*costs.spans} == {FULL, DEEP}
    assert costs.fixed >= 0.0 and costs.plain == pytest.approx(costs.fixed + 5 * costs.full)


def test_what_a_trajectory_takes_besides_is_in_every_share() -> None:
    costs = Costs(unit=TIME, steps=4, full=2.0, spans={FULL: 1.0}, fixed=2.0)
    assert costs.share((None, FULL, FULL, FULL)) == 0.7
    assert costs.plain_share(2) == 0.6
    assert costs.fits((None, FULL, FULL, FULL), 0.7)
    assert not costs.fits((None, None, FULL, FULL), 0.7)


def test_every_span_is_probed_after_the_refreshes_it_reads() -> None:
    spans = tuple(Span(0, n) for n in range(1, 8))
    tables = list(probing(spans, 6, 3))
    assert {row for rows in tables for row in rows} == {None, *spans}
    for rows in tables:
        assert len(rows) == 6 and rows[:3] == (None,) * 3 and None not in rows[3:]
