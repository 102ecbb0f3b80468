"""Train a model that ships with the package, by flow matching.

    python training/train.py --model garments --run training/runs/garments   # starts, or resumes
    python training/train.py --model garments --run training/runs/garments \
        --export deltapass/assets/garments

Garments: a 28-block DiT on Fashion-MNIST, told a class. Nouns: 16 blocks with cross-attention on
pixel art in colour, told four attributes. A run folder holds everything (loop.py).
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import replace
from pathlib import Path

import torch
from export import export
from garments import Garments
from loop import Clock, Run, train
from nouns import Nouns

TASKS = {"garments": Garments, "nouns": Nouns}


def next_time(clock: str) -> float:
    """The next moment, in seconds since the epoch, at which local clocks show HH:MM."""
    now = datetime.datetime.now().astimezone()
    wanted = datetime.time.fromisoformat(clock)
    moment = now.replace(hour=wanted.hour, minute=wanted.minute, second=0, microsecond=0)
    return (moment if moment > now else moment + datetime.timedelta(days=1)).timestamp()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=TASKS, default="garments")
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--images", type=int, help="images of the whole run")
    parser.add_argument("--until", type=next_time, help="end at HH:MM instead, however many")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--sample-every", type=int, default=50_000)
    parser.add_argument("--export", type=Path, help="write the run's model here and do not train")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    task = TASKS[args.model](args.data)
    given = {"images": args.images, "learning_rate": args.learning_rate}
    recipe = replace(task.recipe, **{name: value for name, value in given.items() if value})
    run = Run(args.run, task, recipe, torch.device(args.device))
    if args.export is None:
        train(run, Clock(recipe.images, args.until), args.sample_every)
    else:
        export(run, args.export)


if __name__ == "__main__":
    main()
