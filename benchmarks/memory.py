"""(d) Peak memory of a trajectory against the plain model's, beside the predicted delta buffers.

On a CUDA device the allocator's own peak is read. On a CPU the profiler's record of every
allocation and release is summed up, so nothing but tensors counts, and weights, which both
share, count for neither.
"""

from __future__ import annotations

from typing import Any

import torch
from denoisers import DENOISERS, Denoiser
from measure import arguments, record, trajectory_timesteps
from torch.profiler import ProfilerActivity, profile

import deltapass

ALLOCATION = "[memory]"


def main() -> None:
    """Measure and print one record."""
    args = arguments(__doc__.split("\n")[0], order={"type": int, "default": 0})
    denoiser = DENOISERS[args.model](args.device, getattr(torch, args.dtype))
    options = {"order": args.order, "steps": args.steps}
    plain = torch.compile(denoiser.model, dynamic=False, fullgraph=True)
    ours = torch.compile(denoiser.model, backend="deltadit", dynamic=False, options=options)
    call_args, call_kwargs = denoiser.inputs(999.0)
    report = deltapass.explain(denoiser.model, *call_args, options=options, **call_kwargs)
    peaks = {}
    with torch.no_grad():
        for name, model in (("plain", plain), ("ours", ours)):
            follow(denoiser, model, args.steps)  # compile and warm up
            peaks[name] = peak_bytes(denoiser, model, args)
    above = peaks["ours"] - peaks["plain"]
    results = {
        "name": denoiser.name,
        "peak_bytes": peaks,
        "predicted_buffer_bytes": report.buffer_bytes,
        "above_plain_bytes": above,
        "above_plain_and_buffers/plain": round((above - report.buffer_bytes) / peaks["plain"], 4),
        "weights_bytes": sum(p.nbytes for p in denoiser.model.parameters()),
    }
    record(args, results)


def follow(denoiser: Denoiser, model: Any, steps: int) -> None:
    """One trajectory under a session."""
    with deltapass.session(steps=steps) as session:
        for step, timestep in enumerate(trajectory_timesteps(steps)):
            call_args, call_kwargs = denoiser.inputs(timestep)
            session.step(step)
            model(*call_args, **call_kwargs)


def peak_bytes(denoiser: Denoiser, model: Any, args: Any) -> int:
    """Most bytes allocated at a time during a trajectory, above what it started with."""
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        follow(denoiser, model, args.steps)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        follow(denoiser, model, args.steps)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == ALLOCATION]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


if __name__ == "__main__":
    main()
