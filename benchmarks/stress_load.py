"""The load of the stress benchmark: requests, the model they ask for, and ways to serve them.

A request is one trajectory of a tiny FLUX. `trajectory` runs it as a generator that gives way after
every call of the model, and the scenarios below differ only in who goes on with it, and when.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from models.calls import flux_places
from models.diffusion import build
from models.seeds import noise
from models.tiny import TEXT, WIDTH

CHANNELS = 16
SIZES = ((4, 4), (4, 6), (8, 8))  # rows and columns of image tokens
PROMPT, NEGATIVE = 1_000_000, 2_000_000  # seeds of the texts, apart from those of the latents
CLOSE_CALLS = 1e-4  # seconds between switches of threads, far below the default of 5e-3

Inputs = dict[str, Any]
Run = Generator[float, None, torch.Tensor]


# ---- requests ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One trajectory: `abort_at` is the step in the middle of which the client goes away.

    With `guidance` the model is called twice a step, for the branches "cond" and "uncond".
    `sleeps` are seconds, one pause a step, taken after its first call.
    """

    seed: int
    steps: int
    size: tuple[int, int]
    guidance: float | None
    abort_at: int | None
    sleeps: tuple[float, ...]

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the calls of one step."""
        return ("cond",) if self.guidance is None else ("cond", "uncond")


def make_requests(seed: int, count: int, *, aborts: float = 0.25) -> list[Request]:
    """Seeded requests of mixed steps, sizes and guidance; `aborts` is the share given up.

    Another share gives the same requests otherwise.
    """
    draw = random.Random(seed)
    requests = []
    for at in range(count):
        steps = draw.randint(4, 12)
        middle, given_up = draw.randrange(steps), draw.random() < aborts
        requests.append(
            Request(
                seed=1000 * seed + at,
                steps=steps,
                size=draw.choice(SIZES),
                guidance=draw.choice((None, 3.0)),
                abort_at=middle if given_up else None,
                sleeps=tuple(draw.choice((0.0, 0.0, 5e-4, 2e-3)) for _ in range(steps)),
            )
        )
    return requests


# ---- the model --------------------------------------------------------------------------------


def build_model() -> torch.nn.Module:
    """Two double and three single blocks of width 32, seeded; every call gives the same weights."""
    model: torch.nn.Module = build("flux").eval().requires_grad_(False)
    for parameter in model.parameters():  # so that every block matters, and steps still resemble
        parameter.mul_(1.3 if parameter.ndim > 1 else 1.0)
    return model


def fixed_inputs(request: Request) -> dict[str, Inputs]:
    """What stays the same along a trajectory, by branch: the same tensors at every step."""
    common = {
        **flux_places(*request.size, TEXT),
        "guidance": torch.full((1,), 3.5),
        "return_dict": False,
    }
    texts = {"cond": PROMPT + request.seed, "uncond": NEGATIVE}
    return {
        branch: {
            **common,
            "encoder_hidden_states": noise(texts[branch], 1, TEXT, WIDTH),
            "pooled_projections": noise(texts[branch] + 1, 1, WIDTH),
        }
        for branch in request.branches
    }


# ---- one trajectory ---------------------------------------------------------------------------


class System(Protocol):
    """A way to cache, as a server would use it; one model for all requests."""

    def open(self, request: Request) -> Any:
        """Whatever the calls of this request need; called before the first of them."""

    def call(self, handle: Any, step: int, branch: str, inputs: Inputs) -> torch.Tensor:
        """One call of the model."""

    def close(self, handle: Any, *, finished: bool) -> None:
        """The request is over; not `finished` if it was given up or has failed."""

    def reset(self) -> None:
        """Forget everything, as after a restart; no request is open."""


class AbortedError(Exception):
    """The client of a request has gone away."""


def trajectory(system: System, request: Request) -> Run:
    """Run a request; yields the seconds to pause after every call, and returns the latents.

    Raises:
        AbortedError: In the middle of the step at which the request is given up.
    """
    handle, finished = system.open(request), False
    try:
        fixed = fixed_inputs(request)
        latents = noise(request.seed, 1, request.size[0] * request.size[1], CHANNELS)
        for step in range(request.steps):
            level = torch.full((1,), 1 - step / request.steps)
            given = {"hidden_states": latents, "timestep": level}
            predicted = []
            for branch in request.branches:
                inputs = {**fixed[branch], **given}
                predicted.append(system.call(handle, step, branch, inputs))
                if step == request.abort_at:
                    raise AbortedError
                yield request.sleeps[step] if branch == "cond" else 0.0
            latents = latents - _guided(predicted, request.guidance) / request.steps
        finished = True
        return latents
    finally:
        system.close(handle, finished=finished)


def _guided(predicted: Sequence[torch.Tensor], guidance: float | None) -> torch.Tensor:
    if guidance is None:
        return predicted[0]
    cond, uncond = predicted
    return uncond + guidance * (cond - uncond)


@dataclass
class Outcome:
    """How a request ended: with a result, given up, or with an error."""

    request: Request
    result: torch.Tensor | None = None
    error: BaseException | None = None

    @property
    def aborted(self) -> bool:
        """Whether it was given up, as it asked for."""
        return isinstance(self.error, AbortedError)


def _advance(run: Run, outcome: Outcome) -> float | None:
    """Go on up to the next pause; None once the request is over."""
    try:
        return next(run)
    except StopIteration as done:
        outcome.result = done.value
    except Exception as error:  # noqa: BLE001  counted, whatever it is: that is the experiment
        outcome.error = error.with_traceback(None)  # frames would keep tensors alive
    return None


# ---- ways to serve ----------------------------------------------------------------------------


def one_by_one(system: System, requests: Sequence[Request], _: int = 1) -> list[Outcome]:
    """One request after the other, without pauses."""
    return interleaved(system, requests, 1)


def threads(system: System, requests: Sequence[Request], workers: int) -> list[Outcome]:
    """Every thread serves its share, one after the other; all start together."""
    outcomes = [Outcome(request) for request in requests]
    barrier = threading.Barrier(workers)

    def serve(share: Sequence[Outcome]) -> None:
        barrier.wait()
        for outcome in share:
            run = trajectory(system, outcome.request)
            while (pause := _advance(run, outcome)) is not None:
                time.sleep(pause)

    before = sys.getswitchinterval()
    sys.setswitchinterval(CLOSE_CALLS)
    try:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(serve, [outcomes[at::workers] for at in range(workers)]))
    finally:
        sys.setswitchinterval(before)
    return outcomes


def interleaved(system: System, requests: Sequence[Request], workers: int) -> list[Outcome]:
    """One thread, `workers` requests under way, a random one of them goes on by one call."""
    outcomes = [Outcome(request) for request in requests]
    waiting, draw = list(reversed(outcomes)), random.Random(0)
    under_way: list[tuple[Run, Outcome]] = []
    while waiting or under_way:
        while waiting and len(under_way) < workers:
            outcome = waiting.pop()
            under_way.append((trajectory(system, outcome.request), outcome))
        at = draw.randrange(len(under_way))
        if _advance(*under_way[at]) is None:
            under_way.pop(at)
    return outcomes


def event_loop(system: System, requests: Sequence[Request], workers: int) -> list[Outcome]:
    """An asyncio server: tasks take requests from a queue and await after every call."""

    async def advance(run: Run, outcome: Outcome) -> float | None:
        return _advance(run, outcome)

    return asyncio.run(_serve(system, requests, workers, advance))


def event_loop_pool(system: System, requests: Sequence[Request], workers: int) -> list[Outcome]:
    """An asyncio server that runs every call in a thread of a pool, to keep the loop free."""

    async def advance(run: Run, outcome: Outcome) -> float | None:
        return await asyncio.to_thread(_advance, run, outcome)

    return asyncio.run(_serve(system, requests, workers, advance))


async def _serve(
    system: System, requests: Sequence[Request], workers: int, advance: Callable[..., Any]
) -> list[Outcome]:
    outcomes = [Outcome(request) for request in requests]
    queue: asyncio.Queue[Outcome] = asyncio.Queue()
    for outcome in outcomes:
        queue.put_nowait(outcome)

    async def worker() -> None:
        while not queue.empty():
            outcome = queue.get_nowait()
            run = trajectory(system, outcome.request)
            while (pause := await advance(run, outcome)) is not None:
                await asyncio.sleep(pause)

    await asyncio.gather(*(worker() for _ in range(workers)))
    return outcomes


Serve = Callable[[System, Sequence[Request], int], list[Outcome]]
