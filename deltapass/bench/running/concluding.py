"""From what the stages left on disk to the record: rows with times, costs, quality and verdicts."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from deltapass.bench.environment import commit, facts
from deltapass.bench.files import as_data, digest, write_whole
from deltapass.bench.manifest import manifest_of
from deltapass.bench.measuring.exact import Steps
from deltapass.bench.measuring.timing import AGAIN as REFERENCE_AGAIN
from deltapass.bench.measuring.timing import times_of
from deltapass.bench.methods.method import Method
from deltapass.bench.metrics.asking import Workers
from deltapass.bench.metrics.intervals import equal_time_rival
from deltapass.bench.metrics.judging import Judgement
from deltapass.bench.paper import paper_table
from deltapass.bench.reading import RECORD
from deltapass.bench.record import Counts, Macs, Model, Record, Row, Times
from deltapass.bench.reporting.tables import csv_text, markdown
from deltapass.bench.running.drawing import missing, parts_of, write_pictures
from deltapass.bench.running.figures import figures_of
from deltapass.bench.running.job import Job, Watch
from deltapass.bench.running.judging import Rows, judged_rows
from deltapass.bench.running.stages import (
    AGAIN,
    TIMES,
    Exact,
    Kept,
    exact_of,
    failures_of,
    kept_times,
)
from deltapass.bench.sampling import EAGER, Sampler
from deltapass.bench.subjects import EMBEDDED
from deltapass.errors import BenchError
from deltapass.explanation import Report

IMAGES: Final = "images"


def conclude(job: Job, watch: Watch, workers: Workers | None = None) -> Record:
    """Judge all images that there are, and keep the record and the pictures.

    Args:
        job: What.
        watch: Told of every part.
        workers: Who judge, as `RayActors` of `RemoteAnswers` do; this process by default.

    Raises:
        BenchError: If the reference has no images.
    """
    sampler = Sampler(job.subject, job.environment.draw_on, job.suite.solver)
    parts = {m.name: parts_of(sampler, m, job.seeds, job.output) for m in job.drawn}
    whole = {name: each for name, each in parts.items() if not [*missing(each)]}
    if job.reference.name not in whole:
        raise BenchError(
            f"{job.suite.name}: there are no images of {job.reference.name}",
            "Draw them first: leave --only out, or say --only draw",
        )
    fine = job.fine
    rows = Rows({m.name: whole[m.name] for m in job.methods if m.name in whole})
    pictures = _pictures(rows, job, watch)
    watch("judging", 0, 1)
    judged = judged_rows(rows, job, fine and whole.get(fine.name), workers)
    watch("judging", 1, 1)
    record = _record(job, judged, pictures)
    record = msgspec.structs.replace(record, figures=figures_of(job, record, rows))
    job.keep(RECORD, msgspec.json.format(msgspec.json.encode(record), indent=1))
    write_whole(job.folder / "tables.md", markdown(record) + "\n")
    write_whole(job.folder / "tables.csv", csv_text(record))
    return record


def _pictures(rows: Rows, job: Job, watch: Watch) -> dict[str, tuple[str, ...]]:
    """PNG files of all images, by row, relative to the job's folder."""
    found = {}
    for done, name in enumerate(rows):
        watch("writing pictures", done + 1, len(rows))
        paths = write_pictures(rows[name], job.seeds, job.folder / IMAGES / name)
        found[name] = tuple(path.relative_to(job.folder).as_posix() for path in paths)
    return found


# ---- the record ----------------------------------------------------------------------------------


def _record(job: Job, judged: Judgement, pictures: Mapping[str, tuple[str, ...]]) -> Record:
    held, again = kept_times(job, TIMES), kept_times(job, AGAIN)
    rows = [_row(method, job, judged, held, again) for method in job.methods]
    rows = [
        msgspec.structs.replace(row, images=pictures.get(row.name, ()), replay=_replay(row, job))
        for row in rows
    ]
    rows = [msgspec.structs.replace(row, equal_time=_equal_time(row, rows)) for row in rows]
    refused = [_refused(method, why, job) for method, why in job.impossible.values()]
    surroundings = facts(job.environment)
    noise = times_of(REFERENCE_AGAIN, job.reference.name, held.rounds)
    return Record(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        suite=as_data(job.suite),
        suite_sha256=digest(job.suite),
        environment={**surroundings, "load_average": [*held.load]},
        environment_sha256=digest(surroundings),
        commit=commit(),
        model=_model(job),
        manifest=manifest_of(job.seeds, job.subject.prompts(job.seeds)),
        measures=judged.measures,
        reference=job.reference.name,
        rows=(*rows, *refused),
        harness_seconds=held.harness_seconds,
        noise=noise and noise.end_to_end,
        paper=None if job.suite.paper is None else paper_table(job.suite.paper),
        warnings=(*judged.warnings, *_warnings(job, held)),
    )


