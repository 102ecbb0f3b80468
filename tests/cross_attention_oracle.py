"""Cross-attention kept, in eager PyTorch: hooks replace what modules give by what they gave.

Source: TGATE, arXiv:2404.02747.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from reference import Call
from torch import Tensor, nn


class CrossAttentionOracle:
    """Runs `model`; `attentions` are its modules of cross-attention, a list for every block.

    A call of half the batch goes on with the mean of both halves of what was kept.
    """

    def __init__(self, model: nn.Module, attentions: Sequence[Sequence[nn.Module]]) -> None:
        self.model, self.attentions = model, attentions
        self._kept: dict[nn.Module, Tensor] = {}
        self._row: Any = None

    @contextmanager
    def following(self, table: Sequence[Any]) -> Iterator[None]:
        """Each call of the model inside is a row: None, or a span whose cross-attention is kept."""
        rows = iter(table)

        def begin(_: nn.Module, __: Any) -> None:
            self._row = next(rows)

        handles = [self.model.register_forward_pre_hook(begin)]
        for block, modules in enumerate(self.attentions):
            handles += [m.register_forward_hook(partial(self._gave, block)) for m in modules]
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

    def _gave(self, block: int, module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        if self._row is None:
            self._kept[module] = output.clone()
        if self._row is None or not self._row.start <= block < self._row.stop:
            return None
        kept = self._kept[module]
        if len(kept) == 2 * len(output):
            one, other = kept.chunk(2)
            kept = self._kept[module] = (one + other) / 2
        assert output.shape == kept.shape
        return kept.clone()


def attentions_of(blocks: Sequence[nn.Module], name: str = "attn2") -> list[list[nn.Module]]:
    """The modules of that name in each block of a model of diffusers."""
    return [[m for path, m in b.named_modules() if path.split(".")[-1] == name] for b in blocks]
