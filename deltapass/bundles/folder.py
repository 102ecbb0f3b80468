"""A bundle is whole or not there at all: written aside and moved, and checked when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from deltapass.bundles.manifest import PLAN_FILE, FileSpec
from deltapass.errors import BundleError, ExportError


@contextlib.contextmanager
def written_aside(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `path`, moved there at the end; removed if anything fails.

    Raises:
        ExportError: If `path` exists and may not be overwritten, or is not a bundle's folder, or
            cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}", "Choose another place") from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        _move(folder, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}", "Choose another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Say beforehand that a place is taken, or cannot be written.

    Raises:
        ExportError: If it exists and may not be overwritten, or holds more than a bundle of ours;
            or nothing can be written beside it.
    """
    refuse_unwritable(path)
    if not path.exists():
        return
    if not overwrite:
        raise ExportError(f"{path} exists", "Choose another place, or say overwrite")
    strange = _not_of_a_bundle(path)
    if strange is not None:
        raise ExportError(
            f"{path} is no plan bundle, or more than one: it holds {strange}",
            "Remove it by hand if it may go",
        )


def refuse_unwritable(path: Path) -> None:
    """Say beforehand that nothing can be written there, by writing something beside it.

    Raises:
        ExportError: If its folder is a file, is read-only, or cannot be made.
    """
    try:
        there = next(parent for parent in path.parents if parent.exists())
        Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=there)).rmdir()
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}", "Choose another place") from error


@contextlib.contextmanager
def file_written_aside(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which takes its place at the end; an old one stays till then.

    Raises:
        ExportError: If `path` is a folder, or cannot be written.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder, and a file is to be written", "Give a file's name")
    refuse_unwritable(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}", "Choose another place") from error
    finally:
        aside.unlink(missing_ok=True)


def _not_of_a_bundle(path: Path) -> str | None:
    """The first thing in a folder that no bundle of ours put there; an empty folder has none."""
    if not path.is_dir():
        return "no files, for it is one"
    try:
        known = json.loads((path / PLAN_FILE).read_text(encoding="utf-8"))["files"]
        names = {PLAN_FILE, *known}
    except (OSError, ValueError, KeyError, TypeError):
        names = set()
    found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return next((name for name in found if name not in names), None)


def _move(folder: Path, path: Path) -> None:
    """Put the finished folder in its place; an old bundle stays until the new one is there."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if not path.exists():
        folder.rename(path)
        return
    old = folder.with_name(folder.name + ".old")
    path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def file_specs(folder: Path) -> dict[str, FileSpec]:
    """Size and SHA-256 of every file below a folder, but for plan.json."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): FileSpec(
            bytes=file.stat().st_size, sha256=sha256(file)
        )
        for file in files
        if file.name != PLAN_FILE
    }


def check_files(folder: Path, files: Mapping[str, FileSpec], *, contents: bool) -> None:
    """Compare the files of a bundle with what plan.json says of them.

    Args:
        folder: The bundle.
        files: Relative path -> size and checksum.
        contents: Whether to read them all and compare checksums.

    Raises:
        BundleError: If one is missing, truncated, or altered.
    """
    for name, spec in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing", "Copy the whole folder, or export again")
        size = path.stat().st_size
        if size != spec.bytes:
            raise BundleError(
                f"{path} has {size} bytes, plan.json says {spec.bytes}",
                "It was truncated or replaced: copy the whole folder, or export again",
            )
        if contents and sha256(path) != spec.sha256:
            raise BundleError(
                f"{path} was altered: its SHA-256 is not the one in plan.json",
                "Files of two bundles cannot be mixed: copy the whole folder, or export again",
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
