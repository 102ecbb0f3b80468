"""Bundles as a whole: exported as ONNX, loaded, and run as the model under eager Delta-Cache."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import by_timestep, compiled, follow, oracle, sampled, tensors
from models import B, C, D, Denoiser, S, make, noise
from reference import Call
from torch.export import Dim

import deltapass
from deltapass.bundles.manifest import BundlePlan
from deltapass.bundles.weights_file import read_tensors
from deltapass.errors import ExportError
from deltapass.exporting.compare import relative_error
from deltapass.schedule.rules import Table
from deltapass.sessions.report import Cause

for library in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(library)

STEPS, TOLERANCE = 8, 2e-5
SCHEDULE = deltapass.Schedule(cached_blocks=2, boundary=0.5)


@dataclass(frozen=True)
class Made:
    """A model, where its bundle lies, and the bundle loaded."""

    model: Denoiser
    path: Path
    plan: BundlePlan
    loaded: deltapass.LoadedModel
    order: int

    def calls(self, batch: int = B, tokens: int = 16, seed: int = 0) -> list[Call]:
        return [
            _resized(self.model.inputs(1000 * (1 - at / STEPS), seed + at), batch, tokens)
            for at in range(STEPS)
        ]

    def check(self, outputs: Sequence[Any], calls: Sequence[Call], table: Table) -> None:
        """The outputs are those of eager Delta-Cache; the plain model's are others."""
        wanted = tensors(oracle(self.model, table, calls, self.order))
        assert relative_error(tensors(outputs), wanted) < TOLERANCE
        plain = oracle(self.model, (None,) * len(table), calls)
        assert relative_error(tensors(outputs)[3:4], tensors(plain)[3:4]) > 10 * TOLERANCE


def _resized(call: Call, batch: int, tokens: int) -> Call:
    (x, timestep), kwargs = call
    if (batch, tokens) != (B, 16):
        x = noise(int(timestep[0]), batch, tokens, C)
    return (x, timestep[:1].expand(batch)), kwargs


def made(model: Denoiser, path: Path, order: int, **options: Any) -> Made:
    args, kwargs = model.inputs(500.0)
    chosen = {"schedule": SCHEDULE, "order": order, **options}
    plan = deltapass.export(model, args, kwargs, path, **chosen)
    return Made(model, path, plan, deltapass.load(path), order)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One stream, order 0, any batch up to 4, any number of tokens."""
    path = tmp_path_factory.mktemp("moving") / "bundle"
    tokens = {"hidden_states": {1: Dim("tokens", min=2, max=64)}}
    return made(make("adaln", depth=4), path, 0, batch=(1, 4), dynamic_shapes=tokens)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two streams and text, order 1, one size."""
    path = tmp_path_factory.mktemp("fixed") / "bundle"
    return made(make("two_stream", depth=4), path, 1)


@pytest.fixture(params=["moving", "fixed"])
def bundle(request: pytest.FixtureRequest) -> Made:
    found: Made = request.getfixturevalue(request.param)
    return found


def table_of(bundle: Made) -> Table:
    return SCHEDULE.table(STEPS, bundle.plan.blocks)


def in_session(bundle: Made, calls: Sequence[Call]) -> tuple[list[Any], deltapass.SessionReport]:
    with deltapass.session(STEPS) as session:
        outputs = follow(bundle.loaded, calls, session)
    return outputs, session.report()


# ---- the numbers -------------------------------------------------------------------------------


def test_a_trajectory_is_that_of_eager_delta_cache(bundle: Made) -> None:
    calls = bundle.calls()
    outputs, report = in_session(bundle, calls)
    bundle.check(outputs, calls, table_of(bundle))
    assert report.as_planned
    assert [entry.realised for entry in report.entries] == list(table_of(bundle))
    assert report.calls == STEPS and report.cached == STEPS // 2


def test_without_a_session_the_timestep_tells_the_step(bundle: Made) -> None:
    calls = sampled(bundle.calls(seed=50))
    blocks = bundle.plan.blocks
    table = by_timestep(tuple(SCHEDULE.at(at, 1 - at / STEPS, blocks) for at in range(STEPS)))
    bundle.check(follow(bundle.loaded, calls), calls, table)


