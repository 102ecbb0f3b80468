"""Which images go into the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from page_case import speed_record
from PIL import Image

from deltapass.bench.page.pictures import OWN_WORST, Pictures, choose_pictures
from deltapass.bench.record import Record, Row

COUNT = 8


def drawn(folder: Path, off: Mapping[str, list[int]], suffix: str = ".png") -> Record:
    """A record whose methods differ from plain by so many levels, an image each."""
    rows = []
    for name, levels in {"plain": [0] * COUNT, **off}.items():
        (folder / name).mkdir(exist_ok=True)
        for place, level in enumerate(levels):
            pixels = np.full((4, 4, 3), 100 + level, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}{suffix}")
        images = tuple(f"{name}/{place}{suffix}" for place in range(len(levels)))
        kind = "plain" if name == "plain" else "cache"
        rows.append(Row(name=name, label=name, kind=kind, steps=20, images=images))  # type: ignore[arg-type]
    return msgspec.structs.replace(speed_record(), rows=tuple(rows), reference="plain")


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def places(pictures: Pictures, name: str) -> list[int]:
    return sorted(pictures.held[name])


def test_the_worst_pairs_are_chosen_and_are_the_files(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": [1, 9, 2, 3, 40, 4, 5, 6]})
    pictures = choose_pictures(record, tmp_path, most_seeds=3)
    assert places(pictures, "a") == places(pictures, "plain") == [1, 4, 7]
    assert (decoded(pictures.uris[pictures.held["a"][4]]) == 140).all()
    assert (pictures.most, pictures.pairs) == (3, COUNT)


def test_psnr_is_that_of_the_pixels(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": [0, 51, 1, 1, 1, 1, 1, 1]})
    found = choose_pictures(record, tmp_path).psnr["plain"]["a"]
    assert found[0] is None  # equal pixels
    assert found[1] == pytest.approx(-20 * math.log10(51 / 255))


def test_every_method_shows_its_own_worst_beside_the_common_seeds(tmp_path: Path) -> None:
    a = [90, 80, 70, 1, 1, 1, 1, 1]
    b = [1, 1, 1, 1, 1, 1, 60, 70]
    pictures = choose_pictures(drawn(tmp_path, {"a": a, "b": b}), tmp_path, most_seeds=2)
    assert {0, 1} <= set(places(pictures, "a"))
    assert {6, 7} <= set(places(pictures, "b"))
    assert set(places(pictures, "plain")) == {0, 1, 6, 7}
    # The seeds that are common are there of both, so that all methods can be laid side by side.
    assert {0, 7} <= set(places(pictures, "a")) & set(places(pictures, "b"))


def test_bytes_are_limited_but_not_to_nothing(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": list(range(10, 18)), "b": list(range(20, 28))})
    pictures = choose_pictures(record, tmp_path, most_bytes=1)
    assert places(pictures, "a") == places(pictures, "b") == [7]


def test_equal_files_are_held_once(tmp_path: Path) -> None:
    pictures = choose_pictures(drawn(tmp_path, {"a": [0] * COUNT}), tmp_path)
    assert len(pictures.uris) == 1
    assert len(pictures.held["a"]) == COUNT


def test_files_that_are_no_png_become_one(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": [10] * COUNT}, suffix=".bmp")
    pictures = choose_pictures(record, tmp_path)
    assert (decoded(pictures.uris[pictures.held["a"][0]]) == 110).all()


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": [10, 20, 30, 40, 50, 60, 70, 80]})
    (tmp_path / "a" / "7.png").unlink()
    (tmp_path / "a" / "6.png").write_bytes(b"no image")
    whole = (tmp_path / "a" / "5.png").read_bytes()
    (tmp_path / "a" / "5.png").write_bytes(whole[: len(whole) // 2])
    pictures = choose_pictures(record, tmp_path, most_seeds=OWN_WORST)
    assert pictures.missing == ("a/5.png", "a/6.png", "a/7.png")
    assert places(pictures, "a") == [3, 4]


def test_values_of_the_record_tell_the_worst_without_reading_all(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": [10] * COUNT})
    values = (30.0, 20.0, float("inf"), 25.0, float("nan"), 40.0, 41.0, 42.0)
    rows = (record.rows[0], msgspec.structs.replace(record.rows[1], values={"psnr": values}))
    record = msgspec.structs.replace(record, rows=rows)
    assert places(choose_pictures(record, tmp_path, most_seeds=3), "a") == [0, 1, 3]


def test_without_images_of_two_methods_there_is_nothing_to_show(tmp_path: Path) -> None:
    assert choose_pictures(drawn(tmp_path, {}), tmp_path).uris == ()


def test_images_of_another_size_are_shown_without_a_number(tmp_path: Path) -> None:
    record = drawn(tmp_path, {"a": [10] * COUNT})
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a" / "0.png")
    pictures = choose_pictures(record, tmp_path)
    assert 0 in pictures.held["a"] and 0 not in pictures.psnr["plain"]["a"]
