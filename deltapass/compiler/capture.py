"""Stage 1: a graph and its inputs -> a functional graph of static shapes with known specs.

Takes the torch-level graph that Dynamo (or torch.export) gives. Runs it once on fake tensors,
which yields shapes, multiply-accumulates and in-place writes in one pass; makes it functional
if anything the graph holds is written in place; folds numbers, so that sizes are literals.
Refuses graph fragments, mixed devices and in-place changes of inputs.
"""

from __future__ import annotations

import re
import sys
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx
from torch._guards import tracing
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_iter

from deltapass.compiler.fake_run import observe, spec_of, to_fake
from deltapass.errors import (
    GraphBreakError,
    MixedDevicesError,
    MutationError,
    StepUnknownError,
    UnsupportedOperatorError,
)
from deltapass.graph.program import Captured, Input, Role, TensorSpec
from deltapass.graph.sizes import Size

TIMESTEP_NAMES: Final = frozenset(
    {"timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_level"}
)
# Names that denoisers give the noisy sample, where the shape alone leaves a choice.
SAMPLE_NAMES: Final = frozenset({"hidden_states", "sample", "latents", "x", "latent_model_input"})
RESUME_PREFIX: Final = "torch_dynamo_resume_in"
aten = torch.ops.aten


def refuse_fragment(module: fx.GraphModule) -> None:
    """Refuse a graph that is only a piece of the model.

    Raises:
        GraphBreakError: If Dynamo broke the model's graph before or after this piece.
    """
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is not None and reason.graph_break:
        raise GraphBreakError(str(reason.reason).split("\n")[0].strip())
    resumed = next((name for name in _compiling_functions() if RESUME_PREFIX in name), None)
    if resumed is not None:
        raise GraphBreakError(f"this piece resumes after a break ({resumed})")


def _compiling_functions() -> Iterator[str]:
    """Names of the functions Dynamo is compiling now, innermost first.

    Dynamo does not tell a backend which function it compiles, but its own frames hold the code.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("convert_frame.py"):
            code = frame.f_locals.get("code")
            if isinstance(code, types.CodeType):
                yield code.co_name
        frame = frame.f_back


def refuse_number_timesteps(module: fx.GraphModule, arguments: Sequence[Any]) -> None:
    """Refuse a timestep that is a plain number: every value of it would be compiled anew.

    Raises:
        StepUnknownError: If one is among the inputs.
    """
    for node, value in zip(_placeholders(module), arguments, strict=True):
        if not torch.is_tensor(value) and _argument_name(_source(node)) in TIMESTEP_NAMES:
            raise StepUnknownError("the timestep is a Python number; pass a tensor")


def data_positions(module: fx.GraphModule, arguments: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the inputs that are no weights, and so may come in other shapes."""
    given = enumerate(zip(_placeholders(module), arguments, strict=True))
    return tuple(at for at, (node, value) in given if not _is_weight(node, value))


@contextmanager
def detached_from_dynamo() -> Iterator[None]:
    """Leave Dynamo's tracing context, whose fake tensors must not meet ours."""
    with tracing(None), torch.no_grad():
        yield


def capture(module: fx.GraphModule, arguments: Sequence[Any]) -> Captured:
    """Make a graph functional and static, and learn its shapes and costs.

    Args:
        module: Torch-level graph whose placeholders match `arguments`. It is not changed.
        arguments: Real tensors (or meta tensors) and plain numbers.

    Returns:
        The captured graph. Numbers among the arguments have become literals.

    Raises:
        MixedDevicesError: If tensors with dimensions lie on several devices.
        MutationError: If the graph changes one of its inputs in place.
    """
    with detached_from_dynamo():
        fakes = to_fake(arguments)
        try:
            seen = observe(module, fakes)
        except (NotImplementedError, DataDependentOutputException) as error:
            raise UnsupportedOperatorError(str(error).split("\n")[0]) from error
        if seen.writes:
            module = _functionalise(module, fakes, seen.writes[0])
            seen = observe(module, fakes)
        _refuse_mixed_devices(seen.values.values())
        folded = _fold_numbers(module, seen.values)
    names = folded.names
    specs = {names[name]: spec_of(value) for name, value in seen.values.items()}
    return Captured(
        module=folded.module,
        inputs=_classify(module, folded, seen.values, arguments),
        constants=folded.constants,
        values=specs,
        macs={names[name]: macs for name, macs in seen.macs.items()},
    )


# ---- making it functional and static ----------------------------------------------------------


def _functionalise(module: fx.GraphModule, fakes: Sequence[Any], write: str) -> fx.GraphModule:
    """Rewrite in-place operators as out-of-place ones, keeping the module-stack metadata."""

    def run(*values: Any) -> Any:
        return fx.Interpreter(module).run(*values)

    try:
        with fx_traceback.preserve_node_meta():
            functional = make_fx(torch.func.functionalize(run))(*fakes)
    except (RuntimeError, NotImplementedError) as error:
        raise MutationError(write, str(error).split("\n")[0]) from error
    if any(node.target is aten.copy_.default for node in functional.graph.nodes):
        raise MutationError(write, "it writes into an input of the model")
    for old, new in zip(_placeholders(module), _placeholders(functional), strict=True):
        new.meta.update(old.meta, name_before=old.name)
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return functional


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


