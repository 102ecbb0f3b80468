"""Options of the backend: `torch.compile(model, backend="deltadit", options={...})`.

Takes the raw mapping (or a mode) as torch.compile hands it over; gives one frozen `Options`.
Every option is stated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, final

from deltapass.errors import (
    ContradictoryOptionsError,
    ExportError,
    OptionError,
    UnknownLoweringError,
    UnknownOptionError,
    UnsupportedModeError,
    did_you_mean,
)
from deltapass.schedule.budget import Budget
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.given import SCHEDULE_FORM, given_schedule
from deltapass.schedule.predictors import predictor_named
from deltapass.schedule.presets import DEFAULT_PRESET, preset_named

OPTION_NAMES: Final = (
    "lowering",
    "interval",
    "cached_blocks",
    "boundary",
    "gate",
    "budget",
    "order",
    "predictor",
    "keeps",
    "steps",
    "schedule",
    "preset",
    "fuse",
    "inputs",
    "per_step",
    "strict",
    "mode",
)
SCHEDULE_FIELDS: Final = ("interval", "cached_blocks", "boundary", "gate")
CHOSEN_BY_BUDGET: Final = ("interval", "cached_blocks", "gate", "schedule")
# Where each lowering is; loaded only when it is used.
LOWERINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "eager": "deltapass.backends.eager:EagerLowering",
        "inductor": "deltapass.backends.inductor:InductorLowering",
        "onnx": "deltapass.backends.onnx.lowering:OnnxLowering",
        "tensorrt": "deltapass.backends.tensorrt.lowering:TensorRTLowering",
    }
)
# The same for formats of plan bundles.
FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnx": "deltapass.backends.onnx.format:OnnxFormat",
        "aoti": "deltapass.backends.aoti:AotiFormat",
        "tensorrt": "deltapass.backends.tensorrt.format:TensorRTFormat",
    }
)
HOW_COMPILED: Final = ("lowering", "fuse", "strict", "mode")  # not what is exported
EXPORT_OPTIONS: Final = tuple(name for name in OPTION_NAMES if name not in HOW_COMPILED)
LOWERING_NAMES: Final = tuple(LOWERINGS)
ORDERS: Final = ("reuse", "linear")  # predictors by their old number
DEFAULT_STEPS: Final = 20  # where nobody says how many, as in the paper's tables
FUSES: Final = ("blocks", "whole")
GRAPHED_MODES: Final = ("reduce-overhead", "max-autotune")  # those with CUDA graphs
MODES: Final = ("default", *GRAPHED_MODES, "max-autotune-no-cudagraphs")
ROLES: Final = ("sample", "timestep", "per_step")
NAMES_FORM: Final = MappingProxyType(
    {"sample": "a list of input names", "per_step": "a list of parts of input names"}
)
INPUTS_FORM: Final = "a dictionary with any of the keys 'sample', 'timestep' and 'per_step'"
MEANT: Final = "; did you mean {!r}?"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StatedInputs:
    """What the user says of the model's inputs; None where nothing is said.

    `sample` are the names of all noisy samples, `timestep` is that of the timestep. `per_step` are
    parts of the names of inputs that change with the step by their nature and say nothing of the
    prompt.

    Raises:
        OptionError: If these are no names, or one is stated twice.
    """

    sample: tuple[str, ...] | None = None
    timestep: str | None = None
    per_step: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role in ("sample", "per_step"):
            names = getattr(self, role) or ()
            if not all(isinstance(name, str) and name for name in names):
                raise OptionError(role, names, NAMES_FORM[role])
        if self.timestep is not None and not (isinstance(self.timestep, str) and self.timestep):
            raise OptionError("timestep", self.timestep, "the name of an input")
        if self.timestep is not None and self.timestep in (self.sample or ()):
            raise OptionError("timestep", self.timestep, "another input than the sample")

    def exact(self) -> tuple[tuple[str, str], ...]:
        """Role and name of the inputs that are stated by their whole name."""
        samples = tuple(("sample", name) for name in self.sample or ())
        return samples if self.timestep is None else (*samples, ("timestep", self.timestep))


NOTHING_STATED: Final = StatedInputs()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the user asked for, checked.

    `lowering` compiles the bodies, each alone or inlined into `fuse`="whole" variants. `steps` is
    the length of every trajectory, if known. `schedule` may be a budget, for which the plan of a
    model chooses a schedule. `inputs` states what inputs are; without it data flow and names tell.
    `strict` raises where a refusal would only warn. `mode` is torch.compile's.

    Raises:
        OptionError: If a value has the wrong type or is not in its list.
        UnknownLoweringError: If the lowering is not in LOWERING_NAMES.
        UnsupportedModeError: If the mode is not in MODES.
        BoundaryOutsideError: If the schedule's boundary is above `steps`.
        StepCountError: If the schedule is a table of another length than `steps`.
    """

    lowering: str = "inductor"
    steps: int | None = None
    schedule: AnySchedule | Budget
    fuse: str = "blocks"
    inputs: StatedInputs = NOTHING_STATED
    strict: bool = False
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.lowering not in LOWERING_NAMES:
            raise UnknownLoweringError(str(self.lowering), LOWERING_NAMES)
        if self.fuse not in FUSES:
            raise OptionError("fuse", self.fuse, _one_of(FUSES, self.fuse))
        if not isinstance(self.inputs, StatedInputs):
            raise OptionError("inputs", self.inputs, INPUTS_FORM)
        if not isinstance(self.strict, bool):
            raise OptionError("strict", self.strict, "True or False")
        if self.mode is not None and self.mode not in MODES:
            raise UnsupportedModeError(str(self.mode), MODES)
        self._check_schedule()

    @property
    def planned_steps(self) -> int:
        """Steps of the trajectory that is planned where there is none yet."""
        return self.steps or self.schedule.length or DEFAULT_STEPS

    def _check_schedule(self) -> None:
        if not isinstance(self.schedule, AnySchedule | Budget):
            raise OptionError("schedule", self.schedule, SCHEDULE_FORM)
        if self.steps is None:
            return
        if not _is_int(self.steps) or self.steps < 1:
            raise OptionError("steps", self.steps, "a whole number from 1 on, or None")
        self.schedule.check_steps(self.steps)


