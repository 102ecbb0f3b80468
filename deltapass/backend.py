"""The backend: `torch.compile(model, backend="deltadit", options={...})`.

Puts the seven stages in order, and decides what happens when one of them refuses: the plain
graph runs under the same lowering, and a warning says why (`strict=True` raises instead).
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import fx

from deltapass.assembly import as_dynamo_compiles, assemble
from deltapass.compiler.blocks import find_stack
from deltapass.compiler.capture import capture
from deltapass.compiler.float_inputs import FixedFloatError, float_inputs, with_floats
from deltapass.compiler.forms import refuse_forms, refuse_wrapped
from deltapass.compiler.fragments import refuse_fragment
from deltapass.compiler.host_values import HostValues, host_values, with_host_values
from deltapass.compiler.inputs import data_positions
from deltapass.compiler.lowering import LoweredBodies, Lowering, load_lowering
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.signatures import name_arguments
from deltapass.compiler.torch_state import autocast_types, outside_autocast
from deltapass.compiler.tracing import (
    detached_from_dynamo,
    is_compiled_twice,
    refuse_number_timesteps,
)
from deltapass.compiler.varying import VaryingBodies, name_sizes
from deltapass.errors import (
    AnalysisError,
    DeltapassError,
    GradientsEnabledError,
    InternalError,
    ScheduleError,
    UnsupportedGraphError,
    warn,
)
from deltapass.options import NOTHING_STATED, Options, StatedInputs, parse_options
from deltapass.schedule.budget import Budget
from deltapass.selector.later import is_later_graph, marks
from deltapass.selector.recent import Recent
from deltapass.selector.selector import Selector
from deltapass.sessions.session import active_session

Compiled = Callable[..., Any]
Shared = tuple[VaryingBodies | None, Mapping[str, int]]
COMPILED_TWICE: Final = (
    "the model is compiled twice, by model.compile() and by torch.compile(model): the options of "
    "the latter are not used. Compile it once."
)


def deltadit(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, object] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile one graph of Dynamo's into variants and a selector.

    Args:
        gm: Dynamo's graph.
        example_inputs: Real tensors; symbolic sizes where shapes are dynamic.
        options: See `deltapass.options.OPTION_NAMES`.
        mode: See `deltapass.options.MODES`; torch.compile takes it in place of options.

    Returns:
        The callable that replaces the graph.

    Raises:
        UnknownOptionError, OptionError, ContradictoryOptionsError, UnsupportedModeError,
        UnknownLoweringError: For options that cannot be used.
        ScheduleError: For a schedule that cannot be used, or does not fit the model; a later graph
            of a model runs in full instead, unless strict=True.
        UnsupportedGraphError: For a graph that cannot be cached, with strict=True only.
        All of them reach the user as `torch._dynamo.exc.BackendCompilerFailed`.
    """
    chosen = parse_options(options, mode)
    lowering = load_lowering(chosen.lowering, chosen.mode)
    try:
        _refuse_gradients(example_inputs)
        refuse_fragment(gm)
        name_arguments(gm)
        if is_compiled_twice():
            warn(COMPILED_TWICE)
        refuse_number_timesteps(gm, example_inputs)
        refuse_forms(gm, example_inputs)
        if not getattr(lowering, "wrapped", False):
            refuse_wrapped(gm, example_inputs, chosen.lowering)
        with failures_refused():
            varying = _varying(gm, example_inputs, chosen, lowering)
        return varying or compile_graph(gm, example_inputs, chosen, lowering)
    except (UnsupportedGraphError, ScheduleError) as error:
        if isinstance(error, ScheduleError) and not is_later_graph(example_inputs):
            raise
        return _plain(gm, example_inputs, lowering, refusal=error, strict=chosen.strict)


def _varying(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, lowering: Lowering
) -> PerShape | None:
    """A graph that is not compiled before it is called, for more than tensors' data may vary."""
    floats = float_inputs(gm, example_inputs)
    host = host_values(gm)
    symbolic = any(isinstance(v, torch.SymInt | torch.SymFloat) for v in example_inputs)
    if not (symbolic or floats or host):
        return None
    return PerShape(gm, options, lowering, data_positions(gm, example_inputs), floats, host)


def analyse(
    gm: fx.GraphModule, arguments: Sequence[Any], stated: StatedInputs = NOTHING_STATED
) -> Outline:
    """Stages 1 to 3: from a graph and its inputs to the outline.

    Raises:
        UnsupportedGraphError: If the graph cannot be cached; torch stays as it was.
    """
    with failures_refused():
        return outline(*find_stack(capture(*with_host_values(gm, arguments), stated)))


@contextmanager
def failures_refused() -> Iterator[None]:
    """Turn an error that nobody foresaw into a refusal: where plain torch.compile runs, so do we.

    The one place where this is decided. What the user should mend stays as it is: errors of
    options, schedules and lowerings, and warnings that were made errors.

    Raises:
        AnalysisError: From any other error, which is its `__cause__`.
    """
    try:
        yield
    except InternalError as error:
        raise AnalysisError(str(error)) from error
    except (DeltapassError, FixedFloatError, Warning):
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).strip().split("\n")[0]
        place = f"{Path(at.filename).name}:{at.lineno}"
        raise AnalysisError(f"{type(error).__name__} at {place}: {text}") from error


