"""Dealing with Dynamo: the graph it makes of a model, which calls to refuse, how to leave it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import fx
from torch._guards import tracing

from deltapass.compiler.inputs import TIMESTEP_NAMES, argument_name, source_of
from deltapass.compiler.torch_state import kept_state
from deltapass.errors import GraphBreakError, StepUnknownError, TraceError


def trace(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """The graph Dynamo would hand to the backend, and its inputs; the model is not run.

    Raises:
        GraphBreakError: If the model does not trace as one graph.
        TraceError: If torch cannot trace it for another reason.
    """
    caught: list[tuple[fx.GraphModule, tuple[Any, ...]]] = []

    def catch(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        caught.append((gm, tuple(example_inputs)))
        return _stop

    try:
        with kept_state(), torch.no_grad():
            once = torch.compile(_fresh(model), backend=catch, fullgraph=True, dynamic=False)
            once(*args, **kwargs)
    except _TracedError:
        return caught[0]
    except torch._dynamo.exc.Unsupported as error:
        places = [f"{frame.filename}:{frame.lineno}" for frame in (error.real_stack or ())[-1:]]
        raise GraphBreakError(str(error).split("\n")[0], *places) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise TraceError(str(error).split("\n")[0]) from error
    raise GraphBreakError("Dynamo gave no graph for it")


def _fresh(model: Callable[..., Any]) -> Callable[..., Any]:
    """The same function under a code object of its own.

    Dynamo keeps what it compiles by code object: tracing the model's own would count against its
    recompile limit, and keep weights and inputs alive.
    """
    bound = model.forward if isinstance(model, torch.nn.Module) else model
    function = getattr(bound, "__func__", bound)
    if not isinstance(function, types.FunctionType):
        return model
    code = function.__code__.replace()
    copy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    owner = getattr(bound, "__self__", None)
    return copy if owner is None else types.MethodType(copy, owner)


@final
class _TracedError(Exception):
    """Stops a traced model before it runs."""


def _stop(*_: Any) -> Any:
    raise _TracedError


def refuse_number_timesteps(module: fx.GraphModule, arguments: Sequence[Any]) -> None:
    """Refuse a timestep that is a plain number: every value of it would be compiled anew.

    Raises:
        StepUnknownError: If one is among the inputs.
    """
    nodes = module.graph.find_nodes(op="placeholder")
    for node, value in zip(nodes, arguments, strict=True):
        if not torch.is_tensor(value) and argument_name(source_of(node)) in TIMESTEP_NAMES:
            raise StepUnknownError("the timestep is a Python number; pass a tensor")


@contextmanager
def detached_from_dynamo() -> Iterator[None]:
    """Leave Dynamo's tracing context, whose fake tensors must not meet ours."""
    with kept_state(), tracing(None), torch.no_grad():
        yield
