"""Presets: careful where they must be, as cheap as they say, and the same without the length."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from deltapass.schedule.files import load_schedule, save_schedule
from deltapass.schedule.presets import PRESETS, SCHEDULES, named_schedule
from deltapass.schedule.rules import FEW_STEPS, Schedule, Span, Table

FORECASTING = ("quality", "balanced", "fast")
# Preset -> most of the blocks that it may run on a trajectory of 20, and of very many steps.
SHARES = {"quality": (0.6, 0.5), "balanced": (0.5, 1 / 3), "fast": (0.4, 0.25)}

each = pytest.mark.parametrize("name", FORECASTING)
STEPS = range(1, 201)
BLOCKS = (1, 2, 5, 16, 28, 60)


def share(table: Table, blocks: int) -> float:
    """Blocks run, of those of the plain model."""
    return 1 - sum(len(row) for row in table if row) / (len(table) * blocks)


@each
@pytest.mark.parametrize("blocks", range(1, 61))
def test_trajectories_of_any_length_begin_with_refreshes(name: str, blocks: int) -> None:
    schedule = named_schedule(name)
    for steps in (*range(1, 31), 50, 100, 199, 200):
        table = schedule.table(steps, blocks)
        assert len(table) == steps
        assert not any(table[:3]), "a linear forecast needs two, and the start decides the image"
        assert all(row.stop <= blocks for row in table if row)
        assert set(schedule.spans(blocks, steps)) == {row for row in table if row}


@each
def test_a_preset_costs_what_it_says(name: str) -> None:
    at_twenty, at_most = SHARES[name]
    schedule = named_schedule(name)
    assert share(schedule.table(20, 28), 28) == pytest.approx(at_twenty)
    assert share(schedule.table(1000, 28), 28) == pytest.approx(at_most, abs=0.01)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_faster_preset_never_costs_more(blocks: int) -> None:
    for steps in STEPS:
        costs = [share(named_schedule(name).table(steps, blocks), blocks) for name in FORECASTING]
        assert costs == sorted(costs, reverse=True), f"{steps} steps"
    assert len(set(costs)) == len(FORECASTING)


@each
def test_longer_trajectories_skip_no_smaller_share_but_for_one_refresh(name: str) -> None:
    schedule = named_schedule(name)
    shares = [share(schedule.table(steps, 28), 28) for steps in STEPS]
    for steps, (shorter, longer) in enumerate(itertools.pairwise(shares), start=1):
        assert longer <= shorter + 1 / steps


@each
@pytest.mark.parametrize("blocks", [b for b in BLOCKS if b > 4])
def test_few_step_trajectories_are_hardly_touched(name: str, blocks: int) -> None:
    for steps in range(1, FEW_STEPS + 1):
        table = named_schedule(name).table(steps, blocks)
        assert share(table, blocks) >= 0.9
        assert all(len(row) == max(1, int(blocks / 7 + 0.5)) for row in table if row)
    longer = named_schedule(name).table(FEW_STEPS + 1, blocks)
    assert Span(0, blocks) in longer


@each
def test_without_the_length_steps_do_the_same(name: str) -> None:
    schedule = named_schedule(name)
    assert not schedule.needs_steps
    assert schedule.few_step_defaults, "so that nothing is cached before it is known"
    for steps in range(FEW_STEPS + 1, 201):
        table = schedule.table(steps, 16)
        assert table == tuple(schedule.at(i, 1 - i / steps, 16) for i in range(steps))


@each
def test_image_to_image_begins_with_refreshes_too(name: str) -> None:
    schedule = named_schedule(name)
    for start in range(20):
        table = schedule.table(20, 28, start)
        assert table[start:] == schedule.table(20, 28)[: 20 - start]
        assert not any(table[:start])


def test_every_preset_is_a_schedule_by_name() -> None:
    assert set(PRESETS) <= set(SCHEDULES)
    assert named_schedule("paper") == Schedule() == named_schedule("delta-dit")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    save_schedule(named_schedule(name), path)
    assert load_schedule(path) == named_schedule(name)
