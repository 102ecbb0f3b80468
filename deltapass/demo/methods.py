"""What the demo compares: the plain model, schedules by options of the backend, fewer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import torch

from deltapass.errors import counted
from deltapass.explanation import Report
from deltapass.graph.program import Macs
from deltapass.schedule.given import given_schedule
from deltapass.schedule.rules import Table

# By name: what is asked of the backend. Of all that are shown, fewer plain steps are held against
# the last one.
SHOWN: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "Δ-DiT, as in the paper": {"schedule": "delta-dit"},
        "preset: balanced": {"preset": "balanced"},
    }
)
TUNED: Final = "tuned for this model"
TUNED_FILE: Final = "schedules/tuned-2.0x.json"  # in the folder of a model
SCHEDULING: Final = frozenset(
    {"schedule", "interval", "cached_blocks", "boundary", "budget", "order", "predictor", "preset"}
)
ASKED: Final = "as you asked"


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One way to sample: a denoiser, its steps, what each does, and the MACs of all of them.

    `remark` says why it is shown, where its name does not.
    """

    name: str
    denoiser: Any
    steps: int
    macs: Macs
    table: Table
    remark: str = ""


def wanted(options: Mapping[str, object], folder: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Options of the backend by the method's name.

    Args:
        options: The user's. What they say of the schedule is a method of its own, the last; the
            rest holds for all.
        folder: The model's, with the schedule that it was tuned to, if it was.
        steps: Of the trajectories. A tuned schedule is for one number of them.
    """
    common = {name: value for name, value in options.items() if name not in SCHEDULING}
    found = {name: {**common, **chosen} for name, chosen in SHOWN.items()}
    tuned = folder / TUNED_FILE
    if tuned.exists() and given_schedule(tuned).length == steps:
        found[TUNED] = {**common, "schedule": tuned}
    return found if len(common) == len(options) else {**found, ASKED: dict(options)}


def cached_methods(
    model: torch.nn.Module,
    chosen: Mapping[str, Mapping[str, Any]],
    reports: Sequence[Report],
) -> tuple[Method, ...]:
    """A compiled denoiser for each of the chosen options, with what its report expects."""
    return tuple(
        Method(
            name,
            torch.compile(model, backend="deltadit", dynamic=False, options=dict(options)),
            report.steps,
            report.trajectory_macs if report.refusal is None else report.plain_macs,
            report.schedule_table or (None,) * report.steps,
        )
        for (name, options), report in zip(chosen.items(), reports, strict=True)
    )


def plain_method(denoiser: Any, steps: int, macs_of_a_step: Macs) -> Method:
    """So many steps with nothing cached."""
    name = f"plain, {counted(steps, 'step')}"
    return Method(name, denoiser, steps, macs_of_a_step * steps, (None,) * steps)


def steps_at_equal_time(steps: int, share: float) -> int | None:
    """Plain steps that take as long as a method; None where that is no fewer.

    Args:
        steps: Of the full plain run.
        share: The method's time over that run's. Half a step goes to the plain run.
    """
    fewer = max(1, math.floor(steps * share + 0.5))
    return fewer if fewer < steps else None
