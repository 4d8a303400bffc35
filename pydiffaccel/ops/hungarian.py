"""``hungarian``: exact linear sum assignment, batched; and SciPy's signature on NumPy arrays."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pydiffaccel._library import native
from pydiffaccel.ops._checks import FLOATING, check_tensor

_EXACT_INT = 2**53


@torch.library.register_fake("diffaccel::hungarian")
def _hungarian_fake(cost: Tensor, maximize: bool = False) -> Tensor:
    return cost.new_empty(cost.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("diffaccel::hungarian_with_status")
def _hungarian_with_status_fake(cost: Tensor, maximize: bool = False) -> tuple[Tensor, Tensor]:
    return cost.new_empty(cost.shape[:-1], dtype=torch.int64), cost.new_empty(cost.shape[:-2], dtype=torch.int32)


@overload
def hungarian(
    cost: Tensor, maximize: bool = False, *, return_status: Literal[False] = False, return_duals: Literal[False] = False
) -> Tensor: ...


@overload
def hungarian(
    cost: Tensor, maximize: bool = False, *, return_status: Literal[True], return_duals: Literal[False] = False
) -> tuple[Tensor, Tensor]: ...


@overload
def hungarian(
    cost: Tensor, maximize: bool = False, *, return_status: Literal[False] = False, return_duals: Literal[True]
) -> tuple[Tensor, Tensor, Tensor]: ...


def hungarian(
    cost: Tensor, maximize: bool = False, *, return_status: bool = False, return_duals: bool = False
) -> Tensor | tuple[Tensor, ...]:
    """The column of each row in an assignment of least total cost: exact (float64 arithmetic), batched.

    On the CPU an auction in the cost's precision, then row reduction and shortest augmenting paths in float64, and a
    float64 certificate that no assignment is cheaper. Where several assignments have the least total, any one of them
    is returned, the same one on every instruction set and thread count; a constant cost gives the identity.
    ``linear_sum_assignment`` breaks ties as SciPy does.

    On CUDA all unassigned rows bid at once in the auction; finish and certificate are those of the CPU. Nothing
    synchronises (but an int64 or uint64 cost, whose range is looked at on the host), a CUDA graph can capture it, and
    every run gives the same answer. Among assignments of equal total it may be another one than the CPU's.

    float16 and bfloat16 are solved in float32, which holds them.

    Args:
        cost: ``[..., R, C]``; floating dtypes as they are, integer and bool ones as float64. +inf forbids a pair
            (with ``maximize``: -inf).
        maximize: find the greatest total instead.
        return_status: return what became of each problem instead of raising: int32 ``[...]``, 0 solved, 1 infeasible,
            2 invalid (NaN or the wrong infinity). A problem that is not solved gets -1 in every row.
        return_duals: return the prices that prove it too: float64 u ``[..., R]`` and v ``[..., C]`` with
            u_i + v_j <= cost_ij, equal on assigned pairs up to rounding. Rows or columns left over have the dual 0, and
            no other one of that side is positive. With ``maximize`` the inequalities turn. On the CPU only, one
            problem after the other, not inside ``torch.compile``.

    Returns:
        int64 ``[..., R]``; where R > C, rows left over hold -1. With ``return_status`` a pair with the status, with
        ``return_duals`` (columns, u, v).

    Raises:
        TypeError: cost is no real tensor, or maximize no bool.
        ValueError: fewer than 2 dimensions, int64 or uint64 beyond 2**53, NaN or the wrong infinity, or no feasible
            assignment (the sentence names the first such item of the batch); duals beside a status, or of a tensor that
            is not on the CPU. On CUDA nothing can be raised about the values without a synchronisation: a problem that
            is invalid or infeasible gets -1 in every row.
    """
    check_tensor("hungarian", "cost", cost)
    if cost.is_complex() or cost.layout is not torch.strided:
        raise TypeError(f"hungarian: cost must be a dense real tensor, got {cost.dtype} with layout {cost.layout}")
    if cost.dim() < 2:
        raise ValueError(f"hungarian: cost must have shape [..., R, C], got {list(cost.shape)}")
    if cost.requires_grad:  # detach() is not free beside a small problem
        cost = cost.detach()
    if not isinstance(maximize, bool):
        raise TypeError(f"hungarian: maximize must be a bool, got {type(maximize).__name__}")
    if cost.dtype not in FLOATING:
        if cost.dtype in (torch.int64, torch.uint64) and cost.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in torch.aminmax(cost.view(torch.int64)))
            if cost.dtype == torch.uint64 and low < 0:  # what has the highest bit set
                low, high = 0, high if high > _EXACT_INT else low + 2**64
            if low < -_EXACT_INT or high > _EXACT_INT:
                worst = low if low < -_EXACT_INT else high
                kind = str(cost.dtype).removeprefix("torch.")
                raise ValueError(f"hungarian: {kind} costs beyond 2**53 have no exact float64, got {worst}")
        cost = cost.double()
    if return_duals:
        if return_status:
            raise ValueError("hungarian: return_status and return_duals exclude each other, got True and True")
        return _with_duals(cost, maximize)
    if return_status:
        columns, status = torch.ops.diffaccel.hungarian_with_status(cost, maximize)
        return columns, status
    if torch.compiler.is_compiling() or not cost.is_cpu:
        out: Tensor = torch.ops.diffaccel.hungarian(cost, maximize)
        return out
    try:
        out = torch.ops.diffaccel.hungarian(cost, maximize)
    except RuntimeError:
        _, status = torch.ops.diffaccel.hungarian_with_status(cost, maximize)
        if not bool(status.any()):
            raise
        item = status.nonzero()[0].tolist()
        raise ValueError(_sentence(cost, maximize, tuple(item))) from None
    return out


def hungarian_with_status(cost: Tensor, maximize: bool = False) -> tuple[Tensor, Tensor]:
    """``hungarian(cost, maximize, return_status=True)``."""
    return hungarian(cost, maximize, return_status=True)


def _with_duals(cost: Tensor, maximize: bool) -> tuple[Tensor, Tensor, Tensor]:
    if cost.device.type != "cpu":
        raise ValueError(f"hungarian: duals are computed on the CPU only, got a cost on {cost.device}")
    R, C = cost.shape[-2:]
    items = cost.shape[:-2]
    columns = torch.empty(*items, R, dtype=torch.int64)
    row_duals = torch.empty(*items, R, dtype=torch.float64)
    column_duals = torch.empty(*items, C, dtype=torch.float64)
    ready = cost if cost.dtype in (torch.float32, torch.float64) else cost.float()
    for item in np.ndindex(*items):
        status, *found = native.solve_assignment(ready[item].resolve_neg().numpy(), maximize, False, True)
        if status != 0:
            raise ValueError(_sentence(cost, maximize, item))
        for out, array in zip((columns, row_duals, column_duals), found, strict=True):
            out[item] = torch.from_numpy(array)
    return columns, row_duals, column_duals


def _sentence(cost: Tensor, maximize: bool, item: tuple[int, ...]) -> str:
    """What is wrong with an item of the batch that could not be solved."""
    matrix = cost[item]
    of = f" of item {list(item)}" if item else ""
    if bool(torch.isnan(matrix).any()):
        return f"hungarian: cost{of} holds NaN in {int(torch.isnan(matrix).sum())} of {matrix.numel()} entries"
    bad = matrix == (torch.inf if maximize else -torch.inf)
    if bool(bad.any()):
        wrong = "+inf" if maximize else "-inf"
        return f"hungarian: cost{of} holds {wrong} in {int(bad.sum())} of {matrix.numel()} entries"
    return f"hungarian: no feasible assignment{of} of shape {list(matrix.shape)}: infinite entries forbid every one"


def linear_sum_assignment(
    cost_matrix: ArrayLike, maximize: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``scipy.optimize.linear_sum_assignment`` with the same signature, semantics, ties and error messages.

    The fast solver of ``hungarian`` answers where the optimum is the only one, by more than what either algorithm
    rounds. Elsewhere, below 32 columns, and where most rows attain their least cost twice, it is SciPy's algorithm
    (D. F. Crouse, IEEE TAES 52(4), 2016) with its ties. The GIL is released. A C-contiguous float32 or float64 matrix
    with R <= C is minimised without a copy; R > C or ``maximize`` take one in the solver's order. Other dtypes become
    float64.

    Args:
        cost_matrix: ``[R, C]`` real array; +inf forbids a pair (with ``maximize``: -inf).
        maximize: find the greatest total instead.

    Returns:
        (row_ind, col_ind), int64 ``[min(R, C)]``; row_ind is sorted.

    Raises:
        ValueError: not 2-D, NaN or the wrong infinity ("matrix contains invalid numeric entries"), or no feasible
            assignment ("cost matrix is infeasible"). Unlike SciPy, which rounds them: integers beyond 2**53.
        TypeError: the array cannot be cast to float64 safely.
    """
    array: NDArray[Any] = np.asarray(cost_matrix)
    if array.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {array.ndim} array")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        worst = max(int(array.max()), -int(array.min()))
        if worst > _EXACT_INT:
            raise ValueError(f"integer costs beyond 2**53 have no exact float64, got magnitude {worst}")
    if array.dtype != np.float32:
        array = array.astype(np.float64, casting="safe", copy=False)
    # Only an array whose elements lie askew in memory, as a field of packed records does, needs a copy for the solver.
    whole = array.flags.aligned and all(s % array.itemsize == 0 for s in array.strides)
    status, columns = native.solve_assignment(array if whole else array.copy(), bool(maximize), True, False)
    if status == 2:
        raise ValueError("matrix contains invalid numeric entries")
    if status == 1:
        raise ValueError("cost matrix is infeasible")
    rows = np.flatnonzero(columns >= 0)
    return rows, columns[rows]
