"""A bundle is whole or not there, and one that was damaged on its way is noticed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltapass.bundles.folder import (
    check_files,
    file_specs,
    file_written_aside,
    refuse_unwritable,
    sha256,
    written_aside,
)
from deltapass.bundles.manifest import PLAN_FILE, FileSpec
from deltapass.errors import BundleError, ExportError


class BrokenError(Exception):
    """Stands for whatever may fail while a bundle is being written."""


def write(folder: Path, text: str = "new") -> None:
    (folder / PLAN_FILE).write_text(plan(text))
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "inner" / "engine").write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> contents of all files."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


def contents(text: str) -> dict[str, str]:
    return {PLAN_FILE: plan(text), "inner/engine": text}


def plan(text: str) -> str:
    """As much of plan.json as tells a bundle from another folder."""
    return json.dumps({"files": {"inner/engine": {}}, "text": text})


# ---- written aside -----------------------------------------------------------------------------


def test_the_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "bundle"
    with written_aside(path, overwrite=False) as folder:
        assert folder.parent == path.parent, "a move within one file system is atomic"
        write(folder)
        assert not path.exists()
    assert tree(path) == contents("new")
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_nothing_behind(error: type[BaseException], tmp_path: Path) -> None:
    with (
        pytest.raises(error),
        written_aside(tmp_path / "bundle", overwrite=True) as folder,
    ):
        write(folder)
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, OSError])
def test_a_bundle_survives_a_failed_overwrite(error: type[BaseException], tmp_path: Path) -> None:
    write(old := _made(tmp_path / "bundle"), "old")
    with (
        pytest.raises(ExportError if error is OSError else error),
        written_aside(old, overwrite=True) as folder,
    ):
        write(folder)
        raise error
    assert tree(old) == contents("old")
    assert list(tmp_path.iterdir()) == [old]


def test_a_bundle_survives_a_failed_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(old := _made(tmp_path / "bundle"), "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == old and not self.name.endswith(".old"):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(ExportError, match="cannot be written: disk on fire"),
        written_aside(old, overwrite=True) as folder,
    ):
        write(folder)
    assert tree(old) == contents("old")
    assert list(tmp_path.iterdir()) == [old]


def test_overwriting_replaces_all_of_the_old_bundle(tmp_path: Path) -> None:
    write(old := _made(tmp_path / "bundle"), "old")
    with written_aside(old, overwrite=True) as folder:
        write(folder)
        assert tree(old)[PLAN_FILE] == plan("old"), "the old one can be loaded until the end"
    assert tree(old) == contents("new")
    assert list(tmp_path.iterdir()) == [old]


def test_an_existing_path_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    write(old := _made(tmp_path / "bundle"), "old")
    _refused(old, "bundle exists. Choose another place, or say overwrite", overwrite=False)
    assert tree(old) == contents("old")


def test_only_a_bundle_is_overwritten(tmp_path: Path) -> None:
    (photos := _made(tmp_path / "photos")).joinpath("cat.png").write_text("cat")
    (file := tmp_path / "notes.txt").write_text("notes")
    for path in (photos, file):
        _refused(path, f"{path.name} is no plan bundle, or more than one", overwrite=True)
    assert tree(tmp_path) == {"photos/cat.png": "cat", "notes.txt": "notes"}


def test_a_bundle_with_a_file_of_another_hand_is_not_overwritten(tmp_path: Path) -> None:
    write(old := _made(tmp_path / "bundle"), "old")
    (old / "photo.png").write_text("mine")
    _refused(old, "it holds photo.png. Remove it by hand", overwrite=True)
    assert tree(old) == {**contents("old"), "photo.png": "mine"}


def test_any_folder_with_a_plan_json_is_no_bundle(tmp_path: Path) -> None:
    (folder := _made(tmp_path / "travels")).joinpath(PLAN_FILE).write_text('{"to": "Rome"}')
    _refused(folder, "it holds plan.json", overwrite=True)
    assert tree(folder) == {PLAN_FILE: '{"to": "Rome"}'}


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    with written_aside(_made(tmp_path / "bundle"), overwrite=True) as folder:
        write(folder)
    assert tree(tmp_path / "bundle") == contents("new")


def test_a_place_that_cannot_be_written_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _refused(tmp_path / "file" / "bundle", "bundle cannot be written", overwrite=False)
    assert (tmp_path / "file").is_file()


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    inner = BundleError("a fact", "A remedy")
    with (
        pytest.raises(BundleError) as caught,
        written_aside(tmp_path / "bundle", overwrite=False),
    ):
        raise inner
    assert caught.value is inner


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _refused(path: Path, text: str, *, overwrite: bool) -> None:
    with pytest.raises(ExportError, match=text), written_aside(path, overwrite=overwrite):
        pytest.fail("nothing may be written")


# ---- checked when read -------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, dict[str, FileSpec]]:
    write(folder := _made(tmp_path / "bundle"), "some text")
    (folder / "empty").write_text("")
    (folder / "large").write_bytes(bytes(range(256)) * 10_000)
    return folder, file_specs(folder)


def test_every_file_but_the_plan_is_listed_by_relative_path(
    bundle: tuple[Path, dict[str, FileSpec]],
) -> None:
    folder, specs = bundle
    assert list(specs) == ["empty", "inner/engine", "large"]
    assert specs["empty"] == FileSpec(bytes=0, sha256=hashlib.sha256(b"").hexdigest())
    assert specs["inner/engine"].bytes == 9
    large = (folder / "large").read_bytes()
    assert specs["large"].sha256 == sha256(folder / "large") == hashlib.sha256(large).hexdigest()


def test_a_whole_bundle_passes_wherever_it_lies(bundle: tuple[Path, dict[str, FileSpec]]) -> None:
    folder, specs = bundle
    moved = shutil.copytree(folder, folder.parent / "elsewhere")
    for contents_too in (False, True):
        check_files(moved, specs, contents=contents_too)


@pytest.mark.parametrize("name", ["empty", "inner/engine", "large"])
def test_a_missing_file_is_named(name: str, bundle: tuple[Path, dict[str, FileSpec]]) -> None:
    folder, specs = bundle
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        check_files(folder, specs, contents=False)
    (folder / name).mkdir()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        check_files(folder, specs, contents=False)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""]
)
def test_another_size_is_noticed_without_reading(
    change: Callable[[bytes], bytes], bundle: tuple[Path, dict[str, FileSpec]]
) -> None:
    folder, specs = bundle
    data = (folder / "large").read_bytes()
    (folder / "large").write_bytes(change(data))
    size = len(change(data))
    with pytest.raises(BundleError, match=f"has {size} bytes, plan.json says {len(data)}"):
        check_files(folder, specs, contents=False)


def test_one_altered_byte_is_noticed_when_contents_are_compared(
    bundle: tuple[Path, dict[str, FileSpec]],
) -> None:
    folder, specs = bundle
    data = bytearray((folder / "large").read_bytes())
    data[-1] ^= 1
    (folder / "large").write_bytes(bytes(data))
    check_files(folder, specs, contents=False)
    with pytest.raises(BundleError, match="large was altered"):
        check_files(folder, specs, contents=True)


# ---- beforehand, and single files --------------------------------------------------------------


@pytest.mark.parametrize("place", ["file/bundle", "file/deep/er", "x" * 300])
def test_where_nothing_can_be_written_is_told_beforehand(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match=r"cannot be written: .*Choose another place"):
        refuse_unwritable(tmp_path / place)
    refuse_unwritable(tmp_path / "new" / "deep" / "bundle")
    assert tree(tmp_path) == {"file": "mine"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [BrokenError, OSError])
def test_an_old_file_stays_until_the_new_one_is_whole(
    error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "file"
    with file_written_aside(path) as aside:
        aside.write_text("old")
    with pytest.raises((BrokenError, ExportError)), file_written_aside(path) as aside:
        aside.write_text("ne")
        raise error
    assert tree(tmp_path) == {"deep/file": "old"}
    with file_written_aside(path) as aside:
        aside.write_text("new")
    assert tree(tmp_path) == {"deep/file": "new"}
    folder = file_written_aside(tmp_path / "deep")
    with pytest.raises(ExportError, match="is a folder, and"), folder:
        raise AssertionError
