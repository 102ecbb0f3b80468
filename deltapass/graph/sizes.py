"""Sizes that are not fixed: whole numbers that remember by which formula they came about.

A graph exported with dynamic dimensions is analysed at the sizes of its example inputs, where every
size is a number. A `Size` is such a number that knows its formula over the named dimensions, so
that the same graph can be written out again for any size.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from deltapass.errors import DynamicShapeError

Dimension = int | str  # a number, or a formula over the named dimensions
Dimensions = tuple[Dimension, ...]

OPERATORS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@final
class Size(int):
    """A whole number at the example sizes, with the formula that gives it at any size."""

    formula: str

    def __new__(cls, value: int, formula: str) -> Size:
        """A size of this value; `formula` is over the names of dimensions."""
        size = super().__new__(cls, value)
        size.formula = formula
        return size


def formula_of(value: torch.SymInt, names: Mapping[str, str]) -> Dimension:
    """The formula of a symbolic size, with torch's symbols replaced by the dimensions' names.

    Raises:
        DynamicShapeError: If it is made of more than sums, products, quotients and remainders.
    """
    expression = value.node.expr
    if not expression.free_symbols:
        return int(expression)
    pattern = r"\b(" + "|".join(map(str, expression.free_symbols)) + r")\b"
    return check_formula(re.sub(pattern, lambda m: names.get(m[1], m[1]), str(expression)))


def check_formula(text: str) -> str:
    """The formula in one way of writing it.

    Raises:
        DynamicShapeError: If it cannot be calculated by `evaluate`.
    """
    try:
        tree = _Products().visit(ast.parse(text, mode="eval").body)
        formula, graph = ast.unparse(tree), fx.Graph()
        write_out(graph, formula, {name: graph.placeholder(name) for name in symbols_of(text)})
    except (SyntaxError, ZeroDivisionError, DynamicShapeError) as error:
        raise DynamicShapeError(
            f"a size is {text}", "Only sums, products and whole quotients of dimensions may vary"
        ) from error
    return formula


@final
class _Products(ast.NodeTransformer):
    """Squares and the like as products, which everybody who reads a bundle knows."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Before: a ** 2. After: a * a."""
        self.generic_visit(node)
        times = node.right.value if isinstance(node.right, ast.Constant) else None
        if not isinstance(node.op, ast.Pow) or not isinstance(times, int) or not 2 <= times <= 4:
            return node
        product = node.left
        for _ in range(times - 1):
            product = ast.BinOp(left=product, op=ast.Mult(), right=node.left)
        return product


def symbols_of(text: str) -> frozenset[str]:
    """The dimensions a formula names."""
    tree = ast.parse(text, mode="eval")
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def evaluate(dimension: Dimension, sizes: Mapping[str, int]) -> int:
    """The number a dimension has at given sizes.

    Example:
        >>> evaluate("(height // 2) * (width // 2)", {"height": 8, "width": 6})
        12

    Raises:
        DynamicShapeError: If a name is not among the sizes, or the formula cannot be calculated.
    """
    if isinstance(dimension, int):
        return int(dimension)
    try:
        return int(_calculate(ast.parse(dimension, mode="eval").body, sizes))
    except ZeroDivisionError as error:
        raise DynamicShapeError(
            f"{dimension!r} divides by zero for {dict(sizes)}", "Use other sizes"
        ) from error


def calculate(dimension: Dimension, sizes: Mapping[str, Any]) -> Any:
    """The same for sizes that are themselves symbols: another symbol."""
    if isinstance(dimension, int):
        return dimension
    return _calculate(ast.parse(dimension, mode="eval").body, sizes)


def multiple_of(formula: Dimension) -> tuple[int, str] | None:
    """`2 * height` -> (2, "height"); None for any other formula."""
    if not isinstance(formula, str):
        return None
    found = re.fullmatch(r"(\d+) \* (\w+)|(\w+) \* (\d+)", formula)
    if found is None:
        return None
    times, name = (found[1], found[2]) if found[1] else (found[4], found[3])
    return (int(times), name) if name.isidentifier() and int(times) else None


@final
class _WholeQuotients(ast.NodeTransformer):
    """Quotients that are whole before they are divided, where the dividend may be negative.

    Python rounds down, engines to zero. The remainder is never negative in either.
    """

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Before: (a - b) // c. After: (a - b - (a - b) % c) // c."""
        self.generic_visit(node)
        signs = (isinstance(part, ast.Sub | ast.USub) for part in ast.walk(node.left))
        if not isinstance(node.op, ast.FloorDiv) or not any(signs):
            return node
        rest = ast.BinOp(left=node.left, op=ast.Mod(), right=node.right)
        whole = ast.BinOp(left=node.left, op=ast.Sub(), right=rest)
        return ast.BinOp(left=whole, op=ast.FloorDiv(), right=node.right)


def read_sizes(shapes: Iterable[tuple[Sequence[Dimension], Sequence[int]]]) -> dict[str, int]:
    """The size of every named dimension that shapes tell: as it is, or by a multiple of it.

    Args:
        shapes: Pairs of a shape's dimensions and the numbers found for them.
    """
    sizes: dict[str, int] = {}
    for dimensions, found in shapes:
        for dimension, size in zip(dimensions, found, strict=True):
            part = multiple_of(dimension)
            if isinstance(dimension, str) and dimension.isidentifier():
                sizes.setdefault(dimension, size)
            elif part is not None:
                sizes.setdefault(part[1], size // part[0])
    return sizes


def write_out(graph: fx.Graph, formula: str, sizes: Mapping[str, fx.Node]) -> fx.Node | int:
    """The formula as operations of a graph; `sizes` gives the node of every dimension."""
    tracer = GraphAppendingTracer(graph)
    proxies = {name: fx.Proxy(node, tracer) for name, node in sizes.items()}
    made = _calculate(_WholeQuotients().visit(ast.parse(formula, mode="eval").body), proxies)
    return made.node if isinstance(made, fx.Proxy) else int(made)


def _calculate(tree: ast.AST, sizes: Mapping[str, Any]) -> Any:
    """The value of a formula; where `sizes` are proxies, the operations that give it."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name) and tree.id in sizes:
        return sizes[tree.id]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -1 * _calculate(tree.operand, sizes)
    if isinstance(tree, ast.BinOp) and type(tree.op) in OPERATORS:
        return OPERATORS[type(tree.op)](_calculate(tree.left, sizes), _calculate(tree.right, sizes))
    raise DynamicShapeError(
        f"{ast.unparse(tree)!r} cannot be calculated from {', '.join(sorted(sizes)) or 'nothing'}",
        "This is part of a dimension's formula in the bundle",
    )
