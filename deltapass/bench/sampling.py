"""Drawing images by any method, through one pipeline whose denoisers are exchanged for the time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, final

import torch
from torch import nn

from deltapass.bench.guidance import ending_guidance
from deltapass.bench.measuring.clocks import CallClock
from deltapass.bench.methods.method import Method
from deltapass.bench.quantised import quantised, shared_copy
from deltapass.bench.rivals.table import enabled
from deltapass.bench.solvers import scheduler_of
from deltapass.bench.subjects import Subject
from deltapass.errors import BenchError
from deltapass.pipelines.attach import attach, last_report
from deltapass.sessions.report import SessionReport
from deltapass.tuning.pipeline_loop import tensor_of

EAGER: Final = "eager"


@final
class Sampler:
    """Draws images of a subject by any method, each compiled once.

    Methods of ours that differ in their schedules alone share one compile: another schedule is
    another session.

    Args:
        subject: Whose images.
        lowering: Of methods that name none.
        solver: Scheduler class in place of the pipeline's own, of methods that name none.
    """

    def __init__(self, subject: Subject, lowering: str = EAGER, solver: str | None = None) -> None:
        self.subject, self.lowering, self.solver = subject, lowering, solver
        self.report: SessionReport | None = None  # of the last images, if the method is ours
        self._compiled: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._open = ExitStack()  # rivals stay enabled, each on modules of its own
        self._weighed: dict[str | None, Mapping[str, nn.Module]] = {None: subject.models}

    def group(self, method: Method) -> tuple[Any, ...]:
        """What methods have in common that share a compile."""
        lowering = method.lowering or self.lowering
        options = tuple(sorted((name, repr(value)) for name, value in method.options.items()))
        if method.rival is not None:
            return method.weights, lowering, method.name
        return method.weights, lowering, options if method.schedule is not None else None

    def plain_models(self, method: Method) -> Mapping[str, nn.Module]:
        """The denoisers that nothing was done to but for their weights."""
        if method.weights not in self._weighed:
            made = {name: quantised(model) for name, model in self.subject.models.items()}
            self._weighed[method.weights] = made
        return self._weighed[method.weights]

    def twin(self) -> Sampler:
        """One with the same compiled models and a pipeline of its own: both can be drawing."""
        pipeline = copy.copy(self.subject.pipeline)
        pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
        twin = copy.copy(self)
        twin.subject = dataclasses.replace(self.subject, pipeline=pipeline)
        return twin

    def close(self) -> None:
        """Forget what was compiled, and disable the rivals."""
        self._compiled.clear()
        self._open.close()

    @contextmanager
    def using(self, method: Method) -> Iterator[Any]:
        """The pipeline, set up for a method; afterwards it is as it was."""
        pipeline = self.subject.pipeline
        with ExitStack() as after:
            solver = method.solver or self.solver
            if solver is not None:
                after.callback(setattr, pipeline, "scheduler", pipeline.scheduler)
                pipeline.scheduler = scheduler_of(solver, pipeline.scheduler)
            for name, model in self._models(method).items():
                after.callback(setattr, pipeline, name, getattr(pipeline, name))
                setattr(pipeline, name, model)
            if method.schedule is not None:
                after.enter_context(attach(pipeline, schedule=method.schedule))
            yield pipeline

    @torch.no_grad()
    def draw(
        self, method: Method, seeds: Sequence[int], clock: CallClock | None = None
    ) -> torch.Tensor:
        """Images (N, C, H, W) in 0..1, float32, on the host; the work is done when they are there.

        Args:
            method: How.
            seeds: One an image.
            clock: Times the calls of the denoisers.

        Raises:
            BenchError: If a method that should cache did not, or the pipeline gives no images.
        """
        with self.using(method) as pipeline, ExitStack() as after:
            if clock is not None:
                models = [getattr(pipeline, name) for name in self.subject.models]
                after.enter_context(clock.watching(models))
            images = self.call(pipeline, method, seeds)
            self.report = last_report(pipeline) if method.schedule is not None else None
            if method.caches:
                _check_cached(self.report, method)
        return images

    def call(self, pipeline: Any, method: Method, seeds: Sequence[int]) -> torch.Tensor:
        """Images of a pipeline that is set up, in parts of as many as are drawn together."""
        return torch.cat([self._call(pipeline, method, some) for some in self._parts(seeds)])

    def _parts(self, seeds: Sequence[int]) -> Iterator[Sequence[int]]:
        batch = self.subject.batch
        return (seeds[first : first + batch] for first in range(0, len(seeds), batch))

    def _call(self, pipeline: Any, method: Method, seeds: Sequence[int]) -> torch.Tensor:
        ending = ending_guidance(pipeline, method.guided) if method.guided is not None else {}
        # Noise is drawn on the host, so that it is the same on every device.
        given = tensor_of(
            pipeline(
                **self.subject.call(seeds),
                **ending,
                num_inference_steps=method.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
            )
        )
        if not torch.is_tensor(given) or given.ndim != 4 or len(given) != len(seeds):
            found = tuple(given.shape) if torch.is_tensor(given) else type(given).__name__
            raise BenchError(
                f"{type(pipeline).__name__} gives {found} for {len(seeds)} images",
                "Give a pipeline with output_type 'pt' that makes one image a prompt",
            )
        return given.detach().to("cpu", torch.float32)

    def _models(self, method: Method) -> Mapping[str, Any]:
        """The denoisers of a method, compiled as it says."""
        group = self.group(method)
        if group not in self._compiled:
            plain = self.plain_models(method)
            if method.rival is None:
                compiled = _compiler(method, group[1])
                # Modules of its own, with the same tensors: what watches one is no part of another.
                own = {name: shared_copy(model) for name, model in plain.items()}
                self._compiled[group] = {name: compiled(model) for name, model in own.items()}
            else:
                self._compiled[group] = {
                    name: self._rival(method, name, model) for name, model in plain.items()
                }
        return self._compiled[group]

    def _rival(self, method: Method, name: str, model: nn.Module) -> Any:
        """A rival at work on modules of its own; the tensors are the model's."""

        def sample(denoiser: nn.Module) -> None:
            before = getattr(self.subject.pipeline, name)
            setattr(self.subject.pipeline, name, denoiser)
            try:
                self._call(self.subject.pipeline, method, (0,))
            finally:
                setattr(self.subject.pipeline, name, before)

        lowering = method.lowering or self.lowering
        settings = {n: v for n, v in method.settings.items() if n not in ("solver", "weights")}
        settings = {"compiled": lowering != EAGER, **settings}
        assert method.rival is not None  # noqa: S101 - whoever calls has looked
        used = enabled(
            method.rival, shared_copy(model), steps=method.steps, settings=settings, sample=sample
        )
        return self._open.enter_context(used)


def _compiler(method: Method, lowering: str) -> Callable[[nn.Module], Any]:
    if method.schedule is None:
        if lowering == EAGER:
            return lambda model: model
        return lambda model: torch.compile(model, dynamic=False)
    options = {"lowering": lowering, "strict": True, **method.options}
    return lambda model: torch.compile(model, backend="deltadit", dynamic=False, options=options)


def _check_cached(report: SessionReport | None, method: Method) -> None:
    """Images that were drawn plainly must not count for a method."""
    if report is None or not report.cached:
        why = "" if report is None else f": {report.summary}"
        raise BenchError(
            f"{method.name}: no step was cached{why}", "Give a schedule that fits these steps"
        )
