"""Whole trajectories in float16 and bfloat16, and under autocast, against the same run eagerly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from driving import compiled, follow, in_session, oracle, tensors
from models import AdaLNDenoiser, randomise
from models.adaln import ClippedDenoiser
from models.streams import Call
from reference import DeltaCacheReference
from torch import Tensor, nn

pytest.importorskip("diffusers")

from models.tiny import Tiny, make_tiny

import deltapass
from deltapass.schedule.presets import delta_dit
from deltapass.schedule.rules import Span

HALVES = (torch.float16, torch.bfloat16)
FAMILIES = ("dit", "sd3", "flux")  # one stream, joint, double and single
CLIPPING = ("flux", "chroma")
STEPS = 6
ORDERS = ("reuse", "linear")
MOST = torch.finfo(torch.float16).max

every_type = pytest.mark.parametrize("dtype", HALVES, ids=str)


def half(name: str, dtype: torch.dtype) -> Tiny:
    """A tiny model of diffusers, cast as its pipelines cast it."""
    tiny = make_tiny(name)
    tiny.model.to(dtype)
    return tiny


def calls_of(tiny: Tiny, dtype: torch.dtype) -> list[Call]:
    """A trajectory with samples and texts in a type, and timesteps as they are."""

    def cast(value: Any) -> Any:
        floating = torch.is_tensor(value) and value.is_floating_point() and value.ndim > 1
        return value.to(dtype) if floating else value

    calls = (tiny.call(1 - step / STEPS, step) for step in range(STEPS))
    return [(tuple(map(cast, a)), {k: cast(v) for k, v in kw.items()}) for a, kw in calls]


def equal(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    return all(map(torch.equal, tensors(ours), tensors(theirs)))


def check(tiny: Tiny, calls: Sequence[Call]) -> None:
    """Cached steps are the oracle's, refreshes the plain model's, for every order."""
    model = compiled(tiny.model, cached_blocks=2)
    plain = follow(tiny.model, calls)
    for order in ORDERS:
        schedule = delta_dit(cached_blocks=2, boundary=0.5, predictor=order)
        with deltapass.session(steps=STEPS, schedule=schedule) as session:
            outputs = follow(model, calls, session)
        table = tuple(entry.realised for entry in session.report().entries)
        assert sum(row is not None for row in table) == STEPS // 2
        assert all(torch.isfinite(value).all() for value in tensors(outputs))
        assert equal(outputs, oracle(tiny, table, calls, order))
        full = [at for at, row in enumerate(table) if row is None]
        assert equal([outputs[at] for at in full], [plain[at] for at in full])


@every_type
@pytest.mark.parametrize("name", FAMILIES)
def test_trajectory_equals_the_oracle_in_the_same_type(name: str, dtype: torch.dtype) -> None:
    tiny = half(name, dtype)
    check(tiny, calls_of(tiny, dtype))


# ---- near the limits of the type -----------------------------------------------------------------


@contextmanager
def streams_of(tiny: Tiny) -> Iterator[list[Tensor]]:
    """All that enters and leaves blocks."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given = (*args, *kwargs.values(), *(out if isinstance(out, tuple) else (out,)))
        seen.extend(value for value in given if torch.is_tensor(value) and value.ndim == 3)

    hooks = [block.register_forward_hook(note, with_kwargs=True) for block in tiny.blocks]
    yield seen
    for hook in hooks:
        hook.remove()


def swinging(name: str) -> Tiny:
    """A tiny float16 model whose blocks add more than the type holds, which they clip."""
    tiny = half(name, torch.float16)
    for block in tiny.blocks:
        for path, weight in block.named_parameters():
            if path in ("proj_out.weight", "ff_context.net.2.weight"):  # what is clipped after it
                weight.mul_(2_000)
    return tiny


@pytest.mark.parametrize("name", CLIPPING)
def test_streams_that_are_clipped_stay_finite(name: str) -> None:
    tiny = swinging(name)
    calls = calls_of(tiny, torch.float16)
    with streams_of(tiny) as seen:
        follow(tiny.model, calls)
    clipped = [value for value in seen if value.abs().max() == MOST]
    alike = [pair for pair in itertools.pairwise(clipped) if pair[0].shape == pair[1].shape]
    assert any(torch.isinf(one - other).any() for one, other in alike)  # in float16
    check(tiny, calls)


