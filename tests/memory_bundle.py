"""A bundle that was never written: its plan, and its segments as torch.export's own programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models import Denoiser
from reference import Call

from deltapass.bundles.formats import Written, WrittenSegment
from deltapass.bundles.loaded import LoadedModel
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.variants import LoadedVariants
from deltapass.exporting.prepare import prepare
from deltapass.exporting.trace import Exported, export_graph
from deltapass.graph.executable import Executable
from deltapass.options import parse_export_options


@dataclass(frozen=True)
class MemoryBundle:
    """What export would write, and `load` give back."""

    plan: BundlePlan
    segments: Mapping[str, Callable[..., Any]]
    exported: Exported

    def loaded(self) -> LoadedModel:
        variants = LoadedVariants(self.plan, self.segments)
        return LoadedModel(self.plan, variants, torch.device("cpu"))


def memory_bundle(model: Denoiser, **options: Any) -> MemoryBundle:
    args, kwargs = model.inputs(500.0)
    exported = export_graph(model, args, kwargs)
    made = prepare(exported, parse_export_options(options))
    names = [segment.name for segment in made.chains.segments]
    written = Written(segments={n: WrittenSegment(file=n) for n in names}, producer={})
    plan = made.plan("onnx", written, {"dtype": "float32"})
    segments = {s.name: s.program.module() for s in made.chains.segments}
    return MemoryBundle(plan, segments, exported)


@torch.no_grad()
def play(bundle: MemoryBundle, calls: Sequence[Call], branch: str = "") -> list[torch.Tensor]:
    """The planned trajectory by nothing but the table of plan.json, as a runner has it."""
    plan, held, outputs = bundle.plan, dict[str, list[torch.Tensor]](), []
    variants = {variant.name: variant for variant in plan.variants}
    for row, (args, kwargs) in zip(plan.table, calls, strict=True):
        variant = variants[row.variant]
        values = dict(zip([i.name for i in plan.inputs], [*args, *kwargs.values()], strict=True))
        for name, deltas in held.items():
            values[name] = deltas[0]
            for age in range(1, plan.taken):
                values[f"{name}_before_{age}"] = deltas[min(age, len(deltas) - 1)]
        for at, weights in enumerate(row.branches.get(branch, row.weights)):
            values[f"weights_{at}"] = torch.tensor(weights)
        run = Executable(variant, bundle.segments.__getitem__)
        results, new = run([values[name] for name in variant.inputs])
        outputs.append(results[0])
        for name, delta in zip(variant.deltas, new, strict=True):
            old = held.get(name, [])
            held[name] = [delta, *old] if row.fit is None else _fitted(old, delta, row.fit)
    return outputs


def _fitted(held: list[torch.Tensor], delta: torch.Tensor, fit: Any) -> list[torch.Tensor]:
    error = delta
    for value, coefficient in zip(fit.basis, held, strict=True):
        error = error - value * coefficient
    held = [*held, *[torch.zeros_like(delta)] * (len(fit.gains) - len(held))]
    return [c + gain * error for c, gain in zip(held, fit.gains, strict=True)]
