"""Write a finished run as the folder that ships with the package, with its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

mpl.use("Agg")
from matplotlib import pyplot as plt

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


def export(pipe: Any, run: Path, target: Path, recipe: Any) -> None:
    """Write weights, scheduler, index, loss curve and card into `target`.

    Args:
        pipe: The averaged model with its scheduler and the names of the classes.
        run: Run folder, for its log.
        target: Folder to write; made if missing.
        recipe: What the run was trained with.
    """
    pipe.to(torch.float16).save_pretrained(target, variant="fp16")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    plot_loss(log, target / "loss.png")
    (target / "README.md").write_text(card(pipe, log, recipe))


def card(pipe: Any, log: list[dict[str, float]], recipe: Any) -> str:
    """The model card's text."""
    model = pipe.transformer
    config = model.config
    return CARD.format(
        kind=type(model).__name__,
        blocks=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        classes=", ".join(pipe.labels),
        dropout=recipe.label_dropout,
        images=max(int(log[-1]["images"]), recipe.images),
        batch=recipe.batch,
        rate=recipe.learning_rate,
        loss=log[-1]["loss"],
    )


def plot_loss(log: list[dict[str, float]], path: Path) -> None:
    """Loss over images seen."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([entry["images"] for entry in log], [entry["loss"] for entry in log])
    axes.set(xlabel="images seen", ylabel="flow-matching loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=90)
    plt.close(figure)
