"""The names of inputs that reach a model through `*args`, as those of a decorated forward do.

Dynamo knows such an input as `args[1]`, for it traces the decorator's wrapper. What is wrapped has
names for them, if the wrapper says what it wraps, as `functools.wraps` makes it say.
"""

from __future__ import annotations

import gc
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import fx

from deltapass.compiler.inputs import source_of

TRACER: Final = ("convert_frame.py", "trace_frame")


@final
@dataclass(frozen=True)
class Traced:
    """The call that Dynamo traces now: its code, the cells that it closes over, its variables."""

    code: types.CodeType
    closure: tuple[Any, ...]
    variables: Mapping[str, Any]


def name_arguments(module: fx.GraphModule) -> None:
    """Let inputs taken from `*args` tell their names in what is wrapped; else they stay numbers.

    To be called while Dynamo compiles the graph: it does not tell a backend which function that
    is, but its own frames hold the code.
    """
    traced = traced_call()
    if traced is None or not traced.code.co_flags & inspect.CO_VARARGS:
        return
    packed = packed_name(traced.code)
    names: tuple[str, ...] | None = None
    for node in module.graph.find_nodes(op="placeholder"):
        found = re.match(rf"L\['{packed}'\]\[(\d+)\]", source_of(node))
        if found is None:
            continue
        names = _names_of_packed(traced) if names is None else names
        at = int(found.group(1))
        if at < len(names):
            node.meta["source"] = f"L['{names[at]}']{source_of(node)[found.end() :]}"


def numbers_given() -> dict[str, int | float]:
    """The arguments of the call that Dynamo traces now that are plain numbers, by name."""
    traced = traced_call()
    if traced is None:
        return {}
    named = dict(traced.variables)
    if traced.code.co_flags & inspect.CO_VARARGS:
        packed = named.pop(packed_name(traced.code), ())
        named |= dict(zip(_names_of_packed(traced), packed, strict=False))
    if traced.code.co_flags & inspect.CO_VARKEYWORDS:
        named |= named.pop(_keywords_name(traced.code), {})
    plain = ((name, value) for name, value in named.items() if not isinstance(value, bool))
    return {name: value for name, value in plain if isinstance(value, int | float)}


def traced_call() -> Traced | None:
    """The call that Dynamo traces now, told by its frames; None where they do not tell."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith(TRACER[0]) and code.co_name == TRACER[1]:
            return _told_by(frame.f_locals)
        frame = frame.f_back
    return None


def _told_by(held: Mapping[str, Any]) -> Traced | None:
    code, variables = held.get("code"), held.get("locals")
    if not isinstance(code, types.CodeType) or not isinstance(variables, Mapping):
        return None
    return Traced(code, tuple(held.get("closure") or ()), variables)


def packed_name(code: types.CodeType) -> str:
    """What a function that takes `*args` calls them."""
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount]


def _keywords_name(code: types.CodeType) -> str:
    packed = bool(code.co_flags & inspect.CO_VARARGS)
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount + packed]


def _names_of_packed(traced: Traced) -> tuple[str, ...]:
    """Names that what is wrapped has for the arguments in `*args`; empty where nobody says."""
    wrapper = next((one for one in _candidates(traced) if _is_traced(one, traced)), None)
    wrapped = _wrapped_by(wrapper) if wrapper is not None else None
    if wrapped is None:
        return ()
    try:
        parameters = inspect.signature(wrapped).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name for one in parameters if one.kind in positional]
    return tuple(names[traced.code.co_argcount :])


def _wrapped_by(wrapper: Any) -> Any:
    """What a wrapper says it wraps, at the bottom; None where it says nothing."""
    wrapped = inspect.unwrap(wrapper)
    if isinstance(wrapped, torch.nn.Module):
        return inspect.unwrap(wrapped.forward)
    return wrapped if wrapped is not wrapper else None


def _candidates(traced: Traced) -> Iterator[Any]:
    """Functions that may be the one that is traced, the likely ones first."""
    first = traced.code.co_varnames[: min(1, traced.code.co_argcount)]
    owner = traced.variables.get(first[0]) if first else None
    for name in ("forward", "__call__"):
        one = getattr(getattr(owner, name, None), "__func__", None)
        while one is not None:
            yield one
            one = getattr(one, "__wrapped__", None)
    yield from gc.get_referrers(traced.code)


def _is_traced(one: Any, traced: Traced) -> bool:
    """Whether it is that function: all that one decorator makes have one code, but own cells."""
    if not isinstance(one, types.FunctionType) or one.__code__ is not traced.code:
        return False
    cells = one.__closure__ or ()
    return len(cells) == len(traced.closure) and all(
        mine is theirs for mine, theirs in zip(cells, traced.closure, strict=True)
    )
