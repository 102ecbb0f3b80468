"""Every error and warning of deltapass: a fact with numbers and names first, then the remedy.

Constructors are typed and positional, so callers hand over facts rather than prose and every
error pickles. An error raised while Dynamo compiles reaches users as
`torch._dynamo.exc.BackendCompilerFailed` with ours in `.inner_exception`. See docs/errors.md.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Final

PROBLEMS_SHOWN: Final = 8  # of an engine: parsers may name hundreds
NOT_THE_USERS: Final = frozenset({"", "contextlib", "deltapass", "torch"})  # "": generated code


class RefusalWarning(UserWarning):
    """The full graph runs instead of a cached one; the text says why and what to do."""


class LaunchedWarning(UserWarning):
    """CUDA graphs were asked for and cannot be; kernels are launched one by one, as ever."""


class CalibrationWarning(UserWarning):
    """Fitted weights are worth little: the fit is poor, or they are used where they do not fit."""


def warn(text: str, kind: type[Warning] = RefusalWarning) -> None:
    """Give a warning that points at the user's line, however deep in torch it is given."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not _is_the_users(frame):
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    name, path = frame.f_globals.get("__name__"), frame.f_code.co_filename
    warnings.warn_explicit(text, kind, path, frame.f_lineno, name, registry)


def _is_the_users(frame: FrameType) -> bool:
    """Whether a line is neither ours nor torch's, nor the model's as Dynamo compiled it."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    compiled = any(name.startswith("__compiled_fn") for name in frame.f_code.co_names)
    return package not in NOT_THE_USERS and not compiled


class DeltapassError(Exception):
    """Base of all errors of deltapass."""

    def __init__(self, fact: str, remedy: str, /) -> None:
        # Exception.__init__ is not called: `args` stays as constructed, so the error pickles.
        self.fact = fact
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.fact}. {self.remedy}."


class InternalError(DeltapassError):
    """A check of our own failed after a rewrite: a bug in deltapass."""

    def __init__(self, fact: str, /) -> None:
        super().__init__(fact, "This is a bug in deltapass: please report it with the graph")


def counted(number: int, thing: str) -> str:
    """A number with its thing: `1 step`, `20 steps`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def did_you_mean(name: object, valid: Sequence[str], text: str = "Did you mean {!r}? ") -> str:
    """`text` about the valid name that is most like `name`; empty where none is like it."""
    near = difflib.get_close_matches(str(name), valid, n=1)
    return text.format(near[0]) if near else ""


# ---- the user's values ------------------------------------------------------------------------


class OptionError(DeltapassError, ValueError):
    """An option has a value that cannot be used."""

    def __init__(self, name: str, value: object, allowed: str, /) -> None:
        super().__init__(f"option {name!r} is {value!r}", f"It must be {allowed}")


class UnknownOptionError(DeltapassError, ValueError):
    """An option that does not exist."""

    def __init__(self, name: str, valid: Sequence[str], /) -> None:
        hint = did_you_mean(name, valid)
        super().__init__(f"unknown option {name!r}", f"{hint}Options are: {', '.join(valid)}")


class ContradictoryOptionsError(DeltapassError, ValueError):
    """Two options that cannot both hold."""

    def __init__(self, first: str, second: str, why: str, /) -> None:
        super().__init__(
            f"options {first!r} and {second!r} contradict each other: {why}", "Give one of the two"
        )


class UnsupportedModeError(DeltapassError, ValueError):
    """A `mode` of torch.compile that this backend does not take."""

    def __init__(self, mode: str, valid: Sequence[str], /) -> None:
        super().__init__(
            f"mode {mode!r} of torch.compile is not supported by backend 'deltadit'",
            f"Use one of {', '.join(map(repr, valid))}, or options={{...}} without a mode",
        )


class ScheduleError(DeltapassError, ValueError):
    """A schedule that does not fit together, the trajectory, or the model."""


