"""The whole chain through its public entry: torch.compile(model, backend="deltadit")."""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any, Final

import pytest
import torch
from driving import by_timestep, compiled, follow, in_session, oracle, sampled, tensors
from models import make, noise
from raising import raises_in_compile
from reference import Call, DeltaCacheReference
from sweeps import sweep

import deltapass
from deltapass import backend
from deltapass.backend import PerShape, deltadit, failures_refused
from deltapass.compiler.lowering import load_lowering
from deltapass.errors import (
    AnalysisError,
    BoundaryOutsideError,
    GradientsEnabledError,
    GraphBreakError,
    InternalError,
    LaunchedWarning,
    MixedDevicesError,
    NoBlocksError,
    OptionError,
    RefusalWarning,
    ScheduleError,
    StepUnknownError,
    TooManyCachedBlocksError,
    UnknownLoweringError,
    UnknownOptionError,
    UnsupportedModeError,
)
from deltapass.options import parse_options
from deltapass.schedule.predictors import PREDICTORS
from deltapass.schedule.rules import Span
from deltapass.schedule.weights import Weights
from deltapass.selector.recent import LEAST

STEPS = 8
DEEP, SHALLOW = Span(2, 6), Span(0, 4)
TABLE = (None, DEEP, None, DEEP, None, SHALLOW, None, SHALLOW)
SCHEDULE = {"cached_blocks": 4, "boundary": 0.5}


def calls_of(toy: Any, steps: int = STEPS, shift: int = 0) -> list[Call]:
    return [toy.inputs(999.0 * (1 - step / steps), step + shift) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "order"),
    [("adaln", 0), ("two_stream", 0), ("cross_attention", 1), ("in_place", 1), ("attributes", 0)],
)
def test_trajectory_equals_the_oracle_bit_for_bit(name: str, order: int) -> None:
    toy = make(name)
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        outputs = follow(compiled(toy, order=order, **SCHEDULE), calls, session)
        assert tuple(entry.realised for entry in session.report().entries) == TABLE
    for ours, theirs in zip(
        tensors(outputs), tensors(oracle(toy, TABLE, calls, order)), strict=True
    ):
        assert torch.equal(ours, theirs)


UNEVEN = (None, None, DEEP, DEEP, None, SHALLOW, DEEP, None, None, DEEP, None, SHALLOW, DEEP)


@pytest.mark.parametrize(
    ("name", "predictor"),
    sweep(
        itertools.product(("adaln", "two_stream"), PREDICTORS),
        [("adaln", "linear"), *(("two_stream", predictor) for predictor in PREDICTORS)],
    ),
)
def test_every_predictor_equals_the_oracle_where_refreshes_lie_unevenly(
    name: str, predictor: str
) -> None:
    toy, steps = make(name), len(UNEVEN)
    calls = calls_of(toy, steps)
    with deltapass.session(steps=steps) as session:
        model = compiled(toy, schedule=deltapass.ExplicitSchedule(UNEVEN, predictor))
        outputs = follow(model, calls, session)
        entries = session.report().entries
        assert tuple(entry.realised for entry in entries) == UNEVEN
    blocks = toy.blocks_in_order()
    reference = DeltaCacheReference(toy, blocks, toy.streams, predictor, steps=steps)
    expected = reference.run(UNEVEN, calls)
    assert all(map(torch.equal, tensors(outputs), tensors(expected)))


OWN: Final = {
    2: ((1.3, -0.3),),
    3: ((0.9,),),
    5: ((1.7, -0.9, 0.15), (0.8, 0.1, 0.05)),  # two streams: the deep blocks drop the text
    9: ((2.0, -1.5, 0.7, -0.2),),
    11: ((1.1, -0.1),),
}


