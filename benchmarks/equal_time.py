"""Quality at equal measured time: schedules against fewer plain steps, on trained models.

Every method draws the same held-out seeds; the images are kept in --work, so that a run that was
stopped goes on where it was. Times are of whole batches under Inductor, all methods in turn in one
process. Intervals are bootstraps over images, and every comparison is paired by seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from evidence.judging import Asked, judge, machine_noise, parts
from evidence.measures import FEATURES
from evidence.methods import Method, methods, plain
from evidence.samples import FIRST_SEED, Sampler, kept
from evidence.subjects import SUBJECTS, Subject
from evidence.tables import markdown, numbers
from evidence.times import Times, measure
from measure import arguments, circumstances

PLAIN_STEPS: Final = (16, 14, 13, 12, 11, 10, 9, 8, 7)
NAMES: Final = ("paper", "linear", "tuned")
WORK: Final = Path(__file__).parents[1] / "build" / "equal-time"


def main() -> None:
    """Draw, time, judge; print the table and write the record."""
    args = parsed()
    torch.set_num_threads(args.threads)
    work = args.work
    subject = SUBJECTS[args.model](work)
    chosen = methods(args.methods, args.plain, args.steps, subject.folder)
    if args.only in {"all", "samples"}:
        draw_all(subject, chosen, args)
    times = {}
    if args.only in {"all", "times"}:
        times = timed(subject, chosen, args)
    if args.only in {"all", "table"}:
        times = times or read_times(times_file(args))
        conclude(subject, chosen, times, args)


def parsed() -> argparse.Namespace:
    """The command line."""
    return arguments(
        __doc__,
        without=("mode", "dtype", "save"),
        model={"choices": SUBJECTS, "default": "garments"},
        methods={"nargs": "*", "default": NAMES, "help": "names, files of schedules, or tuned"},
        plain={"nargs": "*", "type": int, "default": PLAIN_STEPS, "help": "fewer plain steps"},
        fine={
            "type": int,
            "default": 60,
            "help": "steps of the trajectory that is near the limit",
        },
        images={"type": int, "default": 200, "help": "images of each method that are judged"},
        real={"type": int, "default": 1000, "help": "real images that the distance is taken to"},
        timed={"type": int, "default": 20, "help": "images of a batch that is timed"},
        rounds={"type": int, "default": 7, "help": "how often every method is timed"},
        threads={"type": int, "default": 1},
        only={"choices": ("all", "samples", "times", "table"), "default": "all"},
        work={"type": Path, "default": WORK, "help": "where images and times are kept"},
        save={"type": Path, "help": "write the record to this JSON file"},
    )


# ---- parts ---------------------------------------------------------------------------------------


def draw_all(subject: Subject, chosen: Sequence[Method], args: Any) -> None:
    """All images that are judged, those of the fine trajectory too."""
    sampler = Sampler(subject)
    for method in (*chosen, plain(args.fine)):
        kept(sampler, method, parts(args.images), args.work)
        print(f"drawn: {method.name}", flush=True)


def timed(subject: Subject, chosen: Sequence[Method], args: Any) -> dict[str, Times]:
    """Measure, and keep what was measured with what it depends on."""
    before = os.getloadavg()
    found = measure(
        Sampler(subject, lowering="inductor"), chosen, count=args.timed, rounds=args.rounds
    )
    kept_as = {
        "circumstances": {**circumstances(args), "load_average": [before[0], os.getloadavg()[0]]},
        "times": {name: dataclasses.asdict(times) for name, times in found.items()},
    }
    times_file(args).parent.mkdir(parents=True, exist_ok=True)
    times_file(args).write_text(json.dumps(kept_as, indent=1))
    return found


def times_file(args: Any) -> Path:
    """Where the times of a model are kept between parts."""
    path: Path = args.work / args.model / "times.json"
    return path


def read_times(path: Path) -> dict[str, Times]:
    """What `timed` kept; empty if it never ran."""
    if not path.exists():
        return {}
    held = json.loads(path.read_text())["times"]
    return {name: Times(*map(tuple, each.values())) for name, each in held.items()}


def conclude(
    subject: Subject, chosen: Sequence[Method], times: Mapping[str, Times], args: Any
) -> None:
    """The table, and the record."""
    asked = Asked(images=parts(args.images), real=args.real, fine=args.fine, work=args.work)
    judged, real = judge(Sampler(subject), chosen, asked, times)
    print(markdown(judged, real, args.fine))
    noise = machine_noise(times, chosen[0])
    held = json.loads(times_file(args).read_text()) if times else {}
    entry = {
        **circumstances(args),
        "images": asked.images,
        "first_seed": FIRST_SEED,
        "judge": subject.judge(),
        "features": FEATURES,
        "timed": held.get("circumstances"),
        "plain_over_itself": None if noise is None else dataclasses.asdict(noise),
        "seconds": held.get("times"),
        **numbers(judged, real),
    }
    if args.save:
        args.save.write_text(json.dumps(entry, indent=1) + "\n")


if __name__ == "__main__":
    main()
