"""Conditions on sizes under which torch.export's trace is the model, and which it does not enforce.

Where a model asks about its sizes, the trace holds one answer. Torch refuses a question about one
dimension whose answer varies; of questions about several (`height * width == 256`) it leaves a
guard that no engine can ask again. And it takes for granted that no size that varies is 1. Each
condition is tried over the ranges. Where it fails the traced graph and the model itself are run, in
eager PyTorch: only where both give the same does the condition not matter.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deltapass.errors import DynamicShapeError, ExportError
from deltapass.exporting.compare import TOLERANCES, relative_error, resized
from deltapass.graph.sizes import evaluate, formula_of, read_sizes

TRIED: Final = 1 << 17  # combinations of sizes for which a condition is asked
COMPARED: Final = 16  # combinations that break a condition, for which the model is run
LARGE: Final = 4096  # tried up to here where a dimension has no bound

# Of a condition: an operation of torch's that is none of FUNCTIONS, or a division by zero.
UNASKED: Final = (ArithmeticError, NameError, TypeError, ValueError)
FAILED: Final = (*UNASKED, RuntimeError, LookupError, AssertionError)  # of the trace at other sizes

Bounds = Mapping[str, tuple[int, int | None]]
Sizes = dict[str, int]


@final
@dataclass(frozen=True, kw_only=True)
class Traced:
    """What was traced, and what may vary of it.

    Attributes:
        program: torch.export's program.
        model: What it was made of.
        call: Parameter name -> argument of the example call.
        inputs: Input name -> what the call gives for it.
        symbols: Torch's symbol -> the dimension's name.
        bounds: Dimension's name -> least and greatest size (None: no bound).
    """

    program: ExportedProgram
    model: torch.nn.Module
    call: Mapping[str, Any]
    inputs: Mapping[str, Any]
    symbols: Mapping[str, str]
    bounds: Bounds


@final
@dataclass(frozen=True)
class Condition:
    """A condition on dimensions. `text` is as torch writes it, `place` the model's own line."""

    text: str
    names: tuple[str, ...]
    constants: frozenset[int]
    holds: Callable[..., Any]
    place: str = ""

    @property
    def equality(self) -> bool:
        """Whether it holds for chosen sizes only, which the example happens to have."""
        return "==" in self.text


def refuse_conditions(traced: Traced) -> None:
    """Refuse ranges in which a condition fails and matters.

    Raises:
        DynamicShapeError: Names the dimensions, the condition and sizes that break it.
        ExportError: If the model itself fails at such sizes.
    """
    inputs = _Inputs(traced)
    for condition in _conditions(traced):
        broken = list(itertools.islice(_broken(condition, traced.bounds), COMPARED + 1))
        for sizes in broken:
            error = inputs.difference({**inputs.shown, **sizes})
            if not error <= inputs.tolerance or len(broken) > COMPARED:
                raise _refusal(condition, inputs, sizes, error)


def _refusal(
    condition: Condition, inputs: _Inputs, sizes: Mapping[str, int], error: float
) -> DynamicShapeError:
    named = ", ".join(inputs.place(name) for name in condition.names)
    at = ", ".join(f"{name}={size}" for name, size in sizes.items())
    differs = f", where its result is off by {error:.2g} of the largest value" if error else ""
    if math.isinf(error):
        differs = ", where it cannot run"
    if condition.equality:
        shown = ", ".join(f"{name}={inputs.shown[name]}" for name in condition.names)
        remedy = (
            f"Give an example of other sizes than {shown}, which the model treats as a special "
            "case, or leave these dimensions fixed"
        )
    else:
        remedy = (
            "Narrow the ranges (Dim's min and max, or the bounds of the batch) so that it always "
            "holds, or leave these dimensions fixed"
        )
    return DynamicShapeError(
        f"{named} cannot vary as asked: torch.export traced the model for {condition.text} alone"
        f"{condition.place}; {at} lies in the ranges and breaks it{differs}",
        remedy,
    )


# ---- which conditions there are ---------------------------------------------------------------


def _conditions(traced: Traced) -> Iterator[Condition]:
    """Each once: of torch's guards, and that no size is 1."""
    for name in traced.bounds:
        yield Condition(f"{name} != 1", (name,), frozenset({1}), lambda size: size != 1)
    values = (n.meta.get("val") for n in traced.program.graph.nodes if n.op == "placeholder")
    shapes: Iterator[Any] = (value.shape for value in values if isinstance(value, torch.Tensor))
    sizes = [size for shape in shapes for size in shape if isinstance(size, torch.SymInt)]
    guards = sizes[0].node.shape_env.guards if sizes else []
    for guard in {guard.expr: guard for guard in guards}.values():
        expression: Any = guard.expr
        names = {traced.symbols.get(str(symbol)) for symbol in expression.free_symbols}
        if names <= traced.bounds.keys():
            yield _condition(expression, traced.symbols, _line_of(guard))


def _condition(expression: Any, symbols: Mapping[str, str], place: str) -> Condition:
    order = list(symbols)
    free = sorted(expression.free_symbols, key=lambda symbol: order.index(str(symbol)))
    names = tuple(symbols[str(symbol)] for symbol in free)
    renamed = expression.xreplace(
        {symbol: sympy.Symbol(name) for symbol, name in zip(free, names, strict=True)}
    )
    relation = getattr(renamed, "rel_op", None)
    text = f"{renamed.lhs} {relation} {renamed.rhs}" if relation else str(renamed)
    constants = frozenset(abs(int(each)) for each in expression.atoms(sympy.Integer))
    holds = sympy.lambdify(free, expression, modules=[dict(FUNCTIONS), "math"])
    return Condition(text, names, constants, holds, place)


