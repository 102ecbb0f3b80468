"""What a command writes: looked at before the work, and written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deltapass.errors import OutputError

ELSEWHERE = "Choose another place"


def check_file(path: Path, *, overwrite: bool, endings: Sequence[str] = ()) -> None:
    """Say before the work whether a file could be written.

    Args:
        path: The file.
        overwrite: Whether a file that is there may go.
        endings: What its name must end in, if that matters.

    Raises:
        OutputError: If it exists, is no file, has another ending, or its folder takes no files.
    """
    if endings and path.suffix.lower() not in endings:
        raise OutputError(f"{path} ends in none of {', '.join(endings)}", "Give it such an ending")
    with _ours(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder", "Give the name of a file")
        _refuse_existing(path, overwrite=overwrite)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is no ordinary file", ELSEWHERE)
        _check_place(path.resolve().parent)


def check_new_folder(path: Path, *, overwrite: bool) -> None:
    """Say before the work whether a folder could be made.

    Raises:
        OutputError: If it exists and may not be replaced, or none can be made there.
    """
    with _ours(path):
        _refuse_existing(path, overwrite=overwrite)
        _check_place(path.resolve().parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, moved there at the end: an old file stays until then.

    Raises:
        OutputError: If it cannot be written.
    """
    place = path.resolve()  # of a link, the file it points to
    aside = place.with_name(f".{place.stem}.{os.getpid()}{place.suffix}")
    with _ours(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            aside.replace(place)
        finally:
            aside.unlink(missing_ok=True)


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists", f"{ELSEWHERE} with -o, or replace it with --overwrite")


def _check_place(folder: Path) -> None:
    """Try whether files can be made in a folder, or in the one it would be made in."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"{nearest} is no folder", ELSEWHERE)
    # Permissions do not tell: file systems may be read-only, full, or none for files at all.
    with tempfile.TemporaryFile(dir=nearest):
        pass


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {why}", ELSEWHERE) from error
