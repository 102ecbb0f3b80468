"""How often a picture shows the parts that its prompt names: exact, with no judging network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from nouns_parts import ATTRIBUTES, Parts

CHANCE: Final = {attribute: 1 / len(names) for attribute, names in ATTRIBUTES.items()}


def attribute_accuracy(
    parts: Parts, images: torch.Tensor, told: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Share of images, by attribute, that show what was told.

    An image shows the part whose exact drawing it is nearest to in mean absolute error, all other
    attributes drawn as told.

    Args:
        parts: Pictures of the parts.
        images: (B, 3, 32, 32) in 0..1.
        told: Attribute -> part numbers (B,).
    """
    return {
        attribute: float(right.float().mean())
        for attribute, right in shown(parts, images, told).items()
    }


def shown(
    parts: Parts, images: torch.Tensor, told: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Whether each image shows what was told, (B,) of bool by attribute; by the same rule."""
    return {
        attribute: _nearest(parts, images, told, attribute) == told[attribute] for attribute in told
    }


def _nearest(
    parts: Parts, images: torch.Tensor, told: Mapping[str, torch.Tensor], attribute: str
) -> torch.Tensor:
    distances = []
    for number in range(len(ATTRIBUTES[attribute])):
        drawn = parts.render({**told, attribute: torch.full_like(told[attribute], number)})
        distances.append((images - (drawn + 1) / 2).abs().mean(dim=(1, 2, 3)))
    return torch.stack(distances).argmin(0)
