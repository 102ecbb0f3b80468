"""Sweeps: one test over many models, of which a few run by default and the others are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sweep(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters of a test, or rows of them; those that are not in `quick` are marked slow.

    `quick` has one model of every rule that the test is about, so that a fault of a rule is seen
    without the others: they show that it holds for models of every kind.
    """
    known = list(values)
    unknown = set(quick) - set(known)
    if unknown:
        raise ValueError(f"not among the values: {sorted(unknown)}")
    rows = [each if isinstance(each, tuple) else (each,) for each in known]
    marks = [() if each in quick else (pytest.mark.slow,) for each in known]
    return [pytest.param(*row, marks=mark) for row, mark in zip(rows, marks, strict=True)]
