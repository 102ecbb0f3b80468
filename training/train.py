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
    """28 blocks of width 96 on 7 x 7 patches of 4 x 4 pixels: 5.7 M parameters."""
    model = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=28,
        sample_size=28,
        patch_size=4,
        num_embeds_ada_norm=len(CLASSES),
    )
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


@torch.no_grad()
def sample(
    model: torch.nn.Module, labels: torch.Tensor, seed: int = 0, guidance: float = 2.0
) -> torch.Tensor:
    """20 steps of DPM-Solver++ with classifier-free guidance."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 1, 28, 28, generator=generator).to(labels.device)
    both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
    for t in scheduler.timesteps:
        times = t.float().expand(len(both)).to(x.device)
        out = model(torch.cat([x, x]), timestep=times, class_labels=both, return_dict=False)[0]
        cond, uncond = out.chunk(2)
        x = scheduler.step(uncond + guidance * (cond - uncond), t, x, return_dict=False)[0]
    return x.clamp(-1, 1)


def save_grid(images: torch.Tensor, path: Path, rows: int) -> None:
    """Write images row by row (one row a class), enlarged three times."""
    pixels = ((images.cpu() + 1) * 127.5).round().byte().view(rows, -1, 28, 28)
    grid = pixels.permute(0, 2, 1, 3).reshape(rows * 28, -1)
    picture = Image.fromarray(grid.numpy(), mode=None)
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
    labels = torch.arange(len(CLASSES), device=run.device).repeat_interleave(6)
    pictures = sample(run.average, labels)
    save_grid(pictures, run.folder / f"samples-{run.images_seen:08d}.png", rows=len(CLASSES))


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
    labels = torch.arange(len(CLASSES), device=run.device).repeat_interleave(10)
    save_grid(sample(run.average, labels), args.export / "samples.png", rows=len(CLASSES))
    export(run.average, args.run, args.export, recipe, CLASSES)


if __name__ == "__main__":
    main()
