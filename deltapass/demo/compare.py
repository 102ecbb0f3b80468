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

from deltapass.demo.embedded import ClassConditionalPipeline, load_embedded
from deltapass.demo.machine import compile_cache, faster_threads, seconds_of, start_compiler
from deltapass.explanation import Report, explain
from deltapass.libraries import needs
from deltapass.sessions.session import session

with needs("torchmetrics", "demo"):
    from torchmetrics.functional.image import peak_signal_noise_ratio

ORDERS: Final = (0, 1)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to run. `options` go to the backend; `rounds` is how often every method is timed."""

    count: int = 20
    seed: int = 0
    steps: int = 20
    guidance: float = 2.0
    rounds: int = 3
    lowering: str = "inductor"
    options: Mapping[str, object]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to sample: a denoiser, its steps, and what it should cost (1.0: the plain run)."""

    name: str
    denoiser: Any
    steps: int
    cost: float
    macs_paper: float
    macs_full: float


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
    settings: Settings
    threads: int
    compiler_seconds: float
    compile_cache: str


def run_demo(settings: Settings, progress: Progress) -> DemoResult:
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
    outcomes = tuple(
        _outcome(method, images, seconds, compiled, settings.count) for method in methods
    )
    return DemoResult(
        outcomes=outcomes,
        report=report,
        settings=settings,
        threads=threads,
        compiler_seconds=started,
        compile_cache=cache,
    )


def example_call(
    pipeline: ClassConditionalPipeline, settings: Settings
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as the pipeline gives them to the denoiser."""
    config = pipeline.transformer.config
    batch = settings.count * (2 if settings.guidance > 1 else 1)
    sample = torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size)
    labels = torch.zeros(batch, dtype=torch.int64)
    kwargs = {"timestep": torch.full((batch,), 999.0), "class_labels": labels, "return_dict": False}
    return (sample,), kwargs


def make_methods(
    model: torch.nn.Module, settings: Settings, report: Report, backend: Mapping[str, Any]
) -> tuple[Method, ...]:
    """Plain, ours at order 0 and 1, and plain with the steps that cost what ours does."""
    plain = model if settings.lowering == "eager" else torch.compile(model, dynamic=False)
    share = 1 / report.expected_speedup
    fewer = max(1, math.floor(settings.steps * share + 0.5))  # half a step goes to the rival

    def method(name: str, denoiser: Any, steps: int, cost: float) -> Method:
        paper = report.plain_macs.paper * steps / settings.steps
        full = report.plain_macs.full * steps / settings.steps
        if denoiser is not plain:
            paper, full = report.trajectory_macs.paper, report.trajectory_macs.full
        return Method(
            name=name, denoiser=denoiser, steps=steps, cost=cost, macs_paper=paper, macs_full=full
        )

    ours = [
        method(
            f"deltadit, order {order}",
            torch.compile(
                model, backend="deltadit", dynamic=False, options={**backend, "order": order}
            ),
            settings.steps,
            share,
        )
        for order in ORDERS
    ]
    whole = method(f"plain, {settings.steps} steps", plain, settings.steps, 1.0)
    if fewer == settings.steps:  # nothing is cached: the rival would be the plain run again
        return (whole, *ours)
    return (whole, *ours, method(f"plain, {fewer} steps", plain, fewer, fewer / settings.steps))


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
    settings: Settings,
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
    settings: Settings,
    advance: Callable[[], None],
) -> tuple[torch.Tensor, float]:
    classes = pipeline.transformer.config.num_embeds_ada_norm
    labels = [index % classes for index in range(settings.count)]
    first, count = settings.seed, settings.count
    seeds = [torch.Generator().manual_seed(first + index) for index in range(count)]

    def after_step(*_: Any) -> dict[str, Any]:
        advance()
        return {}

    started = time.perf_counter()
    images = pipeline(
        labels,
        guidance_scale=settings.guidance,
        num_inference_steps=method.steps,
        generator=seeds,
        output_type="pt",
        callback_on_step_end=after_step,
    ).images
    return images, time.perf_counter() - started


def _outcome(
    method: Method,
    images: Mapping[str, torch.Tensor],
    seconds: Mapping[str, list[float]],
    compiled: Mapping[str, float],
    count: int,
) -> Outcome:
    plain = next(iter(seconds))
    median = statistics.median(seconds[method.name])
    return Outcome(
        name=method.name,
        steps=method.steps,
        seconds_per_image=median / count,
        speedup=statistics.median(seconds[plain]) / median,
        expected_speedup=1 / method.cost,
        gmacs_paper=method.macs_paper / count / 1e9,
        gmacs_full=method.macs_full / count / 1e9,
        psnr=None if method.name == plain else mean_psnr(images[method.name], images[plain]),
        compile_seconds=compiled.get(method.name),
        round_seconds=tuple(seconds[method.name]),
        images=images[method.name],
    )


def mean_psnr(images: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; infinite for equal images.

    Shapes:
        images, wanted: (B, C, H, W) in 0..1.
    """
    if torch.equal(images, wanted):
        return float("inf")
    value = peak_signal_noise_ratio(
        images, wanted, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3)
    )
    return float(value)


def progress_bars(console: Any) -> Progress:
    """The bars the demo is shown with."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
