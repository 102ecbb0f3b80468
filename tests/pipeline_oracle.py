"""Delta-Cache in eager PyTorch inside a real pipeline call: what a pipeline test is equal to.

    with oracle_in(zoo, table) as oracle:
        expected = zoo.run()
    assert oracle.calls == 2 * steps

The denoiser must be in the pipeline as it is, uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from unittest.mock import patch

from reference import SINGLE_STREAM, DeltaCacheReference, SpanLike, Streams, Values
from torch import nn


class _Branch(DeltaCacheReference):
    """The reference with its trajectory given call by call, by whoever calls the model."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], streams: Streams, order: int
    ) -> None:
        super().__init__(model, blocks, streams, order)
        self._history = []

    def step(
        self, forward: Callable[[], Any], span: SpanLike | None, place: int
    ) -> tuple[Any, int]:
        """What `forward()` gives with the blocks of `span` replaced, and how many blocks ran."""
        self._span, self._place = span, place
        self.blocks_run.append(0)
        entered: list[Values] = []
        left: list[Values] = []
        self._entered, self._left = entered, left
        with ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                replaced = self._replace(index, block.forward)
                stack.enter_context(patch.object(block, "forward", replaced))
            output = forward()
        if span is None:
            self._history = [*self._history[-1:], (place, entered, left)]
        return output, self.blocks_run[-1]


class PipelineOracle:
    """Replaces the denoiser's `forward` while entered; entering again starts a new trajectory.

    The n-th call is step `start` + n // branches and branch n % branches; every branch has deltas
    of its own. `table[step]` is None for a refresh, else the span to replace; steps before `start`
    are not run. `calls` counts calls of the denoiser, `blocks_run` has one count for each.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        blocks: Sequence[nn.Module],
        streams: Streams = SINGLE_STREAM,
        table: Sequence[SpanLike | None] = (),
        *,
        branches: int = 1,
        order: int = 0,
        start: int = 0,
    ) -> None:
        if not 0 <= start < len(table) or table[start] is not None:
            raise ValueError(f"step {start}, the first that is run, is no refresh in the table")
        self.denoiser, self.table, self.start, self.branches = denoiser, table, start, branches
        self._reference = (denoiser, tuple(blocks), streams, order)
        self._states: list[_Branch] = []
        self._stack = ExitStack()
        self.blocks_run: list[int] = []

    @property
    def calls(self) -> int:
        return len(self.blocks_run)

    def __enter__(self) -> PipelineOracle:
        self._states = [_Branch(*self._reference) for _ in range(self.branches)]
        self.blocks_run = []
        replaced = self._replace(self.denoiser.forward)
        self._stack.enter_context(patch.object(self.denoiser, "forward", replaced))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _replace(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            step = self.start + self.calls // self.branches
            if step >= len(self.table):
                raise IndexError(f"call {self.calls} is step {step} of {len(self.table)}")
            state = self._states[self.calls % self.branches]
            output, count = state.step(lambda: forward(*args, **kwargs), self.table[step], step)
            self.blocks_run.append(count)
            return output

        return replaced


def oracle_in(
    zoo: Any, table: Sequence[SpanLike | None], order: int = 0, **overrides: Any
) -> PipelineOracle:
    """The oracle in a pipeline of the zoo, for a call with these fields of its request."""
    branches, start = zoo.branches(**overrides), zoo.start(**overrides)
    known = (zoo.denoiser, zoo.blocks, zoo.streams, table)
    return PipelineOracle(*known, branches=branches, order=order, start=start)
