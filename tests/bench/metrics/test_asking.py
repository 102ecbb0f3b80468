"""Measures that other processes take are those that this one takes, each image seen once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from elsewhere import Channels, Elsewhere

from deltapass.bench.metrics import features
from deltapass.bench.metrics.asking import AHEAD, Ask, RemoteAnswers, spread
from deltapass.bench.metrics.context import JudgingContext
from deltapass.bench.metrics.judges import Judge
from deltapass.bench.metrics.judging import Judgement, judge_rows

COUNT, REAL = 60, 70  # three parts, the last one smaller
MEASURES = ("psnr", "psnr_fine", "ssim", "right", "kid", "fid", "is")


def drawn(seed: int, count: int = COUNT) -> torch.Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> JudgingContext:
    monkeypatch.setattr(features, "NETWORKS", {"efflite0": "elsewhere:Channels"})
    judge = Judge(
        name="toy",
        real=lambda offset, count: drawn(1000 + offset, count),
        exact=lambda images, prompts: {"right": images.mean((1, 2, 3)).double().numpy()},
        measures=("right",),
        says=lambda: "a toy that does not pickle",
    )
    return JudgingContext(
        prompts=[1.0] * COUNT, judge=lambda: judge, real_images=REAL, fine=drawn(5)
    )


def judged(context: JudgingContext) -> Judgement:
    rows = {"plain": drawn(0), "ours": (drawn(0) * 0.9), "other": drawn(2)}
    return judge_rows(rows, "plain", context, measures=MEASURES, against=("other",))


def test_measures_taken_elsewhere_are_those_taken_here(context: JudgingContext) -> None:
    workers = Elsewhere(RemoteAnswers, None)
    there = dataclasses.replace(context, workers=workers, store=features.FeatureStore(), plain=None)
    assert judged(there) == judged(context)
    of_rows, of_real = 2 * 7 + 5, 3
    parts = 3 * 3 + 3 + 3  # of rows, of the real ones, of the floor's
    assert workers.done == of_rows + of_real + parts


def test_each_image_is_looked_at_once_and_elsewhere(context: JudgingContext) -> None:
    workers = Elsewhere(RemoteAnswers, None)
    judged(dataclasses.replace(context, workers=workers))
    network = workers.held._store.network("efflite0")
    assert isinstance(network, Channels)
    assert network.looked == 3 * COUNT + REAL + COUNT
    assert context.store.network("efflite0").looked == 0
    before = workers.done
    judged(dataclasses.replace(context, workers=workers))  # the features were kept
    assert network.looked == 3 * COUNT + REAL + COUNT
    assert workers.done == before + 2 * 7 + 5 + 3


def test_questions_are_made_when_a_worker_is_nearly_free() -> None:
    workers, made = Elsewhere(RemoteAnswers, None), list[int]()

    def asked() -> Iterator[tuple[int, Ask]]:
        for number in range(10):
            made.append(number)
            yield number, Ask(np.square, (number,))

    found = spread(asked(), workers)
    first = next(found)
    assert len(made) == AHEAD * workers.slots
    assert dict([first, *found]) == {number: number**2 for number in range(10)}
