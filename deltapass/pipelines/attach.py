"""One line for a pipeline: `deltapass.attach(pipe)`.

While attached, every call of the pipeline is a session of its own: the step and the number of steps
come from the pipeline's scheduler, the branch from its cache contexts. Only this pipeline object,
its denoisers and (during a call) its scheduler are touched, never their classes. What is made of it
(copies, pickles, pipelines made from it) is not attached.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, final
from weakref import WeakSet

from torch import nn

from deltapass.errors import AttachError, warn
from deltapass.pipelines.compiled_by import OURS, backend_of
from deltapass.pipelines.follow import (
    current_run,
    following,
    outside,
    unwatch_denoiser,
    watch_denoiser,
)
from deltapass.pipelines.passing_class import passing_class
from deltapass.pipelines.sampler import guidance_given, sampler_of_call
from deltapass.pipelines.step_times import Clock
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.given import GivenSchedule, schedule_or_none
from deltapass.selector.trackers import known_tracker
from deltapass.sessions.report import SessionReport
from deltapass.sessions.session import Session, active_session

DENOISERS = ("transformer", "unet")  # what pipelines call their denoisers; a second one ends in _2

REFUSED = (
    "nothing cached: {name} is compiled with backend 'deltadit', but none of its calls could be "
    "cached. An earlier warning says why, unless the pipeline did not call it at all."
)
OTHER = (
    "nothing cached: {name} is compiled with backend {backend!r}, not with 'deltadit'. Compile the "
    "plain model: pipe.{name} = torch.compile(model, backend='deltadit')."
)
PLAIN = (
    "nothing cached: {name} is not compiled as a whole. Compile it: pipe.{name} = "
    "torch.compile(pipe.{name}, backend='deltadit')."
)
NEVER_STEPPED = (
    "nothing cached: this pipeline never called the step() of its scheduler, from which the step "
    "is known. Detach it: the timestep input, or a session of your own, tells the step then."
)


class Watcher(Protocol):
    """Lends the calls of an attached pipeline their schedule, is told of them, and detaches."""

    def lent(self) -> AnySchedule | None:
        """The schedule of the call that begins; None leaves the models their own."""

    def clock(self) -> Clock | None:
        """What times the steps of the call that begins; None if they need not be timed."""

    def ended(self, report: SessionReport, seconds: Mapping[int, float]) -> None:
        """A timed call ended without an error; `seconds` are those of each of its last steps."""


@final
class Attachment:
    """What ties a pipeline to its sessions. Also a context manager that detaches on leaving.

    Attributes:
        schedule: Replaces the compiled models' own schedule in every call.
        last: Report of the last call that ended, also if it failed; None before the first.
        watcher: Who is told of the calls; `enable` sets it.
    """

    def __init__(self, pipe: Any, schedule: AnySchedule | None) -> None:
        self.schedule = schedule
        self.last: SessionReport | None = None
        self.watcher: Watcher | None = None
        self._pipe, self._kind = pipe, type(pipe)
        self._watched: WeakSet[nn.Module] = WeakSet()  # what was exchanged must be let go
        self._lock = threading.Lock()
        self._warned = False

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        detach(self._pipe)

    def install(self) -> None:
        """Give the pipeline a class that passes for its own, and whose calls are sessions."""
        kind, attachment = self._kind, self

        @functools.wraps(kind.__call__)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with attachment.running(self, guidance_given(kind, args, kwargs)):
                return kind.__call__(self, *args, **{n: _apart(n, v) for n, v in kwargs.items()})

        self._watch(self._pipe)
        self._pipe.__class__ = passing_class(kind, {"__call__": call, "_deltapass": self})

    def remove(self) -> None:
        """Put everything back as it was."""
        self._pipe.__class__ = self._kind
        with self._lock:
            for module in self._watched:
                unwatch_denoiser(module)
            self._watched.clear()

    @contextmanager
    def running(self, pipe: Any, guidance: Any = None) -> Iterator[None]:
        """One call of the pipeline. A session that the caller has opened is used and kept open."""
        self._watch(pipe)
        outer, run = active_session(), current_run()
        mine = outer is None or (run is not None and run.session is outer)
        session = Session() if mine or outer is None else outer
        before, watcher = session.entries.count, self.watcher
        asked = self.schedule if watcher is None else watcher.lent()
        lent = asked if session.schedule is None else None
        timed = lent is not None and session.observer is None
        clock = watcher.clock() if watcher is not None and timed else None
        if lent is not None:
            session.schedule = lent
        session.sampler = functools.partial(sampler_of_call, pipe, guidance)
        try:
            with following(session, pipe.scheduler, clock) as run, session:
                run.open()
                yield
        finally:
            session.sampler = None
            self.last = session.entries.report(before)
            if lent is not None:
                session.schedule = None
        self._check_that_it_ran(pipe, run.stepped_once)
        if watcher is not None and clock is not None:
            watcher.ended(self.last, run.seconds)

    def _watch(self, pipe: Any) -> None:
        """Watch the denoisers, which may have been exchanged since the last call."""
        with self._lock:
            for module in denoisers(pipe).values():
                inner = getattr(module, "_orig_mod", module)
                if inner not in self._watched:
                    watch_denoiser(inner)
                    self._watched.add(inner)

    def _check_that_it_ran(self, pipe: Any, stepped: bool) -> None:
        text = None if self._warned else self._complaint(denoisers(pipe), stepped)
        if text is not None:
            self._warned = True
            warn(text)

    def _complaint(self, models: Mapping[str, nn.Module], stepped: bool) -> str | None:
        calls = len(self.last.entries) if self.last is not None else 0
        if not calls:
            return _why_none(models)
        return NEVER_STEPPED if not stepped and calls > 1 else None


def attach(pipe: Any, *, schedule: GivenSchedule | None = None) -> Attachment:
    """Let a diffusers pipeline tell deltapass its steps and branches.

    Args:
        pipe: A pipeline with a `scheduler` and a denoiser (DENOISERS), compiled before or after.
        schedule: Replaces the compiled models' own schedule: an object, a name or the path of a
            file, which is read at once.

    Returns:
        The attachment: `last` is the report of the last call; as a context manager it detaches.

    Raises:
        AttachError: If this is no pipeline, or one that is attached already, or that has no
            denoiser or no scheduler.
        ScheduleError: If the schedule's name or file cannot be used.
        OptionError: If it is no schedule.
    """
    refuse_unattachable(pipe)
    attachment = Attachment(pipe, schedule_or_none(schedule))
    attachment.install()
    return attachment


def refuse_unattachable(pipe: Any) -> None:
    """Raise what there is to say against attaching this."""
    name = type(pipe).__name__
    if attachment_of(pipe) is not None:
        raise AttachError(f"this {name} is attached already", "Call detach(pipe) first")
    if isinstance(pipe, nn.Module):
        raise AttachError(
            f"attach was given a model, {type(getattr(pipe, '_orig_mod', pipe)).__name__}",
            "Attach the pipeline that calls it; without one compile the model, and tell the steps "
            "in `with deltapass.session(steps=...)`",
        )
    if isinstance(pipe, type) or not hasattr(pipe, "__dict__"):
        given = f"the class {pipe.__name__}" if isinstance(pipe, type) else repr(pipe)
        raise AttachError(
            f"attach was given {given}, which is no pipeline",
            "Give a pipeline object of diffusers, such as DiffusionPipeline.from_pretrained makes",
        )
    if not denoisers(pipe):
        found = ", ".join(_components(pipe)) or "nothing"
        raise AttachError(
            f"this {name} has no denoiser; it has {found}",
            "Attach a pipeline with a `transformer` or a `unet`",
        )
    scheduler = getattr(pipe, "scheduler", None)
    methods = all(callable(getattr(scheduler, each, None)) for each in ("set_timesteps", "step"))
    own = hasattr(scheduler, "timesteps") and hasattr(scheduler, "__dict__")
    if not methods or not own:
        raise AttachError(
            f"this {name} has no scheduler with set_timesteps() and step()",
            "Use `with deltapass.session(steps=...)` and tell it every step",
        )


def detach(pipe: Any) -> None:
    """Undo `attach`: the pipeline and its denoisers are as before.

    Raises:
        AttachError: If the pipeline is not attached, or was enabled.
    """
    attachment = attachment_of(pipe)
    if attachment is None:
        raise AttachError(f"this {type(pipe).__name__} is not attached", "Call attach(pipe) first")
    if attachment.watcher is not None:
        raise AttachError(f"this {type(pipe).__name__} is enabled", "Call disable(pipe) instead")
    attachment.remove()


def last_report(subject: Any) -> SessionReport | None:
    """What was planned and run last, where no session of yours was open.

    Args:
        subject: An attached pipeline: its last call. Or a model, compiled or not: the present
            trajectory of this thread, found by the timestep input.

    Returns:
        The report; None if nothing was called yet.

    Raises:
        AttachError: If it is neither, as a pipeline is that was not attached or is no more.
    """
    attachment = attachment_of(subject)
    if attachment is not None:
        return attachment.last
    if not isinstance(subject, nn.Module):
        raise AttachError(
            f"this {type(subject).__name__} is neither an attached pipeline nor a model",
            "Call attach(pipe) before it runs, or give its model: last_report(pipe.transformer)",
        )
    tracker = known_tracker([subject, *subject.parameters(), *subject.buffers()])
    return None if tracker is None else tracker.entries.report()


def attachment_of(pipe: Any) -> Attachment | None:
    """The attachment of a pipeline, if it has one."""
    found = getattr(type(pipe), "_deltapass", None)
    return found if isinstance(found, Attachment) else None


def _why_none(models: Mapping[str, nn.Module]) -> str:
    """Why none of a pipeline's denoisers was ever seen by a selector: of the first at fault."""
    found = {name: backend_of(model) for name, model in models.items()}
    first = next(iter(found), DENOISERS[0])
    name = next((name for name, backend in found.items() if backend != OURS), first)
    backend = found.get(name)
    text = PLAIN if backend is None else REFUSED if backend == OURS else OTHER
    return text.format(name=name, backend=backend)


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's denoisers, by attribute name."""
    return {
        name: module
        for name, module in _components(pipe).items()
        if name.startswith(DENOISERS) and isinstance(module, nn.Module)
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
