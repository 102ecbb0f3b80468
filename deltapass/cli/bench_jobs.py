"""The work of `deltapass bench`: models loaded, jobs made of them, run and shown; loads torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import msgspec
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deltapass.bench.environment import Environment, read_environment
from deltapass.bench.files import read_suite, read_suites, shipped
from deltapass.bench.manifest import read_prompts
from deltapass.bench.running.checking import problems, remarks
from deltapass.bench.running.job import Job, Watch, prepared
from deltapass.bench.running.stages import Fresh, time_again
from deltapass.bench.running.whole import How, page_of, run_jobs
from deltapass.bench.subjects import (
    EMBEDDED,
    Dealt,
    Subject,
    embedded_subject,
    pipeline_subject,
)
from deltapass.bench.suite import Suite
from deltapass.cli.command_line import FAILED, say_error
from deltapass.cli.loops import trajectories
from deltapass.cli.models import check_source
from deltapass.errors import BenchError

STOPPED: Final = 130  # as shells say it of Ctrl-C
# Safe paths, as the installed command has: a folder named deltapass here is not the package.
PROGRAM: Final = (sys.executable, "-P", "-c", "from deltapass.cli.app import app; app()")


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says; None and () where it says nothing."""

    names: tuple[str, ...]
    models: tuple[str, ...] = ()
    prompts: Path | None = None
    call: Mapping[str, Any]
    suite: Mapping[str, Any]
    environment: Mapping[str, Any]
    env: Path | None = None
    output: Path
    only: str | None = None
    check: bool = False
    ray: str | None = None
    rows: tuple[str, ...] = ()
    random_weights: bool = False
    again: tuple[str, ...] = ()

    def words(self, suite: str, model: str) -> list[str]:
        """The arguments that ask for one suite on one model again."""
        options = {**self.suite, **self.environment, "prompts": self.prompts, "env": self.env}
        said = [suite, "--model", model]
        for name, value in options.items():
            if value is not None:
                said += [f"--{name}", str(value)]
        if self.call:
            said += ["--call", msgspec.json.encode(self.call).decode()]
        if self.random_weights:
            said += ["--random-weights"]
        return [*said, "--output", str(self.output)]


def run(asked: Asked) -> Path | None:
    """Check, then run all that is asked; gives the page.

    Raises:
        DeltapassError: If it cannot be begun, or fails.
        typer.Exit: After a check with problems, or Ctrl-C.
    """
    if asked.only == "page":
        return page_of(asked.output)
    jobs = tuple(jobs_of(asked))
    if asked.check:
        _show_check(jobs)
        return None
    how = How(only=asked.only, fresh=functools.partial(_fresh, asked), ray=asked.ray)
    try:
        with watched() as watch:
            if asked.again:
                for job in jobs:
                    time_again(job, asked.again, watch)
                return None
            return run_jobs(jobs, how, watch)
    except KeyboardInterrupt:
        say_error(
            f"stopped; what is done is kept in {asked.output}. "
            "The same command goes on where it was."
        )
        raise typer.Exit(STOPPED) from None


def jobs_of(asked: Asked) -> Iterator[Job]:
    """A job for every suite and model; a model that several suites share is loaded once.

    Raises:
        BenchError: If a suite, a file, a method or a model makes no sense.
        ModelSourceError: If a model cannot be loaded.
    """
    environment = read_environment(asked.env, **asked.environment)
    if environment.threads is not None:
        torch.set_num_threads(environment.threads)
    dealt = () if asked.prompts is None else read_prompts(asked.prompts)
    known: dict[Any, Subject] = {}
    for suite in read_suites(asked.names):
        given = {name: value for name, value in asked.suite.items() if value is not None}
        wanted = msgspec.structs.replace(suite, **given)
        models = asked.models or wanted.models
        if not models:
            if len(asked.names) == 1 and asked.names[0] != "all":
                raise BenchError(f"suite {suite.name} has no model of its own", "Give --model")
            continue
        for source in models:
            kind = source, wanted.guidance, wanted.first_seed
            if kind not in known:
                known[kind] = _subject(source, wanted, environment, asked, dealt)
            job = prepared(wanted, environment, known[kind], asked.output, asked.rows)
            words = shlex.join(["deltapass", "bench", *asked.words(_named(suite, asked), source)])
            yield dataclasses.replace(job, command=words)


def _named(suite: Suite, asked: Asked) -> str:
    """How the command line names a suite: a file by its path."""
    files = (name for name in asked.names if name.endswith(".toml"))
    return next((name for name in files if read_suite(name).name == suite.name), suite.name)


def _subject(
    source: str, suite: Suite, environment: Environment, asked: Asked, prompts: tuple[Any, ...]
) -> Subject:
    if source in EMBEDDED:
        if prompts or asked.call:
            raise BenchError(
                f"{source} has prompts of its own", "Leave out --prompts and --call for it"
            )
        return embedded_subject(source, environment, suite.guidance)
    check_source(source)
    return pipeline_subject(
        source,
        trajectories(source, asked.call),
        environment,
        Dealt(prompts=prompts, first_seed=suite.first_seed),
        random_weights=asked.random_weights,
    )


def _fresh(asked: Asked, job: Job) -> Fresh:
    """Times rows again by this very command, in a process of its own."""

    def timed(names: Sequence[str]) -> None:
        words = asked.words(job.suite.name, job.subject.source)
        rows = [word for name in names for word in ("--time-again", name)]
        done = subprocess.run(
            [*PROGRAM, "bench", *words, *rows], check=False, env={**os.environ, "TERM": "dumb"}
        )
        if done.returncode:
            say_error(f"timing {', '.join(names)} again failed: they stay inconclusive")

    return timed


# ---- shown ---------------------------------------------------------------------------------------


@contextmanager
def watched() -> Iterator[Watch]:
    """A bar with the time that is left, where somebody looks on."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def watch(what: str, done: int, total: int) -> None:
        stage = " ".join(what.split(": ", 1)[-1].split()[:1])
        where = f"{what.split(': ', 1)[0]} {stage}"
        if where not in tasks:
            tasks[where] = progress.add_task(what, total=total)
        progress.update(tasks[where], description=what, completed=done, total=total)

    with progress:
        yield watch


def list_suites() -> None:
    """What there is to run."""
    table = Table("suite", "what it answers", box=None, pad_edge=False)
    for name in shipped():
        suite = read_suite(name)
        table.add_row(name, suite.question)
    Console().print(table, "deltapass bench NAME --check says what it would need.", sep="\n\n")


def _show_check(jobs: Sequence[Job]) -> None:
    """What would fail, and what would be missing."""
    console, failing = Console(), False
    for job in jobs:
        found, missing = problems(job), remarks(job)
        failing = failing or bool(found)
        console.print(
            f"{job.suite.name} on {job.subject.name}: {len(job.methods)} rows of "
            f"{job.suite.images} images, {job.suite.rounds if job.suite.timed else 0} rounds"
        )
        for text in found:
            console.print(f"  fails: {text}", markup=False, soft_wrap=True)
        for text in missing:
            console.print(f"  missing: {text}", markup=False, soft_wrap=True)
    if failing:
        raise typer.Exit(FAILED)
    console.print("All of it can be begun.")


def compare(one: Path, other: Path) -> bool:
    """Show how two runs differ; True where a row got worse.

    Raises:
        BenchError: If they are of other prompts or seeds, or have nothing in common.
    """
    from deltapass.bench.reporting.comparing import compared, shown

    found = compared(one, other)
    console = Console()
    for pair in found:
        console.print(shown(pair))
    return any(row.worse for pair in found for row in pair.rows)
