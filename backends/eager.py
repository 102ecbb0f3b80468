"""The eager lowering: runs each body's operations one by one. The reference for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body


@final
class EagerLowering:
    """Runs the captured operators themselves, so a refresh equals the plain model bit for bit."""

    exact = True
    wrapped = True

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode

    def can_lower(self, body: Body) -> str | None:
        """Every body runs eagerly."""
        return None

    def lower(self, body: Body) -> Lowered:
        """The body's generated Python function."""
        return body.module.forward

    def plain(self, module: torch.fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """The graph's generated Python function."""
        return module.forward
