"""What every lowering of the table must offer; a new one passes this file unchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deltapass.compiler.capture import capture
from deltapass.compiler.lowering import LoweredBodies, Lowering, load_lowering
from deltapass.compiler.outline import Outline, outline
from deltapass.compiler.plan import plan_span
from deltapass.compiler.rewrite import cached_program, inline, refresh_program
from deltapass.errors import MissingLibraryError
from deltapass.graph.program import Body, TensorSpec
from deltapass.graph.stack import Block, Stack
from deltapass.options import LOWERINGS
from deltapass.schedule.keeps import Keeps
from deltapass.schedule.rules import Span

D, T, S = 16, 6, 3
# Allowed difference from the eager body, relative and absolute: sums run in another order.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.int64: (0.0, 0.0)}


def _here(name: str) -> bool:
    """Whether a lowering's library is installed, and its device there."""
    try:
        load_lowering(name)
    except MissingLibraryError:
        return False
    return name != "tensorrt" or torch.cuda.is_available()


HERE = tuple(name for name in LOWERINGS if _here(name))
every_lowering = pytest.mark.parametrize("name", HERE)


# ---- bodies ------------------------------------------------------------------------------------


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """The plainest block."""
    return (x + F.gelu(F.linear(F.layer_norm(x, (D,)), weight, bias)),)


def attention(x: Tensor, weight: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
    """Heads, a softmax, and integers."""
    parts = F.linear(x, weight).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
    mixed = mixed.transpose(1, 2).flatten(2)
    return x + mixed * torch.cos(timestep * 0.1)[:, None, None].type_as(x), timestep + 1


def views(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """A transposed input; outputs that are slices of one tensor, and a transposed one."""
    both = torch.cat([y, x.transpose(1, 2)], dim=1)
    both = both + torch.tanh(both)
    return both[:, S:], both[:, :S], (x * 2.0).transpose(1, 2)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def body_of(function: Callable[..., Any], *arguments: Tensor) -> Body:
    """The function as one body."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    given = [graph.placeholder(f"in_{at}") for at in range(len(arguments))]
    results = function(*[fx.Proxy(node, tracer) for node in given])
    stop = len(graph.nodes)
    graph.output(tuple(result.node for result in results))
    captured = capture(fx.GraphModule(nn.Module(), graph), arguments)
    block = Block(name="all", first=len(given), stop=stop)
    found = outline(captured, Stack(blocks=(block,), found_by="hand"))
    return found.program.calls[0].body


def joined_block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([y, x], dim=1)
    both = both + torch.tanh(both)
    return both[:, S:], both[:, :S]


@functools.cache
def joined() -> Outline:
    """Two blocks whose live-outs are slices of a larger tensor: they have gaps."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    values: Any = [fx.Proxy(graph.placeholder(name), tracer).sin() for name in ("x", "y")]
    blocks = []
    for index in range(2):
        first = len(graph.nodes)
        values = joined_block(*values)
        blocks.append(Block(name=f"block.{index}", first=first, stop=len(graph.nodes)))
    graph.output(tuple(value.cos().node for value in values))
    captured = capture(fx.GraphModule(nn.Module(), graph), (noise(2, T, D), noise(2, S, D)))
    return outline(captured, Stack(blocks=tuple(blocks), found_by="hand"))


def rewritten(label: str, keeps: Keeps = "delta") -> Body:
    """A body that the rewrite makes, or a whole variant."""
    plan = plan_span(joined(), Span(0, 2, keeps))
    if label == "whole":
        return inline(cached_program(joined().program, plan, 1))
    program = refresh_program(joined().program, [plan])
    if label.startswith("predict"):
        program = cached_program(joined().program, plan, int(label[-1]))
    return next(call.body for call in program.calls if call.label == label)


BODIES: dict[str, Callable[[], Body]] = {
    "layer": lambda: body_of(layer, noise(2, T, D), noise(D, D), noise(D)),
    "layer, bfloat16": lambda: body_of(
        layer, *(noise(*shape, dtype=torch.bfloat16) for shape in ((2, T, D), (D, D), (D,)))
    ),
    "attention": lambda: body_of(
        attention, noise(2, T, D), noise(3 * D, D), torch.tensor([3, 700])
    ),
    "views": lambda: body_of(views, noise(2, D, T), noise(2, S, D)),
    "delta": lambda: rewritten("delta"),
    "predict_0": lambda: rewritten("predict_0"),
    "predict_1": lambda: rewritten("predict_1"),
    "feature": lambda: rewritten("feature", "feature"),
    "predict_0 of a feature": lambda: rewritten("predict_0", "feature"),
    "whole variant": lambda: rewritten("whole"),
}


def arguments_for(body: Body) -> list[Tensor]:
    """Values laid out as the body's inputs are."""
    given = []
    for index, spec in enumerate(body.inputs):
        value = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype)
        if spec.dtype.is_floating_point:
            value.copy_(torch.randn(spec.shape, generator=torch.Generator().manual_seed(index)))
        else:
            value.copy_(torch.arange(value.numel()).view(spec.shape) * 100 + 3)
        given.append(value)
    return given


@functools.cache
def lowered(name: str, case: str) -> tuple[Body, Callable[..., Any]]:
    body = BODIES[case]()
    reason = load_lowering(name).can_lower(body)
    if reason is not None and "bfloat16" in reason:
        pytest.skip(f"{name}: {reason}")
    return body, LoweredBodies(name, load_lowering(name)).get(body)


every_body = pytest.mark.parametrize("case", BODIES)


# ---- what a lowered body gives -----------------------------------------------------------------


def test_bodies_cover_gaps_views_and_several_types() -> None:
    specs = [spec for make in BODIES.values() for spec in (*make().inputs, *make().outputs)]
    assert {spec.dtype for spec in specs} == set(TOLERANCE)
    dense = [spec.stride == TensorSpec.of(torch.empty(spec.shape)).stride for spec in specs]
    assert not all(dense)


@every_body
@every_lowering
def test_lowered_body_equals_the_eager_body(name: str, case: str) -> None:
    body, run = lowered(name, case)
    expected = body.module(*arguments_for(body))
    actual = run(*arguments_for(body))
    assert len(actual) == len(expected) == len(body.outputs)
    for one, two in zip(actual, expected, strict=True):
        rtol, atol = (0.0, 0.0) if name == "eager" else TOLERANCE[two.dtype]
        torch.testing.assert_close(one, two, rtol=rtol, atol=atol)


@every_body
@every_lowering
def test_outputs_are_laid_out_as_the_body_says(name: str, case: str) -> None:
    body, run = lowered(name, case)
    assert tuple(map(TensorSpec.of, run(*arguments_for(body)))) == body.outputs


@every_body
@every_lowering
def test_lowered_body_does_not_write_to_its_arguments(name: str, case: str) -> None:
    body, run = lowered(name, case)
    given = arguments_for(body)
    versions = [value._version for value in given]
    run(*given)
    assert [value._version for value in given] == versions
    assert all(torch.equal(a, b) for a, b in zip(given, arguments_for(body), strict=True))


@every_body
@every_lowering
def test_second_run_gives_the_same_and_leaves_the_first_result_alone(name: str, case: str) -> None:
    body, run = lowered(name, case)
    first = run(*arguments_for(body))
    kept = [value.clone() for value in first]
    second = run(*arguments_for(body))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(second, kept, strict=True))


