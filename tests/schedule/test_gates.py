"""schedule/gates.py: from a gate on nothing refreshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltapass.errors import ContradictoryOptionsError, ScheduleError
from deltapass.options import parse_options
from deltapass.schedule.emissions import emissions
from deltapass.schedule.files import load_schedule, save_schedule
from deltapass.schedule.presets import named_schedule, tgate
from deltapass.schedule.rules import Schedule, Span

ALL = Span(0, 28, "cross-attention")


@pytest.mark.parametrize(
    ("gate", "steps", "full"),
    [
        (10, 20, 10),
        (8, 20, 8),
        (1, 4, 1),
        (2, 4, 2),
        (0.4, 20, 8),
        (0.0, 5, 1),
        (10, 8, 8),
        (30, 20, 20),
    ],
)
def test_steps_before_the_gate_are_full_and_no_other(gate: Any, steps: int, full: int) -> None:
    assert tgate(gate).table(steps, 28) == (None,) * full + (ALL,) * (steps - full)


def test_the_last_step_before_the_gate_emits_alone() -> None:
    schedule = tgate(5)
    table = schedule.table(20, 28)
    emitted = emissions(table, schedule.depths(table))
    assert [step for step, spans in enumerate(emitted) if spans] == [4]


def test_a_run_that_begins_behind_the_gate_refreshes_once() -> None:
    assert tgate(4).table(8, 28, start=6)[6:] == (None, ALL)
    assert tgate(4).table(8, 28, start=2)[2:] == (None, None, ALL, ALL, ALL, ALL)


def test_warm_up_and_cool_down_hold_beside_it() -> None:
    rows = tgate(2, warm_up=3, cool_down=1).table(6, 28)
    assert rows == (None, None, None, ALL, ALL, None)


@pytest.mark.parametrize(("gate", "behind"), [(3, 3), (0.5, 5)])
def test_it_needs_no_number_of_steps(gate: Any, behind: int) -> None:
    schedule = tgate(gate)
    assert not schedule.needs_steps
    rows = [schedule.at(step, 1.0 - step / 10, 28) for step in range(10)]
    assert rows == [None] * behind + [ALL] * (10 - behind)


def test_deltas_and_features_have_gates_too() -> None:
    schedule = parse_options({"schedule": "delta-cache-deep", "gate": 2}).schedule
    assert schedule.table(20, 28) == (None,) * 2 + (Span(7, 28),) * 18  # type: ignore[union-attr]


def test_a_gate_without_a_schedule_means_tgate() -> None:
    assert parse_options({"gate": 8}).schedule == tgate(8) == named_schedule("tgate", gate=8)
    assert named_schedule("tgate") == tgate(10)
    for other in ("preset", "budget"):
        with pytest.raises(ContradictoryOptionsError):
            parse_options({"gate": 8, other: {"preset": "fast", "budget": 0.5}[other]})


@pytest.mark.parametrize("gate", [0, -1, 1.5, True, "8"])
def test_other_gates_are_refused(gate: Any) -> None:
    with pytest.raises(ScheduleError, match="gate is"):
        Schedule(gate=gate)


@pytest.mark.parametrize("other", [{"interval": 3}, {"interval": (1, 2)}, {"max_consecutive": 2}])
def test_an_interval_beside_it_contradicts(other: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError, match="there is a gate, and an interval or a cap"):
        tgate(8, **other)


def test_files_hold_gates(tmp_path: Path) -> None:
    save_schedule(tgate(0.4), tmp_path / "gate.json")
    assert load_schedule(tmp_path / "gate.json") == tgate(0.4)
