"""deltapass: faster diffusion transformers by Delta-Cache, in the compiler.

pipe.transformer = torch.compile(pipe.transformer, backend="deltadit")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltapass.public import *  # noqa: F403 - all of it, and mypy knows what that is

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load `deltapass.public` when something of it is first asked for: it takes torch with it.

    Without this the command line could not say what it takes, or that a file is missing, in less
    than torch's own start-up.
    """
    if name.startswith("__"):  # others ask every module for such names
        raise AttributeError(f"module 'deltapass' has no attribute {name!r}")
    globals().update(_public())
    if name not in globals():
        raise AttributeError(f"module 'deltapass' has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})


def _public() -> dict[str, Any]:
    found = vars(importlib.import_module("deltapass.public"))
    return {name: value for name, value in found.items() if not name.startswith("_")}
