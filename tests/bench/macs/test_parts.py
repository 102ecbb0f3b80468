"""One call of any model by its parts, whether it can be counted without values or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltapass.bench.macs.parts import OWN, CallMacs, cells_of, macs_of_call
from deltapass.graph.program import Macs

WIDTH = 8
ONE = 2.0 * WIDTH * WIDTH  # a linear layer on two rows


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, WIDTH)
        self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.into(x)
        for layer in self.out:
            x = layer(x)
        return x


class Model(nn.Module):
    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.looks = looks

    def forward(self, scale: float, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x * scale)
        for layer in self.layers:
            x = layer(x)
        if self.looks and x.sum().item() > 1e9:
            x = -x
        return torch.bmm(torch.bmm(x[None], x.T[None]), x[None])[0]  # as attention multiplies


def counted(*, looks: bool = False) -> CallMacs:
    return macs_of_call(Model(looks).eval(), (2.0,), {"x": torch.ones(2, WIDTH)})


@pytest.mark.parametrize("looks", [False, True])
def test_parts_are_children_and_lists_of_blocks(looks: bool) -> None:
    call = counted(looks=looks)
    found = {part.path: part for part in call.parts}
    assert [*found] == ["head", "layers.*", OWN]
    assert (found["head"].modules, found["head"].macs) == (1, Macs(2 * ONE, 2 * ONE))
    blocks = found["layers.*"]
    assert (blocks.modules, blocks.macs) == (3, Macs(9 * ONE, 9 * ONE))
    assert blocks.within == {"into": Macs(3 * ONE, 3 * ONE), "out": Macs(6 * ONE, 6 * ONE)}
    assert found[OWN].macs == Macs(0, 2 * 2 * 2 * WIDTH)
    assert call.blocks == blocks.macs
    assert call.samples == 2
    assert ("it looks at values" in call.remark) == looks


def test_the_blocks_share_is_a_row() -> None:
    rows = {cells[0]: cells[1:] for cells in cells_of(counted())}
    assert rows["all blocks"][2] == f"{100 * 9 / 11:.2f}"
    assert rows["one call"][2] == "100.00"
    assert rows["layers.*"][0] == "3"


def test_the_model_keeps_its_weights() -> None:
    model = Model()
    macs_of_call(model, (2.0,), {"x": torch.ones(2, WIDTH)})
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
