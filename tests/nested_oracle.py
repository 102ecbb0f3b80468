"""Delta-Cache, or features, on nested blocks of a U-shaped model: eager hooks on what joins skips.

What such a module is given is the inner part's result with the skip behind it, of one shape. At a
refresh their difference is kept, at a cached step the first half is replaced by skip + difference;
or it is kept and put in its own place, where both may differ in shape.
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
    """Runs steps of `model`; `joins` are the modules that take a skip, the outermost first.

    `widths` are the channels of the inner part's result in each; None: half of what is joined.
    """

    def __init__(
        self, model: nn.Module, joins: Sequence[nn.Module], widths: Sequence[int] | None = None
    ) -> None:
        self.model, self.joins, self.widths = model, joins, widths
        self._delta: Tensor | None = None

    @torch.no_grad()
    def run(self, table: Sequence[Any], calls: Sequence[Call]) -> list[Any]:
        """Outputs of a trajectory; a row is None for a refresh, or a span to the innermost block.

        All cached rows are one span.
        """
        (span,) = {row for row in table if row is not None}
        outermost, self._feature, self._delta = span.start, span.keeps == "feature", None
        self._width = self.widths[outermost] if self.widths else None
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
        inner, skip = self._halves(args[0])
        self._delta = inner if self._feature else inner - skip

    def _cached(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _, skip = self._halves(args[0])
        inner = self._delta if self._feature else skip + self._delta
        return (torch.cat([inner, skip], dim=1), *args[1:])

    def _halves(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        width = self._width or joined.shape[1] // 2
        return joined[:, :width], joined[:, width:]
