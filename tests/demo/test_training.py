"""What training and the measure of accuracy rest on; no data is fetched."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("rich")

TRAINING = Path(__file__).parents[2] / "training"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of training/, as they see one another."""
    monkeypatch.syspath_prepend(TRAINING)
    names = ("nouns_parts", "accuracy", "loop")
    loaded: dict[str, ModuleType] = {name: importlib.import_module(name) for name in names}
    return SimpleNamespace(**loaded)


def test_a_picture_is_runs_of_colours_within_its_bounds(module: SimpleNamespace) -> None:
    palette = ["", "ff0000", "0000ff"]
    code = "0x" + bytes([0, 1, 4, 3, 2, *(1, 1), *(1, 0), *(2, 2)]).hex()
    picture = module.nouns_parts._decode(palette, code)
    assert picture[:, 1, 2].tolist() == [1, -1, -1]
    assert picture[:, 1, 3].isnan().all()
    assert picture[:, 2, 2:4].T.tolist() == [[-1, -1, 1]] * 2
    assert int(picture[0].isfinite().sum()) == 3


def test_an_archive_of_another_hash_is_refused(module: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "assets-0.10.0.tgz").write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"has hash .*, not 60ed1040.*Delete it"):
        module.nouns_parts.load_parts(tmp_path)


def test_parts_that_cannot_be_fetched_say_where_to_put_them(
    module: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise module.nouns_parts.urllib.error.URLError("no route")

    monkeypatch.setattr(module.nouns_parts.urllib.request, "urlopen", unreachable)
    with pytest.raises(SystemExit, match=r"no route.*npm pack @nouns/assets@0\.10\.0"):
        module.nouns_parts.load_parts(tmp_path)


def drawn(module: SimpleNamespace) -> tuple[object, dict[str, torch.Tensor]]:
    """Parts of random colours, each kind with rows of its own, and what 40 pictures are told."""
    torch.manual_seed(0)
    kinds = module.nouns_parts.ATTRIBUTES
    rows = {"background": (0, 32), "body": (20, 32), "head": (5, 20), "glasses": (10, 13)}
    colours, opaque = {}, {}
    for attribute, names in kinds.items():
        start, stop = rows[attribute]
        colours[attribute] = torch.rand(len(names), 3, 1, 1).expand(-1, -1, 32, 32) * 2 - 1
        opaque[attribute] = torch.zeros(len(names), 1, 32, 32, dtype=torch.bool)
        opaque[attribute][:, :, start:stop] = True
    return module.nouns_parts.Parts(colours, opaque), module.nouns_parts.draw(40)


def test_accuracy_counts_the_pictures_that_show_what_was_told(module: SimpleNamespace) -> None:
    parts, told = drawn(module)
    images = (parts.render(told) + 1) / 2  # type: ignore[attr-defined]
    accuracy = module.accuracy.attribute_accuracy
    noisy = images + 0.01 * torch.randn_like(images)
    assert set(accuracy(parts, noisy, told).values()) == {1.0}
    # A quarter of the pictures told another head: the others and the other attributes stay right.
    heads = len(module.nouns_parts.ATTRIBUTES["head"])
    other = told["head"].clone()
    other[:10] = (other[:10] + 1) % heads
    expected = dict.fromkeys(told, 1.0) | {"head": 0.75}
    assert accuracy(parts, images, {**told, "head": other}) == expected
    right = module.accuracy.shown(parts, images, {**told, "head": other})
    assert right["head"].tolist() == [False] * 10 + [True] * 30


def test_a_run_ends_by_images_or_by_the_clock(
    module: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.loop.time, "time", lambda: now)
    by_images, by_clock = module.loop.Clock(700, None), module.loop.Clock(700, 100.0)
    for step in range(50):
        now = 2.0 * step
        assert by_images.note(20 * step) == 700
        total = by_clock.note(20 * step)
        # Ten images a second: as soon as the rate is known, the run is of 1000 images.
        assert total == pytest.approx(700 if step < 9 else 1000)
    now = 100.0
    assert by_clock.note(1000) == 1000, "nothing is left to do"
