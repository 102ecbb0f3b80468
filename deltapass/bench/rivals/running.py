"""A denoiser with a rival enabled: it stands in for the model, in a pipeline or a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

CONTEXT: Final = "both halves"  # of a caller that names none


@final
@dataclass(slots=True)
class Clock:
    """The timestep of the call that runs, on the scale of the rival's settings."""

    scale: float = 1.0
    timestep: torch.Tensor | None = None

    def see(self, timestep: Any) -> None:
        """Take the first of a batch: all are the same in sampling."""
        if isinstance(timestep, torch.Tensor):
            first = timestep.detach().flatten()[0]
            self.timestep = first if self.scale == 1.0 else first * self.scale

    def now(self) -> torch.Tensor:
        """What rivals ask a pipeline for."""
        return torch.zeros(()) if self.timestep is None else self.timestep


class Running(nn.Module):
    """Called as the model is; everything else that is asked of it, the model answers.

    Pipelines of diffusers tell it that a trajectory is over, and which branch a call belongs to,
    as they tell any denoiser with a cache. A loop of one's own calls `begin` before each.
    """

    def __init__(
        self, model: nn.Module, call: Callable[..., Any], clock: Clock, reset: Callable[[], None]
    ) -> None:
        super().__init__()
        self.model = model
        self._call, self._clock, self._reset = (call,), clock, reset  # a tuple: no module of ours
        self._within = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def begin(self) -> None:
        """A new trajectory: nothing of an earlier one may be read."""
        self._reset()

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Called by pipelines of diffusers when a trajectory is over."""
        self.begin()

    @contextmanager
    def cache_context(self, name: str, **more: Any) -> Iterator[None]:
        """Names the branch of the calls within."""
        self._within = True
        try:
            with self._context(name, **more):
                yield
        finally:
            self._within = False

    def _context(self, name: str, **more: Any) -> AbstractContextManager[Any]:
        named = getattr(self.model, "cache_context", None)
        return nullcontext() if named is None else named(name, **more)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's, with the rival in it."""
        self._clock.see(kwargs.get("timestep"))
        with nullcontext() if self._within else self._context(CONTEXT):
            return self._call[0](*args, **kwargs)
