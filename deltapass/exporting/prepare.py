"""Everything of a bundle but its files: the plan of an exported model, and plan.json made of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from deltapass.bundles.formats import Job, SegmentProgram, Written
from deltapass.bundles.manifest import (
    SCHEMA_VERSION,
    BundlePlan,
    InputSpec,
    Row,
    SegmentSpec,
    SpanSpec,
    ValueSpec,
    WeightsSpec,
)
from deltapass.bundles.weights_file import TensorStore, fingerprint
from deltapass.compiler.blocks import find_stack
from deltapass.compiler.conditioning import conditioning_of
from deltapass.compiler.outline import outline
from deltapass.compiler.plan import Plan
from deltapass.compiler.roles import state
from deltapass.compiler.settle import plan_for
from deltapass.errors import ExportError
from deltapass.exporting.chains import Chains, chains_of
from deltapass.exporting.rows import rows_of
from deltapass.exporting.trace import Exported
from deltapass.graph.program import Macs, Role
from deltapass.graph.sizes import Dimension
from deltapass.options import Options
from deltapass.schedule.emissions import emissions
from deltapass.schedule.files import schedule_content
from deltapass.schedule.rules import Span, Table


def prepare(exported: Exported, options: Options) -> Prepared:
    """Everything of a bundle but its files."""
    inputs = state(exported.captured.inputs, options.inputs)
    captured, stack = find_stack(replace(exported.captured, inputs=inputs))
    exported = replace(exported, captured=captured)
    outlined = outline(captured, stack)
    held = outlined.program.weights.intersection(outlined.program.value_results)
    if held:
        raise ExportError(
            f"the model returns its own {', '.join(sorted(held))}",
            "Return only what it computes; a bundle's weights are inside its engines",
        )
    plan = plan_for(outlined, options)
    steps = options.planned_steps
    for error in plan.dropped.values():
        raise error  # a bundle skips all spans of its schedule
    table = plan.realised(plan.schedule.table(steps, plan.blocks))
    return Prepared(
        exported=exported,
        planned=plan,
        options=options,
        table=table,
        conditioning=_conditioning(plan, exported),
        chains=chains_of(plan, exported, _subsets(plan, table)),
    )


def _conditioning(plan: Plan, exported: Exported) -> tuple[str, ...]:
    names = conditioning_of(plan.outline).values()
    return tuple(name for name in names if name in exported.example)


def _subsets(plan: Plan, table: Table) -> list[tuple[Span, ...]]:
    """The sets of spans whose deltas some refresh may have to emit."""
    spans = sorted({spanned.span for spanned in plan.spans.values()})
    some = {frozenset(few) for n in range(3) for few in itertools.combinations(spans, n)}
    wanted = some | set(emissions(table, plan.schedule.depths(table))) | {frozenset(spans)}
    return sorted((tuple(sorted(few)) for few in wanted), key=lambda few: (len(few), few))


@final
@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is known before the first file is written."""

    exported: Exported
    planned: Plan
    options: Options
    table: Table
    conditioning: tuple[str, ...]
    chains: Chains

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights the graph uses, by their names in the model."""
        held = self.exported.held
        return {name: self.exported.tensors[name] for name in sorted(held)}

    def job(self, folder: Path, options: Mapping[str, Any] | None) -> Job:
        """What a format is to write."""
        return Job(
            segments=self.chains.segments,
            folder=folder,
            store=TensorStore(),
            dimensions=self.exported.dimensions,
            options=options or {},
        )

    def plan(self, format: str, written: Written, attributes: Mapping[str, Any]) -> BundlePlan:
        """plan.json, but for the checksums of files."""
        return BundlePlan(
            format=format,
            producer={**_producer(), **written.producer},
            files={},
            weights=_weights_spec(self.weights),
            dimensions=self.exported.dimensions,
            signature=self.exported.signature,
            inputs=self._inputs(),
            values=values_of(self.chains.example, self.chains.shapes),
            segments=tuple(_segment(s, written) for s in self.chains.segments),
            variants=self.chains.variants,
            blocks=self.planned.blocks,
            spans=self._spans(),
            conditioning=self.conditioning,
            predictor=self.planned.schedule.forecast.name,
            taken=self.planned.schedule.taken,
            steps=len(self.table),
            fixed_steps=self.options.steps is not None,
            schedule=schedule_content(self.planned.schedule),
            table=self.rows,
            macs=self._macs(),
            attributes=attributes,
            build=written.build,
            verified=None,
            schema=SCHEMA_VERSION,
        )

    def _inputs(self) -> tuple[InputSpec, ...]:
        captured, shapes = self.exported.captured, self.exported.shapes
        return tuple(
            InputSpec(
                name=given.name,
                role=given.role.value,
                dtype=_dtype(given.spec.dtype),
                shape=shapes.get(given.name, given.spec.shape),
            )
            for given in captured.inputs
            if given.spec is not None and given.role is not Role.WEIGHT
        )

    def _spans(self) -> tuple[SpanSpec, ...]:
        return tuple(
            SpanSpec(
                wanted=spanned.wanted,
                span=spanned.span,
                streams=len(spanned.streams),
                bytes=spanned.nbytes,
            )
            for spanned in self.planned.spans.values()
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The planned trajectory, step by step."""
        return rows_of(self.planned.schedule, self.table, self.chains)

    def _macs(self) -> dict[str, float]:
        full = self.planned.outline.program.macs
        costs = {variant.name: variant.macs for variant in self.chains.variants}
        ours = sum((costs[row.variant] for row in self.rows), Macs())
        plain = full * len(self.table)
        return {
            "paper": full.paper,
            "full": full.full,
            "plain_trajectory": plain.full,
            "trajectory": ours.full,
            "expected_speedup": plain.full / ours.full if ours.full else 1.0,
        }


def _weights_spec(weights: Mapping[str, torch.Tensor]) -> WeightsSpec:
    return {
        "fingerprint": fingerprint(weights),
        "count": len(weights),
        "bytes": sum({t.data_ptr(): t.nbytes for t in weights.values()}.values()),
        "names": list(weights),
    }


def _segment(segment: SegmentProgram, written: Written) -> SegmentSpec:
    made = written.segments[segment.name]
    return SegmentSpec(
        name=segment.name,
        file=made.file,
        inputs=segment.inputs,
        outputs=segment.outputs,
        values=values_of(segment.values, segment.shapes),
        weights=dict(made.weights),
        macs=segment.macs,
    )


def values_of(
    example: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[Dimension, ...]]
) -> dict[str, ValueSpec]:
    """Type and dimensions of values."""
    return {
        name: ValueSpec(dtype=_dtype(value.dtype), shape=shapes.get(name, tuple(value.shape)))
        for name, value in example.items()
    }


def _producer() -> dict[str, str]:
    import deltapass

    return {"deltapass": deltapass.__version__, "torch": str(torch.__version__)}


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
