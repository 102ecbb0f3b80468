"""What was measured: a record, one a suite and model. Tables and the page are made of nothing else.

A record is JSON. Images and per-step pictures lie beside it, by relative paths.
"""

from __future__ import annotations

from typing import Any, Final, Literal, final

import msgspec

SCHEMA: Final = 2  # `reading.py` reads older ones
Verdict = Literal["better", "same", "worse", "inconclusive"]
Stability = Literal["stable", "inconclusive"]


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Plain data."""


@final
class Interval(_Plain, frozen=True, kw_only=True):
    """A mean, and where it would lie for other images of the same kind (95 % bootstrap)."""

    mean: float
    low: float
    high: float


@final
class Timing(_Plain, frozen=True, kw_only=True):
    """Seconds of one thing over all rounds, and the same over that of the reference.

    Attributes:
        median: Of the samples, s.
        samples: One a round, s, in the order they were taken.
        share: Median over rounds of this time over the reference's beside it.
        share_low: Least of the rounds' shares.
        share_high: Greatest of them.
        stability: "inconclusive" where the rule of stability (`stability.py`) did not hold.
    """

    median: float
    samples: tuple[float, ...]
    share: float
    share_low: float
    share_high: float
    stability: Stability


@final
class Times(_Plain, frozen=True, kw_only=True):
    """Three numbers, never one: a whole batch of images, the denoiser in it, one call of it."""

    end_to_end: Timing | None = None
    denoiser: Timing | None = None
    step: Timing | None = None


@final
class Macs(_Plain, frozen=True, kw_only=True):
    """Multiply-accumulates of one image's trajectory, in both conventions.

    `paper` counts linear and convolution layers; `full` the products of attention too. `share` is
    the full count over the reference's.
    """

    paper: float
    full: float
    share: float


@final
class Counts(_Plain, frozen=True, kw_only=True):
    """Exact numbers, equal on every machine; None where a method has no such thing."""

    graphs: int | None = None
    breaks: int | None = None
    recompiles: int | None = None
    bodies: int | None = None
    blocks_run: int | None = None
    buffer_bytes: int | None = None


@final
class Difference(_Plain, frozen=True, kw_only=True):
    """This row less another, the same images; the verdict is of this row.

    Attributes:
        difference: Mean of the per-image differences, with its interval.
        verdict: "better" and "worse" leave zero out; "same" lies within the margin.
        detectable: The smallest difference that so many images could have shown.
        reason: Why it is inconclusive whatever the interval says; "" where the interval decides.
    """

    difference: Interval
    verdict: Verdict
    detectable: float
    reason: str = ""

    @property
    def said(self) -> str:
        """The verdict, with the reason where there is one."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


@final
class Measure(_Plain, frozen=True, kw_only=True):
    """What a measure means.

    Attributes:
        name: Its key in rows.
        title: As tables show it: "PSNR to 20 plain steps, dB", "KID-EffLite0 x 1000".
        higher: Whether more is better.
        scale: By what a value is multiplied where it is shown.
        digits: Digits after the point, shown.
        margin: Differences surely within it are "same".
        about: What it rests on, what it cannot see: a sentence or two.
        floor: Of real images against other real ones, where there are any.
    """

    name: str
    title: str
    higher: bool
    scale: float = 1.0
    digits: int = 2
    margin: float = 0.0
    about: str = ""
    floor: Interval | None = None


@final
class Row(_Plain, frozen=True, kw_only=True):
    """One method of one model.

    Attributes:
        name: Unique in the record: "delta-dit-1.6x".
        label: As tables show it.
        kind: What it is; "steps" are fewer (or more) plain steps.
        steps: Of its trajectories.
        settings: Of the method, as given.
        lowering: "eager", "inductor" ...
        schedule: A step each: None where all blocks run, else first and last + 1 of those skipped;
            None as a whole for methods that have no table.
        macs: None where they could not be counted.
        times: What was measured; None where nothing was.
        compile_seconds: Of the first call, cold, less that of a warm one.
        peak_bytes: Highest memory of the process (or the device) while it ran.
        counts: Exact numbers.
        means: Measure's name -> mean and interval.
        values: Measure's name -> one value an image, in the order of the manifest.
        against: Name of another row -> measure's name -> difference, paired by image.
        equal_time: Name of the row of plain steps that takes no less time; None if all are quicker.
        step_errors: A step each, the error of the result of the denoiser on this method's own
            trajectory over the plain result's largest value, mean over images.
        images: Relative paths of the images, in the order of the manifest; may be fewer.
        failure: Why there is nothing, if so.
        remark: Why it is there.
        replay: The command that measures this row again.
    """

    name: str
    label: str
    kind: Literal["plain", "steps", "cache", "rival"]
    steps: int
    settings: dict[str, Any] = {}
    lowering: str = ""
    schedule: tuple[tuple[int, int] | None, ...] | None = None
    macs: Macs | None = None
    times: Times | None = None
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    counts: Counts = Counts()
    means: dict[str, Interval] = {}
    values: dict[str, tuple[float, ...]] = {}
    against: dict[str, dict[str, Difference]] = {}
    equal_time: str | None = None
    step_errors: tuple[float, ...] | None = None
    images: tuple[str, ...] = ()
    failure: str | None = None
    remark: str = ""
    replay: str = ""


@final
class Model(_Plain, frozen=True, kw_only=True):
    """What was sampled. `random_weights` says that it can prove speed, never quality."""

    name: str
    title: str
    blocks: int | None
    digest: str
    random_weights: bool = False
    about: str = ""


@final
class Manifest(_Plain, frozen=True, kw_only=True):
    """Prompts and seeds; two records whose hashes differ are not compared."""

    sha256: str
    seeds: tuple[int, ...]
    prompts: tuple[Any, ...]


@final
class Series(_Plain, frozen=True, kw_only=True):
    """One curve of a figure."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@final
class Figure(_Plain, frozen=True, kw_only=True):
    """A figure besides the Pareto: curves, or a map of numbers (rows of equal length)."""

    name: str
    title: str
    x_title: str
    y_title: str
    about: str = ""
    series: tuple[Series, ...] = ()
    grid: tuple[tuple[float | None, ...], ...] = ()


@final
class Record(_Plain, frozen=True, kw_only=True):
    """Everything of one suite on one model.

    Attributes:
        date: ISO date and time, UTC.
        suite: The suite's own words, as data; `suite_sha256` of its file.
        environment: Where: name, processor, threads, versions, ...; `environment_sha256` of it.
        commit: Of deltapass; `+` after it where files were changed.
        harness_seconds: What the harness itself takes for a batch, the denoiser doing nothing.
        noise: The reference over itself: what a share of 1 looks like on that machine.
        paper: Rows of the paper's own table (`columns`, `rows`), the paper's figures, not ours.
        warnings: What a reader must know: few images, a crowded machine, ...
    """

    schema: int = SCHEMA
    date: str
    suite: dict[str, Any]
    suite_sha256: str
    environment: dict[str, Any]
    environment_sha256: str
    commit: str
    model: Model
    manifest: Manifest
    measures: tuple[Measure, ...]
    reference: str
    rows: tuple[Row, ...]
    figures: tuple[Figure, ...] = ()
    harness_seconds: float | None = None
    noise: Timing | None = None
    paper: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
