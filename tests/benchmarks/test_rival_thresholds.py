"""Which threshold is chosen, what is not counted again, and that the suite has what was chosen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import rival_thresholds
from rival_thresholds import GRID, RIVALS, Held, chosen

from deltapass.bench.environment import Environment
from deltapass.bench.files import read_suite

RECORD = next(Path(rival_thresholds.__file__).parent.glob("results/rival-thresholds_*.json"))


def best(scales: Mapping[str, float]) -> tuple[float, int]:
    """The choice where a model caches its scale times the threshold, and how much was counted."""
    counted = set()

    def share(model: str, at: float) -> float:
        counted.add((model, at))
        return min(1.0, scales[model] * at)

    return chosen(share), len(counted)


def test_the_model_that_is_farthest_off_decides() -> None:
    assert best({"garments": 5.0, "nouns": 5.0})[0] == 0.1
    assert best({"garments": 2.5, "nouns": 5.0})[0] == 0.12  # 30 % and 60 %
    assert best({"garments": 0.1, "nouns": 0.1})[0] == GRID[-1]
    assert best({"garments": 5.0, "nouns": 5.0})[1] < len(GRID) * 2


def test_what_was_counted_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def share(_sampler: object, method: object, _seeds: object) -> float:
        asked.append(method.name)  # type: ignore[attr-defined]
        return 0.5

    monkeypatch.setattr(rival_thresholds, "cached_share", share)
    monkeypatch.setattr(rival_thresholds, "embedded_subject", lambda *_: None)
    monkeypatch.setattr(rival_thresholds, "Sampler", lambda *_: None)
    args = argparse.Namespace(steps=20, images=25, first_seed=900_000)
    for _ in range(2):
        held = Held(tmp_path / "held.json", Environment(), args)
        assert held.share("mag-cache", "nouns", 0.05) == 0.5
    assert asked == ["mag-cache nouns 0.05"]
    args.first_seed = 1  # other seeds are another count
    Held(tmp_path / "held.json", Environment(), args).share("mag-cache", "nouns", 0.05)
    assert len(asked) == 2


def test_the_suite_has_what_the_committed_record_says() -> None:
    held = json.loads(RECORD.read_text())
    suite = read_suite("rivals")
    assert held["of"]["seeds"][0] >= suite.first_seed + suite.images
    for rival, (setting, beside) in RIVALS.items():
        found = {spec.settings[setting] for spec in suite.methods if spec.name == rival}
        assert found == {chosen(lambda m, at, rival=rival: held["shares"][f"{rival} {m} {at:g}"])}
        for spec in suite.methods:
            assert spec.name != rival or beside.items() <= spec.settings.items()
