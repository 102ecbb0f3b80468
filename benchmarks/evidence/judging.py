"""From images and seconds to what is said of every method: values, pairs and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from deltapass.bench.metrics.distances import kid_parts
from deltapass.bench.metrics.features import FEATURES, EfficientLite
from deltapass.bench.metrics.fidelity import batches, psnr
from deltapass.bench.metrics.intervals import (
    Values,
    as_good_as,
    equal_time_rival,
    holds,
    interval,
    paired,
)
from deltapass.bench.record import Difference, Interval
from evidence.meanings import MEASURES
from evidence.methods import Method, plain
from evidence.samples import FIRST_SEED, PART, Sampler, kept
from evidence.times import AGAIN, Share, Times, share


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A method: its means by the measure's name, and its time.

    `rival` are the plain steps that take no less time. `pairs` has, for every plain run of other
    steps, the differences by the measure's name.
    """

    method: Method
    means: Mapping[str, Interval]
    time: Share | None
    pairs: Mapping[int, Mapping[str, Difference]]
    rival: int | None

    def reached(self, measure: str) -> int | None:
        """The most plain steps that it is not worse than in one measure."""
        means = MEASURES[measure]
        good = {
            steps: holds(pair[measure], higher=means.higher, margin=means.margin)
            for steps, pair in self.pairs.items()
        }
        return as_good_as(good)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How much is drawn and compared."""

    images: int
    real: int
    fine: int
    work: Path


def judge(
    sampler: Sampler,
    methods: Sequence[Method],
    asked: Asked,
    times: Mapping[str, Times],
    clock: str = "wall",
) -> tuple[tuple[Judged, ...], Mapping[str, Interval]]:
    """All methods, the full plain run first, and the same measures of real images; time by `clock`.

    The real images are others than those that the distance is taken to: theirs is the floor.
    """
    found = _values(sampler, methods, asked)
    full = methods[0].name
    shares = {name: share(taken, times[full], clock) for name, taken in times.items()}
    judged = tuple(_judged(method, methods, found, shares) for method in methods)
    return judged, {name: interval(value) for name, value in found[REAL].items()}


def _judged(
    method: Method,
    methods: Sequence[Method],
    found: Mapping[str, Mapping[str, Values]],
    shares: Mapping[str, Share],
) -> Judged:
    values = found[method.name]
    others = {each.steps: each.name for each in methods if each.plain and each != method}
    taken = {steps: shares[name].median for steps, name in others.items() if name in shares}
    time = shares.get(method.name)
    return Judged(
        method=method,
        means={name: interval(value) for name, value in values.items()},
        time=time,
        pairs={
            steps: {name: _paired(name, values[name], found[other][name]) for name in values}
            for steps, other in others.items()
        },
        rival=equal_time_rival(time.median, taken) if time else None,
    )


def _paired(name: str, ours: Values, theirs: Values) -> Difference:
    measure = MEASURES[name]
    return paired(ours, theirs, higher=measure.higher, margin=measure.margin)


def machine_noise(times: Mapping[str, Times], first: Method, clock: str) -> Share | None:
    """The full plain run over itself: what a share of 1 looks like on this machine."""
    return share(times[AGAIN], times[first.name], clock) if AGAIN in times else None


# ---- values an image -----------------------------------------------------------------------------

REAL: Final = "real images"


def _values(
    sampler: Sampler, methods: Sequence[Method], asked: Asked
) -> dict[str, dict[str, Values]]:
    """Values by the method's name, and of REAL what can be had of them."""
    subject, seeds = sampler.subject, range(FIRST_SEED, FIRST_SEED + asked.images)
    prompts, network = sampler.pipeline.examples(seeds), EfficientLite()
    wanted = kept(sampler, methods[0], asked.images, asked.work)
    fine = kept(sampler, plain(asked.fine), asked.images, asked.work)
    real = _features_of_real(network, subject, asked)
    found: dict[str, dict[str, Values]] = {}
    for method in methods:
        images = kept(sampler, method, asked.images, asked.work)
        path = asked.work / subject.name / "features" / f"{method.key()}-{asked.images}.pt"
        found[method.name] = {
            "plain_psnr": psnr(images, wanted),
            "fine_psnr": psnr(images, fine),
            **subject.judge.exact(images, prompts),
            "kid": kid_parts(_features(network, images, path), real),
        }
    others = subject.judge.real(asked.real, asked.images)
    path = asked.work / subject.name / "features" / f"other-real-{asked.real}-{asked.images}.pt"
    found[REAL] = {"kid": kid_parts(_features(network, others, path), real)}
    return found


def _features_of_real(network: Any, subject: Any, asked: Asked) -> torch.Tensor:
    path = asked.work / subject.name / "features" / f"real-{asked.real}.pt"
    return _features(network, subject.judge.real(0, asked.real), path)


def _features(network: Any, images: torch.Tensor, path: Path) -> torch.Tensor:
    """Kept beside the images, for they take longer than all other measures together."""
    # Of these very images, and of this network at this size.
    said = (float(images.double().sum()), FEATURES)
    if path.exists():
        held = torch.load(path)
        if held["of"] == said:
            found: torch.Tensor = held["features"]
            return found
    found = torch.cat([network.pooled(part) for part in batches(images)])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"of": said, "features": found}, path)
    return found


def parts(images: int) -> int:
    """Images rounded up to whole parts."""
    return -(-images // PART) * PART
