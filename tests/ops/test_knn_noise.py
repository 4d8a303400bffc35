from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from pydiffaccel.ops import gaussian_noise, knn_noise


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_k1_is_the_plain_noise(metric: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(6, 3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(knn_noise(x, 1, metric, 5, 6, 7), gaussian_noise(x, 5, 6, 7))


def literal(x: Tensor, k: int, metric: str, generator: torch.Generator) -> Tensor:
    """The published algorithm: draw k noises per sample and keep the best; in runs of bounded memory."""
    kept = []
    for row in x.split(max(1, 2**24 // (k * x.shape[1]))):
        candidates = torch.randn(len(row), k, x.shape[1], generator=generator)
        inner = torch.einsum("bd,bkd->bk", row, candidates).double()
        score = candidates.double().square().sum(2) - 2 * inner if metric == "l2" else -inner
        kept.append(candidates[torch.arange(len(row)), score.argmin(1)])
    return torch.cat(kept)


# Fixed seeds, so a run passes or fails for good; the threshold is so low that chance has no part in a failure.
ONE_IN_A_MILLION = 1e-6


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("k", [4, 48])  # drawn pairs, order statistics
@pytest.mark.parametrize("dim", [1, 2, 3, 64, 3072])
@pytest.mark.parametrize("norm", ["zero", "moderate", "large"])
def test_law_equals_the_literal_algorithm(metric: str, k: int, dim: int, norm: str) -> None:
    rows = 8000 if dim < 64 else 3000 if dim == 64 else 400
    generator = torch.Generator().manual_seed(dim + k)
    length = {"zero": 0.0, "moderate": 1.3 * math.sqrt(dim), "large": 1e4}[norm]
    u, other = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    u = u / u.norm()
    other = other - (other @ u) * u
    x = (length * u).float().expand(rows, dim)
    fast = knn_noise(x, k, metric, seed=dim).double()
    plain = literal(x, k, metric, generator).double()
    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        "squared norm": lambda n: n.square().sum(1),
        "squared distance": lambda n: n.square().sum(1) - 2 * (n @ (length * u)),  # less |x|^2, which would cancel
        "along": lambda n: n @ u,
        "across": lambda n: n @ other,
        "first": lambda n: n[:, 0],
        "last": lambda n: n[:, -1],
    }
    if dim == 1:
        del statistics["across"]
    for name, statistic in statistics.items():
        pvalue = stats.ks_2samp(statistic(fast).numpy(), statistic(plain).numpy()).pvalue
        assert pvalue > ONE_IN_A_MILLION, name


def test_zero_data_has_no_direction() -> None:
    x = torch.zeros(4, 8)
    assert torch.equal(knn_noise(x, 6, "dot", seed=1), gaussian_noise(x, 1))
    near, plain = knn_noise(x, 6, "l2", seed=1), gaussian_noise(x, 1)
    torch.testing.assert_close(near / near.norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("k", [33, 10**4, 10**6, 2**31 - 1])
@pytest.mark.parametrize(("dim", "length"), [(2, 0.0), (2, 1.0), (3, 20.0), (64, 8.0), (3072, 55.0)])
def test_distances_at_large_k(k: int, dim: int, length: float) -> None:
    """The least of k noncentral chi-squares: 1 - (1 - F(|x - n|^2))^k is uniform. Given it, the direction is von
    Mises-Fisher: its mean cosine is a ratio of Bessel functions."""
    rows = 3000
    x = torch.zeros(rows, dim, dtype=torch.float64)
    x[:, 0] = length
    away = x - knn_noise(x, k, "l2", seed=2)
    square = away.square().sum(1).numpy()
    law = stats.ncx2(dim, length**2) if length else stats.chi2(dim)
    assert stats.kstest(-np.expm1(k * np.log1p(-law.cdf(square))), "uniform").pvalue > ONE_IN_A_MILLION
    if length and dim < 1000:
        cosine = away[:, 0].numpy() / np.sqrt(square)
        kappa = length * np.sqrt(square)
        excess = cosine - special.ive(dim / 2, kappa) / special.ive(dim / 2 - 1, kappa)
        assert abs(excess.mean()) < 5 * excess.std() / math.sqrt(rows)


@pytest.mark.parametrize("k", [2, 33, 10**6, 2**31 - 1])
def test_dot_at_large_k(k: int) -> None:
    """The largest of k normals: Phi(<n, u>)^k is uniform."""
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    along = (knn_noise(x, k, "dot", seed=2) * x).sum(1) / x.norm(dim=1)
    assert stats.kstest(np.exp(k * special.log_ndtr(along.numpy())), "uniform").pvalue > ONE_IN_A_MILLION


def test_a_million_candidates_have_their_expected_gain() -> None:
    maximum, dim, k = 4.8628975, 3072, 10**6  # E max of 10^6 standard normals
    x = torch.randn(600, dim, generator=torch.Generator().manual_seed(8))
    u = x / x.norm(dim=1, keepdim=True)
    along = (knn_noise(x, k, "dot", seed=3) * u).sum(1)
    assert float(along.mean()) == pytest.approx(maximum, abs=5 * 0.248 / math.sqrt(600))
    # l2: m_k 2 s / sqrt(2 + 4 s^2) with s = 1, to the first order in 1 / sqrt(D).
    along = (knn_noise(x, k, "l2", seed=3) * u).sum(1)
    assert float(along.mean()) == pytest.approx(maximum * 2 / math.sqrt(6), abs=0.2)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("k", [5, 500])
def test_norms_beyond_single_precision(metric: str, k: int) -> None:
    """|x|^2 over- or underflows in float32; far away and at 0 the law has simple limits."""
    direction = torch.randn(2000, 40, generator=torch.Generator().manual_seed(9)).sign()
    far = knn_noise(direction * 1e30, k, metric, seed=4)
    assert torch.isfinite(far).all()
    maximum = {5: 1.16296, 500: 3.03670}[k]
    assert float((far * direction).sum(1).mean()) / math.sqrt(40) == pytest.approx(maximum, abs=0.08)
    near = knn_noise(direction * 1e-30, k, metric, seed=4)
    along = float((near * direction).sum(1).mean()) / math.sqrt(40)
    assert along == pytest.approx(maximum if metric == "dot" else 0.0, abs=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [5, 500])
def test_a_sample_that_is_not_finite_gets_nan(value: float, dtype: torch.dtype, k: int) -> None:
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(7)).to(dtype)
    for metric in ("l2", "dot"):
        expected = knn_noise(x, k, metric)
        broken = x.clone()
        broken[1, 5] = value
        actual = knn_noise(broken, k, metric)
        assert actual[1].isnan().all()
        assert torch.equal(actual[[0, 2]], expected[[0, 2]])


def test_norm_bias_of_l2_and_not_of_dot() -> None:
    """E <n, u> = m_k 2 s / sqrt(2 + 4 s^2) for l2 (m_k = E max of k normals), m_k for dot, whose norm stays."""
    rows, dim, k, s = 4000, 512, 8, 0.5
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(2))
    x = x / x.norm(dim=1, keepdim=True) * (s * math.sqrt(dim))
    u = x / x.norm(dim=1, keepdim=True)
    maximum = 1.4236  # E max of 8 standard normals
    l2, dot = knn_noise(x, k, "l2", seed=3), knn_noise(x, k, "dot", seed=3)
    assert float((l2 * u).sum(1).mean()) == pytest.approx(maximum * 2 * s / math.sqrt(2 + 4 * s * s), abs=0.06)
    assert float((dot * u).sum(1).mean()) == pytest.approx(maximum, abs=0.06)
    drop = 2 * maximum / (math.sqrt(dim) * math.sqrt(2 + 4 * s * s))
    assert float((l2**2).mean()) == pytest.approx(1 - drop, abs=0.015)
    # One direction of 512 carries the maximum's square instead of 1.
    assert float((dot**2).mean()) == pytest.approx(1 + (maximum**2 + 0.37 - 1) / dim, abs=0.01)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("k", [5, 500])
def test_rows_depend_on_their_index_alone(metric: str, k: int) -> None:
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(4))
    whole = knn_noise(x, k, metric, 1, 2, 3)
    assert torch.equal(knn_noise(x[4:6], k, metric, 1, 2, 7), whole[4:6])
    assert not torch.equal(knn_noise(x, k, metric, 1, 3, 3), whole)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((torch.zeros(2, 2), 0), ValueError, "k must be in .* got 0"),
        ((torch.zeros(2, 2), -4), ValueError, "k must be in .* got -4"),
        ((torch.zeros(2, 2), 2**32), ValueError, "k must be in .* got 4294967296"),
        ((torch.zeros(2, 2), True), TypeError, "k must be an int, got bool"),
        (([1.0], 2), TypeError, "x must be a torch.Tensor, got list"),
        ((torch.zeros(2, 2), 2, "l2", 0, -1), ValueError, "step must be in .* got -1"),
        ((torch.zeros(2, 2), 2.0), TypeError, "k must be an int, got float"),
        ((torch.zeros(2, 2), 2, "cosine"), ValueError, "metric must be 'l2' or 'dot', got 'cosine'"),
        ((torch.zeros(2, 2), 2, 0), ValueError, "metric must be 'l2' or 'dot', got 0"),
        ((torch.zeros(2, 2, dtype=torch.int64), 2), TypeError, "x must be float32"),
        ((torch.zeros(()), 2), ValueError, "got a scalar"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        knn_noise(*arguments)  # type: ignore[arg-type]
