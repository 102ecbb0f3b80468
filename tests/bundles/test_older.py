"""Bundles of schema version 1 run as they did: beside this lies one that version 0.1.0 wrote.

It holds the toy "adaln" of two blocks under Delta-DiT of order 1, one block at a time, 8 steps; the
file of tensors holds inputs, and the outputs that the deltapass of then gave for them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deltapass
from deltapass.bundles.manifest import PLAN_FILE, read_plan
from deltapass.errors import BundleError, RefusalWarning
from deltapass.exporting.compare import relative_error
from deltapass.schedule.rules import Span

pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent / "schema_1"
STEPS, TOLERANCE = 8, 2e-5
TABLE = (None, Span(1, 2), None, Span(1, 2), None, Span(0, 1), None, Span(0, 1))
CONTENT: dict[str, Any] = json.loads((HERE / "bundle" / PLAN_FILE).read_text())


def outputs(
    model: deltapass.LoadedModel, schedule: Any = None
) -> tuple[list[torch.Tensor], list[torch.Tensor], deltapass.SessionReport]:
    """What a trajectory gives now, what it gave then, and the report."""
    kept = load_file(HERE / "trajectory.safetensors")
    given = []
    with torch.no_grad(), deltapass.session(STEPS, schedule=schedule) as session:
        for step in range(STEPS):
            session.step(step)
            given.append(model(kept[f"sample_{step}"], kept[f"timestep_{step}"]))
    return given, [kept[f"output_{step}"] for step in range(STEPS)], session.report()


def test_it_gives_what_it_gave() -> None:
    given, before, report = outputs(deltapass.load(HERE / "bundle"))
    assert relative_error(given, before) < TOLERANCE
    assert report.as_planned and tuple(entry.realised for entry in report.entries) == TABLE


def test_it_is_read_as_a_plan_of_today() -> None:
    plan = deltapass.load(HERE / "bundle").plan
    assert (plan.schema, plan.predictor, plan.taken) == (2, "linear", 2)
    assert plan.schedule == {**CONTENT["schedule"], "predictor": "linear"}
    assert [row.reads for row in plan.table] == [(), (0,), (), (2, 0), (), (4, 2), (), (6, 4)]
    assert [row.weights for row in plan.table if row.weights] == [((1.0, -0.0),)] + [
        ((1.5, -0.5),)
    ] * 3


def test_a_plan_of_order_0_weighs_nothing(tmp_path: Path) -> None:
    table = [{**row, "trend": None} for row in CONTENT["table"]]
    (tmp_path / PLAN_FILE).write_text(json.dumps({**CONTENT, "order": 0, "table": table}))
    plan = read_plan(tmp_path)
    assert (plan.predictor, plan.taken, plan.schedule) == ("reuse", 0, CONTENT["schedule"])
    assert [row.reads for row in plan.table] == [(), (0,), (), (2,), (), (4,), (), (6,)]
    assert not any(row.weights for row in plan.table)


def test_reuse_is_a_line_that_goes_nowhere() -> None:
    model = deltapass.load(HERE / "bundle")
    flat = deltapass.ExplicitSchedule(TABLE)
    given, before, report = outputs(model, flat)
    assert report.as_planned
    assert relative_error(given[:3], before[:3]) < TOLERANCE  # one delta only
    assert relative_error(given[3:4], before[3:4]) > 10 * TOLERANCE


def test_what_it_cannot_do_is_said() -> None:
    model = deltapass.load(HERE / "bundle")
    curved = deltapass.ExplicitSchedule(TABLE, predictor="quadratic")
    with pytest.warns(RefusalWarning, match="weighs 3 deltas a stream.*take 2 a stream"):
        _, _, report = outputs(model, curved)
    assert report.cached == 0


@pytest.mark.parametrize(
    "change",
    [
        {"order": 2},
        {"taken": 0},
        {"predictor": "linear"},
        {"table": [{"variant": "refresh"}]},
        {"table": [{"variant": "refresh", "trend": None, "more": 1}]},
        {"variants": None},
        {"extra": 1},
    ],
)
def test_what_no_plan_of_then_said_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(HERE / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle" / PLAN_FILE).write_text(json.dumps({**CONTENT, **change}))
    with pytest.raises(BundleError, match="not as its schema says"):
        deltapass.load(tmp_path / "bundle")
