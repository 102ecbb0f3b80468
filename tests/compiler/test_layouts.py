"""Bodies that differ in input layout alone share one, by a copy; results stay the same."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from models import make
from models.tiny import make_tiny

from deltapass.backend import analyse
from deltapass.compiler.layouts import representatives, share_layouts
from deltapass.compiler.tracing import trace
from deltapass.graph.executable import Executable
from deltapass.graph.program import Program


def program_and_inputs() -> tuple[Program, list[torch.Tensor]]:
    tiny = make_tiny("dit")  # its first block reads a transposed patch embedding
    args, kwargs = tiny.call(0.5)
    graph, inputs = trace(tiny.model, args, kwargs)
    outlined = analyse(graph, inputs)
    return outlined.program, [*inputs, *outlined.captured.constants.values()]


def names(program: Program) -> list[str]:
    return [call.body.name for call in program.calls]


def test_first_block_calls_the_body_of_the_others_on_a_copy() -> None:
    program, _ = program_and_inputs()
    assert names(program) == ["prologue", "block_0", *["block_1"] * 3, "epilogue"]
    shared = share_layouts(program, representatives(program))
    assert names(shared) == ["prologue", "relayout", *["block_1"] * 4, "epilogue"]


def test_results_are_the_same() -> None:
    program, inputs = program_and_inputs()
    shared = share_layouts(program, representatives(program))
    with torch.no_grad():
        plain, _ = Executable(program, lambda body: body.module.forward)(inputs)
        ours, _ = Executable(shared, lambda body: body.module.forward)(inputs)
    torch.testing.assert_close(ours[0], plain[0])


def test_program_without_such_bodies_is_left_alone() -> None:
    toy = make("adaln")
    args, kwargs = toy.inputs(500.0, 0)
    program = analyse(*trace(toy, args, kwargs)).program
    assert share_layouts(program, representatives(program)).calls == program.calls


def test_bodies_of_other_output_layouts_are_not_merged() -> None:
    program, _ = program_and_inputs()
    chosen = representatives(program)
    assert all(chosen[call.body.key].outputs == call.body.outputs for call in program.calls)
