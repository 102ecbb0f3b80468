"""The arms of real_size.py: plain, ours and the rivals, each eager and compiled.

Weights are random, so no cache can tell from what it sees when to skip. Every arm is therefore set
to skip at every second step, or as often as it lets itself be set to: what is compared is the cost
of its full and its cached steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from models.streams import blocks_of
from torch import nn

import deltapass
from deltapass.bench.rivals.table import RIVALS, enabled

Step = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
Begin = Callable[[], Step]  # a new trajectory
ALWAYS: Final = 1e6  # a threshold that is never reached
EVERY: Final = (-1, 1001)  # timesteps at which a rival may skip

SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "cache-dit-static": {"interval": 2},
        "cache-dit-dynamic": {
            "residual_diff_threshold": ALWAYS,
            "max_warmup_steps": 1,
            "max_continuous_cached_steps": 1,
        },
        "cache-dit-taylorseer": {
            "residual_diff_threshold": ALWAYS,
            "max_warmup_steps": 1,
            "max_continuous_cached_steps": 1,
        },
        "first-block-cache": {"threshold": ALWAYS},
        "mag-cache": {
            "mag_ratios": [1.0],
            "threshold": ALWAYS,
            "max_skip_steps": 1,
            "retention_ratio": 0.0,
        },
        "pyramid-attention-broadcast": {
            "spatial_attention_block_skip_range": 2,
            "cross_attention_block_skip_range": 2,
            "spatial_attention_timestep_skip_range": EVERY,
            "cross_attention_timestep_skip_range": EVERY,
        },
        "faster-cache": {
            "spatial_attention_timestep_skip_range": EVERY,
            "unconditional_batch_timestep_skip_range": EVERY,
            "unconditional_batch_skip_range": 2,
        },
        "taylorseer": {"disable_cache_before_step": 1, "cache_interval": 2},
    }
)
# Class of diffusers -> rival -> what it must be told besides.
TOLD: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        "SD3Transformer2DModel": {
            name: {"forward_pattern": "Pattern_1"}
            for name in RIVALS
            if name.startswith("cache-dit")
        },
        "FluxTransformer2DModel": {
            "faster-cache": {"is_guidance_distilled": True, "timestep_scale": 1000.0},
            "pyramid-attention-broadcast": {"timestep_scale": 1000.0},
        },
    }
)


@dataclass(frozen=True)
class How:
    """Steps of every trajectory, and the mode of torch.compile of all that is compiled."""

    steps: int
    mode: str | None = None

    @property
    def compiling(self) -> dict[str, Any]:
        """Arguments of torch.compile."""
        return {"mode": self.mode} if self.mode else {}


@dataclass(frozen=True)
class Arm:
    """One way to run a model."""

    name: str
    enable: Callable[[nn.Module, How], AbstractContextManager[Begin]]


# ---- plain and ours ------------------------------------------------------------------------------


@contextmanager
def plain(model: nn.Module, how: How, *, compiled: bool) -> Iterator[Begin]:
    """The model itself."""
    fixed: dict[str, Any] = {"dynamic": False, "fullgraph": True}
    denoiser = torch.compile(model, **fixed, **how.compiling) if compiled else model
    yield lambda: lambda _, args, kwargs: denoiser(*args, **kwargs)


@contextmanager
def ours(model: nn.Module, how: How, *, lowering: str, deep: bool) -> Iterator[Begin]:
    """Our default; or all blocks but the first at every second step, as rivals skip them."""
    rows = (None, deltapass.Span(1, len(blocks_of(model))))
    table = tuple(rows[step % 2] for step in range(how.steps))
    schedule = deltapass.ExplicitSchedule(table) if deep else None
    options: dict[str, Any] = {"lowering": lowering, "strict": True, "steps": how.steps}
    # A mode excludes options; the schedule comes with the session in either case.
    chosen = how.compiling if lowering == "inductor" and how.mode else {"options": options}
    denoiser = torch.compile(model, backend="deltadit", dynamic=False, fullgraph=True, **chosen)

    def begin() -> Step:
        session = deltapass.session(steps=how.steps, schedule=schedule)

        def step(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with session.at(index):
                return denoiser(*args, **kwargs)

        return step

    yield begin


# ---- rivals --------------------------------------------------------------------------------------


@contextmanager
def rival(model: nn.Module, how: How, *, name: str, compiled: bool) -> Iterator[Begin]:
    """A rival, as its documentation says."""
    told = TOLD.get(type(model).__name__, {}).get(name, {})
    settings = {**SETTINGS[name], **told, "compiled": compiled and (how.compiling or True)}
    with enabled(name, model, steps=how.steps, settings=settings) as running:

        def begin() -> Step:
            running.begin()
            return lambda _, args, kwargs: running(*args, **kwargs)

        yield begin


def _arms() -> Iterator[Arm]:
    yield Arm("plain, eager", partial(plain, compiled=False))
    yield Arm("plain, compiled", partial(plain, compiled=True))
    for lowering in ("eager", "inductor"):
        yield Arm(f"ours, {lowering}", partial(ours, lowering=lowering, deep=False))
        yield Arm(f"ours deep, {lowering}", partial(ours, lowering=lowering, deep=True))
    for name in RIVALS:
        yield Arm(f"{name}, eager", partial(rival, name=name, compiled=False))
        yield Arm(f"{name}, compiled", partial(rival, name=name, compiled=True))


ARMS: Final[Mapping[str, Arm]] = MappingProxyType({arm.name: arm for arm in _arms()})
