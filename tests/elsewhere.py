"""Workers as Ray gives them, in this process: all that they are given was pickled."""

from __future__ import annotations

import pickle
from collections.abc import Hashable
from typing import Any

import torch


class Elsewhere:
    """What it holds was pickled, and so is every task and answer; the last task is done first."""

    slots = 2

    def __init__(self, kind: type, given: Any) -> None:
        self.held = kind(pickle.loads(pickle.dumps(given)))
        self.done = 0
        self._waiting: list[tuple[Hashable, Any]] = []

    def submit(self, key: Hashable, task: Any) -> None:
        self._waiting.append((key, pickle.loads(pickle.dumps(task))))

    def take(self) -> tuple[Hashable, Any]:
        key, task = self._waiting.pop()
        self.done += 1
        return key, pickle.loads(pickle.dumps(self.held.work(task)))


class Channels:
    """Stands for a network: features are means of channels; counts images it looked at."""

    def __init__(self) -> None:
        self.looked = 0

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        self.looked += len(images)
        return images.flatten(2).mean(2)

    def probabilities(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled.softmax(1)