@every_lowering
def test_lowered_body_reads_its_weights_at_every_call(name: str) -> None:
    body, run = lowered(name, "layer")
    x, weight, bias = arguments_for(body)
    zero = run(x, torch.zeros_like(weight), torch.zeros_like(bias))[0]
    torch.testing.assert_close(zero, x)
    assert not torch.allclose(run(x, weight, bias)[0], x)


@every_lowering
def test_lowering_leaves_the_body_as_it_was(name: str) -> None:
    body = BODIES["layer"]()
    before = (str(body.module.graph), [dict(node.meta) for node in body.module.graph.nodes])
    lowering = load_lowering(name)
    assert lowering.can_lower(body) is None
    lowering.lower(body)
    assert (str(body.module.graph), [dict(n.meta) for n in body.module.graph.nodes]) == before


@every_lowering
def test_lowering_inside_a_compiled_model_does_not_disturb_dynamo(name: str) -> None:
    body = BODIES["layer"]()

    def backend(module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        load_lowering(name).lower(body)
        return module.forward

    with torch.no_grad():
        run = torch.compile(torch.sin, backend=backend, fullgraph=True)
        assert torch.equal(run(torch.ones(3)), torch.ones(3).sin())


# ---- the rest of the interface -----------------------------------------------------------------


@every_lowering
def test_plain_graph_equals_the_graph(name: str) -> None:
    module = fx.symbolic_trace(lambda x: (torch.sin(x) * 2.0,))
    x = noise(2, D)
    (actual,) = load_lowering(name).plain(module, [x])(x)
    torch.testing.assert_close(actual, x.sin() * 2.0)


@pytest.fixture
def on_meta() -> Iterator[Body]:
    x, weight, bias = (noise(*shape).to("meta") for shape in ((2, T, D), (D, D), (D,)))
    yield body_of(layer, x, weight, bias)


@every_lowering
def test_body_without_data_is_lowered_or_refused_with_a_reason(name: str, on_meta: Body) -> None:
    lowering: Lowering = load_lowering(name)
    reason = lowering.can_lower(on_meta)
    if reason is None:
        (output,) = lowering.lower(on_meta)(
            *(torch.empty(spec.shape, device="meta") for spec in on_meta.inputs)
        )
        assert TensorSpec.of(output) == on_meta.outputs[0]
    else:
        assert "meta" in reason
