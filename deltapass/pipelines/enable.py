"""One call for people who do not want to know more: `deltapass.enable(pipe)`.

It compiles the denoisers, attaches the pipeline, and says in one line what the first image gained.
`disable` gives the pipeline back as it was. All presets share what was compiled: the code of a
model is the same whatever the schedule, which the attachment hands to every call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

from torch import nn

from deltapass.errors import (
    AttachError,
    ContradictoryOptionsError,
    UnknownOptionError,
)
from deltapass.options import HOW_COMPILED, parse_options
from deltapass.pipelines.attach import (
    Attachment,
    attach,
    attachment_of,
    denoisers,
    detach,
    refuse_unattachable,
)
from deltapass.pipelines.compiled_by import (
    OURS,
    backend_of,
    clean,
    compiled_with_ours,
    options_of,
)
from deltapass.pipelines.pausing import is_paused, pause
from deltapass.pipelines.step_times import Clock, StepTimes, clock_of, line, step_times
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.given import GivenSchedule, given_schedule
from deltapass.schedule.presets import DEFAULT_PRESET, never, preset_named
from deltapass.sessions.report import SessionReport

COMPILED: Final = (*HOW_COMPILED, "inputs", "per_step")  # options that a model is compiled with
HOOK: Final = "_hf_hook"  # where offloading notes what it has put on a model


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What one call of `enable` asks for; `options` are those that models are compiled with."""

    name: str
    schedule: AnySchedule
    options: Mapping[str, Any]
    quiet: bool


