"""What the implicit mode reads from a call's inputs: one read of the device a call.

Takes the model's inputs; gives the timestep, and how the noisy sample lies to the last one and to
the model's prediction. Explicit sessions need none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import torch

from deltapass.errors import StepUnknownError
from deltapass.graph.program import Input, Role
from deltapass.selector.continuity import Continuity

MANY: Final = 64  # timesteps up to this many are read as they are


@final
class Prediction(NamedTuple):
    """Which result continues the sample, and of which dimension only the first part does."""

    at: int | None
    dim: int | None = None
    size: int = 0


@final
@dataclass(slots=True)
class SignalReader:
    """Reads the signals of a model whose inputs are known.

    Attributes:
        timestep: Position of the timestep input.
        samples: Positions of the noisy samples; by the first one calls are told apart.
        grain: How much timesteps are rounded, of their size.
        made: Where the prediction is among the results; None before it was looked for.
    """

    timestep: int
    samples: tuple[int, ...]
    grain: float = 0.0
    made: Prediction | None = None

    def read(
        self, arguments: Sequence[Any], continuity: Continuity
    ) -> tuple[float, Sequence[float]]:
        """Timestep and the products of `continuity`, in one read.

        Raises:
            StepUnknownError: If the timesteps of the samples in one batch differ, or no input is a
                noisy sample.
        """
        if not self.samples:
            raise StepUnknownError("none of the inputs is surely the noisy sample")
        times = _times(arguments[self.timestep])
        products = continuity.look(arguments[self.samples[0]])
        numbers = _read(times, products)
        count = len(numbers) - len(products)
        moments = numbers[:count]
        if arguments[self.timestep].ndim == 1 and min(moments) != max(moments):
            raise StepUnknownError("the samples of one batch are at different timesteps")
        return float(max(moments)), numbers[count:]

    def note(self, arguments: Sequence[Any], results: Sequence[Any], last: Continuity) -> None:
        """Hand on the prediction, if there is one: results of one graph are of one form."""
        made = self.made
        if made is None:
            made = self.made = _prediction(arguments[self.samples[0]], results)
        if made.at is not None:
            result = results[made.at]
            last.note(result if made.dim is None else result.narrow(made.dim, 0, made.size))


def signal_reader(inputs: Sequence[Input]) -> SignalReader | None:
    """A reader for a model's inputs, or None if no timestep is among them."""
    roles = [given.role for given in inputs]
    if roles.count(Role.TIMESTEP) != 1:
        return None
    timestep = roles.index(Role.TIMESTEP)
    spec = inputs[timestep].spec
    floating = spec is not None and spec.dtype.is_floating_point
    grain = torch.finfo(spec.dtype).eps if spec is not None and floating else 0.0
    samples = tuple(at for at, role in enumerate(roles) if role is Role.SAMPLE)
    return SignalReader(timestep, samples, grain)


def _prediction(sample: torch.Tensor, results: Sequence[Any]) -> Prediction:
    """The first result like the sample; a variance, as further channels, may be predicted too."""
    for at, result in enumerate(results):
        if not torch.is_tensor(result) or result.ndim != sample.ndim:
            continue
        sizes = enumerate(zip(result.shape, sample.shape, strict=True))
        larger = [(dim, size) for dim, (has, size) in sizes if has != size]
        if not larger:
            return Prediction(at)
        if len(larger) == 1 and result.shape[larger[0][0]] > larger[0][1]:
            return Prediction(at, *larger[0])
    return Prediction(None)


def _times(timestep: torch.Tensor) -> torch.Tensor:
    """The timesteps of a call, or the least and greatest where there are many (one a token)."""
    flat = timestep if timestep.ndim == 1 else timestep.reshape(-1)
    return flat if len(flat) <= MANY else torch.stack(torch.aminmax(flat))


def _read(times: torch.Tensor, products: torch.Tensor) -> list[float]:
    """Numbers of both: at once from a device, where each read would wait for it."""
    if times.is_cpu and products.is_cpu:
        return [*times.tolist(), *products.tolist()]
    device = products.device if times.is_cpu else times.device
    together = [part.to(device, torch.float32) for part in (times, products)]
    numbers: list[float] = torch.cat(together).tolist()
    return numbers
