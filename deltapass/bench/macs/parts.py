"""Multiply-accumulates of one call of any model, part by part, and what share its blocks have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

import msgspec
import torch
from torch import nn
from torch.utils import _pytree as pytree

from deltapass.bench.macs.counting import ModuleMacs, count_call
from deltapass.bench.quantised import shared_copy
from deltapass.graph.program import Macs
from deltapass.pipelines.first_call import said

GIGA: Final = 1e9
OWN: Final = "(outside its modules)"


@final
class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A child of the model, or a list of blocks.

    Attributes:
        path: Of the child; of a list with `.*` for its blocks.
        modules: How many blocks the list has; 1 for a child.
        macs: Of all of them.
        within: The same by the blocks' own children, all blocks together; empty for a child.
    """

    path: str
    modules: int
    macs: Macs
    within: Mapping[str, Macs] = {}


@final
class CallMacs(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model.

    Attributes:
        samples: In the call: with guidance a pipeline may put both halves into one.
        counted: By the path of the innermost module.
        parts: In the order in which they run.
        remark: Why the model was really run, where it could not be counted without values.
    """

    samples: int
    counted: ModuleMacs
    parts: tuple[Part, ...]
    remark: str = ""

    @property
    def blocks(self) -> Macs:
        """Of all lists of more than one block."""
        return sum((part.macs for part in self.parts if part.modules > 1), Macs())


def macs_of_call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallMacs:
    """Count one call; the model is left as it is.

    It runs without values on the meta device, which takes no time. A model that looks at values
    cannot, and is run.

    Args:
        model: With weights of any kind.
        args: Of the call.
        kwargs: Of the call.
    """
    remark = ""
    try:
        counted = count_call(shared_copy(model).to("meta"), _bare(dict(kwargs)), _bare([*args]))
    except (RuntimeError, TypeError, ValueError) as error:  # a value was asked for
        remark = f"it was run, for it looks at values ({said(error)})"
        counted = count_call(model, kwargs, args)
    given = [each for each in pytree.tree_leaves([*args, kwargs]) if torch.is_tensor(each)]
    return CallMacs(
        samples=next((len(each) for each in given if each.ndim), 1),
        counted=counted,
        parts=tuple(parts_of(model, counted)),
        remark=remark,
    )


def _bare(given: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), given)


def parts_of(model: nn.Module, counted: ModuleMacs) -> Iterator[Part]:
    """The children of a model, its outermost lists of modules as one part each."""
    lists = {path for path, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    found: dict[str, list[tuple[str, str, Macs]]] = {}
    for path, macs in counted.by_path.items():
        names = path.split(".")
        above = (".".join(names[:count]) for count in range(1, len(names)))
        held = next((each for each in above if each in lists), None)
        if held is None:
            found.setdefault(names[0] or OWN, []).append(("", "", macs))
        else:
            number, _, inner = path[len(held) + 1 :].partition(".")
            child = inner.partition(".")[0] or OWN
            found.setdefault(f"{held}.*", []).append((number, child, macs))
    for path, each in found.items():
        within: dict[str, Macs] = {}
        for number, child, macs in each:
            if number:
                within[child] = within.get(child, Macs()) + macs
        yield Part(
            path=path,
            modules=len({number for number, _, _ in each}),
            macs=sum((macs for _, _, macs in each), Macs()),
            within=within,
        )


# ---- shown ---------------------------------------------------------------------------------------

TITLES: Final = (
    "part",
    "modules",
    "layers, GMACs",
    "share, %",
    "with attention, GMACs",
    "share, %",
)


def cells_of(call: CallMacs) -> Iterator[list[str]]:
    """Rows under TITLES: the parts, what blocks consist of, the blocks, and the whole."""
    whole = call.counted.total
    for part in call.parts:
        yield [part.path, str(part.modules), *_shares(part.macs, whole)]
        for child, macs in part.within.items():
            yield [f"{part.path}.{child}", "", *_shares(macs, whole)]
    yield ["all blocks", "", *_shares(call.blocks, whole)]
    yield ["one call", "", *_shares(whole, whole)]


def _shares(macs: Macs, whole: Macs) -> list[str]:
    return [
        text
        for own, all_of_it in ((macs.paper, whole.paper), (macs.full, whole.full))
        for text in (f"{own / GIGA:.4g}", f"{100 * own / all_of_it:.2f}" if all_of_it else "")
    ]
