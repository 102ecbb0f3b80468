"""Multiply-accumulates of one call, by the module that does them.

The model runs once on meta tensors: nothing is computed, and no weight has a value. The formulas
are those of the pass (`OperatorCosts`), which counts the same on its graphs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, final

import torch
from torch import nn

from deltapass.compiler.fake_run import OperatorCosts
from deltapass.graph.program import Macs

LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HOLDERS: Final = (nn.ModuleList, nn.ModuleDict)  # which nothing calls


@final
@dataclass(frozen=True)
class ModuleMacs:
    """MACs of one call by the path of the innermost module; "" is the model itself."""

    by_path: Mapping[str, Macs]

    @property
    def total(self) -> Macs:
        """Of the whole call."""
        return sum(self.by_path.values(), Macs())

    def within(self, patterns: Iterable[str]) -> Macs:
        """Of all modules of these paths, and all in them; `*` stands for any part of a path."""
        wanted = tuple(patterns)
        found = (
            macs
            for path, macs in self.by_path.items()
            if any(
                fnmatch.fnmatchcase(path, each) or fnmatch.fnmatchcase(path, f"{each}.*")
                for each in wanted
            )
        )
        return sum(found, Macs())

    def blocks(self, held: str) -> tuple[Macs, ...]:
        """Of each module of a list, in order."""
        numbers = {
            int(path[len(held) + 1 :].partition(".")[0])
            for path in self.by_path
            if path.startswith(f"{held}.")
        }
        return tuple(self.within([f"{held}.{number}"]) for number in sorted(numbers))


@torch.no_grad()
def count_call(model: nn.Module, inputs: Mapping[str, Any]) -> ModuleMacs:
    """Run a model once on inputs by their names, and count.

    Args:
        model: On meta tensors, or any.
        inputs: Tensors of the model's device.
    """
    found: dict[str, Macs] = {}
    within: list[tuple[str, bool]] = [("", False)]
    costs = OperatorCosts()
    modules = dict(model.named_modules())

    def settle() -> None:
        """What was counted since the last time belongs to the module that is running."""
        path, layer = within[-1]
        made, costs.macs = costs.macs, Macs()
        # On a sliced input torch runs a linear layer as a batched product; it stays a layer.
        made = Macs(made.full, made.full) if layer else made
        if made.full:
            found[path] = found.get(path, Macs()) + made

    def entered(path: str, module: nn.Module) -> Any:
        around = {each for each in _above(path) if not isinstance(modules[each], HOLDERS)}

        def hook(*_: Any) -> None:
            settle()
            # A part that another module borrows is the work of the one that calls it.
            running = path if around <= {each for each, _ in within} else within[-1][0]
            within.append((running, isinstance(module, LAYERS)))

        return hook

    def left(*_: Any) -> None:
        settle()
        within.pop()

    hooks = [
        hook
        for path, module in modules.items()
        for hook in (
            module.register_forward_pre_hook(entered(path, module)),
            module.register_forward_hook(left),
        )
    ]
    try:
        with costs:
            model(**inputs)
        settle()
    finally:
        for hook in hooks:
            hook.remove()
    return ModuleMacs(MappingProxyType(found))


def _above(path: str) -> list[str]:
    """Paths of all modules that hold it, the model itself too."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts))]
