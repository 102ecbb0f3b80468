"""Residuals of a control network, added between blocks: what a span's streams and deltas are.

Most tests run programs step by step, without a session: which step is cached is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from driving import compiled, follow, oracle, sampled, tensors
from models import make_controlled, noise
from models.streams import TEXT_IMAGE
from reference import SINGLE_STREAM, Call
from torch import Tensor, fx
from torch.utils import _pytree as pytree

pytest.importorskip("diffusers")

from models.tiny import BATCH, WIDTH, Tiny, make_tiny

import deltapass
from deltapass.backend import analyse
from deltapass.compiler.outline import Outline
from deltapass.compiler.plan import plan_span
from deltapass.compiler.rewrite import cached_program, refresh_program
from deltapass.compiler.tracing import trace
from deltapass.graph.executable import Executable
from deltapass.graph.program import Program, Role
from deltapass.schedule.rules import Span

IMAGE = 16  # image tokens of the tiny models
RESIDUALS = 5_000  # seeds of the residuals


def residuals(count: int, seed: int) -> list[Tensor]:
    """Other ones at every step, as a control network makes them."""
    return [noise(RESIDUALS + 100 * seed + at, BATCH, IMAGE, WIDTH) for at in range(count)]


def controlled(tiny: Tiny, **counts: int) -> Tiny:
    """The same model, called with residuals: argument name -> how many."""

    def call(level: float, seed: int = 0) -> Call:
        args, kwargs = tiny.call(level, seed)
        lists = enumerate(counts.items())
        given = {name: residuals(count, 10 * seed + at) for at, (name, count) in lists}
        return args, {**kwargs, **given}

    return replace(tiny, call=call)


def as_long(tiny: Tiny) -> Tiny:
    """As many text tokens as image tokens: nothing can be told by shape."""

    def call(level: float, seed: int = 0) -> Call:
        args, kwargs = tiny.call(level, seed)
        text = noise(1_000, BATCH, IMAGE, WIDTH)
        return args, {**kwargs, "encoder_hidden_states": text}

    return replace(tiny, call=call)


def chroma() -> Tiny:
    """Adds residuals in place, to the image's part of the joined stream of its single blocks."""
    tiny = make_tiny("chroma")
    # The model writes into what a block gives it: the oracle must give it a tensor of its own.
    single = replace(SINGLE_STREAM, pack=lambda values: torch.clone(values[0]))
    (seam,) = tiny.seams
    streams = (TEXT_IMAGE,) * seam + (single,) * (len(tiny.blocks) - seam)
    return replace(tiny, streams=streams)


def toy(*, own: bool) -> Tiny:
    """One stream; with `own` the control network is part of the compiled model."""
    model = make_controlled(own=own)

    def call(level: float, seed: int = 0) -> Call:
        return model.inputs(1000 * level, seed)

    return Tiny("toy", model, tuple(model.blocks), SINGLE_STREAM, call)


DOUBLE, SINGLE = "controlnet_block_samples", "controlnet_single_block_samples"
CASES: dict[str, Callable[[], Tiny]] = {
    "sd3-4": lambda: controlled(make_tiny("sd3"), block_controlnet_hidden_states=4),
    "sd3-2": lambda: controlled(make_tiny("sd3"), block_controlnet_hidden_states=2),
    "sd3-equal": lambda: controlled(as_long(make_tiny("sd3")), block_controlnet_hidden_states=4),
    "flux": lambda: controlled(make_tiny("flux"), **{DOUBLE: 2, SINGLE: 3}),
    "flux-shared": lambda: controlled(make_tiny("flux"), **{DOUBLE: 1, SINGLE: 2}),
    "flux-double": lambda: controlled(make_tiny("flux"), **{DOUBLE: 2}),
    "chroma": lambda: controlled(chroma(), **{DOUBLE: 1, SINGLE: 4}),
    "toy": lambda: toy(own=False),
    "toy-own": lambda: toy(own=True),
}
case = functools.cache(lambda name: CASES[name]())


