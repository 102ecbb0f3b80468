"""Train the embedded model: a 28-block DiT on Fashion-MNIST, by flow matching.

    python training/train.py --run training/runs/garments    # starts, or resumes
    python training/train.py --run training/runs/garments --export deltapass/assets/garments

A run folder holds everything: checkpoint.pt (weights, averaged weights, optimiser, position),
log.jsonl (loss) and samples-*.png. Interrupting loses at most one checkpoint period.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from dataset import CLASSES, load_split
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler
from export import export
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deltapass.demo.embedded import EMBEDDED, ClassConditionalPipeline
from deltapass.demo.picture import grid

NULL_CLASS = len(CLASSES)  # the label that stands for "no label" in classifier-free guidance


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a run depends on; the defaults are the shipped model's."""

    images: int = 165_000
    batch: int = 128
    learning_rate: float = 1.5e-3
    warmup_images: int = 15_000
    ema_images: int = 40_000
    label_dropout: float = 0.1
    seed: int = 0


def build_model() -> DiTTransformer2DModel:
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


def flow_matching_loss(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Rectified flow: predict noise - image at a logit-normal noise level sigma."""
    sigma = torch.sigmoid(torch.randn(len(images), device=images.device))
    noise = torch.randn_like(images)
    level = sigma.view(-1, 1, 1, 1)
    noisy = (1 - level) * images + level * noise
    predicted = model(noisy, timestep=sigma * 1000, class_labels=labels, return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted, noise - images)


def pipeline(model: torch.nn.Module) -> ClassConditionalPipeline:
    """The model with the shipped scheduler: DPM-Solver++ for flow prediction."""
    folder = EMBEDDED / "scheduler"
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder, local_files_only=True)
    pipe = ClassConditionalPipeline(model, scheduler, id2label=dict(enumerate(CLASSES)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_samples(model: torch.nn.Module, path: Path, columns: int) -> None:
    """Sample every class and write the pictures, one row a class, enlarged three times."""
    labels = [label for label in range(len(CLASSES)) for _ in range(columns)]
    generator = torch.Generator().manual_seed(0)
    images = pipeline(model)(labels, generator=generator, output_type="pt").images
    pixels = (grid(images.cpu(), columns) * 255).round().byte()
    picture = Image.fromarray(pixels.numpy())
    picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST).save(path)


class Run:
    """One training run: the model, its moving average, and where it stands."""

    def __init__(self, folder: Path, recipe: Recipe, device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        torch.manual_seed(recipe.seed)
        self.model = build_model().to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.images_seen = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.pt").exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images_seen = state["images_seen"]
        torch.manual_seed(self.recipe.seed + self.images_seen)

    def save(self) -> None:
        """Write the checkpoint; an interruption while writing leaves the old one in place."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images_seen": self.images_seen,
        }
        torch.save(state, self.folder / "checkpoint.new")
        (self.folder / "checkpoint.new").replace(self.folder / "checkpoint.pt")

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One optimiser step on one batch; gives the loss."""
        self._set_learning_rate()
        loss = flow_matching_loss(self.model, images, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.images_seen += len(images)
        self._update_average(len(images))
        return loss.item()

    def _set_learning_rate(self) -> None:
        recipe = self.recipe
        warm = min(1.0, (self.images_seen + recipe.batch) / recipe.warmup_images)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.images_seen / recipe.images)))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warm * (0.02 + 0.98 * cosine)

    def _update_average(self, images: int) -> None:
        horizon = min(self.recipe.ema_images, 0.2 * self.images_seen + 1)
        weight = 1 - math.exp(-images / horizon)
        parameters, averages = list(self.model.parameters()), list(self.average.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, weight)


def train(run: Run, data: Path, sample_every: int) -> None:
    """Train until the recipe's number of images; resumable at any point."""
    images, labels = (part.to(run.device) for part in load_split(data))
    for block in run.model.transformer_blocks:
        block.compile()  # one graph serves all 28: seconds to compile, a third faster
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("images", total=run.recipe.images, completed=run.images_seen)
        losses, next_sample = [], run.images_seen + sample_every
        started, first = time.perf_counter(), run.images_seen
        while run.images_seen < run.recipe.images:
            losses.append(run.step(*_batch(run, images, labels)))
            progress.update(bar, completed=run.images_seen, description=f"loss {losses[-1]:.4f}")
            if len(losses) == 50:
                rate = (run.images_seen - first) / (time.perf_counter() - started)
                _log(run, sum(losses) / 50, rate)
                losses = []
                run.save()
            if run.images_seen >= next_sample:
                next_sample += sample_every
                _sample_grid(run)
    run.save()
    _sample_grid(run)


def _batch(
    run: Run, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    pick = torch.randint(len(images), (run.recipe.batch,), device=run.device)
    batch, names = images[pick], labels[pick].clone()
    # Mirroring is safe for clothes; it would turn all shoes, which the data set aligns.
    symmetric = (names != 5) & (names != 7) & (names != 9)
    flip = (torch.rand(len(pick), device=run.device) < 0.5) & symmetric
    batch = torch.where(flip.view(-1, 1, 1, 1), batch.flip(-1), batch)
    names[torch.rand(len(pick), device=run.device) < run.recipe.label_dropout] = NULL_CLASS
    return batch, names


def _log(run: Run, loss: float, rate: float) -> None:
    record = {
        "images": run.images_seen,
        "loss": round(loss, 5),
        "images_per_second": round(rate, 1),
    }
    with (run.folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")


def _sample_grid(run: Run) -> None:
    save_samples(run.average, run.folder / f"samples-{run.images_seen:08d}.png", columns=6)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--images", type=int, default=Recipe().images)
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--sample-every", type=int, default=50_000)
    parser.add_argument("--export", type=Path, help="write the run's model here and do not train")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    recipe = Recipe(images=args.images, learning_rate=args.learning_rate)
    run = Run(args.run, recipe, torch.device(args.device))
    if args.export is None:
        train(run, args.data, args.sample_every)
        return
    args.export.mkdir(parents=True, exist_ok=True)
    save_samples(run.average, args.export / "samples.png", columns=10)
    export(pipeline(run.average), args.run, args.export, recipe)


if __name__ == "__main__":
    main()
