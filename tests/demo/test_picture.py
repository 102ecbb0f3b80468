"""How an outcome is shown; the files it writes are tested with the demo."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("diffusers")

from deltapass.demo.compare import Outcome
from deltapass.demo.picture import _decibels


@pytest.mark.parametrize(("psnr", "shown"), [(None, "-"), (float("inf"), "equal"), (31.26, "31.3")])
def test_decibels_read_well(psnr: float | None, shown: str) -> None:
    outcome = Outcome(
        name="x", steps=1, seconds_per_image=1.0, speedup=1.0, expected_speedup=1.0,
        gmacs_paper=0.0, gmacs_full=0.0, psnr=psnr, compile_seconds=None, images=torch.zeros(1),
    )  # fmt: skip
    assert _decibels(outcome) == shown
