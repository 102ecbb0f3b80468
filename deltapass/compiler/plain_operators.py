"""Stage 1, where needed: the same graph in primitive operators, without modes or in-place writes.

Blocks can be moved, left out and lowered one by one only if each operator stands for itself. In a
graph that enters a mode it does not: what stands between entering and leaving works otherwise.

    _enter_autocast(...)                      a = _to_copy(x, dtype=bfloat16)
    y = linear(x, w)                ->        b = _to_copy(w, dtype=bfloat16)
    _exit_autocast(...)                       y = mm(a, b)

So are levels of vmap, of gradients and of forward derivatives, inference mode, and a choice of
attention kernels, turned into what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx

from deltapass.compiler.fake_run import to_fake
from deltapass.compiler.torch_state import Leaving
from deltapass.compiler.unwrapped import Apart
from deltapass.errors import MutationError
from deltapass.graph.copying import keep_source

aten = torch.ops.aten


def without_modes(module: fx.GraphModule, arguments: Sequence[Any]) -> fx.GraphModule:
    """A graph that enters no mode: its operators as they work inside those that it entered."""
    return _traced(module, to_fake(arguments), lambda run: run)


def without_writes(module: fx.GraphModule, arguments: Sequence[Any], write: str) -> fx.GraphModule:
    """In-place operators as out-of-place ones, keeping the module-stack metadata.

    Args:
        module: The graph.
        arguments: Its inputs.
        write: The first operation that writes, for the error.

    Raises:
        MutationError: If it writes into an input, or in a way that cannot be taken away.
    """
    try:
        functional = _traced(module, to_fake(arguments), torch.func.functionalize)
    except (RuntimeError, NotImplementedError) as error:
        raise MutationError(write, str(error).split("\n")[0]) from error
    if functional.graph.find_nodes(op="call_function", target=aten.copy_.default):
        raise MutationError(write, "it writes into an input of the model")
    return functional


def _traced(
    module: fx.GraphModule, fakes: Sequence[Any], transform: Callable[[Any], Any]
) -> fx.GraphModule:
    """What the graph does, in primitive operators; inputs and operators say where they are from."""
    source = module

    def run(*values: Any) -> Any:
        return Leaving(module).run(*values)

    # Autocast keeps its copy of what requires gradients: of a weight that two blocks share.
    apart = Apart(tuple(fakes))
    given = apart.plain
    with fx_traceback.preserve_node_meta():
        if apart.any:  # first, for functionalisation knows plain tensors alone
            module = make_fx(apart.taking(run))(*given)
        traced = make_fx(transform(run))(*given)
    own = source.graph.find_nodes(op="placeholder")
    if apart.any:
        apart.put_back(traced.graph, [node.name for node in own])
    placeholders = (graph.find_nodes(op="placeholder") for graph in (source.graph, traced.graph))
    for old, new in zip(*placeholders, strict=True):
        new.meta.update(old.meta, name_before=old.meta.get("name_before", old.name))
        keep_source(old, new)
    return traced
