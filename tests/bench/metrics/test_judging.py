"""From images of rows to means, pairs and warnings, by measures that need no network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import Channels

from deltapass.bench.metrics import judging
from deltapass.bench.metrics.context import JudgingContext, context_of
from deltapass.bench.metrics.features import FeatureStore
from deltapass.bench.metrics.intervals import FEW
from deltapass.bench.metrics.judges import Judge
from deltapass.bench.metrics.judging import judge_rows, usable
from deltapass.bench.metrics.table import MEASURES
from deltapass.errors import BenchError

COUNT = 40


def drawn(seed: int, count: int = COUNT, light: float = 0.5) -> torch.Tensor:
    images = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return (images * 0.5 + light - 0.25).clamp(0, 1)


def context(network: Channels | None = None, **given: object) -> JudgingContext:
    def real(offset: int, count: int) -> torch.Tensor:
        return drawn(1000 + offset, count)

    judge = Judge(
        name="toy",
        real=real,
        exact=lambda images, prompts: {"right": np.array(prompts) * np.ones(len(images))},
        measures=("right",),
        says=lambda: "a toy",
    )
    store = FeatureStore()
    store._networks["efflite0"] = network or Channels()
    made = {"judge": lambda: judge, "store": store, "prompts": [1.0] * COUNT, "real_images": 50}
    return JudgingContext(**{**made, **given})  # type: ignore[arg-type]


def rows() -> dict[str, torch.Tensor]:
    plain = drawn(0)
    noise = torch.rand(plain.shape, generator=torch.Generator().manual_seed(9)) - 0.5
    return {
        "plain-20": plain,
        "plain-10": (plain + noise * 0.2).clamp(0, 1),
        "ours": (plain + noise * 0.05).clamp(0, 1),
    }


def test_every_row_is_compared_with_the_reference_and_the_fewer_steps() -> None:
    found = judge_rows(
        rows(),
        "plain-20",
        context(steps=20, fine=drawn(0), fine_steps=60),
        measures=("psnr", "psnr_fine", "ssim", "right", "kid"),
        against=("plain-10",),
    )
    assert found.means["ours"]["psnr"].mean > found.means["plain-10"]["psnr"].mean + 10
    assert found.against["ours"]["plain-10"]["psnr"].verdict == "better"
    assert found.against["ours"]["plain-10"]["right"].verdict == "same"
    # Nothing is said of how near the reference is to itself, or how much nearer others are.
    assert set(found.means["plain-20"]) == {"psnr_fine", "right", "kid"}
    assert set(found.against["ours"]["plain-20"]) == {"psnr_fine", "right", "kid"}
    assert set(found.against["plain-20"]) == {"plain-10"}
    assert len(found.values["ours"]["ssim"]) == COUNT
    assert [each.title for each in found.measures[:2]] == [
        "PSNR to 20 plain steps, dB",
        "PSNR to 60 plain steps, dB",
    ]


def test_floor_is_of_other_real_images_and_as_many() -> None:
    found = judge_rows(
        {"plain": drawn(0, light=0.7)}, "plain", context(), measures=("kid", "fid", "right")
    )
    floors = {each.name: each.floor for each in found.measures}
    assert floors["right"] is None
    for name in ("kid", "fid"):
        floor = floors[name]
        assert floor is not None
        assert floor.high < found.means["plain"][name].low
    assert any("mostly bias" in each for each in found.warnings)


def test_each_image_is_looked_at_once_for_all_measures() -> None:
    network = Channels()
    judge_rows(rows(), "plain-20", context(network), measures=("kid", "fid", "is"))
    assert network.looked == 3 * COUNT + 50 + COUNT  # rows, real ones, the floor's


def test_features_are_kept_in_a_folder_by_what_the_images_are(tmp_path: Path) -> None:
    for expected in (COUNT, 0):  # the second time another process, so to say
        network, store = Channels(), FeatureStore(tmp_path)
        store._networks["efflite0"] = network
        store.pooled("efflite0", drawn(0))
        assert network.looked == expected
    store.pooled("efflite0", drawn(1))
    assert network.looked == COUNT


def test_what_cannot_be_had_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTAPASS_CLIP", raising=False)
    names = ("psnr", "psnr_fine", "right", "drawing", "clip", "kid")
    found = judge_rows(rows(), "plain-20", context(), measures=names)
    assert set(found.means["ours"]) == {"psnr", "right", "kid"}
    said = "\n".join(found.warnings)
    assert "psnr_fine was not measured: no trajectory of many steps" in said
    assert "drawing was not measured: the judge of toy" in said
    assert "clip was not measured: prompts of this model are float, no texts" in said


def test_texts_without_weights_are_told_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("clip", "cmmd", "image_reward", "hpsv2", "fid_inception", "lpips")
    variables = ("CLIP", "CLIP", "IMAGEREWARD", "HPSV2", "INCEPTION", "ALEXNET")
    for variable in variables:
        monkeypatch.delenv(f"DELTAPASS_{variable}", raising=False)
    there, why_not = usable(names, context(prompts=["a cat"] * COUNT))
    assert there == ()
    for variable, said in zip(variables, why_not, strict=True):
        assert f"DELTAPASS_{variable}" in said
    monkeypatch.setenv("DELTAPASS_HPSV2", str(tmp_path / "none"))
    assert "which does not exist" in usable(("hpsv2",), context(prompts=["a cat"]))[1][0]


def test_models_that_nobody_judges_have_no_real_images(tmp_path: Path) -> None:
    there, why_not = usable(("psnr", "right"), context_of("folder", tmp_path))
    assert [meter.means.name for meter in there] == ["psnr"]
    assert ["nothing says what real images" in each for each in why_not] == [True]


def test_faults_of_who_asks_are_errors() -> None:
    with pytest.raises(BenchError, match=r"no measure sharpness.*Measures are psnr"):
        judge_rows(rows(), "plain-20", context(), measures=("sharpness",))
    with pytest.raises(BenchError, match="'ours' has images of"):
        judge_rows({**rows(), "ours": drawn(0, 7)}, "plain-20", context(), measures=("psnr",))


def test_few_images_and_clip_alone_are_warned_of() -> None:
    few = {name: images[:5] for name, images in rows().items()}
    found = judge_rows(few, "plain-20", context(prompts=[1.0] * 5), measures=("psnr",))
    assert any(f"below {FEW}" in each for each in found.warnings)


def test_every_measure_has_a_name_a_title_and_what_it_rests_on() -> None:
    for name, meter in MEASURES.items():
        assert meter.means.name == name
        assert meter.means.title
        assert meter.means.about
        assert meter.means.margin > 0


def test_the_document_has_every_measure_and_every_variable() -> None:
    text = (Path(__file__).parents[3] / "docs" / "measures.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(MEASURES)
    sources = (Path(judging.__file__).parent).glob("*.py")
    variables = {
        name for path in sources for name in re.findall(r"DELTAPASS_\w+", path.read_text())
    }
    assert variables == set(re.findall(r"DELTAPASS_\w+", text))
