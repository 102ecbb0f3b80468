"""What torch.export takes for granted of sizes: refused by name where it matters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import noise
from torch import Tensor, nn
from torch.export import Dim

from deltapass.errors import DynamicShapeError, ExportError
from deltapass.exporting.trace import export_graph

HEIGHT, WIDTH = 6, 6
Rule = Callable[[nn.Module, Tensor], Tensor]


class Grid(nn.Module):
    """Does something to an image (B, C, H, W) by a rule that asks about its sizes."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule, self.table = rule, nn.Parameter(noise(5, HEIGHT * WIDTH))

    def forward(self, image: Tensor, timestep: Tensor) -> Tensor:
        return self.rule(self, image) + timestep[:, None, None, None]


def table_of_default(model: Any, image: Tensor) -> Tensor:
    """A learned table at the model's own size; at others something else."""
    height, width = image.shape[2:]
    if height * width != len(model.table):
        return image
    return image.flatten(2).add(model.table).unflatten(2, (height, width))


def patches(model: Any, image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    return image * (2 if (height // 2) * (width // 2) == 9 else 3)


def aspect(model: Any, image: Tensor) -> Tensor:
    return image * (2 if image.shape[2] / image.shape[3] == 1.0 else 3)


def side(model: Any, image: Tensor) -> Tensor:
    return image * int(math.sqrt(image.shape[2] * image.shape[3]))


def small(model: Any, image: Tensor) -> Tensor:
    return image * (2 if image.shape[2] + image.shape[3] < 14 else 3)


def divides(model: Any, image: Tensor) -> Tensor:
    return image * (2 if (image.shape[2] * image.shape[3]) % 9 == 0 else 3)


def longer(model: Any, image: Tensor) -> Tensor:
    """A condition that always holds, which torch does not see."""
    longest = torch.sym_max(image.shape[2], image.shape[3])
    return image * 2 if longest >= image.shape[3] else -image


def alike(model: Any, image: Tensor) -> Tensor:
    """Two ways to the same result."""
    height, width = image.shape[2:]
    return image.mul(2) if height * width == 36 else image + image


def traced(rule: Rule, height: int = HEIGHT, width: int = WIDTH, ends: Any = (4, 12)) -> Any:
    """The exported graph of a rule, with height and width free."""
    least, most = ends
    dims = {2: Dim("height", min=least, max=most), 3: Dim("width", min=least, max=most)}
    model, given = Grid(rule).eval(), (noise(3, 2, 4, height, width), torch.full((2,), 5.0))
    return export_graph(model, given, {}, {"image": dims})


@pytest.mark.parametrize(
    ("rule", "condition", "broken"),
    [
        (table_of_default, "height*width == 36", "height=4, width=4"),
        (patches, "(height//2)", "height=4, width=4"),
        (aspect, "IntTrueDiv(height, width) == 1.0", "height=4, width=5"),
        (side, "height*width == 36", "height=4, width=4"),
    ],
)
def test_an_example_at_a_special_size_is_refused_by_name(
    rule: Rule, condition: str, broken: str
) -> None:
    """Whatever the ranges: the trace is that of the special case."""
    with pytest.raises(DynamicShapeError) as caught:
        traced(rule)
    told = str(caught.value)
    assert "height (dimension 2 of image), width (dimension 3 of image) cannot vary" in told
    assert condition in told and f"{broken} lies in the ranges and breaks it" in told
    assert re.search(r"off by [\d.]+ of the largest|where it cannot run", told)
    assert "Give an example of other sizes than height=6, width=6" in told
    assert re.search(r"alone \(test_conditions\.py, line \d+\)", told), "where the model asks"


@pytest.mark.parametrize(
    ("rule", "condition", "broken"),
    [
        (table_of_default, "height*width != 36", "height=4, width=9"),
    ],
)
def test_ranges_that_reach_where_the_trace_ends_are_refused(
    rule: Rule, condition: str, broken: str
) -> None:
    with pytest.raises(DynamicShapeError) as caught:
        traced(rule, 6, 7)
    told = str(caught.value)
    assert condition in told and broken in told and "Narrow the ranges" in told


def test_ranges_within_which_the_condition_holds_are_taken() -> None:
    for rule, ends in ((small, (4, 6)), (table_of_default, (7, 12))):
        assert traced(rule, ends[0], ends[0] + 1, ends).dimensions["width"] == ends


def test_a_condition_that_always_holds_and_one_that_does_not_matter_are_no_fault() -> None:
    assert traced(longer).dimensions == {"height": (4, 12), "width": (4, 12)}
    assert traced(alike, 6, 7).dimensions == {"height": (4, 12), "width": (4, 12)}


@pytest.mark.parametrize("ends", [(4, 100_000), (4, None)])
def test_long_and_endless_ranges_are_searched_where_a_condition_turns(ends: Any) -> None:
    def far(model: Any, image: Tensor) -> Tensor:
        return image * (2 if image.shape[2] * image.shape[3] != 8 * 199 else 3)

    with pytest.raises(
        DynamicShapeError, match=r"height\*width != 1592 alone .*; height=4, width=398"
    ):
        traced(far, ends=ends)
    traced(longer, ends=ends)


def test_a_single_sample_is_what_torch_takes_for_granted_not_to_come() -> None:
    def alone(model: Any, image: Tensor) -> Tensor:
        return image * (2 if image.shape[0] == 1 else 3)

    given = (noise(3, 2, 4, HEIGHT, WIDTH), torch.full((2,), 5.0))
    with pytest.raises(
        DynamicShapeError, match=r"batch \(dimension 0 of image\).*batch != 1 alone"
    ):
        export_graph(Grid(alone).eval(), given, {}, batch=(1, 4))
    assert export_graph(Grid(alone).eval(), given, {}, batch=(2, 4)).dimensions == {"batch": (2, 4)}
    assert export_graph(Grid(patches).eval(), given, {}, batch=(1, 4)).dimensions


def test_a_model_that_fails_where_the_trace_ends_is_told_of() -> None:
    def fails(model: Any, image: Tensor) -> Tensor:
        if image.shape[2] * image.shape[3] == 25:
            raise ValueError("no such grid")
        return image

    with pytest.raises(
        ExportError, match=r"itself fails for .*height=5, width=5: ValueError: no s"
    ):
        traced(fails)