def test_a_report_is_that_of_the_compiled_model(bundle: Made) -> None:
    calls = bundle.calls()
    _, report = in_session(bundle, calls)
    options = {"schedule": SCHEDULE, "order": bundle.order, "steps": STEPS}
    with deltapass.session(STEPS) as session:
        follow(compiled(bundle.model, **options), calls, session)
    other = session.report()
    for ours, theirs in zip(report.entries, other.entries, strict=True):
        assert (ours.step, ours.planned, ours.realised, ours.cause) == (
            *(theirs.step, theirs.planned, theirs.realised, theirs.cause),
        )
        assert ours.macs.full == pytest.approx(theirs.macs.full)
        assert ours.full_macs.full == pytest.approx(theirs.full_macs.full)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 16), (4, 16), (3, 5), (2, 64)])
def test_other_sizes_are_cached_as_well(moving: Made, batch: int, tokens: int) -> None:
    calls = moving.calls(batch, tokens)
    outputs, report = in_session(moving, calls)
    assert tensors(outputs)[0].shape == (batch, tokens, C)
    moving.check(outputs, calls, table_of(moving))
    assert report.as_planned


def test_another_size_in_mid_trajectory_refreshes(moving: Made) -> None:
    calls = [*moving.calls()[:3], *moving.calls(batch=3)[3:]]
    _, report = in_session(moving, calls)
    assert report.entries[3].realised is None and report.entries[3].cause is Cause.BATCH


def test_another_prompt_in_mid_trajectory_refreshes(fixed: Made) -> None:
    calls = fixed.calls()
    changed = [(args, {"encoder_hidden_states": noise(7, B, S, D)}) for args, _ in calls]
    outputs, report = in_session(fixed, [*calls[:3], *changed[3:]])
    assert report.entries[3].realised is None and report.entries[3].cause is Cause.CONDITIONING
    with torch.no_grad():
        args, kwargs = changed[3]
        wanted = fixed.model(*args, **kwargs)
    assert relative_error(tensors(outputs)[3:4], [wanted]) < TOLERANCE


def test_interleaved_sessions_give_what_each_gives_alone(bundle: Made) -> None:
    runs = [bundle.calls(), bundle.calls(seed=100)]
    alone = [tensors(in_session(bundle, calls)[0]) for calls in runs]
    sessions = [deltapass.session(STEPS), deltapass.session(STEPS)]
    together: list[list[torch.Tensor]] = [[], []]
    for step in range(STEPS):
        for session, calls, outputs in zip(sessions, runs, together, strict=True):
            with torch.no_grad(), session.at(step):
                outputs.append(bundle.loaded(*calls[step][0], **calls[step][1]))
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one, tensors(other)))


def test_threads_give_what_each_gives_alone(bundle: Made) -> None:
    runs = [bundle.calls(seed=100 * at) for at in range(4)]
    alone = [tensors(in_session(bundle, calls)[0]) for calls in runs]
    found: dict[int, list[torch.Tensor]] = {}

    def work(at: int) -> None:
        found[at] = tensors(in_session(bundle, runs[at])[0])

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(map(torch.equal, alone[at], found[at])) for at in range(len(runs)))


def test_a_suspended_session_goes_on_as_if_it_had_not_been(bundle: Made) -> None:
    calls = bundle.calls()
    alone, _ = in_session(bundle, calls)
    with deltapass.session(STEPS) as session:
        first = follow(bundle.loaded, calls[:3], session)
        session.suspend()
        rest = []
        for step, (args, kwargs) in enumerate(calls[3:], 3):
            session.step(step)
            with torch.inference_mode():
                rest.append(bundle.loaded(*args, **kwargs))
    assert session.report().as_planned
    assert all(map(torch.equal, tensors(alone), tensors([*first, *rest])))


def test_results_are_the_callers_own(bundle: Made) -> None:
    calls = bundle.calls()
    first, _ = in_session(bundle, calls)
    kept = [tensor.clone() for tensor in tensors(first)]
    for tensor in tensors(first):
        tensor.fill_(float("nan"))
    again, _ = in_session(bundle, calls)
    assert all(map(torch.equal, tensors(again), kept))


