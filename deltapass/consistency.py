"""Does a plan.json that has the right form also make sense? What a schema cannot say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from deltapass.bundle import BundlePlan, InputSpec, ValueSpec, read_plan
from deltapass.errors import BundleError, DeltapassError
from deltapass.schedule_files import schedule_from
from deltapass.sizes import check_formula, symbols_of


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
    except (DeltapassError, KeyError, TypeError, ValueError, AttributeError) as error:
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
    schedule_from(plan.schedule)
    for spanned in plan.spans:
        if not 0 <= spanned.span.start < spanned.span.stop <= plan.blocks:
            yield f"span {spanned.span} of {plan.blocks} blocks"
    missing = {"paper", "full"} - set(plan.macs)
    if missing:
        yield f"macs without {sorted(missing)}"
    if "names" not in plan.weights:
        yield "weights without names"


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
        unknown = symbols_of(check_formula(formula)) - set(plan.dimensions)
        if unknown:
            yield f"dimension {formula!r} names {', '.join(sorted(unknown))}"
    if any(isinstance(size, float) for spec in specs for size in spec.shape):
        yield "a dimension is no whole number"


def _of_variants(plan: BundlePlan) -> Iterator[str]:
    segments = {segment.name: segment for segment in plan.segments}
    names = {variant.name for variant in plan.variants}
    for variant in plan.variants:
        made = set(variant.inputs)
        for call in variant.calls:
            segment = segments.get(call.segment)
            if segment is None or (len(call.inputs), len(call.outputs)) != (
                (len(segment.inputs), len(segment.outputs))
            ):
                yield f"variant {variant.name!r} calls {call.segment!r} wrongly"
            elif not made.issuperset(call.inputs):
                yield f"variant {variant.name!r} reads what was not made before {call.segment!r}"
            made.update(call.outputs)
    kinds = {(variant.kind, variant.spans) for variant in plan.variants}
    wanted = {("cached", (spanned.span,)) for spanned in plan.spans}
    if ("refresh", ()) not in kinds or not wanted <= kinds:
        yield "a variant is missing"
    if not names.issuperset(row.variant for row in plan.table):
        yield "the table names a variant that does not exist"
