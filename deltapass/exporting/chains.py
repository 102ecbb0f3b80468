"""From a plan to chains: the segments of a bundle, glue between them, variants as lists of both.

Glue is what the rewrite adds, live-out - live-in and live-in + delta, or copies of a feature. It
becomes a small segment
like any other, so that whoever runs a bundle knows nothing but calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, final

import torch

from deltapass.bundles.formats import SegmentProgram
from deltapass.bundles.manifest import SegmentCall, VariantSpec
from deltapass.compiler.plan import Plan, SpanPlan
from deltapass.compiler.rewrite import (
    buffer_name,
    cached_program,
    refresh_program,
    weights_name,
)
from deltapass.exporting.segment_program import Values, segment_program
from deltapass.exporting.segments import dense, segmented
from deltapass.exporting.trace import Exported
from deltapass.graph.program import Call, Program
from deltapass.graph.sizes import Dimensions
from deltapass.schedule.keeps import KEEPS
from deltapass.schedule.rules import Span

EXAMPLE_WEIGHTS: Final = (1.6, -0.9, 0.4, -0.1)  # of one stream, newest first
RESULT: Final = "result"  # what glue gives, under its own name


@final
@dataclass(frozen=True, kw_only=True)
class Chains:
    """Everything of a bundle but the files.

    Attributes:
        segments: The segments to write, glue included.
        variants: The variants as calls of segments.
        programs: The same variants as programs, by name, for the eager reference.
        example: Value name -> its tensor in the example call; weights are not among them.
        shapes: Value name -> dimensions; only where they may vary.
    """

    segments: tuple[SegmentProgram, ...]
    variants: tuple[VariantSpec, ...]
    programs: Mapping[str, Program]
    example: Mapping[str, torch.Tensor]
    shapes: Mapping[str, Dimensions]

    def name(self, kind: str, spans: Sequence[Span]) -> str:
        """The variant of a kind that skips, or emits the deltas of, just these spans."""
        return next(v.name for v in self.variants if v.kind == kind and v.spans == tuple(spans))

    def streams(self, span: Span) -> int:
        """Number of residual streams over a span: its deltas."""
        return next(
            len(v.deltas) for v in self.variants if (v.kind, v.spans) == ("refresh", (span,))
        )


def chains_of(plan: Plan, exported: Exported, emitted: Sequence[tuple[Span, ...]]) -> Chains:
    """The chains of a planned model.

    Args:
        plan: The plan.
        exported: The exported model.
        emitted: Sets of spans whose deltas a refresh variant is to give.

    Raises:
        DynamicShapeError: If a dimension that may vary in the model is fixed in a segment.
    """
    spans = {spanned.span: _dense(spanned) for spanned in plan.spans.values()}
    taken = plan.schedule.taken
    full = segmented(plan.outline, list(spans), exported.shapes)
    programs = {
        ("refresh", some): refresh_program(full, [spans[span] for span in some]) for some in emitted
    }
    fullest = max(programs.values(), key=lambda program: len(program.deltas))
    programs |= {
        ("cached", (span,)): cached_program(full, spanned, taken) for span, spanned in spans.items()
    }
    constants = exported.captured.constants
    values = Values(
        weights={**exported.weights, **{name: name for name in constants}},
        tensors={**exported.tensors, **constants},
        example=_example(exported, fullest, spans.values(), taken),
        shapes=_shapes(exported, spans.values(), taken),
    )
    builder = _Builder(values)
    variants = tuple(
        builder.variant(kind, some, program) for (kind, some), program in programs.items()
    )
    return Chains(
        segments=tuple(builder.segments.values()),
        variants=variants,
        programs={v.name: p for v, p in zip(variants, programs.values(), strict=True)},
        example={n: v for n, v in values.example.items() if n not in values.weights},
        shapes=values.shapes,
    )


def _dense(spanned: SpanPlan) -> SpanPlan:
    """Engines know no strides."""
    streams = (replace(stream, spec=dense(stream.spec)) for stream in spanned.streams)
    return replace(spanned, streams=tuple(streams))


def _shapes(exported: Exported, spans: Iterable[SpanPlan], taken: int) -> dict[str, Dimensions]:
    """Dimensions of all values: those of deltas are those of their live-outs."""
    shapes = dict(exported.shapes)
    for spanned in spans:
        for at, stream in enumerate(spanned.streams):
            if stream.live_out in shapes:
                for age in range(max(1, taken)):
                    shapes[buffer_name(spanned, at, age)] = shapes[stream.live_out]
    return shapes


def _example(
    exported: Exported, fullest: Program, spans: Iterable[SpanPlan], taken: int
) -> dict[str, torch.Tensor]:
    """Values of the example call, by a run of the refresh that gives all deltas.

    What a cached variant makes is a prediction, and no value of the example. Older deltas are
    parts of the newest, and all weights differ, so that none can be taken for another.
    """
    weights = {name: exported.tensors[path] for name, path in exported.weights.items()}
    values = {**exported.example, **weights, **exported.captured.constants}
    with torch.no_grad():
        for call in fullest.calls:
            results = call.body.module.forward(*(values[name] for name in call.inputs))
            values.update(zip(call.outputs, results, strict=True))
    for spanned in spans if taken else ():
        for at in range(len(spanned.streams)):
            newest = values[buffer_name(spanned, at, 0)]
            older = range(1, taken)
            values |= {buffer_name(spanned, at, age): newest * (1 - 0.1 * age) for age in older}
            vector = [weight / (at + 1) for weight in EXAMPLE_WEIGHTS[:taken]]
            device = newest.device
            values[weights_name(at)] = torch.tensor(vector, dtype=torch.float32, device=device)
    return values


@final
@dataclass
class _Builder:
    """Exports every distinct segment once."""

    values: Values
    segments: dict[tuple[object, ...], SegmentProgram] = field(default_factory=dict)

    def variant(self, kind: str, spans: tuple[Span, ...], program: Program) -> VariantSpec:
        """A program as calls of segments; exports the segments that are new."""
        calls = (
            SegmentCall(
                segment=self._segment(call).name,
                inputs=self._data(call.inputs),
                outputs=call.outputs,
            )
            for call in program.calls
        )
        return VariantSpec(
            name=program.name,
            kind=kind,
            spans=spans,
            inputs=self._data(program.inputs),
            calls=tuple(calls),
            results=program.results,
            deltas=program.deltas,
            macs=program.macs,
        )

    def _data(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that are tensors, and no weights."""
        known = self.values
        return tuple(n for n in names if n in known.example and n not in known.weights)

    def _segment(self, call: Call) -> SegmentProgram:
        shapes, glue = self.values.shapes, _is_glue(call)
        key = (call.label, call.body.key, tuple(map(shapes.get, call.inputs)) if glue else ())
        if key not in self.segments:
            made = self._glue(call) if glue else segment_program(call, self.values)
            self.segments[key] = made
        return self.segments[key]

    def _glue(self, call: Call) -> SegmentProgram:
        """Under names of its own: the same glue may be called on other values."""
        nodes = (node for node in call.body.module.graph.nodes if node.op == "placeholder")
        inputs = tuple(node.name for node in nodes)
        alike = sum(segment.name.startswith(call.label) for segment in self.segments.values())
        label = f"{call.label}_{alike}" if alike else call.label
        renamed = replace(call, label=label, inputs=inputs, outputs=(RESULT,))
        outer = dict(zip((*inputs, RESULT), (*call.inputs, *call.outputs), strict=True))
        example, shapes = self.values.example, self.values.shapes
        values = Values(
            weights={},
            tensors={},
            example={own: example[name] for own, name in outer.items()},
            shapes={own: shapes[name] for own, name in outer.items() if name in shapes},
        )
        return segment_program(renamed, values)


def _is_glue(call: Call) -> bool:
    """What is kept and predictions hold no weights and come from the rewrite."""
    return call.label in KEEPS or call.label.startswith("predict")
