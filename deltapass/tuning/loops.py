"""Trajectories to fit and to search on: a pipeline of diffusers, or the user's own loop.

Both become a `Loop`: seeds and a schedule in, final samples out, with one compiled model for all
schedules. A session's schedule replaces the model's own, so another one costs no compile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

import torch

from deltapass.errors import LoopError
from deltapass.options import DEFAULT_STEPS
from deltapass.pipelines.attach import denoisers
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.made_for import UNKNOWN, Sampler
from deltapass.schedule.presets import never
from deltapass.selector.observer import Observer
from deltapass.sessions.report import SessionReport
from deltapass.sessions.session import Session

PLAIN: Final = never()  # a session's schedule by which every step refreshes

OwnLoop = Callable[[Sequence[int], Session], torch.Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What one batch of trajectories gave.

    Attributes:
        samples: The final samples (B, ...), one a seed, on the host, in float32.
        report: What was planned and run, call by call, with MACs.
        steps: Steps of each trajectory, as the scheduler counts them.
        seconds: Wall time of the whole loop.
    """

    samples: torch.Tensor
    report: SessionReport
    steps: int
    seconds: float


class Loop(Protocol):
    """Trajectories of one compiled model.

    Equal numbers of seeds find the same graph: only the first run compiles anything.
    """

    @property
    def steps(self) -> int:
        """Steps asked of the sampler; a scheduler may count more."""

    @property
    def sampler(self) -> Sampler:
        """What samples, as far as it is known."""

    def run(
        self,
        seeds: Sequence[int],
        schedule: AnySchedule = PLAIN,
        *,
        steps: int | None = None,
        observer: Observer | None = None,
    ) -> Sampled:
        """One batch of trajectories, one a seed; the same seed starts from the same noise.

        Args:
            seeds: One a trajectory.
            schedule: What is cached when. By default nothing is: the plain model.
            steps: Steps asked of the sampler, if not `self.steps`.
            observer: Looks on, for a fit.
        """


@final
class OwnLoopRunner:
    """A function of the user's, `loop(seeds, session)`, that calls a model they compiled."""

    def __init__(self, function: OwnLoop, steps: int, sampler: Sampler) -> None:
        self.steps, self.sampler = steps, sampler
        self._function = function

    def run(
        self,
        seeds: Sequence[int],
        schedule: AnySchedule = PLAIN,
        *,
        steps: int | None = None,
        observer: Observer | None = None,
    ) -> Sampled:
        """As `Loop.run`.

        Raises:
            LoopError: If it gives anything but one sample a seed.
        """
        count = self.steps if steps is None else steps
        started = time.perf_counter()
        with torch.no_grad(), Session(count, schedule=schedule) as session:
            session.observer = observer
            given = self._function(seeds, session)
            samples = checked_samples(given, len(seeds))
        return sampled(samples, session, started)


def sampled(samples: torch.Tensor, session: Session, started: float) -> Sampled:
    """What a session that has ended leaves of its trajectories."""
    # On the host now, so that the time is that of the work and not of its launch.
    kept = samples.detach().to("cpu", torch.float32)
    seconds = time.perf_counter() - started
    return Sampled(samples=kept, report=session.report(), steps=session.steps or 0, seconds=seconds)


def checked_samples(given: Any, count: int) -> torch.Tensor:
    """One sample a seed, as a tensor.

    Raises:
        LoopError: If it is anything else.
    """
    if not torch.is_tensor(given):
        raise LoopError(
            f"the loop gave a {type(given).__name__}",
            "It must give the final samples as one tensor",
        )
    if given.ndim < 1 or len(given) != count:
        raise LoopError(
            f"the loop gave samples of shape {tuple(given.shape)} for {count} seeds",
            "Its first dimension must be that of the seeds",
        )
    return given


@contextmanager
def open_loop(
    pipe_or_loop: Any,
    *,
    call: Mapping[str, Any] | Callable[[Sequence[int]], Mapping[str, Any]] | None = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    sampler: Sampler | None = None,
) -> Iterator[Loop]:
    """Trajectories of a pipeline or of a loop, for as long as the context lasts.

    Args:
        pipe_or_loop: A pipeline of diffusers. Its denoiser is compiled unless it is already, and
            put back afterwards. Or a function `loop(seeds, session)` that samples one trajectory
            a seed with a model compiled by backend "deltadit", `session.steps` steps long, tells
            `session.step(i)` before each step, and gives the final samples (B, ...).
        call: How to call the pipeline: keyword arguments, or a function of the seeds that gives
            them. Lists of prompts or of class labels are dealt out: seed s takes entry s modulo
            their length.
        steps: Steps of a trajectory. A pipeline is asked for 20 unless `call` says otherwise.
        options: Of the backend, where the denoiser is compiled here; "lowering" is "eager" unless
            given, which compiles nothing.
        sampler: What a function's scheduler is, which only the user knows.

    Raises:
        LoopError: If it is neither, or cannot be called so.
        AttachError: If a pipeline cannot be attached.
    """
    if denoisers(pipe_or_loop) and hasattr(pipe_or_loop, "scheduler"):
        from deltapass.tuning.pipeline_loop import opened

        with opened(pipe_or_loop, call or {}, steps, options or {}) as loop:
            yield loop
        return
    if not callable(pipe_or_loop) or isinstance(pipe_or_loop, torch.nn.Module | type):
        raise LoopError(
            f"there are no trajectories in {type(pipe_or_loop).__name__}",
            "Give a pipeline with a `transformer` and a `scheduler`, or a function "
            "loop(seeds, session) that samples one trajectory a seed",
        )
    if call or options:
        named = "call" if call else "options"
        raise LoopError(f"{named} was given with a function", f"Say in it what {named} would")
    yield OwnLoopRunner(pipe_or_loop, steps or DEFAULT_STEPS, sampler or UNKNOWN)
