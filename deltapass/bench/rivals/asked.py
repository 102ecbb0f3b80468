"""What a rival is asked for, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """One use of a rival.

    Attributes:
        steps: Of every trajectory.
        settings: Keyword arguments of the rival's own configuration.
        compiled: Whether the model is compiled afterwards.
        now: The timestep of the call that runs, a tensor without dimensions, as pipelines offer it.
        sample: Draws one trajectory with a denoiser; None where nobody gave it. For those that
            must see the model run before they can be used.
    """

    steps: int
    settings: Mapping[str, Any]
    compiled: bool
    now: Callable[[], torch.Tensor]
    sample: Callable[[nn.Module], object] | None = None


# Enabled within it; gives what is to be called before a new trajectory.
Rival = Callable[[nn.Module, Asked], AbstractContextManager[Callable[[], None]]]
