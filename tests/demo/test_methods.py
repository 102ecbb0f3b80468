"""What the demo compares, and how many plain steps take as long."""

from __future__ import annotations

from typing import Any

import pytest

from deltapass.demo.methods import ASKED, SHOWN, steps_at_equal_time, wanted
from deltapass.options import parse_options


def test_what_is_shown_are_options_that_hold() -> None:
    for options in wanted({}).values():
        parse_options(options)
    assert list(wanted({})) == list(SHOWN)


def test_what_the_user_says_of_the_schedule_is_a_method_of_its_own_the_last() -> None:
    found = wanted({"interval": 3, "fuse": "whole"})
    assert list(found) == [*SHOWN, ASKED]
    assert found[ASKED] == {"interval": 3, "fuse": "whole"}
    assert all(options["fuse"] == "whole" for options in found.values())
    assert all("interval" not in found[name] for name in SHOWN)


def test_other_options_hold_for_all_and_add_no_method() -> None:
    assert list(wanted({"fuse": "whole"})) == list(SHOWN)


@pytest.mark.parametrize(
    ("share", "steps"), [(0.5, 10), (0.524, 10), (0.525, 11), (0.01, 1), (0.98, None), (1.2, None)]
)
def test_plain_steps_at_equal_time_half_a_step_to_the_rival(share: float, steps: Any) -> None:
    assert steps_at_equal_time(20, share) == steps
