"""Methods that are other packages: their names and settings; `deltapass/bench/rivals` runs them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from deltapass.bench.methods.method import Context, Method
from deltapass.bench.methods.naming import label_of, name_of
from deltapass.bench.suite import MethodSpec

LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cache-dit-static": "cache-dit, fixed mask",
        "cache-dit-dynamic": "cache-dit, DBCache",
        "cache-dit-taylorseer": "cache-dit, DBCache and TaylorSeer",
        "first-block-cache": "diffusers, First Block Cache",
        "mag-cache": "diffusers, MagCache",
        "pyramid-attention-broadcast": "diffusers, Pyramid Attention Broadcast",
        "faster-cache": "diffusers, FasterCache",
        "taylorseer": "diffusers, TaylorSeer",
    }
)


def by_rival(spec: MethodSpec, context: Context) -> Method:
    """A rival by its name; its package judges the settings when it is enabled."""
    steps = spec.steps or context.steps
    return Method(
        name=name_of(spec, steps),
        label=label_of(spec, LABELS[spec.name]),
        kind="rival",
        steps=steps,
        rival=spec.name,
        settings=dict(spec.settings),
        remark=spec.remark,
    )
