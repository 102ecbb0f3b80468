"""Stage 1 for engines: torch.export instead of Dynamo, then the same capture.

Takes a model and one call of it; gives the captured graph at the sizes of that call, the weights by
their names in the model, and every size that may vary as a formula over named dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from deltapass.bundles.results import structure_of
from deltapass.bundles.signature import Signature, example_call, template_of
from deltapass.bundles.weights_file import tensor_at
from deltapass.compiler.capture import capture
from deltapass.errors import DynamicShapeError, ExportError, MutationError
from deltapass.exporting.conditions import Traced, refuse_conditions
from deltapass.exporting.dynamic_shapes import DynamicShapes, FreeDimensions, free_dimensions
from deltapass.graph.program import Captured
from deltapass.graph.sizes import Dimension, Size, formula_of

WEIGHTS: Final = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@final
@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model, captured.

    Attributes:
        captured: Its graph at the sizes of the example call; weights come first.
        weights: Placeholder name -> name in the model (for constants, torch.export's own).
        tensors: Name in the model -> tensor.
        held: Names of the tensors that are the model's own; the rest torch.export made.
        call: Parameter name -> argument of the example call.
        example: Input name -> the example's tensor.
        signature: How it is called.
        dimensions: Name -> least and greatest size (None: no bound).
        shapes: Value name -> dimensions; only where they may vary.
    """

    captured: Captured
    weights: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    held: frozenset[str]
    call: Mapping[str, Any]
    example: Mapping[str, torch.Tensor]
    signature: Signature
    dimensions: Mapping[str, tuple[int, int | None]]
    shapes: Mapping[str, tuple[Dimension, ...]]


def export_graph(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic: DynamicShapes | None = None,
    batch: tuple[int, int] | None = None,
) -> Exported:
    """Trace a model with torch.export and capture the graph.

    Args:
        model: The denoiser, in eval mode.
        args: Positional inputs of one call.
        kwargs: Keyword inputs of one call.
        dynamic: Dimensions that may vary, as for `free_dimensions`.
        batch: Bounds of the batch, if it may vary.

    Raises:
        ExportError, DynamicShapeError: If the model cannot be traced with this call, or sizes.
        UnsupportedGraphError: If the graph cannot be cached.
    """
    call, defaults, parameters = _example_call(model, args, kwargs)
    free = free_dimensions(call, dynamic, batch)
    program = _trace(model, call, free)
    inputs, result = _user_inputs(program, call), _result_of(program)
    symbols, bounds = _sizes(program, (model, call, inputs), free)
    weights = _weights(program)
    tensors = {path: _held(program, path) for path in weights.values()}
    given = {name: tensors[path] for name, path in weights.items()} | inputs
    found = _captured(program, weights, given, varies=bool(symbols))
    # The capture may have renamed them: an input called `input` shadows a builtin of Python.
    data = (entry.name for entry in found.inputs[len(weights) :])
    renamed = dict(zip(data, inputs.values(), strict=True))
    signature = Signature(
        parameters=parameters,
        template=template_of(call, {id(value): name for name, value in renamed.items()}),
        defaults=defaults,
        tuple_result=result,
    )
    return Exported(
        captured=found,
        weights=weights,
        tensors=tensors,
        call=call,
        held=frozenset(path for path in tensors if tensor_at(model, path) is not None),
        example={n: v for n, v in renamed.items() if isinstance(v, torch.Tensor)},
        signature=signature,
        dimensions=bounds,
        shapes=dict(_shapes(program, found, symbols)) if symbols else {},
    )


def _sizes(
    program: ExportedProgram,
    made_of: tuple[torch.nn.Module, Mapping[str, Any], Mapping[str, Any]],
    free: Sequence[FreeDimensions],
) -> tuple[dict[str, str], dict[str, tuple[int, int | None]]]:
    """Torch's symbol -> dimension, and dimension -> bounds within which the trace is the model."""
    model, call, inputs = made_of
    symbols = _named_symbols(program, dict(zip(inputs, free, strict=True)))
    _name_sizes(program.graph, symbols)
    bounds = _bounds(program, symbols)
    given: dict[str, Any] = {"model": model, "call": call, "inputs": inputs}
    refuse_conditions(Traced(program=program, symbols=symbols, bounds=bounds, **given))
    return symbols, bounds


