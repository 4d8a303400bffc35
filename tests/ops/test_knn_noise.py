from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pydiffaccel.ops import gaussian_noise, knn_noise, knn_select


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_k1_is_the_plain_noise(metric: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(6, 3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(knn_noise(x, 1, metric, 5, 6, 7), gaussian_noise(x, 5, 6, 7))


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("dim", [1, 2, 3, 24])
def test_law_equals_the_literal_algorithm(metric: str, dim: int) -> None:
    """Two-sample tests of the projection, the norm and one coordinate against "draw k, keep the nearest"."""
    rows, k = 12_000, 6
    generator = torch.Generator().manual_seed(dim)
    u = torch.randn(dim, generator=generator)
    x = (u * (1.3 * math.sqrt(dim) / u.norm())).expand(rows, dim)
    fast = knn_noise(x, k, metric, seed=dim)
    candidates = torch.randn(rows, k, dim, generator=generator)
    literal = candidates[torch.arange(rows), knn_select(x, candidates, metric)]
    direction = x[0] / x[0].norm()
    across = torch.randn(dim, generator=generator)
    for statistic in (lambda n: n @ direction, lambda n: n.norm(dim=1), lambda n: n[:, 0], lambda n: n @ across):
        assert stats.ks_2samp(statistic(fast).numpy(), statistic(literal).numpy()).pvalue > 1e-3


def test_zero_data_selects_the_shortest() -> None:
    rows, k, dim = 12_000, 4, 8
    fast = knn_noise(torch.zeros(rows, dim), k, "l2", seed=1)
    candidates = torch.randn(rows, k, dim, generator=torch.Generator().manual_seed(1))
    shortest = candidates.norm(dim=2).min(1).values
    assert stats.ks_2samp(fast.norm(dim=1).numpy(), shortest.numpy()).pvalue > 1e-3
    assert torch.equal(knn_noise(torch.zeros(4, dim), k, "dot", seed=1), gaussian_noise(torch.zeros(4, dim), 1))


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


def test_rows_depend_on_their_index_alone() -> None:
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(4))
    whole = knn_noise(x, 5, "l2", 1, 2, 3)
    assert torch.equal(knn_noise(x[4:6], 5, "l2", 1, 2, 7), whole[4:6])


def test_large_k() -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(5))
    near = (knn_noise(x, 20_000, "l2", 1) - x).norm(dim=1)
    far = (knn_noise(x, 2, "l2", 1) - x).norm(dim=1)
    assert bool((near < far).all())


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((torch.zeros(2, 2), 0), ValueError, "k must be in .* got 0"),
        ((torch.zeros(2, 2), -4), ValueError, "k must be in .* got -4"),
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
