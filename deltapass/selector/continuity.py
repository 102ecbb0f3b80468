"""Does a sample follow from the last one? What tells a step of a sampler from another request.

Samplers make the next sample from the last one and the model's prediction: a sum of the two, and
for some of them fresh noise. So what a sample holds beside those two is small, or is noise that
this noise level allows; of another request nearly all is left. Up to MOST numbers of each are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch

MOST: Final = 1024  # numbers held of a sample
RUN: Final = 32  # of which so many are neighbours
# Shares of a sample's length, and a correlation, as benchmarks/continuity.py measures them.
STILL: Final = 0.25  # more than this no deterministic sampler adds to sample and prediction
NOISE: Final = 0.82  # nor one that draws noise, unless it draws all of it anew
LATE: Final = 0.25  # of which less is left at a low noise level: at most this and the level
GRAINY: Final = 0.15  # neighbours in noise are correlated less, in pictures more
ENOUGH: Final = 256  # numbers from which on noise can be told
TINY: Final = 1e-6  # of a square: rounding in float32


@final
class Continuity:
    """The last sample with the predictions made for it, and the sample of the present call.

    Guidance mixes two predictions: those of the halves of an even batch, of which only the first
    half of the sample is held, or those of two calls.

    Attributes:
        numbers: Products of the four with each other, for the call that was looked at: sixteen
            numbers on the sample's device, a table row by row.
    """

    def __init__(self) -> None:
        self.numbers = self._table = self._turned = self._products = torch.empty(0)
        self._rows: list[torch.Tensor] = []  # two samples, in turns; two predictions
        self._now = 0  # the row of the present sample
        self._shape: torch.Size | None = None
        self._half = 0  # of the batch; 0 where it is held whole
        self._known = False
        self._noted = 0  # calls that gave a prediction

    def look(self, sample: torch.Tensor) -> torch.Tensor:
        """Take the present call's sample; gives `numbers`, which are not to be waited for yet."""
        if sample.shape != self._shape or sample.device != self._table.device:
            self._make(sample)
        self._take(self._now, sample[: self._half] if self._half else sample)
        # `out` is exempt from autocast, which would round.
        torch.mm(self._table, self._turned, out=self._products)
        return self.numbers

    def accept(self) -> None:
        """The present sample is the last one from now on, and has no prediction yet."""
        self._now = 1 - self._now
        self._known, self._noted = True, 0

    def note(self, prediction: torch.Tensor) -> None:
        """What the model predicted for the last sample: the first two count."""
        if self._noted > 1 or prediction.shape != self._shape:
            return
        half = self._half
        self._take(2 + self._noted, prediction[:half] if half else prediction)
        if not self._noted:
            if half:
                self._take(3, prediction[half:])
            else:
                self._rows[3].zero_()
        self._noted += 1

    @property
    def same(self) -> bool:
        """Whether the present sample is the last one, number for number."""
        return self._known and torch.equal(self._rows[0], self._rows[1])

    def follows(self, products: Sequence[float], level: float | None) -> bool:
        """Whether the present sample can be one step of a sampler from the last one.

        Args:
            products: `numbers`, read.
            level: Noise level of the present sample, from 1.0 to 0.0; None where it is unknown.
        """
        now, last = products[5 * self._now], products[5 - 5 * self._now]
        if not (self._known and now > 0.0 and last > 0.0):
            return False
        left = self._left(products, now, last)
        if left <= STILL * STILL * now:
            # No sampler stands still.
            return not (abs(now - last) <= 10 * TINY * last and self.same)
        if level is None or self._table.shape[1] < ENOUGH:
            return False
        return left <= min(NOISE, LATE + level) ** 2 * now and self._is_noise()

    def _left(self, products: Sequence[float], now: float, last: float) -> float:
        """The square of what is left of the sample without the last one and the predictions."""
        moved = products[1] / last
        left = now - moved * products[1]
        if not self._noted:
            return left
        of_now, of_last = 4 * self._now, 4 - 4 * self._now
        # Both predictions without the last sample, then the second without the first.
        one, other = products[of_last + 2] / last, products[of_last + 3] / last
        along_one = products[of_now + 2] - moved * products[of_last + 2]
        along_other = products[of_now + 3] - moved * products[of_last + 3]
        size_one = products[10] - one * products[of_last + 2]
        size_other = products[15] - other * products[of_last + 3]
        if size_one > TINY * products[10]:
            left -= along_one * along_one / size_one
            shared = (products[11] - one * products[of_last + 3]) / size_one
            along_other -= shared * along_one
            size_other -= shared * shared * size_one
        if size_other > TINY * products[15]:
            left -= along_other * along_other / size_other
        return left

    def _is_noise(self) -> bool:
        """Whether what last sample and predictions leave over has no picture in it.

        Neighbours in noise do not go together.
        """
        known = self._table[[1 - self._now, 2, 3]] if self._noted else self._table[[1 - self._now]]
        shape, now = self._rows[0].shape, self._table[self._now]
        with torch.autocast(self._table.device.type, enabled=False):
            shares = torch.linalg.pinv(known @ known.T, hermitian=True) @ (known @ now)
            rest = (now - shares @ known).view(shape)
        together = (rest[..., 1:] * rest[..., :-1]).sum() / (rest * rest).sum()
        return abs(float(together)) < GRAINY

    def _take(self, row: int, tensor: torch.Tensor) -> None:
        self._rows[row].copy_(tensor if tensor.numel() <= MOST else _some_of(tensor))

    def _make(self, sample: torch.Tensor) -> None:
        even = sample.ndim > 1 and sample.shape[0] % 2 == 0
        self._half = sample.shape[0] // 2 if even else 0
        like = sample[: self._half] if even else sample
        like = like if like.numel() <= MOST else _some_of(like)
        # Written to in inference mode and outside, which only tensors made outside allow.
        with torch.inference_mode(False):
            kind: dict[str, Any] = {"dtype": torch.float32, "device": sample.device}
            self._table = torch.zeros((4, like.numel()), **kind)
            self._turned, self._products = self._table.T, torch.empty((4, 4), **kind)
            self.numbers = self._products.view(-1)
            self._rows = [row.view(like.shape) for row in self._table]
        self._shape, self._known, self._noted = sample.shape, False, 0


def _some_of(tensor: torch.Tensor) -> torch.Tensor:
    """MOST numbers of a larger tensor, spread over it in runs: a view where it is dense."""
    if not tensor.is_contiguous():
        tensor = tensor.reshape(-1)
    runs = MOST // RUN
    step = (tensor.numel() - RUN) // (runs - 1)
    return tensor.as_strided((runs, RUN), (step, 1), tensor.storage_offset())
