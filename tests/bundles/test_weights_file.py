"""The weights file: every tensor once, under its name, at the bytes that are promised."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from deltapass.bundles.weights_file import TensorStore, digest, fingerprint, locations, read_tensors
from deltapass.errors import BundleError

pytest.importorskip("safetensors")

TYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.bool,
)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def written(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Store, write and read; checks that every promised place holds the very bytes."""
    store = TensorStore()
    names = {name: store.add(name, tensor) for name, tensor in tensors.items()}
    places = store.write(path)
    assert set(places) == set(names.values())
    content = path.read_bytes()
    for name, tensor in tensors.items():
        place = places[names[name]]
        assert place.length == tensor.nbytes
        plain = tensor.detach().contiguous().reshape(-1)
        expected = plain.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert content[place.offset : place.offset + place.length] == expected
    read = read_tensors(path)
    return {name: read[stored] for name, stored in names.items()}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    given = {"many": (3 * numbers(5, 3)).to(dtype), "one": (3 * numbers(1)).to(dtype)[0]}
    read = written(given, tmp_path / "weights")
    for name, tensor in given.items():
        assert read[name].dtype == dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_scalars_and_empty_tensors_are_kept(tmp_path: Path) -> None:
    given = {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "after": numbers(3)}
    read = written(given, tmp_path / "weights")
    assert read["scalar"].shape == () and read["scalar"] == 3.5
    assert read["empty"].shape == (0, 4)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    shared = numbers(64, 64)
    store = TensorStore()
    assert store.add("embedding.weight", shared) == "embedding.weight"
    assert store.add("head.weight", shared) == "embedding.weight"
    store.write(tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size < 1.2 * shared.nbytes


def test_equal_contents_under_two_names_are_stored_once(tmp_path: Path) -> None:
    store = TensorStore()
    assert store.add("one", numbers(8, 8)) == store.add("two", numbers(8, 8)) == "one"
    assert list(store.write(tmp_path / "weights")) == ["one"]


def test_equal_bytes_of_another_shape_or_type_are_another_tensor(tmp_path: Path) -> None:
    zeros = torch.zeros(4, 4)
    given = {
        "square": zeros,
        "long": torch.zeros(16),
        "whole": torch.zeros(4, 4, dtype=torch.int32),
        "scalar": torch.tensor(0.0),
        "single": torch.zeros(1),
        "nothing": torch.zeros(0),
        "no_rows": torch.zeros(0, 4),
    }
    read = written(given, tmp_path / "weights")
    for name, tensor in given.items():
        assert (read[name].shape, read[name].dtype) == (tensor.shape, tensor.dtype)


def test_other_contents_under_one_name_are_kept_apart(tmp_path: Path) -> None:
    store = TensorStore()
    first, second, third = numbers(4, seed=1), numbers(4, seed=2), numbers(4, seed=3)
    names = [store.add("w", first), store.add("w", second), store.add("w.1", third)]
    assert len(set(names)) == 3
    store.write(tmp_path / "weights")
    read = read_tensors(tmp_path / "weights")
    for name, tensor in zip(names, (first, second, third), strict=True):
        assert torch.equal(read[name], tensor)


def test_strided_tensors_and_views_of_one_storage_are_written_row_by_row(tmp_path: Path) -> None:
    whole = numbers(6, 8)
    given = {
        "turned": whole.t(),
        "upper": whole[:3],
        "lower": whole[3:],
        "columns": whole[:, ::2],
        "whole": whole,
        "expanded": numbers(4, seed=5).expand(3, 4),
    }
    read = written(given, tmp_path / "weights")
    for name, tensor in given.items():
        assert torch.equal(read[name], tensor), name
    assert torch.equal(whole, numbers(6, 8)), "the model's own memory is left alone"


def test_a_view_of_a_huge_storage_takes_its_own_bytes_only(tmp_path: Path) -> None:
    written({"part": numbers(1000, 100)[7:9]}, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size < 2000


def test_names_need_not_be_identifiers(tmp_path: Path) -> None:
    given = {"blocks.0.w\u00e9ight": numbers(2, 2), 'say "so"\\': numbers(3), "a/b c": numbers(4)}
    read = written(given, tmp_path / "weights")
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())


def test_parameters_are_stored_without_gradients(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(numbers(3, 3))
    read = written({"weight": weight}, tmp_path / "weights")
    assert not read["weight"].requires_grad


def test_everybody_may_read_the_file(tmp_path: Path) -> None:
    written({"w": numbers(2)}, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o644


def test_places_lie_one_after_another_within_the_file(tmp_path: Path) -> None:
    store = TensorStore()
    for at in range(5):
        store.add(f"w{at}", numbers(at + 1, 3, seed=at).to(TYPES[at % 3]))
    found = store.write(tmp_path / "weights")
    assert locations(tmp_path / "weights") == found
    places = sorted(found.values(), key=lambda place: place.offset)
    for before, after in itertools.pairwise(places):
        assert before.offset + before.length <= after.offset
    last = places[-1]
    assert last.offset + last.length == (tmp_path / "weights").stat().st_size


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file_is_an_error_of_ours(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    written({"w": numbers(64)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match="cannot be read"):
        read_tensors(path)


# ---- checksums ---------------------------------------------------------------------------------


def test_a_digest_is_of_contents_not_of_layout_or_memory() -> None:
    tensor = numbers(4, 6)
    assert digest(tensor) == digest(tensor.clone()) == digest(tensor.t().contiguous().t())
    assert digest(tensor) != digest(tensor.t()) != digest(tensor.reshape(6, 4))
    assert digest(tensor) == digest(torch.nn.Parameter(tensor))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_changed_number_changes_the_digest(dtype: torch.dtype) -> None:
    tensor = torch.zeros(100, dtype=dtype)
    before = digest(tensor)
    tensor[99] = 1
    assert digest(tensor) != before


def test_minus_zero_and_nan_are_told_apart_by_their_bits() -> None:
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert digest(torch.tensor([float("nan")])) == digest(torch.tensor([float("nan")]))


def test_a_fingerprint_is_of_names_and_contents_in_any_order() -> None:
    one, two = numbers(3, seed=1), numbers(3, seed=2)
    before = fingerprint({"a": one, "b": two})
    assert before == fingerprint({"b": two, "a": one.clone()})
    others = ({"a": two, "b": one}, {"a": one}, {"a": one, "c": two}, {"a": one, "b": one})
    assert before not in [fingerprint(other) for other in others]
