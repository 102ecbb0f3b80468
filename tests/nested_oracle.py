"""Delta-Cache, or features, on nested blocks of a U-shaped model: a hook on what joins a skip.

What such a module is given is the inner part's result with the skip behind it, of one shape. At a
refresh their difference is kept, at a cached step the first half is replaced by skip + difference;
or it is kept and put in its own place, where both may differ in shape.
The inner part runs, and what it gave is thrown away.
Source: Delta-DiT, arXiv:2406.01125, Appendix G.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from reference import Call
from torch import Tensor, nn


class NestedOracle:
    """Runs `model`; `joins` are the modules that take a skip, the outermost first.

    `widths` are the channels of the inner part's result in each; None: half of what is joined.
    `entering` gives what enters the inner part, where the skip is that and something more.
    """

    def __init__(
        self,
        model: nn.Module,
        joins: Sequence[nn.Module],
        widths: Sequence[int] | None = None,
        entering: nn.Module | None = None,
    ) -> None:
        self.model, self.joins, self.widths, self.entering = model, joins, widths, entering

    @contextmanager
    def following(self, table: Sequence[Any]) -> Iterator[None]:
        """Each call of the model inside is a row: None for a refresh, or a span to the innermost.

        All cached rows are one span.
        """
        (span,) = {row for row in table if row is not None}
        feature, rows, kept = span.keeps == "feature", iter(table), list[Tensor]()
        entered: list[Tensor] = []

        def replaced(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            inner, skip = self._parts(args[0], span.start)
            live_in = entered[0] if entered else skip
            if next(rows) is None:
                kept[:] = [inner if feature else inner - live_in]
                return args
            inner = kept[0] if feature else live_in + kept[0]
            return (torch.cat([inner, skip], dim=1), *args[1:])

        def noted(_: nn.Module, __: Any, given: Tensor) -> None:
            entered[:] = [given]

        handles = [self.joins[span.start].register_forward_pre_hook(replaced)]
        if self.entering is not None:
            handles.append(self.entering.register_forward_hook(noted))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        assert next(rows, self) is self, "the model was called less often than there are rows"

    @torch.no_grad()
    def run(self, table: Sequence[Any], calls: Sequence[Call]) -> list[Any]:
        """Outputs of a trajectory."""
        with self.following(table):
            return [self.model(*args, **kwargs) for args, kwargs in calls]

    def _parts(self, joined: Tensor, at: int) -> tuple[Tensor, Tensor]:
        width = self.widths[at] if self.widths else joined.shape[1] // 2
        return joined[:, :width], joined[:, width:]


def joins_of(model: Any) -> list[nn.Module]:
    """The modules of a U-Net of diffusers that take a skip, the outermost first."""
    taking = [resnet for block in model.up_blocks for resnet in block.resnets]
    return taking[::-1]
