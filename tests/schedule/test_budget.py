"""schedule/budget.py: the paper's MACs, Eq. 6 and 7, and budgets kept as closely as they can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapass.errors import (
    BoundaryOutsideError,
    OptionError,
    ScheduleError,
    SpanOutsideError,
)
from deltapass.schedule.budget import Budget, StepMacs, interval_for_budget, table_macs
from deltapass.schedule.presets import delta_cache, delta_dit
from deltapass.schedule.rules import REGIONS, Region, Schedule, Span, Table

# table, method, schedule, steps, blocks, full MACs in T, printed MACs in T: the paper's figures,
# not ours.
PIXART, DIT, DIT_250, LCM, SD3 = 85.651, 4.579, 57.24, 8.565, 168.256
PRINTED = [
    *((t, r, delta_cache(r), 20, 28, PIXART, 53.532) for t in (1, 6) for r in REGIONS),
    (1, "delta-dit", delta_dit(boundary=12, cached_blocks=21, interval=2), 20, 28, PIXART, 53.532),
    (6, "delta-dit", delta_dit(boundary=12), 20, 28, PIXART, 53.532),
    *((2, r, delta_cache(r), 20, 28, DIT, 2.862) for r in REGIONS),
    (2, "delta-dit", delta_dit(boundary=12), 20, 28, DIT, 2.862),
    (3, "delta-dit Nc=4", delta_dit(), 4, 28, LCM, 7.953),
    (3, "delta-dit Nc=6", delta_dit(boundary=2, cached_blocks=6), 4, 28, LCM, 7.647),
    (8, "delta-dit Nc=11", delta_dit(boundary=2, cached_blocks=11), 4, 28, LCM, 6.883),
    (8, "delta-dit Nc=16", delta_dit(boundary=2, cached_blocks=16), 4, 28, LCM, 6.118),
    *((7, r, delta_cache(r), 28, 24, SD3, 105.160) for r in REGIONS),
    (7, "delta-dit", delta_dit(), 28, 24, SD3, 105.160),
    (10, "Nc=0", delta_dit(cached_blocks=0), 20, 28, PIXART, 85.651),
    (10, "Nc=21 b=12", delta_dit(cached_blocks=21, boundary=12), 20, 28, PIXART, 53.532),
    (10, "Nc=12 b=10", delta_dit(cached_blocks=12, boundary=10), 20, 28, PIXART, 67.297),
    (10, "Nc=20 b=8", delta_dit(cached_blocks=20, boundary=8), 20, 28, PIXART, 55.061),
    *((12, r, delta_cache(r), 250, 28, DIT_250, 35.77) for r in REGIONS),
    (12, "delta-dit", delta_dit(), 250, 28, DIT_250, 35.77),
]
ROUNDED = 1 + 2e-9  # a budget may be passed by what rounding makes of it
costs = st.lists(st.integers(1, 50), min_size=1, max_size=12)
boundaries = st.none() | st.floats(0.0, 1.0)


def stack(block_macs: Sequence[float], other_macs: float = 0.0) -> StepMacs:
    """Steps of a model whose blocks, and what lies around them, cost that much."""

    def macs(span: Span | None) -> float:
        skipped = block_macs[span.start : span.stop] if span else ()
        return math.fsum([*block_macs, other_macs]) - math.fsum(skipped)

    return macs


# ---- MACs of a trajectory -----------------------------------------------------------------------


@pytest.mark.parametrize(("table", "row", "schedule", "steps", "blocks", "full", "macs"), PRINTED)
def test_macs_are_those_printed_in_the_paper(
    table: int, row: str, schedule: Schedule, steps: int, blocks: int, full: float, macs: float
) -> None:
    block = full / (steps * blocks)
    ours = table_macs(schedule.table(steps, blocks), blocks, stack([block] * blocks))
    assert ours == pytest.approx(macs, rel=1.5e-3), (table, row)


def test_other_macs_are_paid_at_every_step() -> None:
    table = (None, Span(1, 3), None)
    macs = stack([1.0, 10.0, 100.0, 1000.0], 0.5)
    assert table_macs(table, 4, macs) == 1111.5 * 2 + 1001.5
    with pytest.raises(SpanOutsideError, match="blocks 1 to 2 but the model has 2"):
        table_macs(table, 2, stack([1.0, 1.0]))


def test_interval_follows_equation_6() -> None:
    assert interval_for_budget(20, 4.2825, 53.532) == 2
    assert interval_for_budget(20, 1.0, 20.0) == 1
    assert interval_for_budget(20, 0.1, 1.0) == 2
    assert interval_for_budget(20, 1.0, 6.0) == 4
    assert interval_for_budget(4, 1.0, 1e9) == 1
    with pytest.raises(ScheduleError, match="budget is 0"):
        interval_for_budget(4, 1.0, 0)


# ---- the schedule of a budget -------------------------------------------------------------------


def test_the_papers_budget_gives_the_papers_blocks() -> None:
    schedule = Budget(share=0.625).choose(20, 28, stack([1] * 28))
    assert schedule == Schedule(interval=2, cached_blocks=21)


@given(costs, st.integers(0, 40), st.integers(1, 30), st.floats(0.05, 1.0), boundaries)
def test_budget_is_kept_with_the_fewest_blocks_and_the_smallest_interval(
    macs: list[int], other: int, steps: int, share: float, boundary: float | None
) -> None:
    blocks, step_macs = len(macs), stack(macs, other)
    plain = steps * (sum(macs) + other)
    budget = share * plain

    def cost(interval: int, cached: int) -> float:
        rule = Schedule(interval=interval, cached_blocks=cached, boundary=boundary)
        return table_macs(rule.table(steps, blocks), blocks, step_macs)

    try:
        schedule = Budget(share=share, boundary=boundary).choose(steps, blocks, step_macs)
    except ScheduleError:
        assert all(cost(interval, blocks) > budget for interval in range(1, steps + 1))
        return
    interval, cached = schedule.interval, schedule.cached_blocks
    assert cached is not None
    assert schedule.boundary == boundary
    assert cost(interval, cached) <= budget * ROUNDED
    if cached > 0:
        assert cost(interval, cached - 1) > budget
    assert interval >= interval_for_budget(steps, sum(macs) + other, budget)
    assert all(cost(smaller, blocks) > budget for smaller in range(1, interval))


def test_a_whole_budget_is_the_plain_model() -> None:
    schedule = Budget(share=1).choose(20, 4, stack([1, 2, 3, 4], 1))
    assert set(schedule.table(20, 4)) == {None}


def test_a_share_that_is_met_but_for_rounding_is_met() -> None:
    assert 0.58 * 100 < 58
    schedule = Budget(share=0.58).choose(2, 50, stack([1] * 50))
    assert schedule == Schedule(interval=2, cached_blocks=42)  # 50 + 8 of 100


def test_a_budget_out_of_reach_states_the_least_share() -> None:
    match = (
        r"budget of 0\.3 of the plain model's MACs is below 0\.5, the least possible share.*"
        r"Give a budget of at least 0\.5, or sample more steps"
    )
    with pytest.raises(ScheduleError, match=match):
        Budget(share=0.3).choose(4, 2, stack([2, 2], 2))
    assert Budget(share=0.5).choose(4, 2, stack([2, 2], 2)) == Schedule(interval=4, cached_blocks=2)
    with pytest.raises(ScheduleError, match=r"below 0\.334, .*at least 0\.334"):  # rounded up
        Budget(share=0.3).choose(3, 2, stack([1, 1]))


def test_a_boundary_by_step_needs_the_number_of_steps() -> None:
    assert Budget(share=0.6, boundary=4).needs_steps
    assert not Budget(share=0.6, boundary=0.4).needs_steps
    assert Budget(share=0.6, boundary=4).choose(20, 4, stack([1] * 4)).boundary == 4
    with pytest.raises(BoundaryOutsideError):
        Budget(share=0.6, boundary=21).check_steps(20)


def test_the_least_share_is_that_of_one_refresh_or_of_nothing_cached() -> None:
    assert Budget(share=0.9).least(4, 2, stack([2, 2], 2)) == 0.5
    no_streams = {None: 4.0}
    assert Budget(share=0.9).least(4, 2, lambda span: no_streams.get(span, math.inf)) == 1.0


def test_steps_are_counted_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table for every number of blocks took seconds for the 57 blocks of Flux."""
    made, table = [], Schedule.table

    def counted(self: Schedule, steps: int, blocks: int) -> Table:
        made.append(self.interval)
        return table(self, steps, blocks)

    monkeypatch.setattr(Schedule, "table", counted)
    Budget(share=0.12).choose(20, 57, stack([1] * 57, 1))
    assert len(made) <= 21


