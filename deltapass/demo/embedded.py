"""A small class-conditional pipeline after diffusers' conventions, and the embedded model.

The pipeline is ordinary diffusers code: it knows nothing of caching. Its denoiser may be a plain
module or the result of torch.compile.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import torch

from deltapass.libraries import needs

with needs("diffusers", "demo"):
    import diffusers
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, ImagePipelineOutput
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils.torch_utils import randn_tensor

EMBEDDED: Final = Path(__file__).parents[1] / "assets" / "garments"


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Samples images of given classes in pixel space, with classifier-free guidance.

    Args:
        transformer: Denoiser called as (sample, timestep=, class_labels=, return_dict=False).
        scheduler: Any scheduler of diffusers whose prediction type the denoiser was trained for.
        id2label: Class number -> name.
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self, transformer: Any, scheduler: Any, id2label: dict[Any, str] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.labels = {name: int(number) for number, name in (id2label or {}).items()}
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """Set by a callback to stop after the present step."""
        return self._interrupt

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the arguments diffusers' pipelines take
        self,
        class_labels: Sequence[int | str],
        *,
        guidance_scale: float = 2.0,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Sample one image a label.

        Shapes:
            B images; C, H, W of the denoiser's config. Images come as PIL, or as (B, C, H, W)
            in 0..1 for output_type="pt", or (B, H, W, C) for "np".

        Args:
            class_labels: Class numbers or names.
            guidance_scale: Strength of guidance; up to 1.0 the unconditional half is left out.
            num_inference_steps: Steps of the scheduler.
            generator: One, or one an image.
            output_type: "pil", "pt" or "np".
            callback_on_step_end: Called as (pipeline, step, timestep, {"latents": ...}).
            callback_on_step_end_tensor_inputs: Names of the tensors it is given.
            return_dict: Give an ImagePipelineOutput rather than a tuple.

        Raises:
            ValueError: For an unknown class name or number, or another tensor for callbacks.
        """
        self._check_callback_inputs(callback_on_step_end_tensor_inputs)
        guided = guidance_scale > 1.0
        labels = self._label_tensor(class_labels, guided)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        sample = self._initial_noise(len(class_labels), generator)
        extra = self._step_arguments(generator)
        self._interrupt = False
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self._interrupt:
                continue
            prediction = self._predict(sample, timestep, labels, guidance_scale)
            sample = self.scheduler.step(prediction, timestep, sample, **extra)[0]
            if callback_on_step_end is not None:
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, sample)
                given = callback_on_step_end(self, step, timestep, tensors) or {}
                sample = given.get("latents", sample)
        images = self.image_processor.postprocess(sample.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self, sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The guided prediction: both halves in one call of the denoiser."""
        guided = len(labels) > len(sample)
        doubled = torch.cat([sample, sample]) if guided else sample
        doubled = self.scheduler.scale_model_input(doubled, timestep)
        times = timestep.to(torch.float32).expand(len(doubled))
        out = self.transformer(doubled, timestep=times, class_labels=labels, return_dict=False)[0]
        if not guided:
            return cast("torch.Tensor", out)
        conditional, unconditional = out.chunk(2)
        guided_out: torch.Tensor = unconditional + scale * (conditional - unconditional)
        return guided_out

    def _step_arguments(
        self, generator: torch.Generator | list[torch.Generator] | None
    ) -> dict[str, Any]:
        """What each step is given: the generator too, where the scheduler draws noise."""
        takes = inspect.signature(self.scheduler.step).parameters
        drawn = {"generator": generator} if "generator" in takes else {}
        return {"return_dict": False, **drawn}

    def _check_callback_inputs(self, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"callbacks get {self._callback_tensor_inputs}, not {unknown}")

    def _label_tensor(self, class_labels: Sequence[int | str], guided: bool) -> torch.Tensor:
        count = self.transformer.config.num_embeds_ada_norm
        numbers = [self._number(label, count) for label in class_labels]
        both = numbers + [count] * len(numbers) if guided else numbers
        return torch.tensor(both, device=self._execution_device)

    def _number(self, label: int | str, count: int) -> int:
        number = self.labels.get(label, -1) if isinstance(label, str) else label
        if not 0 <= number < count:
            known = ", ".join(self.labels) or "none by name"
            raise ValueError(f"class {label!r} is unknown. Use 0 to {count - 1}, or: {known}.")
        return number

    def _initial_noise(
        self, count: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        config = self.transformer.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        noise: torch.Tensor = randn_tensor(
            shape, generator=generator, device=self._execution_device, dtype=self.transformer.dtype
        )
        return noise * float(self.scheduler.init_noise_sigma)


def load_embedded(
    folder: Path = EMBEDDED, *, dtype: torch.dtype = torch.float32
) -> ClassConditionalPipeline:
    """The trained model that ships with the package, ready to sample. No network is used.

    Args:
        folder: A folder in the layout of diffusers (transformer/ and scheduler/).
        dtype: Type to run in; the weights are stored as float16.

    Raises:
        OSError: If the folder does not hold the model.
    """
    index = DiffusionPipeline.load_config(str(folder), local_files_only=True)
    kind = getattr(diffusers, index["transformer"][1])
    transformer = kind.from_pretrained(
        str(folder / "transformer"), variant="fp16", dtype=dtype, local_files_only=True
    )
    scheduler = DPMSolverMultistepScheduler.from_pretrained(
        str(folder / "scheduler"), local_files_only=True
    )
    # Gradients would only keep the pass from caching: this pipeline samples.
    transformer = transformer.eval().requires_grad_(False)
    return ClassConditionalPipeline(transformer, scheduler, id2label=index["id2label"])


def class_numbers(pipeline: ClassConditionalPipeline, count: int) -> list[int]:
    """Classes of `count` images: all of them in turn."""
    classes = pipeline.transformer.config.num_embeds_ada_norm
    return [number % classes for number in range(count)]


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One an image, so that an image does not depend on how many others there are."""
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]
