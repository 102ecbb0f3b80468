"""Delta-Cache on nested blocks of a U-shaped model, in eager PyTorch: hooks on what joins skips.

What such a module is given is the inner part's result with the skip behind it, of one shape. At a
refresh their difference is kept, at a cached step the first half is replaced by skip + difference.
The inner part runs, and what it gave is thrown away.
Source: Delta-DiT, arXiv:2406.01125, Appendix G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from reference import Call
from torch import Tensor, nn


class NestedOracle:
    """Runs steps of `model`; `joins` are the modules that take a skip, the outermost first."""

    def __init__(self, model: nn.Module, joins: Sequence[nn.Module]) -> None:
        self.model, self.joins = model, joins
        self._delta: Tensor | None = None

    @torch.no_grad()
    def run(self, table: Sequence[Any], calls: Sequence[Call]) -> list[Any]:
        """Outputs of a trajectory; a row is None for a refresh, or a span to the innermost block.

        All cached rows are one span.
        """
        (outermost,) = {row.start for row in table if row is not None}
        self._delta = None
        outputs = []
        for row, (args, kwargs) in zip(table, calls, strict=True):
            hook = self._refresh if row is None else self._cached
            handle = self.joins[outermost].register_forward_pre_hook(hook)
            try:
                outputs.append(self.model(*args, **kwargs))
            finally:
                handle.remove()
        return outputs

    def _refresh(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        inner, skip = args[0].chunk(2, dim=1)
        self._delta = inner - skip

    def _cached(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _, skip = args[0].chunk(2, dim=1)
        return (torch.cat([skip + self._delta, skip], dim=1), *args[1:])
