"""How alike the deltas of two steps are that follow each other, block by block (Fig. 4c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import fx, nn

from deltapass.backend import analyse
from deltapass.bench.record import Figure, Series
from deltapass.compiler.addends import Addends
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import SpanPlan
from deltapass.compiler.rewrite import refresh_program
from deltapass.compiler.seams import streams_of_span
from deltapass.errors import BenchError, StreamError, counted
from deltapass.graph.executable import Executable
from deltapass.schedule.rules import Span

Deltas = Sequence[Sequence[torch.Tensor]]  # of every block, of every stream


def cosine(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Cosine similarity of two deltas of all streams, mean over samples.

    Shapes:
        Of every stream B samples of any size: (B, ...) twice -> a number.
    """
    one, other = (
        torch.cat([delta.flatten(1).double() for delta in each], 1) for each in (ours, theirs)
    )
    return float(torch.nn.functional.cosine_similarity(one, other, dim=1).mean())


@final
@dataclass
class Watched:
    """A model that runs in full and keeps what each block adds, call after call.

    As torch.compile's backend; no model need be known: the blocks are those that the pass finds.

    Attributes:
        branches: Calls of one step: 2 where the halves of guidance are called one after the other.
        found: A row a call from the second step on: of each block the similarity to the call one
            step earlier; None for a block that hands on other than streams.
    """

    branches: int = 1
    found: list[tuple[float | None, ...]] = field(default_factory=list)
    _earlier: list[Deltas] = field(default_factory=list)
    calls: int = 0

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """As a backend: stages 1 to 3, and a refresh that gives the delta of every block.

        Raises:
            UnsupportedGraphError: If the model has no stack of blocks.
        """
        outline = analyse(gm, inputs)
        plans = [_of_block(outline, block) for block in range(len(outline.stack))]
        there = [plan for plan in plans if plan is not None]
        program = refresh_program(outline.program, there)
        run = Executable(program, lambda body: body.module.forward)
        constants = tuple(outline.captured.constants.values())

        def watched(*given: Any) -> tuple[Any, ...]:
            results, deltas = run((*given, *constants))
            held = iter(deltas)
            self._note([[next(held) for _ in plan.streams] if plan else [] for plan in plans])
            return results

        return watched

    def _note(self, deltas: Deltas) -> None:
        if len(self._earlier) == self.branches:
            pairs = zip(deltas, self._earlier.pop(0), strict=True)
            self.found.append(tuple(cosine(a, b) if a else None for a, b in pairs))
        self._earlier.append([[delta.detach().clone() for delta in each] for each in deltas])
        self.calls += 1


def _of_block(outline: Outline, block: int) -> SpanPlan | None:
    """The streams over one block alone, however little it costs; None if it has none."""
    span = Span(block, block + 1)
    captured = outline.captured
    try:
        streams = streams_of_span(captured, outline.stack, span, Addends(captured))
    except StreamError:
        return None
    return SpanPlan(wanted=span, span=span, streams=streams)


@torch.no_grad()
def likeness(
    model: nn.Module, sample: Callable[[Any], Any], steps: int, *, branches: int = 1
) -> tuple[tuple[float | None, ...], ...]:
    """Similarity of every block's delta to that of the step before, (steps - 1) x blocks.

    Args:
        model: The denoiser, of one shape throughout.
        sample: Runs one whole trajectory with the denoiser that it is given in the model's place.
        steps: Of that trajectory.
        branches: Calls of the denoiser a step; their similarities are averaged.

    Raises:
        BenchError: If the model was called another number of times.
        UnsupportedGraphError: If the model has no stack of blocks.
    """
    watched = Watched(branches)
    sample(torch.compile(model, backend=watched, dynamic=False, fullgraph=True))
    if watched.calls != steps * branches:
        raise BenchError(
            f"a trajectory of {counted(steps, 'step')} called the model {watched.calls} times",
            "Say how often a step calls it (`branches`), and take a solver that calls it once",
        )
    return tuple(
        _mean(watched.found[first : first + branches])
        for first in range(0, len(watched.found), branches)
    )


def _mean(rows: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    return tuple(
        None if None in each else sum(value or 0.0 for value in each) / len(each)
        for each in zip(*rows, strict=True)
    )


def cosine_figure(found: Sequence[Sequence[float | None]]) -> Figure:
    """A map, a row a block and a column a pair of steps, and the mean of all blocks as a curve.

    Args:
        found: What `likeness` gives.
    """
    steps = tuple(float(step) for step in range(1, len(found) + 1))
    there = [[value for value in row if value is not None] for row in found]
    curve = Series(
        name="mean of all blocks, least and most of any",
        x=steps,
        y=tuple(sum(row) / len(row) for row in there),
        low=tuple(min(row) for row in there),
        high=tuple(max(row) for row in there),
    )
    return Figure(
        name="cosine",
        title="Cosine similarity of a block's delta to the step before",
        x_title="step",
        y_title="block",
        about="Of trajectories with nothing cached. The paper's Fig. 4c: above 0.9.",
        series=(curve,),
        grid=tuple(tuple(column) for column in zip(*found, strict=True)),
    )
