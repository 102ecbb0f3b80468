"""The trained models that ship with the package, and the pipelines that sample them.

The pipelines are ordinary diffusers code: they know nothing of caching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Unpack, overload

import torch

from deltapass.demo.attributes import Attributes, Prompt
from deltapass.libraries import needs

with needs("diffusers", "demo"):
    import diffusers
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    from deltapass.demo.pixels import PixelPipeline, Sampling

ASSETS: Final = Path(__file__).parents[1] / "assets"
EMBEDDED: Final = ASSETS / "garments"


class ClassConditionalPipeline(PixelPipeline):
    """Samples images of given classes in pixel space, with classifier-free guidance.

    Args:
        transformer: Denoiser called as (sample, timestep=, class_labels=, return_dict=False).
        scheduler: Any scheduler of diffusers whose prediction type the denoiser was trained for.
        id2label: Class number -> name.
    """

    def __init__(
        self, transformer: Any, scheduler: Any, id2label: dict[Any, str] | None = None
    ) -> None:
        super().__init__(transformer, scheduler)
        self.register_to_config(id2label=id2label)
        self.labels = {name: int(number) for number, name in (id2label or {}).items()}

    def __call__(self, class_labels: Sequence[int | str], **options: Unpack[Sampling]) -> Any:
        """Sample one image a label.

        Args:
            class_labels: Class numbers or names.
            options: As `Sampling` says.

        Raises:
            ValueError: For an unknown class name or number, or another tensor for callbacks.
        """
        return self._sample(class_labels, **options)

    def examples(self, seeds: Sequence[int]) -> list[int]:
        """Class numbers: all classes in turn."""
        return [seed % self.transformer.config.num_embeds_ada_norm for seed in seeds]

    def conditions(self, prompts: Sequence[int | str], guided: bool) -> dict[str, torch.Tensor]:
        """The class of every image, and the class "none" if guided."""
        count = self.transformer.config.num_embeds_ada_norm
        numbers = [self._number(label, count) for label in prompts]
        both = numbers + [count] * len(numbers) if guided else numbers
        return {"class_labels": torch.tensor(both, device=self._execution_device)}

    def _number(self, label: int | str, count: int) -> int:
        number = self.labels.get(label, -1) if isinstance(label, str) else label
        if not 0 <= number < count:
            known = ", ".join(self.labels) or "none by name"
            raise ValueError(f"class {label!r} is unknown. Use 0 to {count - 1}, or: {known}.")
        return number


class AttributeConditionalPipeline(PixelPipeline):
    """Samples images of given attributes in pixel space, with classifier-free guidance.

    Args:
        transformer: Denoiser called as (sample, timestep=, encoder_hidden_states=,
            return_dict=False).
        scheduler: Any scheduler of diffusers whose prediction type the denoiser was trained for.
        attributes: Attribute -> names of its parts, in the order of the tokens' channels; or pairs
            of both. The default is for diffusers, which takes an argument without one for a model.
    """

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        attributes: Mapping[str, Sequence[str]] | Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        super().__init__(transformer, scheduler)
        self.vocabulary = Attributes(dict(attributes))
        # As pairs: diffusers sorts the keys of what it saves, and the order has a meaning here.
        self.register_to_config(attributes=list(self.vocabulary.parts.items()))

    def __call__(self, prompt: Sequence[Prompt], **options: Unpack[Sampling]) -> Any:
        """Sample one image a prompt.

        Args:
            prompt: Words such as "head-owl glasses-deep-teal", or a mapping such as
                {"head": "owl"}; what is left out may be anything.
            options: As `Sampling` says.

        Raises:
            ValueError: For an unknown attribute or part, or another tensor for callbacks.
        """
        return self._sample(prompt, **options)

    def examples(self, seeds: Sequence[int]) -> list[str]:
        """Words that tell every attribute, at random."""
        return [self.vocabulary.random_prompts(1, seed)[0] for seed in seeds]

    def conditions(self, prompts: Sequence[Prompt], guided: bool) -> dict[str, torch.Tensor]:
        """The tokens of every image's attributes, and those of no attribute if guided."""
        nothing = [""] * len(prompts) if guided else []
        tokens = self.vocabulary.tokens(self.vocabulary.numbers([*prompts, *nothing]))
        tokens = tokens.to(self._execution_device, self.transformer.dtype)
        return {"encoder_hidden_states": tokens}


@overload
def load_embedded(
    model: Literal["nouns"], *, dtype: torch.dtype = ...
) -> AttributeConditionalPipeline: ...
@overload
def load_embedded(
    model: str | Path = ..., *, dtype: torch.dtype = ...
) -> ClassConditionalPipeline: ...
def load_embedded(
    model: str | Path = "garments", *, dtype: torch.dtype = torch.float32
) -> PixelPipeline:
    """A trained model that ships with the package, ready to sample. No network is used.

    Args:
        model: "garments" (28 blocks, grey, ten classes), "nouns" (16 blocks with cross-attention,
            colour, four attributes), or a folder in the same layout (transformer/ and scheduler/).
        dtype: Type to run in; the weights are stored as float16.

    Raises:
        OSError: If there is no such model.
    """
    folder = ASSETS / model  # a path that is absolute stays as it is
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
    if "attributes" in index:
        return AttributeConditionalPipeline(transformer, scheduler, index["attributes"])
    return ClassConditionalPipeline(transformer, scheduler, id2label=index["id2label"])


def class_numbers(pipeline: ClassConditionalPipeline, count: int) -> list[int]:
    """Classes of `count` images: all of them in turn."""
    classes = pipeline.transformer.config.num_embeds_ada_norm
    return [number % classes for number in range(count)]


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One an image, so that an image does not depend on how many others there are."""
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]
