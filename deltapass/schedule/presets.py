"""Schedules by name: presets by their aim; the paper's method, its baselines and ablation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from deltapass.errors import OptionError, ScheduleError, did_you_mean
from deltapass.schedule.checks import unknown_name
from deltapass.schedule.rules import Region, Schedule


def delta_dit(**fields: Any) -> Schedule:
    """Delta-DiT: the deep blocks are cached first, the shallow ones after the boundary."""
    return Schedule(**fields)


def delta_cache(region: Region, /, **fields: Any) -> Schedule:
    """Delta-Cache (Eq. 3): one region is cached along the whole trajectory."""
    return Schedule(outline=region, detail=region, **fields)


def reversed_phases(**fields: Any) -> Schedule:
    """The ablation of Table 5: shallow blocks first, deep ones after the boundary."""
    return Schedule(outline="shallow", detail="deep", **fields)


def faster_diffusion(**fields: Any) -> Schedule:
    """The paper's baseline Faster Diffusion: the feature of the first I blocks is reused.

    I is `cached_blocks`. The encoder, whose features that method reuses, is taken to be those
    blocks, as in models without a decoder of their own; the sample of a cached step is not read.
    """
    return Schedule(outline="shallow", detail="shallow", keeps="feature", **fields)


def tgate(gate: int | float = 10, **fields: Any) -> Schedule:
    """The paper's baseline TGATE: behind the gate all cross-attention stays as it was before it."""
    everywhere = {"outline": "deep", "detail": "deep", "cached_blocks": 1.0}
    return Schedule(gate=gate, keeps="cross-attention", **{**everywhere, **fields})


def never() -> Schedule:
    """Every step refreshes: the plain model."""
    return Schedule(interval=1, cached_blocks=0)


# A preset that is not the paper's skips the whole stack and forecasts linearly. Trajectories begin
# with refreshes, for what an image will be is decided there, and a forecast needs two. On few-step
# trajectories, whose steps are far apart, it skips only a seventh of the blocks, as the paper does.
FORECAST: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "outline": "deep",
        "detail": "deep",
        "cached_blocks": 1.0,
        "few_step_blocks": 1 / 7,
        "predictor": "linear",
    }
)


def quality() -> Schedule:
    """No visible change: every other step from the fourth on."""
    return Schedule(interval=(1, 1, 1, 2), **FORECAST)


def balanced() -> Schedule:
    """About half of the work: refreshes two steps apart early, three later."""
    return Schedule(interval=(1, 1, 1, 2, 2, 2, 3), **FORECAST)


def fast() -> Schedule:
    """As fast as still useful: refreshes two steps apart early, four later."""
    return Schedule(interval=(1, 1, 2, 2, 4), **FORECAST)


SCHEDULES: Final[Mapping[str, Callable[..., Schedule]]] = MappingProxyType(
    {
        "delta-dit": delta_dit,
        "delta-cache-deep": functools.partial(delta_cache, "deep"),
        "delta-cache-middle": functools.partial(delta_cache, "middle"),
        "delta-cache-shallow": functools.partial(delta_cache, "shallow"),
        "reversed": reversed_phases,
        "faster-diffusion": faster_diffusion,
        "deepcache": functools.partial(delta_cache, "deep", keeps="feature"),
        "tgate": tgate,
        "none": never,
        "quality": quality,
        "balanced": balanced,
        "fast": fast,
        "paper": delta_dit,
    }
)
# Preset -> what it aims at, for people who choose one; it is also the name of a schedule.
PRESETS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "quality": "no visible change",
        "balanced": "twice as fast",
        "fast": "as fast as still useful",
        "paper": "Delta-DiT, as published",
    }
)
DEFAULT_PRESET: Final = "balanced"
FIELD_NAMES: Final = tuple(field.name for field in dataclasses.fields(Schedule))


def preset_named(name: Any) -> Schedule:
    """The schedule of a preset.

    Raises:
        OptionError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        hint = did_you_mean(name, tuple(PRESETS), "; did you mean {!r}?")
        raise OptionError("preset", name, f"one of {', '.join(PRESETS)}{hint}")
    return SCHEDULES[name]()


def named_schedule(name: str, /, **fields: Any) -> Schedule:
    """The schedule of that name in SCHEDULES, with other fields than the defaults.

    Raises:
        ScheduleError: If the name or a field is unknown, or the name already fixes a field.
    """
    if not isinstance(name, str) or name not in SCHEDULES:  # files hold any value
        raise unknown_name("schedule", name, tuple(SCHEDULES))
    for field in fields:
        if field not in FIELD_NAMES:
            raise unknown_name("field", field, FIELD_NAMES)
    # Files and the command line know lists only.
    taken = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
    try:
        return SCHEDULES[name](**taken)
    except TypeError as error:  # the constructor itself sets one of these fields
        given = ", ".join(fields)
        remedy = "Drop that field, or use 'delta-dit', which takes all of them"
        raise ScheduleError(f"schedule {name!r} does not take all of: {given}", remedy) from error
