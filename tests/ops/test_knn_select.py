from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydiffaccel.ops import knn_select


def scores(x: Tensor, pool: Tensor, metric: str) -> Tensor:
    """float64 ``[B, k]``."""
    if metric == "dot":
        return -(x.double() @ pool.double().T)
    return (x.double()[:, None] - pool.double()).square().sum(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize(
    ("rows", "k", "dim"), [(3, 9, 20), (40, 3, 5), (64, 33, 70), (17, 200, 3), (9, 16, 5000), (5, 4, 1)]
)
def test_shared_pool_is_the_same_pool_for_everyone(
    rows: int, k: int, dim: int, metric: str, dtype: torch.dtype
) -> None:
    """The matrix product only leaves out what cannot win: the answer is that of scoring every candidate."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, dim, generator=generator).to(dtype)
    pool = torch.randn(k, dim, generator=generator).to(dtype)
    chosen = knn_select(x, pool, metric)
    assert torch.equal(chosen, knn_select(x, pool.expand(rows, k, dim), metric))
    exact = scores(x, pool, metric)
    least, found = exact.amin(1), exact[torch.arange(rows), chosen]
    spare = (x.double().norm(dim=1) + pool.double().norm(dim=1).max()) ** 2
    assert bool((found <= least + (1e-14 if dtype == torch.float64 else 1e-6) * spare).all())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_near_ties_far_from_the_origin(precision: str) -> None:
    """Distances of 1e-2 between vectors of length 1e4: the product alone could not tell them apart."""
    generator = torch.Generator().manual_seed(3)
    centre = 200 * torch.randn(2000, generator=generator)
    x = centre + 1e-2 * torch.randn(30, 2000, generator=generator)
    pool = centre + 1e-2 * torch.randn(50, 2000, generator=generator)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        chosen = knn_select(x, pool)
    finally:
        torch.set_float32_matmul_precision(before)
    exact = scores(x, pool, "l2")
    assert bool((exact[torch.arange(30), chosen] <= exact.amin(1) * (1 + 1e-5)).all())


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_first_of_duplicates(metric: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x, half = torch.randn(20, 100, generator=generator), torch.randn(40, 100, generator=generator)
    chosen = knn_select(x, torch.cat([half, half, half]), metric)
    assert torch.equal(chosen, knn_select(x, half, metric))


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_values_beyond_the_product(metric: str) -> None:
    """Products that overflow or are not numbers decide nothing; a score that is one wins."""
    generator = torch.Generator().manual_seed(5)
    x, pool = torch.randn(8, 60, generator=generator), torch.randn(24, 60, generator=generator)
    pool[3], pool[20, 7], pool[21] = torch.nan, torch.inf, 1e30
    x[2], x[4, 1] = 1e30, torch.nan
    assert torch.equal(knn_select(x, pool, metric), knn_select(x, pool.expand(8, 24, 60), metric))
    assert knn_select(x, pool, metric)[4] == 0


def test_rows_in_several_blocks() -> None:
    """A large pool is compared with few samples at a time."""
    generator = torch.Generator().manual_seed(6)
    x, pool = torch.randn(50, 2, generator=generator), torch.randn(300_000, 2, generator=generator)
    planted = torch.arange(50) * 5999
    pool[planted] = x
    assert torch.equal(knn_select(x, pool), planted)


def test_first_of_equals_and_not_a_number() -> None:
    x = torch.ones(2, 3)
    assert knn_select(x, torch.zeros(2, 4, 3)).tolist() == [0, 0]
    candidates = torch.zeros(2, 3, 3)
    candidates[:, 0] = torch.nan
    assert knn_select(x, candidates).tolist() == [1, 1]


def test_planted_neighbour() -> None:
    generator = torch.Generator().manual_seed(1)
    x, candidates = torch.randn(5, 300, generator=generator), torch.randn(5, 7, 300, generator=generator)
    planted = torch.tensor([6, 0, 3, 2, 5])
    candidates[torch.arange(5), planted] = x + 0.01
    assert torch.equal(knn_select(x, candidates, "l2"), planted)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 0, 3)), ValueError, "at least one candidate"),
        ((torch.zeros(2, 3), torch.zeros(3, 4, 3)), ValueError, r"got \[3, 4, 3\]"),
        ((torch.zeros(2, 3), torch.zeros(4, 5)), ValueError, r"got \[4, 5\]"),
        ((torch.zeros(2, 3), torch.zeros(4, 3).double()), TypeError, "x's dtype torch.float32, got torch.float64"),
        ((torch.zeros(2, 3), torch.zeros(4, 3), "l1"), ValueError, "got 'l1'"),
        ((torch.zeros(2, 3), [1]), TypeError, "candidates must be a torch.Tensor, got list"),
        ((torch.zeros(2, 3), torch.zeros(4, 3, device="meta")), ValueError, "must be on cpu, got meta"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        knn_select(*arguments)  # type: ignore[arg-type]
