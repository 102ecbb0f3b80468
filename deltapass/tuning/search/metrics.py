"""How far final samples are from the plain trajectory's: by name, or any function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, final

import torch

from deltapass.errors import OptionError, did_you_mean

Measure = Callable[[torch.Tensor, torch.Tensor], object]
EQUAL_DB: Final = 120.0  # stands for the PSNR of equal samples, so that means stay finite


@final
@dataclass(frozen=True)
class Metric:
    """A measure of samples against the plain ones, one number a sample.

    Attributes:
        name: What tables call it.
        unit: Of its values; empty for a number.
        measure: Samples (B, ...), plain samples (B, ...) -> B numbers.
        more_is_better: Whether a greater value is nearer.
    """

    name: str
    unit: str
    measure: Measure
    more_is_better: bool = False

    def of(self, samples: torch.Tensor, plain: torch.Tensor) -> list[float]:
        """The values, one a sample.

        Raises:
            OptionError: If the function gives anything else, or a value that is no number.
        """
        given = torch.as_tensor(self.measure(samples, plain)).detach().to("cpu", torch.float64)
        values = given.reshape(-1)
        if len(values) == 1 < len(samples):
            values = values.expand(len(samples))
        if len(values) != len(samples) or not torch.isfinite(values).all():
            shown = f"a result of shape {tuple(given.shape)} for {len(samples)} samples"
            raise OptionError("metric", shown, "a function that gives one finite number a sample")
        return [float(value) for value in values]

    def loss(self, value: float) -> float:
        """A value as what is minimised."""
        return -value if self.more_is_better else value

    def shown(self, value: float) -> str:
        """A value for people."""
        return f"{value:.1f} {self.unit}" if self.unit else f"{value:.3g}"


def psnr(samples: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, a sample.

    The peak is 1 for images in 0..1; for latents, which have none, the range of the plain sample.
    """
    flat, wanted = samples.flatten(1).double(), plain.flatten(1).double()
    low, high = wanted.amin(1), wanted.amax(1)
    image = bool((low >= 0.0).all() and (high <= 1.0).all())
    peak = torch.ones_like(high) if image else (high - low).clamp(min=1e-12)
    ratio = (flat - wanted).square().mean(1) / peak.square()
    return (-10 * ratio.log10()).clamp(max=EQUAL_DB)


def mean_squared_error(samples: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Mean over a sample's elements of the squared difference."""
    return (samples.double() - plain.double()).square().flatten(1).mean(1)


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "psnr": Metric("PSNR", "dB", psnr, more_is_better=True),
        "mse": Metric("MSE", "", mean_squared_error),
    }
)


def metric_of(given: str | Measure) -> Metric:
    """A metric by name, or a function of (samples, plain samples), less being nearer.

    Raises:
        OptionError: If it is neither.
    """
    if callable(given):
        return Metric(getattr(given, "__name__", type(given).__name__), "", given)
    if given not in METRICS:
        near = did_you_mean(given, tuple(METRICS), "; did you mean {!r}?")
        raise OptionError("metric", given, f"one of {', '.join(METRICS)}, or a function{near}")
    return METRICS[given]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
