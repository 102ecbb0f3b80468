"""What a command writes: judged before the work, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltapass.cli.outputs import check_file, check_new_folder, whole_file
from deltapass.errors import OutputError


def test_a_place_that_takes_a_file_is_left_as_it_was(tmp_path: Path) -> None:
    check_file(tmp_path / "new" / "deep" / "grid.PNG", overwrite=False, endings=(".png",))
    check_new_folder(tmp_path / "bundle", overwrite=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("folder", "is a folder"),
        ("file/below", "file is no folder"),
        ("file/far/below", "file is no folder"),
        ("x" * 300 + ".txt", "cannot be written: File name too long"),
        ("/proc/here.txt", "cannot be written"),
        ("/proc/new/here.txt", "cannot be written"),
        ("picture.txtt", "ends in none of .txt"),
    ],
)
def test_a_place_that_takes_none_is_refused(
    name: str, problem: str, overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    endings = (".txt",) if "." in name else ()
    with pytest.raises(OutputError, match=problem):
        check_file(tmp_path / name, overwrite=overwrite, endings=endings)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_there_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    for check in (check_file, check_new_folder):
        with pytest.raises(OutputError, match=r"there exists. Choose another place with -o, or"):
            check(tmp_path / "there", overwrite=False)
        check(tmp_path / "there", overwrite=True)


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError, match="no ordinary file"):
        check_file(Path("/dev/null"), overwrite=True)


def test_a_file_is_written_whole_or_stays(tmp_path: Path) -> None:
    place = tmp_path / "new" / "there.txt"
    with whole_file(place) as aside:
        aside.write_text("old")
        assert not place.exists()
        assert aside.suffix == ".txt"
    with pytest.raises(ZeroDivisionError), whole_file(place) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(OutputError, match=r"there.txt cannot be written: No space left"):  # noqa: SIM117
        with whole_file(place) as aside:
            raise OSError(28, os.strerror(28))
    assert [file.read_text() for file in place.parent.iterdir()] == ["old"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with whole_file(tmp_path / "link") as aside:
        aside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
