"""A bundle that was never written: its plan, and its segments as torch.export's own programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models import Denoiser
from models.unet import UNetDenoiser
from reference import Call

from deltapass.bundles.formats import Written, WrittenSegment
from deltapass.bundles.loaded import LoadedModel
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.variants import LoadedVariants
from deltapass.exporting import play as table
from deltapass.exporting.prepare import prepare
from deltapass.exporting.trace import Exported, export_graph
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


def memory_bundle(model: Denoiser | UNetDenoiser, **options: Any) -> MemoryBundle:
    args, kwargs = model.inputs(500.0)
    exported = export_graph(model, args, kwargs)
    made = prepare(exported, parse_export_options(options))
    names = [segment.name for segment in made.chains.segments]
    written = Written(segments={n: WrittenSegment(file=n) for n in names}, producer={})
    plan = made.plan("onnx", written, {"dtype": "float32"})
    segments = {s.name: s.program.module() for s in made.chains.segments}
    return MemoryBundle(plan, segments, exported)


def play(bundle: MemoryBundle, calls: Sequence[Call], branch: str = "-") -> list[torch.Tensor]:
    """The planned trajectory by nothing but the table of plan.json, as a runner has it."""
    inputs = ([*args, *kwargs.values()] for args, kwargs in calls)
    return [results[0] for results in table.play(bundle.plan, bundle.segments, inputs, branch)]
