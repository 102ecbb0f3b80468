"""The small pipeline and the embedded model, through real schedulers of diffusers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DPMSolverMultistepScheduler
from driving import compiled, follow, in_session, sampled, tensors
from PIL import Image
from reference import DeltaCacheReference

from deltapass.demo.embedded import (
    ASSETS,
    EMBEDDED,
    AttributeConditionalPipeline,
    ClassConditionalPipeline,
    load_embedded,
)
from deltapass.demo.images import grid
from deltapass.errors import MissingLibraryError
from deltapass.schedule.rules import Span

# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MEGABYTE = 10**6
GOLDEN = Path(__file__).parents[1] / "golden"


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
    for name in ("embedded", "pixels"):
        monkeypatch.delitem(sys.modules, f"deltapass.demo.{name}")
    with pytest.raises(MissingLibraryError, match=r"deltapass\[demo\]"):
        import deltapass.demo.embedded  # noqa: F401


# ---- the model in colour -------------------------------------------------------------------------

SHOWN = (
    "head-owl body-green glasses-square-red background-warm",
    "head-shark body-orange glasses-square-black background-cool",
    "head-house body-blue-sky glasses-square-yellow-saturated background-cool",
    "head-crown body-magenta glasses-deep-teal background-warm",
)
# Colours of the art, 0..255: where nothing but the background is, and in the middle of the body.
GROUNDS = {"warm": (0xE1, 0xD7, 0xD5), "cool": (0xD5, 0xD7, 0xE1)}
BODIES = {
    "green": (0x06, 0x89, 0x40),
    "orange": (0xFE, 0x50, 0x0C),
    "blue-sky": (0x63, 0xA0, 0xF9),
    "magenta": (0x9F, 0x21, 0xA0),
}


@pytest.fixture(scope="module")
def nouns() -> AttributeConditionalPipeline:
    made = load_embedded("nouns")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def shown(nouns: Any) -> torch.Tensor:
    return sample(nouns, list(SHOWN), num_inference_steps=10)


def test_model_in_colour_has_16_blocks_of_cross_attention_in_under_15_megabytes(nouns: Any) -> None:
    blocks = nouns.transformer.transformer_blocks
    assert len(blocks) == 16
    assert all(block.attn2 is not None for block in blocks)
    files = [path for path in (ASSETS / "nouns").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15 * MEGABYTE
    assert {path.name for path in files} >= {"README.md", "samples.png", "loss.png"}


def test_backgrounds_and_bodies_have_the_colours_that_were_told(shown: torch.Tensor) -> None:
    assert shown.shape == (4, 3, 32, 32)
    for image, prompt in zip(shown * 255, SHOWN, strict=True):
        told = dict(word.split("-", 1) for word in prompt.split())
        ground = image[:, 26:, :5].mean((1, 2))
        body = image[:, 26:, 14:21].mean((1, 2))
        # The two grounds are 12 apart.
        assert ground.tolist() == pytest.approx(GROUNDS[told["background"]], abs=5.5)
        assert body.tolist() == pytest.approx(BODIES[told["body"]], abs=12)


def test_pictures_are_those_that_were_seen_and_found_right(shown: torch.Tensor) -> None:
    seen = torch.from_numpy(np.array(Image.open(GOLDEN / "nouns.png"))).float() / 255
    errors = (grid(shown, columns=4) - seen).abs().view(32, 4, 32, 3).mean(dim=(0, 2, 3))
    assert errors.max() < 0.01
    others = (shown - shown.roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert others.min() > 0.1, "pictures of other prompts are far off"


def test_what_a_prompt_leaves_out_may_be_anything(nouns: Any) -> None:
    green, anything = sample(nouns, ["body-green", ""], num_inference_steps=8)
    body = green[:, 26:, 14:21].mean((1, 2)) * 255
    assert body.tolist() == pytest.approx(BODIES["green"], abs=20)
    assert anything.std() > 0.1
    batches: list[int] = []
    hook = nouns.transformer.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    try:
        sample(nouns, [{"body": "green"}], num_inference_steps=1)
        sample(nouns, [{"body": "green"}], num_inference_steps=1, guidance_scale=1.0)
    finally:
        hook.remove()
    assert batches == [2, 1]


def test_unknown_attribute_is_an_error_that_lists_the_known(nouns: Any) -> None:
    with pytest.raises(ValueError, match=r"head 'dog' is unknown\. Use one of: cone, crown, "):
        sample(nouns, ["head-dog"])
    with pytest.raises(ValueError, match=r"'shoe-red' is no attribute\. .*background-"):
        sample(nouns, [{"shoe": "red"}])


def test_saved_pipeline_in_colour_is_loaded_again(nouns: Any, tmp_path: Path) -> None:
    nouns.save_pretrained(tmp_path, variant="fp16")
    by_diffusers = AttributeConditionalPipeline.from_pretrained(
        tmp_path, variant="fp16", local_files_only=True
    )
    wanted = sample(nouns, ["head-fir"], num_inference_steps=1)
    for again in (by_diffusers, load_embedded(tmp_path)):
        again.set_progress_bar_config(disable=True)
        assert torch.equal(sample(again, ["head-fir"], num_inference_steps=1), wanted)


def test_all_16_blocks_are_cached_and_equal_the_oracle(nouns: Any) -> None:
    model = nouns.transformer
    tokens = nouns.vocabulary.tokens(nouns.vocabulary.numbers(SHOWN[:2]))
    torch.manual_seed(0)
    calls = sampled(
        [
            (
                (torch.randn(2, 3, 32, 32),),
                {
                    "encoder_hidden_states": tokens,
                    "timestep": torch.full((2,), 1000.0 - 250 * step),
                    "return_dict": False,
                },
            )
            for step in range(4)
        ]
    )
    table = (None, Span(1, 16), None, Span(0, 15))
    options = {"order": 0, "cached_blocks": 15, "boundary": 0.5}
    outputs, report = in_session(compiled(model, **options), calls)
    assert report.cached == 2
    reference = DeltaCacheReference(model, list(model.transformer_blocks))
    expected, plain = reference.run(table, calls), follow(model, calls)
    for step, span in enumerate(table):
        ours = tensors(outputs)[step]
        assert torch.equal(ours, tensors(expected)[step])
        assert torch.equal(ours, tensors(plain)[step]) == (span is None)
