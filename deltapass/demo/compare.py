"""The demo: the embedded model under plain torch.compile and under ours, side by side.

Samples the same seeds with the plain model, with both orders of delta prediction, and with fewer
plain steps at equal cost, the honest rival. Times are of whole images, measured in turns in one
process; pictures and numbers go to a folder.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltapass.demo.embedded import (
    ClassConditionalPipeline,
    class_numbers,
    generators,
    load_embedded,
)
from deltapass.demo.images import mean_psnr
from deltapass.demo.machine import compile_cache, faster_threads, seconds_of, start_compiler
from deltapass.errors import counted
from deltapass.explanation import Report, explain
from deltapass.graph.program import Macs
from deltapass.sessions.session import session

ORDERS: Final = (0, 1)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What to run. `options` go to the backend; `rounds` is how often every method is timed."""

    count: int = 20
    seed: int = 0
    steps: int = 20
    guidance: float = 2.0
    rounds: int = 3
    lowering: str = "inductor"
    options: Mapping[str, object]


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One way to sample: a denoiser, its steps, and the MACs of all of them."""

    name: str
    denoiser: Any
    steps: int
    macs: Macs


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One row of the table. `psnr` is in dB against the plain images of the same seeds."""

    name: str
    steps: int
    seconds_per_image: float
    speedup: float
    expected_speedup: float
    gmacs_paper: float
    gmacs_full: float
    psnr: float | None
    compile_seconds: float | None
    round_seconds: tuple[float, ...] = ()
    images: torch.Tensor


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """All rows, the plain one first, and what they depend on.

    `compiler_seconds` is what the first compilation of anything cost in this process, and
    `compile_cache` says what Inductor's cache on disk held before it.
    """

    outcomes: tuple[Outcome, ...]
    report: Report
    settings: DemoSettings
    threads: int
    compiler_seconds: float
    compile_cache: str


def run_demo(settings: DemoSettings, progress: Progress) -> DemoResult:
    """Compile, sample in turns, compare.

    Args:
        settings: What to run.
        progress: Where to show compiling and steps.

    Raises:
        OptionError, UnknownOptionError, ScheduleError: For options that cannot be used.
    """
    pipeline = load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    model = pipeline.transformer
    args, kwargs = example_call(pipeline, settings)
    backend = {"steps": settings.steps, **settings.options, "lowering": settings.lowering}
    report = explain(model, *args, options=backend, **kwargs)
    with torch.no_grad(), faster_threads(functools.partial(model, *args, **kwargs)) as threads:
        cache, started = compile_cache(), start_compiler(settings.lowering)
        methods = make_methods(model, settings, report, backend)
        compiled = compile_all(methods, (args, kwargs), progress)
        images, seconds = sample_in_turns(pipeline, methods, settings, progress)
    return DemoResult(
        outcomes=tuple(
            _outcome(method, methods[0], (images, seconds), compiled) for method in methods
        ),
        report=report,
        settings=settings,
        threads=threads,
        compiler_seconds=started,
        compile_cache=cache,
    )


