"""The training loop that all shipped models share: flow matching, resumable at any point.

What differs between models (architecture, data, pictures of progress) is a Task. A run folder holds
everything: checkpoint.pt (weights, averaged weights, optimiser, position), log.jsonl (loss) and
samples-*.png. Interrupting loses at most one checkpoint period.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deltapass.demo.embedded import EMBEDDED
from deltapass.demo.images import grid

LOG_EVERY: Final = 3_200  # images between two lines of the log, each with a checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a run depends on; a task's recipe is that of the shipped model."""

    images: int
    batch: int
    learning_rate: float
    warmup_images: int
    ema_images: int
    label_dropout: float = 0.1
    seed: int = 0


class Task(Protocol):
    """A model to train and the data it learns."""

    recipe: Recipe
    card: str  # text of the model card, with places for what `export` and `facts` fill in

    def build_model(self) -> Any:
        """The untrained model."""

    def batch(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Images (B, C, H, W) in [-1, 1] and what the denoiser is told of them, by argument."""

    def pipeline(self, model: torch.nn.Module) -> Any:
        """The model with the scheduler it ships with."""

    def prompts(self, columns: int) -> list[Any]:
        """What the picture of samples shows, in rows of so many columns."""

    def facts(self, pipe: Any) -> dict[str, Any]:
        """What the card says of this model alone."""


def flow_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler that ships with the models: DPM-Solver++ for flow prediction."""
    folder = EMBEDDED / "scheduler"
    return DPMSolverMultistepScheduler.from_pretrained(folder, local_files_only=True)


def flow_matching_loss(
    model: torch.nn.Module, images: torch.Tensor, conditions: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Rectified flow: predict noise - image at a logit-normal noise level sigma."""
    sigma = torch.sigmoid(torch.randn(len(images), device=images.device))
    noise = torch.randn_like(images)
    level = sigma.view(-1, 1, 1, 1)
    noisy = (1 - level) * images + level * noise
    predicted = model(noisy, timestep=sigma * 1000, return_dict=False, **conditions)[0]
    return torch.nn.functional.mse_loss(predicted, noise - images)


def save_samples(task: Task, model: torch.nn.Module, path: Path, columns: int) -> None:
    """Write a picture of samples, row by row, enlarged three times."""
    generator = torch.Generator().manual_seed(0)
    pipe = task.pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(task.prompts(columns), generator=generator, output_type="pt").images
    pixels = (grid(images.cpu(), columns) * 255).round().byte()
    picture = Image.fromarray(pixels.numpy())
    picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST).save(path)


class Run:
    """One training run: the model, its moving average, and where it stands."""

    def __init__(self, folder: Path, task: Task, recipe: Recipe, device: torch.device) -> None:
        self.folder, self.task, self.recipe, self.device = folder, task, recipe, device
        torch.manual_seed(recipe.seed)
        self.model = task.build_model().to(device)
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

    def step(self, done: float) -> float:
        """One optimiser step on one batch, with so much of the run done; gives the loss."""
        images, conditions = self.task.batch(self.recipe.batch)
        conditions = {name: value.to(self.device) for name, value in conditions.items()}
        self._set_learning_rate(done)
        loss = flow_matching_loss(self.model, images.to(self.device), conditions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.images_seen += len(images)
        self._update_average(len(images))
        return loss.item()

    def _set_learning_rate(self, done: float) -> None:
        recipe = self.recipe
        warm = min(1.0, (self.images_seen + recipe.batch) / recipe.warmup_images)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warm * (0.02 + 0.98 * cosine)

    def _update_average(self, images: int) -> None:
        horizon = min(self.recipe.ema_images, 0.2 * self.images_seen + 1)
        weight = 1 - math.exp(-images / horizon)
        parameters, averages = list(self.model.parameters()), list(self.average.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, weight)


class Clock:
    """How much of a run is done: by images, or so that it ends at a time of day.

    Args:
        images: Images of the whole run, when no time is given.
        until: Seconds since the epoch.
    """

    def __init__(self, images: int, until: float | None) -> None:
        self._images, self._until = images, until
        self._recent: list[tuple[float, int]] = []

    def note(self, seen: int) -> float:
        """Images in the whole run, as far as can be told with `seen` of them behind us."""
        self._recent = [*self._recent[-100:], (time.time(), seen)]
        if self._until is None or len(self._recent) < 10:  # too few to tell the rate
            return self._images
        return seen + max(0.0, self.rate * (self._until - time.time()))

    @property
    def rate(self) -> float:
        """Images a second, over the last hundred steps."""
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        return (after - before) / max(last - first, 1e-9)


def train(run: Run, clock: Clock, sample_every: int) -> None:
    """Train until the clock says that all is done."""
    for block in run.model.transformer_blocks:
        block.compile()  # one graph serves all: seconds to compile, a third faster
    run.step(0.0)  # compiles, which is no measure of the rate
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("images", completed=run.images_seen)
        losses: list[float] = []
        next_log, next_sample = _after(run, LOG_EVERY), _after(run, sample_every)
        while run.images_seen < (total := clock.note(run.images_seen)):
            losses.append(run.step(run.images_seen / total))
            seen = run.images_seen
            shown = f"loss {losses[-1]:.4f}"
            progress.update(bar, completed=seen, total=int(total), description=shown)
            if seen >= next_log:
                next_log = _after(run, LOG_EVERY)
                _log(run, losses, clock.rate)
                losses = []
                run.save()
            if seen >= next_sample:
                next_sample = _after(run, sample_every)
                _sample_grid(run)
    if losses:
        _log(run, losses, clock.rate)
    run.save()
    _sample_grid(run)


def _after(run: Run, every: int) -> int:
    return (run.images_seen // every + 1) * every


def _log(run: Run, losses: list[float], rate: float) -> None:
    record = {
        "images": run.images_seen,
        "loss": round(sum(losses) / len(losses), 5),
        "images_per_second": round(rate, 1),
    }
    with (run.folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")


def _sample_grid(run: Run) -> None:
    path = run.folder / f"samples-{run.images_seen:08d}.png"
    save_samples(run.task, run.average, path, columns=6)
