"""Models of diffusers, built from the rows of configs.toml with seeded weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import diffusers
import torch

from models.rows import read_rows

CONFIGS: Final = read_rows(Path(__file__).with_name("configs.toml"))


def build(name: str, *, kind: Any = None, device: str = "cpu", **changes: Any) -> Any:
    """The model of a row with the weights that diffusers starts from; always the same ones.

    Args:
        name: Of the row.
        kind: A subclass to build instead of the row's class.
        device: Where to build it; "meta" gives no values.
        changes: Keyword arguments instead of the row's.
    """
    config = {**CONFIGS[name], **changes}
    kind = kind or getattr(diffusers, config["class"])
    del config["class"]
    with torch.random.fork_rng(devices=[]), torch.device(device), warnings.catch_warnings():
        # Some classes are built from others that diffusers deprecates.
        warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
        torch.manual_seed(0)
        return kind(**config)
