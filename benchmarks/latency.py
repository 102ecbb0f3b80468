"""(a) Step and trajectory times against plain torch.compile; (c) what the selector adds.

Both run in one process on the same weights, step by step in turn: at every step the plain model,
then ours. Ratios are medians over steps of one kind; the trajectory's is over sums. Before any
timing the outputs of refresh steps are checked against the plain model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from denoisers import DENOISERS, Denoiser
from measure import arguments, record, seconds, trajectory_timesteps

import deltapass
from deltapass.runtime import Selector

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}


def main() -> None:
    """Measure and print one record."""
    args = arguments(
        __doc__.split("\n")[0],
        rounds={"type": int, "default": 2},
        order={"type": int, "default": 0},
        fuse={"default": "blocks"},
    )
    dtype = getattr(torch, args.dtype)
    denoiser = DENOISERS[args.model](args.device, dtype)
    mode = {"mode": args.mode} if args.mode else {}
    plain = torch.compile(denoiser.model, dynamic=False, fullgraph=True, **mode)
    ours = torch.compile(
        denoiser.model, backend="deltadit", dynamic=False, fullgraph=True,
        **(mode or {"options": {"order": args.order, "fuse": args.fuse}}),
    )  # fmt: skip
    call_args, call_kwargs = denoiser.inputs(1.0)
    report = deltapass.explain(denoiser.model, *call_args, options={"steps": args.steps}, **call_kwargs)
    with torch.no_grad():
        check(denoiser, plain, ours, TOLERANCE[dtype])
        times = [trajectory(denoiser, plain, ours, args) for _ in range(args.rounds)]
        overhead = selector_overhead(denoiser, args)
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


def trajectory(denoiser: Denoiser, plain: Any, ours: Any, args: Any) -> list[tuple[str, float, float]]:
    """(kind of step, plain seconds, our seconds) for every step, the two in turn."""
    steps = []
    with deltapass.session(steps=args.steps) as session:
        for index, timestep in enumerate(trajectory_timesteps(args.steps)):
            call_args, call_kwargs = denoiser.inputs(timestep)
            session.step(index)
            pair = [lambda: plain(*call_args, **call_kwargs), lambda: ours(*call_args, **call_kwargs)]
            first = index % 2  # take turns in going first
            taken = {which: seconds(pair[which], args.device) for which in (first, 1 - first)}
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
    result: dict[str, Any] = {"plain_step_s": round(statistics.median(s[1] for s in steps), 5)}
    for kind in ("refresh", "cached-deep", "cached-shallow"):
        ratios = [ours / plain for name, plain, ours in steps if name == kind]
        if ratios:
            result[f"{kind}/plain"] = round(statistics.median(ratios), 4)
    speedups = [sum(s[1] for s in one) / sum(s[2] for s in one) for one in rounds]
    result["trajectory_speedup"] = round(statistics.median(speedups), 4)
    result["trajectory_speedups"] = [round(speedup, 4) for speedup in speedups]
    return result


def selector_overhead(denoiser: Denoiser, args: Any) -> dict[str, float]:
    """(c) Microseconds a call that the selector adds, with a session and without.

    The variants are replaced by one that does nothing, so that only finding the step, checking
    the deltas and picking the variant remain; the timestep is on the benchmark's own device.
    """
    kept: list[Selector] = []

    def keep(gm: Any, inputs: Any) -> Any:
        from deltapass.compiler import compile_graph
        from deltapass.lowering import load_lowering
        from deltapass.options import parse_options

        kept.append(compile_graph(gm, inputs, parse_options({"lowering": "eager"}), load_lowering("eager")))
        kept_inputs.extend(inputs)
        return gm.forward

    kept_inputs: list[Any] = []
    torch._dynamo.reset()
    call_args, call_kwargs = denoiser.inputs(999.0)
    torch.compile(denoiser.model, backend=keep, dynamic=False)(*call_args, **call_kwargs)
    (selector,) = kept
    make_empty(selector)
    with deltapass.session(steps=10**6) as session:
        explicit = per_call(lambda i: (session.step(i), selector(*kept_inputs)))
    where = selector.moments.reader.timestep if selector.moments.reader else 0
    moments = [torch.full_like(kept_inputs[where], 999.0 - i / 100) for i in range(2200)]
    implicit = per_call(lambda i: selector(*kept_inputs[:where], moments[i], *kept_inputs[where + 1 :]))
    return {"session": explicit, "timestep input": implicit}


def make_empty(selector: Selector) -> None:
    """Let every variant do nothing."""

    def nothing(arguments: Any) -> Any:
        return (), tuple(torch.empty(0) for _ in range(1))

    selector.variants.refresh = lambda spans: lambda a: ((), tuple(torch.empty(0) for _ in spans))  # type: ignore[method-assign]
    selector.variants.cached = lambda span: nothing  # type: ignore[method-assign]


def per_call(call: Callable[[int], Any], times: int = 1000) -> float:
    """Median microseconds of a call after warm-up."""
    for index in range(100):
        call(index)
    taken = [seconds(lambda at=index: call(100 + at), "cpu") for index in range(times)]
    return round(statistics.median(taken) * 1e6, 1)


if __name__ == "__main__":
    main()
