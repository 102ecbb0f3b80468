"""What samples in a call of a pipeline: its scheduler, and how strongly it is guided."""

from __future__ import annotations

import inspect
from typing import Any, Final

from deltapass.schedule.made_for import Sampler, sampler_of

GUIDANCE: Final = "guidance_scale"  # the argument of pipelines


def sampler_of_call(pipe: Any, guidance: Any = None) -> Sampler:
    """The sampler of a call with this strength of guidance, or with the pipeline's own."""
    takes = inspect.signature(type(pipe).__call__).parameters
    default = getattr(takes.get(GUIDANCE), "default", None)
    value = default if guidance is None else guidance
    known = float(value) if isinstance(value, int | float) else None
    return sampler_of(pipe.scheduler, known)
