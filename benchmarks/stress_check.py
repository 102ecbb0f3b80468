"""What the stress benchmark compares with, counts and weighs."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from stress_load import Outcome, Request, System, one_by_one

Results = Mapping[Request, torch.Tensor]


def alone(system: System, requests: Sequence[Request]) -> dict[Request, torch.Tensor]:
    """Every request run to its end by itself: in a fresh state, in a thread without a past.

    Raises:
        RuntimeError: If one of them fails even so.
    """
    results: dict[Request, torch.Tensor] = {}

    def run(request: Request) -> None:
        system.reset()
        (outcome,) = one_by_one(system, [request])
        if outcome.result is not None:
            results[request] = outcome.result

    for request in map(to_its_end, requests):
        thread = threading.Thread(target=run, args=(request,))
        thread.start()
        thread.join()
        if request not in results:
            raise RuntimeError(f"{request} fails even alone")
    system.reset()
    return results


def to_its_end(request: Request) -> Request:
    """The same request, not given up."""
    return replace(request, abort_at=None)


# ---- results ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """How the requests of one scenario ended.

    Attributes:
        requests: All of them.
        finished: Those with a result.
        aborted: Those given up, as they asked for.
        wrong: Results that differ in any bit from the same request alone.
        uncached: Those of the wrong ones that are what the request gives without any caching.
        max_error: The largest difference of any wrong one.
        errors: Type -> how many requests failed with it.
        messages: Type -> the first such error's text.
    """

    requests: int
    finished: int
    aborted: int
    wrong: int
    uncached: int
    max_error: float
    errors: dict[str, int]
    messages: dict[str, str]

    @property
    def right(self) -> int:
        """Requests that got what they should."""
        return self.finished - self.wrong

    @property
    def survived(self) -> bool:
        """Whether no request was harmed."""
        return self.right + self.aborted == self.requests


def count(outcomes: Sequence[Outcome], wanted: Results, uncached: Results) -> Counts:
    """Compare every result with that of the same request alone."""
    finished = [outcome for outcome in outcomes if outcome.result is not None]
    failed = [o.error for o in outcomes if o.error is not None and not o.aborted]
    errors = [difference(o.result, wanted[to_its_end(o.request)]) for o in finished]
    wrong = [error for error in errors if error is not None]
    full = [difference(o.result, uncached[to_its_end(o.request)]) is None for o in finished]
    return Counts(
        requests=len(outcomes),
        finished=len(finished),
        aborted=sum(outcome.aborted for outcome in outcomes),
        wrong=len(wrong),
        uncached=sum(e is not None and f for e, f in zip(errors, full, strict=True)),
        max_error=round(max(wrong, default=0.0), 6),
        errors=dict(Counter(type(error).__name__ for error in failed)),
        messages={type(error).__name__: str(error)[:300] for error in reversed(failed)},
    )


def difference(result: torch.Tensor | None, wanted: torch.Tensor) -> float | None:
    """The largest difference; None if every bit is the same."""
    if result is None or torch.equal(result, wanted):
        return None
    return (result - wanted).abs().max().item()


def approximation(results: Results, uncached: Results) -> dict[str, float]:
    """How far a method is from no caching: the scale by which to read errors."""
    errors = [difference(results[request], uncached[request]) for request in results]
    far = [error for error in errors if error is not None]
    return {"approximated": len(far), "approximation": round(max(far, default=0.0), 6)}


# ---- memory -----------------------------------------------------------------------------------


def tensor_bytes() -> int:
    """Bytes (not KiB) of the memory behind all live tensors that Python knows; shared ones once."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    held = [found for found in gc.get_objects() if type(found) in kinds]
    storages = [tensor.untyped_storage() for tensor in held if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident_bytes() -> int:
    """Bytes (not KiB) of this process in memory, freed pages given back first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
