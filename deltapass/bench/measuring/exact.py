"""What is exact, or nearly: counts, MACs, memory, compiling, and the error of every step."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, final

import msgspec
import torch
from torch import nn

from deltapass.bench.analysis import Analysis
from deltapass.bench.measuring.clocks import timed
from deltapass.bench.measuring.compiles import counting
from deltapass.bench.methods.method import Method
from deltapass.bench.sampling import EAGER, Sampler
from deltapass.graph.program import Macs
from deltapass.pipelines.attach import last_report

CACHE_PLACE: Final = "TORCHINDUCTOR_CACHE_DIR"
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK: Final = "5"
LOOKED_AT: Final = 8  # images whose steps are compared with the plain model's


@final
class Steps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a method did on the trajectories of some images.

    Attributes:
        calls: Of the denoiser.
        blocks_run: Of the stack, by all these calls; None where that is not known.
        errors: Of every step, see `Row.step_errors`; None where there is nothing to compare with.
        macs: (paper, full) of an image; None where nobody counted them.
    """

    calls: int
    blocks_run: int | None = None
    errors: tuple[float, ...] | None = None
    macs: tuple[float, float] | None = None


@final
class Compiled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What compiling a method took and made; of methods that share a compile, once."""

    seconds: float
    graphs: int
    breaks: int
    recompiles: int


# ---- steps ---------------------------------------------------------------------------------------


@torch.no_grad()
def look_at(sampler: Sampler, method: Method, analysis: Analysis, seeds: Sequence[int]) -> Steps:
    """Draw some images by a method, and compare every result of its denoiser with the plain one.

    Args:
        sampler: What draws.
        method: How.
        analysis: Of the model.
        seeds: One an image.
    """
    watch, reports, batch = _Watch(sampler, method), [], sampler.subject.batch
    with sampler.using(method) as pipeline, watch.watching(pipeline):
        for first in range(0, len(seeds), batch):
            watch.begin()
            sampler.call(pipeline, method, seeds[first : first + batch])
            if method.schedule is not None and (report := last_report(pipeline)):
                reports.append(report)
    entries = [entry for report in reports for entry in report.entries]
    spans = (entry.realised for entry in entries if entry.realised)
    skipped = sum(len(span) for span in spans if not span.is_cross_attention)
    blocks = analysis.blocks if method.rival is None else None
    counted = sum((entry.macs for entry in entries), Macs())
    return Steps(
        calls=watch.calls,
        blocks_run=None if blocks is None else watch.calls * blocks - skipped,
        errors=watch.errors(method.steps),
        macs=_macs(counted, watch.calls / watch.parts, analysis, method, len(seeds)),
    )


def _macs(
    counted: Macs, calls: float, analysis: Analysis, method: Method, images: int
) -> tuple[float, float] | None:
    """Of one image: as the report counted them, or as so many full calls, which each image sees."""
    if method.rival is not None:
        return None  # nobody counts what it skips
    if counted.full:
        return counted.paper / images, counted.full / images
    one = analysis.call_macs
    if one is None:
        return None
    return one.paper * calls, one.full * calls


@final
class _Watch:
    """Compares every result of the denoisers with that of the plain ones."""

    def __init__(self, sampler: Sampler, method: Method) -> None:
        self._plain = sampler.plain_models(method) if method.rival is None else {}
        self._skip = method.schedule is None
        self._found: list[list[float]] = []  # of every call, by the part of the images
        self.calls = 0

    @property
    def parts(self) -> int:
        """How many batches of images there were."""
        return len(self._found)

    def begin(self) -> None:
        """Other images."""
        self._found.append([])

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        with ExitStack() as after:
            for name in self._plain:
                hook = self._hook(self._plain[name])
                handle = getattr(pipeline, name).register_forward_hook(hook, with_kwargs=True)
                after.callback(handle.remove)
            yield

    def _hook(self, plain: nn.Module) -> Any:
        def compare(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.calls += 1
            if self._skip:
                return
            wanted = _tensor(plain(*args, **kwargs))
            given = _tensor(output)
            largest = wanted.abs().flatten(1).amax(1).clamp_min(1e-12)
            error = (given - wanted).abs().flatten(1).mean(1)
            self._found[-1].append(float((error / largest).mean()))

        return compare

    def errors(self, steps: int) -> tuple[float, ...] | None:
        """A step each: the mean over the calls of that step, in order."""
        if not self._plain:
            return None
        if self._skip:
            return (0.0,) * steps
        places: dict[int, list[float]] = defaultdict(list)
        for found in self._found:
            if not found or len(found) % steps:
                return None  # a solver that calls it more often at some steps
            for place, error in enumerate(found):
                places[place * steps // len(found)].append(error)
        return tuple(sum(each) / len(each) for _, each in sorted(places.items()))


def _tensor(output: Any) -> torch.Tensor:
    found = output[0] if isinstance(output, tuple | list) else getattr(output, "sample", output)
    assert torch.is_tensor(found)  # noqa: S101 - what denoisers give
    return found.float()


# ---- compiling -----------------------------------------------------------------------------------


@contextmanager
def own_compile_cache() -> Iterator[None]:
    """Within, Inductor's cache on disk is a new one: what is compiled first is compiled cold."""
    before = os.environ.get(CACHE_PLACE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        os.environ[CACHE_PLACE] = place
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE_PLACE]
            else:
                os.environ[CACHE_PLACE] = before


def compiled(sampler: Sampler, method: Method, seeds: Sequence[int]) -> Compiled | None:
    """Seconds of the first batch less those of a second, and what was compiled in between.

    Whatever was compiled before is forgotten. None for the model itself, which is not compiled.
    """
    if method.schedule is None and sampler.group(method)[1] == EAGER and method.rival is None:
        return None
    device = sampler.subject.device
    sampler.close()
    with counting() as found:
        first = timed(lambda _: sampler.draw(method, seeds), device).end_to_end
        second = timed(lambda _: sampler.draw(method, seeds), device).end_to_end
    return Compiled(
        seconds=max(0.0, first - second),
        graphs=found.graphs,
        breaks=found.breaks,
        recompiles=found.recompiles,
    )


# ---- memory --------------------------------------------------------------------------------------


def peak_bytes(sampler: Sampler, method: Method, seeds: Sequence[int]) -> int | None:
    """Highest memory while a batch is drawn: of the device, or else of the whole process.

    None where the system does not tell that of the process.
    """
    device = sampler.subject.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        sampler.draw(method, seeds)
        return torch.cuda.max_memory_allocated(device)
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return None
    sampler.draw(method, seeds)
    lines = STATUS.read_text().splitlines()
    line = next((line for line in lines if line.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) * 1024