def test_strided_inputs_are_read_as_they_are(moving: Made) -> None:
    (x, timestep), _ = moving.model.inputs(3.0)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad(), deltapass.session(1) as session:
        session.step(0)
        given = moving.loaded(turned, timestep[:1].expand(B))
    assert relative_error([given], [moving.model(x, timestep)]) < TOLERANCE


# ---- the files ---------------------------------------------------------------------------------


def test_weights_are_stored_once(bundle: Made) -> None:
    held = dict(bundle.model.named_parameters())
    total = sum(tensor.nbytes for tensor in held.values())
    assert bundle.plan.weights["bytes"] == total
    assert bundle.plan.weights["names"] == sorted(held)
    size = bundle.plan.files["weights.safetensors"].bytes
    assert size < 1.1 * total, "no segment holds a copy"
    engines = [spec.bytes for name, spec in bundle.plan.files.items() if name.endswith(".onnx")]
    assert sum(engines) < total, "engines refer to weights and hold none"
    stored = read_tensors(bundle.path / "weights.safetensors")
    assert sum(tensor.nbytes for tensor in stored.values()) < 1.1 * total


def test_the_plan_says_what_runs(bundle: Made) -> None:
    plan = bundle.plan
    assert bundle.loaded.plan == deltapass.load(bundle.path).plan
    assert json.loads((bundle.path / "plan.json").read_text())["schema"] == 2
    variants = {variant.name: variant for variant in plan.variants}
    kinds = [variants[row.variant].kind == "cached" for row in plan.table]
    table = SCHEDULE.table(plan.steps, plan.blocks)
    assert kinds == [span is not None for span in table]
    assert plan.predictor == ("reuse", "linear")[bundle.order]
    weighted = [bool(row.weights) for row in plan.table]
    assert weighted == [cached and bundle.order == 1 for cached in kinds]
    assert {span.span for span in plan.spans} == {span for span in table if span is not None}
    assert plan.verified is not None and plan.verified["tolerance"] <= TOLERANCE
    assert set(plan.verified["variants"]) == set(variants)
    assert plan.producer["deltapass"] == deltapass.__version__


def test_conditioning_is_named(moving: Made, fixed: Made) -> None:
    assert moving.plan.conditioning == ()
    assert fixed.plan.conditioning == ("encoder_hidden_states",)
    assert moving.plan.dimensions == {"batch": (1, 4), "tokens": (2, 64)}


# ---- other bundles -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One that caches nothing."""
    path = tmp_path_factory.mktemp("plain") / "bundle"
    return made(make("adaln", depth=2), path, 0, schedule="none", steps=STEPS, verify=False)


def test_a_bundle_that_never_caches_is_one_segment(plain: Made) -> None:
    assert [segment.name for segment in plain.plan.segments] == ["prologue_blocks_0_2_epilogue"]
    assert plain.plan.spans == () and plain.plan.verified is None
    assert plain.plan.macs["expected_speedup"] == 1.0
    calls = plain.calls()
    outputs, report = in_session(plain, calls)
    wanted = oracle(plain.model, (None,) * STEPS, calls)
    assert relative_error(tensors(outputs), tensors(wanted)) < TOLERANCE
    assert report.cached == 0 and report.as_planned


def test_an_existing_bundle_is_overwritten_only_when_asked(plain: Made) -> None:
    before = (plain.path / "plan.json").read_text()
    args, kwargs = plain.model.inputs(1.0)
    with pytest.raises(ExportError, match=r"exists\. Choose another place, or say overwrite"):
        deltapass.export(plain.model, args, kwargs, plain.path, schedule="none")
    assert (plain.path / "plan.json").read_text() == before
    options = {"schedule": "none", "verify": False, "overwrite": True, "steps": 3}
    plan = deltapass.export(plain.model, args, kwargs, plain.path, **options)
    assert plan.steps == 3 and deltapass.load(plain.path).plan == plan
    assert [path.name for path in plain.path.parent.iterdir()] == ["bundle"]
