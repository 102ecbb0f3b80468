"""The few numbers the implicit mode reads from a call's inputs: one read of the device a call.

Takes the model's inputs; gives the timestep and a fingerprint of the noisy samples. Explicit
sessions need none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch

from deltapass.errors import StepUnknownError
from deltapass.graph.program import Input, Role

PROBES: Final = 8  # numbers read at each end of a noisy sample
MANY: Final = 64  # timesteps up to this many are read as they are


@final
@dataclass(frozen=True, slots=True)
class Signals:
    """What one call shows of itself."""

    timestep: float
    sample: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class SignalReader:
    """Reads the signals of a model whose inputs are known."""

    timestep: int
    samples: tuple[int, ...]

    def read(self, arguments: Sequence[Any]) -> Signals:
        """Read timestep and samples together, in one read.

        Raises:
            StepUnknownError: If the timesteps of the samples in one batch differ.
        """
        times = _times(arguments[self.timestep])
        samples = [end for at in self.samples for end in _ends(arguments[at])]
        numbers = _read([times, *samples])
        moments = [float(moment) for moment in numbers[: len(times)]]
        if arguments[self.timestep].ndim == 1 and min(moments) != max(moments):
            raise StepUnknownError("the samples of one batch are at different timesteps")
        return Signals(max(moments), tuple(numbers[len(times) :]))


def signal_reader(inputs: Sequence[Input]) -> SignalReader | None:
    """A reader for a model's inputs, or None if no timestep is among them."""
    roles = [given.role for given in inputs]
    if roles.count(Role.TIMESTEP) != 1:
        return None
    samples = tuple(at for at, role in enumerate(roles) if role is Role.SAMPLE)
    return SignalReader(roles.index(Role.TIMESTEP), samples)


def _times(timestep: torch.Tensor) -> torch.Tensor:
    """The timesteps of a call, or the least and greatest where there are many (one a token)."""
    flat = timestep if timestep.ndim == 1 else timestep.reshape(-1)
    return flat if len(flat) <= MANY else torch.stack(torch.aminmax(flat))


def _read(parts: Sequence[torch.Tensor]) -> list[float]:
    """Numbers of several tensors: at once from a device, where each read would wait for it."""
    if all(part.is_cpu for part in parts):
        return [number for part in parts for number in _numbers(part)]
    device = next(part.device for part in parts if not part.is_cpu)
    together = [part.to(device, torch.float32).reshape(-1) for part in parts]
    return _numbers(torch.cat(together))


def _numbers(part: torch.Tensor) -> list[float]:
    flat: list[float] = (part if part.ndim == 1 else part.reshape(-1)).tolist()
    return flat


def _ends(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The first and last few numbers of a tensor, without copying the rest."""
    if not tensor.ndim or not tensor.numel():
        return [tensor.reshape(-1)]
    if tensor.shape[-1] >= PROBES and tensor.is_contiguous():  # both ends as one view
        last = tensor.numel() - PROBES
        return [tensor.as_strided((2, PROBES), (last, 1), tensor.storage_offset())]
    first, end = (0,) * (tensor.ndim - 1), (-1,) * (tensor.ndim - 1)
    return [tensor[first][:PROBES], tensor[end][-PROBES:]]
