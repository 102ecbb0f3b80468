"""Seeded values: of inputs, and of the parameters of a model."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def noise(seed: int, *shape: int) -> Tensor:
    """Seeded normal values that do not touch the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomise(model: Model, seed: int = 0) -> Model:
    """Give every parameter a seeded random value, so that no block is the identity; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2, generator=generator)
            else:  # biases, and norm weights round the one they start from
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)
