"""(a) Step and trajectory times against plain torch.compile; (c) what the selector adds.

Both run in one process on the same weights, step by step in turn: at every step the plain model,
then ours. Ratios are medians over steps of one kind; the trajectory's is over sums. Before any
timing the outputs of refresh steps are checked against the plain model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from denoisers import DENOISERS, Denoiser
from measure import arguments, in_turn, median, record, seconds, trajectory_timesteps

import deltapass
from deltapass.backend import compile_graph
from deltapass.compiler.lowering import load_lowering
from deltapass.compiler.tracing import trace
from deltapass.graph.program import Macs
from deltapass.options import parse_options

EAGER = load_lowering("eager")
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}


def main() -> None:
    """Measure and print one record."""
    args = arguments(
        __doc__,
        rounds={"type": int, "default": 2},
        order={"type": int, "default": 0},
        fuse={"default": "blocks"},
    )
    dtype = getattr(torch, args.dtype)
    denoiser = DENOISERS[args.model](args.device, dtype)
    mode = {"mode": args.mode} if args.mode else {}
    if mode and (args.order, args.fuse) != (0, "blocks"):
        raise SystemExit(
            "torch.compile takes a mode or options, not both: leave out --order, --fuse"
        )
    plain = torch.compile(denoiser.model, dynamic=False, fullgraph=True, **mode)
    ours = torch.compile(
        denoiser.model, backend="deltadit", dynamic=False, fullgraph=True,
        **(mode or {"options": {"order": args.order, "fuse": args.fuse, "steps": args.steps}}),
    )  # fmt: skip
    call_args, call_kwargs = denoiser.inputs(1.0)
    report = deltapass.explain(
        denoiser.model, *call_args, options={"steps": args.steps}, **call_kwargs
    )
    with torch.no_grad():
        check(denoiser, plain, ours, TOLERANCE[dtype])
        times = [trajectory(denoiser, plain, ours, args) for _ in range(args.rounds)]
        overhead = selector_overhead(denoiser, args.steps)
    record(args, {"name": denoiser.name, "ideal": round(report.expected_speedup, 4),
                  **summary(times), "selector_us": overhead})  # fmt: skip


def check(denoiser: Denoiser, plain: Any, ours: Any, tolerance: float) -> None:
    """A refresh step must equal the plain model before anything is timed."""
    args, kwargs = denoiser.inputs(999.0)
    with deltapass.session(steps=2) as session:
        session.step(0)
        result = ours(*args, **kwargs)[0].float()
    wanted = plain(*args, **kwargs)[0].float()
    error = ((result - wanted).abs().max() / wanted.abs().max()).item()
    if not error <= tolerance:
        raise SystemExit(f"refresh differs from the plain model by {error:.2e}, not timed")
    print(f"refresh against plain: relative error {error:.1e}")


def trajectory(
    denoiser: Denoiser, plain: Any, ours: Any, args: Any
) -> list[tuple[str, float, float]]:
    """(kind of step, plain seconds, our seconds) for every step, the two in turn."""
    steps = []
    with deltapass.session(steps=args.steps) as session:
        for index, timestep in enumerate(trajectory_timesteps(args.steps)):
            call_args, call_kwargs = denoiser.inputs(timestep)
            session.step(index)
            pair = [functools.partial(run, *call_args, **call_kwargs) for run in (plain, ours)]
            taken = in_turn(pair, index, args.device)
            steps.append((kind_of(session), taken[0], taken[1]))
    return steps


def kind_of(session: deltapass.Session) -> str:
    """What the last call of a session did."""
    span = session.report().entries[-1].realised
    if span is None:
        return "refresh"
    return "cached-shallow" if span.start == 0 else "cached-deep"


def summary(rounds: list[list[tuple[str, float, float]]]) -> dict[str, Any]:
    """Ratios ours / plain by kind of step, and of whole trajectories."""
    steps = [step for steps in rounds for step in steps]
    result: dict[str, Any] = {"plain_step_s": median((s[1] for s in steps), 5)}
    for kind in ("refresh", "cached-deep", "cached-shallow"):
        ratios = [ours / plain for name, plain, ours in steps if name == kind]
        if ratios:
            result[f"{kind}/plain"] = median(ratios)
    speedups = [sum(s[1] for s in one) / sum(s[2] for s in one) for one in rounds]
    result["trajectory_speedup"] = median(speedups)
    result["trajectory_speedups"] = [round(speedup, 4) for speedup in speedups]
    return result


def selector_overhead(denoiser: Denoiser, steps: int) -> dict[str, float]:
    """(c) Microseconds a call that the selector adds, with a session and without.

    Every variant is replaced by one that does nothing, so that only finding the step, checking
    the deltas and picking the variant remain. The timestep lies on the benchmark's own device.
    """
    graph, inputs = trace(denoiser.model, *denoiser.inputs(999.0))
    selector = compile_graph(graph, inputs, parse_options({"lowering": "eager"}), EAGER)
    selector.variants.refresh = _no_refresh  # type: ignore[method-assign]
    selector.variants.cached = _no_cached  # type: ignore[method-assign]
    with deltapass.session(steps=steps) as session:

        def with_session(call: int) -> None:
            session.step(call % steps)
            selector(*inputs)

        explicit = per_call(with_session)
    reader = selector.moments.reader
    if reader is None:
        return {"session": explicit}
    times = [torch.full_like(inputs[reader.timestep], t) for t in trajectory_timesteps(steps)]
    before, after = inputs[: reader.timestep], inputs[reader.timestep + 1 :]
    implicit = per_call(lambda call: selector(*before, times[call % steps], *after))
    return {"session": explicit, "timestep input": implicit}


class _Nothing:
    """A variant that does nothing but give its deltas."""

    macs = Macs()

    def __init__(self, deltas: int) -> None:
        self.deltas = deltas

    def __call__(self, _: Any) -> tuple[tuple[()], tuple[torch.Tensor, ...]]:
        return (), tuple(torch.empty(0) for _ in range(self.deltas))


def _no_refresh(spans: Any) -> Any:
    return _Nothing(len(spans))


def _no_cached(_: Any) -> Any:
    return _Nothing(0)


def per_call(call: Callable[[int], Any], times: int = 1000) -> float:
    """Median microseconds of a call after warm-up."""
    for index in range(100):
        call(index)
    taken = [seconds(functools.partial(call, 100 + index)) for index in range(times)]
    return round(median(taken, 9) * 1e6, 1)


if __name__ == "__main__":
    main()
