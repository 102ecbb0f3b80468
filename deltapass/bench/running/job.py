"""One suite on one model: what is asked, made ready; and where all of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from deltapass.bench.analysis import Analysis, analysed
from deltapass.bench.environment import Environment
from deltapass.bench.files import digest, read_json, write_whole
from deltapass.bench.methods.method import Context, Method
from deltapass.bench.methods.named import check_distinct, method_of
from deltapass.bench.methods.naming import name_of
from deltapass.bench.subjects import Subject
from deltapass.bench.suite import MethodSpec, Suite
from deltapass.errors import (
    BenchError,
    DeltapassError,
    ScheduleError,
    UnsupportedGraphError,
    counted,
)

# Told of what is being done: in words, how much of it is done, and of how much.
Watch = Callable[[str, int, int], None]
CACHES_NONE: Final = "the schedule caches none of {}: it would be the plain model by another name"
FINE: Final = "psnr_fine"  # the measure that needs images of many plain steps


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """One suite on one model.

    Attributes:
        suite: What is measured, with what the command line says instead.
        environment: Where.
        subject: Of whom.
        analysis: What is known of the model beforehand.
        methods: Those that can be tried, the reference first.
        impossible: Those that cannot, by name, with why.
        output: Folder of all results.
        command: What begins every replay command.
    """

    suite: Suite
    environment: Environment
    subject: Subject
    analysis: Analysis
    methods: tuple[Method, ...]
    impossible: Mapping[str, tuple[Method, str]]
    output: Path
    command: str = "deltapass bench"

    @property
    def folder(self) -> Path:
        """Of the results of this suite on this model."""
        return self.output / self.suite.name / self.subject.name

    @property
    def data(self) -> Path:
        """Where data sets, judges and features are kept, for all suites."""
        given = self.environment.data
        return self.output / "data" if given is None else Path(given)

    @property
    def seeds(self) -> range:
        """Of the images that are judged."""
        return range(self.suite.first_seed, self.suite.first_seed + self.suite.images)

    @property
    def timed_seeds(self) -> range:
        """Of the batch that is timed."""
        return range(self.suite.first_seed, self.suite.first_seed + self.suite.timed)

    @property
    def reference(self) -> Method:
        """What all others are compared with."""
        return self.methods[0]

    @property
    def fine(self) -> Method | None:
        """The trajectory that stands for the limit, if a measure needs it."""
        if not self.suite.fine_steps or FINE not in self.suite.measures:
            return None
        spec = MethodSpec(name="plain", steps=self.suite.fine_steps)
        return method_of(spec, self.analysis.context(self.subject, self.suite.steps))

    @property
    def drawn(self) -> tuple[Method, ...]:
        """Methods whose images are needed."""
        fine = self.fine
        known = {method.name for method in self.methods}
        return self.methods if fine is None or fine.name in known else (*self.methods, fine)

    # ---- what a stage leaves for the others ----------------------------------------------------

    def kept(self, name: str) -> Any:
        """What a stage left under a name, as plain data; None if it left nothing."""
        return read_json(self.folder / f"{name}.json")

    def keep(self, name: str, content: bytes) -> None:
        """Leave plain data for the other stages, and for the next run."""
        write_whole(self.folder / f"{name}.json", content)

    def key(self) -> str:
        """What times depend on."""
        says = {
            "model": self.subject.digest(),
            "environment": self.environment,
            "timed": self.suite.timed,
            "solver": self.suite.solver,
            "methods": [repr(method) for method in self.methods],
        }
        return digest(says)


def prepared(
    suite: Suite,
    environment: Environment,
    subject: Subject,
    output: Path,
    rows: Collection[str] = (),
) -> Job:
    """Make a suite's methods for a model.

    Args:
        suite: What is measured.
        environment: Where.
        subject: Of whom.
        output: Folder of all results.
        rows: Names of methods that are wanted besides the reference; () for all.

    Raises:
        BenchError: If a method has no meaning, or is there twice; or no row is of a wanted name.
        PipelineCallError: If the pipeline cannot be called as it is told to be.
    """
    analysis = analysed(subject, range(suite.first_seed, suite.first_seed + suite.images))
    context = analysis.context(subject, suite.steps)
    methods, impossible = _made(suite.methods, context)
    impossible |= _unfit(methods, analysis)
    check_distinct((*methods, *(m for m, _ in impossible.values() if m not in methods)))
    chosen = [method for method in methods if method.name not in impossible]
    chosen = _wanted(chosen, {*impossible}, rows)
    if not chosen or chosen[0].kind != "plain":
        raise BenchError(
            f"suite {suite.name} begins with {suite.methods[0].name!r}",
            "Its first method is the reference: [[method]] 'plain' with the suite's steps",
        )
    return Job(
        suite=suite,
        environment=environment,
        subject=subject,
        analysis=analysis,
        methods=tuple(chosen),
        impossible={n: found for n, found in impossible.items() if not rows or n in rows},
        output=output,
    )


def _unfit(methods: Sequence[Method], analysis: Analysis) -> dict[str, tuple[Method, str]]:
    """Methods of ours that this model cannot follow, or that would cache nothing, with why."""
    found: dict[str, tuple[Method, str]] = {}
    for method in methods:
        if method.schedule is not None and analysis.refusal is not None:
            found[method.name] = method, analysis.refusal
            continue
        try:
            report = analysis.report(method)
        except (ScheduleError, UnsupportedGraphError) as error:
            found[method.name] = method, str(error)
        else:
            if report is not None and method.caches and not any(report.schedule_table):
                found[method.name] = method, CACHES_NONE.format(counted(method.steps, "step"))
    return found


def _made(
    specs: Sequence[MethodSpec], context: Context
) -> tuple[list[Method], dict[str, tuple[Method, str]]]:
    """The methods, and those that this model cannot do, with why."""
    methods: list[Method] = []
    impossible: dict[str, tuple[Method, str]] = {}
    for spec in specs:
        try:
            methods.append(method_of(spec, context))
        except BenchError:
            raise
        except DeltapassError as error:
            steps = spec.steps or context.steps
            name = name_of(spec, steps)
            stands = Method(
                name=name,
                label=spec.label or name,
                kind="cache",
                steps=steps,
                settings=dict(spec.settings),
                remark=spec.remark,
            )
            impossible[name] = stands, str(error)
    return methods, impossible


def _wanted(
    methods: Sequence[Method], impossible: Collection[str], rows: Collection[str]
) -> list[Method]:
    names = {method.name for method in methods} | set(impossible)
    for row in rows:
        if row not in names:
            raise BenchError(f"there is no row {row!r}", f"Rows are {', '.join(sorted(names))}")
    return [m for place, m in enumerate(methods) if not rows or place == 0 or m.name in rows]
