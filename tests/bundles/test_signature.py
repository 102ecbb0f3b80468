"""A call of a loaded model is the exported one with other tensors, or an error that says why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from msgspec import to_builtins

from deltapass.bundles.signature import Signature, bind, example_call, template_of
from deltapass.errors import ExportError, SignatureError

X, T, TEXT = torch.zeros(2, 3), torch.ones(2), torch.ones(2, 4)


class Model(torch.nn.Module):
    """Takes what denoisers of diffusers take: tensors, options, nested conditioning."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        text: Any = None,
        added_cond_kwargs: Any = None,
        joint: bool = False,
        scale: float = 1.0,
        return_dict: bool = True,
    ) -> Any:
        raise NotImplementedError


class Plain(torch.nn.Module):
    """Has neither `return_dict` nor defaults, and takes further keywords."""

    def forward(self, sample: torch.Tensor, *rest: Any, level: Any, **further: Any) -> Any:
        raise NotImplementedError


def names_of(value: Any, path: str) -> dict[int, str]:
    """Every tensor's identity and a name for it."""
    if isinstance(value, torch.Tensor):
        return {id(value): path}
    if not isinstance(value, Mapping | list | tuple):
        return {}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {k: v for at, item in items for k, v in names_of(item, f"{path}_{at}").items()}


def exported(*args: Any, **kwargs: Any) -> Signature:
    """The signature of an exported call, as it comes back from a file."""
    call, defaults, parameters = example_call(Model(), args, kwargs)
    names = {k: v for name, value in call.items() for k, v in names_of(value, name).items()}
    made = Signature(
        parameters=parameters,
        template=template_of(call, names),
        defaults=defaults,
        tuple_result=True,
    )
    read = json.loads(json.dumps(to_builtins(made)))
    return Signature(**{**read, "parameters": tuple(read["parameters"])})


# ---- which argument is which -------------------------------------------------------------------


def test_position_and_name_say_the_same() -> None:
    signature = exported(X, T, text=TEXT)
    x, t, text = X + 1, T + 1, TEXT + 1
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x, t, text), {}),
        ((x,), {"text": text, "timestep": t}),
        ((), {"timestep": t, "text": text, "hidden_states": x}),
        ((x, t, text, None, False, 1.0, False), {}),
    ]
    for args, kwargs in calls:
        found = signature.tensors(args, kwargs)
        assert found["hidden_states"] is x and found["timestep"] is t and found["text"] is text
        assert len(found) == 3


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        SignatureError, match=r"unexpected arguments: prompt, tezt\. The model takes"
    ):
        exported(X, T).tensors((X, T), {"tezt": TEXT, "prompt": TEXT})


def test_too_many_positions_are_counted() -> None:
    with pytest.raises(SignatureError, match="unexpected arguments: 8 by position"):
        exported(X, T).tensors((X, T, None, None, False, 1.0, False, 7), {})


def test_bind_leaves_out_what_is_not_given() -> None:
    assert bind(("a", "b", "c"), (1,), {"c": None}) == {"a": 1, "c": None}
    with pytest.raises(SignatureError, match="unexpected arguments: d"):
        bind(("a",), (), {"d": 1})


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ((X,), "timestep is missing"),
        ((X, None), "timestep is None"),
        ((X, 3.0), r"timestep is 3\.0"),
        ((X, [T]), "timestep is "),
    ],
)
def test_where_a_tensor_was_a_tensor_must_be(args: tuple[Any, ...], found: str) -> None:
    with pytest.raises(SignatureError, match=f"{found}.* The exported model takes a tensor"):
        exported(X, T).tensors(args, {})


def test_a_tensor_that_was_not_exported_is_refused_by_name_and_shape() -> None:
    text = r"'text' is a tensor of shape \(2, 4\); the model was exported without it"
    with pytest.raises(SignatureError, match=text):
        exported(X, T).tensors((X, T, TEXT), {})
    with pytest.raises(SignatureError, match=r"text is a tensor .* it was None when"):
        exported(X, T, None).tensors((X, T, TEXT), {})


