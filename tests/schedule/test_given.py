"""schedule/given.py: objects, names and files, in options, sessions and attach alike."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from driving import compiled, follow
from models import make

import deltapass
from deltapass.errors import ContradictoryOptionsError, OptionError, ScheduleError
from deltapass.options import parse_options
from deltapass.schedule.budget import Budget
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import save_schedule
from deltapass.schedule.given import given_schedule
from deltapass.schedule.presets import delta_dit, never, reversed_phases
from deltapass.schedule.rules import Span

TABLE = ExplicitSchedule((None, Span(1, 5), None, Span(0, 2)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_schedule(TABLE, path := tmp_path / "table.json")
    return path


@pytest.mark.parametrize(
    ("given", "meant"), [("reversed", reversed_phases()), (TABLE, TABLE), ("none", never())]
)
def test_a_schedule_is_an_object_or_a_name(given: Any, meant: Any) -> None:
    assert given_schedule(given) == meant == parse_options({"schedule": given}).schedule
    assert deltapass.session(4, schedule=given).schedule == meant


def test_a_schedule_may_be_a_file(file: Path) -> None:
    for given in (file, str(file)):
        assert given_schedule(given) == TABLE == deltapass.session(4, schedule=given).schedule


def test_fields_belong_to_names() -> None:
    assert given_schedule("delta-dit", {"interval": 3}) == delta_dit(interval=3)
    with pytest.raises(ContradictoryOptionsError, match="already sets it"):
        given_schedule(TABLE, {"interval": 3})


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("reverse", ScheduleError, "Did you mean 'reversed'"),
        ("missing.json", ScheduleError, "missing.json"),
        (Budget(share=0.6), OptionError, "one of delta-dit"),
        (3, OptionError, "one of delta-dit"),
    ],
)
def test_what_is_no_schedule_is_said_where_it_is_given(
    given: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        deltapass.session(4, schedule=given)
    session = deltapass.session(4, schedule="none")
    with pytest.raises(error, match=match):
        session.schedule = given
    assert session.schedule == never()
    with pytest.raises(error, match=match):
        deltapass.attach(pipeline(), schedule=given)


def pipeline() -> Any:
    class Scheduler(SimpleNamespace):
        def set_timesteps(self) -> None: ...

        def step(self) -> None: ...

    class Pipeline(SimpleNamespace):
        def __call__(self) -> None: ...

    return Pipeline(scheduler=Scheduler(timesteps=()), transformer=torch.nn.Linear(1, 1))


def test_a_named_schedule_runs_as_the_object_does(file: Path) -> None:
    toy = make("adaln")
    calls = [toy.inputs(999.0 - 100 * step, step) for step in range(4)]
    model = compiled(toy)

    def run(schedule: Any) -> tuple[list[Any], list[Any]]:
        with deltapass.session(4, schedule=schedule) as session:
            outputs = follow(model, calls, session)
            return outputs, [entry.realised for entry in session.entries]

    ours, rows = run(str(file))
    theirs, expected = run(TABLE)
    assert rows == expected == list(TABLE.rows)
    assert all(map(torch.equal, ours, theirs))