@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_weights_of_rows_equal_the_oracle(predictor: str) -> None:
    toy, steps = make("two_stream"), len(UNEVEN)
    calls = calls_of(toy, steps)
    weights = tuple(Weights(OWN[step]) if step in OWN else None for step in range(steps))
    schedule = deltapass.ExplicitSchedule(UNEVEN, predictor, weights)
    with deltapass.session(steps=steps) as session:
        outputs = follow(compiled(toy, schedule=schedule), calls, session)
        assert tuple(entry.realised for entry in session.report().entries) == UNEVEN
    reference = DeltaCacheReference(
        toy, toy.blocks_in_order(), toy.streams, predictor, steps=steps, given=OWN
    )
    for step, (ours, theirs) in enumerate(zip(outputs, reference.run(UNEVEN, calls), strict=True)):
        assert torch.equal(*tensors([ours]), *tensors([theirs])), step


def test_timestep_input_alone_gives_the_same_trajectory_once_it_is_sure() -> None:
    toy = make("adaln")
    calls, table = sampled(calls_of(toy)), by_timestep(TABLE)
    outputs = follow(compiled(toy, **SCHEDULE), calls)
    for ours, theirs in zip(tensors(outputs), tensors(oracle(toy, table, calls)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{"interval": 1}, {"cached_blocks": 0}, {"schedule": "none"}])
def test_never_caching_is_the_plain_model(options: dict[str, Any]) -> None:
    toy = make("two_stream")
    calls = calls_of(toy)
    ours = follow(compiled(toy, **options), calls)
    for one, other in zip(tensors(ours), tensors(follow(toy, calls)), strict=True):
        assert torch.equal(one, other)


def test_no_recompiles_over_steps_branches_and_trajectories() -> None:
    toy = make("adaln")
    model = compiled(toy, **SCHEDULE)
    follow(model, sampled(calls_of(toy))[:1])
    with torch._dynamo.config.patch(error_on_recompile=True):
        follow(model, sampled(calls_of(toy)))
        with deltapass.session(steps=STEPS) as session:
            for step, (args, kwargs) in enumerate(calls_of(toy, shift=50)):
                for branch in ("cond", "uncond"):
                    session.step(step, branch=branch)
                    with torch.no_grad():
                        model(*args, **kwargs)


def test_import_of_the_package_is_not_needed_to_name_the_backend() -> None:
    assert "deltadit" in torch._dynamo.list_backends()


