"""Options of the formats are used as given, or refused with what is taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deltapass.bundles.formats import load_format
from deltapass.errors import OptionError

pytest.importorskip("onnx")


@pytest.mark.parametrize(
    ("format", "options", "taken"),
    [
        ("onnx", {"opset": 3}, r"a whole number from 18 to \d+, or None"),
        ("onnx", {"opset": 999}, r"a whole number from 18 to"),
        ("onnx", {"opset": "20"}, r"a whole number from 18 to"),
        ("onnx", {"opset": True}, r"a whole number from 18 to"),
        ("onnx", {"opsets": 18}, "left out; options of this format: opset"),
        ("aoti", {"inductor": "max_autotune"}, "a mapping of Inductor's settings"),
        ("aoti", {"inductor": {"max_autotuned": True}}, "'max_autotuned' is none that can be set"),
        ("aoti", {"inductor": {"aot_inductor.package": False}}, "package' is none that can be set"),
        ("aoti", {"opset": 18}, "left out; options of this format: inductor"),
        ("tensorrt", {"flavour": "rtx"}, "one of 'tensorrt', 'tensorrt-rtx', or None"),
        ("tensorrt", {"cache_dir": 3}, "a folder's path"),
        ("tensorrt", {"architectures": "SM89"}, r"a list of names, such as \['SM89'\]"),
        ("tensorrt", {"effort": 6}, "a whole number from 0 to 5"),
        ("tensorrt", {"effort": "high"}, "a whole number from 0 to 5"),
        ("tensorrt", {"tf32": "no"}, "True or False"),
        ("tensorrt", {"keep_onnx": 1}, "True or False"),
    ],
)
def test_what_cannot_be_used_is_refused(format: str, options: dict[str, Any], taken: str) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"option '{name}' is .*{taken}"):
        load_format(format).check(options)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("onnx", {}),
        ("onnx", {"opset": 20}),
        ("aoti", {"inductor": {"max_autotune": True}}),
        ("tensorrt", {"effort": 0, "tf32": True, "architectures": ("SM89",), "cache_dir": "here"}),
    ],
)
def test_what_can_be_used_is_taken(format: str, options: dict[str, Any]) -> None:
    load_format(format).check(options)


@pytest.mark.parametrize("device", ["gpu", 3, "cuda:0", 1.5])
def test_a_device_of_another_kind_or_none_at_all_is_refused(device: Any) -> None:
    plan: Any = SimpleNamespace(build={"device": "cpu"})
    with pytest.raises(OptionError, match="It must be a cpu device: the bundle was compiled for"):
        load_format("aoti").device(plan, {"device": device})


@pytest.mark.parametrize(
    "options",
    [
        {"share_weights": "no"},
        {"optimize": 0},
        {"threads": -1},
        {"session_options": ["a.b"]},
        {"session_options": {"intra_op_num_threads": 2}},
    ],
)
def test_sessions_of_onnx_runtime_take_no_option_that_they_ignore(options: dict[str, Any]) -> None:
    session = pytest.importorskip("deltapass.backends.onnx.session")
    defaults = pytest.importorskip("deltapass.backends.onnx.format").OPEN_OPTIONS
    with pytest.raises(OptionError, match=f"option '{next(iter(options))}' is "):
        session.open_session(b"", {**defaults, **options})
