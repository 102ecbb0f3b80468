"""Write a finished run as the folder that ships with the package, with its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from diffusers import DPMSolverMultistepScheduler

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


def export(model: Any, run: Path, target: Path, recipe: Any, classes: tuple[str, ...]) -> None:
    """Write weights, scheduler, index, loss curve and card into `target`.

    Args:
        model: The averaged model.
        run: Run folder, for its log.
        target: Folder to write; made if missing.
        recipe: What the run was trained with.
        classes: Names of the classes, by number.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights = model.to(torch.float16)
    weights.save_pretrained(target / "transformer", variant="fp16")
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.save_pretrained(target / "scheduler")
    index = {
        "_class_name": "ClassConditionalPipeline",
        "transformer": ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "id2label": dict(enumerate(classes)),
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    plot_loss(log, target / "loss.png")
    (target / "README.md").write_text(card(model, log, recipe, classes))


def card(model: Any, log: list[dict[str, float]], recipe: Any, classes: tuple[str, ...]) -> str:
    """The model card's text."""
    config = model.config
    return CARD.format(
        kind=type(model).__name__,
        blocks=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        classes=", ".join(classes),
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
