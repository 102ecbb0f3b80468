"""The planned trajectory by nothing but what plan.json says of it, as a reader without Python does.

Sessions plan anew, from the schedule; here the reads, weights and fits of the table's rows count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from deltapass.bundles.manifest import BundlePlan, FitSpec
from deltapass.graph.executable import Executable, Lowered

ALONE: Final = "-"  # the branch of a trajectory with one call a step

Held = Mapping[int, torch.Tensor]  # refresh -> delta; of a fit, number -> coefficient


@torch.no_grad()
def play(
    plan: BundlePlan,
    segments: Mapping[str, Lowered],
    calls: Iterable[Sequence[torch.Tensor]],
    branch: str = ALONE,
) -> Iterator[tuple[Any, ...]]:
    """The results of the table's rows.

    Args:
        plan: Of the bundle.
        segments: Name -> callable.
        calls: The inputs of every step, in the plan's order.
        branch: Whose weights are taken, by its name in reports.

    Raises:
        KeyError: If a row reads a delta that is not there.
    """
    held: dict[str, Held] = {}
    variants = {variant.name: variant for variant in plan.variants}
    fits = any(row.fit for row in plan.table)
    for step, (row, inputs) in enumerate(zip(plan.table, calls, strict=True)):
        variant = variants[row.variant]
        values = dict(zip((entry.name for entry in plan.inputs), inputs, strict=True))
        for name in held.keys() & set(variant.inputs):
            read = sorted(held[name]) if fits else row.reads
            values |= _buffers(name, [held[name][at] for at in read], plan.taken)
        for stream, vector in enumerate(row.branches.get(branch, row.weights)):
            values[f"weights_{stream}"] = torch.tensor(
                vector, dtype=torch.float32, device=inputs[0].device
            )
        run = Executable(variant, segments.__getitem__)
        results, new = run([values[name] for name in variant.inputs])
        for name, delta in zip(variant.deltas, new, strict=True):
            old = held.get(name, {})
            held[name] = {**old, step: delta} if row.fit is None else _fitted(old, delta, row.fit)
        if not fits:
            later = {at for other in plan.table[step + 1 :] for at in other.reads}
            held = {n: {at: d for at, d in h.items() if at in later} for n, h in held.items()}
        yield results


def _buffers(name: str, given: Sequence[torch.Tensor], taken: int) -> dict[str, torch.Tensor]:
    """What a variant reads of one stream; the newest stands in for those that are not there."""
    given = [*given, *[given[0]] * (taken - len(given))]
    return {f"{name}_before_{age}" if age else name: delta for age, delta in enumerate(given)}


def _fitted(held: Held, delta: torch.Tensor, fit: FitSpec) -> Held:
    """The coefficients after one more delta: c += gains * (delta - basis . c)."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    old = [held[which].to(wide) for which in sorted(held)]
    error = delta.to(wide)
    for value, coefficient in zip(fit.basis, old, strict=True):
        error = error - value * coefficient
    old += [torch.zeros_like(error)] * (len(fit.gains) - len(old))
    pairs = enumerate(zip(old, fit.gains, strict=True))
    return {which: (c + gain * error).to(delta.dtype) for which, (c, gain) in pairs}
