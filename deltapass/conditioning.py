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

PROBES: Final = 8  # numbers read at each end of a tensor
Values = tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor as it was: the object (weakly held), its version, and its values if they were read.

    `version` is -1 for an inference tensor, which keeps none.
    """

    tensor: weakref.ref[torch.Tensor]
    version: int
    values: Values | None

    def is_same(self, tensor: torch.Tensor, version: int) -> bool:
        """Whether this is the same tensor object, and unchanged."""
        return self.tensor() is tensor and self.version == version


def look(tensor: torch.Tensor, before: Seen | None, *, certain: bool) -> tuple[Seen, bool]:
    """See a tensor again: what it is now, and whether it has changed.

    Args:
        tensor: A conditioning input of this call.
        before: How it was at the last call; None at the first.
        certain: Read values whenever they could be needed later. Otherwise they are read on a
            CPU, where it costs nothing, and on a device only once an input is a new object.

    Returns:
        How it is now, and whether it differs. A new object whose predecessor is gone unread
        counts as changed: its values cannot be compared any more.
    """
    version = -1 if tensor.is_inference() else tensor._version
    if before is not None and before.is_same(tensor, version) and (version != -1 or not certain):
        return before, False
    if before is None and not certain and tensor.device.type != "cpu":
        return Seen(weakref.ref(tensor), version, None), False
    now = Seen(weakref.ref(tensor), version, read(ends(tensor)))
    if before is None:
        return now, False
    return now, now.values != _values_of(before)


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


def ends(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The first and last few numbers of a tensor, without copying the rest."""
    if tensor.ndim == 0:
        return [tensor.reshape(1)]
    if not tensor.numel():
        return []
    first, last = (0,) * (tensor.ndim - 1), (-1,) * (tensor.ndim - 1)
    return [tensor[first][:PROBES], tensor[last][-PROBES:]]


def read(parts: Iterable[torch.Tensor]) -> Values:
    """Numbers of several tensors: at once from a device, where each read would wait for it."""
    parts = list(parts)
    if all(part.device.type == "cpu" for part in parts):
        return tuple(float(number) for part in parts for number in part.tolist())
    device = next(part.device for part in parts if part.device.type != "cpu")
    together: list[float] = torch.cat([p.to(device, torch.float32) for p in parts]).tolist()
    return tuple(together)


def _values_of(seen: Seen) -> Values | None:
    """The values as they were seen; read now if the unchanged tensor is still there."""
    tensor = seen.tensor()
    if seen.values is None and tensor is not None and tensor._version == seen.version:
        return read(ends(tensor))
    return seen.values
