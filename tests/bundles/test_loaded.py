"""A loaded bundle stands in for its model: in calls, in pipelines, and nothing else than it."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import compiled, follow, oracle, tensors
from models import B, C, Denoiser, T, make, noise

import deltapass
from deltapass.bundles.loaded import floating_timestep
from deltapass.errors import (
    BundleError,
    MissingDeviceError,
    OptionError,
    RefusalWarning,
    SignatureError,
)
from deltapass.exporting.compare import relative_error
from deltapass.schedule.rules import Span
from deltapass.selector.recent import LEAST

for library in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
    pytest.importorskip(library)

STEPS, TOLERANCE = 6, 2e-5
SCHEDULE = deltapass.Schedule(cached_blocks=1, boundary=1.0)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return make("adaln", depth=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, model: Denoiser) -> Path:
    """A bundle of a model of two blocks, for a batch of 1 to 4, `steps` fixed."""
    path = tmp_path_factory.mktemp("loaded") / "bundle"
    options: dict[str, Any] = {"schedule": SCHEDULE, "steps": STEPS, "batch": (1, 4)}
    deltapass.export(model, *model.inputs(1.0), path, verify=False, **options)
    return path


@pytest.fixture(scope="module")
def loaded(path: Path) -> deltapass.LoadedModel:
    return deltapass.load(path)


def call(model: deltapass.LoadedModel, *args: Any, **kwargs: Any) -> Any:
    """One call at the first step of a session."""
    with torch.no_grad(), deltapass.session(STEPS) as session:
        session.step(0)
        return model(*args, **kwargs)


def inputs(batch: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(0, batch, T, C), torch.full((batch,), 0.5)


# ---- calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda x, t: ((x.double(), t), {}),
            r"hidden_states is torch\.float64 of shape \(2, 16",
        ),
        (lambda x, t: ((x[0], t), {}), r"of shape \(16, 4\); the bundle takes .*\(batch, 16, 4\)"),
        (lambda x, t: ((x[:, :8], t), {}), r"shape \(2, 8, 4\); the bundle takes .*here \(2, 16"),
        (lambda x, t: ((x, t[:1]), {}), r"timestep has shape \(1,\); the bundle takes \(batch\)"),
        (lambda x, t: ((x, t.double()), {}), r"timestep is torch\.float64"),
        (
            lambda x, t: ((x.to("meta"), t), {}),
            "lies on meta, the bundle runs on cpu",
        ),
        (lambda x, t: ((x.to_sparse(), t), {}), "hidden_states is a sparse_coo tensor"),
        (lambda x, t: ((x,), {}), "timestep is missing"),
        (lambda x, t: ((x, t), {"text": x}), "unexpected arguments: text"),
        (
            lambda x, t: ((x.repeat(3, 1, 1), t.repeat(3)), {}),
            "is 6; the bundle takes 1 to 4",
        ),
        (lambda x, t: ((x[:0], t[:0]), {}), "batch is 0; the bundle takes 1 to 4"),
    ],
)
def test_another_call_is_refused_by_name(
    change: Callable[..., Any], text: str, loaded: deltapass.LoadedModel
) -> None:
    args, kwargs = change(*inputs())
    with pytest.raises(SignatureError, match=text):
        call(loaded, *args, **kwargs)


def test_a_view_that_negates_is_read_as_what_it_says(loaded: deltapass.LoadedModel) -> None:
    """Torch keeps a bit and leaves the memory as it is, which is all that an engine sees."""
    x, timestep = inputs()
    negated = torch._neg_view(-x)
    assert negated.is_neg() and torch.equal(negated, x)
    assert torch.equal(call(loaded, negated, timestep), call(loaded, x, timestep))


def test_a_refused_call_leaves_the_bundle_usable(
    loaded: deltapass.LoadedModel, model: Denoiser
) -> None:
    x, timestep = inputs()
    with pytest.raises(SignatureError):
        call(loaded, x[:, :8], timestep)
    with torch.no_grad():
        wanted = model(x, timestep)
    assert relative_error([call(loaded, x, timestep)], [wanted]) < TOLERANCE


def test_names_and_positions_give_the_same(loaded: deltapass.LoadedModel) -> None:
    x, timestep = inputs()
    one, two = call(loaded, x, timestep), call(loaded, timestep=timestep, hidden_states=x)
    assert torch.equal(one, two)


def test_it_is_a_module_without_weights(loaded: deltapass.LoadedModel) -> None:
    assert isinstance(loaded, torch.nn.Module) and not loaded.training
    assert not list(loaded.parameters()) and not loaded.state_dict()
    assert (loaded.dtype, loaded.device) == (torch.float32, torch.device("cpu"))
    assert loaded.to("cpu") is loaded
    with loaded.cache_context("cond"):
        pass
    with pytest.raises(AttributeError, match="config has no 'in_channels'"):
        loaded.config.in_channels  # noqa: B018


def test_it_is_freed_at_once(path: Path) -> None:
    loaded = deltapass.load(path)
    call(loaded, *inputs())
    alive = weakref.ref(loaded)
    gc.disable()
    try:
        del loaded
        assert alive() is None
    finally:
        gc.enable()


def test_an_unknown_span_runs_in_full_and_says_so(
    loaded: deltapass.LoadedModel, model: Denoiser
) -> None:
    other = deltapass.Schedule(cached_blocks=2, boundary=1.0)
    x, timestep = inputs()
    with (
        torch.no_grad(),
        deltapass.session(STEPS, schedule=other) as session,
        pytest.warns(RefusalWarning, match=r"the bundle cannot skip blocks 0\.\.1"),
    ):
        session.step(0)
        given = loaded(x, timestep)
    assert relative_error([given], [model(x, timestep)]) < TOLERANCE


def test_another_schedule_over_its_spans_is_followed(
    loaded: deltapass.LoadedModel, model: Denoiser
) -> None:
    table = (None, *(Span(1, 2),) * 3, None, Span(1, 2))
    other = deltapass.ExplicitSchedule(table)
    calls = [model.inputs(1000 * (1 - at / STEPS), at) for at in range(STEPS)]
    with deltapass.session(STEPS, schedule=other) as session:
        outputs = follow(loaded, calls, session)
    assert [entry.realised for entry in session.report().entries] == list(table)
    assert relative_error(tensors(outputs), oracle(model, table, calls)) < TOLERANCE


def test_selectors_of_many_sizes_are_not_kept_for_ever(loaded: deltapass.LoadedModel) -> None:
    for batch in (1, 2, 3, 4):
        call(loaded, *inputs(batch))
    assert 4 <= len(loaded._selectors) <= LEAST


# ---- loading -----------------------------------------------------------------------------------


def test_the_model_it_was_made_of_fits_and_another_does_not(path: Path, model: Denoiser) -> None:
    other = copy.deepcopy(model)
    assert deltapass.load(path, model=other).plan.weights["count"] == len(model.state_dict())
    with torch.no_grad():
        next(other.parameters()).view(-1)[-1] += 1e-6
    with pytest.raises(BundleError, match="exported from another model: the weights differ"):
        deltapass.load(path, model=other)
    with pytest.raises(BundleError, match=r"another model: the model has no weight 'blocks\.1\."):
        deltapass.load(path, model=make("adaln", depth=1))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"providers": ["NoSuchProvider"]}, MissingDeviceError, "has no NoSuchProvider; it has "),
        (
            {"thread": 1},
            OptionError,
            "option 'thread' is 1.*options of this format: providers",
        ),
        ({"device": "cuda"}, OptionError, "option 'device' is 'cuda'"),
        ({"optimize": "no"}, OptionError, "option 'optimize' is 'no'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], error: type[Exception], text: str, path: Path
) -> None:
    with pytest.raises(error, match=text):
        deltapass.load(path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"share_weights": True},
        {"optimize": False},
        {"providers": ["CPUExecutionProvider"]},
        {"providers": [("CPUExecutionProvider", {})], "check_contents": False},
        {"session_options": {"session.intra_op.allow_spinning": "0"}, "threads": 2},
    ],
)
def test_options_change_no_results(
    options: dict[str, Any], path: Path, loaded: deltapass.LoadedModel
) -> None:
    given = call(deltapass.load(path, **options), *inputs())
    assert relative_error([given], [call(loaded, *inputs())]) < TOLERANCE


@pytest.mark.parametrize("name", ["weights.safetensors", "prologue_blocks_0_1.onnx", "delta.onnx"])
def test_a_damaged_copy_is_not_loaded(name: str, path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "copy")
    assert call(deltapass.load(copy), *inputs()).shape == (B, T, C)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 255
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        deltapass.load(copy)
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"{name} has {len(data) - 1} bytes"):
        deltapass.load(copy, check_contents=False)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        deltapass.load(copy)


def test_files_may_be_links_as_in_a_download_cache(path: Path, tmp_path: Path) -> None:
    blobs = shutil.copytree(path, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for at, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"blob_{at}")
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..", "blobs", blob.name))
    assert call(deltapass.load(tmp_path / "snapshot"), *inputs()).shape == (B, T, C)


def test_a_bundle_names_no_place_of_the_machine_it_was_made_on(path: Path) -> None:
    for file in path.iterdir():
        assert str(Path(__file__).parents[2]).encode() not in file.read_bytes(), file.name
    assert str(path.parent) not in json.dumps(json.loads((path / "plan.json").read_text()))


# ---- plans that contradict themselves -----------------------------------------------------------

ALTERED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "tensors": (("signature", "template", "timestep"), 3.0, "a signature with the tensors hidden"),
    "outside": (("segments", 0, "file"), "../other.onnx", "is not among the files"),
    "variant": (("variants", 0, "kind"), "cached", "a variant is missing"),
    "reads": (("variants", 0, "calls", 0, "inputs", 0), "nothing", "reads what was not made"),
    "type": (("inputs", 0, "dtype"), "float33", "type 'float33' is none of torch's"),
    "size": (("inputs", 0, "shape", 0), "rows", "dimension 'rows' names rows"),
    "table": (("table", 0, "variant"), "other", "the table names a variant"),
    "span": (("blocks",), 1, "of 1 blocks"),
    "predictor": (("predictor",), "linear", "a schedule that predicts by 'reuse'"),
    "schedule": (("schedule", "predictor"), "linear", "a schedule that weighs 2 deltas"),
    "no delta": (("table", 1, "reads"), [], "row 1 is cached and reads no delta"),
    "later": (("table", 1, "reads"), [2], "row 1 reads deltas that no refresh gave"),
    "weights": (("table", 1, "weights"), [[1.0]], "row 1 has weights of another form"),
    "refresh": (("table", 0, "reads"), [0], "row 0 refreshes and reads deltas"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_plan_that_contradicts_itself_is_refused(name: str, path: Path, tmp_path: Path) -> None:
    place, value, says = ALTERED[name]
    shutil.copytree(path, tmp_path / "b")
    plan = json.loads((path / "plan.json").read_text())
    inner = plan
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "b" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BundleError, match=rf"contradicts itself: .*{says}"):
        deltapass.load(tmp_path / "b")


# ---- pipelines ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # NumPy's, of samplers
def test_a_pipeline_with_a_bundle_is_that_with_the_compiled_model(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from models.tiny import make_tiny
    from models.zoo import make_pipe

    zoo = make_pipe("pixart-dpm")
    tiny = replace(make_tiny("pixart"), model=zoo.denoiser, blocks=zoo.blocks)
    options: dict[str, Any] = {"cached_blocks": 2, "boundary": 0.5}
    deltapass.export(tiny.model, *tiny.call(1.0), tmp_path / "bundle", verify=False, **options)
    loaded = deltapass.load(tmp_path / "bundle", model=tiny.model)
    calls = [tiny.call(1 - at / STEPS, at) for at in range(STEPS)]
    table = deltapass.Schedule(cached_blocks=2, boundary=0.5).table(STEPS, 4)
    with deltapass.session(STEPS) as session:
        outputs = follow(loaded, calls, session)
    assert relative_error(tensors(outputs), tensors(oracle(tiny, table, calls))) < TOLERANCE

    images = []
    for model in (loaded, compiled(zoo.denoiser, **options)):
        zoo.pipe.transformer = model
        with deltapass.attach(zoo.pipe):
            images.append(zoo.run())
            report = deltapass.last_report(zoo.pipe)
        assert report is not None and report.as_planned
        assert [e.realised for e in report.entries] == list(table) and report.calls == STEPS
    assert relative_error(images[:1], images[1:]) < 10 * TOLERANCE
    assert loaded.config.in_channels == 4 and loaded.config["num_layers"] == 4
    with torch.no_grad():
        whole = loaded(*tiny.call(1.0)[0], **{**tiny.call(1.0)[1], "return_dict": True})
    assert torch.is_tensor(whole.sample) and whole[0] is whole.sample


def test_whole_timesteps_may_be_integers(loaded: deltapass.LoadedModel) -> None:
    x, t = inputs()
    whole = torch.full_like(t, 7.0)
    torch.testing.assert_close(call(loaded, x, whole.long()), call(loaded, x, whole))


@pytest.mark.parametrize(
    ("dtype", "fits", "rounds"),
    [(torch.bfloat16, 996, 997), (torch.float16, 2046, 2049), (torch.float32, 16_777_215, None)],
)
def test_whole_timesteps_are_not_rounded(dtype: torch.dtype, fits: int, rounds: int | None) -> None:
    made = floating_timestep("t", torch.tensor([fits, 0]), dtype)
    assert made.dtype == dtype and made.tolist() == [fits, 0]
    if rounds is not None:
        with pytest.raises(SignatureError, match=rf"t holds whole numbers that {dtype} rounds"):
            floating_timestep("t", torch.tensor([fits, rounds]), dtype)


def test_inputs_that_require_gradients_are_refused(loaded: deltapass.LoadedModel) -> None:
    x, t = inputs()
    with deltapass.session(1) as session, pytest.raises(SignatureError, match="no_grad"):
        session.step(0)
        loaded(x.requires_grad_(), t)
