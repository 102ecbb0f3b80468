"""Without a session: how often are honest runs taken apart, and dishonest calls for a next step?

The embedded model samples with many schedulers of diffusers; what it is given and what it predicts
goes through the tracker of the implicit mode, call by call. Then the same calls are mixed up:
requests in turns, runs that end early with image-to-image after them, scoring at random timesteps.
A dishonest call is wrong if a delta of another request could be read for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from measure import OPTIONS, arguments, record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deltapass.demo.embedded import class_numbers, load_embedded
from deltapass.selector.pattern import GAPS, Length
from deltapass.selector.timestep import TimestepTracker

DIFFUSION = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# Name -> kind of model, class of diffusers, configuration.
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DDIM": ("diffusion", "DDIMScheduler", {}),
    "DDPM": ("diffusion", "DDPMScheduler", {}),
    "Euler": ("diffusion", "EulerDiscreteScheduler", {}),
    "Euler, Karras": ("diffusion", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler, exponential": ("diffusion", "EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    "Euler ancestral": ("diffusion", "EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("diffusion", "DPMSolverMultistepScheduler", {}),
    "DPM++ 2M, Karras": (
        "diffusion",
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True},
    ),
    "DPM++ 2M SDE": (
        "diffusion",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "DPM++ 2S": ("diffusion", "DPMSolverSinglestepScheduler", {"final_sigmas_type": "sigma_min"}),
    "UniPC": ("diffusion", "UniPCMultistepScheduler", {}),
    "DEIS": ("diffusion", "DEISMultistepScheduler", {}),
    "Heun": ("diffusion", "HeunDiscreteScheduler", {}),
    "KDPM2": ("diffusion", "KDPM2DiscreteScheduler", {}),
    "PNDM": ("diffusion", "PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("diffusion", "LCMScheduler", {}),
    "flow Euler, shift 1": ("flow", "FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
    "flow Euler, shift 3": ("flow", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Euler, shift 7": ("flow", "FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
    "flow Euler, noise anew": (
        "flow",
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0, "stochastic_sampling": True},
    ),
    "flow Heun": ("flow", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow DPM++ 2M": ("flow", "DPMSolverMultistepScheduler", FLOW),
    "flow UniPC": ("flow", "UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    "EDM Euler": ("edm", "EDMEulerScheduler", {}),
    "EDM DPM++ 2M": ("edm", "EDMDPMSolverMultistepScheduler", {}),
}
GUIDANCE = 2.0
SCORED = 200


class Seen(NamedTuple):
    """What a model is given at one call, and what it predicts."""

    timestep: float
    sample: Tensor
    prediction: Tensor


Run = list[Seen]


# ---- sampling ------------------------------------------------------------------------------------


class Denoisers:
    """The embedded flow model, also asked as models of other kinds are."""

    def __init__(self, seed: int, images: int) -> None:
        pipeline = load_embedded()
        self.model = pipeline.transformer
        self.labels = torch.tensor(class_numbers(pipeline, images))
        self.none = torch.full_like(self.labels, self.model.config.num_embeds_ada_norm)
        self.seed = seed
        self.kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000), 0)

    def flow(self, sample: Tensor, timestep: float) -> Tensor:
        """The velocity, guided: both halves in one call, of which the first is what is noted."""
        both, labels = torch.cat([sample, sample]), torch.cat([self.labels, self.none])
        times = torch.full((len(both),), timestep)
        out = self.model(both, timestep=times, class_labels=labels, return_dict=False)[0]
        return torch.as_tensor(out)

    def diffusion(self, sample: Tensor, timestep: float) -> Tensor:
        """The noise, from a sample whose squares add up to one."""
        kept = float(self.kept[min(999, round(timestep))])
        image, noise = kept**0.5, (1 - kept) ** 0.5
        level, scaled = noise / (image + noise), sample / (image + noise)
        velocity = self.flow(scaled, 1000 * level)
        return torch.cat([scaled, scaled]) + (1 - level) * velocity

    def edm(self, sample: Tensor, timestep: float) -> Tensor:
        """What EDM lets a model predict, from a quarter of the logarithm of sigma."""
        sigma, data = float(torch.tensor(4 * timestep).exp()), 0.5
        length = (sigma**2 + data**2) ** 0.5
        scaled = sample * length / (1 + sigma)
        level = sigma / (1 + sigma)
        image = torch.cat([scaled, scaled]) - level * self.flow(scaled, 1000 * level)
        given = torch.cat([sample, sample]) * length
        return (image - data**2 / length**2 * given) * length / (sigma * data)

    @torch.no_grad()
    def sample(self, name: str, steps: int, seed: int, start: int = 0) -> tuple[Run, Tensor]:
        """One run, from `start` on with an image that was sampled before, and its image."""
        kind, scheduler = SAMPLERS[name][0], scheduler_of(name)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randn(len(self.labels), 1, 28, 28, generator=generator)
        if start:
            _, image = self.sample("flow DPM++ 2M", 12, seed + 1)
            moment = scheduler.timesteps[start : start + 1]
            noised = scheduler.scale_noise if kind == "flow" else scheduler.add_noise
            sample = noised(image, sample, moment)
            getattr(scheduler, "set_begin_index", lambda _: None)(start)
        else:
            sample = sample * float(getattr(scheduler, "init_noise_sigma", 1.0))
        drawn = {"generator": generator} if "generator" in step_arguments(scheduler) else {}
        run = []
        for timestep in scheduler.timesteps[start:]:
            scaled = getattr(scheduler, "scale_model_input", lambda given, _: given)(
                sample, timestep
            )
            out = getattr(self, kind)(scaled, float(timestep))
            run.append(Seen(float(timestep), torch.cat([scaled, scaled]), out))
            with_label, without = out.chunk(2)
            guided = without + GUIDANCE * (with_label - without)
            sample = scheduler.step(guided, timestep, sample, return_dict=False, **drawn)[0]
        return run, sample


def scheduler_of(name: str) -> Any:
    kind, class_name, config = SAMPLERS[name]
    base = DIFFUSION if kind == "diffusion" else {}
    return getattr(diffusers, class_name)(**{**base, **config})


def step_arguments(scheduler: Any) -> tuple[str, ...]:
    code = type(scheduler).step.__code__
    return code.co_varnames[: code.co_argcount]


# ---- the tracker ---------------------------------------------------------------------------------


def steps_of(tracker: TimestepTracker, calls: Sequence[Seen]) -> list[tuple[int, bool, bool]]:
    """For every call its step, whether the trajectory is sure, and known to be a long one."""
    found = []
    for call in calls:
        products = tracker.continuity.look(call.sample).tolist()
        place = tracker.locate(call.timestep, products)
        tracker.continuity.note(call.prediction)
        found.append((place.step, place.sure, place.length is Length.MANY))
    return found


def honest(run: Run) -> dict[str, int]:
    """How many calls of a run after its first three could be cached, and how often it broke."""
    found = steps_of(TimestepTracker(), run)
    late = found[GAPS:]
    return {
        "calls": len(late),
        "sure": sum(step > 0 and sure for step, sure, _ in late),
        "by_defaults": sum(step > 0 and sure and many for step, sure, many in late),
        "broken": sum(step == 0 for step, _, _ in found[1:]),
    }


def mixed_up(calls: Sequence[tuple[int, Seen]]) -> dict[str, int]:
    """Calls of several requests, one after the other: which of them took another's place?"""
    found = steps_of(TimestepTracker(), [call for _, call in calls])
    owners = [owner for owner, _ in calls]
    foreign = [at for at in range(1, len(calls)) if owners[at] != owners[at - 1]]
    taken = [at for at in foreign if found[at][0] > 0]
    return {"calls": len(foreign), "taken": len(taken), "wrong": sum(found[at][1] for at in taken)}


