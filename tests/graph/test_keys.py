"""graph/keys.py: equal keys, equal code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from deltapass.graph.keys import Key, key_of_attribute


def key_of(target: Callable[..., Any], literal: object) -> object:
    """The key of a sub-graph of one call."""
    inner = fx.Graph()
    inner.output(inner.call_function(target, (inner.placeholder("x"), literal)))
    root = nn.Module()
    root.held = fx.GraphModule(nn.Module(), inner)
    return key_of_attribute(root, fx.Graph().get_attr("held"))


def local() -> Callable[..., Any]:
    """Each time another function of one name."""

    def call(x: Any, _: object) -> Any:
        return x

    return call


def test_pickled_key_leaves_its_hash_behind() -> None:
    key = Key(("a", 1))
    hash(key)
    again = pickle.loads(pickle.dumps(key))
    assert again == key
    assert type(again) is Key
    assert not hasattr(again, "_hash")


def test_literals_of_a_sub_graph_are_told_apart_by_kind() -> None:
    call = local()
    assert key_of(call, 1) == key_of(call, 1)
    assert key_of(call, 1) != key_of(call, "1")


def test_functions_of_a_sub_graph_are_told_apart_though_they_print_alike() -> None:
    assert key_of(local(), 1) != key_of(local(), 1)
