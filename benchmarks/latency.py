"""Step and trajectory times against plain torch.compile.

Both run in one process on the same weights, step by step in turn. Ratios are medians over steps of
one kind; the trajectory's is over sums. Before any timing the outputs of refresh steps are checked
against the plain model. What is added to a call alone is measured by test_hot_path.py.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from denoisers import DENOISERS, Denoiser
from measure import arguments, in_turn, median, record, trajectory_timesteps

import deltapass

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
    ideal = round(report.expected_speedup, 4)
    record(args, {"name": denoiser.name, "ideal": ideal, **summary(times)})


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


if __name__ == "__main__":
    main()
