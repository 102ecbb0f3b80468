"""Which images go into the page: the same seeds of every method, the worst pairs first.

Images weigh far more than all else, so their number and their bytes are limited. A seed that any
method draws badly comes before one that all draw well.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
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
PNG: Final = b"\x89PNG"
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
    reference = files.of(record.reference)
    others = [row.name for row in record.rows if row.name != record.reference]
    if not reference or not any(files.of(name) for name in others):
        return Pictures(missing=tuple(files.missing))
    worst = {name: _worst_first(files, record.reference, name) for name in others}
    wanted = _chosen(worst, most_seeds)
    held, uris = _embedded(files, record, wanted, most_bytes)
    bases = [row.name for row in record.rows if row.kind in ("plain", "steps") and held[row.name]]
    return Pictures(
        uris=tuple(uris),
        held=held,
        psnr={base: _pairs(files, base, held) for base in bases},
        pairs=max(len(files.of(row.name)) for row in record.rows),
        most=max(len(places) for name, places in held.items() if name != record.reference),
        missing=tuple(files.missing),
    )


def _worst_first(files: _Files, reference: str, name: str) -> list[int]:
    """Places of the manifest at which both have an image, the least alike first."""
    both = files.of(reference).keys() & files.of(name).keys()
    return sorted(both, key=lambda place: (files.psnr(reference, name, place), place))


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
        self._source = source
        self._pixels = lru_cache(maxsize=MOST_DECODED)(self._decoded)
        self.missing: list[str] = []
        self._rows = {row.name: dict(self._there(row)) for row in record.rows}

    def _there(self, row: Row) -> Iterator[tuple[int, Path]]:
        for place, name in enumerate(row.images):
            path = self._source / name
            try:
                with self._module.open(path) as image:
                    image.verify()
            except (OSError, ValueError, SyntaxError):  # not there, no image, or a broken one
                self.missing.append(name)
            else:
                yield place, path

    def _decoded(self, path: Path) -> Any:
        with self._module.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)

    def of(self, name: str) -> dict[int, Path]:
        """Place in the manifest -> file, of those that are there."""
        return self._rows.get(name, {})

    def psnr(self, one: str, other: str, place: int) -> float:
        """Of two images of one seed, dB; infinite if they are equal, minus that if not alike."""
        first, second = (self._pixels(self.of(name)[place]) for name in (one, other))
        if first.shape != second.shape:
            return float("-inf")
        error = np.mean((first.astype(np.float32) - second) ** 2) / 255.0**2
        return float("inf") if error == 0 else float(-10 * np.log10(error))

    def uri(self, name: str, place: int) -> str:
        """An image file as a data URI; what is no PNG is made one."""
        path = self.of(name)[place]
        content = path.read_bytes()
        if not content.startswith(PNG):
            buffer = io.BytesIO()
            self._module.fromarray(self._pixels(path)).save(buffer, "PNG")
            content = buffer.getvalue()
        return "data:image/png;base64," + base64.b64encode(content).decode()
