"""KNN: the law of the nearest noise, and candidates that the caller drew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest, norm
from torch import Tensor

from pydiffaccel.coupling import (
    KNN,
    Hungarian,
    Independent,
)
from tests.coupling.samples import data

# KNN: the law.


def expected_maximum(k: int) -> float:
    """E max of k standard normals."""
    z = np.linspace(-10, 10, 200_001)
    return float(np.sum(z * k * norm.pdf(z) * norm.cdf(z) ** (k - 1)) * (z[1] - z[0]))


@pytest.mark.parametrize("k", [4, 8, 64])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_norm_and_shift_of_the_nearest_are_as_predicted(k: int, spread: float) -> None:
    # methods: E|n|^2 / D falls by 2 m_k / (sqrt(D) sqrt(2 + 4 s^2)), <n, u> rises to m_k 2 s / sqrt(2 + 4 s^2).
    batch, size = 4096, 768
    x = spread * data(batch, size)
    unit = x / x.norm(dim=1, keepdim=True)
    largest, root = expected_maximum(k), math.sqrt(2 + 4 * spread**2)

    noise = KNN(k)(x, seed=11)
    drop = 1 - noise.square().mean().item()
    shift = (noise * unit).sum(1).mean().item()
    # Four standard errors, and 3 % for what the normal approximation of chi^2 leaves out.
    expected_drop = 2 * largest / (math.sqrt(size) * root)
    assert drop == pytest.approx(expected_drop, abs=4 * math.sqrt(2 / size / batch) + 0.03 * expected_drop)
    expected_shift = largest * 2 * spread / root
    assert shift == pytest.approx(expected_shift, abs=4 / math.sqrt(batch) + 0.03 * expected_shift)

    noise = KNN(k, "dot")(x, seed=11)
    assert (noise * unit).sum(1).mean().item() == pytest.approx(largest, abs=4 / math.sqrt(batch))
    # E a^2 of the largest of k is above 1, by less than its square.
    assert noise.square().mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / size / batch) + largest**2 / size)


def literal(x: Tensor, k: int, metric: str, seed: int) -> Tensor:
    """The paper's algorithm: draw k noises, keep the best."""
    candidates = data(len(x), k, *x.shape[1:], seed=seed)
    if metric == "l2":
        score = -(x.unsqueeze(1) - candidates).square().flatten(2).sum(2)
    else:
        score = (x.unsqueeze(1) * candidates).flatten(2).sum(2)
    return candidates[torch.arange(len(x)), score.argmax(1)]


def same_law(one: Tensor, other: Tensor, along: Tensor) -> None:
    """KS tests on the projection along a vector, on the norm and on two coordinates; seeds are fixed."""
    for a, b in (
        (one @ along, other @ along),
        (one.norm(dim=1), other.norm(dim=1)),
        (one[:, 0], other[:, 0]),
        (one[:, -1], other[:, -1]),
    ):
        assert ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("k", [2, 9])
def test_nearest_has_the_law_of_the_literal_algorithm(metric: str, size: int, k: int) -> None:
    one = 0.8 * data(1, size, seed=size)
    x = one.expand(4000, size)
    same_law(KNN(k, metric)(x, seed=5), literal(x, k, metric, seed=6), one[0])


def test_the_law_test_tells_another_k() -> None:
    one = 0.8 * data(1, 5)
    x = one.expand(4000, 5)
    with pytest.raises(AssertionError):
        same_law(KNN(3)(x, seed=5), literal(x, 2, "l2", seed=6), one[0])


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_a_centre_ranks_by_what_is_left_of_the_data(metric: str) -> None:
    center = torch.tensor([1.5, -0.5, 0.2])
    x = torch.tensor([[1.0, 0.5, -0.4]]).expand(4000, 3)
    noise = KNN(6, metric, center)(x, seed=5)
    same_law(noise, literal(x - center, 6, metric, seed=6), (x - center)[0])
    assert torch.equal(noise, KNN(6, metric)(x - center, seed=5))


def test_half_precision_is_centred_in_float32() -> None:
    x, center = data(50, 30, dtype=torch.bfloat16) + 3, torch.full((30,), 3.001)
    assert torch.equal(KNN(4, center=center)(x, seed=1), KNN(4)(x.float() - center, seed=1).bfloat16())


