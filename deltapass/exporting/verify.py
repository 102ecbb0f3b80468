"""Is what was written what was meant? Every segment and variant is run and compared with eager.

On the example call: each segment on its own inputs, each variant as a whole, and the planned
trajectory row by row, on deltas and weights of its own. Where dimensions may vary: the loaded model
against the model itself, at the ends of their ranges. Of a model that rounds to 8 bits as it runs,
where engines differ by whole steps, the rows run once more, on eager segments: a wrong weight or
read of the table lies far above the rounding of those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch.utils import _pytree as pytree

from deltapass.bundles.formats import load_format
from deltapass.bundles.manifest import BundlePlan, SpanSpec
from deltapass.bundles.variants import LoadedVariants
from deltapass.errors import VerificationError
from deltapass.exporting.chains import Chains
from deltapass.exporting.compare import (
    TO_8_BITS,
    TOLERANCES,
    called_with,
    relative_error,
    resized,
    rounds_to_8_bits,
)
from deltapass.exporting.conditions import run_model
from deltapass.exporting.trace import Exported
from deltapass.exporting.verify_rows import row_errors
from deltapass.graph.executable import Executable, Lowered
from deltapass.graph.sizes import evaluate, read_sizes

OF_ONE: Final = (
    "torch.export takes for granted that no size that varies is 1: give that one a least size of 2"
)
FARTHEST: Final = 2  # how many times the example's size an unbounded or large dimension is tried


@final
@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the bundle is compared with."""

    model: torch.nn.Module
    exported: Exported
    chains: Chains


def verify_bundle(folder: Path, plan: BundlePlan, reference: Reference) -> dict[str, Any]:
    """Run a written bundle and compare it with the model.

    Args:
        folder: Where it lies.
        plan: What it says of itself.
        reference: What it was made of.

    Returns:
        The largest error of every segment, variant, size and row, over the largest value; as plain
        data.

    Raises:
        VerificationError: If one lies above the tolerance.
        ExportError: If the model itself fails at sizes that the bundle is to take.
    """
    segments, runner = load_format(plan.format).open_to_verify(folder, plan)
    eager = {s.name: s.program.module() for s in reference.chains.segments}
    strict = TOLERANCES.get(str(plan.attributes["dtype"]), TOLERANCES["float32"])
    rounds = rounds_to_8_bits(eager.values())
    tolerance = max(strict, TO_8_BITS) if rounds else strict
    found: dict[str, Any] = {
        "by": runner,
        "tolerance": tolerance,
        "segments": dict(_segment_errors(segments, reference.chains)),
        "variants": dict(_variant_errors(LoadedVariants(plan, segments), reference)),
    }
    found["sizes"] = dict(_size_errors(LoadedVariants(plan, segments), plan, reference))
    found["rows"] = dict(row_errors(plan, (segments, eager), reference.exported))
    _check(found, tolerance)
    if rounds:
        _check({"rows": dict(row_errors(plan, (eager, eager), reference.exported))}, strict)
    return found


def _check(found: Mapping[str, Any], tolerance: float) -> None:
    for kind in ("segments", "variants", "sizes", "rows"):
        for name, error in found.get(kind, {}).items():
            if not error <= tolerance:  # NaN too
                what = f"{kind.removesuffix('s')} {name!r}"
                single = kind == "sizes" and re.search(r"=1\b", name)
                raise VerificationError(what, error, tolerance, *([OF_ONE] if single else []))


def _segment_errors(segments: Mapping[str, Lowered], chains: Chains) -> Iterator[tuple[str, float]]:
    for segment in chains.segments:
        with torch.no_grad():
            wanted = segment.program.module()(*(value.clone() for value in segment.example))
        yield segment.name, relative_error(segments[segment.name](*segment.example), wanted)


def _variant_errors(variants: LoadedVariants, reference: Reference) -> Iterator[tuple[str, float]]:
    chains, exported = reference.chains, reference.exported
    held = {name: exported.tensors[path] for name, path in exported.weights.items()}
    known = {**held, **exported.captured.constants, **chains.example}
    for spec in variants.plan.variants:
        program = chains.programs[spec.name]
        eager = Executable(program, lambda body: body.module.forward)
        ours = Executable(spec, variants.segments.__getitem__)
        with torch.no_grad():
            results, deltas = eager([known.get(name) for name in program.inputs])
        given, new = ours([known[name] for name in spec.inputs])
        yield spec.name, relative_error([*given, *new], [*results, *deltas])


# ---- other sizes ------------------------------------------------------------------------------


def _size_errors(
    variants: LoadedVariants, plan: BundlePlan, reference: Reference
) -> Iterator[tuple[str, float]]:
    """The bundle against the model itself: on the example, and at other sizes."""
    example = reference.exported.example
    for sizes in _corners(plan, example):
        inputs = {
            entry.name: resized(
                example[entry.name], [evaluate(size, sizes) for size in entry.shape]
            )
            for entry in plan.inputs
        }
        name = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the example"
        results = _results(reference, inputs, sizes)
        given, _ = variants.refresh(())(list(inputs.values()))
        yield name, relative_error(given, results)
        for span in plan.spans:
            cached = _cached_with_own_deltas(variants, span, plan.taken, list(inputs.values()))
            yield f"{name}, without {span.span}", relative_error(cached, results)


def _cached_with_own_deltas(
    variants: LoadedVariants, spanned: SpanSpec, taken: int, inputs: list[torch.Tensor]
) -> Sequence[Any]:
    """A cached variant on the deltas of the same call, which make it the full model."""
    _, deltas = variants.refresh([spanned.span])(inputs)
    given = [*inputs, *deltas]
    if taken:  # the same delta, weighed by numbers that add up to 1
        weights = torch.full((taken,), 1 / taken, device=deltas[0].device)
        given += [*deltas * (taken - 1), *[weights] * spanned.streams]
    results, _ = variants.cached(spanned.span, taken)(given)
    return results


def _corners(plan: BundlePlan, example: Mapping[str, torch.Tensor]) -> list[dict[str, int]]:
    """The example's sizes, all least, all greatest, uneven, single, mixed; within reason."""
    shown = read_sizes((entry.shape, example[entry.name].shape) for entry in plan.inputs)
    least = {n: max(plan.dimensions[n][0], -(-size // FARTHEST)) for n, size in shown.items()}
    far = {n: size * FARTHEST for n, size in shown.items()}
    most = {n: min(plan.dimensions[n][1] or far[n], far[n]) for n in shown}
    # Halves of sizes round otherwise for odd ones.
    uneven = {n: size + 1 if size < most[n] else size - 1 for n, size in shown.items()}
    uneven = {n: max(size, least[n]) for n, size in uneven.items()}
    # torch takes for granted that nothing that varies is 1, and says so nowhere.
    single = [{**shown, n: 1} for n in shown if plan.dimensions[n][0] <= 1]
    # Dimensions that are equal in the example must not be taken for one another: each in turn is
    # the only small one.
    apart = [{**most, n: least[n]} for n in shown] if len(shown) > 1 else []
    corners = (shown, least, most, uneven, *single, *apart)
    return list({tuple(sizes.items()): sizes for sizes in corners}.values())


def _results(
    reference: Reference, inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> Sequence[Any]:
    """What the model itself gives, called as in the example.

    Raises:
        ExportError: If it fails: the bundle would give something.
    """
    exported = reference.exported
    call = called_with(exported.call, exported.example, inputs)
    with torch.no_grad():
        wanted = run_model(reference.model, call, sizes)
    return list(pytree.tree_leaves(wanted))