@final
class Enabled:
    """A pipeline with caching on, until `disable`.

    Also a context manager: on leaving, the pipeline is as it was before that call of `enable`.

    Attributes:
        name: The preset, or "schedule" for one of the user's own.
        times: The measured times of the first call that ended since; None before.
    """

    def __init__(self, pipe: Any) -> None:
        self.name = ""
        self.times: StepTimes | None = None
        self._pipe = pipe
        self._chosen: Chosen | None = None  # None is disabled
        self._before: Chosen | None = None
        self._entered: list[Chosen | None] = []
        self._plain: dict[str, nn.Module] = {}
        self._compiled: dict[str, Any] = {}
        self._left: dict[str, AbstractSet[str]] = {}  # attributes that compiling puts on it

    def __enter__(self) -> Enabled:
        self._entered.append(self._before)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        before = self._entered.pop()
        if self._chosen is None:  # disabled inside
            return
        try:
            self.end() if before is None else self.follow(before)
        except AttachError as problem:
            if error is None:
                raise
            error.add_note(f"Besides, the pipeline stays enabled: {problem}")

    @property
    def last(self) -> SessionReport | None:
        """Report of the last call that ended; None before the first, and once it is disabled."""
        attachment = attachment_of(self._pipe)
        return None if attachment is None else attachment.last

    # ---- on and off ---------------------------------------------------------------------------

    def follow(self, chosen: Chosen) -> None:
        """Do as chosen from the next call on. If that fails, everything stays as it was.

        Raises:
            AttachError: If a denoiser cannot be compiled so, or its hooks would be lost.
        """
        before = self._chosen
        if before is None or before.options != chosen.options:
            self._check(chosen.options)
            if before is not None:
                self.end()
            try:
                self._begin(chosen.options)
            except BaseException:
                if before is not None:
                    self._begin(before.options)
                    self._chosen, self._attachment.schedule = before, before.schedule
                raise
        self.name, self.times = chosen.name, None
        self._before, self._chosen = before, chosen
        self._attachment.schedule = chosen.schedule  # for who asks it, as calibrating does

    def _check(self, options: Mapping[str, Any]) -> None:
        for name, model in denoisers(self._pipe).items():
            if model is not self._compiled.get(name):
                _refuse_denoiser(name, model, options)

    def _begin(self, options: Mapping[str, Any]) -> None:
        """Compile the denoisers, which happens at their first call, and attach the pipeline."""
        models = denoisers(self._pipe)
        attach(self._pipe).watcher = self
        try:
            for name, model in models.items():
                if backend_of(model) != OURS:
                    made, self._left[name] = compiled_with_ours(model, options=dict(options))
                    self._plain[name], self._compiled[name] = model, made
                    setattr(self._pipe, name, made)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Put everything back as it was; a denoiser that was exchanged meanwhile stays.

        Raises:
            AttachError: If offloading has put hooks on what would be taken away.
        """
        present = vars(self._pipe)
        mine = [name for name, model in self._compiled.items() if present.get(name) is model]
        for name in mine:
            if HOOK in vars(self._plain[name]):  # put on the compiled model, it is there too
                raise AttachError(
                    f"{name} has hooks, as offloading puts on it, and disabling would lose them",
                    "Call pipe.remove_all_hooks() first, and offload again afterwards",
                )
        self._attachment.watcher = None
        detach(self._pipe)
        for name in mine:
            setattr(self._pipe, name, self._plain[name])
        for name, left in self._left.items():
            clean(self._plain[name], left)
        for known in (self._plain, self._compiled, self._left):
            known.clear()
        self._chosen = None

    @property
    def _attachment(self) -> Attachment:
        found = attachment_of(self._pipe)
        if found is None or found.watcher is not self:
            raise AttachError(f"this {type(self._pipe).__name__} is not enabled", ENABLE_FIRST)
        return found

    # ---- what the attachment tells ------------------------------------------------------------

    def lent(self) -> AnySchedule | None:
        """The schedule of the call that begins."""
        chosen = self._chosen
        return never() if is_paused(self._pipe) else None if chosen is None else chosen.schedule

    def clock(self) -> Clock | None:
        """What times the steps of the call that begins; None if nobody wants to know."""
        return clock_of(self._pipe) if self.times is None and not is_paused(self._pipe) else None

    def ended(self, report: SessionReport, seconds: Mapping[int, float]) -> None:
        """A call of the pipeline ended, and its steps were timed."""
        chosen, self.times = self._chosen, step_times(report, seconds)
        if chosen is not None and not chosen.quiet:
            sys.stderr.write(f"deltapass {chosen.name}: {line(self.times, report)}\n")


def enable(
    pipe: Any,
    preset: str | None = None,
    *,
    schedule: GivenSchedule | None = None,
    quick: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Enabled:
    """Let a diffusers pipeline cache: compile its denoisers, attach it, say what it gained.

    After the first image one line on stderr says how many steps were cached and what that saved.
    Called again, it changes the preset, and compiles nothing unless options change. If it raises,
    the pipeline is as before.

    Args:
        pipe: A pipeline with a `scheduler` and a `transformer` or `unet` (perhaps more of them).
        preset: One of PRESETS: "quality", "balanced" (the default), "fast" or "paper".
        schedule: Instead of a preset: a schedule object, a name or the path of a file.
        quick: Compile nothing: only what caching saves is gained. For a first look.
        quiet: Print nothing, until it is called again.
        **options: Of the backend, as far as they say how a model is compiled (COMPILED).

    Returns:
        What is enabled; as a context manager it puts back what was before this call.

    Raises:
        OptionError, UnknownOptionError, ContradictoryOptionsError, ScheduleError: For values that
            cannot be used.
        AttachError: If the pipeline cannot be attached, or a denoiser not be compiled as it is,
            or was compiled by the user with other options than these.
    """
    name, chosen = _chosen(preset, schedule)
    compiled_with = _compile_options(options, quick=quick)
    enabled = _enabled(pipe)
    if enabled is None:
        refuse_unattachable(pipe)
        enabled = Enabled(pipe)
    enabled.follow(Chosen(name=name, schedule=chosen, options=compiled_with, quiet=quiet))
    return enabled


def disable(pipe: Any) -> None:
    """Undo `enable`: the pipeline is as before. What was compiled is kept with the model.

    Raises:
        AttachError: If the pipeline is not enabled, or offloading has put hooks on its denoisers.
    """
    _known(pipe).end()


@contextmanager
def paused(pipe: Any) -> Iterator[None]:
    """Run an enabled pipeline in full, for the calls of this thread or task inside.

    Nothing is compiled for it. `enable` inside changes what is followed afterwards.

    Raises:
        AttachError: If the pipeline is not enabled.
    """
    _known(pipe)
    with pause(pipe):
        yield


# ---- checks -----------------------------------------------------------------------------------

ENABLE_FIRST: Final = "Call deltapass.enable(pipe) first"


def _chosen(preset: str | None, schedule: GivenSchedule | None) -> tuple[str, AnySchedule]:
    """The name and the schedule that are asked for."""
    if preset is not None and schedule is not None:
        raise ContradictoryOptionsError("preset", "schedule", "a preset is a schedule")
    if schedule is not None:
        return schedule if isinstance(schedule, str) else "schedule", given_schedule(schedule)
    name = DEFAULT_PRESET if preset is None else preset
    return name, preset_named(name)


def _compile_options(options: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
    """The options of torch.compile: the same for every preset."""
    for name in options:
        if name not in COMPILED:
            raise UnknownOptionError(name, COMPILED)
    if quick and "lowering" in options:
        raise ContradictoryOptionsError("quick", "lowering", "quick means the lowering 'eager'")
    chosen = {**({"lowering": "eager"} if quick else {}), **options}
    parse_options(chosen)
    return {**chosen, "schedule": DEFAULT_PRESET}


def _refuse_denoiser(name: str, model: nn.Module, options: Mapping[str, Any]) -> None:
    """Raise what there is to say against compiling this, or against leaving it as it is."""
    backend, theirs = backend_of(model), options_of(model)
    others = {n: v for n, v in options.items() if n != "schedule" and theirs.get(n) != v}
    if backend == OURS and others:
        raise AttachError(
            f"{name} is compiled with {OURS!r} already, and not with {others}",
            "Leave that out (quick means the lowering 'eager'), or give the plain model back",
        )
    if backend not in (None, OURS):
        raise AttachError(
            f"{name} is compiled with backend {backend!r} already",
            f"Give the plain model back first, pipe.{name} = pipe.{name}._orig_mod",
        )
    if backend is None and HOOK in vars(model):
        raise AttachError(
            f"{name} has hooks, as offloading puts on it, and no graph can be made of it then",
            "Call pipe.remove_all_hooks(), then enable(pipe), then offload again",
        )


def _enabled(pipe: Any) -> Enabled | None:
    attachment = attachment_of(pipe)
    found = None if attachment is None else attachment.watcher
    return found if isinstance(found, Enabled) else None


def _known(pipe: Any) -> Enabled:
    found = _enabled(pipe)
    if found is None:
        raise AttachError(f"this {type(pipe).__name__} is not enabled", ENABLE_FIRST)
    return found