def _example_call(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """`example_call` of what can be exported, on tensors of its own."""
    if not isinstance(model, torch.nn.Module):
        raise ExportError(f"a {type(model).__name__} was given", "Export a torch.nn.Module")
    call, defaults, parameters = example_call(model, args, kwargs)
    if model.training:
        raise ExportError("the model is in training mode", "Call model.eval() first")
    # One tensor object for two inputs would be merged into one input without a word.
    call = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), call)
    return call, defaults, parameters


def _trace(
    model: torch.nn.Module, call: Mapping[str, Any], free: Sequence[FreeDimensions]
) -> ExportedProgram:
    dynamic = any(free)
    structure = pytree.tree_structure(dict(call))
    shapes = pytree.tree_unflatten([dict(dims) or None for dims in free], structure)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about torch's own calls
            program = torch.export.export(
                model, (), dict(call), dynamic_shapes=shapes if dynamic else None, strict=False
            )
            return _functional(program) if dynamic else program
    except Exception as error:
        raise _trace_error(error) from error


def _trace_error(error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or [""]
    if type(error).__name__ in ("UserError", "ConstraintViolationError"):
        at = next((n for n, line in enumerate(lines) if "Suggested fixes" in line), len(lines))
        said = (line.strip() for line in (*lines[:3], *lines[at : at + 6]))
        return DynamicShapeError(
            f"a dimension cannot vary as asked: {' '.join(said)}",
            "Leave it out of the dynamic dimensions, or follow torch's suggestion",
        )
    return ExportError(
        f"torch.export cannot trace the model: {type(error).__name__}: {lines[0]}",
        "torch.export.export(model, args, kwargs, strict=False) shows the line",
    )


def _functional(program: ExportedProgram) -> ExportedProgram:
    """Without in-place operators, by torch's own pass: the capture's would lose the formulas."""
    schemas = (getattr(node.target, "_schema", None) for node in program.graph.nodes)
    writes = any(schema is not None and schema.is_mutable for schema in schemas)
    return program.run_decompositions({}) if writes else program


def _user_inputs(program: ExportedProgram, call: Mapping[str, Any]) -> dict[str, Any]:
    """Input name -> what was given for it, constants too, in the order of the graph."""
    leaves = iter(pytree.tree_leaves(dict(call)))
    specs = program.graph_signature.input_specs
    return {spec.arg.name: next(leaves) for spec in specs if spec.kind is InputKind.USER_INPUT}


def _result_of(program: ExportedProgram) -> bool | dict[str, Any]:
    kinds = (spec.kind.name for spec in program.graph_signature.output_specs)
    written = next((kind for kind in kinds if kind != "USER_OUTPUT"), None)
    if written is not None:
        raise MutationError("forward", f"torch.export returns a {written.lower()}")
    places = list(range(len(program.graph_signature.output_specs)))
    shape = pytree.tree_unflatten(places, program.call_spec.out_spec)
    if isinstance(shape, int) or (type(shape) in {tuple, list} and list(shape) == places):
        return not isinstance(shape, int)
    return dict(structure_of(shape))


def _weights(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name -> name in the model, of parameters, buffers and constants."""
    specs = program.graph_signature.input_specs
    strange = next((s for s in specs if s.kind not in (*WEIGHTS, InputKind.USER_INPUT)), None)
    if strange is not None:
        raise ExportError(
            f"the model takes an input of kind {strange.kind.name}", "Use plain tensors only"
        )
    return {spec.arg.name: str(spec.target) for spec in specs if spec.kind in WEIGHTS}


def _captured(
    program: ExportedProgram,
    weights: Mapping[str, str],
    arguments: Mapping[str, Any],
    *,
    varies: bool,
) -> Captured:
    """The graph, captured with the arguments of all its placeholders."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node in placeholders:  # sources as Dynamo writes them
        held = f"L['self']._parameters['{weights.get(node.name)}']"
        node.meta["source"] = held if node.name in weights else f"L['{node.name}']"
    found = capture(program.graph_module, [arguments[node.name] for node in placeholders])
    _refuse_sizes(found)
    used = (n for n in found.module.graph.nodes if n.op.startswith("call") and n.users)
    if varies and any("val" not in node.meta for node in used):
        raise DynamicShapeError(
            "the model changes tensors in place, and its sizes cannot be followed",
            "Export it without dynamic dimensions, or make those operators out-of-place",
        )
    return found


def _refuse_sizes(found: Captured) -> None:
    """A variant's results that are no tensors are those of the example, whatever the sizes."""
    results = next(iter(reversed(found.module.graph.nodes))).args[0]
    sizes = [r.formula for r in pytree.tree_leaves(results) if isinstance(r, Size)]
    if sizes:
        raise ExportError(
            f"the model returns a number that varies with a size: {sizes[0]}",
            "Return tensors, or leave that dimension fixed",
        )


def _held(program: ExportedProgram, path: str) -> torch.Tensor:
    found = program.state_dict.get(path, program.constants.get(path))
    if not isinstance(found, torch.Tensor):
        raise ExportError(f"the model holds {path!r}, no tensor", "Use parameters and buffers")
    return found.detach()


# ---- sizes that vary --------------------------------------------------------------------------


def _named_symbols(
    program: ExportedProgram, dynamic: Mapping[str, FreeDimensions]
) -> dict[str, str]:
    """Torch's symbol -> the dimension's name: the Dim's own, else input and position."""
    names: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        for at, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, torch.SymInt) or len(size.node.expr.free_symbols) != 1:
                continue
            (symbol,) = size.node.expr.free_symbols
            # Of a multiple, such as 2 * Dim("half"), the symbol stands for the part.
            dim = dynamic.get(node.name, {}).get(at)
            given = getattr(getattr(dim, "root", dim), "__name__", None)
            whole = f"{node.name}_{at}"
            plain = whole if size.node.expr.is_Symbol else f"{whole}_part"
            names.setdefault(str(symbol), given or plain)
    asked = {(name, at) for name, dims in dynamic.items() for at, dim in dims.items() if dim}
    for name, at in asked:
        value = next(n.meta["val"] for n in program.graph.nodes if n.name == name)
        if not isinstance(value.shape[at], torch.SymInt):
            raise DynamicShapeError(
                f"dimension {at} of {name} cannot vary: the model needs {value.shape[at]}",
                "Leave it out of the dynamic dimensions",
            )
    return names


def _bounds(
    program: ExportedProgram, symbols: Mapping[str, str]
) -> dict[str, tuple[int, int | None]]:
    bounds: dict[str, tuple[int, int | None]] = {}
    for symbol, ends in program.range_constraints.items():
        if str(symbol) in symbols:
            least = max(1, int(ends.lower))  # torch allows none at all, no engine does
            most = int(ends.upper) if ends.upper.is_Integer else None
            bounds[symbols[str(symbol)]] = (least, most)
    return bounds


def _name_sizes(graph: fx.Graph, symbols: Mapping[str, str]) -> None:
    """Leave on every node that gives a varying number the formula for it."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            node.meta["formula"] = formula_of(value, symbols)
        elif isinstance(value, torch.SymFloat | torch.SymBool):
            raise DynamicShapeError(
                f"{node.name} is a number that depends on a size and is no whole number",
                "Leave that dimension out of the dynamic ones",
            )


def _shapes(
    program: ExportedProgram, found: Captured, symbols: Mapping[str, str]
) -> Iterator[tuple[str, tuple[Dimension, ...]]]:
    """Value name -> dimensions. Nodes keep torch's symbolic values through the capture."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    known = {given.name: n for given, n in zip(found.inputs, placeholders, strict=True)}
    for node in found.module.graph.nodes:
        value = known.get(node.name, node).meta.get("val")
        if isinstance(value, torch.Tensor):
            sizes = (s if isinstance(s, int) else formula_of(s, symbols) for s in value.shape)
            dimensions = tuple(sizes)
            if any(isinstance(dimension, str) for dimension in dimensions):
                yield node.name, dimensions
