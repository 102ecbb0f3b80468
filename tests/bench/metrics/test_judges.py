"""Who judges: folders of pictures, data that is not there, a classifier that learnt nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltapass.bench.metrics import classifier, judges
from deltapass.bench.metrics.judges import JUDGES, judge_of_folder
from deltapass.errors import BenchError

image = pytest.importorskip("PIL.Image")


def test_pictures_of_a_folder_are_real_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, name in enumerate(("b.png", "a.png", "c.PNG", "notes.txt")):
        if name.lower().endswith("png"):
            image.new("RGB", (8, 6), (number * 100, 0, 0)).save(tmp_path / name)
    judge = judge_of_folder(tmp_path, (4, 5))
    found = judge.real(0, 2)
    assert found.shape == (2, 3, 4, 5)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([100 / 255, 0])
    assert judge.measures == ()
    with pytest.raises(BenchError, match="3 pictures, too few"):
        judge.real(2, 2)


def test_a_folder_without_pictures_judges_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no pictures"):
        judge_of_folder(tmp_path, (4, 4))


@pytest.mark.parametrize("name", JUDGES)
def test_an_installed_package_says_that_it_has_no_data(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judges, "TRAINING", tmp_path / "none")
    with pytest.raises(BenchError, match="from a checkout of the repository"):
        JUDGES[name](tmp_path)


def test_scripts_that_give_up_are_errors() -> None:
    def gives_up() -> None:
        raise SystemExit("no network")

    with pytest.raises(BenchError, match="could not be fetched: no network"):
        judges._fetched(gives_up)


def test_a_classifier_that_learnt_nothing_does_not_judge(tmp_path: Path) -> None:
    def splits(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(classifier.BATCH, 1, 28, 28), torch.arange(classifier.BATCH) % 10

    with pytest.raises(BenchError, match=r"10\.2% right"):
        classifier.trained(tmp_path / "kept.pt", splits)
    assert not (tmp_path / "kept.pt").exists()
