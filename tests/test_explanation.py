"""The report before a run; its MACs against the figures printed in the paper."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from models import make, randomise
from models.unet import UNetDenoiser

import deltapass
from deltapass.errors import NoBlocksError, StreamError, TraceError, UnknownOptionError
from deltapass.explanation import explain_each
from deltapass.schedule.rules import Span

OPTIONS = {"cached_blocks": 4, "boundary": 0.5, "steps": 8}


def report_of(name: str, **options: object) -> deltapass.Report:
    toy = make(name)
    args, kwargs = toy.inputs(999.0, 0)
    return deltapass.explain(toy, *args, options={**OPTIONS, **options}, **kwargs)


def test_report_names_blocks_bodies_spans_costs_and_buffers() -> None:
    text = str(report_of("adaln"))
    for part in (
        "6 blocks",
        "distinct",
        "blocks 2..5",
        "blocks 0..3",
        "R d4 R d4",
        "expected",
        "bytes",
    ):
        assert part in text


def test_the_legend_explains_the_words_that_stand_in_the_schedule_and_no_others() -> None:
    report = report_of("adaln")
    assert "(8 steps; R: refresh; s4: blocks 0..3 skipped; d4: blocks 2..5 skipped)" in str(report)
    middle = report_of("adaln", schedule="delta-cache-middle")
    assert "(8 steps; R: refresh; 1:5: blocks 1..4 skipped)" in str(middle)
    assert "(8 steps; R: refresh)" in str(report_of("adaln", cached_blocks=0))
    assert "(1 step; R: refresh)" in str(report_of("adaln", steps=1))


def test_variant_runs_add_up_to_the_trajectory() -> None:
    report = report_of("adaln")
    assert sum(cost.runs for cost in report.variants) == report.steps == 8
    assert report.schedule_table == (None, Span(2, 6)) * 2 + (None, Span(0, 4)) * 2
    assert {cost.blocks for cost in report.variants} == {6, 2}


def test_cached_variants_cost_less_by_just_the_skipped_blocks() -> None:
    report = report_of("adaln")
    refresh, cached = report.variants[0], report.variants[-1]
    per_block = (refresh.macs.full - cached.macs.full) / 4
    everything_else = refresh.macs.full - 6 * per_block
    assert 0 <= everything_else < per_block
    assert refresh.macs.paper < refresh.macs.full  # attention is in the full count only


def test_expected_speedup_is_the_ratio_of_full_macs() -> None:
    report = report_of("two_stream")
    assert report.expected_speedup == report.plain_macs.full / report.trajectory_macs.full > 1.2


def test_never_caching_expects_no_speedup_and_no_buffers() -> None:
    report = report_of("adaln", cached_blocks=0)
    assert (report.expected_speedup, report.buffer_bytes) == (1.0, 0)


def test_budget_is_shown_as_wanted_and_as_reached() -> None:
    toy = make("adaln")
    args, kwargs = toy.inputs(999.0, 0)
    report = deltapass.explain(toy, *args, options={"budget": 0.7, "steps": 8}, **kwargs)
    assert report.share == pytest.approx(1 / report.expected_speedup)
    line = f"budget      0.7 of the plain full MACs wanted, {report.share:.4f} in 8 steps reached"
    assert line in str(report).splitlines()
    assert "budget" not in str(report_of("adaln"))


def test_spans_that_had_to_shrink_are_reported_with_their_buffers() -> None:
    report = report_of("side_value", cached_blocks=5)
    assert any("wanted" in span for span in report.spans)
    assert report.buffer_bytes > 0


@pytest.mark.parametrize("name", ["side_value", "long_skip"])
def test_models_with_smaller_spans_are_explained(name: str) -> None:
    toy = make(name)
    chosen = ({"schedule": "delta-dit"}, {"schedule": "reversed"}, {"order": 1}, {"budget": 0.8})
    options = [{"steps": steps, **each} for each in chosen for steps in (None, 4, 20)]
    for report in explain_each(toy, *toy.inputs(999.0, 0), options):
        assert report.refusal is None and report.buffer_bytes > 0
        assert report.share < 1.0 and "blocks" in str(report)


def test_span_that_cannot_be_cached_is_reported_and_its_steps_are_full() -> None:
    rows = (None, Span(2, 3), None, Span(3, 6))
    table = deltapass.ExplicitSchedule(rows)
    report = report_of_table("side_value", table)
    kept, dropped = report.spans
    assert kept.startswith("blocks 3..5; streams")
    assert dropped.startswith("blocks 2..2 not cached: value 'value_5' leaves")
    assert report.schedule_table == (None, None, None, Span(3, 6))
    assert sum(cost.runs for cost in report.variants) == 4
    with pytest.raises(StreamError):
        report_of_table("side_value", table, strict=True)


def report_of_table(
    name: str, table: deltapass.ExplicitSchedule, **options: object
) -> deltapass.Report:
    toy = make(name)
    args, kwargs = toy.inputs(999.0, 0)
    return deltapass.explain(toy, *args, options={"schedule": table, **options}, **kwargs)


def test_smaller_span_is_refused_with_strict() -> None:
    with pytest.raises(StreamError, match=r"Blocks 3\.\.5 can be cached"):
        report_of("side_value", strict=True)


def test_refusal_is_reported_or_raised() -> None:
    report = report_of("no_blocks")
    assert "no stack of repeated blocks" in str(report)
    assert report.expected_speedup == 1.0
    with pytest.raises(NoBlocksError):
        report_of("no_blocks", strict=True)


def test_nested_blocks_are_listed_with_what_they_save() -> None:
    model = randomise(UNetDenoiser())
    report = deltapass.explain(model, *model.inputs(500.0)[0])
    shares = [float(re.findall(r"(\d+\.\d)%", line)[0]) for line in report.nested]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 4
    assert [line.endswith("no delta") for line in report.nested] == [False, True, True, False]
    whole = next(cost for cost in report.variants if cost.name == "cached_0_4").macs.full
    plain = report.plain_macs.full / report.steps
    assert 100 * (1 - whole / plain) == pytest.approx(shares[0], abs=0.06)
    assert f"inside    {report.nested[0]}" in str(report)


def test_unknown_option_is_an_error() -> None:
    with pytest.raises(UnknownOptionError, match="strict"):
        report_of("adaln", stict=True)


def test_model_is_not_run() -> None:
    toy = make("adaln")
    ran: list[int] = []
    toy.register_forward_hook(lambda *_: ran.append(1))
    args, kwargs = toy.inputs(999.0, 0)
    with torch.no_grad():
        deltapass.explain(toy, *args, **kwargs)
    assert not ran


@cache
def reports_of_size(name: str, steps: int) -> dict[str | int, deltapass.Report]:
    """Of a model of real size, traced once: Delta-DiT, and Faster Diffusion by its blocks."""
    pytest.importorskip("diffusers")
    from denoisers import DENOISERS

    denoiser = DENOISERS[name]("meta", torch.float32)
    faster = {
        cached: {"schedule": "faster-diffusion", "cached_blocks": cached} for cached in (14, 21)
    }
    chosen: dict[str | int, dict[str, object]] = {"delta-dit": {"schedule": "delta-dit"}, **faster}
    options = [{"steps": steps, **each} for each in chosen.values()]
    reports = explain_each(denoiser.model, *denoiser.inputs(999.0), options)
    return dict(zip(chosen, reports, strict=True))


@pytest.mark.parametrize(
    ("name", "steps", "printed", "printed_cached"),
    [
        ("dit-xl-256", 20, 4.579, 2.862),
        ("pixart-1024", 20, 85.651, 53.532),
        ("sd3-1024", 28, 168.256, 105.160),
    ],
)
def test_macs_of_real_sizes_agree_with_the_paper(
    name: str, steps: int, printed: float, printed_cached: float
) -> None:
    report = reports_of_size(name, steps)["delta-dit"]
    assert report.plain_macs.paper / 1e12 == pytest.approx(printed, rel=1e-3)
    assert report.trajectory_macs.paper / 1e12 == pytest.approx(printed_cached, rel=1e-3)
    assert report.expected_speedup == pytest.approx(1.6, rel=1e-3)


def test_macs_of_a_unet_agree_with_the_paper() -> None:
    """Table 11: every other step without what lies between the second skip's ends."""
    pytest.importorskip("diffusers")
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        inputs = torch.empty(2, 4, 64, 64), torch.empty(2), torch.empty(2, 77, 768)
    options = {"schedule": "delta-cache-deep", "cached_blocks": 11, "steps": 20}
    report = deltapass.explain(model.eval().requires_grad_(False), *inputs, options=options)
    assert report.plain_macs.paper / 1e12 == pytest.approx(13.553, rel=1e-3)
    assert report.trajectory_macs.paper / 1e12 == pytest.approx(7.923, rel=1e-3)
    assert len(report.nested) == 12


