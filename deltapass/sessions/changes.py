"""Has the conditioning of a branch changed since its last call?

Pipelines hand over the same prompt tensors at every step: then nothing is read, and nothing waits
for a device. A tensor that is new is compared by a few of its numbers.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch

SPREAD: Final = 0x9E3779B97F4A7C15 - 2**64  # odd: the golden ratio, as in Fibonacci hashing
BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Values = tuple[int, ...]
READ_ONLY: Final = 0x100
VIEW: Final = ctypes.PYFUNCTYPE(  # (address, bytes, READ_ONLY) -> a memoryview that copies nothing
    ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
)(("PyMemoryView_FromMemory", ctypes.pythonapi))


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor as it was: the object (weakly held), its version, and a few of its numbers.

    `version` is -1 for an inference tensor, which keeps none. `numbers` may still lie on the
    device.
    """

    tensor: weakref.ref[torch.Tensor]
    version: int
    numbers: Values | torch.Tensor

    @property
    def values(self) -> Values:
        """The numbers; reading them may wait for the device."""
        return tuple(self.numbers.tolist()) if torch.is_tensor(self.numbers) else self.numbers

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
    numbers = values_of(tensor) if here else fingerprint(tensor)
    now = Seen(weakref.ref(tensor), version, numbers)
    return now, before is not None and now.values != before.values


def are_as_seen(seen: Mapping[int, Seen], arguments: Sequence[Any]) -> bool:
    """Whether all inputs seen before are the same tensor objects at the same versions.

    False where a tensor keeps no version: then `changed_inputs` has to look.
    """
    for at, before in seen.items():
        tensor: torch.Tensor = arguments[at]
        if before.version < 0 or before.tensor() is not tensor or tensor._version != before.version:
            return False
    return True


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


def values_of(tensor: torch.Tensor) -> Values:
    """Numbers that stand for all bits of a tensor on a CPU: equal for equal bits.

    Python's own keyed hash of 64 bits reads some gigabytes a second where the checksums below,
    made for devices, need a hundredfold: an inference tensor is looked at at every call.
    """
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    try:
        place = plain.data_ptr() if plain.layout == torch.strided else 0
    except RuntimeError:  # a wrapper of something else
        place = 0
    if not place:
        return tuple(fingerprint(tensor).tolist())
    return (hash(VIEW(place, plain.nbytes, READ_ONLY)),)


def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """Two checksums over all bits of a tensor, on its own device; nothing waits for them.

    For tensors on devices; `values_of` is for those on a CPU.

    Each number counts with weights of its place, modulo 2^64: so order matters, and neither
    infinities nor roundings hide a change, as they would in sums of the numbers themselves.
    """
    tensor = tensor.resolve_conj().resolve_neg()
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = real.detach().reshape(-1)
    bits = flat.view(BITS[flat.element_size()]).to(torch.int64)
    places = 2 * torch.arange(len(bits), device=bits.device) + 1
    mixed = bits * places
    return torch.stack([mixed.sum(), ((mixed ^ (mixed >> 29)) * SPREAD * places).sum()])