def _named(method: Method) -> dict[str, Any]:
    """What a row says of its method, measured or not."""
    return {
        "name": method.name,
        "label": method.label,
        "kind": method.kind,
        "steps": method.steps,
        "settings": dict(method.settings),
        "remark": method.remark,
    }


def _row(method: Method, job: Job, judged: Judgement, held: Kept, again: Kept) -> Row:
    exact = exact_of(job).get(method.name, Exact(key=""))
    report = job.analysis.report(method)
    return Row(
        **_named(method),
        lowering=_lowering(method, job),
        schedule=_schedule(method, report),
        macs=_macs(exact.steps, exact_of(job).get(job.reference.name)),
        times=_times(method, job.reference, held, again),
        compile_seconds=exact.compiled and exact.compiled.seconds,
        peak_bytes=exact.peak_bytes,
        counts=_counts(method, exact, report),
        means=dict(judged.means.get(method.name, {})),
        values=dict(judged.values.get(method.name, {})),
        against={name: dict(each) for name, each in judged.against.get(method.name, {}).items()},
        step_errors=exact.steps and exact.steps.errors,
        failure=failures_of(job).get(method.name),
    )


def _lowering(method: Method, job: Job) -> str:
    """What it was timed on, or drawn on where nothing was timed."""
    if method.settings.get("compiled") is False:  # of rivals
        return EAGER
    return method.lowering or (
        job.environment.lowering if job.suite.timed else job.environment.draw_on
    )


def _schedule(method: Method, report: Report | None) -> Any:
    if method.rival is not None:
        return None
    if report is None:
        return (None,) * method.steps
    return tuple(None if row is None else (row.start, row.stop) for row in report.schedule_table)


def _times(method: Method, reference: Method, held: Kept, again: Kept) -> Times | None:
    """Of the process of its own, where there was one for it: the first rounds did not count."""
    if method is not reference:
        found = times_of(method.name, reference.name, again.rounds)
        if found is not None:
            return found
    return times_of(method.name, reference.name, held.rounds)


def _macs(steps: Steps | None, reference: Exact | None) -> Macs | None:
    whole = reference.steps.macs if reference is not None and reference.steps else None
    if steps is None or steps.macs is None or whole is None:
        return None
    paper, full = steps.macs
    return Macs(paper=paper, full=full, share=full / whole[1])


def _counts(method: Method, exact: Exact, report: Report | None) -> Counts:
    made, steps = exact.compiled, exact.steps
    return Counts(
        graphs=made and made.graphs,
        breaks=made and made.breaks,
        recompiles=made and made.recompiles,
        bodies=report and len(report.bodies),
        blocks_run=steps and steps.blocks_run,
        buffer_bytes=report.buffer_bytes if report else 0 if method.schedule is None else None,
    )


def _equal_time(row: Row, rows: Sequence[Row]) -> str | None:
    """The fewest plain steps that take no less time; by MACs where nothing was timed."""
    if row.kind in ("plain", "steps"):
        return None
    share = _share(row)
    plain = {
        other.steps: other.name
        for other in rows
        if other.kind in ("plain", "steps") and _alike(other, row) and _share(other) is not None
    }
    if share is None:
        return None
    by_name = {other.name: _share(other) or 0.0 for other in rows}
    steps = equal_time_rival(share, {each: by_name[name] for each, name in plain.items()})
    return None if steps is None else plain[steps]


def _alike(plain: Row, row: Row) -> bool:
    """Whether a plain row is of the same lowering, solver and weights as another."""
    named = ("solver", "weights")
    same = all(plain.settings.get(name) == row.settings.get(name) for name in named)
    return same and plain.lowering == row.lowering


def _share(row: Row) -> float | None:
    if row.times is not None and row.times.end_to_end is not None:
        return row.times.end_to_end.share
    return row.macs.share if row.macs is not None else None


def _refused(method: Method, why: str, job: Job) -> Row:
    return Row(
        **_named(method),
        lowering=job.environment.lowering,
        failure=why,
    )


def _model(job: Job) -> Model:
    subject = job.subject
    about = "" if job.analysis.refusal is None else f"No schedule of ours: {job.analysis.refusal}"
    return Model(
        name=subject.name,
        title=subject.title,
        blocks=job.analysis.blocks,
        digest=subject.digest(),
        random_weights=subject.random_weights,
        about=about,
    )


def _warnings(job: Job, held: Kept) -> Iterator[str]:
    if job.suite.paper and job.subject.name in EMBEDDED:
        yield (
            "The paper's table is of another model, whose weights are not here: ours is of an "
            "embedded one, so compare the order of the rows, never their values"
        )
    if job.subject.random_weights:
        yield "The weights are random: times count, quality was not measured"
    times = times_of(job.reference.name, job.reference.name, held.rounds)
    if times is not None and times.end_to_end and times.end_to_end.stability != "stable":
        yield (
            "The machine was not steady: the reference beside itself scatters or drifts by more "
            "than 5 %, or there are fewer than 10 rounds"
        )


def _replay(row: Row, job: Job) -> str:
    return f"{job.command} --row {shlex.quote(row.name)}"
