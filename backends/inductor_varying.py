"""A body compiled by Inductor once for sizes that vary: each symbol is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from deltapass.graph.executable import Lowered
from deltapass.graph.program import TensorSpec, Varying
from deltapass.graph.sizes import calculate

LEAST: Final = 2  # torch compiles sizes 0 and 1 apart


@final
@dataclass(frozen=True, slots=True)
class VaryingBody:
    """A compiled body, with what it was taken for granted of the sizes."""

    run: Lowered
    env: ShapeEnv
    symbols: Mapping[str, Any]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether all that the compiler assumed of the sizes is true of these."""
        values = {self.symbols[name]: size for name, size in sizes.items()}
        bounds = self.env.var_to_range
        return all(
            size >= LEAST and (symbol not in bounds or size in bounds[symbol])
            for symbol, size in values.items()
        ) and all(bool(guard.expr.xreplace(values)) for guard in self.env.guards)

    def __call__(self, *arguments: Any) -> Sequence[torch.Tensor]:
        """Run, on the sizes of all symbols and then the body's inputs."""
        return self.run(*arguments)


@final
class Symbols:
    """Symbols for sizes, and fake tensors whose sizes follow formulas of them."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)
        self.symbols: dict[str, Any] = {}
        self.sizes: dict[str, Any] = {}
        for name, size in sizes.items():
            source = ConstantSource(name)
            symbol = self.env.create_symbol(
                size, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
            )
            self.symbols[name] = symbol
            self.sizes[name] = self.env.create_symintnode(symbol, hint=size, source=source)

    def tensor(self, spec: TensorSpec, varying: Varying | None) -> torch.Tensor:
        """A fake tensor of these sizes, or of the spec's own where none varies."""
        if varying is None:
            with self.mode:
                return spec.empty()
        shape, stride = varying
        sizes, steps = ([calculate(d, self.sizes) for d in dims] for dims in (shape, stride))
        with self.mode:
            return torch.empty_strided(sizes, steps, dtype=spec.dtype, device=spec.device)
