"""What images are judged by besides themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deltapass.bench.metrics.asking import Workers
from deltapass.bench.metrics.features import FeatureStore
from deltapass.bench.metrics.judges import JUDGES, Judge
from deltapass.errors import BenchError


@dataclass(frozen=True, kw_only=True)
class JudgingContext:
    """What images of one model are judged by; N images of (C, H, W) in 0..1 everywhere.

    Attributes:
        prompts: One an image.
        plain: Images of the reference, of the same seeds; `judge_rows` puts them here.
        steps: Of the reference.
        fine: Images of many plain steps, of the same seeds; None where they were not drawn.
        fine_steps: Of these.
        judge: Gives who says what is real and right; None where nobody knows.
        real_images: How many real ones the distances are taken to.
        store: Where features are kept.
        workers: Who look at parts of the images and take the measures; None: this process.
    """

    prompts: Sequence[Any] = ()
    plain: torch.Tensor | None = None
    steps: int = 0
    fine: torch.Tensor | None = None
    fine_steps: int = 0
    judge: Callable[[], Judge] | None = None
    real_images: int = 1000
    store: FeatureStore = field(default_factory=FeatureStore)
    workers: Workers | None = None

    @functools.cached_property
    def real(self) -> torch.Tensor:
        """Real images, the first ones.

        Raises:
            BenchError: If nobody knows what is real.
        """
        return self.judged.real(0, self.real_images)

    def other_real(self, count: int) -> torch.Tensor:
        """As many others: their distance is the floor.

        Raises:
            BenchError: If nobody knows what is real.
        """
        return self.judged.real(self.real_images, count)

    @functools.cached_property
    def judged(self) -> Judge:
        """The judge, asked for once.

        Raises:
            BenchError: If there is none, or its data is not here.
        """
        if self.judge is None:
            raise BenchError(
                "nothing says what real images of this model look like",
                "Give a folder of real pictures, or leave FID, KID and accuracy out",
            )
        return self.judge()


def context_of(model: str, folder: Path, **given: Any) -> JudgingContext:
    """The context of an embedded model by its name, or of another, which nobody judges.

    Args:
        model: Its name.
        folder: Where data and features are kept.
        given: Other fields.
    """
    made = JUDGES.get(model)
    judge = None if made is None else functools.partial(made, folder)
    store = FeatureStore(folder / model / "features")
    return JudgingContext(**{"judge": judge, "store": store, **given})
