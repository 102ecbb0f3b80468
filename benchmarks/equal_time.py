"""Quality at equal measured time: schedules against fewer plain steps, on trained models.

A suite of `deltapass bench` made of the arguments, run by its harness: what was done lies in
--work, and a run that was stopped goes on. Said besides is as how many plain steps each method is
as good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from evidence.entry import entry_of
from evidence.page import PAGE, filled
from evidence.suite import NAMES, suite_of
from evidence.tables import markdown
from measure import arguments

from deltapass.bench.environment import Environment
from deltapass.bench.metrics.judges import JUDGES
from deltapass.bench.reading import RECORD, read_record
from deltapass.bench.running.job import Job, prepared
from deltapass.bench.running.judging import judging_context
from deltapass.bench.running.whole import How, run_jobs
from deltapass.bench.subjects import embedded_subject

PLAIN_STEPS: Final = (16, 14, 13, 12, 11, 10, 9, 8, 7)
WORK: Final = Path(__file__).parents[1] / "build" / "equal-time"
# What --only says -> the stage of the harness.
STAGES: Final[Mapping[str, str]] = {"samples": "draw", "times": "time", "table": "judge"}


def main() -> None:
    """Draw, time, judge; print the table and write the record."""
    args = parsed()
    if args.only == "page":
        PAGE.write_text(filled(PAGE.read_text()))
        return
    torch.set_num_threads(args.threads)
    job = job_of(args)
    for stage in [STAGES[args.only]] if args.only in STAGES else STAGES.values():
        run_jobs([job], How(only=stage), _say)
    if args.only in {"all", "table"}:
        conclude(job, args.save)


def parsed(given: Sequence[str] | None = None) -> Any:
    """The command line."""
    return arguments(
        __doc__,
        without=("mode", "dtype", "save"),
        given=given,
        model={"choices": JUDGES, "default": "garments"},
        methods={"nargs": "*", "default": NAMES, "help": "names, files of schedules, or tuned"},
        plain={"nargs": "*", "type": int, "default": PLAIN_STEPS, "help": "fewer plain steps"},
        fine={
            "type": int,
            "default": 60,
            "help": "steps of the trajectory that is near the limit",
        },
        images={"type": int, "default": 200, "help": "images of each method that are judged"},
        timed={"type": int, "default": 20, "help": "images of a batch that is timed"},
        rounds={"type": int, "default": 10, "help": "how often every method is timed"},
        threads={"type": int, "default": 1},
        only={"choices": ("all", *STAGES, "page"), "default": "all"},
        work={"type": Path, "default": WORK, "help": "where images and times are kept"},
        save={"type": Path, "help": "write the record to this JSON file"},
    )


def job_of(args: Any) -> Job:
    """The suite that is asked for, on its model."""
    environment = Environment(threads=args.threads, device=args.device)
    suite = suite_of(args)
    subject = embedded_subject(args.model, environment, suite.guidance)
    return prepared(suite, environment, subject, args.work)


def conclude(job: Job, save: Path | None) -> None:
    """The tables, and the record."""
    record = read_record(job.folder / f"{RECORD}.json")
    entry = entry_of(record, judging_context(job).judged.says())
    print(markdown(entry))
    if save:
        save.write_text(json.dumps(entry, indent=1) + "\n")


def _say(what: str, done: int, total: int) -> None:
    print(f"{what} ({done} of {total})", flush=True)


if __name__ == "__main__":
    main()
