"""Stage 1: a graph and its inputs -> a functional graph of static shapes with known specs.

Takes the torch-level graph that Dynamo (or torch.export) gives. Runs it once on fake tensors,
which yields shapes, multiply-accumulates and in-place writes in one pass; makes it plain operators
if it enters modes on its way, and functional if anything it holds is written in place; folds
numbers, so that sizes are literals. Refuses mixed devices, in-place changes of inputs, and tensors
that are more than one block of numbers.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx, nn
from torch.utils._pytree import tree_iter

from deltapass.compiler.fake_run import FakeRun, ModeError, fake_run, spec_of
from deltapass.compiler.float_inputs import FixedFloatError, known_floats, made_of_floats
from deltapass.compiler.forms import refuse_forms
from deltapass.compiler.inputs import inputs_of, readable_name
from deltapass.compiler.plain_operators import without_modes, without_writes
from deltapass.compiler.roles import assign_roles
from deltapass.compiler.torch_state import stop_autocast
from deltapass.compiler.tracing import detached_from_dynamo
from deltapass.compiler.varying import varying_of
from deltapass.errors import MixedDevicesError
from deltapass.graph.program import Captured, Varying
from deltapass.graph.sizes import Size
from deltapass.options import NOTHING_STATED, StatedInputs


def capture(
    module: fx.GraphModule, arguments: Sequence[Any], stated: StatedInputs = NOTHING_STATED
) -> Captured:
    """Make a graph functional and static, and learn its shapes and costs.

    Args:
        module: Torch-level graph whose placeholders match `arguments`. It is not changed.
        arguments: Real tensors (or meta tensors) and plain numbers.
        stated: What the user says of the inputs.

    Returns:
        The captured graph. Numbers among the arguments have become literals.

    Raises:
        MixedDevicesError: If tensors with dimensions lie on several devices.
        MutationError: If the graph changes one of its inputs in place.
        UnsupportedOperatorError: If an operator does not run on tensors without data.
        TensorFormError: If an input is not one block of numbers.
        FixedFloatError: If a float among the inputs must be a literal.
        OptionError: If a stated name is that of no input.
    """
    refuse_forms(module, arguments)
    given = module
    with detached_from_dynamo():
        module, run = _functional(module, arguments)
    _refuse_mixed_devices(run.distinct.values())
    specs = {place: spec_of(value) for place, value in run.distinct.items()}
    floats = made_of_floats(module, known_floats(module, arguments), run.values)
    static = _fold_numbers(module, run.values, floats)
    placeholders = module.graph.find_nodes(op="placeholder")
    inputs = [static.names[node.name] for node in placeholders]
    found = Captured(
        graph=static.graph,
        root=_held_by(static.graph, module),
        inputs=inputs_of(placeholders, inputs, arguments),
        constants=static.constants,
        values={new: specs[id(run.values[old])] for old, new in static.names.items()},
        macs={static.names[name]: macs for name, macs in run.macs.items()},
        varying=_varying(module, static.names) if module is given else {},
        primitive=module is not given,
    )
    return assign_roles(found, stated)


def _varying(module: fx.GraphModule, names: Mapping[str, str]) -> dict[str, Varying]:
    """New name -> formulas of the sizes that vary, as the tracer left them on the nodes."""
    found = ((names.get(node.name), varying_of(node)) for node in module.graph.nodes)
    return {name: varying for name, varying in found if name is not None and varying is not None}


def _functional(module: fx.GraphModule, arguments: Sequence[Any]) -> tuple[fx.GraphModule, FakeRun]:
    """The graph without modes and in-place writes, and its run; autocast may be stopped by it."""
    floats = known_floats(module, arguments)
    try:
        run = fake_run(module, arguments)
    except ModeError:
        if floats:
            raise FixedFloatError from None
        module = without_modes(module, arguments)
        stop_autocast()
        run = fake_run(module, arguments)
    if run.writes:
        if floats:
            raise FixedFloatError
        module = without_writes(module, arguments, run.writes[0])
        stop_autocast()
        run = fake_run(module, arguments)
    return module, run


def _held_by(graph: fx.Graph, module: nn.Module) -> nn.Module:
    """What a graph looks up, without the module, which keeps the tracer's example values alive."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        *path, name = str(node.target).split(".")
        holder = root
        for part in path:
            if not hasattr(holder, part):
                setattr(holder, part, nn.Module())
            holder = getattr(holder, part)
        setattr(holder, name, operator.attrgetter(str(node.target))(module))
    return root


