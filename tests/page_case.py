"""Records for the page's tests. ALL NUMBERS AND IMAGES ARE MADE UP: nothing here was measured.

They have the shape of real ones: two models, a curve of fewer steps, methods of every kind, one
that failed, one whose time was not stable, worse and better ones, texts that try to break the page.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from PIL import Image

from deltapass.bench.record import (
    Counts,
    Difference,
    Figure,
    Interval,
    Macs,
    Manifest,
    Measure,
    Model,
    Record,
    Row,
    Series,
    Times,
    Timing,
)

SIDE: Final = 32
IMAGES: Final = 16
STEPS: Final = 20
ATTACK: Final = "</script><img src=x onerror=\"document.title='broken'\">'\"&{{ 7 * 7 }}"

MEASURES: Final = (
    Measure(
        name="psnr", title="PSNR to 20 plain steps, dB", higher=True, digits=1, margin=0.25,
        about="How near the pixels are to those of the full run. It cannot see which is nicer.",
    ),
    Measure(
        name="right", title="right, %", higher=True, scale=100, digits=1, margin=0.01,
        about="Share of prompts whose attributes a classifier finds in the image.",
        floor=Interval(mean=0.985, low=0.975, high=0.99),
    ),
    Measure(
        name="kid", title="KID-EffLite0 x 1000", higher=False, scale=1000, digits=2,
        margin=0.0005, about="Distance of two sets of features. Small sets are noisy.",
        floor=Interval(mean=0.0002, low=-0.0003, high=0.0008),
    ),
)  # fmt: skip

# name, label, kind, steps, share of time, PSNR, right, KID, span of cached steps, remark
METHODS: Final[tuple[tuple[Any, ...], ...]] = (
    ("plain-20", "20 plain steps", "plain", 20, 1.0, None, 0.962, 0.0011, None, ""),
    ("plain-16", "16 plain steps", "steps", 16, 0.806, 29.1, 0.957, 0.0013, None, ""),
    ("plain-13", "13 plain steps", "steps", 13, 0.657, 25.8, 0.951, 0.0019, None, ""),
    ("plain-10", "10 plain steps", "steps", 10, 0.508, 22.4, 0.935, 0.0034, None, ""),
    ("plain-8", "8 plain steps", "steps", 8, 0.409, 20.0, 0.905, 0.0061, None, ""),
    ("tuned-1.6x", "Tuned schedule, 1.6x", "cache", 20, 0.619, 31.2, 0.961, 0.0012, (2, 21), ""),
    ("tuned-2x", "Tuned schedule, 2x", "cache", 20, 0.497, 27.3, 0.954, 0.0016, (1, 23), ""),
    ("delta-dit", "Δ-DiT", "cache", 20, 0.624, 26.0, 0.952, 0.0018, (0, 21), "The paper's."),
    ("delta-dit-2x", "Δ-DiT, 2x", "cache", 20, 0.502, 21.1, 0.928, 0.0042, (0, 26), ""),
    ("shallow", "Δ-Cache shallow", "cache", 20, 0.63, 22.6, 0.941, 0.0027, (0, 16), ""),
    ("deep", "Δ-Cache deep", "cache", 20, 0.628, 24.9, 0.948, 0.0021, (12, 28), ""),
    ("other-lib", "Another library, mask", "rival", 20, 0.561, 23.9, 0.944, 0.0026, None, ""),
    ("broken", "Another library, compiled", "rival", 20, None, None, None, None, None, ""),
)  # fmt: skip


def made_up_record(folder: Path | None = None) -> Record:
    """One record; with images if there is a folder for them."""
    return _record(folder, "garments", "Garments, 28 blocks", seed=1)


def made_up_records(folder: Path) -> list[Record]:
    """Two records, with their images under `folder`; the second one's texts are hostile."""
    return [
        made_up_record(folder),
        _record(folder, "nouns", "Nouns, 28 blocks", seed=2, hostile=True),
    ]


def speed_record() -> Record:
    """One of random weights: times alone, no images, no measures."""
    (record,) = (_record(None, "large", "Large, random weights", seed=3),)
    rows = tuple(
        msgspec.structs.replace(row, means={}, values={}, against={}, images=())
        for row in record.rows
    )
    model = msgspec.structs.replace(record.model, random_weights=True)
    suite = {**record.suite, "name": "speed", "title": "Speed at real size (made up)"}
    return msgspec.structs.replace(
        record, rows=rows, model=model, suite=suite, measures=(), figures=(), paper=None
    )