def test_what_overflows_in_the_plain_model_does_in_ours() -> None:
    # Not clipped, the streams leave the range of the type: the model's images are NaN, and so are
    # ours, at cached steps too.
    model = randomise(ClippedDenoiser(swing=MOST)).half()
    for block in model.blocks:
        block.most = torch.inf
    calls = [model.inputs(1000 * (1 - step / STEPS), step) for step in range(STEPS)]
    assert not any(torch.isfinite(out).all() for out in follow(model, calls))
    outputs, report = in_session(compiled(model, cached_blocks=2), calls)
    assert report.cached == STEPS // 2
    assert not any(torch.isfinite(out).all() for out in outputs)


# ---- autocast ------------------------------------------------------------------------------------


class Within(nn.Module):
    """Enters autocast in its forward."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.inner(*args, **kwargs)


class Decorated(nn.Module):
    """Its forward is decorated."""

    def __init__(self, inner: nn.Module, _: torch.dtype) -> None:
        super().__init__()
        self.inner = inner

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Plain(nn.Module):
    """Enters nothing: whoever calls it does."""

    def __new__(cls, inner: nn.Module, _: torch.dtype) -> Any:
        return inner


def test_span_over_a_change_of_type_is_cached_whole() -> None:
    # Under autocast the stream of the first block is of the embedding's type, the next of another.
    tiny = make_tiny("pixart")
    args, kwargs = tiny.call(0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = deltapass.explain(
            tiny.model, *args, options={"schedule": "delta-dit", "cached_blocks": 2}, **kwargs
        )
    spans = {str(line).split(";")[0] for line in report.spans}
    assert spans == {"blocks 0..1", "blocks 2..3"}


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch's, by rms_norm
@pytest.mark.parametrize(
    ("place", "dtype"),
    [(Plain, torch.float16), (Plain, torch.bfloat16), (Within, torch.float16), (Decorated, None)],
)
@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_under_autocast_all_equals_the_model_under_autocast(
    name: str, place: Callable[..., nn.Module], dtype: torch.dtype | None
) -> None:
    tiny = make_tiny(name)
    model = place(tiny.model, dtype)
    calls = [tiny.call(1 - step / STEPS, step) for step in range(STEPS)]
    around = torch.autocast("cpu", dtype=dtype, enabled=place is Plain)
    with around:
        outputs, report = in_session(compiled(model, cached_blocks=2), calls)
        table = tuple(entry.realised for entry in report.entries)
        reference = DeltaCacheReference(model, tiny.blocks, tiny.streams)
        assert equal(outputs, reference.run(table, calls))
        plain = follow(model, calls)
    assert report.cached == STEPS // 2
    assert table[STEPS - 1] == Span(0, 2)  # the first block too, where the type changes
    assert equal(outputs[::2], plain[::2])


class InFloat(AdaLNDenoiser):
    """Streams and conditioning are float32 whatever autocast does within: all specs are equal."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x, c = self.embedding(hidden_states).float(), self.conditioning(timestep).float()
        for block in self.blocks:
            x = block(x, c)
        return self.head(x, c).float()


def test_every_state_of_autocast_is_another_graph_and_reads_no_deltas_of_another() -> None:
    toy = randomise(InFloat())
    model = compiled(toy, cached_blocks=2)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    states = (None, None, torch.bfloat16, torch.bfloat16, torch.float16, None)
    with torch.no_grad(), deltapass.session(steps=STEPS) as session:
        for step, dtype in enumerate(states):
            session.step(step)
            args, kwargs = toy.inputs(1000 * (1 - step / STEPS), step)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                given, plain = model(*args, **kwargs), toy(*args, **kwargs)
            full = session.report().entries[-1].realised is None
            assert torch.equal(given, plain) == full
    done = [entry.realised is not None for entry in session.report().entries]
    assert done == [False, True, False, True, False, False]
    assert graphs["unique_graphs"] - before == len(set(states))