class TooManyCachedBlocksError(ScheduleError):
    """More blocks to cache than the model has."""

    def __init__(self, cached: int, blocks: int, /) -> None:
        super().__init__(
            f"cached_blocks is {cached} but the model has {counted(blocks, 'block')}",
            f"Choose 0 to {blocks}; the default is three quarters of the stack",
        )


class SpanOutsideError(TooManyCachedBlocksError):
    """A table that skips blocks which the model does not have."""

    def __init__(self, start: int, stop: int, blocks: int, /) -> None:
        ScheduleError.__init__(
            self,
            f"the schedule's table skips blocks {start} to {stop - 1} but the model has "
            f"{counted(blocks, 'block')}",
            f"Write rows that stop at {blocks}, or a schedule by rule, which fits any model",
        )


class BoundaryOutsideError(ScheduleError):
    """A boundary that lies outside the trajectory."""

    def __init__(self, boundary: float, steps: int, /) -> None:
        super().__init__(
            f"boundary {boundary} lies outside a trajectory of {counted(steps, 'step')}",
            f"Choose a step from 0 to {steps}, or a fraction between 0.0 and 1.0",
        )


class ScheduleFileError(ScheduleError):
    """A schedule file that cannot be read."""

    def __init__(self, path: str, problem: str, /) -> None:
        super().__init__(f"schedule file {path}: {problem}", "See docs/guide.md for the format")


class StepCountError(ScheduleError):
    """A schedule table whose length is not the number of steps."""

    def __init__(self, rows: int, steps: int, /) -> None:
        super().__init__(
            f"the schedule table has {counted(rows, 'row')} but the trajectory has "
            f"{counted(steps, 'step')}",
            "Give one row a step, or sample with as many steps as the table has rows",
        )


class UnknownLoweringError(DeltapassError, ValueError):
    """A lowering that is not in the table."""

    def __init__(self, name: str, valid: Sequence[str], /) -> None:
        hint = did_you_mean(name, valid)
        super().__init__(f"unknown lowering {name!r}", f"{hint}Lowerings are: {', '.join(valid)}")


# ---- refusals: the graph is left alone --------------------------------------------------------


class UnsupportedGraphError(DeltapassError):
    """A reason to leave the graph alone; the full graph runs instead unless strict=True."""


class NoBlocksError(UnsupportedGraphError):
    """No stack of repeated blocks was found."""

    def __init__(self, operations: int, found: str, /) -> None:
        super().__init__(
            f"no stack of repeated blocks in a graph of {counted(operations, 'operation')} "
            f"({found})",
            "Compile the whole denoiser. One whose work lies neither in blocks that follow each "
            "other on a residual stream nor between skips that a U-Net joins cannot be cached",
        )


class GraphBreakError(UnsupportedGraphError):
    """Dynamo could not trace the model as one graph; `place` is the file and line, if known."""

    def __init__(self, reason: str, place: str = "", /) -> None:
        at = f" (at {place})" if place else ""
        super().__init__(
            f"the model's graph is broken into pieces: {reason}{at}",
            "Remove the break there; torch.compile(..., fullgraph=True) explains it, and follows "
            "what is only read from the inputs, such as an index made of a mask",
        )


class HooksInsideError(UnsupportedGraphError):
    """Hooks on the model, as offloading puts on it, break its graph."""

    def __init__(self, kind: str, hooked: int, /) -> None:
        super().__init__(
            f"hooks, as offloading puts on {hooked} of the modules of {kind}, break its graph into "
            "pieces",
            "Compile the plain model and offload it afterwards, as a whole: pipe.transformer = "
            "torch.compile(...), then pipe.enable_model_cpu_offload(). Group and sequential "
            "offload and layerwise casting work within the graph, which cannot be cached then",
        )


class BlockAloneError(UnsupportedGraphError):
    """A block was compiled, not the model."""

    def __init__(self, name: str, kind: str, model: str, alike: int, /) -> None:
        super().__init__(
            f"{name} ({kind}) was compiled alone, one of {alike} such modules of {model}",
            "Compile the whole model, torch.compile(model, backend='deltadit'), in place of its "
            "blocks: equal blocks are compiled once there too",
        )


