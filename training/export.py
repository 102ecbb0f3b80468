"""Write a finished run as the folder that ships with the package, with its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from loop import Recipe, Run, save_samples

mpl.use("Agg")
from matplotlib import pyplot as plt


def export(run: Run, target: Path) -> None:
    """Write weights, scheduler, index, samples, loss curve and card into `target`.

    Args:
        run: Its averaged model is what ships.
        target: Folder to write; made if missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    pipe = run.task.pipeline(run.average)
    pipe.to(torch.float16).save_pretrained(target, variant="fp16")
    pipe.to(torch.float32)  # of the rounded weights, as they are loaded
    save_samples(run.task, run.average, target / "samples.png", columns=10)
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    plot_loss(log, target / "loss.png")
    facts = run.task.facts(pipe)
    (target / "README.md").write_text(card(run.task.card, pipe, log, run.recipe, facts))


def card(
    text: str, pipe: Any, log: list[dict[str, float]], recipe: Recipe, facts: dict[str, Any]
) -> str:
    """The model card's text."""
    model = pipe.transformer
    config = model.config
    return text.format(
        **facts,
        kind=type(model).__name__,
        blocks=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        dropout=recipe.label_dropout,
        images=int(log[-1]["images"]),
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
