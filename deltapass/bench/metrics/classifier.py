"""A small classifier of Fashion-MNIST, trained here: whether an image shows its class.

Trained once with a fixed seed and kept with the samples, out of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from deltapass.bench.metrics.fidelity import batches
from deltapass.errors import BenchError

EPOCHS: Final = 3
BATCH: Final = 128
RATE: Final = 2e-3
CLASSES: Final = 10
LEAST: Final = 0.85  # any working classifier of this data set is better


def make() -> nn.Sequential:
    """Three stages of convolutions, 28 x 28 grey pixels in -1..1 -> 10 classes."""

    def stage(taken: int, given: int) -> list[nn.Module]:
        return [
            nn.Conv2d(taken, given, 3, padding=1, bias=False),
            nn.BatchNorm2d(given),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    layers = [*stage(1, 16), *stage(16, 32), *stage(32, 64)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 9, CLASSES))


def trained(path: Path, data: Any) -> tuple[nn.Module, float]:
    """The classifier and its accuracy on the test images; trained unless `path` holds it.

    Args:
        path: Where it is kept.
        data: Split name -> (images (N, 1, 28, 28) in -1..1, labels (N,)).

    Raises:
        BenchError: If it learnt too little to judge anything.
    """
    model = make()
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["weights"])
        return model.eval(), kept["accuracy"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        _train(model, *data("train"))
    accuracy = float(right(model, *data("t10k")).double().mean())
    if accuracy < LEAST:
        raise BenchError(
            f"the classifier is {accuracy:.1%} right on the test images, below {LEAST:.0%}, so it "
            "cannot judge",
            "Is the data set whole, and Fashion-MNIST?",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": model.state_dict(), "accuracy": accuracy}, path)
    return model, accuracy


def _train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    steps = EPOCHS * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for chosen in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            optimiser.zero_grad(set_to_none=True)
            loss: Any = F.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimiser.step()
            rate.step()
    model.eval()


@torch.no_grad()
def right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each image in -1..1 is taken for its class, (N,) of bool."""
    found = [model(part).argmax(1) for part in batches(images)]
    return torch.cat(found) == labels
