"""An image server: one compiled model, many requests at once, each with a session of its own.

Requests take turns step by step, as in continuous batching: a short one need not wait for a long
one, and every image is bit for bit what it would be alone. docs/sessions.md explains it.

    python examples/server.py
    curl --json '{"class": "sneaker", "seed": 7}' localhost:8000/images -o sneaker.png
"""

import asyncio
import copy
import io
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

import deltapass
from deltapass.demo.embedded import load_embedded

LOWERING: Final = "DELTAPASS_LOWERING"  # environment variable; "eager" needs no C++ compiler
MOST_RUNNING: Final = 64  # each holds a few deltas: this bounds the memory
MOST_REPORTS: Final = 1000


class Order(BaseModel):
    """What a client asks for. The last two say how much is cached; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid")

    label: int | str = Field(alias="class", description="0 to 9, or a name such as 'sneaker'")
    steps: int = Field(20, ge=1, le=100)
    guidance: float = Field(2.0, ge=0.0, le=20.0, description="up to 1.0: none")
    seed: int = Field(0, ge=0, lt=2**63)
    interval: int = Field(2, le=10)
    cached_blocks: int | None = None


class Denoiser:
    """The model, compiled once at start-up and shared by all requests."""

    def __init__(self, lowering: str) -> None:
        self.pipe = load_embedded()
        transformer = self.pipe.transformer
        config = transformer.config
        self.null_class = int(config.num_embeds_ada_norm)
        self.shape = (1, config.in_channels, config.sample_size, config.sample_size)
        # `strict`: what cannot be cached is an error to answer, not a warning in a log.
        options: dict[str, Any] = {"lowering": lowering, "strict": True}
        self.model = torch.compile(transformer, backend="deltadit", options=options)
        # Compile now, in a session, so that no request has to wait for it.
        with torch.no_grad(), deltapass.session(steps=1) as session:
            session.step(0)
            self(torch.zeros(self.shape), torch.tensor(999), 0)

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, label: int) -> torch.Tensor:
        """The prediction for one image. Every call has the same shapes, hence one graph."""
        times, labels = timestep.reshape(1).float(), torch.tensor([label])
        out = self.model(latents, timestep=times, class_labels=labels, return_dict=False)
        prediction: torch.Tensor = out[0]
        return prediction


class Job:
    """One image on its way. `advance` and `png` run in the worker thread."""

    def __init__(self, denoiser: Denoiser, order: Order) -> None:
        self.id = uuid.uuid4().hex
        self.denoiser, self.order = denoiser, order
        self.label = _class_number(denoiser.pipe.labels, order.label)
        self.scheduler: Any = copy.deepcopy(denoiser.pipe.scheduler)  # it keeps state
        self.scheduler.set_timesteps(order.steps)
        schedule = deltapass.delta_dit(interval=order.interval, cached_blocks=order.cached_blocks)
        self.session = deltapass.session(timesteps=self.scheduler.timesteps, schedule=schedule)
        self.step = self.bytes_held = 0
        noise = torch.randn(denoiser.shape, generator=torch.Generator().manual_seed(order.seed))
        self.latents = noise * float(self.scheduler.init_noise_sigma)

    @torch.no_grad()
    def advance(self) -> None:
        """Run one step. Other requests run theirs before the next one."""
        timestep = self.scheduler.timesteps[self.step]
        with self.session.at(self.step, branch="cond"):
            prediction = self.denoiser(self.latents, timestep, self.label)
        if self.order.guidance > 1.0:
            with self.session.at(self.step, branch="uncond"):
                plain = self.denoiser(self.latents, timestep, self.denoiser.null_class)
            prediction = plain + self.order.guidance * (prediction - plain)
        self.latents = self.scheduler.step(prediction, timestep, self.latents)[0]
        self.step, self.bytes_held = self.step + 1, self.session.nbytes

    def png(self) -> bytes:
        """The image as a file."""
        images = self.denoiser.pipe.image_processor.postprocess(self.latents, output_type="pil")
        images[0].save(file := io.BytesIO(), format="PNG")
        return file.getvalue()


class Studio:
    """Runs the jobs in turn and remembers what they did."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.jobs: dict[str, Job] = {}
        self.reports: dict[str, deltapass.SessionReport] = {}

    async def run(self, job: Job, gone: Callable[[], Awaitable[bool]]) -> bytes | None:
        """The image as PNG; None if the client has gone.

        There is one worker thread, and a job asks for its next step when it has the last one. So
        the steps of all jobs stand in one queue, and the jobs take turns.
        """
        self.jobs[job.id] = job
        try:
            while job.step < job.order.steps:
                if await gone():
                    return None
                await asyncio.to_thread(job.advance)
            return await asyncio.to_thread(job.png)
        finally:
            del self.jobs[job.id]
            self.reports[job.id] = job.session.report()
            if len(self.reports) > MOST_REPORTS:
                del self.reports[next(iter(self.reports))]
            # In the worker too: behind a step that may still be running after a cancellation.
            await asyncio.to_thread(job.session.free)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load and compile before the first request is taken."""
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch")
    asyncio.get_running_loop().set_default_executor(worker)  # where asyncio.to_thread runs
    denoiser = await asyncio.to_thread(Denoiser, os.environ.get(LOWERING, "inductor"))
    app.state.studio = Studio(denoiser)
    yield


app = FastAPI(title="deltapass example", lifespan=lifespan)


@app.exception_handler(deltapass.DeltapassError)
async def answer_error(_: Request, error: deltapass.DeltapassError) -> JSONResponse:
    """A value that deltapass refuses came from the client; its text says what would be right."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ValueError) else 500)


@app.post("/images", response_class=Response)
async def create_image(order: Order, request: Request) -> Response:
    """Sample an image. The headers say where its report is, and what it says in one line."""
    studio: Studio = request.app.state.studio
    if len(studio.jobs) >= MOST_RUNNING:
        raise HTTPException(503, f"{MOST_RUNNING} requests are running; try again later")
    job = Job(studio.denoiser, order)
    png = await studio.run(job, request.is_disconnected)
    if png is None:
        return Response(status_code=499)  # the client is gone: for the access log alone
    report = {"X-Report": f"/reports/{job.id}", "X-Report-Summary": job.session.report().summary}
    return Response(png, media_type="image/png", headers=report)


@app.get("/reports/{job_id}")
async def get_report(job_id: str, request: Request) -> dict[str, Any]:
    """What was planned and run for an image, call by call; also while it is running."""
    studio: Studio = request.app.state.studio
    running = studio.jobs.get(job_id)
    report = running.session.report() if running else studio.reports.get(job_id)
    if report is None:
        raise HTTPException(404, f"no report {job_id!r}; the last {MOST_REPORTS} are kept")
    return report.to_dict()


@app.get("/health")
async def get_health(request: Request) -> dict[str, Any]:
    """The running requests with their steps, and the bytes of deltas they hold together."""
    jobs = request.app.state.studio.jobs.values()
    running = {job.id: {"step": job.step, "steps": job.order.steps} for job in jobs}
    return {"running": running, "bytes_held": sum(job.bytes_held for job in jobs)}


def _class_number(labels: dict[str, int], label: int | str) -> int:
    number = labels.get(label, -1) if isinstance(label, str) else label
    if number not in labels.values():
        known = ", ".join(f"{number} or {name!r}" for name, number in labels.items())
        raise HTTPException(422, f"class {label!r} is unknown. Use {known}.")
    return number


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000)
