"""A loop of a user's own around a toy, for what fits and searches schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from driving import compiled
from models import make

import deltapass

Loop = Callable[[Sequence[int], deltapass.Session], torch.Tensor]


def toy_loop(told: list[int] | None = None, toy: torch.nn.Module | None = None) -> Loop:
    """`loop(seeds, session)` of a compiled toy; `told` takes the steps it was asked for."""
    example = make("adaln")
    model = compiled(example if toy is None else toy, schedule="none")

    def loop(seeds: Sequence[int], session: deltapass.Session) -> torch.Tensor:
        shape = example.inputs(999.0, 0)[0][0].shape[1:]
        sample = torch.stack([torch.randn(shape, generator=seeded(seed)) for seed in seeds])
        steps = session.steps or 0
        for step in range(steps):
            session.step(step)
            level = torch.full((len(seeds),), 0.2 * (steps - step))  # near enough for smooth deltas
            sample = sample - model(sample, level) / steps
        if told is not None:
            told.append(steps)
        return sample

    return loop


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pipeline_with_call() -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline, not compiled, and how it is called."""
    from models.zoo import make_pipe

    zoo = make_pipe("pixart-dpm")
    own = ("generator", "output_type", "num_inference_steps", "return_dict", "latents")
    return zoo.pipe, {name: value for name, value in zoo.call().items() if name not in own}
