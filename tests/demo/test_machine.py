"""What the demo's times depend on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from deltapass.demo.machine import compile_cache, faster_threads, processor, start_compiler


def test_threads_that_wait_for_each_other_are_given_up_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with faster_threads(lambda: time.sleep(0.01 * torch.get_num_threads())) as chosen:
            assert (chosen, torch.get_num_threads()) == (1, 1)
        assert torch.get_num_threads() == 2
        with faster_threads(lambda: time.sleep(0.02 / torch.get_num_threads())) as chosen:
            assert chosen == 2
    finally:
        torch.set_num_threads(before)


def test_compile_cache_is_looked_for_where_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert compile_cache() == "empty"
    (tmp_path / "fxgraph").mkdir()
    assert compile_cache() == "filled"


def test_eager_lowering_starts_no_compiler() -> None:
    assert start_compiler("eager") == 0.0


def test_processor_has_a_name() -> None:
    assert processor()
