"""Which images go into the page: the same seeds of every method, the worst pairs first.

Images weigh far more than all else, so their number and their bytes are limited. A seed that any
method draws badly comes before one that all draw well.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, final

import msgspec
import numpy as np

from deltapass.bench.record import Record, Row
from deltapass.libraries import optional_module

MOST_SEEDS: Final = 12
MOST_BYTES: Final = 12 * 2**20  # of the images of one record
MOST_DECODED: Final = 64
PNG: Final = b"\x89PNG\r\n\x1a\n"
PNG_END: Final = b"\0\0\0\0IEND\xae\x42\x60\x82"
PSNR: Final = "psnr"  # the measure of how like the reference an image is
OWN_WORST: Final = 2  # pairs of each method that are there whatever the others draw


@final
class Pictures(msgspec.Struct, frozen=True, kw_only=True):
    """The images of a record, for the page.

    Attributes:
        uris: Each image once, as data URI.
        held: Row's name -> place in the manifest -> index in `uris`.
        psnr: Name of a row to compare with -> row's name -> place -> PSNR, dB; None if equal.
        pairs: How many images the record has of a method, of which these are some.
        most: How many of one method are held.
        missing: Files that the record names and that are not there or are no images.
    """

    uris: tuple[str, ...] = ()
    held: dict[str, dict[int, int]] = {}
    psnr: dict[str, dict[str, dict[int, float | None]]] = {}
    pairs: int = 0
    most: int = 0
    missing: tuple[str, ...] = ()


def choose_pictures(
    record: Record, source: Path, most_seeds: int = MOST_SEEDS, most_bytes: int = MOST_BYTES
) -> Pictures:
    """Read a record's images and choose.

    Args:
        record: Names them.
        source: Folder that their paths are relative to.
        most_seeds: Of one method, besides its own worst two.
        most_bytes: Of all that are chosen together.
    """
    files = _Files(record, source)
    others = [row for row in record.rows if row.name != record.reference]
    if not files.of(record.reference) or not any(files.of(row.name) for row in others):
        return Pictures(missing=files.missing)
    worst = {row.name: _worst_first(files, record.reference, row) for row in others}
    wanted = _chosen(worst, most_seeds)
    held, uris = _embedded(files, record, wanted, most_bytes)
    bases = [row.name for row in record.rows if row.kind in ("plain", "steps") and held[row.name]]
    return Pictures(
        uris=tuple(uris),
        held=held,
        psnr={base: _pairs(files, base, held) for base in bases},
        pairs=max(len(files.of(row.name)) for row in record.rows),
        most=max(len(places) for name, places in held.items() if name != record.reference),
        missing=files.missing,
    )


def _worst_first(files: _Files, reference: str, row: Row) -> list[int]:
    """Places of the manifest at which both have an image, the least alike first.

    By the record's own values where it has them, so that few of many images need be read.
    """
    both = files.of(reference).keys() & files.of(row.name).keys()
    known = row.values.get(PSNR, ())

    def likeness(place: int) -> float:
        if place >= len(known):
            return files.psnr(reference, row.name, place)
        return float("inf") if math.isnan(known[place]) else known[place]

    return sorted(both, key=lambda place: (likeness(place), place))


def _chosen(worst: Mapping[str, Sequence[int]], most: int) -> dict[str, list[int]]:
    """Every method's places, in the order in which they are worth their bytes."""
    common: list[int] = []
    for rank in range(max(map(len, worst.values()), default=0)):
        for places in worst.values():
            if len(common) < most and rank < len(places) and places[rank] not in common:
                common.append(places[rank])
    return {
        name: [*own[:OWN_WORST], *(place for place in common if place in own[OWN_WORST:])]
        for name, own in worst.items()
    }


def _embedded(
    files: _Files, record: Record, wanted: Mapping[str, Sequence[int]], most_bytes: int
) -> tuple[dict[str, dict[int, int]], list[str]]:
    """Data URIs of what is wanted, rank by rank for all methods, until the bytes are spent."""
    uris: dict[str, int] = {}
    held: dict[str, dict[int, int]] = {row.name: {} for row in record.rows}
    spent = 0
    for rank in range(max(map(len, wanted.values()), default=0)):
        if rank > 0 and spent >= most_bytes:
            break
        for name, places in wanted.items():
            for row in (record.reference, name) if rank < len(places) else ():
                place = places[rank]
                if place in held[row]:
                    continue
                uri = files.uri(row, place)
                spent += 0 if uri in uris else len(uri)
                held[row][place] = uris.setdefault(uri, len(uris))
    return held, list(uris)


def _pairs(
    files: _Files, base: str, held: Mapping[str, Mapping[int, int]]
) -> dict[str, dict[int, float | None]]:
    """PSNR of every held pair with one row."""
    found: dict[str, dict[int, float | None]] = {}
    for name, places in held.items():
        if name == base:
            continue
        found[name] = {}
        for place in sorted(places.keys() & held[base].keys()):
            value = files.psnr(base, name, place)
            if value > float("-inf"):
                found[name][place] = value if math.isfinite(value) else None
    return found


class _Files:
    """The image files of a record; of pixels the last ones are kept."""

    def __init__(self, record: Record, source: Path) -> None:
        self._module = optional_module("PIL.Image", "bench")
        self._pixels = lru_cache(maxsize=MOST_DECODED)(self._decoded)
        self._rows = {
            row.name: {place: source / name for place, name in enumerate(row.images)}
            for row in record.rows
        }
        self._lost = {
            path: name
            for row in record.rows
            for path, name in zip(self._rows[row.name].values(), row.images, strict=True)
            if not self._is_image(path)
        }

    @property
    def missing(self) -> tuple[str, ...]:
        """Files that are not there, or are no images, as the record names them."""
        return tuple(self._lost.values())

    def _is_image(self, path: Path) -> bool:
        """Whether a file is there and whole; of PNG files only the head and the end are read."""
        try:
            with path.open("rb") as file:
                if file.read(len(PNG)) == PNG:
                    file.seek(-len(PNG_END), os.SEEK_END)
                    return file.read() == PNG_END
            with self._module.open(path) as image:
                image.load()
        except (OSError, ValueError, SyntaxError):
            return False
        return True

    def _decoded(self, path: Path) -> Any:
        with self._module.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)

    def of(self, name: str) -> dict[int, Path]:
        """Place in the manifest -> file, of those that are there."""
        return {k: path for k, path in self._rows[name].items() if path not in self._lost}

    def psnr(self, one: str, other: str, place: int) -> float:
        """Of two images of one seed, dB; infinite if they are equal, minus that if not alike."""
        first, second = (self._pixels(self._rows[name][place]) for name in (one, other))
        if first.shape != second.shape:
            return float("-inf")
        error = np.mean((first.astype(np.float32) - second) ** 2) / 255.0**2
        return float("inf") if error == 0 else float(-10 * np.log10(error))

    def uri(self, name: str, place: int) -> str:
        """An image file as a data URI; what is no PNG is made one."""
        path = self._rows[name][place]
        content = path.read_bytes()
        if not content.startswith(PNG):
            buffer = io.BytesIO()
            self._module.fromarray(self._pixels(path)).save(buffer, "PNG")
            content = buffer.getvalue()
        return "data:image/png;base64," + base64.b64encode(content).decode()
