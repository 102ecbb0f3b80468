"""Running a compiled model along a trajectory, and the same trajectory through the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from reference import Call, DeltaCacheReference

import deltapass
from deltapass.schedule.rules import Table
from deltapass.selector.pattern import GAPS

CHOOSING = {"schedule", "preset", "budget"}


def compiled(model: torch.nn.Module, **options: Any) -> Callable[..., Any]:
    """The model under backend="deltadit", as one graph.

    Eager lowering and the paper's schedule unless said otherwise: half of what is tested is which
    of two spans is read when, and the default schedule has one.
    """
    paper = {} if CHOOSING & options.keys() else {"schedule": "delta-dit"}
    chosen = {"lowering": "eager", **paper, **options}
    return torch.compile(model, backend="deltadit", fullgraph=True, options=chosen)


def sampled(calls: Sequence[Call]) -> list[Call]:
    """The same calls with samples as a sampler makes them: each moves little from the last one.

    Without a session a call is only taken for the next step if its sample follows from the last.
    """

    def sample(call: Call) -> torch.Tensor:
        args, kwargs = call
        given: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        return given

    def moved(call: Call) -> Call:
        args, kwargs = call
        near = sample(calls[0]) + 0.05 * sample(call)
        return ((near, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": near})

    return [calls[0], *map(moved, calls[1:])]


def by_timestep(table: Table) -> Table:
    """What is done of a table without a session: the first steps show whether it is a sampler."""
    return (*(None,) * GAPS, *table[GAPS:])


@torch.no_grad()
def follow(
    model: Callable[..., Any], calls: Sequence[Call], session: deltapass.Session | None = None
) -> list[Any]:
    """Outputs of a trajectory; steps are told to `session` where one is given."""
    outputs = []
    for step, (args, kwargs) in enumerate(calls):
        if session is not None:
            session.step(step)
        outputs.append(model(*args, **kwargs))
    return outputs


def in_session(
    model: Callable[..., Any], calls: Sequence[Call]
) -> tuple[list[Any], deltapass.SessionReport]:
    """Outputs and report of a trajectory in a session of its own."""
    with deltapass.session(steps=len(calls)) as session:
        outputs = follow(model, calls, session)
    return outputs, session.report()


def oracle(subject: Any, table: Table, calls: Sequence[Call], order: int | str = 0) -> list[Any]:
    """The trajectory by eager Delta-Cache. `subject` is a `Tiny` or a toy denoiser.

    `order` is a predictor or its old number.
    """
    model = getattr(subject, "model", subject)
    blocks = subject.blocks_in_order() if hasattr(subject, "blocks_in_order") else subject.blocks
    seams = getattr(subject, "seams", ())
    reference = DeltaCacheReference(model, blocks, subject.streams, order, seams, steps=len(table))
    return reference.run(table, calls)


def tensors(outputs: Sequence[Any]) -> list[torch.Tensor]:
    """The first tensor of each output, which models may or may not wrap in a tuple."""
    return [out if torch.is_tensor(out) else out[0] for out in outputs]
