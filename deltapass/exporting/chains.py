"""From a plan to chains: the segments of a bundle, glue between them, variants as lists of both.

Glue is what the rewrite adds, live-out - live-in and live-in + delta. It becomes a small segment
like any other, so that whoever runs a bundle knows nothing but calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch

from deltapass.bundles.formats import SegmentProgram
from deltapass.bundles.manifest import SegmentCall, VariantSpec
from deltapass.compiler.plan import Plan, SpanPlan
from deltapass.compiler.rewrite import WEIGHT_OF_TREND, cached_program, refresh_program
from deltapass.exporting.segment_program import Values, segment_program
from deltapass.exporting.segments import dense, segmented
from deltapass.exporting.trace import Exported
from deltapass.graph.program import Call, Program
from deltapass.graph.sizes import Dimensions
from deltapass.schedule.rules import Span

TREND_EXAMPLE: Final = 0.5
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
    full = segmented(plan.outline, list(spans), exported.shapes)
    programs = {
        ("refresh", some): refresh_program(full, [spans[span] for span in some]) for some in emitted
    }
    programs |= {
        ("cached", (span,)): cached_program(full, spanned, plan.order)
        for span, spanned in spans.items()
    }
    builder = _Builder(exported, _shapes(exported, spans.values()))
    builder.run(programs)
    variants = tuple(
        builder.variant(kind, some, program) for (kind, some), program in programs.items()
    )
    return Chains(
        segments=tuple(builder.segments.values()),
        variants=variants,
        programs={v.name: p for v, p in zip(variants, programs.values(), strict=True)},
        example=builder.data,
        shapes=builder.shapes,
    )


def _dense(spanned: SpanPlan) -> SpanPlan:
    """Engines know no strides."""
    streams = (replace(stream, spec=dense(stream.spec)) for stream in spanned.streams)
    return replace(spanned, streams=tuple(streams))


def _shapes(exported: Exported, spans: Any) -> dict[str, Dimensions]:
    """Dimensions of all values: those of deltas are those of their live-outs."""
    shapes = dict(exported.shapes)
    for spanned in spans:
        for at, stream in enumerate(spanned.streams):
            if stream.live_out in shapes:
                name = f"delta_{spanned.span.start}_{spanned.span.stop}_{at}"
                shapes[name] = shapes[f"{name}_before"] = shapes[stream.live_out]
    return shapes


@final
@dataclass
class _Builder:
    """Runs the variants once on the example, and exports every distinct segment."""

    exported: Exported
    shapes: Mapping[str, Dimensions]
    example: dict[str, torch.Tensor] = field(default_factory=dict)
    segments: dict[tuple[object, ...], SegmentProgram] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, torch.Tensor]:
        """The example's values, without the weights."""
        return {n: v for n, v in self.example.items() if n not in self._weights}

    @property
    def _weights(self) -> dict[str, str]:
        constants = self.exported.captured.constants
        return {**self.exported.weights, **{name: name for name in constants}}

    @property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.exported.tensors, **self.exported.captured.constants}

    def run(self, programs: Mapping[tuple[str, tuple[Span, ...]], Program]) -> None:
        """Values of the example call: refreshes first, whose deltas the cached variants read."""
        self.example.update(self.exported.example)
        tensors = self._tensors
        self.example.update({name: tensors[path] for name, path in self._weights.items()})
        given = [value for value in self.exported.example.values() if value.ndim]
        place = given[0].device if given else None  # single numbers may lie elsewhere
        self.example[WEIGHT_OF_TREND] = torch.tensor(TREND_EXAMPLE, device=place)
        for (kind, _), program in programs.items():
            made = dict(self.example)
            with torch.no_grad():
                for call in program.calls:
                    results = call.body.module.forward(*(made[name] for name in call.inputs))
                    made.update(zip(call.outputs, results, strict=True))
            if kind == "refresh":  # what a cached variant makes is a prediction
                self.example.update({n: v for n, v in made.items() if n not in self.example})
                before = {f"{name}_before": 0.9 * made[name] for name in program.deltas}
                self.example.update(before)
        if not any(WEIGHT_OF_TREND in program.inputs for program in programs.values()):
            del self.example[WEIGHT_OF_TREND]
            older = {f"{name}_before" for p in programs.values() for name in p.deltas}
            self.example = {n: v for n, v in self.example.items() if n not in older}

    def variant(self, kind: str, spans: tuple[Span, ...], program: Program) -> VariantSpec:
        """A program as calls of segments; exports the segments that are new."""
        calls = []
        for call in program.calls:
            inputs = tuple(name for name in call.inputs if name not in self._weights)
            body = self._segment(call).name
            calls.append(SegmentCall(segment=body, inputs=inputs, outputs=call.outputs))
        taken = (name for name in program.inputs if name in self.example)
        return VariantSpec(
            name=program.name,
            kind=kind,
            spans=spans,
            inputs=tuple(name for name in taken if name not in self._weights),
            calls=tuple(calls),
            results=program.results,
            deltas=program.deltas,
            macs=program.macs,
        )

    def _segment(self, call: Call) -> SegmentProgram:
        sizes = tuple(self.shapes.get(name) for name in call.inputs)
        key = (call.label, call.body.key, sizes if _is_glue(call) else ())
        if key not in self.segments:
            made = self._glue(call) if _is_glue(call) else segment_program(call, self._values())
            self.segments[key] = made
        return self.segments[key]

    def _glue(self, call: Call) -> SegmentProgram:
        """Under names of its own: the same glue may be called on other values."""
        nodes = [node for node in call.body.module.graph.nodes if node.op == "placeholder"]
        names = tuple(node.name for node in nodes)
        alike = sum(segment.name.startswith(call.label) for segment in self.segments.values())
        renamed = replace(
            call,
            label=f"{call.label}_{alike}" if alike else call.label,
            inputs=names,
            outputs=(RESULT,),
        )
        pairs = list(zip((*names, RESULT), (*call.inputs, *call.outputs), strict=True))
        values = Values(
            weights={},
            tensors={},
            example={own: self.example[name] for own, name in pairs},
            shapes={own: self.shapes[name] for own, name in pairs if name in self.shapes},
        )
        return segment_program(renamed, values)

    def _values(self) -> Values:
        return Values(
            weights=self._weights,
            tensors=self._tensors,
            example=self.example,
            shapes=self.shapes,
        )


def _is_glue(call: Call) -> bool:
    """Delta and prediction hold no weights and come from the rewrite."""
    return call.label == "delta" or call.label.startswith("predict")
