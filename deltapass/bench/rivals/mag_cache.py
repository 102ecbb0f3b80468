"""MagCache of diffusers: skips all blocks where magnitudes of residuals, seen before, allow it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from torch import nn

from deltapass.bench.rivals.asked import Asked
from deltapass.bench.rivals.hooks import configured, hooked
from deltapass.errors import BenchError
from deltapass.libraries import needs


@contextmanager
def enable(model: nn.Module, asked: Asked) -> Iterator[Callable[[], None]]:
    """Settings: `threshold`, `max_skip_steps`, `retention_ratio`, `mag_ratios`.

    Without `mag_ratios` one trajectory is drawn first, with every block, to find them.

    Raises:
        BenchError: If there are neither ratios nor something that draws.
    """
    with needs("diffusers", "bench"):
        from diffusers import MagCacheConfig

    ratios = asked.settings.get("mag_ratios") or calibrated(model, asked)
    settings = {**asked.settings, "mag_ratios": ratios}
    config = configured(MagCacheConfig, settings, num_inference_steps=asked.steps)
    with hooked(model, config) as reset:
        yield reset


def calibrated(model: nn.Module, asked: Asked) -> list[float]:
    """Ratios of magnitudes, one a step: diffusers prints them at the end of a trajectory."""
    from diffusers import MagCacheConfig

    if asked.sample is None:
        raise BenchError(
            "MagCache needs ratios of magnitudes that were measured on this model",
            "Give `mag_ratios` in the settings, or `sample` to draw a trajectory with",
        )
    printed = StringIO()
    config = MagCacheConfig(calibrate=True, num_inference_steps=asked.steps)
    with hooked(model, config), redirect_stdout(printed):
        asked.sample(model)
    # The first line of numbers: of the first branch to end.
    lists = [text for text in printed.getvalue().splitlines() if re.match(r"\[-?\d", text)]
    if not lists:
        raise BenchError(
            f"MagCache did not see a trajectory of {asked.steps} steps while it was calibrated",
            "Let `sample` draw one with as many steps as asked for, a call a step and branch",
        )
    ratios: list[float] = ast.literal_eval(lists[0])
    return ratios
