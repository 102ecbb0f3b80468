"""Stage 2, with metadata: which modules the forward of a module calls, in order.

Dynamo leaves on every node the stack of modules whose forward it comes from, outermost first. What
one module calls itself are its siblings: entries of a ModuleList or ModuleDict and plain attributes
alike, for how they are held leaves no trace in a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, final

from deltapass.graph.program import Captured
from deltapass.graph.stack import Block


@final
@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module, and the range of nodes it covers.

    Attributes:
        keys: The modules it is called within, and itself; repeated calls have keys of their own.
        kind: Its class, as the tracer names it.
        block: Its nodes. Those of a submodule that is called alone, from outside, do not count.
    """

    keys: tuple[str, ...]
    kind: str
    block: Block


def called_by(captured: Captured, caller: ModuleCall | None) -> tuple[ModuleCall, ...]:
    """The modules that a module's forward calls, in order.

    Args:
        captured: The graph.
        caller: A call of that module; None for the graph as a whole.

    Returns:
        Calls that do not overlap. Of two whose nodes are mixed, the one that ends first.
    """
    within = caller.block if caller else Block(name="", first=0, stop=len(captured.nodes))
    outer = caller.keys if caller else ()
    found: dict[tuple[str, ...], tuple[list[int], tuple[str, Any]]] = {}
    for position in range(within.first, within.stop):
        node = captured.nodes[position]
        stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
        if not node.op.startswith("call") or len(stack) <= len(outer):
            continue
        entries = list(stack.items())[: len(outer) + 1]
        keys = tuple(str(key) for key, _ in entries)
        if keys[:-1] == outer:
            found.setdefault(keys, ([], entries[-1][1]))[0].append(position)
    calls = (
        ModuleCall(keys, str(kind), Block(name=_name(path), first=at[0], stop=at[-1] + 1))
        for keys, (at, (path, kind)) in found.items()
    )
    return _apart(sorted(calls, key=lambda call: call.block.stop))


def _apart(calls: list[ModuleCall]) -> tuple[ModuleCall, ...]:
    kept: list[ModuleCall] = []
    for call in calls:
        if not kept or kept[-1].block.stop <= call.block.first:
            kept.append(call)
    return tuple(kept)


def _name(path: str) -> str:
    """`L['self']._modules['blocks']._modules['3']` -> `blocks.3`; `L['self'].mid` -> `mid`."""
    path = re.sub(r"\.?__dict__\['_modules'\]|\._modules", "", str(path))
    *outer, last = re.sub(r"\['?([^'\]]*)'?\]", r".\1", path).split(".")
    return f"{outer[-1]}.{last}" if last.isdigit() and outer else last