def compile_graph(
    gm: fx.GraphModule,
    arguments: Sequence[Any],
    options: Options,
    lowering: Lowering,
    varying: Shared | None = None,
) -> Selector | OutsideAutocast:
    """All seven stages, for one set of static shapes.

    Args:
        gm: The graph.
        arguments: Its inputs.
        options: The options.
        lowering: That of the options.
        varying: Bodies that this set of shapes shares with others, and its sizes.

    Raises:
        UnsupportedGraphError: If the graph cannot be cached.
        ScheduleError: If the schedule does not fit the model.
        LoweringError: If a body cannot be lowered.
    """
    shared, sizes = varying or (None, {})
    bodies = LoweredBodies(options.lowering, lowering, shared, sizes)
    with _collector_paused(), failures_refused():
        found = analyse(gm, arguments, options.inputs)
        outside = found.captured.primitive and bool(autocast_types())
        with outside_autocast() if outside else nullcontext():
            selector = assemble(found, options, bodies)
    selector.marks = marks(arguments)
    return OutsideAutocast(selector) if outside else selector


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's cycle collector: compiling makes many objects and hardly any garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@final
@dataclass(frozen=True, slots=True)
class OutsideAutocast:
    """Runs without the autocast round the model, which is in the graph's operators already."""

    run: Selector

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph."""
        with outside_autocast():
            return self.run(*arguments)


@final
@dataclass
class PerShape:
    """A graph of dynamic shapes or numbers: one selector for every set of them met.

    Each is made on first use. A Python float stays an input, if it can.

    Attributes:
        data: Positions of the inputs that are no weights: those of one model have one shape.
        floats: Positions of the inputs that stand for a float.
        host: What is read from the inputs before each call, if anything is.
        fixed: Whether floats are literals: then each value of them is a graph of its own.
        bodies: Lowered for any size, for all shapes; None if the lowering knows fixed sizes alone.
        symbols: The symbols of dynamic sizes, and the positions of the inputs that give them.
    """

    gm: fx.GraphModule
    options: Options
    lowering: Lowering
    data: tuple[int, ...]
    floats: tuple[int, ...] = ()
    host: HostValues | None = None
    fixed: bool = False
    selectors: Recent[Compiled] = field(default_factory=Recent)
    bodies: VaryingBodies | None = None
    symbols: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bodies of dynamic sizes are shared by all shapes, if the lowering compiles such."""
        lower = getattr(self.lowering, "lower_varying", None)
        if lower is not None and self.host is None:
            self.bodies, self.symbols = VaryingBodies(lower), name_sizes(self.gm)

    def __call__(self, *arguments: Any) -> Any:
        """Run with the selector of these shapes and numbers."""
        given = [arguments[at] for at in self.data]
        if self.host is not None:
            count, arguments = len(arguments), self.host(arguments)
            given += arguments[count:]
        shapes = tuple((*a.shape, *a.stride()) if torch.is_tensor(a) else a for a in given)
        numbers = tuple(float(arguments[at]) for at in self.floats) if self.fixed else ()
        return self.selectors.get((shapes, numbers), lambda: self._compile(arguments))(*arguments)

    def _compile(self, arguments: Sequence[Any]) -> Compiled:
        gm = self.gm if self.host is None else self.host.rest
        sizes = {name: int(arguments[at]) for name, at in self.symbols.items()}
        how = self.options, self.lowering, (self.bodies, sizes)
        try:
            with as_dynamo_compiles():
                try:
                    return compile_graph(gm, arguments, *how)
                except FixedFloatError:
                    self.fixed = True
                    gm = with_floats(gm, arguments, self.floats)
                    return compile_graph(gm, arguments, *how)
        except (UnsupportedGraphError, ScheduleError) as error:
            schedule, steps = self.options.schedule, self.options.steps
            # A share may be in reach for some shapes only; a missing number of steps concerns all.
            usable = isinstance(schedule, Budget) and not (steps is None and schedule.needs_steps)
            refused = isinstance(error, UnsupportedGraphError) or usable
            if self.options.strict or not (refused or is_later_graph(arguments)):
                raise
            warn(f"nothing cached, full graph: {error}")
            with detached_from_dynamo():
                return Uncached(self.lowering.plain(gm, arguments), str(error))


@final
@dataclass(frozen=True, slots=True)
class Uncached:
    """A graph that runs in full. The session in which it is called takes note, with the reason."""

    run: Compiled
    reason: str

    def __call__(self, *arguments: Any) -> Any:
        """Run the graph."""
        results = self.run(*arguments)
        session = active_session()
        if session is not None:
            session.note_uncached(self.reason)
        return results


def _refuse_gradients(arguments: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(
        value.requires_grad for value in arguments if torch.is_tensor(value)
    ):
        raise GradientsEnabledError


def _plain(
    gm: fx.GraphModule,
    arguments: Sequence[Any],
    lowering: Lowering,
    *,
    refusal: DeltapassError,
    strict: bool,
) -> Compiled:
    """The unchanged graph, with the reason said once; or the reason raised."""
    if strict:
        raise refusal
    warn(f"nothing cached, full graph: {refusal}")
    return Uncached(lowering.plain(gm, arguments), str(refusal))
