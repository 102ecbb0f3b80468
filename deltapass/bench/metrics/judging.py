"""Images of all rows in, everything that is said of their quality out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import torch

from deltapass.bench.metrics.asking import Ask, Here, Workers, spread, take_features
from deltapass.bench.metrics.context import JudgingContext
from deltapass.bench.metrics.intervals import Values, interval, paired, too_few
from deltapass.bench.metrics.table import ALONE_NEVER, MEASURES, Meter
from deltapass.bench.record import Difference, Interval, Measure
from deltapass.errors import BenchError, DeltapassError

ENOUGH_FOR_FID: Final = 2_000


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a record says of quality: see `Row` for `means`, `values` and `against`, by row name.

    `measures` have their titles filled in, and the floor where there is one; those that could not
    be had are left out, and `warnings` say why.
    """

    measures: tuple[Measure, ...]
    means: Mapping[str, Mapping[str, Interval]]
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    against: Mapping[str, Mapping[str, Mapping[str, Difference]]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def judge_rows(
    images: Mapping[str, torch.Tensor],
    reference: str,
    context: JudgingContext,
    *,
    measures: Sequence[str],
    against: Collection[str] = (),
) -> Judgement:
    """Judge the images of all rows, and compare them image by image.

    Args:
        images: Row name -> (N, C, H, W) in 0..1, all of the same seeds; read a row at a time.
        reference: Name of the row of plain steps that the others are compared with.
        context: What they are judged by besides.
        measures: Keys of MEASURES.
        against: Rows that the others are compared with, besides the reference: fewer plain steps.

    Raises:
        BenchError: For an unknown measure, or rows that are not of the same images.
    """
    context = dataclasses.replace(context, plain=images[reference])
    meters, why_not = usable(measures, context)
    values, floors = _measured(images, reference, meters, context)
    return Judgement(
        measures=tuple(_told(meter, context, floors) for meter in meters),
        means={
            name: {measure: interval(found) for measure, found in each.items()}
            for name, each in values.items()
        },
        values={
            name: {measure: tuple(map(float, found)) for measure, found in each.items()}
            for name, each in values.items()
        },
        against={name: _pairs(name, values, {reference, *against}) for name in values},
        warnings=(*why_not, *_warnings(meters, len(images[reference]))),
    )


def usable(
    measures: Sequence[str], context: JudgingContext
) -> tuple[tuple[Meter, ...], tuple[str, ...]]:
    """The measures that can be had, and why the others cannot, a sentence each.

    Raises:
        BenchError: For a name that is none of MEASURES.
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise BenchError(
            f"there is no measure {', '.join(unknown)}", f"Measures are {', '.join(MEASURES)}"
        )
    there, why_not = [], []
    for name in dict.fromkeys(measures):
        try:
            MEASURES[name].ready(context)
            there.append(MEASURES[name])
        except DeltapassError as error:
            why_not.append(f"{name} was not measured: {error}")
    return tuple(there), tuple(why_not)


def _measured(
    images: Mapping[str, torch.Tensor],
    reference: str,
    meters: Sequence[Meter],
    context: JudgingContext,
) -> tuple[dict[str, dict[str, Values]], dict[str, Values]]:
    """By the row's and the measure's name; and of real images, by the measure's."""
    workers: Workers = context.workers or Here(context.store)
    networks = {meter.features for meter in meters if meter.features is not None}
    if networks:
        sets = chain(images.values(), _real(meters, context))
        take_features(sorted(networks), sets, context.store, workers)
    # The reference's nearness to itself says nothing and is left out.
    chosen = {name: [m for m in meters if name != reference or not m.to_plain] for name in images}
    # Answers come in any order.
    found: dict[str, dict[str, Any]] = {
        name: dict.fromkeys(meter.means.name for meter in those) for name, those in chosen.items()
    }
    floors: dict[str, Values] = {}
    asked = chain(_of_rows(images, chosen, context), _of_real(meters, context))
    for (row, measure), values in spread(asked, workers):
        (floors if row is None else found[row])[measure] = values
    return found, floors


Asked = Iterator[tuple[tuple[str | None, str], Ask]]  # row, None for real images; measure


def _of_rows(
    images: Mapping[str, torch.Tensor],
    chosen: Mapping[str, Sequence[Meter]],
    context: JudgingContext,
) -> Asked:
    for name, meters in chosen.items():
        shown = _of_one_size(name, images[name], context)
        for meter in meters:
            yield (name, meter.means.name), meter.ask(shown, context)


def _of_real(meters: Sequence[Meter], context: JudgingContext) -> Asked:
    """The floor: as many other real images, as if they were a row."""
    *_, other = (None, *_real(meters, context))
    for meter in meters:
        if meter.of_real and other is not None:
            yield (None, meter.means.name), meter.ask(other, context)


def _real(meters: Sequence[Meter], context: JudgingContext) -> Iterator[torch.Tensor]:
    """Real images, and as many others as are judged; none where there are not enough for both."""
    if context.judge is None or context.plain is None or not any(m.of_real for m in meters):
        return
    with contextlib.suppress(BenchError):
        real, other = context.real, context.other_real(len(context.plain))
        yield real
        yield other


def _of_one_size(name: str, images: torch.Tensor, context: JudgingContext) -> torch.Tensor:
    plain = context.plain
    if plain is not None and images.shape != plain.shape:
        raise BenchError(
            f"{name!r} has images of {tuple(images.shape)}, the reference of {tuple(plain.shape)}",
            "Draw all rows of the same prompts and seeds, at one size",
        )
    return images


def _pairs(
    name: str, values: Mapping[str, Mapping[str, Values]], others: Collection[str]
) -> dict[str, dict[str, Difference]]:
    """This row less others, by their names and the measure's."""
    return {
        other: {
            measure: difference_of(measure, found, values[other][measure])
            for measure, found in values[name].items()
            if measure in values[other]
        }
        for other in values
        if other in others and other != name
    }


def difference_of(measure: str, ours: Values, theirs: Values) -> Difference:
    """Paired by image; the verdict by the measure's own margin and direction."""
    means = MEASURES[measure].means
    return paired(ours, theirs, higher=means.higher, margin=means.margin)


def _told(meter: Meter, context: JudgingContext, floors: Mapping[str, Values]) -> Measure:
    """What the measure means here, with its floor: of as many real images, to other real ones."""
    title = meter.means.title.format(steps=context.steps, fine=context.fine_steps)
    of_real = floors.get(meter.means.name)
    floor = None if of_real is None or not np.isfinite(of_real).all() else interval(of_real)
    return msgspec.structs.replace(meter.means, title=title, floor=floor)


def _warnings(meters: Sequence[Meter], images: int) -> list[str]:
    names = {meter.means.name for meter in meters}
    few = too_few(images)
    found = [] if few is None else [few]
    if names & {"fid", "fid_inception"} and images < ENOUGH_FOR_FID:
        found.append(
            f"FID of {images} images is mostly bias: compare rows of this record alone, or read KID"
        )
    if names == {ALONE_NEVER}:
        found.append("CLIP score alone decides nothing: it passes black frames")
    return found
