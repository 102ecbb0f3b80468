"""A record such as suites write, small and made by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from deltapass.bench.metrics.intervals import interval
from deltapass.bench.metrics.judging import difference_of
from deltapass.bench.metrics.table import MEASURES
from deltapass.bench.record import Macs, Manifest, Model, Record, Row, Times, Timing

COUNT = 40


def timing(share: float, stability: str = "stable") -> Timing:
    return Timing(
        median=10 * share,
        samples=(10 * share,) * 3,
        share=share,
        share_low=share - 0.01,
        share_high=share + 0.01,
        stability=stability,  # type: ignore[arg-type]
    )


def values(mean: float, seed: int = 0) -> np.ndarray:
    """Values of images that are hard or easy for all methods alike."""
    random = np.random.default_rng(seed)
    return mean + np.random.default_rng(99).normal(0, 1, COUNT) + random.normal(0, 0.05, COUNT)


def row(name: str, share: float, found: dict[str, np.ndarray], **given: Any) -> Row:
    kind = "steps" if name.startswith("plain-") else "cache"
    told = {
        "label": name,
        "kind": "plain" if name == "plain" else kind,
        "steps": 20,
        "times": Times(end_to_end=timing(share)),
        "macs": Macs(paper=share, full=share * 1.1, share=share),
        "means": {each: interval(of) for each, of in found.items()},
        "values": {each: tuple(map(float, of)) for each, of in found.items()},
        **given,
    }
    return Row(name=name, **told)


def record(*rows: Row, suite: str = "table1", model: str = "garments", **given: Any) -> Record:
    """Every row is compared with every plain one."""
    measures = tuple(dict.fromkeys(name for each in rows for name in each.means))
    plain = [each for each in rows if each.kind in ("plain", "steps")]
    compared = []
    for each in rows:
        against = {
            other.name: {
                name: difference_of(name, np.array(each.values[name]), np.array(other.values[name]))
                for name in each.values
                if name in other.values
            }
            for other in plain
            if other is not each
        }
        compared.append(msgspec.structs.replace(each, against=against))
    told: dict[str, Any] = {
        "date": "2026-01-02T03:04:05+00:00",
        "suite": {"name": suite, "title": f"Title of {suite}", "timed": 4, "steps": 20},
        "suite_sha256": "a" * 64,
        "environment": {"processor": "a processor", "torch": "2.13.0"},
        "environment_sha256": "b" * 64,
        "commit": "0123456789abcdef",
        "model": Model(name=model, title=f"title of {model}", blocks=28, digest="d"),
        "manifest": Manifest(sha256="c" * 64, seeds=tuple(range(COUNT)), prompts=(1,) * COUNT),
        "measures": tuple(MEASURES[name].means for name in measures),
        "reference": "plain",
        "rows": tuple(compared),
        "noise": timing(1.0),
        **given,
    }
    return Record(**told)
