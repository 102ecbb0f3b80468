"""A model as it was before, whatever was done to it meanwhile."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

OWN: Final = (dict, OrderedDict)  # of a module's parts and hooks; a configuration is another kind


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Modules, their classes and attributes are put back; tensors are not copied.

    Rivals leave hooks, replaced forwards and modules of their own behind, even where they are
    disabled as their documentation says, and all of them where they fail.
    """
    saved = []
    for module in model.modules():
        own = dict(vars(module))
        inner = {name: dict(held) for name, held in own.items() if type(held) in OWN}
        saved.append((module, type(module), own, inner))
    try:
        yield
    finally:
        for module, kind, own, inner in saved:
            module.__class__ = kind
            held = vars(module)
            held.clear()
            held.update(own)
            for name, content in inner.items():
                own[name].clear()
                own[name].update(content)
