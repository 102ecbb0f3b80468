"""The embedded model: what calibration is worth in images."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from models.zoo import NUMPY_WARNINGS

from deltapass.demo.embedded import load_embedded
from deltapass.demo.images import mean_psnr
from deltapass.schedule.rules import Schedule
from deltapass.tuning.fit.calibrate import fit_rows
from deltapass.tuning.loops import open_loop
from deltapass.tuning.subject import look_at

pytestmark = pytest.mark.filterwarnings(NUMPY_WARNINGS)

STEPS = 8
RULE = Schedule(cached_blocks=28, boundary=1.0, warm_up=2, predictor="linear")
CALL = {"class_labels": list(range(10)), "guidance_scale": 2.0, "output_type": "pt"}
TRAINED, HELD_OUT = (0, 1, 2), (101, 102, 103)


def test_fitted_weights_are_nearer_to_the_plain_images_on_held_out_seeds() -> None:
    with open_loop(load_embedded(), call=CALL, steps=STEPS) as loop:
        found = fit_rows(loop, look_at(loop, TRAINED), RULE, [TRAINED])
        plain = loop.run(HELD_OUT).samples
        linear, fitted = (
            mean_psnr(loop.run(HELD_OUT, schedule).samples, plain)
            for schedule in (RULE, found.schedule)
        )
    assert fitted > linear + 1.0
