"""What the benchmark at real size concludes, keeps and goes on with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

import real_size
from arms import ARMS, SETTINGS, Arm, Begin, How
from real_size import GIB, Case, fitted, layers, measure, summary, weight_bytes

from deltapass.bench.rivals.table import RIVALS

TINY = Case(row="dit", title="tiny", steps=2)


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", rounds=1, folder=folder, mode=None)


def content(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads(path.read_text())


def test_every_rival_is_an_arm_compiled_and_not() -> None:
    assert set(SETTINGS) == set(RIVALS)
    assert {f"{name}, {how}" for name in RIVALS for how in ("eager", "compiled")} <= set(ARMS)


def test_shares_are_medians_over_rounds_by_kind_of_step() -> None:
    rounds = [[(2.0, 1.0), (0.5, 1.0)], [(1.0, 1.0), (0.25, 1.0)], [(3.0, 1.0), (0.75, 1.0)]]
    found = summary(rounds, [0.0, 0.3], cached=0.01)
    assert found["share"] == {"trajectory": 1.25, "full": 2.0, "cached": 0.5}
    assert found["trajectory_shares"] == [1.25, 0.625, 1.875]
    assert found["steps_s"] == [2.0, 0.5]


@pytest.mark.parametrize(
    ("free", "dtype", "blocks"),
    [(70, "float32", 1.0), (40, "bfloat16", 1.0), (20, "bfloat16", 0.5), (12, "bfloat16", 0.25)],
)
def test_a_model_is_taken_in_the_first_form_that_fits(
    free: int, dtype: str, blocks: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_size, "available", lambda _: free * GIB)
    # 12 billion parameters.
    sizes = {"float32": 48, "bfloat16": 24}
    monkeypatch.setattr(
        real_size, "weight_bytes", lambda case: int(sizes[case.dtype] * case.blocks * GIB)
    )
    found = fitted(real_size.CASES["flux-1024"], "cpu")
    assert (found.dtype, found.blocks) == (dtype, blocks)


def test_what_never_fits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_size, "available", lambda _: GIB)
    with pytest.raises(SystemExit, match=r"tiny does not fit into 1\.0 GiB"):
        fitted(TINY, "cpu")


def test_half_the_blocks_are_half_of_each_kind() -> None:
    flux = Case(row="flux-dev", title="Flux", blocks=0.5)
    assert layers(flux) == {"num_layers": 10, "num_single_layers": 19}
    assert layers(TINY) == {}
    assert weight_bytes(TINY) == 2 * weight_bytes(Case(row="dit", title="tiny", dtype="bfloat16"))


def test_a_run_goes_on_with_the_arms_that_are_missing(tmp_path: Path) -> None:
    arms = [ARMS["plain, eager"], ARMS["cache-dit-static, eager"]]
    first = measure("tiny", TINY, arms[:1], options(tmp_path))
    kept = content(first)["arms"]["plain, eager"]
    both = content(measure("tiny", TINY, arms, options(tmp_path)))["arms"]
    assert both["plain, eager"] == kept
    assert kept["errors"] == [0.0, 0.0]
    full, cached = both["cache-dit-static, eager"]["errors"]
    assert (full, cached > 0.01) == (0.0, True)


def test_the_plain_model_is_not_the_one_that_a_rival_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They run in turns: were it cached too, nothing would be compared with plain.
    plain, models, hooked = real_size.model_of(TINY, "cpu"), [], []
    monkeypatch.setattr(real_size, "model_of", lambda *_: plain)

    @contextmanager
    def enable(model: torch.nn.Module, how: How) -> Iterator[Begin]:
        models.append(model)
        with ARMS["pyramid-attention-broadcast, eager"].enable(model, how) as begin:
            attentions = [each.transformer_blocks[0].attn1 for each in (model, plain)]
            hooked.append([hasattr(attention, "_diffusers_hook") for attention in attentions])
            yield begin

    measure("tiny", TINY, [Arm("rival", enable)], options(tmp_path))
    (own,) = models
    assert hooked == [[True, False]]
    pairs = zip(own.parameters(), plain.parameters(), strict=True)
    assert all(one is other for one, other in pairs), "weights were copied"


def test_what_fails_is_in_the_record(tmp_path: Path) -> None:
    path = measure("tiny", Case(row="sd3", title="tiny", text=6), [
        ARMS["first-block-cache, eager"], ARMS["plain, eager"],
    ], options(tmp_path))  # fmt: skip
    arms = content(path)["arms"]
    assert "TypeError: unsupported operand" in str(arms["first-block-cache, eager"]["failure"])
    assert "failure" not in arms["plain, eager"]
