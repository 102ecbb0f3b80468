"""The class-conditional model in grey: a 28-block DiT on Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from dataset import CLASSES, load_split
from diffusers import DiTTransformer2DModel
from loop import Recipe, flow_scheduler

from deltapass.demo.embedded import EMBEDDED, ClassConditionalPipeline

NULL_CLASS = len(CLASSES)  # the label that stands for "no label" in classifier-free guidance
CARD = """# Garments: the embedded model

A class-conditional diffusion transformer in the format of diffusers' `{kind}`: {blocks} blocks of
width {width} on 7 x 7 patches, {parameters:.1f} M parameters, 28 x 28 grey pixels, 10 classes of
clothing. Weights are float16.

![samples: one row a class](samples.png)

- **Data**: Fashion-MNIST (Xiao et al. 2017, MIT licence), the 60,000 training images; fetched for
  training, not shipped. Classes: {classes}.
- **Licence** of the weights: Apache-2.0, as the package.
- **Objective**: rectified flow (predict noise - image), noise levels logit-normal; labels dropped
  for {dropout:.0%} of samples, for classifier-free guidance; all classes but shoes mirrored.
- **Training**: {images:,} images in batches of {batch}, AdamW at {rate} with warm-up and cosine
  decay, moving average of the weights (shipped). Last loss {loss:.4f} (mean of 50 batches).
  `python training/train.py --run training/runs/garments` trains it again (on a CPU a few hours),
  with `--export deltapass/assets/garments` it is written here.
- **Sampling**: any scheduler of diffusers with flow prediction; tried with DPM-Solver++, 20 steps,
  guidance 2.0 (the samples above, seed 0).
- **Good for**: showing and testing what a sampler, a cache or a compiler does to the images of a
  trained 28-block transformer, on any machine in seconds.
- **Not good for**: making pictures of clothes. It is small; fine print and sandals' straps are
  rough, and colours do not exist in the data.

![training loss](loss.png)
"""


class Garments:
    """Ten classes, told by adaLN.

    Args:
        data: Folder of the data set; fetched into it when missing.
    """

    recipe = Recipe(
        images=165_000, batch=128, learning_rate=1.5e-3, warmup_images=15_000, ema_images=40_000
    )
    card = CARD

    def __init__(self, data: Path) -> None:
        self._data = data
        self._split: tuple[torch.Tensor, torch.Tensor] | None = None

    def build_model(self) -> DiTTransformer2DModel:
        """The architecture of the shipped model, as its config.json says: 5.7 M parameters."""
        config = DiTTransformer2DModel.load_config(EMBEDDED / "transformer", local_files_only=True)
        model = DiTTransformer2DModel.from_config(config)
        for block in model.transformer_blocks:  # adaLN-Zero: every block starts as the identity
            torch.nn.init.zeros_(block.norm1.linear.weight)
            torch.nn.init.zeros_(block.norm1.linear.bias)
        for layer in (model.proj_out_1, model.proj_out_2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        # eval(): diffusers would drop labels per block; we drop them once per sample instead.
        return model.eval()

    def batch(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Random images, some of them mirrored, some without their label."""
        if self._split is None:
            self._split = load_split(self._data)
        images, labels = self._split
        pick = torch.randint(len(images), (count,))
        batch, names = images[pick], labels[pick].clone()
        # Mirroring is safe for clothes; it would turn all shoes, which the data set aligns.
        symmetric = (names != 5) & (names != 7) & (names != 9)
        flip = (torch.rand(count) < 0.5) & symmetric
        batch = torch.where(flip.view(-1, 1, 1, 1), batch.flip(-1), batch)
        names[torch.rand(count) < self.recipe.label_dropout] = NULL_CLASS
        return batch, {"class_labels": names}

    def pipeline(self, model: torch.nn.Module) -> ClassConditionalPipeline:
        """The model with the shipped scheduler."""
        return ClassConditionalPipeline(model, flow_scheduler(), id2label=dict(enumerate(CLASSES)))

    def prompts(self, columns: int) -> list[int]:
        """One row a class."""
        return [label for label in range(len(CLASSES)) for _ in range(columns)]

    def facts(self, pipe: Any) -> dict[str, str]:
        """For the card: the names of the classes."""
        return {"classes": ", ".join(pipe.labels)}
