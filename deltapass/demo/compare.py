"""The demo: the embedded model under plain torch.compile and under ours, side by side.

Samples the same seeds with the plain model, with schedules of ours, and with the fewer plain steps
that take as long as the last of them, the honest rival. Times are of whole images, measured in
turns in one process; pictures and numbers go to a folder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltapass.demo.embedded import ASSETS, generators, load_embedded
from deltapass.demo.images import mean_psnr
from deltapass.demo.machine import compile_cache, faster_threads, start_compiler
from deltapass.demo.methods import (
    Method,
    cached_methods,
    plain_method,
    steps_at_equal_time,
    wanted,
)
from deltapass.demo.pixels import PixelPipeline
from deltapass.demo.sampling import Turns, compile_all
from deltapass.explanation import Report, explain_each
from deltapass.schedule.rules import Table


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What to run.

    `model` is what `load_embedded` takes. `options` go to the backend; `rounds` is how often every
    method is timed.
    """

    model: str = "garments"
    count: int = 20
    seed: int = 0
    steps: int = 20
    guidance: float = 2.0
    rounds: int = 3
    lowering: str = "inductor"
    options: Mapping[str, object]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One row of the table. `psnr` is in dB against the plain images of the same seeds.

    `table` says what each step did, of a model of `DemoResult.blocks` blocks; `remark` why this
    method is here, where its name does not say it.
    """

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
    table: Table = ()
    remark: str = ""
    images: torch.Tensor


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """All rows, the plain one first, and what they depend on.

    `report` is of the last schedule of ours. `compiler_seconds` is what the first compilation of
    anything cost in this process, and `compile_cache` says what Inductor's cache on disk held
    before it.
    """

    outcomes: tuple[Outcome, ...]
    report: Report
    blocks: int
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
    pipeline = load_embedded(settings.model)
    pipeline.set_progress_bar_config(disable=True)
    model = pipeline.transformer
    args, kwargs = example_call(pipeline, settings)
    backend = {"steps": settings.steps, "lowering": settings.lowering}
    asked = wanted(settings.options, ASSETS / settings.model, settings.steps)
    chosen = {name: {**each, **backend} for name, each in asked.items()}
    reports = explain_each(model, args, kwargs, tuple(chosen.values()))
    eager = settings.lowering == "eager"
    with torch.no_grad(), faster_threads(functools.partial(model, *args, **kwargs)) as threads:
        cache, started = compile_cache(), start_compiler(settings.lowering)
        compiled = model if eager else torch.compile(model, dynamic=False)
        plain = functools.partial(
            plain_method, compiled, macs_of_a_step=reports[-1].plain_macs * (1 / settings.steps)
        )
        methods = (plain(settings.steps), *cached_methods(model, chosen, reports))
        compile_seconds = compile_all(methods, (args, kwargs), progress)
        turns = Turns(pipeline, functools.partial(_draw, pipeline, settings), progress)
        methods = sample(turns, methods, plain, settings)
    return DemoResult(
        outcomes=tuple(_outcome(method, methods[0], turns, compile_seconds) for method in methods),
        report=reports[-1],
        blocks=number_of_blocks(model),
        settings=settings,
        threads=threads,
        compiler_seconds=started,
        compile_cache=cache,
    )


def number_of_blocks(model: torch.nn.Module) -> int:
    """Blocks of a transformer of diffusers."""
    return len(model.transformer_blocks)  # type: ignore[arg-type]


def example_call(
    pipeline: PixelPipeline, settings: DemoSettings
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as the pipeline gives them to the denoiser."""
    config = pipeline.transformer.config
    guided = settings.guidance > 1
    batch = settings.count * (2 if guided else 1)
    sample = torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size)
    told = pipeline.conditions(pipeline.examples(seeds(settings)), guided)
    return (sample,), {"timestep": torch.full((batch,), 999.0), **told, "return_dict": False}


def seeds(settings: DemoSettings) -> range:
    """Those of the images."""
    return range(settings.seed, settings.seed + settings.count)


def sample(
    turns: Turns,
    methods: tuple[Method, ...],
    plain: Callable[[int], Method],
    settings: DemoSettings,
) -> tuple[Method, ...]:
    """Time all methods, and the fewer plain steps that take as long as the last one did."""
    turns.warm_up(methods)
    fewer = steps_at_equal_time(settings.steps, turns.share(methods[-1], methods[0]))
    if fewer is not None:
        rival = dataclasses.replace(plain(fewer), remark=f"as long as: {methods[-1].name}")
        methods = (*methods, rival)
    turns.timed(methods, settings.rounds)
    return methods


def _draw(
    pipeline: PixelPipeline,
    settings: DemoSettings,
    steps: int,
    after_step: Callable[..., dict[str, Any]],
) -> torch.Tensor:
    sample: Any = pipeline  # its call is that of the model it samples
    images: torch.Tensor = sample(
        pipeline.examples(seeds(settings)),
        guidance_scale=settings.guidance,
        num_inference_steps=steps,
        generator=generators(settings.seed, settings.count),
        output_type="pt",
        callback_on_step_end=after_step,
    ).images
    return images


def _outcome(
    method: Method, plain: Method, turns: Turns, compile_seconds: Mapping[str, float]
) -> Outcome:
    drawn, median = turns.images[method.name], turns.median(method)
    return Outcome(
        name=method.name,
        steps=method.steps,
        seconds_per_image=median / len(drawn),
        speedup=turns.median(plain) / median,
        expected_speedup=plain.macs.full / method.macs.full if method.macs.full else 1.0,
        gmacs_paper=method.macs.paper / len(drawn) / 1e9,
        gmacs_full=method.macs.full / len(drawn) / 1e9,
        psnr=None if method is plain else mean_psnr(drawn, turns.images[plain.name]),
        compile_seconds=compile_seconds.get(method.name),
        round_seconds=tuple(turns.seconds[method.name]),
        table=method.table,
        remark=method.remark,
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