class MixedDevicesError(UnsupportedGraphError):
    """The residual stream of one model lies on several devices."""

    def __init__(self, devices: Sequence[str], /) -> None:
        super().__init__(
            f"the model's tensors lie on several devices: {', '.join(devices)}",
            "Move the model and its inputs to one device",
        )


class UnsupportedOperatorError(UnsupportedGraphError):
    """An operator's result depends on data that the model computes, or it has no fake form."""

    def __init__(self, problem: str, /) -> None:
        super().__init__(
            f"an operator of the graph cannot be analysed: {problem}",
            "Work it out before the model is called, or use operators whose shapes are known, such "
            "as torch.where with a mask",
        )


class TensorFormError(UnsupportedGraphError):
    """An input is a tensor that is not one block of numbers: its parts cannot be looked at."""

    def __init__(self, name: str, form: str, /) -> None:
        super().__init__(
            f"input {name!r} is {form}",
            "Give a dense tensor, such as a padded one with a mask, or weights in plain tensors",
        )


class WrappedWeightError(UnsupportedGraphError):
    """A weight holds other tensors, and the lowering takes plain tensors alone."""

    def __init__(self, name: str, kind: str, lowering: str, /) -> None:
        super().__init__(
            f"weight {name!r} is of type {kind}, and lowering {lowering!r} takes plain tensors",
            "Use the lowering 'inductor' or 'eager'; for engines load the model without "
            "quantisation, and let the engine's own tools quantise it",
        )


class TraceError(UnsupportedGraphError):
    """Dynamo could not trace the model at all, under any backend."""

    def __init__(self, problem: str, /) -> None:
        super().__init__(
            f"torch cannot trace the model as one graph: {problem}",
            "torch.compile(model, backend='eager', fullgraph=True) fails at the same place, and "
            "shows the line",
        )


class AnalysisError(UnsupportedGraphError):
    """The analysis of a graph failed in a way that nobody foresaw; the error is its `__cause__`."""

    def __init__(self, problem: str, /) -> None:
        super().__init__(
            f"the graph could not be analysed: {problem}",
            "The model runs in full; options={'strict': True} shows where it failed. Please "
            "report that",
        )


class StreamError(UnsupportedGraphError):
    """A value leaves a span and is no residual stream, or it is not clear which one.

    The remedy names a span that can be cached instead, if there is one.
    """

    def __init__(
        self, span: str, value: str, problem: str, remedy: str = "Cache another span", /
    ) -> None:
        super().__init__(f"value {value!r} leaves {span} and {problem}", remedy)
        self._found = span, value, problem

    def with_remedy(self, remedy: str) -> StreamError:
        """The same fact with another remedy."""
        return StreamError(*self._found, remedy)


class NoCrossAttentionError(StreamError):
    """The cross-attention of a span is to be kept, and it has none; `found` says what it has."""

    def __init__(self, span: str, found: str, /) -> None:
        UnsupportedGraphError.__init__(
            self,
            f"{span}: there is no cross-attention to keep; {found}",
            "Keep deltas of whole blocks, as the schedules 'balanced' and 'delta-dit' do",
        )

    def with_remedy(self, remedy: str) -> StreamError:
        """The same: no other span of the model will do."""
        del remedy
        return self


class SmallSpanError(UnsupportedGraphError):
    """Skipping a span would save next to nothing."""

    def __init__(self, span: str, share: float, remedy: str, /) -> None:
        super().__init__(
            f"skipping {span} would save {100 * share:.2g} % of the model's MACs", remedy
        )


class MutationError(UnsupportedGraphError):
    """The graph changes a tensor in place in a way that cannot be made functional."""

    def __init__(self, operation: str, problem: str, /) -> None:
        super().__init__(
            f"operation {operation!r} changes a tensor in place: {problem}",
            "Use the out-of-place operator there",
        )


