"""bench/guidance.py: guidance that ends within a trajectory, and TGATE as a method of the suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from cross_attention_oracle import CrossAttentionOracle, attentions_of
from models import randomise
from models.zoo import NUMPY_WARNINGS

from deltapass.bench.analysis import analysed
from deltapass.bench.guidance import EndOfGuidance, ending_guidance
from deltapass.bench.measuring.exact import look_at
from deltapass.bench.methods.method import Context, Method
from deltapass.bench.methods.named import method_of
from deltapass.bench.sampling import Sampler
from deltapass.bench.subjects import Subject
from deltapass.bench.suite import MethodSpec
from deltapass.demo.attributes import Attributes
from deltapass.demo.embedded import AttributeConditionalPipeline
from deltapass.errors import BenchError, NoCrossAttentionError
from deltapass.schedule.rules import Span

STEPS, GATE, BLOCKS = 6, 3, 3
ATTRIBUTES = {"head": ("owl", "cat"), "hat": ("red", "blue", "none")}
SEEDS = (0, 1)
KEPT = Span(0, BLOCKS, "cross-attention")
TABLE = (None,) * GATE + (KEPT,) * (STEPS - GATE)


pytestmark = pytest.mark.filterwarnings(NUMPY_WARNINGS)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """As the embedded model with cross-attention, but tiny."""
    model = diffusers.PixArtTransformer2DModel(
        num_layers=BLOCKS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        in_channels=1,
        out_channels=1,
        sample_size=8,
        patch_size=2,
        caption_channels=Attributes(ATTRIBUTES).width,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    pipeline = AttributeConditionalPipeline(randomise(model), scheduler, ATTRIBUTES)
    pipeline.set_progress_bar_config(disable=True)

    def call(seeds: Any) -> dict[str, Any]:
        return {"prompt": pipeline.examples(seeds), "guidance_scale": 2.0}

    return Subject(name="tiny", title="Tiny", source="", pipeline=pipeline, call=call, batch=2)


def method(**settings: Any) -> Method:
    context = Context(model="tiny", steps=STEPS)
    return method_of(MethodSpec(name="tgate", settings={"gate": GATE, **settings}), context)


def sampled(subject: Subject, **more: Any) -> torch.Tensor:
    """The pipeline by itself, as the suite calls it."""
    images: torch.Tensor = subject.pipeline(
        **subject.call(SEEDS),
        **more,
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
    ).images
    return images


@pytest.mark.parametrize("guidance", [False, True])
def test_images_are_those_of_the_oracle(subject: Subject, guidance: bool) -> None:
    model = subject.pipeline.transformer
    oracle = CrossAttentionOracle(model, attentions_of(list(model.transformer_blocks)))
    more = {} if guidance else ending_guidance(subject.pipeline, GATE)
    with oracle.following(TABLE):
        expected = sampled(subject, **more)
    sampler = Sampler(subject)
    images = sampler.draw(method(guidance=guidance) if guidance else method(), SEEDS)
    assert torch.equal(images, expected)
    assert sampler.report is not None
    assert tuple(entry.realised for entry in sampler.report.entries) == TABLE
    assert not torch.equal(images, sampled(subject))


def test_half_the_work_is_counted_where_half_is_done(subject: Subject) -> None:
    sampler, analysis = Sampler(subject), analysed(subject, SEEDS)
    both, one = (
        look_at(sampler, each, analysis, SEEDS) for each in (method(guidance=True), method())
    )
    assert both.macs is not None
    assert one.macs is not None
    assert analysis.call_macs is not None
    full = analysis.call_macs.full
    kept = [macs.macs[1] - GATE * full for macs in (both, one) if macs.macs]
    assert kept[1] == pytest.approx(kept[0] / 2)
    assert kept[0] < (STEPS - GATE) * full
    assert one.blocks_run == STEPS * BLOCKS  # none is skipped


def test_a_pipeline_without_a_callback_says_so() -> None:
    class Bare:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(BenchError, match="Bare cannot end guidance within a trajectory"):
        ending_guidance(Bare(), 3)


def test_a_model_of_classes_is_a_row_that_says_why() -> None:
    from tiny_bench import tiny_subject

    classes = tiny_subject()
    with pytest.raises(NoCrossAttentionError, match="class_labels"):
        analysed(classes, SEEDS).report(method())


def test_the_callback_keeps_the_half_behind() -> None:
    class Pipeline:
        _guidance_scale = 3.0

    pipe, prompts = Pipeline(), torch.arange(4.0)[:, None]
    tensors = {"latents": torch.zeros(2, 3), "prompt_embeds": prompts, "image_embeds": None}
    end = EndOfGuidance(3)
    assert end(pipe, 1, None, tensors) == {}
    assert pipe._guidance_scale == 3.0
    given = end(pipe, 2, None, tensors)
    assert pipe._guidance_scale == 0.0
    assert list(given) == ["prompt_embeds"]
    assert torch.equal(given["prompt_embeds"], prompts[2:])


def test_settings_and_names() -> None:
    assert (method().name, method().label) == ("tgate-gate3", "TGATE (gate 3)")
    assert (method().guided, method(guidance=True).guided) == (GATE, None)
    assert method_of(MethodSpec(name="tgate"), Context(model="tiny", steps=20)).guided == 10
    with pytest.raises(BenchError, match="no setting 'interval'"):
        method(interval=2)
