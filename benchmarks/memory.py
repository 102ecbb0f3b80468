"""(d) Peak memory of a trajectory against the plain model's, beside the predicted delta buffers.

On a CUDA device the allocator's own peak is read. On a CPU the profiler's record of every
allocation and release is summed up, so nothing but tensors counts, and weights, which both
share, count for neither.
"""

from __future__ import annotations

from typing import Any

import torch
from denoisers import DENOISERS
from measure import arguments, follow, record, trajectory_timesteps
from models.streams import Call
from torch.profiler import ProfilerActivity, profile

import deltapass

ALLOCATION = "[memory]"


def main() -> None:
    """Measure and print one record."""
    args = arguments(__doc__, order={"type": int, "default": 0})
    denoiser = DENOISERS[args.model](args.device, getattr(torch, args.dtype))
    options = {"order": args.order, "steps": args.steps}
    plain = torch.compile(denoiser.model, dynamic=False, fullgraph=True)
    ours = torch.compile(denoiser.model, backend="deltadit", dynamic=False, options=options)
    call_args, call_kwargs = denoiser.inputs(999.0)
    report = deltapass.explain(denoiser.model, *call_args, options=options, **call_kwargs)
    calls = [denoiser.inputs(timestep) for timestep in trajectory_timesteps(args.steps)]
    peaks = {}
    for name, model in (("plain", plain), ("ours", ours)):
        follow(model, calls)  # compile and warm up
        peaks[name] = peak_bytes(model, calls, args.device)
    above = peaks["ours"] - peaks["plain"]
    results = {
        "name": denoiser.name,
        "peak_bytes": peaks,
        "predicted_buffer_bytes": report.buffer_bytes,
        "above_plain_bytes": above,
        "above_plain_and_buffers/plain": round((above - report.buffer_bytes) / peaks["plain"], 4),
        "weights_bytes": sum(p.nbytes for p in denoiser.model.parameters()),
    }
    record(args, results, unit="bytes")


def peak_bytes(model: Any, calls: list[Call], device: str) -> int:
    """Most bytes allocated at a time during a trajectory, above what it started with."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        follow(model, calls)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        follow(model, calls)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == ALLOCATION]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


if __name__ == "__main__":
    main()
