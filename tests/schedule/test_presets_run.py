"""Presets on models: bit for bit the oracle's, with sessions and without, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driving import by_timestep, compiled, follow, in_session, oracle, sampled, tensors
from models import make
from reference import Call

import deltapass
from deltapass.schedule.presets import PRESETS, named_schedule

STEPS = 20


def calls_of(toy: Any, steps: int = STEPS) -> list[Call]:
    return [toy.inputs(999.0 * (1 - step / steps), step) for step in range(steps)]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("model", ["adaln", "two_stream"])
def test_presets_are_the_oracles_in_a_session_and_by_the_timestep_alone(
    model: str, name: str
) -> None:
    toy = make(model)
    schedule = named_schedule(name)
    table = schedule.table(STEPS, len(toy.blocks_in_order()))
    calls = calls_of(toy)
    outputs, report = in_session(compiled(toy, preset=name), calls)
    assert tuple(entry.realised for entry in report.entries) == table
    expected = oracle(toy, table, calls, schedule.predictor)
    assert all(map(torch.equal, tensors(outputs), tensors(expected)))

    calls, table = sampled(calls), by_timestep(table)
    told = compiled(toy, preset=name)
    alone = tensors(follow(told, calls))
    last = deltapass.last_report(told)
    assert last is not None and tuple(entry.realised for entry in last.entries) == table
    assert all(map(torch.equal, alone, tensors(oracle(toy, table, calls, schedule.predictor))))


@pytest.mark.parametrize(("name", "share"), [("quality", 0.6), ("balanced", 0.5), ("fast", 0.4)])
def test_what_a_preset_costs_is_explained(name: str, share: float) -> None:
    toy = make("adaln")
    (args, kwargs), *_ = calls_of(toy, 1)
    options = {"preset": name, "steps": STEPS}
    report = deltapass.explain(toy, *args, options=options, **kwargs)
    assert report.schedule_table == named_schedule(name).table(STEPS, len(toy.blocks_in_order()))
    assert share < report.share < share + 0.1, "what is no block runs at every step"


def test_a_session_takes_a_preset_by_name() -> None:
    toy = make("adaln")
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS, schedule="fast") as session:
        follow(compiled(toy), calls, session)
    table = named_schedule("fast").table(STEPS, len(toy.blocks_in_order()))
    assert tuple(entry.realised for entry in session.report().entries) == table
