"""Whether images show what their prompts say, by networks whose weights are on disk.

Nothing is downloaded: an environment variable names each file or folder. None of these may decide
alone. CLIP's score of a black frame is not far from that of a picture.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from deltapass.bench.metrics.features import named_path
from deltapass.bench.metrics.fidelity import as_values, batches
from deltapass.bench.metrics.intervals import Values
from deltapass.errors import BenchError
from deltapass.libraries import needs

CLIP: Final = "DELTAPASS_CLIP"
IMAGE_REWARD: Final = "DELTAPASS_IMAGEREWARD"
HPS: Final = "DELTAPASS_HPSV2"


@torch.no_grad()
def clip_scores(images: torch.Tensor, prompts: Sequence[Any]) -> Values:
    """CLIP score of each image in 0..1 with its prompt, 0..100: (N, C, H, W), N texts -> (N,).

    Not by torchmetrics: what its 1.9 expects of CLIP is not what transformers 5 gives.

    Raises:
        BenchError: As `clip_ready`.
        MissingLibraryError: If transformers is not installed.
    """
    both = _clip(clip_ready(prompts))
    seen = torch.cat([_seen(both, part) for part in batches(images)])
    said = torch.cat([_said(both, text) for text in as_texts(prompts)])
    return as_values(100 * (seen * said).sum(1).clamp_min(0))


@final
class Clip:
    """CLIP as a network of features, from the folder that `CLIP` names.

    Raises:
        BenchError: As `clip_folder`.
        MissingLibraryError: If transformers is not installed.
    """

    def __init__(self) -> None:
        folder = clip_folder()
        self.kind = f"clip-{folder.resolve().name}"
        self._both = _clip(folder)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, D), of length one, of images (N, C, H, W) in 0..1."""
        return _seen(self._both, images)


@torch.no_grad()
def _seen(both: tuple[Any, Any], images: torch.Tensor) -> torch.Tensor:
    model, processor = both
    given = processor(images=list(_as_bytes(images)), return_tensors="pt")
    seen = model.vision_model(given["pixel_values"]).pooler_output
    return torch.nn.functional.normalize(model.visual_projection(seen), dim=1)


@torch.no_grad()
def _said(both: tuple[Any, Any], text: str) -> torch.Tensor:
    model, processor = both
    given = processor(text=[text], return_tensors="pt", truncation=True)
    said = model.text_model(**given).pooler_output
    return torch.nn.functional.normalize(model.text_projection(said), dim=1)


def image_rewards(images: torch.Tensor, prompts: Sequence[Any]) -> Values:
    """ImageReward of each image with its prompt, by the package of its authors: -> (N,).

    Raises:
        BenchError: As `image_reward_ready`.
    """
    folder = image_reward_ready(prompts)
    # Not its `load`, which asks the network for a file of settings even where both are on disk.
    made = importlib.import_module("ImageReward.ImageReward").ImageReward
    model = made(device="cpu", med_config=str(folder / "med_config.json"))
    held = torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(held, strict=False)
    pairs = zip(_pictures(images), as_texts(prompts), strict=True)
    return np.array([model.eval().score(text, shown) for shown, text in pairs], dtype=np.float64)


def image_reward_ready(prompts: Sequence[Any]) -> Path:
    """The folder of its weights.

    Raises:
        BenchError: If the package or its weights are not there, or prompts are no texts.
    """
    as_texts(prompts)
    folder = named_path(IMAGE_REWARD, "ImageReward.pt and med_config.json, in one folder,")
    return _with_library("ImageReward", "image-reward", folder)


@torch.no_grad()
def hps_scores(images: torch.Tensor, prompts: Sequence[Any]) -> Values:
    """Human preference score v2 of each image with its prompt, x 100: -> (N,).

    Raises:
        BenchError: As `hps_ready`.
    """
    weights = hps_ready(prompts)
    library = importlib.import_module("open_clip")
    model, _, prepared = library.create_model_and_transforms("ViT-H-14", pretrained=None)
    held = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(held["state_dict"])
    words = library.get_tokenizer("ViT-H-14")
    found = []
    for shown, text in zip(_pictures(images), as_texts(prompts), strict=True):
        seen = model.eval().encode_image(prepared(shown)[None], normalize=True)
        said = model.encode_text(words([text]), normalize=True)
        found.append(100 * (seen * said).sum())
    return as_values(torch.stack(found))


def hps_ready(prompts: Sequence[Any]) -> Path:
    """The file of its weights.

    Raises:
        BenchError: If open_clip or its weights are not there, or prompts are no texts.
    """
    as_texts(prompts)
    weights = named_path(HPS, "weights of HPSv2, the file HPS_v2.1_compressed.pt,")
    return _with_library("open_clip", "open-clip-torch", weights)


def clip_ready(prompts: Sequence[Any]) -> Path:
    """The folder of CLIP.

    Raises:
        BenchError: If it is not there, or prompts are no texts.
    """
    as_texts(prompts)
    return clip_folder()


def as_texts(prompts: Sequence[Any]) -> tuple[str, ...]:
    """Prompts, which must be texts.

    Raises:
        BenchError: If they are numbers of classes, or attributes.
    """
    if not all(isinstance(prompt, str) for prompt in prompts):
        kinds = sorted({type(prompt).__name__ for prompt in prompts} - {"str"})
        raise BenchError(
            f"prompts of this model are {', '.join(kinds)}, no texts, which these measures read",
            "Leave CLIP score, ImageReward and HPS out: class or attribute accuracy is exact",
        )
    return tuple(prompts)


def clip_folder() -> Path:
    """Where CLIP is.

    Raises:
        BenchError: If that is not told.
    """
    return named_path(CLIP, "weights of CLIP, a folder that transformers saved,")


def _with_library(module: str, package: str, weights: Path) -> Path:
    if importlib.util.find_spec(module) is None:
        raise BenchError(f"{module} is not installed", f"pip install {package}")
    return weights


def _clip(folder: Path) -> tuple[Any, Any]:
    with needs("transformers", "bench"):
        from transformers import AutoProcessor, CLIPModel

    kinds: tuple[Any, Any] = (CLIPModel, AutoProcessor)
    if not (folder / "config.json").exists():
        raise BenchError(
            f"{folder} holds no config.json, so it is no folder of a CLIP model",
            f"Save one with save_pretrained, with its processor, and name it in {CLIP}",
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model, processor = (kind.from_pretrained(folder, local_files_only=True) for kind in kinds)
    return model.eval(), processor


def _as_bytes(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in 0..1, grey or in colour -> (N, 3, H, W) of bytes."""
    colour = images.detach().cpu().float().expand(-1, 3, -1, -1).clamp(0, 1)
    return (colour * 255).round().to(torch.uint8)


def _pictures(images: torch.Tensor) -> list[Any]:
    """As Pillow has them."""
    with needs("pillow", "demo"):
        from PIL import Image
    parts = (_as_bytes(part) for part in batches(images))
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for part in parts for one in part]
