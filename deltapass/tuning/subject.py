"""What a loop runs: its model and how long its trajectories are, learned without running it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import final

import torch

from deltapass.errors import LoopError
from deltapass.schedule.explicit import AnySchedule
from deltapass.schedule.made_for import MadeFor, Sampler
from deltapass.schedule.weights import Vectors
from deltapass.selector.model import ModelInfo
from deltapass.sessions.deltas import History, Row
from deltapass.sessions.session import Session
from deltapass.sessions.trajectory import Place
from deltapass.tuning.loops import Loop

UNCACHED = (
    "the loop called no model that can be cached",
    "Compile its model with torch.compile(model, backend='deltadit', options={'strict': True}), "
    "which says what is in the way, and call that model in the loop",
)


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model of a loop, and its trajectories.

    Attributes:
        blocks: Blocks of its stack.
        structure: See `ModelInfo.shapes`.
        schedule: The schedule it was compiled with.
        steps: Steps of a trajectory, as the scheduler counts them.
    """

    blocks: int
    structure: str
    schedule: AnySchedule
    steps: int

    def made_for(self, sampler: Sampler) -> MadeFor:
        """What a schedule fitted to it was made for."""
        return MadeFor(
            blocks=self.blocks, structure=self.structure, steps=self.steps, sampler=sampler
        )


@final
class _MetError(Exception):
    """Ends a loop at the first call of its model."""


@final
class _Looker:
    """An observer that ends the loop as soon as it met the model."""

    def __init__(self) -> None:
        self.found: Subject | None = None

    def met(self, model: ModelInfo, session: Session) -> None:
        """Note the model."""
        self.found = Subject(
            blocks=model.blocks,
            structure=model.shapes,
            schedule=model.schedule,
            steps=session.steps or 1,
        )
        raise _MetError

    def weights(
        self, place: Place, row: Row, history: History, truth: tuple[torch.Tensor, ...]
    ) -> Vectors:
        """Never asked: no call gets that far."""
        raise NotImplementedError


def look_at(loop: Loop, seeds: Sequence[int]) -> Subject:
    """What a loop runs. It is begun, and ended at the first call of its model.

    Raises:
        LoopError: If it calls no model that can be cached.
    """
    looker = _Looker()
    with suppress(_MetError):
        loop.run(seeds, observer=looker)
    if looker.found is None:
        raise LoopError(*UNCACHED)
    return looker.found