@final
@dataclass(frozen=True, kw_only=True)
class _Folded:
    """A static copy of a graph; `names` maps the old node names to the new."""

    module: fx.GraphModule
    constants: dict[str, torch.Tensor]
    names: dict[str, str]


def _fold_numbers(module: fx.GraphModule, values: dict[str, Any]) -> _Folded:
    """Copy the graph with every number a literal and every tensor attribute a placeholder."""
    graph, constants = fx.Graph(), {}
    names = _readable_names(_placeholders(module))
    placed = {node: graph.placeholder(name) for node, name in names.items()}
    env: dict[fx.Node, Any] = dict(placed)
    for node in module.graph.nodes:
        if node.op == "get_attr" and torch.is_tensor(values[node.name]):
            env[node] = placed[node] = graph.placeholder(node.name)
            constants[placed[node].name] = _attribute(module, str(node.target))
    for node in module.graph.nodes:
        if node.op != "output" and _is_number(values[node.name]):
            # Its placeholder, if any, stays, and nobody reads it.
            env[node] = _number(node, values[node.name])
        elif node not in env:
            env[node] = placed[node] = graph.node_copy(node, env.__getitem__)
    graph.lint()
    renamed = {node.name: placed[node].name if node in placed else node.name for node in env}
    return _Folded(module=fx.GraphModule(module, graph), constants=constants, names=renamed)


def _readable_names(placeholders: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Readable names, where they are unique; else Dynamo's long ones."""
    names = {node: _unreserved(_readable_name(node)) for node in placeholders}
    often = Counter(names.values())
    return {node: name if often[name] == 1 else node.name for node, name in names.items()}


def _unreserved(name: str) -> str:
    """Names of deltas and of their trend are the rewrite's."""
    return f"{name}_given" if name == "trend" or name.startswith("delta_") else name


def _readable_name(node: fx.Node) -> str:
    """The argument's own name for data; Dynamo's long name for weights."""
    source, name = _source(node), node.meta.get("name_before", node.name)
    return name if _is_state(source) else _argument_name(source) or name


def _number(node: fx.Node, value: Any) -> Any:
    """A literal; one that depends on a dynamic size remembers how."""
    formula = node.meta.get("formula")
    return Size(value, formula) if isinstance(formula, str) else value


def _is_number(value: Any) -> bool:
    # None is what nodes kept for their effect give, such as leaving autocast: never folded.
    plain = (int, float, bool, str, torch.dtype, torch.device, torch.Size)
    return isinstance(value, plain)


def _attribute(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value.detach() if torch.is_tensor(value) else value


# ---- what the inputs are ----------------------------------------------------------------------


def _refuse_mixed_devices(values: Any) -> None:
    # A scalar on the CPU may meet tensors on any device; everything else must agree.
    devices = {
        str(leaf.device) for leaf in tree_iter(list(values)) if torch.is_tensor(leaf) and leaf.ndim
    }
    if len(devices) > 1:
        raise MixedDevicesError(sorted(devices))


def _classify(
    module: fx.GraphModule, folded: _Folded, values: dict[str, Any], arguments: Sequence[Any]
) -> tuple[Input, ...]:
    output = next(node for node in module.graph.nodes if node.op == "output")
    outputs = [leaf for leaf in tree_iter(values[output.name]) if torch.is_tensor(leaf)]
    inputs = [
        _input(node, folded.names[node.name], value)
        for node, value in zip(_placeholders(module), arguments, strict=True)
    ]
    alike = [i for i in inputs if i.role is Role.DATA and _like_output(i, outputs)]
    named = [i for i in alike if i.name in SAMPLE_NAMES]
    sample = next(iter([*named, *alike]), None)
    return tuple(
        Input(name=i.name, role=Role.SAMPLE, spec=i.spec) if i is sample else i for i in inputs
    )


def _input(node: fx.Node, name: str, value: Any) -> Input:
    if not torch.is_tensor(value):
        return Input(name=name, role=Role.SIZE, spec=None)
    if _is_weight(node, value):
        role = Role.WEIGHT
    else:
        named = _argument_name(_source(node))
        role = Role.TIMESTEP if named in TIMESTEP_NAMES else Role.DATA
    return Input(name=name, role=role, spec=TensorSpec.of(value))


def _is_weight(node: fx.Node, value: Any) -> bool:
    return isinstance(value, torch.nn.Parameter) or _is_state(_source(node))


def _is_state(source: str) -> bool:
    return re.search(r"_(parameters|buffers)\b", source) is not None


def _source(node: fx.Node) -> str:
    """Where the tracer took an input from, such as `L['timestep']`; empty where it is not said."""
    if "source" in node.meta:
        return str(node.meta["source"])
    source = getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _argument_name(source: str) -> str | None:
    """`L['timestep']` and `L['kwargs']['timestep']` -> `timestep`."""
    found = re.search(r"\['(\w+)'\]$", source)
    return found.group(1) if found else None


def _like_output(candidate: Input, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether an input has the output's shape up to the channels, as the noisy sample does."""
    spec = candidate.spec
    if spec is None or not outputs or not spec.dtype.is_floating_point:
        return False
    ours, theirs = list(spec.shape), list(outputs[0].shape)
    if len(ours) != len(theirs) or len(ours) < 2:
        return False
    channel = 1 if len(ours) > 3 else -1
    del ours[channel], theirs[channel]
    return ours == theirs
