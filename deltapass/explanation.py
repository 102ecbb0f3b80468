"""`deltapass.explain`: everything about a run, before it.

Traces a model without running it and reports blocks, bodies, spans, costs, schedule, expected
speed-up and buffer bytes, or why the model is left alone. Works on meta tensors: no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from rich.console import Group
from rich.table import Column
from rich.table import Table as RichTable

from deltapass.backend import analyse, failures_refused
from deltapass.compiler.conditioning import roles_shown
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import Plan
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.compiler.settle import plan_for
from deltapass.compiler.tracing import trace
from deltapass.errors import UnsupportedGraphError, counted
from deltapass.graph.program import Macs, Program
from deltapass.options import Options, parse_options
from deltapass.schedule.budget import Budget
from deltapass.schedule.emissions import emissions
from deltapass.schedule.files import row_text, table_text
from deltapass.schedule.rules import Span, Table
from deltapass.sessions.report import plain_text

GIGA: Final = 1e9
MIB: Final = 2**20
WIDTH: Final = 96
NO_MACS: Final = Macs()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class VariantCost:
    """One variant: how often it runs on a trajectory and what one run costs."""

    name: str
    runs: int
    blocks: int
    operations: int
    macs: Macs


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the pass makes of a model.

    `inputs` has a line for each role: the inputs that have it, and how that was found. `nested` has
    one for each block of a U-shaped model: what skipping it and all inside it saves.
    MACs are for the example batch; `plain_macs` and `trajectory_macs` for all `steps` steps, with
    nothing cached and under the schedule, which `schedule` shows in one line, whose words `legend`
    explains. `buffer_bytes` is the most one branch holds at a time. `budget` is the share of the
    plain MACs that was wanted, if one was. With a `refusal` nothing is cached and the costs are
    zero or those of the plain model.
    """

    steps: int
    inputs: tuple[str, ...] = ()
    blocks: str = ""
    nested: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    variants: tuple[VariantCost, ...] = ()
    schedule_table: Table = ()
    schedule: str = ""
    legend: tuple[str, ...] = ()
    plain_macs: Macs = NO_MACS
    trajectory_macs: Macs = NO_MACS
    buffer_bytes: int = 0
    budget: float | None = None
    refusal: str | None = None

    @property
    def share(self) -> float:
        """Cached over plain trajectory, by MACs with attention counted; 1.0 after a refusal."""
        plain, ours = self.plain_macs.full, self.trajectory_macs.full
        return ours / plain if ours else 1.0

    @property
    def expected_speedup(self) -> float:
        """Plain over cached trajectory: the inverse of `share`."""
        plain, ours = self.plain_macs.full, self.trajectory_macs.full
        return plain / ours if ours else 1.0

    def __str__(self) -> str:
        return plain_text(self.__rich__(), WIDTH)

    def __rich__(self) -> Group:
        if self.refusal is not None:
            return Group(f"nothing cached, full graph: {self.refusal}")
        return Group(*self._head(), _variant_table(self.variants), *self._foot())

    def _head(self) -> Iterator[str]:
        yield from (f"input     {line}" for line in self.inputs)
        yield f"blocks    {self.blocks}"
        yield from (f"inside    {line}" for line in self.nested)
        yield f"bodies    {len(self.bodies)} distinct: {', '.join(self.bodies)}"
        yield from (f"span      {span}" for span in self.spans)
        yield f"schedule  {self.schedule}"
        yield f"          ({'; '.join((counted(self.steps, 'step'), *self.legend))})"

    def _foot(self) -> Iterator[str]:
        plain, ours = self.plain_macs, self.trajectory_macs
        yield (
            f"trajectory  paper count {ours.paper / GIGA:.2f} of {plain.paper / GIGA:.2f} GMACs, "
            f"full count {ours.full / GIGA:.2f} of {plain.full / GIGA:.2f} GMACs"
        )
        if self.budget is not None:
            reached = f"{self.share:.4f} in {counted(self.steps, 'step')}"
            yield f"budget      {self.budget:g} of the plain full MACs wanted, {reached} reached"
        yield f"expected    {self.expected_speedup:.2f}x over the plain model, by full MACs"
        yield f"buffers     {self.buffer_bytes / MIB:.2f} MiB a branch ({self.buffer_bytes} bytes)"


def explain(
    model: Callable[..., Any],
    *args: Any,
    options: Mapping[str, object] | None = None,
    **kwargs: Any,
) -> Report:
    """Say what the backend would do with a model, without running or lowering it.

    Args:
        model: The denoiser, on any device; on "meta" it needs no memory.
        *args: Positional inputs of one call.
        options: As for torch.compile(backend="deltadit").
        **kwargs: Keyword inputs of one call.

    Returns:
        The report; `str(report)` reads well in a terminal.

    Raises:
        UnknownOptionError, OptionError, ContradictoryOptionsError: For options unfit for use.
        ScheduleError: If the schedule does not fit the model or the steps, or its budget cannot
            be met.
        UnsupportedGraphError: With strict=True, instead of a report with a refusal.
    """
    return explain_each(model, args, kwargs, (options,))[0]


