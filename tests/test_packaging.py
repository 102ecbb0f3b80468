"""What pyproject.toml promises: every package is listed, the entry points resolve, pins agree."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def folder_of(package: str, mapping: dict[str, str]) -> Path:
    """Where a package lies: as mapped, or in the folder of the package it is part of."""
    if package in mapping:
        return ROOT / mapping[package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent, mapping) / name


def test_every_package_folder_is_listed() -> None:
    # An unlisted one works in an editable install and is missing in the wheel.
    tool = PROJECT["tool"]["setuptools"]
    listed = {folder_of(name, tool["package-dir"]) for name in tool["packages"]}
    tops = (ROOT / "deltapass", ROOT / "backends")
    found = {init.parent for top in tops for init in top.rglob("__init__.py")}
    assert found == listed


@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_backends_are_importable_as_part_of_the_package(name: str) -> None:
    module = import_module(f"deltapass.backends.{name}")
    assert Path(str(module.__file__)).is_relative_to(ROOT / "backends")


def test_backend_entry_point_resolves() -> None:
    (entry,) = metadata.entry_points(group="torch_dynamo_backends", name="deltadit")
    assert callable(entry.load())


def test_script_entry_point_resolves() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="deltapass")
    assert callable(entry.load())


def test_backend_is_known_to_torch_without_an_import_of_ours(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from torch._dynamo.backends.registry import list_backends; "
        "print('deltadit' in list_backends(), 'deltapass' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_every_pin_is_exact_and_torch_is_in_range() -> None:
    lines = (ROOT / "requirements" / "ci.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    major, minor = map(int, pins["torch"].split(".")[:2])
    assert (2, 11) <= (major, minor) < (2, 14)
    assert "torch>=2.11,<2.14" in PROJECT["project"]["dependencies"]
