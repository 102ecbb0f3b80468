"""How a model is called: from arguments as its users write them to named tensors, and back.

torch.export fixes everything but tensors. A `Signature` remembers the arguments of the exported
call with every tensor replaced by its input's name, as plain data that a file can hold.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, final

import torch
from msgspec import Struct

from deltapass.errors import ExportError, SignatureError

INPUT: Final = "$tensor"  # {"$tensor": name} stands for a tensor
WHOLE: Final = "return_dict"  # diffusers' way of asking for an object instead of a tuple
MISSING: Final = object()  # None is a value
PLAIN: Final = (bool, int, float, str, type(None))


@final
class Signature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The call that was exported.

    Attributes:
        parameters: Names of the model's parameters, in order.
        template: Parameter -> its value, with every tensor as {"$tensor": name}.
        defaults: Parameter -> default, where it is plain data.
        tuple_result: Whether the model returns a tuple; of what is nested otherwise, its structure
            as `deltapass.bundles.results` writes it.
    """

    parameters: tuple[str, ...]
    template: Mapping[str, Any]
    defaults: Mapping[str, Any]
    tuple_result: bool | Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs it gives tensors to."""
        return tuple(_named(self.template))

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Input name -> tensor, for one call.

        Raises:
            SignatureError: If an argument is missing, unknown, or not what was exported.
        """
        given = bind(self.parameters, args, kwargs)
        given.pop(WHOLE, None)
        found: dict[str, torch.Tensor] = {}
        for name in self.parameters:
            if name == WHOLE:
                continue
            if name in self.template:
                left_out = self.defaults.get(name, MISSING)
                _match(name, self.template[name], given.get(name, left_out), found)
            elif name in given and not self._left_out(name, given[name]):
                raise SignatureError(
                    f"{name!r} is {_shown(given[name])}; the model was exported without it",
                    f"Export it with {name} among the example inputs",
                )
        return found

    def _left_out(self, name: str, value: Any) -> bool:
        """Whether a value is what the model took where the example left the argument out."""
        if name not in self.defaults:  # it has a default that no file holds, so none is known here
            return False
        return _alike(self.defaults[name], value)

    def whole(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the caller wants an object with `.sample` rather than a tuple."""
        return WHOLE in self.parameters and bool(
            bind(self.parameters, args, kwargs).get(WHOLE, self.defaults.get(WHOLE, False))
        )


def bind(
    parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameter -> value.

    Raises:
        SignatureError: If there are too many, or one has no such name.
    """
    unknown = sorted(set(kwargs) - set(parameters))
    twice = [name for name, _ in zip(parameters, args, strict=False) if name in kwargs]
    if twice:
        raise SignatureError(f"{twice[0]!r} is given twice", "Give it by position or by name")
    if len(args) > len(parameters) or unknown:
        surplus = ", ".join(unknown) or f"{len(args)} by position"
        raise SignatureError(
            f"unexpected arguments: {surplus}", f"The model takes {', '.join(parameters)}"
        )
    return {**dict(zip(parameters, args, strict=False)), **kwargs}


def example_call(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The call to export, by name, with a tuple as result; defaults; names of all parameters.

    Raises:
        ExportError: If the arguments do not fit the model's `forward`.
    """
    known = inspect.signature(model.forward).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(name for name, given in known.items() if given.kind not in variadic)
    try:
        given = bind(names, args, kwargs)
    except SignatureError as error:
        raise ExportError(error.fact, error.remedy) from error
    if WHOLE in names:
        given[WHOLE] = False
    defaults = {}
    for name in names:
        with suppress(ExportError):  # what a file cannot hold
            defaults[name] = template_of(known[name].default, {})
    return {name: given[name] for name in names if name in given}, defaults, names


def template_of(value: Any, names: Mapping[int, str]) -> Any:
    """A value with every tensor as {"$tensor": name}, named by identity of the tensor.

    Raises:
        ExportError: If it holds what a file cannot.
    """
    if isinstance(value, torch.Tensor) and id(value) in names:
        return {INPUT: names[id(value)]}
    if isinstance(value, Mapping):
        return {str(key): template_of(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [template_of(item, names) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ExportError(f"an argument is {value}, which no JSON holds", "Use a finite number")
    if isinstance(value, PLAIN):
        return value
    raise ExportError(
        f"an argument of type {type(value).__name__} cannot be part of an exported call",
        "Use tensors, numbers, texts, None, and lists and dictionaries of them",
    )


def _named(template: Any) -> Iterator[str]:
    if isinstance(template, Mapping) and set(template) == {INPUT}:
        yield template[INPUT]
    else:
        for part in (_parts(template) or {}).values():
            yield from _named(part)


def _match(path: str, template: Any, value: Any, found: dict[str, torch.Tensor]) -> None:
    """Compare an argument with the template, and collect its tensors."""
    if isinstance(template, Mapping) and set(template) == {INPUT}:
        if not isinstance(value, torch.Tensor):
            raise SignatureError(f"{path} is {_shown(value)}", "The exported model takes a tensor")
        found[template[INPUT]] = value
        return
    exported, given = _parts(template), _parts(value)
    keyed = isinstance(template, Mapping), isinstance(value, Mapping)
    if exported is not None and given is not None and keyed[0] == keyed[1]:
        for name in {**exported, **given}:
            inner = exported.get(name), given.get(name, MISSING)
            _match(f"{path}[{name!r}]", *inner, found)
    elif not _alike(template, value):
        raise SignatureError(
            f"{path} is {_shown(value)}; it was {_shown(template)} when the model was exported",
            "Only tensors may change: export it again with this value",
        )


def _parts(value: Any) -> dict[str | int, Any] | None:
    """Name or position -> what a dictionary or list holds; None for anything else."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}  # as a file has them
    return dict(enumerate(value)) if isinstance(value, list | tuple) else None


def _alike(exported: Any, given: Any) -> bool:
    """Equal; nothing, None and empty dictionaries are all alike."""
    if isinstance(given, torch.Tensor):
        return False
    if _is_nothing(exported) and (given is MISSING or _is_nothing(given)):
        return True
    return _same(exported, _listed(given))


def _same(exported: Any, given: Any) -> bool:
    """Equal and of one type, inside lists too: to Python 1, 1.0 and True are equal."""
    if type(exported) is not type(given):
        return False
    if isinstance(exported, list):
        pairs = zip(exported, given, strict=False)
        return len(exported) == len(given) and all(_same(*pair) for pair in pairs)
    if isinstance(exported, float):
        return repr(exported) == repr(given)  # 0.0 is not -0.0
    return bool(exported == given)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping | list | tuple) and not value)


def _listed(value: Any) -> Any:
    """A tuple as the list that a file makes of it."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    if value is MISSING:
        return "missing"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)
