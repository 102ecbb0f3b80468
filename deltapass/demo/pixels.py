"""The loop of a small pipeline in pixel space after diffusers' conventions.

It is ordinary diffusers code: it knows nothing of caching. Its denoiser may be a plain module or
the result of torch.compile.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypedDict, cast

import torch

from deltapass.libraries import needs

with needs("diffusers", "demo"):
    from diffusers import DiffusionPipeline, ImagePipelineOutput
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils.torch_utils import randn_tensor

Generators = torch.Generator | list[torch.Generator] | None


class Sampling(TypedDict, total=False):
    """What a call of a pipeline takes beside its prompts; the defaults are those of `_sample`.

    guidance_scale: Strength of guidance (2.0); up to 1.0 the unconditional half is left out.
    num_inference_steps: Steps of the scheduler (20).
    generator: One, or one an image.
    output_type: "pil", "pt" or "np".
    callback_on_step_end: Called as (pipeline, step, timestep, {"latents": ...}).
    callback_on_step_end_tensor_inputs: Names of the tensors it is given.
    return_dict: Give an ImagePipelineOutput rather than a tuple (True).
    """

    guidance_scale: float
    num_inference_steps: int
    generator: Generators
    output_type: str
    callback_on_step_end: Callable[..., dict[str, Any]] | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    return_dict: bool


class PixelPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Samples images in pixel space, with classifier-free guidance.

    Args:
        transformer: Denoiser called as (sample, timestep=, return_dict=False) and what
            `conditions` gives.
        scheduler: Any scheduler of diffusers whose prediction type the denoiser was trained for.
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)
        self._interrupt, self._guidance_scale = False, 1.0

    @property
    def interrupt(self) -> bool:
        """Set by a callback to stop after the present step."""
        return self._interrupt

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the present step is guided; a callback ends it by `_guidance_scale`."""
        return self._guidance_scale > 1.0

    @abstractmethod
    def examples(self, seeds: Sequence[int]) -> list[Any]:
        """A prompt an image, by its seed alone: with all kinds of images among a few seeds."""

    @abstractmethod
    def conditions(self, prompts: Sequence[Any], guided: bool) -> dict[str, torch.Tensor]:
        """What the denoiser is told, by argument; with "nothing" for as many images if guided."""

    @torch.no_grad()
    def _sample(  # noqa: PLR0913 - the arguments diffusers' pipelines take
        self,
        prompts: Sequence[Any],
        *,
        guidance_scale: float = 2.0,
        num_inference_steps: int = 20,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Sample one image a prompt.

        Shapes:
            B images; C, H, W of the denoiser's config. Images come as PIL, or as (B, C, H, W)
            in 0..1 for output_type="pt", or (B, H, W, C) for "np".

        Raises:
            ValueError: For an unknown prompt, or another tensor for callbacks.
        """
        self._check_callback_inputs(callback_on_step_end_tensor_inputs)
        self._guidance_scale = guidance_scale
        guided = self.do_classifier_free_guidance
        conditions = self.conditions(prompts, guided)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        sample = self._initial_noise(len(prompts), generator)
        extra = self._step_arguments(generator)
        self._interrupt = False
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self._interrupt:
                continue
            if guided and not self.do_classifier_free_guidance:
                guided = False
                conditions = {name: both[: len(prompts)] for name, both in conditions.items()}
            prediction = self._predict(sample, timestep, conditions, self._guidance_scale)
            sample = self.scheduler.step(prediction, timestep, sample, **extra)[0]
            if callback_on_step_end is not None:
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, sample)
                given = callback_on_step_end(self, step, timestep, tensors) or {}
                sample = given.get("latents", sample)
        images = self.image_processor.postprocess(sample.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: dict[str, torch.Tensor],
        scale: float,
    ) -> torch.Tensor:
        """The guided prediction: both halves in one call of the denoiser."""
        guided = scale > 1.0
        doubled = torch.cat([sample, sample]) if guided else sample
        if hasattr(self.scheduler, "scale_model_input"):  # those for flows alone scale nothing
            doubled = self.scheduler.scale_model_input(doubled, timestep)
        times = timestep.to(torch.float32).expand(len(doubled))
        out = self.transformer(doubled, timestep=times, **conditions, return_dict=False)[0]
        if not guided:
            return cast("torch.Tensor", out)
        conditional, unconditional = out.chunk(2)
        guided_out: torch.Tensor = unconditional + scale * (conditional - unconditional)
        return guided_out

    def _step_arguments(self, generator: Generators) -> dict[str, Any]:
        """What each step is given: the generator too, where the scheduler draws noise."""
        takes = inspect.signature(self.scheduler.step).parameters
        drawn = {"generator": generator} if "generator" in takes else {}
        return {"return_dict": False, **drawn}

    def _check_callback_inputs(self, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"callbacks get {self._callback_tensor_inputs}, not {unknown}")

    def _initial_noise(self, count: int, generator: Generators) -> torch.Tensor:
        config = self.transformer.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        noise: torch.Tensor = randn_tensor(
            shape, generator=generator, device=self._execution_device, dtype=self.transformer.dtype
        )
        return noise * float(getattr(self.scheduler, "init_noise_sigma", 1.0))
