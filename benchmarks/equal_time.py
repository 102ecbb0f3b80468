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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from evidence.judging import Asked, judge, machine_noise, parts
from evidence.methods import Method, methods, plain
from evidence.page import PAGE, filled
from evidence.samples import FIRST_SEED, Sampler, kept
from evidence.subjects import SUBJECTS, Subject
from evidence.tables import markdown, numbers
from evidence.times import rounds, times_of
from measure import arguments, circumstances

from deltapass.bench.metrics.features import FEATURES

PLAIN_STEPS: Final = (16, 14, 13, 12, 11, 10, 9, 8, 7)
NAMES: Final = ("paper", "linear", "quality", "balanced", "fast", "tuned")
NOTED: Final = ("model", "steps", "fine", "real", "timed", "rounds", "clock")
WORK: Final = Path(__file__).parents[1] / "build" / "equal-time"


def main() -> None:
    """Draw, time, judge; print the table and write the record."""
    args = parsed()
    torch.set_num_threads(args.threads)
    if args.only == "page":
        PAGE.write_text(filled(PAGE.read_text()))
        return
    subject = SUBJECTS[args.model](args.work)
    chosen = methods(args.methods, args.plain, args.steps, subject.folder)
    if args.only in {"all", "samples"}:
        draw_all(subject, chosen, args)
    if args.only in {"all", "times"}:
        time_all(subject, chosen, args)
    if args.only in {"all", "table"}:
        conclude(subject, chosen, args)


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
        clock={"choices": ("wall", "processor"), "default": "wall", "help": "of the times"},
        timed={"type": int, "default": 20, "help": "images of a batch that is timed"},
        rounds={"type": int, "default": 7, "help": "how often every method is timed"},
        threads={"type": int, "default": 1},
        only={"choices": ("all", "samples", "times", "table", "page"), "default": "all"},
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


def time_all(subject: Subject, chosen: Sequence[Method], args: Any) -> None:
    """Time what rounds are left; every one is kept at once, with what it depends on."""
    path, key = times_file(args), [*(method.key() for method in chosen), args.timed]
    held = json.loads(path.read_text()) if path.exists() else {}
    if held.get("of") != key:
        held = {"of": key, "rounds": [], "load_average": []}
    left = range(len(held["rounds"]), args.rounds)
    sampler = Sampler(subject, lowering="inductor")
    for taken in rounds(sampler, chosen, count=args.timed, turns=left) if left else ():
        held["rounds"].append(taken)
        held["load_average"].append(round(os.getloadavg()[0], 2))
        held["circumstances"] = circumstances(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(held, indent=1))
        print(f"timed: {len(held['rounds'])} of {args.rounds} rounds", flush=True)


def times_file(args: Any) -> Path:
    """Where the rounds of a model are kept."""
    path: Path = args.work / args.model / "times.json"
    return path


def conclude(subject: Subject, chosen: Sequence[Method], args: Any) -> None:
    """The tables, and the record."""
    asked = Asked(images=parts(args.images), real=args.real, fine=args.fine, work=args.work)
    held = json.loads(times_file(args).read_text()) if times_file(args).exists() else {}
    times = times_of(held.pop("rounds", ()))
    judged, real = judge(Sampler(subject), chosen, asked, times, args.clock)
    noise = machine_noise(times, chosen[0], args.clock)
    entry = {
        **circumstances(args),
        "options": {name: getattr(args, name) for name in NOTED},
        "images": asked.images,
        "first_seed": FIRST_SEED,
        "judge": subject.judge.says(),
        "features": FEATURES,
        "timed": held or None,
        "plain_over_itself": None if noise is None else dataclasses.asdict(noise),
        "seconds": {name: dataclasses.asdict(taken) for name, taken in times.items()},
        **numbers(judged, real),
    }
    print(markdown(entry))
    if args.save:
        args.save.write_text(json.dumps(entry, indent=1) + "\n")


if __name__ == "__main__":
    main()
