"""CLIP from a folder: a tiny one with random weights, which no test needs to download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deltapass.bench.metrics.context import JudgingContext
from deltapass.bench.metrics.features import FeatureStore
from deltapass.bench.metrics.judges import Judge
from deltapass.bench.metrics.judging import judge_rows
from deltapass.bench.metrics.wording import clip_scores

transformers = pytest.importorskip("transformers")
pytest.importorskip("torchmetrics")
WORDS = ("a", "cat", "dog")
PROMPTS = ("a cat", "a dog", "a cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tiny"
    path.mkdir()
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted(set("".join(WORDS)))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *marks]
    (path / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "projection_dim": 8}
    config = transformers.CLIPConfig(
        text_config={**sizes, **heads, "vocab_size": len(tokens), "max_position_embeddings": 16,
                     "eos_token_id": len(tokens) - 1, "bos_token_id": len(tokens) - 2},
        vision_config={**sizes, **heads, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(path)
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    transformers.CLIPProcessor(pictures, tokenizer).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAPASS_CLIP", str(folder))


def drawn(seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_score_is_the_cosine_of_each_image_and_its_own_prompt(folder: Path) -> None:
    images = drawn(0)
    found = clip_scores(images, PROMPTS)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    shown = list((images * 255).round().to(torch.uint8))
    given = processor(text=list(PROMPTS), images=shown, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**given)
    wanted = 100 * (out.image_embeds * out.text_embeds).sum(1)
    assert found == pytest.approx(wanted.clamp_min(0).numpy(), abs=1e-3)


def test_features_have_length_one_and_are_taken_once() -> None:
    store = FeatureStore()
    found = store.pooled("clip", drawn(0))
    assert found.norm(dim=1) == pytest.approx(torch.ones(3).numpy(), abs=1e-6)
    assert store.pooled("clip", drawn(0)) is found
    assert store.network("clip").kind == "clip-tiny"


def test_clip_and_cmmd_are_judged_like_any_measure() -> None:
    judge = Judge(
        name="toy",
        real=lambda offset, count: drawn(100 + offset, count),
        exact=lambda *_: {},
        measures=(),
        says=lambda: "a toy",
    )
    rows = {"plain": drawn(0), "ours": drawn(1) * 0.2}
    context = JudgingContext(prompts=PROMPTS, judge=lambda: judge, real_images=4)
    found = judge_rows(rows, "plain", context, measures=("clip", "cmmd"))
    assert set(found.means["ours"]) == {"clip", "cmmd"}
    assert found.measures[1].floor is not None
    alone = judge_rows(rows, "plain", context, measures=("clip",))
    assert any("decides nothing" in each for each in alone.warnings)