@functools.cache
def traced(name: str) -> tuple[Call, fx.GraphModule, tuple[Any, ...]]:
    """A call, the graph of it, and the graph's inputs."""
    args, kwargs = case(name).call(0.9)
    return (args, kwargs), *trace(case(name).model, args, kwargs)


def inputs_of(name: str, call: Call) -> tuple[Any, ...]:
    """The graph's inputs at another call: weights, and the tensors that it gives."""
    known, _, inputs = traced(name)
    leaves = zip(pytree.tree_leaves(known), pytree.tree_leaves(call), strict=True)
    given = {id(one): other for one, other in leaves if torch.is_tensor(one)}
    read = {id(value) for value in inputs} & set(given)
    assert len(read) > 2, "sample, timestep and residuals"
    return tuple(given.get(id(value), value) for value in inputs)


@functools.cache
def outlined(name: str) -> Outline:
    _, gm, inputs = traced(name)
    return analyse(gm, inputs)


def run(program: Program, *arguments: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    """Results and deltas, with every body run eagerly."""
    return Executable(program, lambda body: body.module.forward)(arguments)


@dataclass
class Stepper:
    """Runs refreshes and cached steps as a table says, on the eager bodies."""

    found: Outline
    table: Sequence[Span | None]

    def __call__(self, calls: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
        """The graph's results at every step, of its inputs."""
        found = self.found
        spans = {span: plan_span(found, span) for span in self.table if span is not None}
        plans = list(spans.values())
        assert all(plan.span == wanted and not plan.reason for wanted, plan in spans.items())
        refresh = refresh_program(found.program, plans)
        programs = {span: cached_program(found.program, plan, 0) for span, plan in spans.items()}
        deltas: dict[str, Tensor] = {}
        for span, given in zip(self.table, calls, strict=True):
            program = refresh if span is None else programs[span]
            added = program.inputs[len(given) + len(found.captured.constants) :]
            constants = found.captured.constants.values()
            held = (*given, *constants, *(deltas[name] for name in added))
            results, new = run(program, *held)
            deltas.update(zip(program.deltas, new, strict=True))
            yield results


def trajectory(tiny: Tiny, steps: int) -> list[Call]:
    return [tiny.call(1.0 - step / steps, seed=step) for step in range(steps)]


@pytest.mark.parametrize("name", CASES)
def test_deep_shallow_and_middle_spans_are_whole(name: str) -> None:
    found, blocks = outlined(name), len(case(name).blocks)
    assert len(found.stack) == blocks
    inputs = {given.name for given in found.captured.inputs}
    streams = {"sd3": 2, "flux": 2}.get(case(name).name, 1)
    for span in (Span(0, blocks - 1), Span(1, blocks - 1), Span(1, blocks), Span(0, blocks)):
        plan = plan_span(found, span)
        assert (plan.span, plan.reason) == (span, "")
        entering = {stream.live_in for stream in plan.streams}
        # The last block hands on the image alone; before a seam text and image are apart.
        crossed = any(span.start < seam < span.stop for seam in case(name).seams)
        count = 3 if crossed else 1 if span.stop == blocks else streams
        assert len(plan.streams) == len(entering) == count
        assert not entering & inputs


@pytest.mark.parametrize("name", ["sd3-4", "flux"])
def test_explain_shows_whole_spans(name: str) -> None:
    tiny = case(name)
    args, kwargs = tiny.call(0.9)
    blocks = len(tiny.blocks)
    report = deltapass.explain(tiny.model, *args, options={"cached_blocks": blocks - 1}, **kwargs)
    assert report.refusal is None
    deep, shallow = report.spans
    assert deep.startswith(f"blocks 1..{blocks - 1}; streams")
    assert shallow.startswith(f"blocks 0..{blocks - 2}; streams")


@pytest.mark.parametrize("name", CASES)
def test_cached_steps_equal_the_oracle_bit_for_bit(name: str) -> None:
    tiny = case(name)
    last = len(tiny.blocks)
    deep, shallow, middle = Span(1, last), Span(0, last - 1), Span(1, last - 1)
    table = [None, deep, None, shallow, middle, None, middle, deep]
    calls = trajectory(tiny, len(table))
    expected = oracle(tiny, table, calls)
    with torch.no_grad():
        plain = tensors([tiny.model(*args, **kwargs) for args, kwargs in calls])
        results = list(Stepper(outlined(name), table)(inputs_of(name, call) for call in calls))
    each = zip(table, tensors(results), tensors(expected), plain, strict=True)
    for span, ours, theirs, uncached in each:
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, uncached) == (span is None)


@pytest.mark.parametrize("name", ["sd3-4", "flux", "toy"])
def test_compiled_model_equals_the_oracle_without_a_session(name: str) -> None:
    # The residuals change at every step, which is no reason to drop deltas.
    tiny = case(name)
    last = len(tiny.blocks)
    deep, shallow = Span(1, last), Span(0, last - 1)
    table = (None, None, None, deep, None, shallow, None, shallow)
    model = compiled(tiny.model, boundary=0.5, cached_blocks=last - 1, steps=len(table))
    calls = sampled(trajectory(tiny, len(table)))
    expected = tensors(oracle(tiny, table, calls))
    for ours, theirs in zip(tensors(follow(model, calls)), expected, strict=True):
        assert torch.equal(ours, theirs)


def residual_names(found: Outline) -> set[str]:
    """The data inputs of the shape that residuals have."""
    shape = (BATCH, IMAGE, WIDTH)
    data = [given for given in found.captured.inputs if given.role is Role.DATA]
    return {given.name for given in data if given.spec and given.spec.shape == shape}


@pytest.mark.parametrize(("name", "anew"), [("sd3-4", 2), ("flux", 4), ("chroma", 5), ("toy", 2)])
def test_residual_after_the_span_is_added_anew(name: str, anew: int) -> None:
    # That of the span's last block lies outside of it; the one between its two blocks, within,
    # unless that is a seam, as in the third.
    found = outlined(name)
    program = cached_program(found.program, plan_span(found, Span(0, 2)), 0)
    read = {value for call in program.calls for value in call.inputs}
    assert len(residual_names(found) & read) == anew


@functools.cache
def bare(name: str) -> Outline:
    """The outline of a graph without metadata: what repeats is a block, the residual within it."""
    args, kwargs = traced(name)[0]
    gm, inputs = trace(case(name).model, args, kwargs)
    for node in gm.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    return analyse(gm, inputs)


@pytest.mark.parametrize("name", ["sd3-4", "sd3-2", "sd3-equal", "toy"])
def test_residuals_within_repeated_operations_are_no_streams(name: str) -> None:
    found = bare(name)
    assert found.stack.found_by == "repeated structure"
    assert len(found.stack) >= 3
    streams = {"sd3": 2}.get(case(name).name, 1)
    inputs = {given.name for given in found.captured.inputs}
    for span in (Span(0, 2), Span(1, 3), Span(0, 3)):
        plan = plan_span(found, span)
        entering = {stream.live_in for stream in plan.streams}
        assert (plan.span, len(entering)) == (span, streams)
        assert not entering & inputs


@pytest.mark.parametrize("name", ["sd3-2", "toy"])
@pytest.mark.parametrize("span", [Span(0, 2), Span(1, 3)])
def test_residuals_within_repeated_operations_are_part_of_the_delta(name: str, span: Span) -> None:
    found = bare(name)
    plan = plan_span(found, span)
    before, now = (inputs_of(name, case(name).call(*at)) for at in ((0.9, 1), (0.8, 2)))
    results, deltas = run(refresh_program(found.program, [plan]), *before)
    assert torch.equal(results[0], found.captured.module(*before)[0])
    (ours,), _ = run(cached_program(found.program, plan, 0), *now, *deltas)
    held = {stream.live_out: delta for stream, delta in zip(plan.streams, deltas, strict=True)}
    live_ins = {stream.live_out: stream.live_in for stream in plan.streams}

    class Cached(fx.Interpreter):
        """The whole graph, in which the span's live-outs are replaced."""

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name not in held:
                return value
            live_in = next(node for node in self.env if node.name == live_ins[n.name])
            return held[n.name] + self.env[live_in]

    expected = Cached(found.captured.module, garbage_collect_values=False).run(*now)
    assert torch.equal(ours, expected[0])
