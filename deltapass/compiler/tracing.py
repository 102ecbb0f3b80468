"""Dealing with Dynamo: the graph it makes of a model, which calls to refuse, how to leave it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import fx
from torch._guards import tracing

from deltapass.compiler.fragments import refuse_hooks
from deltapass.compiler.inputs import argument_name, source_of
from deltapass.compiler.signatures import name_arguments, numbers_given
from deltapass.compiler.timesteps import TIMESTEP_NAMES
from deltapass.compiler.torch_state import kept_state
from deltapass.errors import GraphBreakError, NumberTimestepError, TraceError


def trace(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """The graph Dynamo would hand to the backend, and its inputs; the model is not run.

    Raises:
        HooksInsideError: If the model does not trace as one graph, and has hooks.
        GraphBreakError: If it does not for another reason.
        TraceError: If torch cannot trace it for another reason.
    """
    caught: list[tuple[fx.GraphModule, tuple[Any, ...]]] = []

    def catch(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        name_arguments(gm)
        caught.append((gm, tuple(example_inputs)))
        return _stop

    try:
        with kept_state(), torch.no_grad():
            fresh = _fresh(uncompiled(model))
            once = torch.compile(fresh, backend=catch, fullgraph=True, dynamic=False)
            once(*args, **kwargs)
    except _TracedError:
        return caught[0]
    except torch._dynamo.exc.Unsupported as error:
        plain = uncompiled(model)
        refuse_hooks([plain] if isinstance(plain, torch.nn.Module) else (), error)
        places = [f"{frame.filename}:{frame.lineno}" for frame in (error.real_stack or ())[-1:]]
        raise GraphBreakError(str(error).split("\n")[0], *places) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise TraceError(str(error).split("\n")[0]) from error
    raise GraphBreakError("Dynamo gave no graph for it")


def uncompiled(model: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile was given, where a model was compiled, once or more."""
    while True:
        owner = getattr(model, "__self__", model)
        if isinstance(owner, torch._dynamo.OptimizedModule):
            model = owner._orig_mod
        elif getattr(model, "_torchdynamo_wrapper_id", None) == id(model):
            model = model._torchdynamo_orig_callable  # type: ignore[attr-defined]
        else:
            return model


def is_compiled_twice() -> bool:
    """Whether Dynamo compiles a module now for a call of the same module compiled another time.

    So it is after `model.compile(...)` and `torch.compile(model, ...)`: the first one counts. Of
    two torch.compile, the outer one counts, and the other does not run.
    """
    owners = []
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "compile_wrapper":
            owners.append(getattr(frame.f_locals.get("fn"), "__self__", None))
        frame = frame.f_back
    modules = [id(owner) for owner in owners if isinstance(owner, torch.nn.Module)]
    return len(set(modules)) < len(modules)


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
    copy.__dict__.update(function.__dict__)  # what it wraps has the names of its arguments
    owner = getattr(bound, "__self__", None)
    return copy if owner is None else types.MethodType(copy, owner)


@final
class _TracedError(Exception):
    """Stops a traced model before it runs."""


def _stop(*_: Any) -> Any:
    raise _TracedError


def refuse_number_timesteps(module: fx.GraphModule, arguments: Sequence[Any]) -> None:
    """Refuse a timestep that is a whole number: every value of it would be compiled anew.

    Raises:
        NumberTimestepError: If one is among the inputs, and no tensor that could be the timestep.
    """
    nodes = module.graph.find_nodes(op="placeholder")
    given = ((name, value) for name, value in numbers_given().items() if isinstance(value, int))
    numbers = {name for name, _ in given if name in ("timestep", "timesteps")}
    tensors: set[str] = set()
    for node, value in zip(nodes, arguments, strict=True):
        name = argument_name(source_of(node))
        if name in TIMESTEP_NAMES:
            (tensors if torch.is_tensor(value) else numbers).add(name)
    if numbers and not tensors:
        raise NumberTimestepError(min(numbers, key=TIMESTEP_NAMES.index))


@contextmanager
def detached_from_dynamo() -> Iterator[None]:
    """Leave Dynamo's tracing context, whose fake tensors must not meet ours."""
    with kept_state(), tracing(None), torch.no_grad():
        yield


def graphs_compiled() -> int:
    """How many graphs Dynamo has followed and Inductor has taken in this process so far."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    ways = ("fxgraph_cache_miss", "fxgraph_cache_hit", "fxgraph_cache_bypass")
    return int(counters["stats"]["unique_graphs"] + sum(inductor[way] for way in ways))
