"""What `tune` was asked for, checked once, before anything is sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict, Unpack, final

from deltapass.errors import ContradictoryOptionsError, OptionError, UnknownOptionError
from deltapass.schedule.rules import Span
from deltapass.tuning.search.candidates import Forecast
from deltapass.tuning.search.costs import MACS, TIME
from deltapass.tuning.search.metrics import Measure, Metric, metric_of
from deltapass.tuning.search.scoring import Batch, batches_of

Target = Mapping[str, int] | float
PLAIN_KEY: Final = "plain_steps"
FIRST_HELD_OUT: Final = 1_000_000  # far from the seeds of a search
TARGET_FORM: Final = f"{{'{PLAIN_KEY}': 16}}, or a value of the metric"


class Wanted(TypedDict, total=False):
    """What is searched, and how: arguments of `deltapass.tune` with their defaults.

    Exactly one of the first three is given.

    budget: Share of the plain trajectory's MACs that may be spent; several find one schedule each.
    milliseconds: Wall time of the trajectories of one batch, as measured on this machine under the
        given `options`; several as above.
    target: A quality to keep at the least cost: {"plain_steps": 16}, as near as that many plain
        steps; or a value of the metric, such as 38.0 for dB.
    seeds: Of the search, or how many (8): then from 0 on.
    held_out: Other seeds, to measure on; or how many (32); 0 for none.
    batch: Seeds sampled at once (4).
    trials: Trials in all (80).
    seconds: Time after which no further trial is begun (none).
    spans: What a cached step may skip: "full", "deep:21", "shallow:21", "middle:14", "7:28" or a
        `Span`; by default the whole stack, and three quarters and a half of it in each region.
    forecasts: How cached steps may be forecast: names of predictors, and "fitted-1" to "fitted-4"
        for that many fitted weights. The first one is tried most.
    metric: "psnr" (the default), "mse", or a function of (samples, plain samples) that gives one
        number a sample, less being nearer.
    storage: A file that keeps the trials, or the URL of a database; the same search goes on where
        it stopped.
    optuna_sampler: Another sampler of optuna than our own.
    seed: Of the search's own choices (0).
    """

    budget: float | Sequence[float] | None
    milliseconds: float | Sequence[float] | None
    target: Target | None
    seeds: int | Sequence[int]
    held_out: int | Sequence[int]
    batch: int
    trials: int
    seconds: float | None
    spans: Sequence[str | Span] | None
    forecasts: Sequence[str]
    metric: str | Measure
    storage: str | None
    optuna_sampler: Any
    seed: int


DEFAULTS: Final = Wanted(
    budget=None,
    milliseconds=None,
    target=None,
    seeds=8,
    held_out=32,
    batch=4,
    trials=80,
    seconds=None,
    spans=None,
    forecasts=("fitted-3", "fitted-2", "fitted-4", "linear"),
    metric="psnr",
    storage=None,
    optuna_sampler=None,
    seed=0,
)


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """All that a search takes besides the trajectories.

    Attributes:
        unit: In which costs are counted.
        limits: Shares, or milliseconds; empty where a target is given.
        target: Plain steps or a value of the metric; None where limits are given.
        batches: Seeds of the search.
        held_out: Seeds to measure on; perhaps none.
        trials: In all.
        seconds: Or fewer, after this time.
        spans: As given; None for the default ones.
        forecasts: Names.
        metric: How samples are compared.
        storage: Where trials are kept; None for nowhere.
        optuna_sampler: None for our own.
        seed: Of the search's own choices.
    """

    unit: str
    limits: tuple[float, ...]
    target: Target | None
    batches: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    trials: int
    seconds: float | None
    spans: tuple[str | Span, ...] | None
    forecasts: tuple[str, ...]
    metric: Metric
    storage: str | None
    optuna_sampler: Any
    seed: int


def asked_for(**wanted: Unpack[Wanted]) -> Asked:
    """The arguments of `tune`, checked.

    Raises:
        UnknownOptionError: If there is no argument of that name.
        OptionError: If one has a value that cannot be used.
        ContradictoryOptionsError: If not exactly one of budget, milliseconds and target is given.
    """
    for name in wanted:
        if name not in DEFAULTS:
            raise UnknownOptionError(name, tuple(DEFAULTS))
    given: Wanted = {**DEFAULTS, **wanted}
    unit, limits = _limits(given["budget"], given["milliseconds"], given["target"])
    seeds = _seeds("seeds", given["seeds"], 0)
    held_out = _seeds("held_out", given["held_out"], FIRST_HELD_OUT)
    if not seeds:
        raise OptionError("seeds", given["seeds"], "a number of at least 1, or some seeds")
    if {*seeds} & {*held_out}:
        both = sorted({*seeds} & {*held_out})
        raise OptionError("held_out", both, "seeds that the search does not see")
    _check_count("batch", given["batch"])
    _check_count("trials", given["trials"])
    for name in given["forecasts"]:
        Forecast.named(name)
    if not given["forecasts"]:
        raise OptionError("forecasts", (), "at least one name")
    return Asked(
        unit=unit,
        limits=limits,
        target=given["target"],
        batches=batches_of(seeds, given["batch"]),
        # Of the same length as the others: another one would be another graph.
        held_out=batches_of(held_out, min(given["batch"], len(seeds))) if held_out else (),
        trials=given["trials"],
        seconds=given["seconds"],
        spans=None if given["spans"] is None else tuple(given["spans"]),
        forecasts=tuple(dict.fromkeys(given["forecasts"])),
        metric=metric_of(given["metric"]),
        storage=given["storage"],
        optuna_sampler=given["optuna_sampler"],
        seed=given["seed"],
    )


def _limits(budget: Any, milliseconds: Any, target: Any) -> tuple[str, tuple[float, ...]]:
    named = {"budget": budget, "milliseconds": milliseconds, "target": target}
    present = [name for name, value in named.items() if value is not None]
    if not present:
        raise OptionError("budget", None, "given, or else milliseconds or target")
    if len(present) > 1:
        why = "a search looks for the nearest at some cost, or the cheapest that is near enough"
        raise ContradictoryOptionsError(present[0], present[1], why)
    if target is not None:
        _check_target(target)
        return MACS, ()
    (name,) = present
    values = tuple(named[name]) if isinstance(named[name], Sequence) else (named[name],)
    most = 1.0 if name == "budget" else math.inf
    allowed = "a share of the plain MACs, above 0.0 and up to 1.0" if most == 1.0 else "above 0.0"
    for value in values or (None,):
        if not _is_number(value) or not 0.0 < value <= most or math.isinf(value):
            raise OptionError(name, value, allowed)
    return MACS if name == "budget" else TIME, tuple(map(float, values))


def _check_target(target: Any) -> None:
    if isinstance(target, Mapping):
        if list(target) != [PLAIN_KEY]:
            raise OptionError("target", dict(target), TARGET_FORM)
        _check_count(PLAIN_KEY, target[PLAIN_KEY])
    elif not _is_number(target) or not math.isfinite(target):
        raise OptionError("target", target, TARGET_FORM)


def _seeds(name: str, given: Any, first: int) -> tuple[int, ...]:
    if isinstance(given, bool) or not isinstance(given, int | Sequence | range):
        raise OptionError(name, given, "a number of seeds, or some seeds")
    if isinstance(given, int):
        if given < 0:
            raise OptionError(name, given, "a number from 0 on")
        return tuple(range(first, first + given))
    if len({*given}) != len(given):
        raise OptionError(name, list(given), "different seeds")
    return tuple(given)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(name, value, "a whole number from 1 on")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
