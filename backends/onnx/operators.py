"""torch.onnx's table of operators, made once for several programs.

torch.onnx makes the table anew for each program that it converts, from the signatures of some five
hundred functions: half of the time that a segment of a few layers takes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from deltapass.libraries import optional_module

GATHER: Final = "from_torchlib"


@contextmanager
def gathered_once() -> Iterator[None]:
    """Let all conversions within begin with a copy of one table for each opset.

    Raises:
        MissingLibraryError: If onnxscript is not installed.
    """
    optional_module("onnxscript", "export")
    kind = optional_module("torch.onnx._internal.exporter._registration", "export").ONNXRegistry
    own = vars(kind).get(GATHER)
    if own is None:  # of another torch
        yield
        return
    made = functools.cache(getattr(kind, GATHER))

    def gathered(*args: Any, **kwargs: Any) -> Any:
        return _copied(made(*args, **kwargs))

    setattr(kind, GATHER, staticmethod(gathered))
    try:
        yield
    finally:
        setattr(kind, GATHER, own)


def _copied(table: Any) -> Any:
    """The same operators in a table of its own: who converts may add some."""
    mine = copy.copy(table)
    for name, value in vars(table).items():
        if isinstance(value, dict):
            setattr(mine, name, {key: copy.copy(held) for key, held in value.items()})
    return mine
