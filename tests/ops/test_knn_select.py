from __future__ import annotations

import pytest
import torch

from pydiffaccel.ops import knn_select


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_shared_pool_is_the_same_pool_for_everyone(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, pool = torch.randn(6, 4, 20, generator=generator), torch.randn(9, 4, 20, generator=generator)
    assert torch.equal(knn_select(x, pool, metric), knn_select(x, pool.expand(6, 9, 4, 20), metric))


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