def parse_options(raw: Mapping[str, object] | None = None, mode: str | None = None) -> Options:
    """Check the options of one torch.compile call.

    Nothing given is the preset DEFAULT_PRESET. `interval`, `cached_blocks`, `boundary` and `gate`
    are fields of a named schedule ('delta-dit', the paper's, when none is named, as where `order`
    is given; 'tgate' for a gate); `budget` chooses the first two, a `preset` all. `predictor`
    replaces that of the schedule, and `order` is short for it: 0 is "reuse", 1 is "linear".
    `keeps` replaces that of the schedule, in all rows of a table. None stands for "not given" for
    all of these, and for `schedule` and `steps`. `per_step` is short for that key of `inputs`.

    Args:
        raw: Options by name, as given to torch.compile.
        mode: The mode of torch.compile, which excludes `raw` there; an option is the same.

    Raises:
        UnknownOptionError: If an option does not exist.
        ContradictoryOptionsError: If a schedule object, file or 'none' comes with its fields, a
            budget or a preset with what it chooses, `order` or a schedule with fitted weights with
            a `predictor`, or `per_step` with the same key of `inputs`.
        ScheduleError: If the schedule's name, file or fields cannot be used, or its fitted weights
            are not for what it is to keep.
        OptionError: If another value cannot be used; see `Options` for the rest.
    """
    given: dict[str, Any] = dict(raw or {})
    for name in given:
        if name not in OPTION_NAMES:
            raise UnknownOptionError(str(name), OPTION_NAMES)
    fields = {name: given.pop(name, None) for name in SCHEDULE_FIELDS}
    fields = {name: value for name, value in fields.items() if value is not None}
    budget, named = given.pop("budget", None), given.pop("schedule", None)
    preset = given.pop("preset", None)
    if preset is not None:
        _refuse_beside_preset({"schedule": named, "budget": budget, **fields})
        named = preset_named(preset)
    order = given.pop("order", None)
    predictor, keeps = _predictor(order, given.pop("predictor", None)), given.pop("keeps", None)
    if budget is not None:
        schedule: AnySchedule | Budget = _budget(budget, named, fields)
    else:
        paper = "tgate" if "gate" in fields else "delta-dit"  # who sets a field means its schedule
        default = paper if fields or order is not None else DEFAULT_PRESET
        schedule = given_schedule(default if named is None else named, fields)
    schedule = _keeping(_predicted(schedule, predictor), keeps)
    given["inputs"] = _inputs(given.get("inputs"), given.pop("per_step", None))
    asked = given.pop("mode", None) if mode is None else mode
    return Options(schedule=schedule, mode=asked, **given)


