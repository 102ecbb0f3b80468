"""Following one call of a pipeline: its scheduler tells the step, its cache contexts the branch.

Everything is read on the host: the length of `scheduler.timesteps`, and which of its entries
`scheduler.step` was given, by the place of that entry in memory. Nothing waits for a device.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import MappingProxyType, MethodType
from typing import Any, Final, final

import torch
from torch import nn

from deltapass.errors import AttachError
from deltapass.pipelines.step_times import Clock
from deltapass.sessions import context
from deltapass.sessions.session import Session

_RUN: Final[ContextVar[Run | None]] = ContextVar("deltapass_run", default=None)


@final
class Run:
    """One call of an attached pipeline: drives a session by what the scheduler does.

    Attributes:
        seconds: How long each step took since the scheduler set its timesteps, if it is timed.
    """

    def __init__(self, session: Session, scheduler: Any, clock: Clock | None = None) -> None:
        self.session, self.scheduler = session, scheduler
        self.seconds: dict[int, float] = {}
        self._clock, self._since = clock, 0.0
        self._index = 0
        self._stepped = False

    def open(self) -> None:
        """The pipeline was called, and has not set its timesteps yet."""
        known = self.scheduler.timesteps  # some have none before they are set
        steps = 1 if known is None else max(1, len(known))
        self._start(self.session.steps if self.session.fixed else steps, 0)

    def begin(self, start: int = 0) -> None:
        """The scheduler has set its timesteps: a new trajectory, from step `start` on."""
        self._start(len(self.scheduler.timesteps), start)

    def _start(self, steps: int | None, start: int) -> None:
        self.session.follow(steps)
        self._index, self._stepped = start, False
        if self._clock is not None:
            self.seconds, self._since = {}, self._clock()
        self.session.step(start)

    @property
    def stepped_once(self) -> bool:
        """Whether the scheduler has taken a step since it set its timesteps."""
        return self._stepped

    def stepped(self, arguments: tuple[Any, ...]) -> None:
        """The scheduler has taken a step; the next calls belong to the one after it."""
        timesteps = self.scheduler.timesteps
        found = (_entry_of(timesteps, given) for given in arguments)
        done = next((at for at in found if at is not None), self._index)
        self._index, self._stepped = done + 1, True
        if self._clock is not None:
            before, self._since = self._since, self._clock()
            self.seconds[done] = self._since - before
        if self._index < (self.session.steps or 0):
            self.session.step(self._index)

    def branch(self, name: str, step_index: int | None) -> AbstractContextManager[Session]:
        """The calls inside belong to a named branch of the present step.

        `step_index` counts when the pipeline says it but never steps its scheduler.
        """
        told = self._index if self._stepped or step_index is None else step_index
        last = (self.session.steps or 1) - 1
        return self.session.at(min(max(told, self._index), last), branch=name, again=True)


@contextmanager
def following(session: Session, scheduler: Any, clock: Clock | None = None) -> Iterator[Run]:
    """Let a session follow a scheduler, for the calls inside; with a clock, its steps are timed.

    Raises:
        AttachError: If another run follows the same scheduler object.
    """
    run = Run(session, scheduler, clock)
    token = _RUN.set(run)
    try:
        with watched_scheduler(scheduler):
            yield run
    finally:
        _RUN.reset(token)


@contextmanager
def outside() -> Iterator[None]:
    """Leave the run, and every session, for the calls inside."""
    token, stay = _RUN.set(None), context.enter(None)
    try:
        yield
    finally:
        context.leave(stay)
        _RUN.reset(token)


def current_run() -> Run | None:
    """The run of this thread or task."""
    return _RUN.get()


# ---- the scheduler ----------------------------------------------------------------------------


@contextmanager
def watched_scheduler(scheduler: Any) -> Iterator[None]:
    """Tell the run what a scheduler does.

    Three of its methods, and what copies and pickles of it hold, are covered by attributes of its
    own for as long. Its class stays, so `type` says what it always said, and copies made meanwhile
    are plain ones.

    Raises:
        AttachError: If another run follows the same scheduler object.
    """
    ours = _StandIns(scheduler)
    own = ours.own
    if own.setdefault("__getstate__", ours) is not ours:  # in one go, for threads
        raise AttachError(
            "another call of an attached pipeline is using this scheduler",
            "Give each thread a pipeline and a scheduler of its own: other = copy.copy(pipe); "
            "other.scheduler = copy.deepcopy(pipe.scheduler); deltapass.attach(other)",
        )
    try:
        own.update(ours.methods)
        yield
    finally:
        ours.remove()


@final
class _StandIns:
    """What covers a scheduler's methods; called, it is the scheduler's `__getstate__`."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.own = scheduler, vars(scheduler)
        covered = [name for name in TELLING if hasattr(scheduler, name)]
        self.before = {name: self.own[name] for name in covered if name in self.own}
        self.methods = {name: _told(scheduler, name, TELLING[name]) for name in covered}

    def __call__(self) -> Any:
        """The state of the scheduler alone, for a copy or a pickle of it."""
        kind: Any = type(self.scheduler)
        state = kind.__getstate__(self.scheduler)
        if isinstance(state, tuple):  # with slots
            return (self._plain(state[0]), *state[1:])
        return self._plain(state)

    def _plain(self, state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        ours = (*self.methods.values(), self)
        kept = {name: value for name, value in state.items() if not _among(value, ours)}
        covered = (name for name in self.before if _among(state.get(name), ours))
        return kept | {name: self.before[name] for name in covered}

    def remove(self) -> None:
        """Uncover the methods, but for those that somebody has covered again."""
        for name, ours in self.methods.items():
            if self.own.get(name) is ours:
                del self.own[name]
                self.own.update({name: self.before[name]} if name in self.before else {})
        del self.own["__getstate__"]


def _among(value: object, some: tuple[object, ...]) -> bool:
    return any(value is one for one in some)


def _begun(run: Run, begin_index: int = 0) -> None:
    run.begin(begin_index)


# Method of a scheduler -> what a run is told after it, with the same arguments.
TELLING: Final[Mapping[str, Callable[..., None]]] = MappingProxyType(
    {
        "set_timesteps": lambda run, *_, **__: run.begin(),
        "set_begin_index": _begun,
        "step": lambda run, *args, timestep=None, **_: run.stepped((timestep, *args)),
    }
)


def _told(scheduler: Any, name: str, tell: Callable[..., None]) -> Callable[..., Any]:
    """A method, or an attribute that somebody put over it, which tells the run afterwards."""
    original = getattr(scheduler, name)
    method = isinstance(original, MethodType) and original.__self__ is scheduler
    function = original.__func__ if method else original

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        run = _RUN.get()
        given = args[1:] if method else args
        if run is not None and run.scheduler is (args[0] if method else scheduler):
            tell(run, *given, **kwargs)
        return result

    return MethodType(told, scheduler) if method else told


def _entry_of(timesteps: torch.Tensor, given: Any) -> int | None:
    """Which entry of `timesteps` a tensor is a view of; None if it is none."""
    if not torch.is_tensor(given) or given.numel() != 1 or given.dtype != timesteps.dtype:
        return None
    if given.device != timesteps.device:
        return None
    # Both are alive: what lies where an entry lies is that entry. Without memory, both lie at 0.
    try:
        place, first = given.data_ptr(), timesteps.data_ptr()
    except RuntimeError:  # a wrapper of something else
        return None
    stride = max(1, timesteps.stride(0)) * timesteps.element_size()
    at, rest = divmod(place - first, stride)
    return at if place and rest == 0 and 0 <= at < len(timesteps) else None


# ---- the denoisers ----------------------------------------------------------------------------


@final
class WatchedContext:
    """Stands in for a denoiser's `cache_context`: tells the run the branch, then does the same.

    `users` counts the attached pipelines that share the denoiser.
    """

    def __init__(self, original: Callable[..., AbstractContextManager[Any]]) -> None:
        self.original = original
        self.users = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, the denoiser's own: a pickle of it is one that nobody watches."""
        return getattr, (self.original.__self__, "cache_context")  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The own one of the copied denoiser."""
        return copy.deepcopy(self.original, memo)

    def __call__(self, name: str, **known: Any) -> AbstractContextManager[Any]:
        """As the denoiser's own `cache_context`."""
        return _Branch(self.original(name, **known), name, known.get("step_index"))


@final
class _Branch:
    """A cache context inside which calls belong to a branch of the run, if there is one then.

    No generator: see `Visit`.
    """

    __slots__ = ("_inner", "_name", "_outer", "_step_index")

    def __init__(
        self, outer: AbstractContextManager[Any], name: str, step_index: int | None
    ) -> None:
        self._outer, self._name, self._step_index = outer, name, step_index
        self._inner: AbstractContextManager[Any] | None = None

    def __enter__(self) -> Any:
        given = self._outer.__enter__()
        run = current_run()
        if run is not None:
            try:
                self._inner = run.branch(self._name, self._step_index)
                self._inner.__enter__()
            except BaseException:
                self._outer.__exit__(*sys.exc_info())
                raise
        return given

    def __exit__(self, *error: Any) -> bool | None:
        try:
            if self._inner is not None:
                self._inner.__exit__(*error)
        finally:
            handled = self._outer.__exit__(*error)
        return handled


def watch_denoiser(module: nn.Module) -> None:
    """Put a `WatchedContext` on this module object; nothing if it has no cache contexts."""
    original = getattr(module, "cache_context", None)
    if original is None:
        return
    if not isinstance(original, WatchedContext):
        original = WatchedContext(original)
        module.cache_context = original  # type: ignore[assignment]
    original.users += 1


def unwatch_denoiser(module: nn.Module) -> None:
    """Take it away again, once no attached pipeline uses the module."""
    watched = module.__dict__.get("cache_context")
    if isinstance(watched, WatchedContext):
        watched.users -= 1
        if not watched.users:
            del module.__dict__["cache_context"]