class GradientsEnabledError(UnsupportedGraphError):
    """Gradients are enabled, so the plain graph runs."""

    def __init__(self) -> None:
        super().__init__(
            "gradients are enabled, and a cached delta has none", "Sample under torch.no_grad()"
        )

    def __reduce__(self) -> tuple[type[GradientsEnabledError], tuple[()]]:
        return type(self), ()


class StepUnknownError(UnsupportedGraphError):
    """Nothing says which step of the trajectory a call belongs to."""

    def __init__(self, problem: str, /) -> None:
        super().__init__(
            f"the step of this call is unknown: {problem}",
            "Wrap the sampling loop in `with deltapass.session(steps=...) as s` and call s.step(i)",
        )


class NoTimestepError(StepUnknownError):
    """There is no session, and none of the model's inputs is surely its timestep."""

    def __init__(self, names: tuple[str, ...], /) -> None:
        DeltapassError.__init__(
            self,
            "the step of this call is unknown: none of the inputs is surely the timestep "
            f"({', '.join(names) or 'there are none'})",
            "State which one it is: options={'inputs': {'timestep': '...'}}. Or wrap the sampling "
            "loop in `with deltapass.session(steps=...) as s` and call s.step(i)",
        )


class NumberTimestepError(UnsupportedGraphError):
    """The timestep is a Python number, which is part of the code and not an input of it."""

    def __init__(self, name: str, /) -> None:
        super().__init__(
            f"the timestep {name!r} is a Python number: compiled in, every step another one",
            f"Pass a tensor: {name}=torch.tensor([...])",
        )


class ChangingInputError(UnsupportedGraphError):
    """Inputs that look like conditioning change at every step, so that no delta is ever fresh.

    `numbers` are those of them that are one floating number a sample. Only these may follow from
    the step alone: what is larger may be a prompt, which must not be named in `per_step`.
    """

    def __init__(self, names: tuple[str, ...], numbers: tuple[str, ...] = (), /) -> None:
        larger = [name for name in names if name not in numbers]
        remedies = []
        if larger:
            remedies = [
                "If it is noise that is being sampled, state all samples: "
                "options={'inputs': {'sample': [...]}}",
                "If it is a prompt, give each prompt a session of its own, or a branch name "
                "(session.step(i, branch=...)), and keep it the same along a trajectory",
            ]
        if numbers:
            listed = ", ".join(map(repr, numbers))
            remedies.append(
                f"If a number ({listed}) follows from the step alone, as a guidance weight may, "
                f"state it: options={{'inputs': {{'per_step': [{listed}]}}}}"
            )
        super().__init__(
            f"conditioning that changes at every step: {', '.join(names)}", ". ".join(remedies)
        )


class TooManyBranchesError(UnsupportedGraphError):
    """More branches than a session keeps deltas for: names that come once would pile up."""

    def __init__(self, most: int, /) -> None:
        super().__init__(
            f"more than {most} branches of one model within two steps of a session",
            "Open a session for each request, and call a branch by the same name at every step",
        )


# ---- lowering ---------------------------------------------------------------------------------


class LoweringError(DeltapassError):
    """A body could not be lowered."""

    def __init__(self, lowering: str, body: str, cause: str, /) -> None:
        super().__init__(
            f"lowering {lowering!r} failed on {body!r}: {cause}",
            "Lowering 'eager' shows whether the graph itself is sound",
        )


class MissingLibraryError(DeltapassError, ImportError):
    """A library that an optional part needs is not installed."""

    def __init__(self, library: str, extra: str, /) -> None:
        super().__init__(
            f"{library} is not installed", f"Install it with: pip install 'deltapass[{extra}]'"
        )


class MissingDeviceError(DeltapassError, RuntimeError):
    """What was asked for runs only on a device that this machine lacks."""


class EngineBuildError(DeltapassError):
    """No TensorRT engine can be built from a graph."""

    def __init__(self, source: str, flavour: str, problems: Sequence[str], /) -> None:
        super().__init__(
            f"{flavour} builds no engine from {source}: {_listed(problems)}",
            "Replace what it names, or take another lowering or format",
        )