def explain_each(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Sequence[Mapping[str, object] | None],
) -> tuple[Report, ...]:
    """`explain` for several options that state the same `inputs`, with one trace for all.

    Raises:
        As `explain`.
    """
    chosen = [parse_options(each) for each in options]
    try:
        with failures_refused():
            outline = analyse(*trace(model, args, dict(kwargs)), chosen[0].inputs)
    except UnsupportedGraphError as error:
        return tuple(_refused(error, each) for each in chosen)
    return tuple(_explained(outline, each) for each in chosen)


def _explained(outline: Outline, chosen: Options) -> Report:
    try:
        with failures_refused():
            plan = plan_for(outline, chosen)
    except UnsupportedGraphError as error:
        return _refused(error, chosen)
    budget = chosen.schedule.share if isinstance(chosen.schedule, Budget) else None
    return report_of(plan, chosen.planned_steps, budget)


def _refused(error: UnsupportedGraphError, chosen: Options) -> Report:
    """Raise the refusal where the user wants that, else report it."""
    if chosen.strict:
        raise error
    return Report(steps=chosen.planned_steps, refusal=str(error))


def report_of(plan: Plan, steps: int, budget: float | None = None) -> Report:
    """The report of a plan on trajectories of `steps` steps, made to cost no more than `budget`."""
    outlined = plan.outline
    table = plan.realised(plan.schedule.table(steps, plan.blocks))
    variants = tuple(_variant_costs(plan, table))
    return Report(
        steps=steps,
        inputs=roles_shown(outlined),
        blocks=str(outlined.stack),
        nested=tuple(_nested_lines(outlined)),
        bodies=tuple(
            f"{body.name} ({counted(body.operations, 'operation')})" for body in outlined.bodies
        ),
        spans=(
            *(_span_line(plan, wanted) for wanted in plan.spans),
            *(f"{wanted} not cached: {error}" for wanted, error in plan.dropped.items()),
        ),
        variants=variants,
        schedule_table=table,
        schedule=table_text(table, plan.blocks),
        legend=tuple(_legend(table, plan.blocks)),
        plain_macs=outlined.program.macs * steps,
        trajectory_macs=sum((cost.macs * cost.runs for cost in variants), NO_MACS),
        buffer_bytes=plan.buffer_bytes(table),
        budget=budget,
    )


def _nested_lines(outlined: Outline) -> Iterator[str]:
    """For each nested block the share of the model's MACs within it, and its ends."""
    blocks, specs = len(outlined.stack), outlined.program.specs
    for at, ends in enumerate(outlined.stack.ends):
        span = Span(at, blocks)
        entered, left = specs[ends.live_in], specs[ends.live_out]
        shapes = str(left) if entered.shape == left.shape else f"{entered} to {left}, no delta"
        yield f"{span}: {outlined.share(span):.1%} of the full MACs, {shapes}"


def _variant_costs(plan: Plan, table: Table) -> Iterator[VariantCost]:
    whole = plan.outline.program_for
    by_span = {spanned.span: spanned for spanned in plan.spans.values()}
    steps = zip(table, emissions(table, plan.schedule.depths(table)), strict=True)
    refreshes = [emitted for span, emitted in steps if span is None]
    for spans in sorted(set(refreshes), key=sorted):
        variant = refresh_program(whole(spans), [by_span[span] for span in sorted(spans)])
        yield _cost(variant, refreshes.count(spans))
    for span in sorted({span for span in table if span is not None}):
        variant = cached_program(whole([span]), by_span[span], plan.schedule.taken)
        yield _cost(variant, table.count(span))


def _cost(program: Program, runs: int) -> VariantCost:
    return VariantCost(
        name=program.name,
        runs=runs,
        blocks=sum(call.label == "block" for call in program.calls),
        operations=program.operations,
        macs=program.macs,
    )


def _legend(table: Table, blocks: int) -> Iterator[str]:
    """What the words of a table's line mean, each that stands there."""
    yield "R: refresh"
    for span in sorted({row for row in table if row is not None}):
        done = "skipped"
        if span.is_cross_attention:
            done = "reused, the blocks run on without it"
        elif span.is_feature and span.start:
            done = "skipped and what only serves them"
        yield f"{row_text(span, blocks)}: {span} {done}"


def _span_line(plan: Plan, wanted: Span) -> str:
    spanned = plan.spans[wanted]
    streams = ", ".join(f"{stream.live_out} {stream.spec}" for stream in spanned.streams)
    less = f" (wanted {wanted}: {spanned.reason})" if spanned.reason else ""
    kept = "" if spanned.span.is_cross_attention else f" a {spanned.span.keeps}"
    return f"{spanned.span}{less}; streams: {streams}; {spanned.nbytes} bytes{kept}"


def _variant_table(costs: tuple[VariantCost, ...]) -> RichTable:
    numbers = ("runs", "blocks", "operations", "GMACs paper", "GMACs full")
    columns = (Column(title, justify="right") for title in numbers)
    table = RichTable("variant", *columns, box=None, pad_edge=False)
    for cost in costs:
        counts = (cost.runs, cost.blocks, cost.operations)
        gmacs = (f"{macs / GIGA:.3f}" for macs in (cost.macs.paper, cost.macs.full))
        table.add_row(cost.name, *map(str, counts), *gmacs)
    return table
