"""From a segment to a torch.export program of its own, which every engine format starts from.

The weights become buffers under their names in the model, sharing its memory; sizes that vary are
worked out from the segment's own inputs.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from deltapass.bundles.formats import SegmentProgram
from deltapass.errors import DynamicShapeError, InternalError
from deltapass.exporting.constants import Constants
from deltapass.graph.program import Call
from deltapass.graph.sizes import Dimensions, Size, multiple_of, symbols_of, write_out

aten = torch.ops.aten


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
    graph, root = fx.Graph(), torch.nn.Module()
    given = {name: graph.placeholder(name) for name in inputs}
    sizes = _Sizes(graph, given, values.shapes)
    constants = Constants(graph, root, {path.split(".")[0] for path in values.weights.values()})
    env: dict[fx.Node, Any] = {}
    names = iter(call.inputs)
    for node in call.body.module.graph.nodes:
        if node.op == "placeholder":
            name = next(names)
            env[node] = given.get(name) or _weight(graph, root, values, name)
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], lambda n: constants.get(n) or env[n]))
        elif not constants.fold(node):
            if node.op == "get_attr":
                setattr(root, str(node.target), getattr(call.body.module, str(node.target)))
            copied = graph.node_copy(node, lambda n: constants.get(n) or env[n])
            env[node] = sizes.replace(copied)
    graph.lint()
    return fx.GraphModule(root, graph)


def _weight(graph: fx.Graph, root: torch.nn.Module, values: Values, name: str) -> fx.Node:
    path = values.weights[name]
    *parents, last = path.split(".")
    owner = root
    for parent in parents:
        if not hasattr(owner, parent):
            owner.add_module(parent, torch.nn.Module())
        owner = getattr(owner, parent)
    # The file of weights holds them dense, and compiled code takes them as they are laid out here.
    owner.register_buffer(last, values.tensors[path].contiguous())
    return graph.get_attr(path)


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

    def replace(self, node: fx.Node) -> fx.Node:
        """Let a node take its sizes from the inputs."""
        with self._graph.inserting_before(node):
            node.args, node.kwargs = self._written((node.args, node.kwargs))
        return node

    def _written(self, value: Any) -> Any:
        if isinstance(value, Size):
            return self._size(value.formula)
        if isinstance(value, tuple | list):
            return type(value)(self._written(item) for item in value)
        if isinstance(value, dict):
            return {name: self._written(item) for name, item in value.items()}
        if isinstance(value, slice):
            return slice(*self._written((value.start, value.stop, value.step)))
        return value

    def _size(self, formula: str) -> Any:
        if formula not in self._made:
            if formula in self._places:
                made = self._graph.call_function(aten.sym_size.int, self._places[formula])
            elif formula.isidentifier() and formula in self._multiples:
                times, place = self._multiples[formula]
                whole = self._graph.call_function(aten.sym_size.int, place)
                made = self._graph.call_function(operator.floordiv, (whole, times))
            elif formula.isidentifier():
                raise InternalError(f"no input of the segment tells the size {formula!r}")
            else:
                symbols = {symbol: self._size(symbol) for symbol in symbols_of(formula)}
                made = write_out(self._graph, formula, symbols)
            self._made[formula] = made
        return self._made[formula]


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
