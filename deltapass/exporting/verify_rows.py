"""A written bundle along its planned trajectory, row by row, beside eager PyTorch.

Every row runs on the deltas that the rows before it left: what was written by the table alone, as a
runner goes by it, and eager PyTorch in a session, which plans from the schedule. Then the first
rows once more, both in sessions, with a refresh where the first cached step was planned: weights
that a row carries hold no longer after it, and the next cached step has to find others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from deltapass.bundles.loaded import LoadedModel
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.variants import LoadedVariants
from deltapass.errors import InternalError
from deltapass.exporting.compare import called_with, relative_error
from deltapass.exporting.play import play
from deltapass.exporting.trace import Exported
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Role
from deltapass.sessions.report import SessionReport
from deltapass.sessions.session import session

MOVES = 0.05  # of the sample, from step to step: equal deltas would hide wrong weights


def row_errors(
    plan: BundlePlan, segments: Sequence[Mapping[str, Lowered]], exported: Exported
) -> Iterator[tuple[str, float]]:
    """The largest error of every row, over the largest value.

    Args:
        plan: The plan of the bundle.
        segments: Name -> callable, of what was written and of what it is compared with.
        exported: Gives the example call, of which the sample is moved from step to step.
    """
    kinds = {variant.name: variant.kind for variant in plan.variants}
    cached = [step for step, row in enumerate(plan.table) if kinds[row.variant] == "cached"]
    if not cached:
        return
    written, eager = segments
    inputs = ([*_moved(plan, exported.example, step).values()] for step in range(plan.steps))
    theirs = _outputs(plan, eager, exported, plan.steps)
    for step, (given, wanted) in enumerate(zip(play(plan, written, inputs), theirs, strict=True)):
        yield f"{step}, {plan.table[step].variant}", relative_error(given, wanted)
    if len(cached) == 1:
        return
    forced, last = cached[:2]
    ours, theirs = (_outputs(plan, given, exported, last + 1, forced) for given in segments)
    for step in range(forced, last + 1):
        name = f"{step}, {plan.table[step].variant} with a refresh at {forced}"
        yield name, relative_error(ours[step], theirs[step])


def _outputs(
    plan: BundlePlan,
    segments: Mapping[str, Lowered],
    exported: Exported,
    count: int,
    forced: int | None = None,
) -> list[list[Any]]:
    """The results of the first `count` steps, with a refresh forced at one of them."""
    device = next(iter(exported.example.values())).device
    model = LoadedModel(plan, LoadedVariants(plan, segments), device)
    outputs = []
    with torch.no_grad(), session(plan.steps) as told:
        for step in range(count):
            if step == forced:
                told.free()
            told.step(step)
            moved = _moved(plan, exported.example, step)
            call = called_with(exported.call, exported.example, moved)
            outputs.append(pytree.tree_leaves(model(**call)))
    if forced is None:
        _check_planned(plan, told.report())
    return outputs


def _check_planned(plan: BundlePlan, report: SessionReport) -> None:
    """Raise InternalError unless a session did in every step what the table says."""
    skipped = {v.name: v.spans[0] if v.kind == "cached" else None for v in plan.variants}
    for step, (entry, row) in enumerate(zip(report.entries, plan.table, strict=True)):
        if entry.realised != skipped[row.variant] or not entry.as_planned:
            raise InternalError(
                f"row {step} of the table is {row.variant}, and a session skips "
                f"{entry.realised or 'nothing'} there ({entry.why or 'as it plans'})"
            )


def _moved(
    plan: BundlePlan, example: Mapping[str, torch.Tensor], step: int
) -> dict[str, torch.Tensor]:
    """The example at a later step: what is no conditioning and no timestep has moved."""
    still = {*plan.conditioning, *(i.name for i in plan.inputs if i.role == Role.TIMESTEP.value)}
    return {
        name: value if name in still or not value.is_floating_point() else _at(value, step)
        for name, value in example.items()
    }


def _at(value: torch.Tensor, step: int) -> torch.Tensor:
    """Towards the same numbers in another order, at a changing pace."""
    share = MOVES * step * (1 + MOVES * step)
    return (value + share * (value.flatten().flip(0).view(value.shape) - value)).contiguous()