def _record(
    folder: Path | None, name: str, title: str, *, seed: int, hostile: bool = False
) -> Record:
    draw = random.Random(seed)
    return Record(
        date="2026-11-29T10:15:00Z",
        suite={
            "name": "table1",
            "title": "Table 1: methods at equal speed-up (made up)",
            "question": "Which method draws best at 1.6 and at 2 times the speed?",
            "images": IMAGES,
            "rounds": 10,
        },
        suite_sha256=hashlib.sha256(b"suite").hexdigest(),
        environment={
            "name": "2-core-example",
            "processor": "An example of a processor, 2 cores",
            "threads": 1,
            "device": "cpu",
            "dtype": "float32",
            "python": "3.11.7",
            "torch": "2.13.0",
            "diffusers": "0.42.1",
            "deltapass": "0.1.0",
        },
        environment_sha256=hashlib.sha256(b"environment").hexdigest(),
        commit="0123456789abcdef0123456789abcdef01234567+",
        model=Model(
            name=name, title=title, blocks=28, digest=hashlib.sha256(name.encode()).hexdigest(),
            about="Made up for the page's tests.",
        ),
        manifest=Manifest(
            sha256=hashlib.sha256(b"manifest").hexdigest(),
            seeds=tuple(range(100_000, 100_000 + IMAGES)),
            prompts=tuple(
                ATTACK if hostile and k == 0 else f"a boot, no. {k}" for k in range(IMAGES)
            ),
        ),
        measures=MEASURES,
        reference="plain-20",
        rows=tuple(_rows(folder, name, draw, hostile)),
        figures=_figures(draw),
        harness_seconds=0.0021,
        noise=_timing(1.0, draw),
        paper={
            "title": "Table 1 of the paper",
            "about": "Made up as well.",
            "label": "the paper's figures, measured by its authors; not ours",
            "columns": ["Method", "MACs", "Speed-up", "FID", "CLIP"],
            "rows": [
                ["20 steps", "85.65T", "1.00x", 39.002, 30.417],
                ["13 steps", "55.67T", "1.54x", 39.989, 30.417],
                ["Δ-DiT", "53.39T", "1.61x", 35.882, 30.415],
            ],
        },
        warnings=(
            f"{IMAGES} images are few: differences below 1 dB cannot be seen.",
            "These numbers are made up, to test the page.",
        ),
    )  # fmt: skip


def _rows(folder: Path | None, model: str, draw: random.Random, hostile: bool) -> Iterator[Row]:
    for name, label, kind, steps, share, psnr, right, kid, span, remark in METHODS:
        shown = f"{label} {ATTACK}" if hostile and name == "shallow" else label
        replay = f"deltapass bench table1 --only {name} --model {model}"
        if share is None:
            yield Row(
                name=name, label=shown, kind=kind, steps=steps, replay=replay,
                failure="Its wrapper breaks the graph: 28 breaks, then an out-of-range index.",
            )  # fmt: skip
            continue
        means = {
            "psnr": _interval(psnr, 0.7, draw),
            "right": _interval(right, 0.012, draw),
            "kid": _interval(kid, 0.0006, draw),
        }
        schedule = tuple(None if span is None or k % 3 == 0 else span for k in range(steps))
        yield Row(
            name=name, label=shown, kind=kind, steps=steps,
            settings={"speedup": round(1 / share, 2)} if kind == "cache" else {},
            lowering="inductor", schedule=None if kind == "rival" else schedule,
            macs=Macs(paper=83e12 * share, full=85.65e12 * share, share=share * 0.98),
            times=_times(share, draw, name),
            compile_seconds=12.3 + draw.random(), peak_bytes=int(3.2e9 + draw.random() * 1e8),
            counts=Counts(graphs=1, breaks=0, recompiles=0, bodies=4, blocks_run=int(560 * share),
                          buffer_bytes=None if kind != "cache" else 9_437_184),
            means={key: value for key, value in means.items() if value},
            against=_against(name, kind, psnr, right, kid),
            equal_time=_equal_time(share) if kind in ("cache", "rival") else None,
            step_errors=_errors(schedule, draw) if kind == "cache" else None,
            images=tuple(_images(folder, model, name, psnr, draw)) if folder else (),
            remark=remark, replay=replay,
        )  # fmt: skip


def _times(share: float, draw: random.Random, name: str) -> Times:
    unstable = name == "other-lib"
    return Times(
        end_to_end=_timing(share, draw, 41.0, unstable),
        denoiser=_timing(share * 0.985, draw, 40.1),
        step=_timing(share * 0.98 if "plain" not in name else 1.0, draw, 0.1),
    )


def _timing(
    share: float, draw: random.Random, seconds: float = 41.0, unstable: bool = False
) -> Timing:
    spread = 0.09 if unstable else 0.012
    shares = sorted(share * (1 + draw.uniform(-spread, spread)) for _ in range(10))
    return Timing(
        median=seconds * share,
        samples=tuple(seconds * each for each in shares),
        share=share,
        share_low=shares[0],
        share_high=shares[-1],
        stability="inconclusive" if unstable else "stable",
    )