@pytest.mark.parametrize("share", [0, 0.0, -0.5, 1.01, float("nan"), True, "0.6", None, [0.6]])
def test_a_share_lies_above_0_and_up_to_1(share: Any) -> None:
    with pytest.raises(OptionError, match=r"option 'budget' is .*above 0\.0 and up to 1\.0"):
        Budget(share=share)
    with pytest.raises(ScheduleError, match=r"boundary is 1\.5"):
        Budget(share=0.5, boundary=1.5)


@pytest.mark.parametrize("outline", REGIONS)
@pytest.mark.parametrize("detail", REGIONS)
def test_a_budget_counts_the_spans_of_its_own_regions(outline: Region, detail: Region) -> None:
    macs = stack([1.0, 5.0, 2.0, 9.0, 1.0, 3.0], 0.5)
    budget = Budget(share=0.7, outline=outline, detail=detail)
    chosen = budget.choose(20, 6, macs)
    assert (chosen.outline, chosen.detail) == (outline, detail)
    cost = table_macs(chosen.table(20, 6), 6, macs)
    assert cost <= 0.7 * 20 * macs(None)
    assert budget.least(20, 6, macs) == pytest.approx(
        min(
            table_macs(
                Schedule(interval=20, cached_blocks=n, outline=outline, detail=detail).table(20, 6),
                6,
                macs,
            )
            for n in range(1, 7)
        )
        / (20 * macs(None))
    )
