"""``hungarian(..., return_status=True)``: what became of each problem, without an exception."""

from __future__ import annotations

import pytest
import torch

from pydiffaccel.ops import hungarian, hungarian_with_status, reference

INF = float("inf")


def mixed(rows: int, columns: int) -> torch.Tensor:
    """[2, 3] problems: solvable ones, an infeasible one, ones that hold NaN and -inf."""
    cost = torch.rand(2, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
    cost[0, 1, :, 0 if rows > columns else slice(1, None)] = INF
    cost[0, 2, rows // 2, columns // 2] = torch.nan
    cost[1, 1, 0, columns - 1] = -INF
    return cost


@pytest.mark.parametrize("shape", [(2, 2), (5, 9), (9, 5), (40, 40), (130, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_status_of_each_problem(shape: tuple[int, int], dtype: torch.dtype) -> None:
    cost = mixed(*shape).to(dtype)
    columns, status = hungarian(cost, return_status=True)
    assert status.dtype == torch.int32
    assert status.tolist() == [[0, 1, 2], [0, 2, 0]]
    assert bool((columns[status != 0] == -1).all())
    good = cost[status == 0]
    assert torch.equal(columns[status == 0], hungarian(good))
    assert torch.equal(status, reference.hungarian_with_status(cost)[1])


def test_maximize_forbids_minus_infinity() -> None:
    cost = torch.tensor([[[1.0, -INF], [2.0, 0.0]], [[1.0, INF], [2.0, 0.0]], [[1.0, -INF], [2.0, -INF]]])
    columns, status = hungarian(cost, maximize=True, return_status=True)
    assert status.tolist() == [0, 2, 1]
    assert columns.tolist() == [[0, 1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 4, 4), (3, 0, 4), (3, 4, 0)])
def test_nothing_to_assign(shape: tuple[int, ...]) -> None:
    columns, status = hungarian(torch.zeros(shape), return_status=True)
    assert columns.shape == shape[:-1]
    assert status.shape == shape[:-2]
    assert bool((columns == -1).all())
    assert bool((status == 0).all())


def test_the_operator_s_function_is_the_same() -> None:
    cost = mixed(4, 4)
    for mine, other in zip(hungarian_with_status(cost), hungarian(cost, return_status=True), strict=True):
        assert torch.equal(mine, other)


def test_arguments_are_still_checked() -> None:
    with pytest.raises(ValueError, match=r"shape \[..., R, C\]"):
        hungarian(torch.zeros(3), return_status=True)
    with pytest.raises(RuntimeError, match="expected a cost of shape"):
        torch.ops.diffaccel.hungarian_with_status(torch.zeros(3))
