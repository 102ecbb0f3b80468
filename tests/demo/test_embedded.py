"""The small pipeline and the embedded model, through real schedulers of diffusers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DPMSolverMultistepScheduler

from deltapass.demo.embedded import EMBEDDED, ClassConditionalPipeline, load_embedded
from deltapass.errors import MissingLibraryError

# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def pipeline() -> ClassConditionalPipeline:
    made = load_embedded()
    made.set_progress_bar_config(disable=True)
    return made


def sample(pipeline: Any, labels: list[Any], **options: Any) -> torch.Tensor:
    chosen = {"num_inference_steps": 3, "output_type": "pt", **options}
    generators = [torch.Generator().manual_seed(at) for at in range(len(labels))]
    return pipeline(labels, generator=generators, **chosen).images


def test_embedded_model_has_28_blocks_and_ships_in_under_20_megabytes(pipeline: Any) -> None:
    assert len(pipeline.transformer.transformer_blocks) == 28
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * MEGABYTE
    assert {path.name for path in files} >= {"README.md", "samples.png", "loss.png"}


def test_images_are_in_range_and_depend_on_class_and_seed(pipeline: Any) -> None:
    images = sample(pipeline, [0, 0, "bag"])
    assert images.shape == (3, 1, 28, 28)
    assert 0 <= images.min() < images.max() <= 1
    assert not torch.equal(images[0], images[1])
    other = sample(pipeline, [1, 0, "bag"])
    assert not torch.equal(images[0], other[0])


def test_names_and_numbers_of_classes_mean_the_same(pipeline: Any) -> None:
    assert torch.equal(sample(pipeline, ["trouser"]), sample(pipeline, [1]))


def test_an_image_does_not_depend_on_its_batch(pipeline: Any) -> None:
    together, alone = sample(pipeline, [3, 8]), sample(pipeline, [3])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def test_guidance_changes_images_and_leaving_it_out_halves_the_batch(pipeline: Any) -> None:
    batches: list[int] = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda _, args: batches.append(len(args[0]))
    )
    try:
        guided, plain = sample(pipeline, [0]), sample(pipeline, [0], guidance_scale=1.0)
    finally:
        hook.remove()
    assert batches == [2] * 3 + [1] * 3
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize("label", [10, -1, "hat"])
def test_unknown_class_is_an_error_that_lists_the_known(pipeline: Any, label: Any) -> None:
    with pytest.raises(ValueError, match="0 to 9, or: t-shirt"):
        sample(pipeline, [label])


def test_callback_can_change_latents_and_interrupt(pipeline: Any) -> None:
    seen: list[int] = []

    def stop_after_first(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        pipe._interrupt = True
        return {"latents": torch.zeros_like(given["latents"])}

    images = sample(pipeline, [0], callback_on_step_end=stop_after_first)
    assert seen == [0]
    assert torch.equal(images, torch.full_like(images, 0.5))


def test_callback_is_given_only_what_it_asked_for(pipeline: Any) -> None:
    seen: list[dict[str, Any]] = []
    sample(
        pipeline,
        [0],
        num_inference_steps=1,
        callback_on_step_end=lambda *call: seen.append(call[3]),
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}]
    with pytest.raises(ValueError, match=r"\['latents'\], not \['prompt_embeds'\]"):
        sample(pipeline, [0], callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_scheduler_that_draws_noise_follows_the_generator() -> None:
    pipeline = load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="sde-dpmsolver++"
    )
    assert torch.equal(sample(pipeline, [0, 4]), sample(pipeline, [0, 4]))


def test_compiled_denoiser_gives_the_same_images() -> None:
    pipeline = load_embedded()
    pipeline.set_progress_bar_config(disable=True)
    plain = sample(pipeline, [0], num_inference_steps=2)
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    assert torch.equal(sample(pipeline, [0], num_inference_steps=2), plain)


def test_saved_pipeline_is_loaded_as_any_of_diffusers(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = ClassConditionalPipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(sample(again, ["bag"]), sample(pipeline, ["bag"]))


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_other_output_types(pipeline: Any, output_type: str) -> None:
    images = pipeline([0], num_inference_steps=1, output_type=output_type, return_dict=False)[0]
    size = images[0].size if output_type == "pil" else images.shape[1:3]
    assert tuple(size) == (28, 28)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "deltapass.demo.embedded")
    with pytest.raises(MissingLibraryError, match=r"deltapass\[demo\]"):
        import deltapass.demo.embedded  # noqa: F401
