"""Compiling the demo's methods, and sampling with all of them in turns."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from rich.progress import Progress, TaskID

from deltapass.demo.machine import seconds_of
from deltapass.demo.methods import Method
from deltapass.sessions.session import session

Draw = Callable[[int, Callable[..., dict[str, Any]]], torch.Tensor]


@torch.no_grad()
def compile_all(
    methods: Sequence[Method], call: tuple[tuple[Any, ...], dict[str, Any]], progress: Progress
) -> dict[str, float]:
    """Seconds of the first call less a second one, for every distinct denoiser."""
    args, kwargs = call
    seconds: dict[str, float] = {}
    task = progress.add_task("compiling", total=len(methods))
    for method in methods:
        progress.update(task, description=f"compiling {method.name}")
        # In a session of its own: the model must not take this for the start of a trajectory.
        with session(steps=method.steps) as compiling:
            compiling.step(0)
            run = functools.partial(method.denoiser, *args, **kwargs)
            first, second = seconds_of(run), seconds_of(run)
        seconds[method.name] = max(0.0, first - second)
        progress.advance(task)
    progress.update(task, description="compiled")
    return seconds


@final
@dataclass(slots=True)
class Turns:
    """Samples methods in rounds; holds the images of each and its seconds in every timed round.

    `draw` gives the images of one method, by its steps and what is called after each.
    """

    pipeline: Any
    draw: Draw
    progress: Progress
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def warm_up(self, methods: Sequence[Method]) -> None:
        """A round that nobody times."""
        task = self._task("warming up", methods, 1)
        for method in methods:
            self._sample(method, task, "warming up")

    def share(self, method: Method, plain: Method) -> float:
        """Time of a warm method over the plain one's, by one run of each."""
        task = self._task("trying", (method, plain), 1)
        ours, theirs = (self._sample(each, task, "trying") for each in (method, plain))
        return ours / theirs

    def timed(self, methods: Sequence[Method], rounds: int) -> None:
        """Every method once a round, in another order each time."""
        task = self._task("sampling", methods, rounds)
        for turn in range(rounds):
            # So that no method always follows the same one.
            for method in (*methods[turn % len(methods) :], *methods[: turn % len(methods)]):
                taken = self._sample(method, task, "sampling")
                self.seconds.setdefault(method.name, []).append(taken)
        self.progress.update(task, description="sampled")

    def median(self, method: Method) -> float:
        """Seconds of a batch."""
        return statistics.median(self.seconds[method.name])

    def _task(self, what: str, methods: Sequence[Method], rounds: int) -> TaskID:
        return self.progress.add_task(what, total=rounds * sum(each.steps for each in methods))

    def _sample(self, method: Method, task: TaskID, what: str) -> float:
        def after_step(*_: Any) -> dict[str, Any]:
            self.progress.advance(task)
            return {}

        self.progress.update(task, description=f"{what} {method.name}")
        self.pipeline.transformer = method.denoiser
        started = time.perf_counter()
        self.images[method.name] = self.draw(method.steps, after_step)
        return time.perf_counter() - started
