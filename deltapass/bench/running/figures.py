"""Figures besides the Pareto, by the names that suites use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from deltapass.bench.metrics.likeness import cosine_figure, likeness
from deltapass.bench.metrics.spectrum import spectrum_figure
from deltapass.bench.record import Figure, Record, Row, Series
from deltapass.bench.running.job import Job
from deltapass.bench.running.stages import exact_of
from deltapass.bench.sampling import Sampler
from deltapass.errors import BenchError, did_you_mean

AXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "boundary": "boundary b, as a part of the trajectory",
        "cached_blocks": "cached blocks N_c, as a part of the stack",
        "interval": "interval N",
    }
)
Images = Mapping[str, torch.Tensor]
Draw = Callable[[Job, Record, Images], Iterator[Figure]]


def cosine(job: Job, _record: Record, _images: Images) -> Iterator[Figure]:
    """Fig. 4c: likeness of deltas of steps that follow each other, of one part of the images."""
    sampler, plain = Sampler(job.subject, solver=job.suite.solver), job.reference
    (name, model), *_ = job.subject.models.items()
    seeds = job.seeds[: job.subject.batch]

    def sample(denoiser: Any) -> None:
        with torch.no_grad(), sampler.using(plain) as pipeline:
            setattr(pipeline, name, denoiser)
            sampler.call(pipeline, plain, seeds)

    yield cosine_figure(likeness(model, sample, plain.steps, branches=_branches(job)))


def _branches(job: Job) -> int:
    """Calls of the denoiser in one step."""
    known = exact_of(job).get(job.reference.name)
    if known is None or known.steps is None:
        return 1
    looked_at = known.steps.calls
    return max(1, looked_at // job.reference.steps)


def spectrum(_job: Job, record: Record, images: Images) -> Iterator[Figure]:
    """Fig. 5: relative log magnitude of the images over frequency (Eq. 4 and 5)."""
    labels = {row.name: row.label for row in record.rows if row.name in images}
    named = {label: images[name] for name, label in labels.items()}
    yield spectrum_figure(named, labels[record.reference])


def sweep(setting: str) -> Draw:
    """Every measure over the values of one setting: Fig. 6 and 7."""

    def drawn(_job: Job, record: Record, _images: Images) -> Iterator[Figure]:
        rows = [row for row in record.rows if setting in row.settings and row.means]
        rows = sorted(rows, key=lambda row: float(row.settings[setting]))
        for measure in record.measures:
            name, scale = measure.name, measure.scale
            there = [row for row in rows if name in row.means]
            if there:
                yield Figure(
                    name=f"{setting}-{name}",
                    title=f"{measure.title} over {setting}",
                    x_title=AXES[setting],
                    y_title=measure.title,
                    about="Mean and 95 % interval over images.",
                    series=(_curve(setting, there, name, scale),),
                )

    return drawn


def _curve(setting: str, rows: list[Row], measure: str, scale: float) -> Series:
    means = [row.means[measure] for row in rows]
    return Series(
        name=rows[0].label.partition(" (")[0],
        x=tuple(float(row.settings[setting]) for row in rows),
        y=tuple(mean.mean * scale for mean in means),
        low=tuple(mean.low * scale for mean in means),
        high=tuple(mean.high * scale for mean in means),
    )


FIGURES: Final[Mapping[str, Draw]] = MappingProxyType(
    {"cosine": cosine, "spectrum": spectrum, **{name: sweep(name) for name in AXES}}
)


def check_figures(names: tuple[str, ...]) -> None:
    """Raise BenchError for a name that is none of FIGURES."""
    for name in names:
        if name not in FIGURES:
            known = tuple(FIGURES)
            raise BenchError(
                f"there is no figure {name!r}",
                f"{did_you_mean(name, known)}Figures are {', '.join(known)}",
            )


def figures_of(job: Job, record: Record, images: Images) -> tuple[Figure, ...]:
    """All figures that the suite asks for."""
    check_figures(job.suite.figures)
    return tuple(
        figure for name in job.suite.figures for figure in FIGURES[name](job, record, images)
    )
