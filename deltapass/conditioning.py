"""Has the conditioning of a branch changed since its last call?

Pipelines hand over the same prompt tensors at every step: then nothing is read, and nothing waits
for a device. A tensor that is new is compared by a few of its numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch

SAMPLES: Final = 64  # numbers looked at one by one, evenly spread over a tensor
Values = tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor as it was: the object (weakly held), its version, and a few of its numbers.

    `version` is -1 for an inference tensor, which keeps none. `numbers` may still lie on the
    device, copied there without waiting.
    """

    tensor: weakref.ref[torch.Tensor]
    version: int
    numbers: Values | torch.Tensor

    @property
    def values(self) -> Values:
        """The numbers; reading them may wait for the device."""
        return read([self.numbers]) if torch.is_tensor(self.numbers) else self.numbers

    def is_same(self, tensor: torch.Tensor, version: int) -> bool:
        """Whether this is the same tensor object, and unchanged."""
        return self.tensor() is tensor and self.version == version


def look(tensor: torch.Tensor, before: Seen | None, *, certain: bool) -> tuple[Seen, bool]:
    """See a tensor again: what it is now, and whether it has changed.

    Args:
        tensor: A conditioning input of this call.
        before: How it was at the last call; None at the first.
        certain: On a device too, do not trust that an inference tensor, which counts no changes,
            is unchanged.

    Returns:
        How it is now, and whether it differs. Numbers are read on a CPU, where it costs nothing,
        and on a device only once an input is another object than at the last call.
    """
    version = -1 if tensor.is_inference() else tensor._version
    here = tensor.device.type == "cpu"
    counted = version != -1 or not (certain or here)
    if before is not None and counted and before.is_same(tensor, version):
        return before, False
    parts = fingerprint(tensor)
    now = Seen(weakref.ref(tensor), version, read(parts) if here else _copied(parts))
    return now, before is not None and now.values != before.values


def changed_inputs(
    seen: dict[int, Seen],
    arguments: Sequence[Any],
    positions: Mapping[int, str],
    *,
    certain: bool,
) -> tuple[str, ...]:
    """Names of the conditioning inputs that differ from the last call; updates `seen`.

    Args:
        seen: Position -> how the input was.
        arguments: Inputs of the call.
        positions: Position -> name of the inputs to look at.
        certain: See `look`.
    """
    changed = []
    for at, name in positions.items():
        seen[at], differs = look(arguments[at], seen.get(at), certain=certain)
        if differs:
            changed.append(name)
    return tuple(changed)


def fingerprint(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Numbers that differ where tensors differ: some samples, the sum and the norm.

    The sums see every number: prompts of one batch may share all but a few of their tokens.
    """
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    flat = real.detach().reshape(-1)
    if not len(flat):
        return []
    numbers = flat.to(torch.float32)
    totals = [numbers.sum().reshape(1), torch.linalg.vector_norm(numbers).reshape(1)]
    return [numbers[:: -(-len(flat) // SAMPLES)], *totals]


def read(parts: Iterable[torch.Tensor]) -> Values:
    """Numbers of several tensors: at once from a device, where each read would wait for it."""
    parts = list(parts)
    if all(part.device.type == "cpu" for part in parts):
        return tuple(float(number) for part in parts for number in part.tolist())
    device = next(part.device for part in parts if part.device.type != "cpu")
    together: list[float] = torch.cat([p.to(device, torch.float32) for p in parts]).tolist()
    return tuple(together)


def _copied(parts: list[torch.Tensor]) -> torch.Tensor:
    """The numbers in memory of their own, on their device; nothing waits for them."""
    return torch.cat([part.to(torch.float32) for part in parts]) if parts else torch.empty(0)
