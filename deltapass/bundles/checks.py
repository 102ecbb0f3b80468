"""Does a plan.json that has the right form also make sense? What a schema cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import torch

from deltapass.bundles.manifest import (
    BundlePlan,
    FitSpec,
    InputSpec,
    Row,
    SegmentSpec,
    ValueSpec,
    VariantSpec,
    read_plan,
)
from deltapass.bundles.results import places_of
from deltapass.errors import BundleError, DeltapassError
from deltapass.graph.sizes import check_formula, symbols_of
from deltapass.schedule.files import schedule_from
from deltapass.schedule.rules import Span

# What Python says of numbers, names and formulas that make no sense.
BROKEN: Final = (
    *(KeyError, TypeError, ValueError, AttributeError),
    *(SyntaxError, RecursionError, MemoryError),
)
LONGEST: Final = 500  # characters of a formula


def read_checked(folder: Path) -> BundlePlan:
    """Read plan.json of a bundle, and check that its parts fit together.

    Raises:
        BundleError: If it is missing, of another version, not as the schema says, or contradicts
            itself.
    """
    try:
        plan = read_plan(folder)
        problem = next(_problems(plan), None)
    except BundleError:
        raise
    except (DeltapassError, *BROKEN) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        raise BundleError(
            f"plan.json of {folder} contradicts itself: {problem}", "Export the model again"
        )
    return plan


def _problems(plan: BundlePlan) -> Iterator[str]:
    yield from _of_files(plan)
    yield from _of_values(plan)
    yield from _of_variants(plan)
    named = sorted(plan.signature.names)
    if named != sorted(entry.name for entry in plan.inputs):
        yield f"a signature with the tensors {', '.join(named) or '(none)'}"
    yield from _of_predictor(plan)
    for spanned in plan.spans:
        if not 0 <= spanned.span.start < spanned.span.stop <= plan.blocks:
            yield f"span {spanned.span} of {plan.blocks} blocks"
    missing = {"paper", "full"} - set(plan.macs)
    if missing:
        yield f"macs without {sorted(missing)}"
    needed = {"aoti": ("device",), "tensorrt": ("flavour", "keep_onnx")}.get(plan.format, ())
    if not set(needed) <= set(plan.build):
        yield f"format {plan.format!r} without {', '.join(needed)} of its making"
    if not isinstance(plan.attributes.get("config", {}), dict):
        yield "a config that is no mapping"


def _of_files(plan: BundlePlan) -> Iterator[str]:
    for name in plan.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            yield f"file {name!r} lies outside the bundle"
    for segment in plan.segments:
        if segment.file not in plan.files:
            yield f"segment {segment.name!r} is in {segment.file!r}, which is not among the files"


def _of_values(plan: BundlePlan) -> Iterator[str]:
    inner = (value for segment in plan.segments for value in segment.values.values())
    specs: list[InputSpec | ValueSpec] = [*plan.inputs, *plan.values.values(), *inner]
    types = {spec.dtype for spec in specs} | {str(plan.attributes.get("dtype"))}
    for name in sorted(types):
        if not isinstance(getattr(torch, name, None), torch.dtype):
            yield f"type {name!r} is none of torch's"
    formulas = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    for formula in sorted(formulas):
        if len(formula) > LONGEST:
            yield f"a dimension's formula has {len(formula)} characters"
            return
        unknown = symbols_of(check_formula(formula)) - set(plan.dimensions)
        if unknown:
            yield f"dimension {formula!r} names {', '.join(sorted(unknown))}"


def _of_variants(plan: BundlePlan) -> Iterator[str]:
    segments = {segment.name: segment for segment in plan.segments}
    for variant in plan.variants:
        yield from _of_calls(variant, plan, segments)
    for spanned in plan.spans:
        alone = (v for v in plan.variants if v.kind == "refresh" and v.spans == (spanned.span,))
        for variant in alone:
            if len(variant.deltas) != spanned.streams:
                yield f"{spanned.streams} streams of {spanned.span}, {len(variant.deltas)} deltas"
    kinds = {(variant.kind, variant.spans) for variant in plan.variants}
    wanted = {("cached", (spanned.span,)) for spanned in plan.spans}
    if ("refresh", ()) not in kinds or not wanted <= kinds:
        yield "a variant is missing"
    yield from _of_table(plan)
    yield from _of_fits(plan)


def _of_calls(
    variant: VariantSpec, plan: BundlePlan, segments: Mapping[str, SegmentSpec]
) -> Iterator[str]:
    """Whether everything is made before it is used."""
    made = set(variant.inputs)
    for call in variant.calls:
        segment = segments.get(call.segment)
        counts = len(call.inputs), len(call.outputs)
        if segment is None or counts != (len(segment.inputs), len(segment.outputs)):
            yield f"variant {variant.name!r} calls {call.segment!r} wrongly"
        elif not made.issuperset(call.inputs):
            yield f"variant {variant.name!r} reads what was not made before {call.segment!r}"
        made.update(call.outputs)
    nested = plan.signature.tuple_result
    if isinstance(nested, Mapping) and [*places_of(nested)] != [*range(len(variant.results))]:
        yield f"variant {variant.name!r} does not give what the signature says"
    given = {result for result in variant.results if isinstance(result, str)}
    if not made.issuperset(given.union(variant.deltas)):
        yield f"variant {variant.name!r} does not make its results"


def _of_predictor(plan: BundlePlan) -> Iterator[str]:
    schedule = schedule_from(plan.schedule)
    if schedule.taken > plan.taken:
        yield f"a schedule that weighs {schedule.taken} deltas, variants that take {plan.taken}"
    theirs = schedule.forecast.name
    if theirs != plan.predictor:
        yield f"predictor {plan.predictor!r}, a schedule that predicts by {theirs!r}"


def _of_table(plan: BundlePlan) -> Iterator[str]:
    if len(plan.table) != plan.steps:
        yield f"a table of {len(plan.table)} rows for {plan.steps} steps"
    variants = {variant.name: variant for variant in plan.variants}
    streams = {spanned.span: spanned.streams for spanned in plan.spans}
    given: set[tuple[int, Span]] = set()
    for step, row in enumerate(plan.table):
        variant = variants.get(row.variant)
        if variant is None:
            yield "the table names a variant that does not exist"
        elif variant.kind == "refresh":
            given.update((step, span) for span in variant.spans)
            if row.reads or row.weights or row.branches:
                yield f"row {step} refreshes and reads deltas"
        else:
            count = streams.get(variant.spans[0], 0) if plan.taken else 0
            yield from _of_row(step, row, (count, plan.taken))
            if not given.issuperset((at, variant.spans[0]) for at in row.reads):
                yield f"row {step} reads deltas that no refresh gave"


def _of_row(step: int, row: Row, form: tuple[int, int]) -> Iterator[str]:
    """Whether a cached row has weights of the right form: streams, deltas each."""
    if not row.reads:
        yield f"row {step} is cached and reads no delta"
    for vectors in (row.weights, *row.branches.values()):
        if len(vectors) != form[0] or any(len(vector) != form[1] for vector in vectors):
            yield f"row {step} has weights of another form than {form[0]} streams, {form[1]} deltas"


def _of_fits(plan: BundlePlan) -> Iterator[str]:
    """Whether refreshes bring the coefficients that are there, and rows weigh nothing else."""
    variants = {variant.name: variant for variant in plan.variants}
    fits = schedule_from(plan.schedule).forecast.accumulates
    held: dict[Span, int] = {}  # coefficients
    for step, row in enumerate(plan.table):
        variant = variants.get(row.variant)
        if variant is None:  # as `_of_table` says
            continue
        if (row.fit is not None) != (fits and bool(variant.deltas)):
            yield f"row {step} has a fit and gives no delta to fit, or lacks one"
        elif row.fit is not None:
            yield from _of_fit(step, row.fit, {held.get(span, 0) for span in variant.spans}, plan)
            held.update(dict.fromkeys(variant.spans, len(row.fit.gains)))
        elif variant.kind == "cached":
            there = held.get(variant.spans[0], 0) if fits else len(row.reads)
            vectors = [v for some in (row.weights, *row.branches.values()) for v in some]
            if any(weight for vector in vectors for weight in vector[there:]):
                yield f"row {step} weighs more than the {there} deltas that are there"


def _of_fit(step: int, fit: FitSpec, held: set[int], plan: BundlePlan) -> Iterator[str]:
    """Whether a refresh makes coefficients of as many as its spans have."""
    basis, gains = len(fit.basis), len(fit.gains)
    if held != {basis} or not max(1, basis) <= gains <= plan.taken:
        yield f"row {step} makes {gains} coefficients of {basis}, there are {sorted(held)}"
    elif not basis and fit.gains != (1.0,):
        yield f"row {step} makes the first delta another coefficient than itself"