def test_whole_fusion_gives_the_same_bits_on_eager() -> None:
    toy = make("two_stream")
    calls = calls_of(toy)
    results = []
    for fuse in ("blocks", "whole"):
        torch._dynamo.reset()
        with deltapass.session(steps=STEPS) as session:
            results.append(tensors(follow(compiled(toy, fuse=fuse, **SCHEDULE), calls, session)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_inductor_follows_the_oracle_within_tolerance() -> None:
    toy = make("two_stream")
    calls = calls_of(toy)
    with deltapass.session(steps=STEPS) as session:
        outputs = follow(compiled(toy, lowering="inductor", **SCHEDULE), calls, session)
    for ours, theirs in zip(tensors(outputs), tensors(oracle(toy, TABLE, calls)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_are_not_copied() -> None:
    toy = make("adaln")
    model = compiled(toy, **SCHEDULE)
    args, kwargs = toy.inputs(999.0, 0)
    before = follow(model, [(args, kwargs)])[0]
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.mul_(1.5)
    after = follow(model, [(args, kwargs)])[0]
    assert not torch.equal(tensors([before])[0], tensors([after])[0])
    assert torch.equal(tensors([after])[0], tensors(follow(toy, [(args, kwargs)]))[0])


# ---- gradients --------------------------------------------------------------------------------


def test_training_is_untouched() -> None:
    toy = make("adaln").requires_grad_(True)
    args, kwargs = toy.inputs(500.0, 0)
    gradients = []
    with pytest.warns(RefusalWarning, match="gradients are enabled"):
        for model in (toy, compiled(toy)):
            toy.zero_grad()
            model(*args, **kwargs).square().sum().backward()
            gradients.append([p.grad.clone() for p in toy.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_gradients_are_an_error_where_strict() -> None:
    toy = make("adaln").requires_grad_(True)
    args, kwargs = toy.inputs(500.0, 0)
    with raises_in_compile(GradientsEnabledError, match="no_grad"):
        compiled(toy, strict=True)(*args, **kwargs)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"intervall": 2}, UnknownOptionError, "Did you mean 'interval'"),
        ({"order": 7}, OptionError, "order"),
        ({"lowering": "inducter"}, UnknownLoweringError, "Did you mean 'inductor'"),
        ({"cached_blocks": 7}, TooManyCachedBlocksError, "7 but the model has 6 blocks"),
        ({"boundary": 30, "steps": 20}, BoundaryOutsideError, "30 lies outside .* 20 steps"),
    ],
)
def test_bad_options_are_refused_by_name(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    toy = make("adaln")
    args, kwargs = toy.inputs(999.0, 0)
    with torch.no_grad(), raises_in_compile(error, match=message):
        compiled(toy, **options)(*args, **kwargs)


def test_a_mode_that_is_not_supported_is_refused() -> None:
    toy = make("adaln")
    args, kwargs = toy.inputs(999.0, 0)
    with torch.no_grad(), raises_in_compile(UnsupportedModeError, match="lite"):
        torch.compile(toy, backend="deltadit", mode="lite")(*args, **kwargs)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_mode_with_cuda_graphs_is_taken_as_torch_hands_it_over(mode: str) -> None:
    """Beside options, which torch.compile does not take with a mode; without a GPU it is said."""
    toy = make("adaln")
    args, kwargs = toy.inputs(999.0, 0)
    backend = functools.partial(deltadit, options={"lowering": "eager"})
    with torch.no_grad(), pytest.warns(LaunchedWarning, match="the device cpu, which has none"):
        out = torch.compile(toy, backend=backend, mode=mode, fullgraph=True)(*args, **kwargs)
    assert torch.equal(out, toy(*args, **kwargs))


def test_model_without_repeated_blocks_runs_and_says_why() -> None:
    toy = make("no_blocks")
    args, kwargs = toy.inputs(999.0, 0)
    with torch.no_grad():
        with pytest.warns(RefusalWarning, match="no stack of repeated blocks"):
            ours = compiled(toy)(*args, **kwargs)
        assert torch.equal(ours, toy(*args, **kwargs))
        torch._dynamo.reset()
        with raises_in_compile(NoBlocksError):
            compiled(toy, strict=True)(*args, **kwargs)


class Broken(torch.nn.Module):
    """A denoiser whose graph breaks before its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("adaln")

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states * 2
        torch._dynamo.graph_break()
        return self.inner(hidden_states, timestep)


def test_model_whose_graph_breaks_runs_and_says_why() -> None:
    model = Broken()
    args, kwargs = model.inner.inputs(999.0, 0)
    with torch.no_grad():
        broken = torch.compile(model, backend="deltadit", options={"lowering": "eager"})
        with pytest.warns(RefusalWarning, match="broken into pieces"):
            ours = broken(*args, **kwargs)
        assert torch.equal(ours, model(*args, **kwargs))
        torch._dynamo.reset()
        strict = torch.compile(
            model, backend="deltadit", options={"lowering": "eager", "strict": True}
        )
        with raises_in_compile(GraphBreakError):
            strict(*args, **kwargs)


class TwoDevices(torch.nn.Module):
    """A denoiser whose second half lies on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.blocks.append(torch.nn.Linear(8, 8, device="meta"))
        self.blocks.append(torch.nn.Linear(8, 8, device="meta"))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = hidden_states.to(block.weight.device)
            hidden_states = hidden_states + block(hidden_states).tanh()
        return hidden_states


def test_mixed_devices_are_refused_with_their_names() -> None:
    model = compiled(TwoDevices(), strict=True)
    with torch.no_grad(), raises_in_compile(MixedDevicesError, match=r"cpu, meta"):
        model(noise(0, 2, 4, 8), torch.tensor(3.0))


def test_changed_batch_in_mid_trajectory_refreshes() -> None:
    toy = make("adaln")
    model = compiled(toy, **SCHEDULE)
    calls = calls_of(toy)
    half = [(tuple(a[:1] for a in args), kwargs) for args, kwargs in calls]
    assert not any(half[0][1])
    with deltapass.session(steps=STEPS) as session:
        follow(model, calls[:1], session)
        for step in (1, 2, 3):
            session.step(step)
            with torch.no_grad():
                out = model(*half[step][0])
                if step != 3:
                    assert torch.equal(out, toy(*half[step][0]))
        entries = session.report().entries
    assert [entry.realised for entry in entries] == [None, None, None, DEEP]
    assert [entry.cause for entry in entries[1:]] == [deltapass.Cause.BATCH, None, None]
    expected = "hidden_states changed from float32[2, 16, 4] to float32[1, 16, 4]"
    assert entries[1].reason == expected


def test_dynamic_shapes_compile_each_shape_once_and_stay_right() -> None:
    toy = make("adaln")
    model = torch.compile(
        toy, backend="deltadit", dynamic=True, fullgraph=True,
        options={"lowering": "eager", **SCHEDULE},
    )  # fmt: skip
    calls = calls_of(toy)
    for batch in (2, 1):
        part = [(tuple(a[:batch] for a in args), kwargs) for args, kwargs in calls]
        with deltapass.session(steps=STEPS) as session:
            outputs = tensors(follow(model, part, session))
            assert session.report().as_planned
        for ours, theirs in zip(outputs, tensors(oracle(toy, TABLE, part)), strict=True):
            assert torch.equal(ours, theirs)


class NoTimestep(torch.nn.Module):
    """A denoiser that is given its conditioning ready-made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("adaln")

    def forward(self, hidden_states: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        x = self.inner.embedding(hidden_states)
        for block in self.inner.blocks:
            x = block(x, embedding)
        return self.inner.head(x, embedding)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        (sample, _), _ = self.inner.inputs(999.0, 0)
        return sample, torch.ones(len(sample), 32)


def test_unknown_step_runs_the_full_graph_and_warns_once() -> None:
    model = NoTimestep()
    args = model.inputs()
    ours = compiled(model)
    with torch.no_grad():
        with pytest.warns(RefusalWarning, match="step of this call is unknown"):
            first = ours(*args)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = ours(*args)
    assert torch.equal(first, model(*args))
    assert torch.equal(second, first)


def test_unknown_step_is_an_error_where_strict() -> None:
    model = NoTimestep()
    args = model.inputs()
    with torch.no_grad(), pytest.raises(StepUnknownError, match=r"deltapass\.session"):
        compiled(model, strict=True)(*args)


class Autocast(torch.nn.Module):
    """A denoiser that computes its conditioning under autocast and the rest without."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("adaln")
        self.scale = torch.nn.Linear(4, 4).requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scale = self.scale(hidden_states)
        return self.inner(hidden_states + scale.float(), timestep)


def test_autocast_ends_where_the_model_ends_it() -> None:
    model = Autocast()
    calls = calls_of(model.inner)
    ours = follow(compiled(model, schedule="none"), calls)
    for one, other in zip(tensors(ours), tensors(follow(model, calls)), strict=True):
        assert one.dtype is other.dtype is torch.float32
        assert torch.equal(one, other)


class Conditional(torch.nn.Module):
    """A denoiser with sub-graphs, one of which runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make("adaln")

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        early = timestep.max() > 500
        scaled = torch.cond(early, lambda x: x.sin(), lambda x: x.cos(), (hidden_states,))
        return self.inner(scaled, timestep)


def test_model_with_sub_graphs_equals_the_oracle() -> None:
    model = Conditional()
    calls = calls_of(model.inner)
    outputs, report = in_session(compiled(model, **SCHEDULE), calls)
    assert report.cached == 4
    reference = DeltaCacheReference(model, model.inner.blocks, model.inner.streams)
    assert all(map(torch.equal, outputs, reference.run(TABLE, calls)))


def test_shapes_in_rotation_are_compiled_at_most_twice_and_weights_are_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    def make_selector(_: PerShape, arguments: Any) -> Any:
        made.append(len(arguments[0]))
        return lambda *given: len(given[0])

    class Weight:
        """Has no shape to be asked for."""

    monkeypatch.setattr(PerShape, "_compile", make_selector)
    options = parse_options({"lowering": "eager"}, None)
    graph = torch.fx.GraphModule({}, torch.fx.Graph())
    run = PerShape(graph, options, load_lowering("eager"), data=(0,))
    for _ in range(5):
        for size in range(1, LEAST + 2):
            assert run(torch.zeros(size), Weight()) == size
    assert len(made) <= 2 * (LEAST + 1)


def test_one_shape_in_two_layouts_is_two_selectors(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    def make_selector(_: PerShape, arguments: Any) -> Any:
        made.append(arguments[0].stride())
        return lambda *given: given[0].stride()

    monkeypatch.setattr(PerShape, "_compile", make_selector)
    graph = torch.fx.GraphModule({}, torch.fx.Graph())
    options = parse_options({"lowering": "eager"}, None)
    run = PerShape(graph, options, load_lowering("eager"), data=(0,))
    layouts = [torch.zeros(3, 4), torch.zeros(4, 3).T, torch.zeros(1, 4).expand(3, 4)]
    for _ in range(2):
        for tensor in layouts:
            assert run(tensor) == tensor.stride()
    assert made == [(4, 1), (1, 3), (0, 1)]


def test_refused_graph_of_dynamic_shapes_is_still_lowered() -> None:
    toy = make("no_blocks")
    args, kwargs = toy.inputs(999.0, 0)
    model = torch.compile(toy, backend="deltadit", dynamic=True)
    with torch.no_grad():
        with pytest.warns(RefusalWarning, match="no stack of repeated blocks"):
            ours = model(*args, **kwargs)
        torch.testing.assert_close(ours, toy(*args, **kwargs), rtol=1e-4, atol=1e-4)


# ---- what nobody foresaw ------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("stage", ["capture", "find_stack", "outline", "assemble"])
@pytest.mark.parametrize("error", [AttributeError("no such field\nat all"), InternalError("a bug")])
def test_failure_of_a_stage_is_a_refusal(
    stage: str, error: Exception, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        torch._C._functorch._vmap_increment_nesting(2, "error")
        raise error

    monkeypatch.setattr(backend, stage, fails)
    toy = make("adaln", depth=2)
    args, kwargs = toy.inputs(999.0, 0)
    options = {"lowering": "eager"}
    with torch.no_grad():
        with pytest.warns(RefusalWarning, match="could not be analysed"):
            model = torch.compile(toy, backend="deltadit", dynamic=dynamic, options=options)
            ours = model(*args, **kwargs)
        assert torch.equal(ours, toy(*args, **kwargs))
        torch._dynamo.reset()
        with raises_in_compile(AnalysisError, match=str(error).split("\n")[0]) as caught:
            compiled(toy, strict=True)(*args, **kwargs)
    assert caught.value.__cause__ is error


def test_what_the_user_should_mend_is_no_failure() -> None:
    for error in (
        ScheduleError("a", "b"),
        OptionError("a", 1, "b"),
        RefusalWarning("made an error"),
    ):
        with pytest.raises(type(error)) as caught, failures_refused():
            raise error
        assert caught.value is error