# ---- what is measured ----------------------------------------------------------------------------


def measure_honest(models: Denoisers, name: str, steps: int) -> dict[str, Any]:
    """Plain runs of one sampler; at 20 steps also from half-way and later."""
    rows = [honest(models.sample(name, steps, models.seed)[0])]
    if steps == 20 and SAMPLERS[name][0] != "edm":
        rows += [honest(models.sample(name, steps, models.seed, start)[0]) for start in (8, 14)]
    return {key: sum(row[key] for row in rows) for key in rows[0]}


def measure_turns(models: Denoisers, name: str) -> dict[str, int]:
    """Two requests in turns: of equal steps, of others, one ahead of the other by any number."""
    requests = ((20, 2), (20, 3), (24, 4))
    runs = (models.sample(name, steps, models.seed + seed) for steps, seed in requests)
    (one, _), (other, _), (longer, _) = runs
    rows = []
    for second, ahead in itertools.product((other, longer), range(0, 19)):
        pairs = zip(one, second[ahead:], strict=False)
        rows.append(mixed_up([(who, call) for pair in pairs for who, call in enumerate(pair)]))
    return summed(rows)


def measure_cancelled(models: Denoisers, name: str) -> dict[str, int]:
    """A run that ends early, and image-to-image of another request that starts anywhere after."""
    (one, _) = models.sample(name, 20, models.seed + 2)
    rows = []
    for start in (4, 8, 12, 16):
        other, _ = models.sample(name, 20, models.seed + 5, start)
        for stop in range(1, len(one)):
            calls = [*((0, call) for call in one[:stop]), *((1, call) for call in other)]
            rows.append(mixed_up(calls))
    return summed(rows)


