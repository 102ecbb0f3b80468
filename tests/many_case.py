"""Rows of benchmarks/models/many.toml as models of diffusers, and their calls.

Import this module only behind `pytest.importorskip("diffusers")`.
"""

from __future__ import annotations

import inspect
import re
import zlib
from pathlib import Path
from typing import Any

import diffusers
import torch
from models import randomise
from models.rows import read_rows
from torch import nn

ROWS = read_rows(Path(__file__).parent.parent / "benchmarks/models/many.toml")
SAMPLES = ("hidden_states", "sample", "audio_hidden_states", "vision_tokens")


def many_model(name: str) -> nn.Module:
    """The model of a row, seeded."""
    row = ROWS[name]
    torch.manual_seed(0)
    model: nn.Module = randomise(getattr(diffusers, row["class"])(**row["config"]))
    return model


def value_of(told: Any, name: str, seed: int) -> Any:
    """An input as its row tells it; only the noisy samples depend on the seed."""
    if isinstance(told, dict):
        for kind, values in told.items():
            if kind in ("int32", "int64", "bool"):
                return torch.tensor(values, dtype=getattr(torch, kind))
        return {key: value_of(value, name, seed) for key, value in told.items()}
    if isinstance(told, list):
        return [value_of(value, name, seed) for value in told]
    shape = re.fullmatch(r"(\w+)\[([\d, ]*)\]", told) if isinstance(told, str) else None
    if shape is None:
        return None if told == "None" else told
    return tensor_of(shape[1], [int(size) for size in re.findall(r"\d+", shape[2])], name, seed)


def tensor_of(kind: str, sizes: list[int], name: str, seed: int) -> torch.Tensor:
    """Noise by the name and the seed; zeros where it is no floating-point type."""
    if not kind.startswith("float"):
        return torch.zeros(sizes, dtype=getattr(torch, kind))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return torch.randn(sizes, generator=generator).to(getattr(torch, kind))


def call_of(model: nn.Module, told: dict[str, Any], seed: int) -> dict[str, Any]:
    given = {k: value_of(v, k, seed if k in SAMPLES else 0) for k, v in told.items()}
    takes = inspect.signature(model.forward).parameters
    return {**given, "return_dict": False} if "return_dict" in takes else given
