"""Which dimensions of an example call may vary, for every value of the call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from deltapass.errors import DynamicShapeError, counted

# Parameter name -> {dimension: Dim}; for an argument that holds tensors, its structure of those.
DynamicShapes = Mapping[str, Any]
FreeDimensions = Mapping[int, Any]
FORM: Final = "Give {parameter: {dimension: torch.export.Dim}}, or torch.export's own form"


def free_dimensions(
    call: Mapping[str, Any], dynamic: DynamicShapes | None, batch: tuple[int, int] | None
) -> tuple[FreeDimensions, ...]:
    """The dimensions that may vary, for every leaf of a call.

    Args:
        call: Parameter name -> argument; lists, tuples and dictionaries may hold tensors.
        dynamic: As torch.export takes it, by parameter name.
        batch: Least and greatest size of the first dimension of every tensor that has there the
            size of the first tensor's.

    Raises:
        DynamicShapeError: If this is not of that form, names what the call does not have, or the
            example's batch is 1 (to torch.export a constant) or outside the bounds.
    """
    asked = list(_asked(call, {} if dynamic is None else dynamic))
    leaves = pytree.tree_leaves(dict(call))
    batched = [{} for _ in leaves] if batch is None else _batched(leaves, batch)
    # What is asked to be fixed (None, a number, Dim.STATIC) is no part of the batch either.
    joined = ({**free, **given} for free, given in zip(batched, asked, strict=True))
    return tuple({at: dim for at, dim in dims.items() if isinstance(dim, Dim)} for dims in joined)


def _asked(call: Mapping[str, Any], dynamic: DynamicShapes) -> Iterator[FreeDimensions]:
    if not isinstance(dynamic, Mapping):
        raise DynamicShapeError(f"dynamic_shapes is {dynamic!r}", FORM)
    unknown = sorted(map(str, set(dynamic) - set(call)))
    if unknown:
        raise DynamicShapeError(
            f"dynamic dimensions of {', '.join(unknown)}, which the example call does not have",
            f"It has {', '.join(call)}",
        )
    for name, value in call.items():
        leaves, structure = pytree.tree_flatten(value)
        given = dynamic.get(name)
        try:
            found = [None] * len(leaves) if given is None else structure.flatten_up_to(given)
        except ValueError as error:
            raise DynamicShapeError(f"dynamic_shapes of {name}: {error}", FORM) from error
        yield from (_dimensions(name, *pair) for pair in zip(leaves, found, strict=True))


def _dimensions(name: str, leaf: Any, given: Any) -> FreeDimensions:
    """Dimension, counted from the front -> what is asked for it, of one tensor."""
    if given is not None and not isinstance(given, Mapping | list | tuple):
        raise DynamicShapeError(f"dynamic_shapes of {name} is {given!r}", FORM)
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given or ())
    count = leaf.ndim if torch.is_tensor(leaf) else 0
    found = {at + count if -count <= at < 0 else at: dim for at, dim in pairs}
    for at, dim in found.items():
        if dim is not None and not 0 <= at < count:
            held = counted(count, "dimension") if torch.is_tensor(leaf) else "no dimensions"
            raise DynamicShapeError(f"{name} has {held}, and none is {at}", "They count from 0")
        _check(name, at, dim)
    return found


def _check(name: str, at: int, dim: Any) -> None:
    if isinstance(dim, type(Dim.AUTO)) and dim is not Dim.STATIC:
        # For a hint torch keeps conditions on sizes as guards, which no bundle can check.
        raise DynamicShapeError(
            f"dimension {at} of {name} is {dim}", "Give torch.export.Dim(name, min=..., max=...)"
        )
    formula = getattr(dim, "fn", None)
    if formula is not None and formula(0) != 0:
        raise DynamicShapeError(
            f"dimension {at} of {name} is {dim.__name__}", "Give a Dim, or a multiple of one"
        )


def _batched(leaves: Sequence[Any], bounds: tuple[int, int]) -> list[dict[int, Any]]:
    pair = isinstance(bounds, tuple | list) and len(bounds) == 2
    whole = pair and all(isinstance(end, int) and not isinstance(end, bool) for end in bounds)
    if not whole or not 1 <= bounds[0] < bounds[1]:
        raise DynamicShapeError(
            f"the batch is to be {bounds!r}",
            "Give two whole numbers, the second above the first, such as (1, 8)",
        )
    sizes = [len(leaf) if torch.is_tensor(leaf) and leaf.ndim else None for leaf in leaves]
    first = next((size for size in sizes if size is not None), 0)
    if not max(2, bounds[0]) <= first <= bounds[1]:
        raise DynamicShapeError(
            f"the example call has a batch of {first}, the bundle is to take {bounds}",
            "Give example inputs with a batch of at least 2 that lies within these bounds",
        )
    batch = Dim("batch", min=bounds[0], max=bounds[1])
    return [{0: batch} if size == first else {} for size in sizes]
