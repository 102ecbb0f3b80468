"""What the harness itself takes: a batch whose denoiser does nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from deltapass.bench.measuring.clocks import timed
from deltapass.bench.methods.method import Method
from deltapass.bench.sampling import Sampler

TIMES: Final = 3


class Nothing(nn.Module):
    """Stands for a denoiser: gives at once what that gave once; all else the model answers."""

    def __init__(self, model: nn.Module, output: Any) -> None:
        super().__init__()
        self._held = (model, output)  # a tuple: no module of ours

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_held"][0], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """What the model gave."""
        return self._held[1]


@torch.no_grad()
def harness_seconds(sampler: Sampler, reference: Method, seeds: Sequence[int]) -> float:
    """Seconds of a batch of the reference but for its denoisers: pipeline, solver, decoder, us.

    Args:
        sampler: What draws.
        reference: The plain method.
        seeds: Of the batch.
    """
    some = seeds[: sampler.subject.batch]  # one output fits them all
    models, device = sampler.subject.models, sampler.subject.device
    outputs: dict[str, Any] = {}
    with sampler.using(reference) as pipeline:
        for name in models:
            _remember(getattr(pipeline, name), name, outputs)
        sampler.call(pipeline, reference, some)
        for name, output in outputs.items():
            setattr(pipeline, name, Nothing(models[name], output))
        taken = [
            timed(lambda _: sampler.call(pipeline, reference, some), device) for _ in range(TIMES)
        ]
    return statistics.median(each.end_to_end for each in taken) * len(seeds) / len(some)


def _remember(model: nn.Module, name: str, outputs: dict[str, Any]) -> None:
    """Keep the output of its next call."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        handle.remove()
        outputs[name] = output

    handle = model.register_forward_hook(hook)