def example_call(
    pipeline: ClassConditionalPipeline, settings: DemoSettings
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as the pipeline gives them to the denoiser."""
    config = pipeline.transformer.config
    batch = settings.count * (2 if settings.guidance > 1 else 1)
    sample = torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size)
    labels = torch.zeros(batch, dtype=torch.int64)
    kwargs = {"timestep": torch.full((batch,), 999.0), "class_labels": labels, "return_dict": False}
    return (sample,), kwargs


def make_methods(
    model: torch.nn.Module, settings: DemoSettings, report: Report, backend: Mapping[str, Any]
) -> tuple[Method, ...]:
    """Plain, ours at order 0 and 1, and plain with the steps that cost what ours does."""
    eager = settings.lowering == "eager"
    compiled = model if eager else torch.compile(model, dynamic=False)

    def plain(steps: int) -> Method:
        macs = report.plain_macs * (steps / settings.steps)
        return Method(f"plain, {counted(steps, 'step')}", compiled, steps, macs)

    def ours(order: int) -> Method:
        options = {**backend, "order": order}
        denoiser = torch.compile(model, backend="deltadit", dynamic=False, options=options)
        name = f"deltadit, order {order}"
        return Method(name, denoiser, settings.steps, report.trajectory_macs)

    methods = (plain(settings.steps), *map(ours, ORDERS))
    fewer = max(1, math.floor(settings.steps * report.share + 0.5))  # half a step goes to the rival
    # Where nothing is cached the rival would be the plain run again.
    return methods if fewer == settings.steps else (*methods, plain(fewer))


@torch.no_grad()
def compile_all(
    methods: Sequence[Method], call: tuple[tuple[Any, ...], dict[str, Any]], progress: Progress
) -> dict[str, float]:
    """Seconds of the first call less a second one, for every distinct denoiser."""
    args, kwargs = call
    seconds: dict[str, float] = {}
    fresh = {id(method.denoiser): method for method in reversed(methods)}
    task = progress.add_task("compiling", total=len(fresh))
    for method in reversed(fresh.values()):
        progress.update(task, description=f"compiling {method.name}")
        # In a session of its own: the model must not take this for the start of a trajectory.
        with session(steps=2) as compiling:
            compiling.step(0)
            run = functools.partial(method.denoiser, *args, **kwargs)
            first, second = seconds_of(run), seconds_of(run)
        seconds[method.name] = max(0.0, first - second)
        progress.advance(task)
    progress.update(task, description="compiled")
    return seconds


def sample_in_turns(
    pipeline: ClassConditionalPipeline,
    methods: Sequence[Method],
    settings: DemoSettings,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Images of every method, and its seconds in each round; one round first to warm up."""
    images: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    rounds = settings.rounds + 1
    total = rounds * sum(method.steps for method in methods)
    task = progress.add_task("sampling", total=total)
    for turn in range(rounds):
        # The order changes from round to round, so that no method always follows the same one.
        for method in (*methods[turn % len(methods) :], *methods[: turn % len(methods)]):
            progress.update(task, description=f"sampling {method.name}")
            pipeline.transformer = method.denoiser
            drawn, taken = _sample(pipeline, method, settings, lambda: progress.advance(task))
            images[method.name] = drawn
            if turn:
                seconds[method.name].append(taken)
    progress.update(task, description="sampled")
    return images, seconds


def _sample(
    pipeline: ClassConditionalPipeline,
    method: Method,
    settings: DemoSettings,
    advance: Callable[[], None],
) -> tuple[torch.Tensor, float]:
    def after_step(*_: Any) -> dict[str, Any]:
        advance()
        return {}

    started = time.perf_counter()
    images = pipeline(
        class_numbers(pipeline, settings.count),
        guidance_scale=settings.guidance,
        num_inference_steps=method.steps,
        generator=generators(settings.seed, settings.count),
        output_type="pt",
        callback_on_step_end=after_step,
    ).images
    return images, time.perf_counter() - started


def _outcome(
    method: Method,
    plain: Method,
    sampled: tuple[Mapping[str, torch.Tensor], Mapping[str, Sequence[float]]],
    compiled: Mapping[str, float],
) -> Outcome:
    images, seconds = sampled
    drawn, wanted = images[method.name], images[plain.name]
    median = statistics.median(seconds[method.name])
    return Outcome(
        name=method.name,
        steps=method.steps,
        seconds_per_image=median / len(drawn),
        speedup=statistics.median(seconds[plain.name]) / median,
        expected_speedup=plain.macs.full / method.macs.full if method.macs.full else 1.0,
        gmacs_paper=method.macs.paper / len(drawn) / 1e9,
        gmacs_full=method.macs.full / len(drawn) / 1e9,
        psnr=None if method is plain else mean_psnr(drawn, wanted),
        compile_seconds=compiled.get(method.name),
        round_seconds=tuple(seconds[method.name]),
        images=drawn,
    )


def progress_bars(console: Any) -> Progress:
    """The bars the demo is shown with; none where nobody watches."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