def test_the_batch_mean_as_a_centre_takes_out_a_common_shift() -> None:
    x = data(2000, 30) + 2
    shifted = KNN(8)(x, seed=1).mean().item()
    centred = KNN(8, center="mean")(x, seed=1)
    assert shifted > 0.2
    assert abs(centred.mean().item()) < 4 / math.sqrt(centred.numel())
    assert torch.equal(centred, KNN(8, center=x.mean(0))(x, seed=1))


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_under_a_mask_the_law_is_that_of_the_real_elements(metric: str) -> None:
    one = torch.tensor([0.7, 30.0, -1.1, 0.4, -50.0])
    real = torch.tensor([True, False, True, True, False])
    x, mask = one.expand(4000, 5), real.expand(4000, 5)
    noise = KNN(6, metric)(x, seed=5, mask=mask)
    same_law(noise[:, real], literal(x[:, real], 6, metric, seed=6), one[real])
    for padding in noise[:, ~real].T:
        assert kstest(padding.numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(noise.T)
    assert correlation[~real][:, real].abs().max() < 4 / math.sqrt(4000)


def test_padding_does_not_decide_the_nearest() -> None:
    x = data(10, 6, 2)
    mask = torch.arange(6) < torch.tensor([2, 2, 6, 0, 3]).repeat(2).unsqueeze(1)
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.nan)
    for coupling in (KNN(5), KNN(5, "dot"), KNN(5, center="mean"), KNN(5, center=torch.full((2,), 0.2))):
        noise = coupling(x, seed=1, step=3, mask=mask)
        assert torch.equal(coupling(spoiled, seed=1, step=3, mask=mask), noise)
        assert bool(torch.isfinite(noise).all())
        candidates = data(10, 5, 6, 2, seed=4)
        assert torch.equal(coupling.pair(x, candidates, mask=mask), coupling.pair(spoiled, candidates, mask=mask))
    everything = torch.ones(10, 6, dtype=torch.bool)
    assert torch.equal(KNN(5)(x, seed=1, mask=everything), KNN(5)(x, seed=1))


def test_data_of_zeros_has_noise() -> None:
    noise = KNN(4)(torch.zeros(50, 7), seed=1)
    assert bool(torch.isfinite(noise).all())
    assert noise.square().mean() < 1


# KNN: given candidates.


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_given_candidates_are_ranked_literally(metric: str) -> None:
    x, candidates = data(9, 2, 3), data(9, 4, 2, 3, seed=1)
    assert torch.equal(KNN(4, metric).pair(x, candidates), literal(x, 4, metric, seed=1))
    pool = data(6, 2, 3, seed=2)
    shared = KNN(6, metric).pair(x, pool)
    assert torch.equal(shared, KNN(6, metric).pair(x, pool.expand(9, 6, 2, 3)))
    mask = torch.tensor([[True, False]]).expand(9, 2)
    masked = KNN(6, metric).pair(x, pool, mask=mask)
    alone = KNN(6, metric).pair(x[:, :1], pool[:, :1])
    assert torch.equal(masked[:, :1], alone)
    half = KNN(6, metric).pair(x.half(), pool.half())
    assert half.dtype == torch.float16
    assert half.shape == x.shape


def test_given_candidates_under_a_centre() -> None:
    x, candidates = data(9, 6), data(9, 4, 6, seed=1)
    center = torch.full((6,), 2.0)
    assert torch.equal(KNN(4, center=center).pair(x, candidates), KNN(4).pair(x - center, candidates))


def test_given_noise_never_brings_a_gradient() -> None:
    x = data(5, 3).requires_grad_()
    noise = data(5, 3, seed=1).requires_grad_()
    assert not Hungarian().pair(x, noise).requires_grad
    assert not KNN(5).pair(x, noise).requires_grad
    assert Independent().pair(x, noise) is noise


def test_no_candidates_for_an_empty_batch() -> None:
    assert KNN(3).pair(torch.empty(0, 4), data(3, 4)).shape == (0, 4)
    assert Hungarian().pair(torch.empty(0, 4), data(3, 4)).shape == (0, 4)
    assert Hungarian(pool=5)(torch.empty(0, 4)).shape == (0, 4)