def _refuse_mixed_devices(values: Iterable[Any]) -> None:
    # A scalar on the CPU may meet tensors on any device; everything else must agree.
    devices = {
        str(leaf.device) for leaf in tree_iter(list(values)) if torch.is_tensor(leaf) and leaf.ndim
    }
    if len(devices) > 1:
        raise MixedDevicesError(sorted(devices))


@final
@dataclass(frozen=True, kw_only=True)
class _Static:
    """A static copy of a graph; `names` maps the names of its nodes from the old to the new."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    names: dict[str, str]


def _fold_numbers(
    module: fx.GraphModule, values: dict[str, Any], floats: Sequence[fx.Node]
) -> _Static:
    """Copy the graph with every number a literal and every tensor attribute a placeholder.

    Numbers that follow from `floats`, and sub-graphs, come first: what reads them takes them along.
    """
    graph, constants = fx.Graph(), {}
    names = _readable_names(module.graph.find_nodes(op="placeholder"))
    copies = {node: graph.placeholder(name) for node, name in names.items()}
    for node in module.graph.find_nodes(op="get_attr"):
        if torch.is_tensor(values[node.name]):
            copies[node] = graph.placeholder(node.name)
            held = operator.attrgetter(node.target)(module)
            constants[copies[node].name] = held.detach()
    numbers = {
        node: _number(node, values[node.name])
        for node in module.graph.nodes
        if node.op != "output" and node not in floats and _is_number(values[node.name])
    }
    # A number's placeholder, if it has one, stays, and nobody reads it.
    given: dict[fx.Node, Any] = {**copies, **numbers}
    for node in module.graph.nodes:
        if node in floats or (node.op == "get_attr" and node not in copies):
            copies[node] = given[node] = graph.node_copy(node, given.__getitem__)
    given.update((node, None) for node in module.graph.nodes if _is_settled(node, numbers))
    graph.output(graph.graph_copy(module.graph, given))
    graph.lint()
    made = {old: new for old, new in given.items() if isinstance(new, fx.Node)} | copies
    renamed = {old.name: new.name for old, new in made.items()}
    output = {module.graph.output_node().name: graph.output_node().name}
    return _Static(graph=graph, constants=constants, names=renamed | output)


def _readable_names(placeholders: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Readable names, where they are unique; else Dynamo's long ones."""
    names = {node: _unreserved(readable_name(node)) for node in placeholders}
    often = Counter(names.values())
    return {node: name if often[name] == 1 else node.name for node, name in names.items()}


def _unreserved(name: str) -> str:
    """Names of deltas and of their weights are the rewrite's."""
    return f"{name}_given" if name.startswith(("delta_", "weights_")) else name


def _is_settled(node: fx.Node, numbers: Collection[fx.Node]) -> bool:
    """Whether a node only checks numbers that are literals now, or gives and does nothing."""
    name = getattr(node.target, "__name__", "")
    checks = name.startswith(("_assert_scalar", "_check", "sym_constrain", "_log_api_usage_once"))
    return checks and all(value in numbers for value in node.all_input_nodes)


def _number(node: fx.Node, value: Any) -> Any:
    """A literal; one that depends on a dynamic size remembers how."""
    formula = node.meta.get("formula")
    return Size(value, formula) if isinstance(formula, str) else value


def _is_number(value: Any) -> bool:
    # None is what nodes kept for their effect give, such as leaving autocast: never folded.
    plain = (int, float, bool, str, torch.dtype, torch.device, torch.Size)
    return isinstance(value, plain)
