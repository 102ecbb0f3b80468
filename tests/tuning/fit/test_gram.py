"""Least squares from inner products, against the same done with the features at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from deltapass.schedule.predictors import PREDICTORS
from deltapass.tuning.fit import gram as module
from deltapass.tuning.fit.gram import Gram, fitted, gram, padded
from deltapass.tuning.fit.walk import Sharing

LINEAR = PREDICTORS["linear"]
SHARE = Sharing().share(1)  # the predictor's in a fit to one sample, unless told otherwise


def deltas(count: int, seed: int = 0, size: int = 200) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, size // 2, generator=generator) for _ in range(count)]


def combined(weights: Sequence[float], held: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum((w * delta for w, delta in zip(weights, held, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_that_made_the_truth_are_found(count: int) -> None:
    held, wanted = deltas(count), (1.7, -0.9, 0.4, -0.2)[:count]
    found = gram(held, combined(wanted, held))
    assert fitted(found, (1.0,), 0.0) == pytest.approx(wanted, abs=1e-5)
    assert found.error(wanted) < 1e-6
    assert found.error((1.0,)) > 0.1


def test_products_are_those_of_all_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)  # chunks that do not divide the elements
    held, truth = deltas(2), deltas(1, seed=9)[0]
    rows = torch.stack([*held, truth]).reshape(3, -1).double()
    assert np.allclose(gram(held, truth).products, (rows @ rows.T).numpy())


def test_layouts_that_differ_are_the_same_numbers() -> None:
    held, truth = deltas(2), deltas(1, seed=9)[0]
    turned = truth.T.contiguous().T
    assert turned.stride() != truth.stride()
    assert np.array_equal(gram(held, turned).products, gram(held, truth).products)


def test_sums_over_samples_fit_all_of_them() -> None:
    first, second = deltas(3), deltas(3, seed=1)
    both = gram(first[:2], first[2]) + gram(second[:2], second[2])
    rows = torch.cat([torch.stack(three).reshape(3, -1) for three in (first, second)], dim=1)
    wanted = torch.linalg.lstsq(rows[:2].T.double(), rows[2].double()).solution
    assert fitted(both, (1.0,), 0.0) == pytest.approx(wanted.tolist(), abs=1e-9)


def test_weights_are_drawn_to_the_predictors_in_a_line() -> None:
    held, truth = deltas(2), deltas(1, seed=9)[0]
    found, prior = gram(held, truth), (1.5, -0.5)
    free = fitted(found, prior, 0.0)
    assert fitted(found, prior, 1.0) == pytest.approx(prior)
    wanted = [0.25 * w + 0.75 * p for w, p in zip(free, prior, strict=True)]
    assert fitted(found, prior, 0.75) == pytest.approx(wanted)
    errors = [found.error(fitted(found, prior, share)) for share in (0.0, 0.3, 0.6, 1.0)]
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_the_error_is_that_of_the_deltas_at_hand() -> None:
    held, truth = deltas(3), deltas(1, seed=9)[0]
    missed = combined((1.5, -0.5, 0.0), held) - truth
    found = gram(held, truth)
    assert found.error((1.5, -0.5)) == pytest.approx(float(missed.norm() / truth.norm()))
    assert found.missed((1.5, -0.5)) == pytest.approx(float(missed.norm() ** 2))
    assert found.size == pytest.approx(float(truth.norm() ** 2))


def test_equal_deltas_leave_the_weights_small() -> None:
    delta = deltas(1)[0]
    weights = fitted(gram([delta, delta.clone()], 2 * delta), (1.0,), 0.0)
    assert sum(weights) == pytest.approx(2.0)
    assert max(map(abs, weights)) < 2.0


def test_nothing_to_predict_is_no_error() -> None:
    zeros = torch.zeros(4)
    assert gram([zeros], zeros).error((1.0,)) == 0.0
    assert fitted(gram([zeros, zeros], zeros), (1.0,), SHARE) == (1.0, 0.0)


def test_half_precision_is_summed_in_full() -> None:
    held = [torch.full((5000,), 0.1, dtype=torch.float16)]
    assert gram(held, held[0]).products[0, 0] == pytest.approx(5000 * float(held[0][0]) ** 2)


def test_missing_weights_are_zero() -> None:
    assert padded((1.0,), 3).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("at", [(4, 2, 0), (6, 2, 1), (5, 4, 0)])
def test_a_quadratic_series_is_fitted_for_uneven_refreshes(at: tuple[int, ...]) -> None:
    """A path d(t) = a + bt + ct^2 with noise on top: three weights find Lagrange's."""
    a, b, c = deltas(3)
    held = [a + b * t + c * t * t for t in at]
    step = at[0] + 1
    found = gram(held, a + b * step + c * step * step)
    wanted = PREDICTORS["quadratic"].weights(step, at)
    assert fitted(found, LINEAR.weights(step, at), 0.0) == pytest.approx(wanted, abs=1e-4)


def noisy_path(seed: int, size: int, noise: float) -> Gram:
    """One sample of deltas that move in a line but for noise: linear is the best in the mean."""
    generator = torch.Generator().manual_seed(seed)
    a, b, *rest = (torch.randn(size, generator=generator) for _ in range(6))
    path = [a + b * t + noise * r for t, r in zip((3, 2, 1, 4), rest, strict=True)]
    return gram(path[:3], path[3])


@pytest.mark.parametrize("size", [4, 8, 64])
def test_one_sample_does_not_harm(size: int) -> None:
    """Weights of one small sample, on many others: no worse than the predictor's by a margin."""
    prior = LINEAR.weights(4, (3, 2))
    samples = [noisy_path(seed, size, 0.05) for seed in range(20)]
    others = sum((noisy_path(seed, size, 0.05) for seed in range(100, 200)), samples[0])
    errors = [others.error(fitted(sample, prior, SHARE)) for sample in samples]
    assert max(errors) < 1.1 * others.error(prior)
    free = [others.error(fitted(sample, prior, 0.0)) for sample in samples]
    if size < 64:  # where it could harm
        assert max(free) > 1.3 * others.error(prior)


def test_what_is_not_a_number_is_no_perfect_fit() -> None:
    held, truth = deltas(1), deltas(1, seed=9)[0]
    truth[0, 0] = float("nan")
    found = gram(held, truth)
    assert not found.finite and np.isnan(found.missed((1.0,)))
    assert gram(held, held[0]).finite


def test_devices_without_float64_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas much alike: sums in float32 would say that they are the same."""
    first = deltas(1, size=20_000)[0]
    held = [first, first + 1e-5 * deltas(1, seed=1, size=20_000)[0]]
    wanted = gram(held, first).products
    monkeypatch.setattr(module, "NO_FLOAT64", {"cpu"})
    assert np.array_equal(gram(held, first).products, wanted)


def test_older_deltas_can_be_left_out() -> None:
    held, truth = deltas(3), deltas(1, seed=9)[0]
    found = gram(held, truth)
    assert np.allclose(found.newest(2).products, gram(held[:2], truth).products)
    assert np.array_equal(found.newest(4).products, found.products)
