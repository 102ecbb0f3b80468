"""Looking on while a model runs: who fits weights is shown what a cached step would skip."""

from __future__ import annotations

from typing import Protocol

import torch

from deltapass.schedule.weights import Vectors
from deltapass.selector.model import ModelInfo
from deltapass.sessions.deltas import History, Row
from deltapass.sessions.session import Session
from deltapass.sessions.trajectory import Place


class Observer(Protocol):
    """What a session may be given as its `observer`."""

    def met(self, model: ModelInfo, session: Session) -> None:
        """A call of a model begins; what is raised here ends it."""

    def weights(
        self, place: Place, row: Row, history: History, truth: tuple[torch.Tensor, ...]
    ) -> Vectors | None:
        """The weights to predict with at a cached step, one vector a stream; None: it stays full.

        Args:
            place: Step and branch.
            row: What is planned.
            history: The deltas held, newest first.
            truth: The true deltas of the span on the inputs of this call.
        """
