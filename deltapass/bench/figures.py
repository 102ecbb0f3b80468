"""Figures that a suite asks for by name, besides the Pareto that every page has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from deltapass.bench.metrics.likeness import cosine_figure, likeness
from deltapass.bench.metrics.spectrum import spectrum_figure
from deltapass.bench.record import Figure, Measure, Row, Series
from deltapass.errors import BenchError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What figures are made of.

    Attributes:
        rows: Of the record, judged.
        measures: Of the record.
        images: Row name -> (N, C, H, W) in 0..1, of the same seeds; read a row at a time.
        reference: Name of the plain row.
        model: The denoiser as it is, nothing compiled.
        sample: Runs one plain trajectory of some images, with what it is given as the denoiser.
        branches: Calls of the denoiser a step.
    """

    rows: Sequence[Row]
    measures: Sequence[Measure]
    images: Mapping[str, torch.Tensor]
    reference: str
    model: nn.Module | None = None
    sample: Callable[[Any], Any] | None = None
    branches: int = 1

    @property
    def plain(self) -> Row:
        """The reference's row."""
        return next(row for row in self.rows if row.name == self.reference)


def figures_of(names: Sequence[str], drawn: Drawn) -> tuple[Figure, ...]:
    """All figures that are asked for, in order; a sweep has one for each measure.

    Raises:
        BenchError: For a name that is none of FIGURES, or where the denoiser is missing.
        UnsupportedGraphError: If blocks are asked for and the model has no stack of them.
    """
    check_figures(names)
    return tuple(figure for name in names for figure in FIGURES[name](drawn))


def check_figures(names: Sequence[str]) -> None:
    """Whether all can be drawn, as far as their names say.

    Raises:
        BenchError: For a name that is none of FIGURES.
    """
    for name in names:
        if name not in FIGURES:
            raise BenchError(
                f"there is no figure {name!r}",
                f"{did_you_mean(name, tuple(FIGURES))}Figures are {', '.join(FIGURES)}",
            )


def _cosine(drawn: Drawn) -> Iterator[Figure]:
    if drawn.model is None or drawn.sample is None:
        raise BenchError("no denoiser was given to look into", "Draw in the process that judges")
    steps = drawn.plain.steps
    yield cosine_figure(likeness(drawn.model, drawn.sample, steps, branches=drawn.branches))


def _spectrum(drawn: Drawn) -> Iterator[Figure]:
    """Of the reference and of the rows that cache, by their labels."""
    shown = [row for row in drawn.rows if row.kind == "cache" and row.name in drawn.images]
    labels = {row.name: row.label for row in (drawn.plain, *shown)}
    images = _Labelled(labels, drawn.images)
    yield spectrum_figure(images, drawn.plain.label)


class _Labelled(Mapping[str, torch.Tensor]):
    """Images by the label of the row; still read a row at a time."""

    def __init__(self, labels: Mapping[str, str], images: Mapping[str, torch.Tensor]) -> None:
        self._names = {label: name for name, label in labels.items()}
        self._images = images

    def __getitem__(self, label: str) -> torch.Tensor:
        return self._images[self._names[label]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _sweep(setting: str, title: str, about: str) -> Callable[[Drawn], Iterator[Figure]]:
    """One figure a measure: its mean over the setting, one curve for each other set of settings."""

    def figures(drawn: Drawn) -> Iterator[Figure]:
        swept = [row for row in drawn.rows if setting in row.settings and not row.failure]
        for measure in drawn.measures:
            rows = [row for row in swept if measure.name in row.means]
            if rows:
                yield Figure(
                    name=f"{setting}-{measure.name}",
                    title=f"{measure.title}, {title}",
                    x_title=title,
                    y_title=measure.title,
                    about=about,
                    series=tuple(_curves(rows, setting, measure)),
                )

    return figures


def _curves(rows: Sequence[Row], setting: str, measure: Measure) -> Iterator[Series]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = {name: value for name, value in row.settings.items() if name != setting}
        said = ", ".join(f"{name} = {value}" for name, value in rest.items())
        groups.setdefault(said, []).append(row)
    for said, group in groups.items():
        ordered = sorted(group, key=lambda row: float(row.settings[setting]))
        found = [row.means[measure.name] for row in ordered]
        mean, low, high = (
            tuple(getattr(each, end) * measure.scale for each in found)
            for end in ("mean", "low", "high")
        )
        x = tuple(float(row.settings[setting]) for row in ordered)
        yield Series(name=said or measure.title, x=x, y=mean, low=low, high=high)


FIGURES: Final[Mapping[str, Callable[[Drawn], Iterator[Figure]]]] = MappingProxyType(
    {
        "cosine": _cosine,
        "spectrum": _spectrum,
        "boundary": _sweep(
            "boundary",
            "boundary, as a share of the steps",
            "Before it deep blocks are cached, after it shallow ones. The paper's Fig. 6: FID and "
            "IS are best near 0.8, CLIP score near 0.4; 0.6 was chosen.",
        ),
        "cached_blocks": _sweep(
            "cached_blocks",
            "blocks that a cached step leaves out, as a share of all",
            "The paper's Fig. 7: FID is best near a half, IS and CLIP score near three quarters.",
        ),
    }
)
