"""Other solvers for a pipeline: scheduler classes of diffusers, set up as its own was trained."""

from __future__ import annotations

from typing import Any, Final

from deltapass.errors import BenchError, did_you_mean
from deltapass.libraries import needs

ENDING: Final = "Scheduler"
FLOWS: Final = (
    "For a model that predicts the flow give one that takes use_flow_sigmas, such as "
    "DPMSolverMultistepScheduler or DEISMultistepScheduler, or FlowMatchEulerDiscreteScheduler"
)


def scheduler_of(name: str, own: Any) -> Any:
    """A scheduler of another class with the settings of a pipeline's own.

    A model that predicts the flow keeps doing so: where the class is for flows alone, it has no
    other way; elsewhere it must take `use_flow_sigmas`.

    Raises:
        BenchError: If diffusers has none of that name, or it does not fit what the model predicts.
    """
    with needs("diffusers", "demo"):
        import diffusers
    kind = getattr(diffusers, name, None)
    if kind is None or not name.endswith(ENDING):
        known = [each for each in dir(diffusers) if each.endswith(ENDING)]
        raise BenchError(
            f"diffusers has no scheduler {name!r}",
            f"{did_you_mean(name, known)}Give the name of a class, such as EulerDiscreteScheduler",
        )
    try:
        made = kind.from_config(own.config)
    except (TypeError, ValueError) as error:
        raise BenchError(
            f"{name} refuses the settings of this model's {type(own).__name__}: {error}", FLOWS
        ) from error
    flows = own.config.get("prediction_type") == "flow_prediction" or "Flow" in type(own).__name__
    fits = "Flow" in name or getattr(made.config, "use_flow_sigmas", False)
    if flows and not fits:
        raise BenchError(f"{name} cannot follow a model that predicts the flow", FLOWS)
    return made