class EngineRunError(DeltapassError, RuntimeError):
    """A built TensorRT engine cannot be loaded, or cannot be run on these tensors."""

    def __init__(self, flavour: str, problems: Sequence[str], /) -> None:
        super().__init__(
            f"{flavour} does not run the engine: {_listed(problems)}",
            "An engine runs on the architecture, the library version and the shapes it was built "
            "for; build it again for these",
        )


def _listed(problems: Sequence[str]) -> str:
    """The first problems, and how many more there are."""
    shown = "; ".join(problem.strip().rstrip(".") for problem in problems[:PROBLEMS_SHOWN])
    more = len(problems) - PROBLEMS_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


# ---- plan bundles -----------------------------------------------------------------------------


class ExportError(DeltapassError, ValueError):
    """A model that cannot be exported as asked; nothing was written."""


class DynamicShapeError(ExportError):
    """A dimension that was to vary cannot, or its formula cannot be written down."""


class VerificationError(ExportError):
    """A segment or variant that was written differs from the model; the bundle was not kept."""

    def __init__(
        self,
        what: str,
        error: float,
        tolerance: float,
        remedy: str = "Please report it with the model; verify=False keeps the bundle as it is",
        /,
    ) -> None:
        super().__init__(
            f"{what} differs from the model by {error:.3g} of its largest value, "
            f"more than the tolerance of {tolerance:.3g}",
            remedy,
        )


class BundleError(DeltapassError, ValueError):
    """A plan bundle on disk that cannot be loaded: missing, altered, or of another version."""


class SignatureError(DeltapassError, TypeError):
    """A loaded model is called otherwise than the exported one can be."""


# ---- the command line -------------------------------------------------------------------------


class OutputError(DeltapassError):
    """A file or folder that a command is to write cannot be written, or is there already."""


class ModelSourceError(DeltapassError, ValueError):
    """What a command is told to take a model from gives none."""

    def __init__(self, source: str, problem: str, /) -> None:
        super().__init__(
            f"there is no model in {source!r}: {problem}",
            "Give 'embedded', the folder of a diffusers pipeline, or module:factory whose call "
            "gives (model, args, kwargs)",
        )


class PipelineCallError(DeltapassError, ValueError):
    """A pipeline that cannot be called as a command is told to call it."""

    def __init__(self, pipeline: str, given: Sequence[str], problem: str, /) -> None:
        said = f"with {', '.join(given)}" if given else "without arguments"
        super().__init__(
            f"{pipeline} cannot be called {said}: {problem}",
            'Say how with --call, in JSON, such as --call \'{"prompt": "a cat"}\'',
        )


# ---- tuning -----------------------------------------------------------------------------------


class LoopError(DeltapassError, ValueError):
    """What was given to sample trajectories with gives none, or not those asked for."""


class CalibrationError(DeltapassError, ValueError):
    """Trajectories from which no weights can be fitted."""


class TuneError(DeltapassError, ValueError):
    """A search cannot be begun, or go on, as it was asked for."""


class BenchError(DeltapassError, ValueError):
    """A benchmark that cannot be run, read or compared as it was asked for."""


# ---- run time ---------------------------------------------------------------------------------


class StateError(DeltapassError, RuntimeError):
    """A session is used in a way that has no meaning."""


class AttachError(StateError):
    """A pipeline that cannot be attached or detached, or run while it is."""


class StepOutsideError(StateError):
    """A step beyond the trajectory of the session."""

    def __init__(self, step: int, steps: int, /) -> None:
        super().__init__(
            f"step {step} lies outside a session of {counted(steps, 'step')}",
            f"Steps are counted from 0 to {steps - 1}",
        )


class NoStepError(StateError):
    """The model was called inside a session before its first step."""

    def __init__(self) -> None:
        super().__init__(
            "the model was called in a session that has not been told its step",
            "Call session.step(i) before each call of the model",
        )

    def __reduce__(self) -> tuple[type[NoStepError], tuple[()]]:
        return type(self), ()