def test_a_left_out_argument_may_be_given_its_default() -> None:
    signature = exported(X, T)
    kwargs = {"text": None, "added_cond_kwargs": None, "joint": False, "scale": 1.0}
    assert set(signature.tensors((X, T), kwargs)) == {"hidden_states", "timestep"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("joint", True), ("scale", 2.0), ("joint", 0), ("scale", torch.tensor(1.0)), ("text", 0)],
)
def test_a_left_out_argument_may_be_given_nothing_else(name: str, value: object) -> None:
    with pytest.raises(SignatureError, match=f"'{name}' is .*; the model was exported without it"):
        exported(X, T).tensors((X, T), {name: value})


@pytest.mark.parametrize(
    ("was", "value"),
    [(True, False), (True, 1), (True, None), (False, True), (False, 0), (False, torch.ones(1))],
)
def test_an_option_is_what_it_was_and_of_the_same_type(was: bool, value: object) -> None:
    with pytest.raises(SignatureError, match=f"joint is .*; it was {was} when the model was expo"):
        exported(X, T, joint=was).tensors((X, T), {"joint": value})


def test_a_number_is_what_it_was() -> None:
    signature = exported(X, T, scale=0.5)
    assert signature.tensors((X, T), {"scale": 0.5})
    for other in (0.25, 0, None, T):
        with pytest.raises(SignatureError, match=r"it was 0\.5 when the model was exported"):
            signature.tensors((X, T), {"scale": other})


# ---- nested arguments --------------------------------------------------------------------------


def test_none_inside_a_dictionary_may_be_left_out() -> None:
    signature = exported(X, T, added_cond_kwargs={"resolution": None, "aspect_ratio": None})
    for given in ({"resolution": None, "aspect_ratio": None}, {"resolution": None}, {}):
        assert set(signature.tensors((X, T), {"added_cond_kwargs": given})) == {
            "hidden_states",
            "timestep",
        }
    with pytest.raises(SignatureError, match=r"added_cond_kwargs\['resolution'\] is a tensor"):
        signature.tensors((X, T), {"added_cond_kwargs": {"resolution": TEXT}})


def test_an_empty_dictionary_and_nothing_are_alike() -> None:
    for was, given in (({}, None), (None, {}), ({}, {}), (None, None)):
        signature = exported(X, T, added_cond_kwargs=was)
        assert len(signature.tensors((X, T), {"added_cond_kwargs": given})) == 2
    assert len(exported(X, T).tensors((X, T), {"added_cond_kwargs": {}})) == 2


def test_tensors_deep_inside_are_found_under_their_own_names() -> None:
    nested = {"a": [TEXT.clone(), {"b": TEXT.clone(), "n": 3}], "c": None}
    signature = exported(X, T, added_cond_kwargs=nested)
    one, two = TEXT + 1, TEXT + 2
    for pair in ([one, {"b": two, "n": 3}], (one, {"n": 3, "b": two})):
        found = signature.tensors((X, T), {"added_cond_kwargs": {"c": None, "a": pair}})
        names = ("added_cond_kwargs_a_0", "added_cond_kwargs_a_1_b")
        assert len(found) == 4
        assert found[names[0]] is one and found[names[1]] is two


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"a": [TEXT]}, r"\['a'\]\[1\] is missing"),
        ({"a": [TEXT, TEXT, TEXT]}, r"\['a'\]\[2\] is a tensor of shape"),
        ({"a": TEXT}, r"\['a'\] is a tensor of shape"),
        ({"a": [TEXT, None]}, r"\['a'\]\[1\] is None"),
        ({"a": None}, r"\['a'\] is None; it was"),
        ({"a": [TEXT, TEXT], "z": 1}, r"\['z'\] is 1; it was None"),
        ([TEXT, TEXT], " is .*; it was a dict"),
        (None, " is None; it was a dict"),
        (TEXT, " is a tensor of shape"),
    ],
)
def test_another_structure_is_refused_with_its_place(given: Any, fact: str) -> None:
    signature = exported(X, T, added_cond_kwargs={"a": [TEXT.clone(), TEXT.clone()]})
    with pytest.raises(SignatureError, match=f"(?s)added_cond_kwargs{fact}"):
        signature.tensors((X, T), {"added_cond_kwargs": given})


# ---- an object or a tuple ----------------------------------------------------------------------


