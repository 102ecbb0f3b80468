"""One line for a pipeline: `deltapass.attach(pipe)`.

While attached, every call of the pipeline is a session of its own: the step and the number of steps
come from the pipeline's scheduler, the branch from its cache contexts. Only this pipeline object,
its denoisers and (during a call) its scheduler are touched, never their classes.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final
from weakref import WeakSet

from torch import nn

from deltapass.errors import AttachError, RefusalWarning
from deltapass.pipelines.follow import (
    current_run,
    following,
    outside,
    subclass,
    unwatch_denoiser,
    watch_denoiser,
)
from deltapass.schedule.rules import AnySchedule
from deltapass.selector.trackers import known_tracker
from deltapass.sessions.report import SessionReport
from deltapass.sessions.session import Session, active_session

DENOISER = "transformer"  # what pipelines call their denoisers; a second one ends in _2

NEVER_CALLED = (
    "nothing cached: no model that deltapass could cache was called in this pipeline. "
    "Compile the denoiser: pipe.transformer = torch.compile(pipe.transformer, "
    "backend='deltadit'); if you did, an earlier warning says why it runs in full."
)
NEVER_STEPPED = (
    "nothing cached: this pipeline never called the step() of its scheduler, from which the step "
    "is known. Detach it: the timestep input, or a session of your own, tells the step then."
)


@final
class Attachment:
    """What ties a pipeline to its sessions. Also a context manager that detaches on leaving.

    Attributes:
        schedule: Replaces the compiled models' own schedule in every call.
        last: Report of the last call that ended, also if it failed; None before the first.
    """

    def __init__(self, pipe: Any, schedule: AnySchedule | None) -> None:
        self.schedule = schedule
        self.last: SessionReport | None = None
        self._pipe, self._kind = pipe, type(pipe)
        self._watched: WeakSet[nn.Module] = WeakSet()  # what was exchanged must be let go
        self._lock = threading.Lock()
        self._warned = False

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        detach(self._pipe)

    def install(self) -> None:
        """Exchange the pipeline's class for a subclass whose calls are sessions."""
        kind, attachment = self._kind, self

        @functools.wraps(kind.__call__)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with attachment.running(self):
                return kind.__call__(self, *args, **{n: _apart(n, v) for n, v in kwargs.items()})

        self._watch(self._pipe)
        self._pipe.__class__ = subclass(kind, {"__call__": call, "_deltapass": self})

    def remove(self, pipe: Any) -> None:
        """Put everything back as it was. A copy of the pipeline gets its class back, no more."""
        pipe.__class__ = self._kind
        if pipe is not self._pipe:
            return
        with self._lock:
            for module in self._watched:
                unwatch_denoiser(module)
            self._watched.clear()

    @contextmanager
    def running(self, pipe: Any) -> Iterator[None]:
        """One call of the pipeline. A session that the caller has opened is used and kept open."""
        self._watch(pipe)
        outer, run = active_session(), current_run()
        mine = outer is None or (run is not None and run.session is outer)
        session = Session(schedule=self.schedule) if mine or outer is None else outer
        before = session.entries.count
        try:
            with following(session, pipe.scheduler) as run, session:
                run.open()
                yield
        finally:
            self.last = session.entries.report(before)
        self._check_that_it_ran(run.stepped_once)

    def _watch(self, pipe: Any) -> None:
        """Watch the denoisers, which may have been exchanged since the last call."""
        with self._lock:
            for module in denoisers(pipe).values():
                inner = getattr(module, "_orig_mod", module)
                if inner not in self._watched:
                    watch_denoiser(inner)
                    self._watched.add(inner)

    def _check_that_it_ran(self, stepped: bool) -> None:
        calls = len(self.last.entries) if self.last is not None else 0
        if self._warned or (calls and (stepped or calls == 1)):
            return
        self._warned = True
        warnings.warn(NEVER_STEPPED if calls else NEVER_CALLED, RefusalWarning, stacklevel=5)


def attach(pipe: Any, *, schedule: AnySchedule | None = None) -> Attachment:
    """Let a diffusers pipeline tell deltapass its steps and branches.

    Args:
        pipe: A pipeline with a `scheduler` and a `transformer`; compile the latter before or after.
        schedule: Replaces the compiled models' own schedule.

    Returns:
        The attachment: `last` is the report of the last call; as a context manager it detaches.

    Raises:
        AttachError: If the pipeline is attached already, or has no transformer or no scheduler.
    """
    if attachment_of(pipe) is not None:
        raise AttachError(
            f"this {type(pipe).__name__} is attached already", "Call detach(pipe) first"
        )
    if not denoisers(pipe):
        found = ", ".join(_components(pipe)) or "nothing"
        raise AttachError(
            f"this {type(pipe).__name__} has no transformer; it has {found}",
            "deltapass caches diffusion transformers: attach a pipeline with a `transformer`",
        )
    scheduler = getattr(pipe, "scheduler", None)
    methods = all(hasattr(type(scheduler), name) for name in ("set_timesteps", "step"))
    if not methods or not hasattr(scheduler, "timesteps"):
        raise AttachError(
            f"this {type(pipe).__name__} has no scheduler with set_timesteps() and step()",
            "Use `with deltapass.session(steps=...)` and tell it every step",
        )
    attachment = Attachment(pipe, schedule)
    attachment.install()
    return attachment


def detach(pipe: Any) -> None:
    """Undo `attach`: the pipeline and its denoisers are as before.

    Raises:
        AttachError: If the pipeline is not attached.
    """
    attachment = attachment_of(pipe)
    if attachment is None:
        raise AttachError(f"this {type(pipe).__name__} is not attached", "Call attach(pipe) first")
    attachment.remove(pipe)


def last_report(subject: Any) -> SessionReport | None:
    """What was planned and run last, where no session of yours was open.

    Args:
        subject: An attached pipeline: its last call. Or a model, compiled or not: the present
            trajectory of this thread, found by the timestep input.

    Returns:
        The report; None if nothing was called yet.
    """
    attachment = attachment_of(subject)
    if attachment is not None:
        return attachment.last
    tracker = known_tracker([subject, *subject.parameters(), *subject.buffers()])
    return None if tracker is None else tracker.entries.report()


def attachment_of(pipe: Any) -> Attachment | None:
    """The attachment of a pipeline, if it has one."""
    found = getattr(type(pipe), "_deltapass", None)
    return found if isinstance(found, Attachment) else None


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's denoisers, by attribute name."""
    return {
        name: module
        for name, module in _components(pipe).items()
        if name.startswith(DENOISER) and isinstance(module, nn.Module)
    }


def _apart(name: str, given: Any) -> Any:
    """A callback of the user's, taken out of the run: what it calls is no step of the pipeline.

    Callback objects of diffusers are known by their class and stay as they are.
    """
    known = hasattr(given, "tensor_inputs")
    if not name.startswith("callback") or not callable(given) or known:
        return given

    def callback(*args: Any, **kwargs: Any) -> Any:
        with outside():
            return given(*args, **kwargs)

    return callback


def _components(pipe: Any) -> dict[str, Any]:
    """What a pipeline is made of: its own attributes that are modules, and the like."""
    own = getattr(pipe, "__dict__", {})  # a string, or None, has no attributes of its own
    return {name: part for name, part in own.items() if not name.startswith("_")}