@torch.no_grad()
def measure_scoring(models: Denoisers, noise_anew: bool, image_anew: bool) -> dict[str, int]:
    """Calls at random noise levels of flow matching, each its own request."""
    generator = torch.Generator().manual_seed(models.seed)
    images = models.sample("flow DPM++ 2M", 12, models.seed)[1]
    noise, calls = torch.randn(images.shape, generator=generator), []
    for number in range(SCORED):
        level = float(torch.rand((), generator=generator))
        if noise_anew:
            noise = torch.randn(images.shape, generator=generator)
        if image_anew and number % 10 == 0:
            images = models.sample("flow DPM++ 2M", 9, models.seed + number)[1]
        sample = (1 - level) * images + level * noise
        out = models.flow(sample, 1000 * level)
        calls.append((number, Seen(1000 * level, torch.cat([sample, sample]), out)))
    return mixed_up(calls)


def summed(rows: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(row[key] for row in rows) for key in rows[0]}


def main() -> None:
    args = arguments(
        __doc__,
        without=OPTIONS.keys() - {"save"},
        samplers={"nargs": "+", "choices": SAMPLERS, "default": list(SAMPLERS)},
        steps={"nargs": "+", "type": int, "default": [9, 12, 20, 50]},
        images={"type": int, "default": 2},
        seed={"type": int, "default": 0},
    )
    args.device = "cpu"
    models, console = Denoisers(args.seed, args.images), Console(width=100)
    table = Table("sampler", *(f"{steps} steps" for steps in args.steps), "in turns", "cancelled")
    for name in args.samplers:
        runs = {steps: measure_honest(models, name, steps) for steps in args.steps}
        turns = measure_turns(models, name)
        half_way = SAMPLERS[name][0] != "edm"
        cancelled = measure_cancelled(models, name) if half_way else None
        record(args, {"sampler": name, "honest": runs, "turns": turns, "cancelled": cancelled})
        table.add_row(name, *map(kept, runs.values()), *map(told, (turns, cancelled)))
        console.print(name, *map(kept, runs.values()), told(turns), told(cancelled))
    console.print(table)
    scored: dict[str, Callable[[], dict[str, int]]] = {
        "one image, one noise": lambda: measure_scoring(models, False, False),
        "one image": lambda: measure_scoring(models, True, False),
        "many images": lambda: measure_scoring(models, True, True),
    }
    for name, score in scored.items():
        result = score()
        record(args, {"scoring": name, **result}, unit="calls")
        console.print("scoring,", name, told(result))


def kept(row: dict[str, int]) -> str:
    """Calls that could be cached, with the default blocks in brackets, of those after the third."""
    return f"{row['sure']} ({row['by_defaults']}) of {row['calls']}"


def told(row: dict[str, int] | None) -> str:
    return "-" if row is None else f"{row['wrong']} of {row['calls']}"


if __name__ == "__main__":
    main()