def test_return_dict_is_the_callers_choice_whatever_was_exported() -> None:
    for kwargs in ({}, {"return_dict": False}, {"return_dict": True}):
        signature = exported(X, T, **kwargs)
        assert signature.whole((X, T), {}), "the model's own default"
        assert not signature.whole((X, T), {"return_dict": False})
        assert not signature.whole((X, T, None, None, False, 1.0, False), {})
        assert len(signature.tensors((X, T), {"return_dict": True})) == 2


def test_a_model_without_return_dict_gives_no_object() -> None:
    call, defaults, parameters = example_call(Plain(), (X,), {"level": T})
    assert parameters == ("sample", "level") and defaults == {}
    assert list(call) == ["sample", "level"]
    signature = Signature(parameters=parameters, template={}, defaults={}, tuple_result=False)
    assert not signature.whole((X,), {"level": T})
    with pytest.raises(SignatureError, match="unexpected arguments: return_dict"):
        signature.tensors((X,), {"level": T, "return_dict": True})


# ---- the example call --------------------------------------------------------------------------


def test_the_example_is_ordered_as_the_model_takes_it_and_asks_for_a_tuple() -> None:
    call, defaults, _ = example_call(Model(), (X,), {"text": TEXT, "timestep": T})
    assert list(call) == ["hidden_states", "timestep", "text", "return_dict"]
    assert call["return_dict"] is False
    assert defaults == {
        "text": None,
        "added_cond_kwargs": None,
        "joint": False,
        "scale": 1.0,
        "return_dict": True,
    }


def test_an_example_that_does_not_fit_is_an_error_of_the_export() -> None:
    with pytest.raises(ExportError, match="unexpected arguments: prompt"):
        example_call(Model(), (X, T), {"prompt": TEXT})
    with pytest.raises(ExportError, match="unexpected arguments: 9 by position"):
        example_call(Model(), (X,) * 9, {})


def test_what_a_file_cannot_hold_is_named_by_type() -> None:
    for value in (object(), {1, 2}, torch.float32, b"text", 1 + 2j):
        with pytest.raises(ExportError, match=f"of type {type(value).__name__} cannot be part"):
            template_of({"option": [value]}, {})


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_a_number_that_json_lacks_is_refused(value: float) -> None:
    with pytest.raises(ExportError, match="which no JSON holds"):
        template_of({"scale": [1.0, value]}, {})


def test_names_are_those_of_all_tensors_inside() -> None:
    template = {"x": {"$tensor": "x"}, "more": {"a": [{"$tensor": "y"}, 3], "b": None}}
    made = Signature(parameters=(), template=template, defaults={}, tuple_result=False)
    assert made.names == ("x", "y")


def test_a_default_that_json_lacks_is_none_in_the_file() -> None:
    class Limited(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, top: float = float("inf"), ends: Any = (0.0, float("nan"))
        ) -> torch.Tensor:
            return x

    _, defaults, names = example_call(Limited(), (X,), {})
    assert names == ("x", "top", "ends") and defaults == {}


def test_an_argument_whose_default_no_file_holds_stays_left_out() -> None:
    """None is another value than the default, which is not known here."""

    class Typed(torch.nn.Module):
        def forward(self, x: torch.Tensor, dtype: Any = torch.float32) -> torch.Tensor:
            return x

    call, defaults, parameters = example_call(Typed(), (X,), {})
    template = template_of(call, {id(X): "x"})
    made = Signature(
        parameters=parameters, template=template, defaults=defaults, tuple_result=False
    )
    assert made.tensors((X,), {})["x"] is X
    for value in (None, torch.float32, torch.float16):
        with pytest.raises(
            SignatureError, match=r"'dtype' is .*; the model was exported without it"
        ):
            made.tensors((X,), {"dtype": value})


@pytest.mark.parametrize(
    ("was", "given"),
    [([1, 2], [1, 2.0]), ([True], [1]), ([[0]], [[False]]), (0.0, -0.0), ([0.0], (-0.0,))],
)
def test_values_that_python_calls_equal_are_told_apart(was: Any, given: Any) -> None:
    signature = exported(X, T, text=was)
    assert signature.tensors((X, T), {"text": was})
    with pytest.raises(SignatureError, match="it was "):
        signature.tensors((X, T), {"text": given})
    signature = exported(X, T)
    with pytest.raises(SignatureError):
        signature.tensors((X, T), {"text": given})
