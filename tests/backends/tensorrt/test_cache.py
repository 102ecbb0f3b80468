"""backends/tensorrt/cache.py: which graphs share an engine, and files that are whole or no hit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from deltapass.backends.tensorrt.cache import (
    Entry,
    find,
    graph_digest,
    key_of,
    store,
    write_whole,
)
from engine_graphs import EXTERNAL, D, Files, product, scaled, weight
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def saved(tmp_path: Path) -> Files:
    return Files(tmp_path)


# ---- the digest of a graph ---------------------------------------------------------------------


def test_graphs_that_differ_in_a_literal_have_different_digests(saved: Files) -> None:
    assert graph_digest(saved(scaled(2.0))) != graph_digest(saved(scaled(7.0)))


def test_graphs_that_differ_in_an_edge_have_different_digests(saved: Files) -> None:
    assert graph_digest(saved(scaled(2.0))) != graph_digest(saved(scaled(2.0, swapped=True)))


def test_graphs_that_differ_in_weights_have_different_digests(saved: Files) -> None:
    one, two = (saved(product(held=weight(seed))) for seed in (0, 1))
    assert graph_digest(one) != graph_digest(two)


@pytest.mark.parametrize("options", [{}, EXTERNAL])
def test_graphs_that_differ_in_one_weight_have_different_digests(
    saved: Files, options: dict[str, Any]
) -> None:
    changed = numpy_helper.to_array(weight()).copy()
    changed[-1, -1] += 1
    held = numpy_helper.from_array(changed, "w")
    one, two = (saved(product(held=each), **options) for each in (weight(), held))
    assert graph_digest(one) != graph_digest(two)


def test_graphs_with_texts_have_digests(saved: Files) -> None:
    def told(text: str) -> Any:
        model = product()
        model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [text]))
        return model

    one, other = saved(told("a")), saved(told("b"))
    assert graph_digest(one) == graph_digest(one) != graph_digest(other)


def test_graphs_with_sparse_weights_have_digests(saved: Files) -> None:
    def sparse(value: float) -> Any:
        model = product()
        values = helper.make_tensor("s", TensorProto.FLOAT, [1], [value])
        places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [D, D]))
        model.graph.node[0].input[1] = "s"
        return model

    one, other = saved(sparse(1.0)), saved(sparse(2.0))
    assert graph_digest(one) == graph_digest(one) != graph_digest(other)


def test_graphs_that_differ_in_type_or_shape_have_different_digests(saved: Files) -> None:
    models = [product(), product(batch=3), product(batch="b"), product(held=weight(0, np.float16))]
    assert len({graph_digest(saved(model)) for model in models}) == len(models)


def test_graphs_that_differ_in_an_attribute_have_different_digests(saved: Files) -> None:
    models = [product(operator="Softmax"), product(operator="Softmax")]
    models[1].graph.node[1].attribute.append(helper.make_attribute("axis", 0))
    assert len({graph_digest(saved(model)) for model in models}) == 2


def test_graphs_that_differ_in_the_name_of_an_input_have_different_digests(saved: Files) -> None:
    renamed = product()
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "z"
    assert graph_digest(saved(product())) != graph_digest(saved(renamed))


def test_subgraphs_count(saved: Files) -> None:
    def choice(operator: str) -> Any:
        kind = helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, D])
        parts = {
            f"{branch}_branch": helper.make_graph(
                [helper.make_node(name, ["x"], ["r"])], branch, [], [kind]
            )
            for branch, name in (("then", operator), ("else", "Neg"))
        }
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], **parts)],
            "choice",
            [
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, D]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, D])],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])

    digests = [graph_digest(saved(choice(name))) for name in ("Relu", "Relu", "Abs")]
    assert digests[0] == digests[1] != digests[2]


def test_names_documentation_and_metadata_do_not_count(saved: Files) -> None:
    told = product()
    told.doc_string = told.graph.doc_string = told.graph.node[0].doc_string = "words"
    told.producer_name, told.model_version, told.graph.name = "someone", 7, "other"
    told.graph.node[0].name, told.graph.initializer[0].name = "renamed", "weights of it"
    told.graph.node[0].input[1] = "weights of it"
    told.graph.node[0].output[0] = told.graph.node[1].input[0] = "value"
    helper.set_model_props(told, {"key": "value"})
    told.graph.value_info.append(helper.make_tensor_value_info("value", TensorProto.FLOAT, [2, D]))
    assert graph_digest(saved(told)) == graph_digest(saved(product()))


def test_where_weights_are_stored_does_not_count(saved: Files) -> None:
    typed = product(
        held=helper.make_tensor("w", 1, [D, D], numpy_helper.to_array(weight()).ravel())
    )
    paths = [saved(product()), saved(product(), **EXTERNAL), saved(typed)]
    assert len({graph_digest(path) for path in paths}) == 1


def test_external_data_that_ends_early_is_an_error(saved: Files) -> None:
    path = saved(product(), **EXTERNAL)
    data = path.parent / "weights.data"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(OSError, match="ends before tensor 'w'"):
        graph_digest(path)


# ---- cache files -------------------------------------------------------------------------------

ENTRY = Entry(engine=b"\x00engine\n" * 100, layers=3)


def test_kept_engine_is_found(tmp_path: Path) -> None:
    store(tmp_path / "new", "key", ENTRY)
    assert find(tmp_path / "new", "key") == ENTRY
    assert find(tmp_path / "new", "other") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key.engine"]


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, 20), slice(0, 0), slice(1, None)])
def test_damaged_file_is_no_hit(tmp_path: Path, damage: slice) -> None:
    store(tmp_path, "key", ENTRY)
    path = tmp_path / "key.engine"
    path.write_bytes(path.read_bytes()[damage])
    assert find(tmp_path, "key") is None


def test_file_of_another_key_is_no_hit(tmp_path: Path) -> None:
    store(tmp_path, "key", ENTRY)
    (tmp_path / "key.engine").rename(tmp_path / "other.engine")
    assert find(tmp_path, "other") is None


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    not_bytes: Any = "text"
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", [not_bytes])
    assert list(tmp_path.iterdir()) == []


def test_key_needs_plain_values_and_takes_all_of_them() -> None:
    one, two = (key_of(["a", [1, side], None]) for side in (2, 3))
    assert one != two
