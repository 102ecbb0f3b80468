"""compiler/forms.py: tensors of every form are run as plain torch.compile runs them, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled, in_session, oracle, tensors
from models import AdaLNDenoiser, B, D, noise, randomise
from raising import raises_in_compile
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deltapass.compiler.forms import form_of
from deltapass.errors import RefusalWarning, TensorFormError

STEPS = 4
Read = Callable[[Tensor], Tensor]


class Reading(AdaLNDenoiser):
    """A denoiser of one more input, read by a function to (B, D)."""

    def __init__(self, read: Read) -> None:
        super().__init__(depth=4)
        self.read = read

    def forward(self, hidden_states: Tensor, timestep: Tensor, given: Tensor) -> Tensor:
        x, conditioning = self.embedding(hidden_states), self.conditioning(timestep)
        conditioning = conditioning + self.read(given)
        for block in self.blocks:
            x = block(x, conditioning)
        return self.head(x, conditioning)


def text() -> Tensor:
    return noise(5, B, 6, D)


def summed(given: Tensor) -> Tensor:
    return given.float().sum(1)


def complex_text() -> Tensor:
    return torch.complex(text(), noise(6, B, 6, D))


FOLLOWED: dict[str, tuple[Callable[[], Tensor], Read]] = {
    "complex": (complex_text, lambda x: x.abs().sum(1)),
    "conjugate view": (lambda: complex_text().conj(), lambda x: (x * x).imag.sum(1)),
    "negative view": (lambda: complex_text().conj().imag, summed),
    "expanded": (lambda: noise(5, 1, 1, D).expand(B, 6, D), summed),
    "empty": (lambda: noise(5, B, 0, D), summed),
    "empty rows": (lambda: noise(5, B, 6, 0), lambda x: x.sum((1, 2))[:, None]),
    "scalar": (lambda: torch.tensor(2.0), lambda x: x),
    "whole scalar": (lambda: torch.tensor(2), lambda x: x),
    "channels last": (
        lambda: noise(5, B, 6, 4, 8).to(memory_format=torch.channels_last),
        lambda x: x.flatten(2).sum(1),
    ),
    "overlapping": (lambda: noise(5, B * 6 * D).as_strided((B, 6, D), (6, 2, 1)), summed),
    "part of a larger one": (lambda: noise(5, B + 2, 9, D)[1 : 1 + B, 2:8], summed),
    "bool": (lambda: text() > 0, summed),
    "8 bits": (lambda: text().to(torch.float8_e4m3fn), summed),
}


@pytest.mark.parametrize("form", FOLLOWED)
def test_dense_tensors_of_every_form_equal_the_oracle(form: str) -> None:
    make, read = FOLLOWED[form]
    model = randomise(Reading(read))
    given = make()
    calls = [((*model.inputs(999.0 - step, step)[0], given), {}) for step in range(STEPS)]
    calls[-1] = ((*calls[-1][0][:2], make()), {})  # as a pipeline that makes it anew
    outputs, report = in_session(compiled(model, cached_blocks=2), calls)
    assert report.cached == 2
    table = tuple(entry.realised for entry in report.entries)
    assert all(map(torch.equal, tensors(outputs), tensors(oracle(model, table, calls))))


def jagged() -> Tensor:
    lengths = range(3, 3 + B)
    return torch.nested.nested_tensor([noise(n, n, D) for n in lengths], layout=torch.jagged)


def padded(given: Tensor) -> Tensor:
    return torch.nested.to_padded_tensor(given, 0.0, (B, 6, D)).sum(1)


def test_jagged_text_is_refused_once_and_runs() -> None:
    model = randomise(Reading(padded))
    run = compiled(model, cached_blocks=2)
    with pytest.warns(RefusalWarning, match="'given' is a nested tensor") as caught:
        for step in range(3):
            args = (*model.inputs(999.0 - step, step)[0], jagged())
            with torch.no_grad():
                assert torch.equal(run(*args), model(*args))
    assert len([w for w in caught if w.category is RefusalWarning]) == 1


def test_opaque_tensor_is_refused_and_runs() -> None:
    model = randomise(Reading(lambda x: x.to_dense().sum(1)))
    args = (*model.inputs(999.0)[0], text().to_mkldnn())
    with torch.no_grad(), pytest.warns(RefusalWarning, match="layout torch._mkldnn"):
        ours = compiled(model, cached_blocks=2)(*args)
    with torch.no_grad():
        assert torch.equal(ours, model(*args))


class Scaled8Bit(torch.Tensor):
    """A weight in two tensors, which operators see as one, as torchao makes them."""

    q: Tensor
    s: Tensor

    @staticmethod
    def __new__(cls, q: Tensor, s: Tensor) -> Scaled8Bit:
        made = torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=s.dtype, device=q.device)
        made.q, made.s = q, s
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["q", "s"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Scaled8Bit:
        return Scaled8Bit(inner["q"], inner["s"])

    def __repr__(self) -> str:  # torch's own reads numbers
        return "Scaled8Bit"

    def _stable_hash_for_caching(self) -> str:
        return repr(self)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Scaled8Bit(args[0].q, args[0].s)
        args, kwargs = pytree.tree_map_only(cls, lambda w: w.q * w.s, (args, kwargs or {}))
        return func(*args, **kwargs)


def quantised() -> nn.Module:
    model = randomise(AdaLNDenoiser(depth=2))
    for layer in model.blocks.modules():
        if isinstance(layer, nn.Linear):
            scale = layer.weight.abs().amax(1, keepdim=True) / 127
            weight = Scaled8Bit((layer.weight / scale).round().to(torch.int8), scale)
            layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of Inductor's own
@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_weights_of_several_tensors_are_refused_and_run(lowering: str) -> None:
    model = quantised()
    args, _ = AdaLNDenoiser.inputs(model, 500.0)
    with torch.no_grad():
        with pytest.warns(RefusalWarning, match="is a Scaled8Bit"):
            ours = compiled(model, lowering=lowering)(*args)
        torch.testing.assert_close(ours, model(*args), rtol=1e-4, atol=1e-4)
        torch._dynamo.reset()
        with raises_in_compile(TensorFormError, match="Scaled8Bit"):
            compiled(model, strict=True)(*args)


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter, nn.Buffer])
def test_plain_tensors_have_no_form_to_refuse(kind: Any) -> None:
    assert form_of(kind(torch.ones(2))) is None
