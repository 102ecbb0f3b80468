from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from deltapass.errors import ScheduleError
from deltapass.schedule.made_for import (
    MadeFor,
    Sampler,
    made_for_content,
    made_for_from,
    sampler_of,
    shapes_key,
)

CONFIG = {"beta_end": 0.02, "_class_name": "DPM", "betas": [1, 2], "rescale": lambda: 0}
SAMPLER = sampler_of(SimpleNamespace(config=CONFIG), 2.0)
MADE = MadeFor(blocks=28, structure="ab12", steps=20, sampler=SAMPLER)


def test_a_sampler_is_what_json_can_hold_of_it() -> None:
    assert SAMPLER.scheduler == "SimpleNamespace"
    assert SAMPLER.settings == (("beta_end", 0.02), ("betas", (1, 2)))
    assert hash(MADE) == hash(replace(MADE))


def test_settings_that_json_has_no_word_for_are_left_out() -> None:
    config = {"lambda_min_clipped": -float("inf"), "shift": 1.0}
    assert sampler_of(SimpleNamespace(config=config)).settings == (("shift", 1.0),)


@pytest.mark.parametrize("made", [MADE, MadeFor(blocks=2, structure="x", steps=4)])
def test_content_reads_back_equal(made: MadeFor) -> None:
    assert made_for_from(json.loads(json.dumps(made_for_content(made)))) == made


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"structure": None}, "structure is None"),
        ({"guidance": "2"}, "guidance is '2'"),
        ({"settings": [1]}, r"settings is \[1\]"),
        ({"shape": 3}, "unknown key of made_for 'shape'"),
    ],
)
def test_content_without_meaning_is_an_error(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(ScheduleError, match=fact):
        made_for_from({**made_for_content(MADE), **change})


def test_what_differs_is_named() -> None:
    assert MADE.other_model("ab12") == MADE.other_model("") == ""
    assert "shapes of the model's weights" in MADE.other_model("cd")
    assert replace(MADE, structure="").other_model("cd") == ""  # of a bundle it is not known
    assert MADE.other_sampler(SAMPLER) == ""
    assert MADE.other_sampler(Sampler()) == ""
    assert MADE.other_sampler(replace(SAMPLER, guidance=5.0)) == (
        "guidance is 5, it was made for 2"
    )
    other = replace(SAMPLER, scheduler="Euler", settings=(("beta_end", 1.0),))
    assert MADE.other_sampler(other) == "scheduler is Euler, it was made for SimpleNamespace"
    changed = replace(SAMPLER, settings=(("beta_end", 1.0), ("new", 3)))
    assert MADE.other_sampler(changed) == "beta_end is 1, it was made for 0.02"


def test_another_number_of_blocks_is_an_error() -> None:
    MADE.check_blocks(28)
    with pytest.raises(ScheduleError, match="a model of 28 blocks, this one has 24"):
        MADE.check_blocks(24)


def test_shapes_count_in_any_order_and_as_often_as_they_come() -> None:
    key = shapes_key([(2, 3), (4,)])
    assert key == shapes_key([(4,), (2, 3)]) == "28c77b1c08fc64a6"
    assert key not in {shapes_key([(2, 3)]), shapes_key([(2, 3), (4,), (4,)])}
