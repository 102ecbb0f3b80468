"""`deltapass.explain`: everything about a run, before it.

Traces a model without running it and reports blocks, bodies, spans, costs, schedule, expected
speed-up and buffer bytes, or why the model is left alone. Works on meta tensors: no weights.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from rich.console import Console, Group
from rich.table import Table as RichTable

from deltapass.backend import analyse, trace
from deltapass.compiler.plan import Plan, make_plan
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.errors import UnsupportedGraphError
from deltapass.graph.program import Macs, Program
from deltapass.options import DEFAULT_STEPS, parse_options
from deltapass.schedule.emissions import emissions
from deltapass.schedule.rules import Span, Table

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

    MACs are for the example batch; `plain_macs` and `trajectory_macs` for all `steps` steps, with
    nothing cached and under the schedule. `buffer_bytes` is the most one branch holds at a time.
    With a `refusal` nothing is cached and the costs are zero or those of the plain model.
    """

    steps: int
    blocks: str = ""
    bodies: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    variants: tuple[VariantCost, ...] = ()
    schedule_table: Table = ()
    plain_macs: Macs = NO_MACS
    trajectory_macs: Macs = NO_MACS
    buffer_bytes: int = 0
    refusal: str | None = None

    @property
    def expected_speedup(self) -> float:
        """Plain over cached trajectory, by MACs with attention counted; 1.0 after a refusal."""
        plain, ours = self.plain_macs.full, self.trajectory_macs.full
        return plain / ours if ours else 1.0

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
        console.print(self.__rich__())
        return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]

    def __rich__(self) -> Group:
        if self.refusal is not None:
            return Group(f"nothing cached, full graph: {self.refusal}")
        return Group(*self._head(), _variant_table(self.variants), *self._foot())

    def _head(self) -> list[str]:
        return [
            f"blocks    {self.blocks}",
            f"bodies    {len(self.bodies)} distinct: {', '.join(self.bodies)}",
            *(f"span      {span}" for span in self.spans),
            f"schedule  {_marks(self.schedule_table)}",
            f"          ({self.steps} steps; R: refresh; 7-27: blocks 7 to 27 skipped)",
        ]

    def _foot(self) -> list[str]:
        plain, ours = self.plain_macs, self.trajectory_macs
        return [
            f"trajectory  paper count {ours.paper / GIGA:.2f} of {plain.paper / GIGA:.2f} GMACs, "
            f"full count {ours.full / GIGA:.2f} of {plain.full / GIGA:.2f} GMACs",
            f"expected    {self.expected_speedup:.2f}x over the plain model, by full MACs",
            f"buffers     {self.buffer_bytes / MIB:.2f} MiB a branch ({self.buffer_bytes} bytes)",
        ]


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
        ScheduleError: If the schedule does not fit the model or the steps.
        UnsupportedGraphError: With strict=True, instead of a report with a refusal.
    """
    chosen = parse_options(options)
    steps = chosen.steps or DEFAULT_STEPS
    try:
        outlined = analyse(*trace(model, args, kwargs))
        plan = make_plan(outlined, chosen.schedule, order=chosen.order, steps=steps)
    except UnsupportedGraphError as error:
        if chosen.strict:
            raise
        return Report(steps=steps, refusal=str(error))
    return report_of(plan, steps)


def report_of(plan: Plan, steps: int) -> Report:
    """The report of a plan on trajectories of `steps` steps."""
    outlined = plan.outline
    table = tuple(
        plan.spans[span].span if span else None for span in plan.schedule.table(steps, plan.blocks)
    )
    variants = _variant_costs(plan, table)
    return Report(
        steps=steps,
        blocks=str(outlined.stack),
        bodies=tuple(f"{body.name} ({body.operations} operations)" for body in outlined.bodies),
        spans=tuple(_span_line(plan, wanted) for wanted in plan.spans),
        variants=variants,
        schedule_table=table,
        plain_macs=outlined.program.macs * steps,
        trajectory_macs=sum((cost.macs * cost.runs for cost in variants), Macs()),
        buffer_bytes=plan.buffer_bytes(table),
    )


def _variant_costs(plan: Plan, table: Table) -> tuple[VariantCost, ...]:
    costs = []
    emitted = emissions(table, plan.order)
    by_span = {p.span: p for p in plan.spans.values()}
    refreshes = [emitted[step] for step, span in enumerate(table) if span is None]
    for spans in sorted(set(refreshes), key=sorted):
        program = refresh_program(plan.outline.program, [by_span[s] for s in sorted(spans)])
        costs.append(_cost(program, refreshes.count(spans)))
    for span in sorted({span for span in table if span is not None}):
        program = cached_program(plan.outline.program, by_span[span], plan.order)
        costs.append(_cost(program, table.count(span)))
    return tuple(costs)


def _cost(program: Program, runs: int) -> VariantCost:
    blocks = sum(call.label == "block" for call in program.calls)
    return VariantCost(
        name=program.name,
        runs=runs,
        blocks=blocks,
        operations=program.operations,
        macs=program.macs,
    )


def _span_line(plan: Plan, wanted: Span) -> str:
    spanned = plan.spans[wanted]
    streams = ", ".join(f"{stream.live_out} {stream.spec}" for stream in spanned.streams)
    less = f" (wanted {wanted}: {spanned.reason})" if spanned.reason else ""
    return f"{spanned.span}{less}; streams: {streams}; {spanned.nbytes} bytes a delta"


def _marks(table: Table) -> str:
    """One sign a step: R, or where the skipped span starts and stops."""
    return " ".join("R" if span is None else f"{span.start}-{span.stop - 1}" for span in table)


def _variant_table(costs: tuple[VariantCost, ...]) -> RichTable:
    table = RichTable(box=None, pad_edge=False)
    table.add_column("variant")
    for title in ("runs", "blocks", "operations", "GMACs paper", "GMACs full"):
        table.add_column(title, justify="right")
    for cost in costs:
        table.add_row(
            cost.name,
            str(cost.runs),
            str(cost.blocks),
            str(cost.operations),
            f"{cost.macs.paper / GIGA:.3f}",
            f"{cost.macs.full / GIGA:.3f}",
        )
    return table
