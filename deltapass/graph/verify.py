"""The check after every change of a program."""

from __future__ import annotations

from deltapass.errors import InternalError
from deltapass.graph.program import Program


def verify(program: Program) -> Program:
    """Check that every value is made before it is used, and used with the layout it has.

    Returns:
        The program.

    Raises:
        InternalError: If not; that is a bug of ours, never the user's.
    """
    made = set(program.inputs)
    for call in program.calls:
        for name, wanted in zip(call.inputs, call.body.inputs, strict=True):
            if name not in made:
                raise InternalError(f"{program.name}: {call.label} reads {name!r} too early")
            found = program.specs[name]
            if found != wanted:
                raise InternalError(
                    f"{program.name}: {call.label} wants {name!r} as {wanted} with strides "
                    f"{wanted.stride}, it is {found} with strides {found.stride}"
                )
        made.update(call.outputs)
    missing = [name for name in (*program.value_results, *program.deltas) if name not in made]
    if missing:
        raise InternalError(f"{program.name}: results {missing} are never made")
    return program
