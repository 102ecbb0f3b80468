"""Modes of torch.compile as Inductor's options."""

from __future__ import annotations

import pytest
from deltapass.backends.inductor import InductorLowering

GRAPHS = "triton.cudagraphs"


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_torchs_own_graphs_are_off_for_bodies(mode: str | None) -> None:
    """Whatever the mode says, or torch's environment."""
    assert InductorLowering(mode).patches == {GRAPHS: False}


def test_kernels_are_tuned_as_the_mode_says() -> None:
    with_graphs = InductorLowering("max-autotune")
    assert with_graphs.patches["max_autotune"] is True
    assert with_graphs.patches[GRAPHS] is False
    assert with_graphs.patches == InductorLowering("max-autotune-no-cudagraphs").patches


def test_a_graph_that_is_refused_is_compiled_as_the_mode_says() -> None:
    assert InductorLowering("reduce-overhead").asked == {GRAPHS: True}
    assert InductorLowering().asked == {}
