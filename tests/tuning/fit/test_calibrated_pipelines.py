"""Whole pipelines: calibrated, and used where the schedule was made for, or elsewhere."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import DDIMScheduler
from models.zoo import NUMPY_WARNINGS, Zoo, make_pipe
from pipeline_case import compiled

import deltapass
from deltapass.errors import CalibrationWarning
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span
from deltapass.tuning.fit.calibration import Calibration

pytestmark = [
    pytest.mark.filterwarnings(NUMPY_WARNINGS),
    # What is random has no smooth deltas: weights are fitted, and little is won.
    pytest.mark.filterwarnings("ignore:the fit explains little"),
]

STEPS = 5
OWN = ("generator", "output_type", "num_inference_steps", "return_dict", "latents")


def rows_for(zoo: Zoo) -> ExplicitSchedule:
    span = Span(0, max(1, len(zoo.blocks) - 1))  # the last block of some has one stream less
    return ExplicitSchedule((None, None, span, None, span), "linear")


def call_of(zoo: Zoo) -> dict[str, Any]:
    return {name: value for name, value in zoo.call().items() if name not in OWN}


def calibrated(zoo: Zoo, **how: Any) -> Calibration:
    given = {"seeds": 2, "batch": 1, "steps": STEPS, "progress": False, **how}
    return deltapass.calibrate(zoo.pipe, schedule=rows_for(zoo), call=call_of(zoo), **given)


def use(zoo: Zoo, found: Calibration, **changed: Any) -> deltapass.SessionReport:
    zoo.pipe.transformer = compiled(zoo.denoiser, lowering="eager", schedule="none")
    deltapass.attach(zoo.pipe, schedule=found.schedule)
    given = {**call_of(zoo), "num_inference_steps": STEPS, "output_type": "latent", **changed}
    zoo.pipe(**given, generator=torch.Generator().manual_seed(9))
    report = deltapass.last_report(zoo.pipe)
    assert report is not None
    return report


@pytest.mark.parametrize("name", ["pixart-dpm", "sd3", "flux"])
def test_a_calibrated_pipeline_runs_as_planned_without_a_warning(name: str) -> None:
    zoo = make_pipe(name)
    found = calibrated(zoo)
    assert [row.step for row in found.rows] == [2, 4]
    report = use(zoo, found)
    assert report.as_planned and report.cached


def test_streams_may_have_weights_of_their_own() -> None:
    zoo = make_pipe("sd3")
    found = calibrated(zoo, per_stream=True, regularisation=0.0, batch=2)
    streams = {row.stream for row in found.rows}
    assert streams == {0, 1}
    weights = found.schedule.weights[4]
    assert weights is not None and len(weights.shared) == 2
    assert weights.shared[0] != weights.shared[1]
    assert use(zoo, found).as_planned


def test_what_differs_in_use_is_said_once() -> None:
    zoo = make_pipe("pixart-dpm")
    found = calibrated(zoo)
    with pytest.warns(CalibrationWarning, match="guidance is 1.5, it was made for"):
        use(zoo, found, guidance_scale=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        zoo.pipe(
            **{**call_of(zoo), "guidance_scale": 1.5},
            num_inference_steps=STEPS,
            output_type="latent",
            generator=torch.Generator().manual_seed(9),
        )
    zoo.pipe.scheduler = DDIMScheduler()
    with pytest.warns(CalibrationWarning, match="scheduler is DDIMScheduler, it was made for"):
        zoo.pipe(**call_of(zoo), num_inference_steps=STEPS, output_type="latent")


def test_another_setting_of_the_scheduler_is_named() -> None:
    zoo = make_pipe("pixart-dpm")
    found = calibrated(zoo)
    kind = type(zoo.pipe.scheduler)
    zoo.pipe.scheduler = kind.from_config(zoo.pipe.scheduler.config, solver_order=1)
    with pytest.warns(CalibrationWarning, match="solver_order is 1, it was made for 2"):
        use(zoo, found)


def test_another_number_of_steps_cannot_fit() -> None:
    zoo = make_pipe("pixart-dpm")
    found = calibrated(zoo)
    with pytest.warns(deltapass.RefusalWarning, match="5 rows but the trajectory has 4 steps"):
        report = use(zoo, found, num_inference_steps=4)
    assert not report.cached


def test_the_pipeline_is_as_it_was() -> None:
    zoo = make_pipe("pixart-dpm")
    kind, model = type(zoo.pipe), zoo.pipe.transformer
    before = set(vars(model))
    calibrated(zoo)
    assert type(zoo.pipe) is kind and zoo.pipe.transformer is model
    assert set(vars(model)) == before


def test_an_attached_pipeline_is_calibrated_for_the_schedule_it_runs() -> None:
    zoo = make_pipe("pixart-dpm")
    zoo.pipe.transformer = compiled(zoo.denoiser, lowering="eager", schedule="none")
    deltapass.attach(zoo.pipe, schedule=rows_for(zoo))
    found = deltapass.calibrate(
        zoo.pipe, call=call_of(zoo), steps=STEPS, seeds=1, batch=1, progress=False
    )
    assert found.schedule.rows == rows_for(zoo).rows


def test_an_enabled_pipeline_is_calibrated_for_its_preset() -> None:
    zoo = make_pipe("pixart-dpm")
    schedule = Schedule(cached_blocks=1, warm_up=2)
    with deltapass.enable(zoo.pipe, schedule=schedule, quick=True, quiet=True):
        found = deltapass.calibrate(
            zoo.pipe, call=call_of(zoo), steps=STEPS, seeds=1, batch=1, progress=False
        )
    assert found.schedule.rows == schedule.table(STEPS, len(zoo.blocks))


def test_guidance_by_position_is_known() -> None:
    zoo = make_pipe("pixart-dpm")
    takes = list(inspect.signature(type(zoo.pipe).__call__).parameters.values())
    names = [parameter.name for parameter in takes]
    given = {**call_of(zoo), "num_inference_steps": STEPS}
    before = takes[1 : names.index("guidance_scale")]
    position = [given.pop(each.name, each.default) for each in before]
    found = calibrated(zoo)
    zoo.pipe.transformer = compiled(zoo.denoiser, lowering="eager", schedule="none")
    deltapass.attach(zoo.pipe, schedule=found.schedule)
    given.pop("guidance_scale", None)
    with pytest.warns(CalibrationWarning, match="guidance is 1.5, it was made for"):
        zoo.pipe(*position, 1.5, **given, output_type="latent")
