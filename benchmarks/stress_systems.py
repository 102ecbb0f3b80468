"""The systems of the stress benchmark, each used the way its documentation tells a server to.

Rivals are imported only where they are used: `pip install 'deltapass[bench]'`. They are held open
here for many requests at once, unlike in `deltapass/bench/rivals`, which runs one trajectory after
the other.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from stress_load import Inputs, Request, System, build_model

import deltapass
from deltapass.bench.rivals.cache_dit import library

# Three of five blocks, deep ones up to the middle of the trajectory and shallow ones after it.
SCHEDULE = {"cached_blocks": 3, "boundary": 0.5}
THRESHOLD = 0.5  # of the rivals: about every second step of this model is near enough to be cached


def compiled(lowering: str, **options: Any) -> Callable[..., Any]:
    """The model under backend="deltadit", as one graph, with nothing kept from earlier ones."""
    torch._dynamo.reset()
    chosen = {**SCHEDULE, "lowering": lowering, **options}
    return torch.compile(build_model(), backend="deltadit", fullgraph=True, options=chosen)


class Plain:
    """The control: the model itself, nothing cached."""

    def __init__(self, backend: str | None = None) -> None:
        self.model: Callable[..., Any] = build_model()
        if backend is not None:
            torch._dynamo.reset()
            self.model = torch.compile(self.model, backend=backend, fullgraph=True)

    def open(self, request: Request) -> None:
        return None

    def call(self, handle: None, step: int, branch: str, inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():  # for this call: the setting belongs to the thread
            return self.model(**inputs)[0]

    def close(self, handle: None, *, finished: bool) -> None:
        return None

    def reset(self) -> None:
        return None


class Implicit(Plain):
    """deltapass with nothing told: thread and timestep say which trajectory a call belongs to."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model


class Sessions:
    """deltapass with one session a request, which is dropped with it: nothing is cleaned up."""

    def __init__(self, lowering: str) -> None:
        self.model = compiled(lowering)

    def open(self, request: Request) -> deltapass.Session:
        return deltapass.session(steps=request.steps)

    def call(
        self, handle: deltapass.Session, step: int, branch: str, inputs: Inputs
    ) -> torch.Tensor:
        with torch.no_grad(), handle.at(step, branch=branch):
            return self.model(**inputs)[0]

    def close(self, handle: deltapass.Session, *, finished: bool) -> None:
        return None

    def reset(self) -> None:
        return None


class FirstBlock:
    """First Block Cache of diffusers as its pipelines use it, one context name a branch.

    A pipeline resets the cache at the end of a call that succeeds, and only then.
    """

    def __init__(self) -> None:
        from diffusers import FirstBlockCacheConfig

        self._config = FirstBlockCacheConfig(threshold=THRESHOLD)
        self._model = build_model()
        self._model.enable_cache(self._config)

    def open(self, request: Request) -> str:
        return ""

    def call(self, handle: str, step: int, branch: str, inputs: Inputs) -> torch.Tensor:
        with torch.no_grad(), self._model.cache_context(handle + branch):
            return self._model(**inputs)[0]

    def close(self, handle: str, *, finished: bool) -> None:
        if finished:
            self._model._reset_stateful_cache()

    def reset(self) -> None:
        self._model.disable_cache()
        self._model.enable_cache(self._config)


class FirstBlockNamed(FirstBlock):
    """The same with context names of its own for every request.

    A reset clears all requests, so it waits until none is open; until then states pile up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names = itertools.count()
        self._lock = threading.Lock()
        self._open = 0

    def open(self, request: Request) -> str:
        with self._lock:
            self._open += 1
            return f"request {next(self._names)} "

    def close(self, handle: str, *, finished: bool) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._model._reset_stateful_cache()


class CacheDit:
    """cache-dit's DBCache on a transformer without its pipeline.

    For every request the context is refreshed with its number of steps, as its documentation says.
    """

    def __init__(self) -> None:
        self._library = library()
        self._model = build_model()
        self._enable()

    def _enable(self) -> None:
        config = self._library.DBCacheConfig(
            Fn_compute_blocks=1,
            max_warmup_steps=2,
            residual_diff_threshold=THRESHOLD,
            enable_separate_cfg=False,
            num_inference_steps=1,
        )
        self._library.enable_cache(self._model, cache_config=config)

    def open(self, request: Request) -> None:
        config = self._library.DBCacheConfig().reset(
            num_inference_steps=request.steps, enable_separate_cfg=request.guidance is not None
        )
        self._library.refresh_context(self._model, cache_config=config)

    def call(self, handle: None, step: int, branch: str, inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():
            return self._model(**inputs)[0]

    def close(self, handle: None, *, finished: bool) -> None:
        return None

    def reset(self) -> None:
        self._library.disable_cache(self._model)
        self._enable()


@dataclass(frozen=True)
class Entry:
    """A row of the table: what it is called, how to make one, and whether it is somebody else's."""

    label: str
    make: Callable[[], System]
    rival: bool = False


SYSTEMS: dict[str, Entry] = {
    "plain": Entry("not cached, eager", Plain),
    "plain-inductor": Entry("not cached, torch.compile", lambda: Plain("inductor")),
    "sessions": Entry("deltapass, sessions, eager", lambda: Sessions("eager")),
    "sessions-inductor": Entry("deltapass, sessions, inductor", lambda: Sessions("inductor")),
    "implicit": Entry("deltapass, no sessions, eager", lambda: Implicit(compiled("eager"))),
    "first-block": Entry("diffusers FBC, as pipelines do", FirstBlock, rival=True),
    "first-block-named": Entry("diffusers FBC, own names", FirstBlockNamed, rival=True),
    "cache-dit": Entry("cache-dit DBCache", CacheDit, rival=True),
}
