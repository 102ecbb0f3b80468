"""The table of methods, by the names that suites use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from deltapass.bench.methods.caching import (
    DEEP,
    by_gate,
    by_preset,
    by_rule,
    by_span,
    checked,
    from_file,
    interval_one,
    is_file,
)
from deltapass.bench.methods.method import Context, MakeMethod, Method
from deltapass.bench.methods.rivals import LABELS, by_rival
from deltapass.bench.suite import MethodSpec
from deltapass.errors import BenchError, counted, did_you_mean

INT8: Final = "int8"


def plain(spec: MethodSpec, context: Context) -> Method:
    """The model as it is; with steps of its own the honest rival, fewer of them."""
    lowering = checked(spec, ("lowering",)).get("lowering")
    steps = spec.steps or context.steps
    base = f"plain-{steps}" if lowering is None else f"plain-{lowering}-{steps}"
    said = f"plain, {counted(steps, 'step')}"
    return Method(
        name=base,
        label=spec.label or (said if lowering is None else f"{said}, {lowering}"),
        kind="plain" if steps == context.steps else "steps",
        steps=steps,
        lowering=lowering,
        settings=dict(spec.settings),
        remark=spec.remark,
    )


METHODS: Final[Mapping[str, MakeMethod]] = MappingProxyType(
    {
        "plain": plain,
        "interval-1": interval_one,
        "delta-dit": by_rule("Δ-DiT"),
        "reversed": by_rule("Δ-DiT, phases reversed", {"outline": "shallow", "detail": "deep"}),
        "delta-cache-shallow": by_rule(
            "Δ-Cache, shallow", {"outline": "shallow", "detail": "shallow"}
        ),
        "delta-cache-middle": by_rule("Δ-Cache, middle", {"outline": "middle", "detail": "middle"}),
        "delta-cache-deep": by_rule("Δ-Cache, deep", DEEP),
        "faster-diffusion": by_rule(
            "Faster Diffusion", {"outline": "shallow", "detail": "shallow", "keeps": "feature"}
        ),
        "deepcache": by_rule("DeepCache", {**DEEP, "keeps": "feature"}),
        "tgate": by_gate,
        "span": by_span,
        "quality": by_preset,
        "balanced": by_preset,
        "fast": by_preset,
        "linear": by_rule("linear forecast", {**DEEP, "predictor": "linear"}),
        "quadratic": by_rule("quadratic forecast", {**DEEP, "predictor": "quadratic"}),
        "adams-bashforth": by_rule(
            "Adams-Bashforth forecast", {**DEEP, "predictor": "adams-bashforth"}
        ),
        "taylor-forecast": by_rule("Taylor forecast", {**DEEP, "predictor": "taylor"}),
        "hermite-forecast": by_rule("Hermite forecast", {**DEEP, "predictor": "hermite"}),
        "chebyshev": by_rule("Chebyshev fit", {**DEEP, "predictor": "chebyshev"}),
        **dict.fromkeys(LABELS, by_rival),
    }
)


def method_of(spec: MethodSpec, context: Context) -> Method:
    """The method that a suite means.

    Every method takes the settings `solver`, a scheduler class of diffusers, and `weights`, "int8".

    Raises:
        BenchError: If there is none of that name, or a setting means nothing to it.
        ScheduleError: If the model or the steps do not fit the schedule.
    """
    settings = dict(spec.settings)
    solver, weights = settings.pop("solver", None), settings.pop("weights", None)
    if weights not in (None, INT8):
        raise BenchError(f"weights is {weights!r}", f"Give {INT8!r}, or leave it out")
    own = msgspec.structs.replace(spec, settings=settings)
    method = _make(spec.name)(own, context)
    if solver is None and weights is None:
        return method
    return dataclasses.replace(
        method,
        name="-".join([method.name, *filter(None, (solver, weights))]),
        label=method.label if spec.label else _with(method.label, solver, weights),
        solver=solver,
        weights=weights,
        settings=dict(spec.settings),
    )


def _make(name: str) -> MakeMethod:
    if name in METHODS:
        return METHODS[name]
    if is_file(name):
        return from_file
    raise BenchError(
        f"there is no method {name!r}",
        f"{did_you_mean(name, (*METHODS,))}Methods are: {', '.join(METHODS)}, a schedule's "
        "file, or the name of a schedule that is tuned to the model",
    )


def _with(label: str, solver: str | None, weights: str | None) -> str:
    """The label with what holds besides."""
    more = [solver.removesuffix("Scheduler")] if solver else []
    more += ["INT8"] if weights else []
    return f"{label} + {' + '.join(more)}"


def check_distinct(methods: Sequence[Method]) -> None:
    """Raise BenchError where two methods would go by one name."""
    seen: set[str] = set()
    for method in methods:
        if method.name in seen:
            raise BenchError(f"method {method.name} is there twice", "Leave out one of them")
        seen.add(method.name)