def check_format(name: str) -> None:
    """Raise OptionError unless a format of plan bundles has that name."""
    if name not in FORMATS:
        raise OptionError("format", name, f"one of {', '.join(FORMATS)}")


def parse_export_options(options: Mapping[str, Any]) -> Options:
    """The options of an export, checked.

    Raises:
        ExportError: For an option that an export does not take.
        As `parse_options` otherwise.
    """
    for name in options:
        if name not in EXPORT_OPTIONS:
            raise ExportError(
                f"export takes no option {name!r}",
                did_you_mean(name, EXPORT_OPTIONS) + f"It takes {', '.join(EXPORT_OPTIONS)}",
            )
    return parse_options(options)


def _budget(share: Any, schedule: object, fields: Mapping[str, Any]) -> Budget:
    given = {**fields, "schedule": schedule}
    for name in CHOSEN_BY_BUDGET:
        if given.get(name) is not None:
            why = "the budget chooses the interval and the blocks to cache"
            raise ContradictoryOptionsError("budget", name, why)
    return Budget(share=share, boundary=fields.get("boundary"))


def _refuse_beside_preset(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise ContradictoryOptionsError("preset", name, "a preset is a whole schedule")


def _predictor(order: Any, predictor: Any) -> str | None:
    """The predictor's name, if one is asked for by name or by its old number."""
    if order is None:
        return None if predictor is None else predictor_named(predictor).name
    if predictor is not None:
        raise ContradictoryOptionsError("predictor", "order", "both say how a delta is predicted")
    if not _is_int(order) or not 0 <= order < len(ORDERS):
        raise OptionError("order", order, "0 (the last delta) or 1 (extrapolated)")
    return ORDERS[order]


def _predicted(schedule: AnySchedule | Budget, predictor: str | None) -> AnySchedule | Budget:
    """The schedule with another predictor, if one is asked for."""
    if predictor is None:
        return schedule
    if isinstance(schedule, ExplicitSchedule) and any(schedule.weights):
        why = "the schedule's rows have weights of their own"
        raise ContradictoryOptionsError("schedule", "predictor", why)
    return replace(schedule, predictor=predictor)


def _keeping(schedule: AnySchedule | Budget, keeps: Any) -> AnySchedule | Budget:
    """The schedule with another thing kept of its spans, if one is asked for."""
    if keeps is None:
        return schedule
    if isinstance(schedule, ExplicitSchedule):
        return schedule.keeping(keeps)
    return replace(schedule, keeps=keeps)


def _inputs(stated: Any, per_step: Any) -> StatedInputs:
    if isinstance(stated, StatedInputs):
        stated = {role: getattr(stated, role) for role in ROLES}
    if not isinstance(stated, Mapping | None):
        raise OptionError("inputs", stated, INPUTS_FORM)
    given: dict[str, Any] = dict(stated or {})
    for role in given:
        if role not in ROLES:
            raise OptionError("inputs", role, INPUTS_FORM + did_you_mean(role, ROLES, MEANT))
    if per_step and given.get("per_step"):
        raise ContradictoryOptionsError("inputs", "per_step", "both name what changes by step")
    sample = given.get("sample")
    return StatedInputs(
        sample=None if sample is None else _names("sample", sample),
        timestep=given.get("timestep"),
        per_step=_names("per_step", given.get("per_step") or per_step or ()),
    )


def _names(role: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    if not isinstance(value, Sequence):
        raise OptionError(role, value, NAMES_FORM[role])
    return tuple(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(valid: tuple[str, ...], value: object) -> str:
    return " or ".join(map(repr, valid)) + did_you_mean(value, valid, MEANT)
