"""`deltapass.tune`: the schedule of a pipeline, searched on what matters, its final samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Unpack

from rich.progress import Progress

from deltapass.schedule.made_for import Sampler
from deltapass.tuning.loops import open_loop
from deltapass.tuning.search.asked import Wanted, asked_for
from deltapass.tuning.search.tuned import Tuned


def tune(  # noqa: PLR0913, D417 - what a user may say of it; loops say some of it
    pipe_or_loop: Any,
    *,
    call: Mapping[str, Any] | Callable[[Sequence[int]], Mapping[str, Any]] | None = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    sampler: Sampler | None = None,
    ray: str | None = None,
    workers: int | None = None,
    progress: Progress | bool = True,
    **wanted: Unpack[Wanted],
) -> Tuned:
    """Search the schedule whose final samples are nearest to the plain ones at some cost.

    docs/tuning.md says how. No trial compiles anything. Ctrl-C ends it and gives what it has.

    Args:
        pipe_or_loop: A pipeline or a function that samples; `deltapass.tuning.loops.open_loop`
            says more, also of `call`, `steps`, `options` and `sampler`.
        ray: Address of a Ray cluster, or "local": trials and seeds are spread over its workers.
        workers: How many of them; by default one a GPU, or else one a processor core.
        progress: Show bars in a terminal; or one of rich's to show them in.
        wanted: As `Wanted` says: `budget`, `milliseconds` or `target`, and how to search.

    Raises:
        OptionError, ContradictoryOptionsError: If an argument has a value that cannot be used.
        LoopError: If nothing can be sampled so, or the loop's model is not one that caches.
        TuneError: If the storage holds another search, nothing can be cached, or there is no Ray.
        MissingLibraryError: If optuna, or Ray where it is asked for, is not installed.
    """
    asked = asked_for(**wanted)
    from deltapass.tuning.search.tuner import Tuner
    from deltapass.tuning.search.workers import RayWorkers

    how: dict[str, Any] = {"call": call, "steps": steps, "options": options, "sampler": sampler}
    with ExitStack() as after:
        others = None
        if ray is not None:  # before the model is compiled: a compiled one cannot be sent
            others = RayWorkers(ray, pipe_or_loop, how, asked.metric, workers)
            after.callback(others.close)
        bars = after.enter_context(_bars(progress))
        loop = after.enter_context(open_loop(pipe_or_loop, **how))
        return Tuner(loop, asked, bars, others).run()


@contextmanager
def _bars(progress: Progress | bool) -> Iterator[Progress]:
    """Bars in a terminal, or in the caller's own progress."""
    if isinstance(progress, Progress):
        yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, disable=not (progress and console.is_terminal)
    ) as bars:
        yield bars
