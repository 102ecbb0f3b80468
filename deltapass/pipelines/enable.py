"""One call for people who do not want to know more: `deltapass.enable(pipe)`.

It compiles the denoisers, attaches the pipeline, and says in one line what the first image gained.
`disable` gives the pipeline back as it was. All presets share what was compiled: the code of a
model is the same whatever the schedule, which the attachment hands to every call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import nn

from deltapass.errors import (
    AttachError,
    ContradictoryOptionsError,
    UnknownOptionError,
    counted,
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
from deltapass.pipelines.compiled_by import OURS, backend_of
from deltapass.pipelines.step_times import Clock, StepTimes, clock_of, step_times
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.given import GivenSchedule, given_schedule
from deltapass.schedule.presets import DEFAULT_PRESET, never, preset_named
from deltapass.sessions.report import SessionReport

COMPILED: Final = (*HOW_COMPILED, "inputs", "per_step")  # options that a model is compiled with
HOOK: Final = "_hf_hook"  # where offloading notes what it has put on a model
MORE: Final = "deltapass.last_report(pipe) shows every step"


@final
class Enabled:
    """A pipeline with caching on. Also a context manager that disables it on leaving.

    Attributes:
        name: The preset, or "schedule" for one of the user's own.
        times: The measured times of the first call that ended since; None before.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any], *, quiet: bool) -> None:
        self.name = ""
        self.times: StepTimes | None = None
        self._pipe, self._options, self._quiet = pipe, dict(options), quiet
        self._plain: dict[str, nn.Module] = {}
        self._compiled: dict[str, Any] = {}
        self._left: dict[str, set[str]] = {}  # attributes that torch.compile puts on the model
        self._schedule: AnySchedule = never()

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        disable(self._pipe)

    @property
    def last(self) -> SessionReport | None:
        """Report of the last call that ended; None before the first, and once it is disabled."""
        attachment = attachment_of(self._pipe)
        return None if attachment is None else attachment.last

    # ---- on and off ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Compile the denoisers, which happens at their first call, and attach the pipeline."""
        models = denoisers(self._pipe)
        for name, model in models.items():
            _refuse_denoiser(name, model)
        attach(self._pipe).watcher = self
        try:
            for name, model in models.items():
                if backend_of(model) != OURS:
                    before = set(vars(model))
                    made = torch.compile(model, backend=OURS, options=self._options)
                    self._plain[name], self._compiled[name] = model, made
                    self._left[name] = vars(model).keys() - before
                    setattr(self._pipe, name, made)
        except BaseException:
            self.end()
            raise

    def choose(self, name: str, schedule: AnySchedule) -> None:
        """Follow another schedule from the next call on."""
        self.name, self.times, self._schedule = name, None, schedule
        self._attachment.schedule = schedule

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
            for attribute in left:
                vars(self._plain[name]).pop(attribute, None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run in full, inside."""
        attachment = self._attachment
        before, attachment.schedule = attachment.schedule, never()
        try:
            yield
        finally:
            attachment.schedule = before

    def compiled_with(self, options: Mapping[str, Any]) -> bool:
        """Whether these options ask for nothing else than what is compiled."""
        return self._options == dict(options)

    @property
    def _attachment(self) -> Attachment:
        found = attachment_of(self._pipe)
        if found is None or found.watcher is not self:
            raise AttachError(f"this {type(self._pipe).__name__} is not enabled", ENABLE_FIRST)
        return found

    # ---- what the attachment tells ------------------------------------------------------------

    def clock(self) -> Clock | None:
        """What times the steps of the call that begins; None if nobody wants to know."""
        wanted = self.times is None and self._attachment.schedule is self._schedule
        return clock_of(self._pipe) if wanted else None

    def ended(self, report: SessionReport, seconds: Mapping[int, float]) -> None:
        """A call of the pipeline ended, and its steps were timed."""
        self.times = step_times(report, seconds)
        if not self._quiet:
            sys.stderr.write(f"deltapass {self.name}: {line(self.times, report)}\n")


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
    Called again, it changes the preset, and compiles nothing.

    Args:
        pipe: A pipeline with a `scheduler` and a `transformer` (and perhaps more of them).
        preset: One of PRESETS: "quality", "balanced" (the default), "fast" or "paper".
        schedule: Instead of a preset: a schedule object, a name or the path of a file.
        quick: Compile nothing: only what caching saves is gained. For a first look.
        quiet: Print nothing.
        **options: Of the backend, as far as they say how a model is compiled (COMPILED).

    Returns:
        What is enabled; as a context manager it disables.

    Raises:
        OptionError, UnknownOptionError, ContradictoryOptionsError, ScheduleError: For values that
            cannot be used.
        AttachError: If the pipeline cannot be attached, or a denoiser not be compiled as it is.
    """
    name, chosen = _chosen(preset, schedule)
    compiled_with = _compile_options(options, quick=quick)
    enabled = _enabled(pipe)
    if enabled is not None and not enabled.compiled_with(compiled_with):
        enabled.end()
        enabled = None
    if enabled is None:
        refuse_unattachable(pipe)
        enabled = Enabled(pipe, compiled_with, quiet=quiet)
        enabled.begin()
    enabled.choose(name, chosen)
    return enabled


def disable(pipe: Any) -> None:
    """Undo `enable`: the pipeline is as before. What was compiled is kept with the model.

    Raises:
        AttachError: If the pipeline is not enabled, or offloading has put hooks on its denoisers.
    """
    _known(pipe).end()


@contextmanager
def paused(pipe: Any) -> Iterator[None]:
    """Run an enabled pipeline in full, for the calls inside. Nothing is compiled for it.

    Raises:
        AttachError: If the pipeline is not enabled.
    """
    with _known(pipe).paused():
        yield


def line(times: StepTimes, report: SessionReport) -> str:
    """What a run did and what that saved, for people."""
    steps = f"{counted(times.steps, 'step')}, {times.cached} of them cached"
    if not times.cached:
        why = next((entry.why for entry in reversed(report.entries) if entry.forced), "")
        why = why or "the schedule caches nothing on so few steps"
        return f"{steps}: {why}. {MORE}"
    plain, saved, speedup = times.plain_ms, times.saved_ms, times.speedup
    if plain is None or saved is None or speedup is None:
        return f"{steps}; too few to measure what that saves. {MORE}"
    return (
        f"{steps}, saved {_seconds(saved)} of {_seconds(plain)} ({speedup:.2f}x), measured: "
        f"{times.full_ms:.1f} ms a step in full, {times.cached_ms:.1f} ms cached. {MORE}"
    )


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


def _refuse_denoiser(name: str, model: nn.Module) -> None:
    """Raise what there is to say against compiling this."""
    backend = backend_of(model)
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


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.{2 if milliseconds < 1e4 else 1}f} s"
