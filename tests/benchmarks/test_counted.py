"""The gate: exact numbers of some models are those of benchmarks/expected_counts.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import counted


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(subject, marks=[pytest.mark.slow] if subject in counted.SLOW else [])
        for subject in counted.SUBJECTS
    ],
)
def test_counts_are_as_expected(subject: str) -> None:
    counted.check(subject, counted.SUBJECTS[subject]())


def test_the_file_expects_nothing_else() -> None:
    assert list(json.loads(counted.EXPECTED.read_text())) == list(counted.SUBJECTS)


@pytest.mark.parametrize("found", [{"graphs": 2}, {"graphs": 0}, {"graphs": 1, "more": 1}, {}])
def test_any_difference_fails_and_names_the_command(found: dict[str, int], tmp_path: Path) -> None:
    file = tmp_path / "expected.json"
    file.write_text(json.dumps({"toy": {"graphs": 1}}))
    counted.check("toy", {"graphs": 1}, file)
    with pytest.raises(
        counted.CountsDifferError, match=r"toy:\n  .*\n.* run: python benchmarks/counted"
    ):
        counted.check("toy", found, file)


def test_an_update_makes_the_gate_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "expected.json"
    monkeypatch.setattr(counted, "SUBJECTS", {"toy": lambda: {"graphs": 3}})
    with pytest.raises(counted.CountsDifferError, match="expected None, found 3"):
        counted.check("toy", {"graphs": 3}, file)
    counted.update(file)
    counted.check("toy", {"graphs": 3}, file)
