"""What the demo compares, and how many plain steps take as long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltapass.demo.embedded import ASSETS
from deltapass.demo.methods import (
    ASKED,
    SHOWN,
    TUNED,
    TUNED_FILE,
    steps_at_equal_time,
    wanted,
)
from deltapass.options import parse_options
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import save_schedule
from deltapass.schedule.rules import Span

NOWHERE = Path("nowhere")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """The folder of a model with a schedule of three steps."""
    (tmp_path / TUNED_FILE).parent.mkdir()
    save_schedule(ExplicitSchedule((None, Span(0, 3), None)), tmp_path / TUNED_FILE)
    return tmp_path


def test_what_is_shown_are_options_that_hold() -> None:
    for name in ("garments", "nouns"):
        found = wanted({}, ASSETS / name, 20)
        assert [*found][: len(SHOWN)] == [*SHOWN]
        for options in found.values():
            parse_options({**options, "steps": 20})


def test_a_tuned_schedule_is_shown_for_as_many_steps_as_it_has(tuned: Path) -> None:
    found = wanted({"interval": 3}, tuned, 3)
    assert list(found) == [*SHOWN, TUNED, ASKED]
    table = parse_options(found[TUNED]).schedule
    assert table == ExplicitSchedule((None, Span(0, 3), None))
    assert list(wanted({}, tuned, 4)) == list(SHOWN)


def test_what_the_user_says_of_the_schedule_is_a_method_of_its_own_the_last() -> None:
    found = wanted({"interval": 3, "fuse": "whole"}, NOWHERE, 20)
    assert list(found) == [*SHOWN, ASKED]
    assert found[ASKED] == {"interval": 3, "fuse": "whole"}
    assert all(options["fuse"] == "whole" for options in found.values())
    assert all("interval" not in found[name] for name in SHOWN)


def test_other_options_hold_for_all_and_add_no_method() -> None:
    assert list(wanted({"fuse": "whole"}, NOWHERE, 20)) == list(SHOWN)


@pytest.mark.parametrize(
    ("share", "steps"), [(0.5, 10), (0.524, 10), (0.525, 11), (0.01, 1), (0.98, None), (1.2, None)]
)
def test_plain_steps_at_equal_time_half_a_step_to_the_rival(share: float, steps: Any) -> None:
    assert steps_at_equal_time(20, share) == steps
