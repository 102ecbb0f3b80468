"""Sizes as formulas: read from torch's symbols, calculated, and written out as operations."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch.export import Dim

from deltapass.errors import DynamicShapeError
from deltapass.graph.sizes import (
    Size,
    check_formula,
    evaluate,
    formula_of,
    read_sizes,
    symbols_of,
    write_out,
)

FORMULAS = (
    "batch",
    "height // 2 * (width // 2)",
    "(height // 2 + 1) * batch",
    "2 * height - width",
    "-batch + 3 * width",
    "(height + width) % 5",
    "height - (width - batch)",
    "height // (width // batch)",
    "17",
)


def python_value(formula: str, sizes: dict[str, int]) -> int:
    """What Python makes of a formula, which is what it means."""
    return int(eval(formula, {"__builtins__": {}}, dict(sizes)))


@pytest.mark.parametrize("formula", FORMULAS)
@given(batch=st.integers(1, 4), height=st.integers(4, 40), width=st.integers(4, 40))
def test_a_formula_means_what_it_means_in_python(
    formula: str, batch: int, height: int, width: int
) -> None:
    sizes = {"batch": batch, "height": height, "width": width}
    assert evaluate(formula, sizes) == python_value(formula, sizes)
    assert evaluate(check_formula(formula), sizes) == python_value(formula, sizes)


@pytest.mark.parametrize("formula", FORMULAS)
def test_operations_written_into_a_graph_give_the_same_number(formula: str) -> None:
    sizes = {"batch": 3, "height": 11, "width": 9}
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in sizes}
    graph.output(write_out(graph, formula, nodes))
    graph.lint()
    module = fx.GraphModule(torch.nn.Module(), graph)
    assert module(*sizes.values()) == python_value(formula, sizes)
    functions = {node.target for node in graph.nodes if node.op == "call_function"}
    named = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)
    assert functions <= set(named)


def test_a_number_is_itself_whatever_the_sizes() -> None:
    assert evaluate(7, {}) == 7
    assert evaluate(0, {"batch": 2}) == 0
    assert type(evaluate(Size(7, "batch"), {"batch": 9})) is int


def test_a_size_is_a_number_that_knows_its_formula() -> None:
    size = Size(8, "2 * batch")
    assert size == 8 and isinstance(size, int) and size.formula == "2 * batch"
    assert hash(size) == hash(8) and torch.zeros(size).shape == (8,)
    assert type(size + 1) is int, "a formula is not carried on by arithmetic, and is not stale"


def test_symbols_are_the_names_of_a_formula_and_no_parts_of_them() -> None:
    assert symbols_of("height // 2 * (width_2 // height)") == {"height", "width_2"}
    assert symbols_of("12") == frozenset()


def test_one_formula_is_written_in_one_way() -> None:
    assert check_formula("((a//2))*(b//2)") == check_formula("(a // 2) * (b // 2)")
    assert check_formula("(a*b)//(a)") == "a * b // a"
    assert check_formula("3//a - 3//(a - 1)"), "a formula may divide by what is 0 for some sizes"


@pytest.mark.parametrize(
    "formula",
    [
        "a / 2",
        "a ** b",
        "max(a, 2)",
        "a if b else 2",
        "a.shape",
        "a[0]",
        "1.5 * a",
        "a +",
        "",
        "~a",
    ],
)
def test_other_formulas_are_refused(formula: str) -> None:
    with pytest.raises(DynamicShapeError, match="Only sums, products and whole quotients"):
        check_formula(formula)


def test_an_unknown_name_is_named_with_the_known_ones() -> None:
    with pytest.raises(DynamicShapeError, match="'width' cannot be calculated from batch, height"):
        evaluate("height * width", {"height": 2, "batch": 1})
    with pytest.raises(DynamicShapeError, match="'width' cannot be calculated from nothing"):
        evaluate("width", {})


def test_a_formula_from_a_file_runs_no_code() -> None:
    for text in ("__import__('os').getcwd()", "(lambda: 1)()", "[i for i in (1,)][0]", "'a' * 3"):
        with pytest.raises(DynamicShapeError):
            evaluate(text, {"a": 2})


# ---- torch's symbols ---------------------------------------------------------------------------


class Sizes(torch.nn.Module):
    """Gives tensors whose lengths are formulas over the two lengths of its inputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, columns = x.shape[0], y.shape[0]
        return (
            torch.cat([x, y]),
            (x[:, None] * y[None]).flatten(),
            x.new_zeros(rows // 2),
            x.new_zeros(rows // 2 * 3 + columns),
        )


@pytest.fixture(scope="module")
def exported() -> tuple[list[Any], dict[str, str]]:
    """The symbolic lengths of the results, and torch's symbol -> name."""
    shapes = {"x": {0: Dim("rows", min=4, max=64)}, "y": {0: Dim("columns", min=4, max=64)}}
    given = (torch.zeros(8), torch.zeros(6))
    program = torch.export.export(Sizes(), given, dynamic_shapes=shapes, strict=False)
    nodes = list(program.graph.nodes)
    lengths = [node.meta["val"].shape[0] for node in nodes[-1].args[0]]
    inputs = [node.meta["val"].shape[0] for node in nodes if node.op == "placeholder"]
    return lengths, {str(inputs[0].node.expr): "rows", str(inputs[1].node.expr): "columns"}


def test_torchs_sizes_are_written_over_the_names_of_dimensions(
    exported: tuple[list[Any], dict[str, str]],
) -> None:
    lengths, names = exported
    formulas = [formula_of(length, names) for length in lengths]
    assert all(isinstance(formula, str) for formula in formulas)
    for rows, columns in ((8, 6), (4, 4), (33, 7)):
        sizes = {"rows": rows, "columns": columns}
        results = Sizes()(torch.zeros(rows), torch.zeros(columns))
        assert [evaluate(formula, sizes) for formula in formulas] == [len(r) for r in results]


def test_an_unnamed_symbol_keeps_torchs_name(
    exported: tuple[list[Any], dict[str, str]],
) -> None:
    lengths, names = exported
    assert symbols_of(str(formula_of(lengths[0], {}))) == set(names)


def test_shapes_tell_named_dimensions_and_those_they_are_multiples_of() -> None:
    shapes = [
        (("batch", 4, "2 * half"), (3, 4, 10)),
        (("batch", "width * 3", "half + 1", "half"), (7, 9, 6, 8)),  # the first to tell counts
    ]
    assert read_sizes(shapes) == {"batch": 3, "half": 5, "width": 3}
    assert read_sizes([]) == {}
