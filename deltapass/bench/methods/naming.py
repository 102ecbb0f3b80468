"""Names and labels of methods: short, unique in a run, and the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from deltapass.bench.suite import MethodSpec
from deltapass.errors import counted

# Setting -> how a name says it; others stand there as key=value.
SHORT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "speedup": "{}x",
        "interval": "N{}",
        "cached_blocks": "c{}",
        "boundary": "b{}",
        "gate": "gate{}",
        "predictor": "{}",
        "lowering": "{}",
    }
)
# The same for people.
LONG: Final[Mapping[str, str]] = MappingProxyType(
    {
        "speedup": "{}x",
        "interval": "N = {}",
        "cached_blocks": "N_c = {}",
        "boundary": "b = {}",
        "gate": "gate {}",
        "predictor": "{}",
        "lowering": "{}",
        "span": "blocks {}",
    }
)


def name_of(spec: MethodSpec, steps: int, base: str | None = None) -> str:
    """`delta-dit` with {"speedup": 1.6} -> `delta-dit-1.6x`; steps of its own come last."""
    parts = [base or spec.name]
    parts += [_short(key, value) for key, value in spec.settings.items()]
    if spec.steps is not None:
        parts.append(str(steps))
    return "-".join(parts)


def label_of(spec: MethodSpec, base: str) -> str:
    """What the suite says, or else the base with its settings in brackets."""
    if spec.label is not None:
        return spec.label
    said = [
        LONG.get(key, key + " = {}").format(_said(value)) for key, value in spec.settings.items()
    ]
    if spec.steps is not None:
        said.append(counted(spec.steps, "step"))
    return f"{base} ({', '.join(said)})" if said else base


def _short(key: str, value: Any) -> str:
    return SHORT.get(key, key + "={}").format(_said(value)).replace("/", "_").replace(" ", "")


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
