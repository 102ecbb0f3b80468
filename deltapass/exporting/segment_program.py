"""From a segment to a torch.export program of its own, which every engine format starts from.

The weights become buffers under their names in the model, sharing its memory; sizes that vary are
worked out from the segment's own inputs. What a segment computes from nothing is computed here:
the frequencies of a timestep embedding are exponentials of a range, which an engine builder would
fold with arithmetic of its own, and a last digit there, times a timestep of 999, is a visible error
in a sine.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_iter

from deltapass.bundles.formats import SegmentProgram
from deltapass.errors import DynamicShapeError, InternalError
from deltapass.graph.program import Call
from deltapass.graph.sizes import Dimensions, Size, multiple_of, symbols_of, write_out

aten = torch.ops.aten
LARGEST: Final = 1 << 20  # bytes; a larger constant is left to the engine, for the bundle's sake


@final
@dataclass(frozen=True, kw_only=True)
class Values:
    """What segments are made of besides operations.

    Attributes:
        weights: Value name -> name in the model.
        tensors: Name in the model -> tensor.
        example: Value name -> its tensor in the example call.
        shapes: Value name -> dimensions; only where they may vary.
    """

    weights: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    example: Mapping[str, torch.Tensor]
    shapes: Mapping[str, Dimensions]


def segment_program(call: Call, values: Values) -> SegmentProgram:
    """Export one segment.

    Raises:
        DynamicShapeError: If a dimension that may vary in the model is fixed in the segment.
    """
    inputs = tuple(name for name in call.inputs if name not in values.weights)
    module = _module(call, inputs, values)
    example = tuple(values.example[name].clone() for name in inputs)
    names = (*inputs, *call.outputs)
    shapes = {name: values.shapes[name] for name in names if name in values.shapes}
    program = _export(call.label, module, example, [shapes.get(name, ()) for name in inputs])
    _check(call.label, program, inputs, shapes)
    return SegmentProgram(
        name=call.label,
        inputs=inputs,
        outputs=call.outputs,
        program=program,
        values={name: values.example[name] for name in names},
        shapes=shapes,
        macs=call.body.macs,
    )


def _module(call: Call, inputs: Sequence[str], values: Values) -> fx.GraphModule:
    """The body with weights as attributes and varying sizes as operations."""
    graph, body = fx.Graph(), call.body.module
    given = {name: graph.placeholder(name) for name in inputs}
    paths = {name: values.weights[name] for name in call.inputs if name in values.weights}
    known = {**given, **{name: graph.get_attr(path) for name, path in paths.items()}}
    entries = (node for node in body.graph.nodes if node.op == "placeholder")
    copies = {node: known[name] for node, name in zip(entries, call.inputs, strict=True)}
    graph.output(graph.graph_copy(body.graph, copies))
    constants = fold_constants(graph, {path.split(".")[0] for path in values.weights.values()})
    _Sizes(graph, given, values.shapes).write_out()
    graph.lint()
    inner = (str(node.target) for node in body.graph.nodes if node.op == "get_attr")
    # The file of weights holds them dense, and compiled code takes them as they are laid out here.
    weights = {path: values.tensors[path].contiguous() for path in paths.values()}
    held = {**{name: getattr(body, name) for name in inner}, **weights, **constants}
    return fx.GraphModule(held, graph)


def fold_constants(graph: fx.Graph, taken: Collection[str]) -> dict[str, torch.Tensor]:
    """Replace what depends on no input and no weight by attributes.

    Args:
        graph: The graph to change.
        taken: Names that no attribute may have.

    Returns:
        Name of every attribute -> what torch computes for it.
    """
    values: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        if _is_constant(node, values):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                made: Any = node.target(*args, **kwargs)
            if isinstance(made, torch.Tensor) and made.nbytes <= LARGEST:
                values[node] = made
    names = (name for at in itertools.count() if (name := f"constant_{at}") not in taken)
    held = {}
    for node, value in values.items():
        if node.users.keys() - values.keys():
            name = next(names)
            held[name] = value.contiguous()
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))
    for node in reversed(values):
        graph.erase_node(node)
    return held


def _is_constant(node: fx.Node, constants: Collection[fx.Node]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    varies = any(isinstance(leaf, Size) for leaf in tree_iter((node.args, node.kwargs)))
    return not random and not varies and all(given in constants for given in node.all_input_nodes)


@final
class _Sizes:
    """Writes out varying sizes: once each, from an input's own dimensions."""

    def __init__(
        self, graph: fx.Graph, given: Mapping[str, fx.Node], shapes: Mapping[str, Dimensions]
    ) -> None:
        self._graph = graph
        self._places = {
            size: (node, at)
            for name, node in reversed(list(given.items()))
            for at, size in enumerate(shapes.get(name, ()))
            if isinstance(size, str)
        }
        parts = ((multiple_of(size), place) for size, place in self._places.items())
        self._multiples = {part[1]: (part[0], place) for part, place in parts if part}
        self._made: dict[str, Any] = {}

    def write_out(self) -> None:
        """Let all nodes take their sizes from the inputs."""
        for node in list(self._graph.nodes):
            with self._graph.inserting_before(node):
                node.args, node.kwargs = map_aggregate((node.args, node.kwargs), self._written)

    def _written(self, leaf: Any) -> Any:
        return self._size(leaf.formula) if isinstance(leaf, Size) else leaf

    def _size(self, formula: str) -> Any:
        if formula not in self._made:
            self._made[formula] = self._make(formula)
        return self._made[formula]

    def _make(self, formula: str) -> fx.Node | int:
        """An input's own dimension, a part of one, or a formula over such."""
        if formula in self._places:
            return self._graph.call_function(aten.sym_size.int, self._places[formula])
        if not formula.isidentifier():
            symbols = {symbol: self._size(symbol) for symbol in symbols_of(formula)}
            return write_out(self._graph, formula, symbols)
        if formula not in self._multiples:
            raise InternalError(f"no input of the segment tells the size {formula!r}")
        times, place = self._multiples[formula]
        whole = self._graph.call_function(aten.sym_size.int, place)
        return self._graph.call_function(operator.floordiv, (whole, times))


def _export(
    label: str,
    module: fx.GraphModule,
    example: tuple[torch.Tensor, ...],
    shapes: Sequence[Dimensions],
) -> ExportedProgram:
    dynamic = tuple(
        {at: Dim.DYNAMIC for at, size in enumerate(dimensions) if isinstance(size, str)}
        for dimensions in shapes
    )
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about torch's own calls
            return torch.export.export(
                module,
                example,
                dynamic_shapes=dynamic if any(dynamic) else None,
                strict=False,
                # A size that follows from others, such as tokens = height * width, is checked at
                # run time instead of being refused.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except ValueError as error:  # torch's word for a dimension that is fixed
        said = " ".join(str(error).split())[:300]
        raise DynamicShapeError(
            f"a dimension that may vary in the model is fixed in segment {label!r}: {said}",
            "Leave it out of the dynamic dimensions",
        ) from error


def _check(
    label: str, program: ExportedProgram, inputs: Sequence[str], shapes: Mapping[str, Dimensions]
) -> None:
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    for name in inputs:
        for at, size in enumerate(shapes.get(name, ())):
            value = values.get(name)
            fixed = isinstance(value, torch.Tensor) and isinstance(value.shape[at], int)
            if isinstance(size, str) and fixed:
                raise DynamicShapeError(
                    f"dimension {at} of {name} ({size}) is fixed in segment {label!r}",
                    "Leave it out of the dynamic dimensions",
                )
