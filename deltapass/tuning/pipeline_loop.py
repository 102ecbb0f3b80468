"""Trajectories of a diffusers pipeline: compiled, attached, called for some seeds, put back."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, final

import numpy
import torch

from deltapass.errors import LoopError
from deltapass.options import DEFAULT_STEPS
from deltapass.pipelines.attach import attach, attachment_of, denoisers
from deltapass.pipelines.compiled_by import OURS, backend_of, clean, compiled_with_ours
from deltapass.pipelines.sampler import GUIDANCE, sampler_of_call
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.made_for import Sampler
from deltapass.selector.observer import Observer
from deltapass.sessions.session import Session
from deltapass.tuning.loops import (
    PLAIN,
    Sampled,
    checked_samples,
    sampled,
)

GivenCall = Mapping[str, Any] | Callable[[Sequence[int]], Mapping[str, Any]]
STEPS: Final = "num_inference_steps"
COPIES: Final = ("num_images_per_prompt", "num_videos_per_prompt")
DEALT: Final = ("prompt", "negative_prompt", "class_labels")  # lists of these are dealt to seeds
POOLED: Final = ("pooled_", "negative_pooled_")
RESULTS: Final = ("images", "frames")  # of the outputs of pipelines


@final
class PipelineLoop:
    """An attached pipeline whose denoisers are compiled."""

    def __init__(self, pipe: Any, call: GivenCall, steps: int | None) -> None:
        self._pipe, self._call = pipe, call
        self._takes = inspect.signature(type(pipe).__call__).parameters
        asked = call.get(STEPS) if isinstance(call, Mapping) else None
        if steps is not None and asked not in (None, steps):
            raise LoopError(f"steps is {steps} and {STEPS} is {asked}", "Give one of the two")
        self.steps = steps or asked or DEFAULT_STEPS
        given = call((0,)) if callable(call) else call
        self._guidance = given.get(GUIDANCE)

    @property
    def sampler(self) -> Sampler:
        """The scheduler the pipeline has now, and its guidance."""
        return sampler_of_call(self._pipe, self._guidance)

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
            LoopError: If the pipeline gives no tensor of samples, or not one a seed.
        """
        count = self.steps if steps is None else steps
        started = time.perf_counter()
        with torch.no_grad(), Session(schedule=schedule) as session:
            session.observer = observer
            samples = [
                checked_samples(tensor_of(self._pipe(**arguments)), len(some))
                for some, arguments in self._calls(tuple(seeds), count)
            ]
        return sampled(torch.cat(samples), session, started)

    def _calls(
        self, seeds: tuple[int, ...], steps: int
    ) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        """Seeds, and the arguments of a call that samples them: all at once where it can."""
        given = dict(self._call(seeds) if callable(self._call) else dealt(self._call, seeds))
        copies = next((name for name in COPIES if name in self._takes), None)
        by_seed = callable(self._call) or any(isinstance(given.get(n), list) for n in DEALT)
        # Pipelines that take pooled embeddings do not copy those they are given.
        apart = any(name.startswith(POOLED) for name in given)
        if not by_seed and not apart and copies is not None and copies not in given:
            given[copies] = len(seeds)
            by_seed = True
        for some in (seeds,) if by_seed or len(seeds) == 1 else ((seed,) for seed in seeds):
            made = [torch.Generator().manual_seed(seed) for seed in some]
            yield some, self._known({"output_type": "latent", "generator": made}, given, steps)

    def _known(self, own: dict[str, Any], given: dict[str, Any], steps: int) -> dict[str, Any]:
        """What the pipeline takes of our own arguments, then those of the user."""
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._takes.values())
        ours = {**own, STEPS: steps}
        return {n: v for n, v in ours.items() if n in self._takes or takes_any} | {
            name: value for name, value in given.items() if name != STEPS
        }


@contextmanager
def opened(
    pipe: Any, call: GivenCall, steps: int | None, options: Mapping[str, Any]
) -> Iterator[PipelineLoop]:
    """A pipeline as a loop; afterwards it is as it was.

    Raises:
        LoopError: If it cannot be called so.
        AttachError: If it cannot be attached.
    """
    loop = PipelineLoop(pipe, call, steps)
    with ExitStack() as after:
        for name, model in denoisers(pipe).items():
            if backend_of(model) != OURS:
                # The plain model, whatever else it was compiled with.
                plain = getattr(model, "_orig_mod", model)
                chosen = {"lowering": "eager", **options}
                made, left = compiled_with_ours(plain, dynamic=False, options=chosen)
                after.callback(clean, plain, left)
                after.callback(setattr, pipe, name, model)
                setattr(pipe, name, made)
        if attachment_of(pipe) is None:
            after.enter_context(attach(pipe))
        if hasattr(pipe, "set_progress_bar_config"):
            before = getattr(pipe, "_progress_bar_config", {})
            pipe.set_progress_bar_config(disable=True)
            after.callback(functools.partial(pipe.set_progress_bar_config, **before))
        yield loop


def dealt(call: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """A call with its lists of prompts or labels dealt out: seed s takes entry s modulo length."""

    def share(name: str, value: Any) -> Any:
        listed = name in DEALT and isinstance(value, list | tuple) and value
        return [value[seed % len(value)] for seed in seeds] if listed else value

    return {name: share(name, value) for name, value in call.items()}


def tensor_of(result: Any) -> Any:
    """The samples in what a pipeline returns; whatever else it is where there are none."""
    held = next((getattr(result, name) for name in RESULTS if hasattr(result, name)), result)
    held = held[0] if isinstance(held, tuple) and held else held
    if isinstance(held, numpy.ndarray):
        return torch.from_numpy(held)
    if isinstance(held, list) and held and all(map(torch.is_tensor, held)):
        return torch.stack(held)
    return held
