"""The few numbers the implicit mode reads from a call's inputs: one read of the device a call.

Takes the model's inputs; gives the timestep, a fingerprint of the noisy sample, and a fingerprint
of the conditioning. Explicit sessions need none of this.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch

from deltapass.errors import StepUnknownError
from deltapass.graphs import Input, Role

MANY: Final = 64  # timesteps up to this many are read as they are
PROBES: Final = 8  # numbers read at each end of a tensor


@final
@dataclass(frozen=True, slots=True)
class Signals:
    """What one call shows of itself."""

    timestep: float
    sample: tuple[float, ...]
    conditioning: tuple[float, ...]


@final
@dataclass
class SignalReader:
    """Reads the signals of a model whose inputs are known."""

    timestep: int
    sample: int | None
    conditioning: tuple[int, ...]
    _known: dict[int, tuple[Any, int, tuple[float, ...]]] = field(default_factory=dict)

    def read(self, arguments: Sequence[Any]) -> Signals:
        """Read timestep and sample (together, once), and conditioning where it is a new tensor.

        Raises:
            StepUnknownError: If the timesteps of the samples in one batch differ.
        """
        times = _times(arguments[self.timestep])
        ends = _ends(arguments[self.sample]) if self.sample is not None else []
        numbers = _read([times, *ends])
        moments, sample = numbers[: len(times)], numbers[len(times) :]
        if arguments[self.timestep].ndim == 1 and min(moments) != max(moments):
            raise StepUnknownError("the samples of one batch are at different timesteps")
        conditioning: list[float] = []
        for at in self.conditioning:
            conditioning.extend(self._fingerprint(at, arguments[at]))
        return Signals(max(moments), tuple(sample), tuple(conditioning))

    def _fingerprint(self, at: int, tensor: torch.Tensor) -> tuple[float, ...]:
        """A few numbers of a tensor; the same unchanged object is not read again."""
        version = -1 if tensor.is_inference() else tensor._version
        seen = self._known.get(at)
        if seen is not None and seen[0]() is tensor and seen[1] == version != -1:
            return seen[2]
        numbers = tuple(_read(_ends(tensor)))
        self._known[at] = (weakref.ref(tensor), version, numbers)
        return numbers


def signal_reader(inputs: Sequence[Input]) -> SignalReader | None:
    """A reader for a model's inputs, or None if no timestep is among them."""
    roles = [given.role for given in inputs]
    if roles.count(Role.TIMESTEP) != 1:
        return None
    sample = roles.index(Role.SAMPLE) if Role.SAMPLE in roles else None
    conditioning = tuple(at for at, role in enumerate(roles) if role is Role.DATA)
    return SignalReader(roles.index(Role.TIMESTEP), sample, conditioning)


def _times(timestep: torch.Tensor) -> torch.Tensor:
    """The timesteps of a call, or the least and greatest where there are many (one a token)."""
    flat = timestep.reshape(-1)
    return flat if len(flat) <= MANY else torch.stack(torch.aminmax(flat))


def _ends(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The first and last few numbers of a tensor, without copying the rest."""
    if tensor.ndim == 0:
        return [tensor.reshape(1)]
    first, last = (0,) * (tensor.ndim - 1), (-1,) * (tensor.ndim - 1)
    return [tensor[first][:PROBES], tensor[last][-PROBES:]]


def _read(parts: Sequence[torch.Tensor]) -> list[float]:
    """Numbers of several tensors: at once from a device, where each read would wait for it."""
    if all(part.device.type == "cpu" for part in parts):
        return [float(number) for part in parts for number in part.tolist()]
    device = next(part.device for part in parts if part.device.type != "cpu")
    return torch.cat([part.to(device, torch.float32) for part in parts]).tolist()
