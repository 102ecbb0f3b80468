"""The stages of a job: images, times, and what is exact. Each leaves on disk what it has done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from deltapass.bench.environment import load_average
from deltapass.bench.measuring.clocks import Taken
from deltapass.bench.measuring.compiles import kept_compile_settings, many_compiles
from deltapass.bench.measuring.exact import (
    LOOKED_AT,
    Compiled,
    Steps,
    compiled,
    look_at,
    own_compile_cache,
    peak_bytes,
)
from deltapass.bench.measuring.harness import harness_seconds
from deltapass.bench.measuring.stability import LEAST
from deltapass.bench.measuring.timing import rounds, unstable
from deltapass.bench.methods.method import Method
from deltapass.bench.running.drawing import Part, draw_part, keep, key, missing, parts_of
from deltapass.bench.running.job import Job, Watch
from deltapass.bench.sampling import Sampler
from deltapass.errors import BenchError, DeltapassError

DRAWN, TIMES, AGAIN, EXACT = "drawn", "times", "times-again", "exact"
Failures = dict[str, str]
# Times the rows of these names again, in a process of its own.
Fresh = Callable[[Sequence[str]], None]


class Exact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one method's images, steps and compiles showed; `key` is what that depends on."""

    key: str
    steps: Steps | None = None
    compiled: Compiled | None = None
    peak_bytes: int | None = None


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rounds of a job, by the method's name; `of` is what they depend on."""

    of: str
    rounds: tuple[dict[str, Taken], ...] = ()
    load: tuple[float | None, ...] = ()
    harness_seconds: float | None = None
    failures: dict[str, str] = {}


# ---- images --------------------------------------------------------------------------------------


def draw_all(job: Job, watch: Watch, workers: Any = None) -> None:
    """All images that are judged and were not drawn yet; then what each method's steps show.

    Args:
        job: What.
        watch: Told after every part.
        workers: Draws parts elsewhere, as `RayActors` does; in this process by default.

    Raises:
        DeltapassError: If the reference cannot be drawn.
    """
    sampler = Sampler(job.subject, job.environment.draw_on, job.suite.solver)
    failures: Failures = {}
    todo = [part for method in job.drawn for part in missing(_parts(sampler, method, job))]
    for done, part in enumerate(_drawn(sampler, todo, workers, job, failures)):
        watch(f"drawing {part.method.label}", done + 1, len(todo))
    _look_at_all(sampler, job, watch, failures)
    job.keep(DRAWN, json.dumps(failures, indent=1).encode())
    sampler.close()


def _parts(sampler: Sampler, method: Method, job: Job) -> tuple[Part, ...]:
    return parts_of(sampler, method, job.seeds, job.output)


def _drawn(
    sampler: Sampler, todo: Sequence[Part], workers: Any, job: Job, failures: Failures
) -> Iterator[Part]:
    if workers is not None:
        for place, part in enumerate(todo):
            workers.submit(place, part)
        for _ in todo:
            place, images = workers.take()
            part = todo[place]
            if not isinstance(images, str):
                keep(part, images)
            elif part.method is job.reference:
                raise BenchError(
                    f"{part.method.name} cannot be drawn: {images}", "It is the reference"
                )
            else:
                failures[part.method.name] = images
            yield part
        return
    for part in todo:
        if part.method.name not in failures:
            with noted(failures, part.method, job.reference):
                draw_part(sampler, part)
        yield part


@contextmanager
def noted(failures: Failures, method: Method, reference: Method | None = None) -> Iterator[None]:
    """Within, what one method cannot do is noted, and the others go on; the reference must do it.

    Other packages may raise anything; of ours only what has a remedy is foreseen.
    """
    try:
        yield
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        ours = isinstance(inner, DeltapassError)
        if method is reference or not (ours or method.kind == "rival"):
            raise
        failures[method.name] = str(inner) if ours else f"{type(inner).__name__}: {inner}"


def _look_at_all(sampler: Sampler, job: Job, watch: Watch, failures: Failures) -> None:
    """The steps of every method that was not looked at before."""
    held = exact_of(job)
    seeds = job.seeds[: min(LOOKED_AT, sampler.subject.batch, len(job.seeds))]
    for done, method in enumerate(job.methods):
        watch(f"steps of {method.label}", done, len(job.methods))
        its = key(sampler, method)
        before = held.get(method.name)
        if before is not None and before.key == its and before.steps is not None:
            continue
        if method.name not in failures:
            with noted(failures, method, job.reference):
                steps = look_at(sampler, method, job.analysis, seeds)
                _note(job, method, its, steps=steps)


def exact_of(job: Job) -> dict[str, Exact]:
    """What is known by the method's name."""
    try:
        return msgspec.convert(job.kept(EXACT) or {}, dict[str, Exact])
    except msgspec.ValidationError:
        return {}