def _interval(mean: float | None, width: float, draw: random.Random) -> Interval | None:
    if mean is None:
        return None
    return Interval(
        mean=mean, low=mean - width * draw.uniform(0.7, 1), high=mean + width * draw.uniform(0.7, 1)
    )


def _equal_time(share: float) -> str:
    slower = [
        (row[4], row[0]) for row in METHODS if row[2] in ("plain", "steps") and row[4] >= share
    ]
    return min(slower)[1]


def _against(
    name: str, kind: str, psnr: float | None, right: float, kid: float
) -> dict[str, dict[str, Difference]]:
    if kind not in ("cache", "rival"):
        return {}
    share = next(row[4] for row in METHODS if row[0] == name)
    found = {}
    for other in dict.fromkeys((_equal_time(share), "plain-10", "plain-20")):
        row = next(each for each in METHODS if each[0] == other)
        pairs = (("psnr", psnr, row[5], 0.9), ("right", right, row[6], 0.011))
        found[other] = {
            measure.name: _difference(mine - theirs, width, measure)
            for (key, mine, theirs, width) in (*pairs, ("kid", kid, row[7], 0.0007))
            if mine is not None and theirs is not None
            for measure in MEASURES
            if measure.name == key
        }
    return found


def _difference(mean: float, width: float, measure: Measure) -> Difference:
    low, high = mean - width, mean + width
    good = mean if measure.higher else -mean
    if low * high > 0:
        verdict = "better" if good > 0 else "worse"
    else:
        verdict = "same" if abs(mean) < measure.margin else "inconclusive"
    return Difference(
        difference=Interval(mean=mean, low=low, high=high), verdict=verdict, detectable=width * 1.4
    )  # type: ignore[arg-type]


def _errors(schedule: tuple[tuple[int, int] | None, ...], draw: random.Random) -> tuple[float, ...]:
    return tuple(
        0.0 if row is None and k == 0 else (0.004 if row is None else 0.02) * (1 + k / 9)
        + 0.004 * draw.random()
        for k, row in enumerate(schedule)
    )  # fmt: skip


def _images(
    folder: Path, model: str, name: str, psnr: float | None, draw: random.Random
) -> Iterator[str]:
    """Blobs of a seed's own colours and place; the worse the method, the further they move."""
    place = folder / "images" / model / name
    place.mkdir(parents=True, exist_ok=True)
    off = 0.0 if psnr is None else 10 ** (-psnr / 20) * 3
    for seed in range(IMAGES):
        chance = random.Random(seed)
        colour = np.array([chance.uniform(0.2, 1) for _ in range(3)])
        x, y, wide = chance.uniform(0.3, 0.7), chance.uniform(0.3, 0.7), chance.uniform(0.12, 0.3)
        x, y = x + off * draw.uniform(-1, 1), y + off * draw.uniform(-1, 1)
        down, across = np.mgrid[0:SIDE, 0:SIDE] / SIDE
        far = np.hypot((across - x) * 1.3, down - y) / wide
        light = np.clip(1.6 - far + 0.2 * np.sin(9 * math.pi * (across - x)), 0, 1)
        pixels = (0.94 - light[..., None] * (1 - colour) * 0.9) * 255
        path = place / f"{seed:03d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        yield path.relative_to(folder).as_posix()


def _figures(draw: random.Random) -> tuple[Figure, ...]:
    x = tuple(float(k) for k in range(1, 20))
    curves = tuple(
        Series(
            name=f"block {block}",
            x=x,
            y=tuple(0.99 - 0.3 * math.exp(-k / (2 + block / 6)) for k in x),
            low=tuple(0.97 - 0.32 * math.exp(-k / (2 + block / 6)) for k in x),
            high=tuple(min(1.0, 1.0 - 0.28 * math.exp(-k / (2 + block / 6))) for k in x),
        )
        for block in (0, 9, 18, 27)
    )
    grid = tuple(
        tuple(
            None
            if step == 0
            else 1 - 0.6 * math.exp(-step / (1 + block / 5)) - 0.02 * draw.random()
            for step in range(20)
        )
        for block in range(28)
    )
    return (
        Figure(
            name="cosine", title="Δ cosine similarity of neighbouring steps", x_title="step",
            y_title="cosine similarity", about="Of the deltas of one block, mean over images.",
            series=curves,
        ),
        Figure(
            name="cosine-map", title="Δ cosine similarity, all blocks", x_title="step",
            y_title="block", about="The first step has no neighbour before it.", grid=grid,
        ),
    )  # fmt: skip