@pytest.mark.parametrize(
    ("name", "cached", "printed"),
    [("dit-xl-256", 14, 3.434), ("dit-xl-256", 21, 2.862), ("pixart-1024", 14, 64.238)],
)
def test_macs_of_faster_diffusion_agree_with_the_paper(
    name: str, cached: int, printed: float
) -> None:
    report = reports_of_size(name, 20)[cached]
    assert report.trajectory_macs.paper / 1e12 == pytest.approx(printed, rel=1e-3)


@pytest.mark.parametrize(("gate", "printed"), [(10, 61.075), (8, 56.17)])
def test_macs_of_tgate_agree_with_the_paper(gate: int, printed: float) -> None:
    pytest.importorskip("diffusers")
    from denoisers import DENOISERS

    denoiser = DENOISERS["pixart-1024"]("meta", torch.float32)
    args, kwargs = denoiser.inputs(999.0)
    report = deltapass.explain(denoiser.model, *args, options={"gate": gate, "steps": 20}, **kwargs)
    full, _, cached = (cost.macs.paper for cost in report.variants)
    assert [cost.runs for cost in report.variants] == [gate - 1, 1, 20 - gate]
    # Behind the gate half of the batch is left, the conditional one.
    macs = gate * full + (20 - gate) * cached / 2
    assert macs / 1e12 == pytest.approx(printed, rel=1e-3)


def test_explaining_often_meets_no_recompile_limit() -> None:
    toy = make("adaln", depth=2)
    args, kwargs = toy.inputs(999.0, 0)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        reports = [deltapass.explain(toy, *args, **kwargs) for _ in range(3)]
    assert not any(report.refusal for report in reports)
    assert len(set(map(str, reports))) == 1


class Sized(torch.nn.Module):
    """Makes a shape of numbers in a tensor, which Dynamo cannot trace."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sizes = (torch.tensor([4, 4]) * 1).tolist()
        return hidden_states.unflatten(1, sizes).flatten(1, 2) * timestep


def test_model_that_torch_cannot_trace_is_refused_in_our_words() -> None:
    toy = make("adaln")
    args, _ = toy.inputs(999.0, 0)
    report = deltapass.explain(Sized(), *args)
    assert report.refusal is not None
    assert report.refusal.startswith("torch cannot trace the model")
    with pytest.raises(TraceError) as caught:
        deltapass.explain(Sized(), *args, options={"strict": True})
    assert isinstance(caught.value.__cause__, torch._dynamo.exc.TorchDynamoException)