# Functions of torch's that conditions are made of -> what they do with numbers.
FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    **dict.fromkeys(("FloorDiv", "CleanDiv"), operator.floordiv),
    **dict.fromkeys(("Mod", "PythonMod"), operator.mod),
    **dict.fromkeys(("IntTrueDiv", "FloatTrueDiv"), operator.truediv),
    **dict.fromkeys(("PowByNatural", "FloatPow"), operator.pow),
    "CeilDiv": lambda one, two: -(-one // two),
    "ModularIndexing": lambda base, divisor, modulus: base // divisor % modulus,
    **dict.fromkeys(("CeilToInt", "ceiling"), math.ceil),
    **dict.fromkeys(("FloorToInt", "floor"), math.floor),
    **dict.fromkeys(("TruncToInt", "TruncToFloat"), math.trunc),
    "ToFloat": float,
    "OpaqueUnaryFn_sqrt": math.sqrt,
    "Max": max,
    "Min": min,
    "Abs": abs,
}


def _line_of(guard: Any) -> str:
    """Where the model asks; nothing for a question of torch's own."""
    frame: Any = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    path = Path(getattr(frame, "filename", ""))
    known = frame is not None and Path(torch.__file__).parent not in path.parents
    return f" ({path.name}, line {frame.lineno})" if known else ""


# ---- where they fail --------------------------------------------------------------------------


def _broken(condition: Condition, bounds: Bounds) -> Iterator[Sizes]:
    """Sizes within the ranges that break a condition; where it cannot be asked, any."""
    count = int(TRIED ** (1 / max(1, len(condition.names))))
    tried = [_tried(bounds[name], condition.constants, count) for name in condition.names]
    for sizes in itertools.product(*tried):
        try:
            holds = bool(condition.holds(*sizes))
        except UNASKED:
            holds = False
        if not holds:
            yield dict(zip(condition.names, sizes, strict=True))


def _tried(ends: tuple[int, int | None], constants: frozenset[int], count: int) -> Sequence[int]:
    """All sizes of a range; of a long one those at its ends, by the constants, and between."""
    least, most = ends[0], LARGE if ends[1] is None else ends[1]
    most = max(least, most)
    if most - least < count:
        return range(least, most + 1)
    small = {1, *(each for each in constants if each <= COMPARED)}
    near = {
        size + beside
        for constant in constants
        for part in _divisors(constant)
        for size in {part * times for times in small}
        for beside in (-1, 0, 1)
    }
    step = max(1, 2 * (most - least) // count)
    some = {most, most - 1, *range(least, least + COMPARED), *near, *range(least, most, step)}
    return sorted(size for size in some if least <= size <= most)


def _divisors(number: int) -> set[int]:
    pairs = ((at, number // at) for at in range(1, math.isqrt(number) + 1) if number % at == 0)
    return {part for pair in pairs for part in pair}


# ---- whether it matters -----------------------------------------------------------------------


@final
class _Inputs:
    """The example call at other sizes, through the trace and through the model."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        values = {n.name: n.meta.get("val") for n in traced.program.graph.nodes}
        tensors = {n: t for n, t in traced.inputs.items() if isinstance(t, torch.Tensor)}
        shapes = {
            name: tuple(
                size if isinstance(size, int) else formula_of(size, traced.symbols)
                for size in values[name].shape
            )
            for name in tensors
        }
        self._dimensions = {id(tensors[name]): shape for name, shape in shapes.items()}
        self._places: dict[str, str] = {}
        for name, shape in shapes.items():
            for at, size in enumerate(shape):
                self._places.setdefault(str(size), f"dimension {at} of {name}")
        shown = ((shape, tensors[name].shape) for name, shape in shapes.items())
        self.shown = read_sizes(shown)

    def place(self, name: str) -> str:
        """A dimension's name, and where it lies."""
        return f"{name} ({self._places[name]})" if name in self._places else name

    @property
    def tolerance(self) -> float:
        """Between two runs in eager PyTorch, by the type of the first floating input."""
        types = (t.dtype for t in self._traced.inputs.values() if isinstance(t, torch.Tensor))
        found = next((str(dtype) for dtype in types if dtype.is_floating_point), "")
        return TOLERANCES.get(found.removeprefix("torch."), TOLERANCES["float32"])

    def difference(self, sizes: Mapping[str, int]) -> float:
        """How far the trace lies from the model at these sizes."""
        call = pytree.tree_map_only(
            torch.Tensor,
            lambda tensor: self._at(tensor, sizes),
            dict(self._traced.call),
        )
        with torch.no_grad():
            wanted = run_model(self._traced.model, call, sizes)
            try:
                given = self._traced.program.module(check_guards=False)(**call)
            except FAILED:
                return math.inf
        return relative_error(pytree.tree_leaves(given), pytree.tree_leaves(wanted))

    def _at(self, tensor: torch.Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
        dimensions = self._dimensions.get(id(tensor), tuple(tensor.shape))
        return resized(tensor, [evaluate(size, sizes) for size in dimensions])


def run_model(model: torch.nn.Module, call: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    """What the model itself gives.

    Raises:
        ExportError: If it fails: the bundle would give something.
    """
    try:
        return model(**call)
    except Exception as error:
        at = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the example"
        raise ExportError(
            f"the model itself fails for {at}: {type(error).__name__}: {error}",
            "Give the dimensions a least and a greatest size (Dim's min and max) that it takes",
        ) from error
