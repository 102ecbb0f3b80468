"""`deltapass.export(...)`: a model as a plan bundle, engines with the cache inside.

The stages of `compiler.py` up to the rewrite, on segments instead of blocks; then a format writes
the segments, plan.json says how they make variants, and what was written is run and compared.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch

from deltapass.blocks import find_blocks
from deltapass.bundle import (
    PLAN_FILE,
    BundlePlan,
    InputSpec,
    Row,
    SegmentSpec,
    SpanSpec,
    ValueSpec,
    to_text,
)
from deltapass.errors import ExportError
from deltapass.exported import DynamicShapes, Exported, batch_dimension, export_graph
from deltapass.formats import Job, Written, load_format
from deltapass.freshness import conditioning_of
from deltapass.glue import Chains, chains_of
from deltapass.graphs import Macs, Role
from deltapass.integrity import file_specs, written_aside
from deltapass.options import Options, parse_options
from deltapass.outline import outline
from deltapass.plan import Plan, emissions, make_plan
from deltapass.programs import SegmentProgram
from deltapass.schedule import Span, Table
from deltapass.schedule_files import schedule_content
from deltapass.sizes import Dimension
from deltapass.tensorfile import TensorStore, fingerprint
from deltapass.verification import Reference, verify_bundle

DEFAULT_STEPS: Final = 20  # as in the paper's tables
EXPORT_OPTIONS: Final = (
    "interval",
    "cached_blocks",
    "boundary",
    "order",
    "steps",
    "schedule",
    "per_step",
)


def export(  # noqa: PLR0913 - one call is how its users meet it
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    path: str | Path,
    *,
    format: str = "onnx",
    batch: tuple[int, int] | None = None,
    dynamic_shapes: DynamicShapes | None = None,
    verify: bool = True,
    overwrite: bool = False,
    engine: Mapping[str, Any] | None = None,
    **options: Any,
) -> BundlePlan:
    """Write a model as a plan bundle.

    Args:
        model: The denoiser, in eval mode, not compiled.
        args: Positional inputs of an example call.
        kwargs: Its keyword inputs. All but tensors is fixed in the bundle.
        path: Folder to write.
        format: "onnx", "aoti" or "tensorrt".
        batch: Least and greatest batch; None fixes the example's. The example needs two samples.
        dynamic_shapes: Further dimensions that may vary, as torch.export takes them: parameter
            name -> {dimension: torch.export.Dim}.
        verify: Run what was written, on the example and at the ends of the dimensions' ranges,
            and compare with the model.
        overwrite: Replace a bundle that lies at `path`.
        engine: Options of the format, see docs/bundles.md.
        **options: Of the backend: `schedule`, `interval`, `cached_blocks`, `boundary`, `order`,
            `steps`, `per_step`. Without `steps` the table in plan.json is for 20.

    Returns:
        What plan.json says.

    Raises:
        ExportError: If the model cannot be exported as asked.
        VerificationError: If what was written differs from the model; nothing is kept then.
        UnsupportedGraphError, ScheduleError, OptionError: As when compiling.
        MissingLibraryError: If the format needs a library that is not installed.
        LoweringError: If a segment cannot be written.
    """
    chosen = parse_options(_checked(options))
    backend = load_format(format)
    if batch is not None:
        dynamic_shapes = _joined(batch_dimension(model, args, kwargs, batch), dynamic_shapes or {})
    made = prepare(export_graph(model, args, kwargs, dynamic_shapes), chosen)
    with written_aside(Path(path), overwrite=overwrite) as folder:
        job = Job(
            segments=made.chains.segments,
            folder=folder,
            store=TensorStore(),
            dimensions=made.exported.dimensions,
            options=engine or {},
        )
        plan = made.plan(format, backend.write(job), _attributes(model))
        if verify:
            reference = Reference(model=model, exported=made.exported, chains=made.chains)
            plan = replace(plan, verified=verify_bundle(folder, plan, reference))
        backend.finish(folder, plan)
        plan = replace(plan, files=file_specs(folder))
        (folder / PLAN_FILE).write_text(to_text(plan), encoding="utf-8")
    return plan


def _checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in options:
        if name not in EXPORT_OPTIONS:
            raise ExportError(
                f"export takes no option {name!r}", f"It takes {', '.join(EXPORT_OPTIONS)}"
            )
    return options


def _joined(one: DynamicShapes, two: DynamicShapes) -> DynamicShapes:
    return {name: {**one.get(name, {}), **two.get(name, {})} for name in {**one, **two}}


def prepare(exported: Exported, options: Options) -> Prepared:
    """Everything of a bundle but its files."""
    captured = exported.captured
    outlined = outline(captured, find_blocks(captured))
    plan = make_plan(outlined, options.schedule, order=options.order, steps=options.steps)
    steps = options.steps or DEFAULT_STEPS
    rows = plan.schedule.table(steps, plan.blocks)
    table = tuple(plan.spans[span].span if span else None for span in rows)
    return Prepared(
        exported=exported,
        planned=plan,
        options=options,
        table=table,
        chains=chains_of(plan, exported, _subsets(plan, table)),
    )


def _subsets(plan: Plan, table: Table) -> list[tuple[Span, ...]]:
    """The sets of spans whose deltas some refresh may have to emit."""
    spans = sorted({spanned.span for spanned in plan.spans.values()})
    some = {frozenset(few) for n in range(3) for few in itertools.combinations(spans, n)}
    wanted = some | set(emissions(table, plan.order)) | {frozenset(spans)}
    return sorted((tuple(sorted(few)) for few in wanted), key=lambda few: (len(few), few))


def _attributes(model: torch.nn.Module) -> dict[str, Any]:
    """What pipelines ask a denoiser for, as far as a file can hold it."""
    config = getattr(model, "config", None)
    known = dict(config) if isinstance(config, Mapping) else {}
    kept = {}
    for name, value in known.items():
        with suppress(TypeError, ValueError):
            kept[str(name)] = json.loads(json.dumps(value, allow_nan=False))
    dtype = getattr(model, "dtype", None) or next(iter(model.parameters())).dtype
    return {
        "config": kept,
        "dtype": str(dtype).removeprefix("torch."),
        "class": type(model).__name__,
    }


@final
@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is known before the first file is written."""

    exported: Exported
    planned: Plan
    options: Options
    table: Table
    chains: Chains

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights the graph uses, by their names in the model."""
        held = self.exported.held
        return {name: self.exported.tensors[name] for name in sorted(held)}

    def plan(self, format: str, written: Written, attributes: Mapping[str, Any]) -> BundlePlan:
        """plan.json, but for the checksums of files."""
        steps = len(self.table)
        weights = self.weights
        return BundlePlan(
            format=format,
            producer={**_producer(), **written.producer},
            files={},
            weights={
                "fingerprint": fingerprint(weights),
                "count": len(weights),
                "bytes": sum(tensor.nbytes for tensor in weights.values()),
                "names": list(weights),
            },
            dimensions=self.exported.dimensions,
            signature=self.exported.signature,
            inputs=self._inputs(),
            values=self._values(),
            segments=tuple(_segment(s, written) for s in self.chains.segments),
            variants=self.chains.variants,
            blocks=self.planned.blocks,
            spans=self._spans(),
            conditioning=self._conditioning(),
            order=self.planned.order,
            steps=steps,
            fixed_steps=self.options.steps is not None,
            schedule=schedule_content(self.planned.schedule),
            table=self.rows,
            macs=self._macs(),
            attributes=attributes,
            build=written.build,
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

    def _values(self) -> dict[str, ValueSpec]:
        return values_of(self.chains.example, self.chains.shapes)

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

    def _conditioning(self) -> tuple[str, ...]:
        names = conditioning_of(self.planned.outline, self.options.per_step).values()
        return tuple(name for name in names if name in self.exported.example)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The planned trajectory, step by step."""
        emitted = emissions(self.table, self.planned.order)
        rows = []
        for step, span in enumerate(self.table):
            if span is None:
                rows.append(Row(variant=self.chains.name("refresh", sorted(emitted[step]))))
            else:
                name = self.chains.name("cached", [span])
                rows.append(Row(variant=name, trend=self._trend(step, span)))
        return tuple(rows)

    def _trend(self, step: int, span: Span) -> float | None:
        """W of the linear extrapolation, from the last two refreshes that emit the span."""
        if not self.planned.order:
            return None
        emitted = emissions(self.table, self.planned.order)
        made = [at for at in range(step) if span in emitted[at]]
        newest, before = made[-1], made[-2:][0]
        return (step - newest) / (newest - before) if newest != before else 0.0

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
