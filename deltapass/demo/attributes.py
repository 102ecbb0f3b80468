"""Attributes of an image as tokens for cross-attention, from the words of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Prompt = str | Mapping[str, str]
ANY = -1  # the number of a part that is not told


class Attributes:
    """Named parts of several attributes, each attribute one token.

    A token is one-hot over all parts of all attributes and, last, one "any" an attribute: the first
    linear layer of the denoiser's caption projection is then a table of learned embeddings.

    Args:
        parts: Attribute -> names of its parts, in the order the denoiser was trained with.
    """

    def __init__(self, parts: Mapping[str, Sequence[str]]) -> None:
        self.parts = {attribute: tuple(names) for attribute, names in parts.items()}

    @property
    def width(self) -> int:
        """Channels of a token."""
        return sum(len(names) for names in self.parts.values()) + len(self.parts)

    def tokens(self, numbers: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tokens (B, A, width) in float32, of part numbers (B,) for each of A attributes."""
        offset, positions = 0, []
        first_any = self.width - len(self.parts)
        for place, (attribute, names) in enumerate(self.parts.items()):
            number = numbers[attribute]
            positions.append(torch.where(number == ANY, first_any + place, number + offset))
            offset += len(names)
        return torch.nn.functional.one_hot(torch.stack(positions, 1), self.width).float()

    def numbers(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Part numbers (B,) by attribute; ANY where a prompt does not tell.

        Raises:
            ValueError: For an attribute or a part that is unknown, or told twice.
        """
        rows = [self._parts_of(prompt) for prompt in prompts]
        return {
            attribute: torch.tensor(
                [names.index(row[attribute]) if attribute in row else ANY for row in rows]
            )
            for attribute, names in self.parts.items()
        }

    def prompts(self, numbers: Mapping[str, torch.Tensor]) -> list[str]:
        """Prompts that say these part numbers, none of them ANY."""
        words = [
            [f"{attribute}-{names[number]}" for number in numbers[attribute].tolist()]
            for attribute, names in self.parts.items()
        ]
        return [" ".join(row) for row in zip(*words, strict=True)]

    def random_prompts(self, count: int, seed: int = 0) -> list[str]:
        """Prompts that tell every attribute, all parts alike; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return self.prompts(
            {
                attribute: torch.randint(len(names), (count,), generator=generator)
                for attribute, names in self.parts.items()
            }
        )

    def _parts_of(self, prompt: Prompt) -> dict[str, str]:
        pairs = (
            [(word, *word.partition("-")[::2]) for word in prompt.split()]
            if isinstance(prompt, str)
            else [(f"{attribute}-{name}", attribute, name) for attribute, name in prompt.items()]
        )
        told: dict[str, str] = {}
        for word, attribute, name in pairs:
            known = self.parts.get(attribute)
            if known is None:
                choice = ", ".join(f"{kind}-..." for kind in self.parts)
                raise ValueError(f"{word!r} is no attribute. Use words such as: {choice}.")
            if name not in known:
                raise ValueError(
                    f"{attribute} {name!r} is unknown. Use one of: {', '.join(known)}."
                )
            if attribute in told:
                raise ValueError(f"{attribute} is told twice, last as {name!r}. Tell it once.")
            told[attribute] = name
        return told
