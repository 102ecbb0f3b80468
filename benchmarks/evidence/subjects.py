"""The trained models that are judged, and who judges them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from deltapass.bench.metrics.judges import JUDGES, Judge
from deltapass.demo.embedded import ASSETS


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model: `folder` is where its weights and its tuned schedules are."""

    name: str
    folder: Path
    judge: Judge


def subject(name: str, work: Path) -> Subject:
    """An embedded model, with its judge."""
    return Subject(name=name, folder=ASSETS / name, judge=JUDGES[name](work))


SUBJECTS: Final[Mapping[str, Callable[[Path], Subject]]] = MappingProxyType(
    {name: functools.partial(subject, name) for name in JUDGES}
)