def _note(job: Job, method: Method, its: str, **found: Any) -> None:
    """Add to what is known of a method, as it is now: images and times may be made side by side."""
    held = exact_of(job)
    known = held.get(method.name)
    if known is None or known.key != its:
        known = Exact(key=its)
    held[method.name] = msgspec.structs.replace(known, **found)
    job.keep(EXACT, msgspec.json.format(msgspec.json.encode(held), indent=1))


# ---- times ---------------------------------------------------------------------------------------


def time_all(job: Job, watch: Watch, fresh: Fresh | None = None) -> None:
    """Rounds that were not taken yet; compiles and memory first. Nothing for a suite without times.

    Args:
        job: What.
        watch: Told after every method and round.
        fresh: Times rows again whose times may not count; else they are inconclusive at once.

    Raises:
        DeltapassError: If the reference cannot be drawn.
    """
    if not job.suite.timed:
        return
    held = kept_times(job, TIMES)
    if len(held.rounds) < job.suite.rounds:
        with kept_compile_settings(), own_compile_cache(), many_compiles():
            _take_rounds(job, held, watch)
        held = kept_times(job, TIMES)
    names = [m.name for m in unstable(job.methods, held.rounds)]
    enough = len(held.rounds) >= LEAST  # more of too few would not count either
    if names and enough and fresh is not None and not kept_times(job, AGAIN).rounds:
        watch(f"timing again, in a process of its own: {', '.join(names)}", 0, 1)
        fresh(names)


def time_again(job: Job, names: Sequence[str], watch: Watch) -> None:
    """Rounds of some methods beside the reference, kept apart: for a process of its own."""
    chosen = [m for m in job.methods if m is job.reference or m.name in names]
    sampler = Sampler(job.subject, job.environment.lowering, job.suite.solver)
    held = Kept(of=job.key())
    with kept_compile_settings(), many_compiles():
        for taken in rounds(sampler, chosen, job.timed_seeds, range(job.suite.rounds)):
            held = _with(held, dict(taken))
            watch("timing again", len(held.rounds), job.suite.rounds)
    _keep_times(job, AGAIN, held)
    sampler.close()


def _take_rounds(job: Job, held: Kept, watch: Watch) -> None:
    sampler = Sampler(job.subject, job.environment.lowering, job.suite.solver)
    failures = dict(held.failures)
    ready = _compile_all(sampler, job, watch, failures)
    if held.harness_seconds is None:
        seconds = harness_seconds(sampler, job.reference, job.timed_seeds)
        held = msgspec.structs.replace(held, harness_seconds=seconds)
    left = range(len(held.rounds), job.suite.rounds)
    for taken in rounds(sampler, ready, job.timed_seeds, left):
        held = msgspec.structs.replace(_with(held, dict(taken)), failures=failures)
        _keep_times(job, TIMES, held)
        watch("timing", len(held.rounds), job.suite.rounds)
    sampler.close()


def _compile_all(
    sampler: Sampler, job: Job, watch: Watch, failures: Failures
) -> tuple[Method, ...]:
    """Compile cold what was not compiled before, and give the methods that can be timed."""
    exact, groups = exact_of(job), dict[Any, Compiled | None]()
    drawing = Sampler(job.subject, job.environment.draw_on, job.suite.solver)
    ready = []
    for done, method in enumerate(job.methods):
        watch(f"compiling {method.label}", done, len(job.methods))
        its = key(drawing, method)
        known = exact.get(method.name)
        if known is None or known.key != its:
            known = Exact(key=its)
        if method.name in failures:
            continue
        with noted(failures, method, job.reference):
            group = sampler.group(method)
            if group not in groups:
                made = known.compiled or compiled(sampler, method, job.timed_seeds)
                groups[group] = made
            peak = known.peak_bytes or peak_bytes(sampler, method, job.timed_seeds)
            _note(job, method, its, compiled=groups[group], peak_bytes=peak)
            ready.append(method)
    return tuple(ready)


def kept_times(job: Job, name: str) -> Kept:
    """Rounds that were taken of this very job; none of another."""
    try:
        held = msgspec.convert(job.kept(name) or {"of": ""}, Kept)
    except msgspec.ValidationError:
        return Kept(of=job.key())
    return held if held.of == job.key() else Kept(of=job.key())


def _with(held: Kept, taken: dict[str, Taken]) -> Kept:
    return msgspec.structs.replace(
        held, rounds=(*held.rounds, taken), load=(*held.load, load_average())
    )


def _keep_times(job: Job, name: str, held: Kept) -> None:
    job.keep(name, msgspec.json.format(msgspec.json.encode(held), indent=1))


def failures_of(job: Job) -> Failures:
    """Why methods have no images or times, by name."""
    return {**(job.kept(DRAWN) or {}), **kept_times(job, TIMES).failures}
