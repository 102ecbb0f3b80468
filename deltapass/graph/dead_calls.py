"""Which calls of a program are of use, and which nobody needs any more."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from deltapass.graph.program import Call, Program


def drop_dead_calls(program: Program) -> Program:
    """Leave out every call that no result needs."""
    needed = {*program.value_results, *program.deltas}
    kept = []
    for call in reversed(program.calls):
        if needed.intersection(call.outputs):
            kept.append(call)
            needed.update(call.inputs)
    return replace(program, calls=tuple(reversed(kept)))


def without_outputs(call: Call, names: Container[str]) -> Call:
    """The call with the outputs in `names` renamed, so that nobody reads them."""
    outputs = tuple(f"{name}_dropped" if name in names else name for name in call.outputs)
    return replace(call, outputs=outputs)
