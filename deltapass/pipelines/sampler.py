"""What samples in a call of a pipeline: its scheduler, and how strongly it is guided."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deltapass.schedule.made_for import Sampler, sampler_of

GUIDANCE: Final = "guidance_scale"  # the argument of pipelines


def sampler_of_call(pipe: Any, guidance: Any = None) -> Sampler:
    """The sampler of a call with this strength of guidance, or with the pipeline's own."""
    takes = inspect.signature(type(pipe).__call__).parameters
    default = getattr(takes.get(GUIDANCE), "default", None)
    value = default if guidance is None else guidance
    return sampler_of(pipe.scheduler, float(value) if isinstance(value, int | float) else None)


def guidance_given(kind: type, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The strength of guidance in the arguments of a call, by name or by position; else None."""
    if GUIDANCE in named or not given:
        return named.get(GUIDANCE)
    try:
        bound = inspect.signature(kind.__call__).bind_partial(None, *given, **named)
    except TypeError:  # the call itself says better what is wrong with it
        return None
    return bound.arguments.get(GUIDANCE)
