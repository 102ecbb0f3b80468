"""Ending guidance in the middle of a trajectory, as pipelines of diffusers let a callback do it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, final

import torch

from deltapass.errors import BenchError

CALLBACK: Final = "callback_on_step_end"
TENSORS: Final = "callback_on_step_end_tensor_inputs"
LATENTS: Final = "latents"


def ending_guidance(pipeline: Any, steps: int) -> dict[str, Any]:
    """Arguments of a pipeline's call that end guidance behind so many steps.

    Raises:
        BenchError: If the pipeline does not ask at every step whether it guides.
    """
    kind = type(pipeline)
    takes = inspect.signature(kind.__call__).parameters
    named = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    asks = hasattr(kind, "do_classifier_free_guidance")
    if not asks or not (named or {CALLBACK, TENSORS} <= takes.keys()):
        raise BenchError(
            f"{kind.__name__} cannot end guidance within a trajectory",
            "Give the method the setting guidance = true: then both halves are sampled to the end",
        )
    known = getattr(kind, "_callback_tensor_inputs", [LATENTS])
    wanted = [name for name in known if not name.startswith("negative")]
    return {CALLBACK: EndOfGuidance(steps), TENSORS: wanted}


@final
class EndOfGuidance:
    """A callback that ends guidance once `steps` steps are done.

    What the pipeline holds for both halves of guidance, the conditional one behind the other, is
    cut to that one.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(
        self, pipeline: Any, step: int, _: Any, tensors: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Called at the end of every step."""
        if step != self.steps - 1:
            return {}
        pipeline._guidance_scale = 0.0  # documented by diffusers, as "dynamic CFG"
        samples = len(tensors[LATENTS])
        return {
            name: value[samples:]
            for name, value in tensors.items()
            if torch.is_tensor(value) and len(value) == 2 * samples
        }
