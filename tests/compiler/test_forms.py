"""compiler/forms.py: tensors of every form are run as plain torch.compile runs them, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import compiled, in_session, oracle, tensors
from models import AdaLNDenoiser, B, D, noise, randomise
from raising import raises_in_compile
from torch import Tensor, fx, nn
from wrapped import Scaled8Bit, Secret8Bit, rounded, scaled

from deltapass.compiler.forms import form_of, refuse_forms
from deltapass.errors import RefusalWarning, TensorFormError, WrappedWeightError
from deltapass.graph.wrapped import holds_tensors

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


def test_a_weight_that_does_not_say_what_it_holds_is_refused() -> None:
    """Dynamo traces no such model either; torch.export and other tracers may."""
    graph = fx.Graph()
    node = graph.placeholder("w")
    node.meta["source"] = "L['self']._parameters['w']"
    graph.output(node)
    weight = Secret8Bit(torch.ones(2, 2), torch.ones(2, 1))
    assert not holds_tensors(weight)
    with pytest.raises(
        TensorFormError, match="is a Secret8Bit, a tensor with operators of its own"
    ):
        refuse_forms(fx.GraphModule(nn.Module(), graph), [weight])


def test_what_a_weight_holds_must_be_a_tensor_in_one_piece() -> None:
    jagged_scale = Scaled8Bit(torch.ones(2, 2), torch.ones(2, 2).to_sparse())
    assert form_of(jagged_scale, weight=True) == (
        "a Scaled8Bit, whose s is a tensor of layout torch.sparse_coo"
    )
    assert form_of(Scaled8Bit(torch.ones(2, 2), torch.ones(2, 1)), weight=True) is None


def test_data_that_holds_tensors_is_refused_and_runs() -> None:
    model = randomise(Reading(lambda x: x * 1.0))
    args = (*model.inputs(999.0)[0], Scaled8Bit(*rounded(noise(3, B, D))))
    with torch.no_grad(), pytest.warns(RefusalWarning, match="'given' is a Scaled8Bit"):
        ours = compiled(model, cached_blocks=2)(*args)
    with torch.no_grad():
        assert torch.equal(ours, model(*args))


def test_weights_that_hold_tensors_are_refused_by_lowerings_that_know_plain_ones() -> None:
    pytest.importorskip("onnxruntime")
    model = scaled(randomise(AdaLNDenoiser(depth=2)))
    args, _ = AdaLNDenoiser.inputs(model, 500.0)
    with torch.no_grad():
        with pytest.warns(RefusalWarning, match="Scaled8Bit, and lowering 'onnx' takes plain"):
            ours = compiled(model, lowering="onnx")(*args)
        assert torch.equal(ours, model(*args))
        torch._dynamo.reset()
        with raises_in_compile(WrappedWeightError, match="Use the lowering 'inductor'"):
            compiled(model, lowering="onnx", strict=True)(*args)


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter, nn.Buffer])
def test_plain_tensors_have_no_form_to_refuse(kind: Any) -> None:
    assert form_of(kind(torch.ones(2))) is None
