"""``solver_gram``: the normal equations of a least-squares fit, streamed in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_floating

MAX_DIRECTIONS = 16


@torch.library.register_fake("diffaccel::solver_gram")
def _solver_gram_fake(directions: list[Tensor], residual: Tensor) -> tuple[Tensor, Tensor]:
    count = len(directions)
    return residual.new_empty((count, count), dtype=torch.float64), residual.new_empty((count,), dtype=torch.float64)


def solver_gram(directions: Sequence[Tensor], residual: Tensor) -> tuple[Tensor, Tensor]:
    """G[i, j] = <d_i, d_j> and r[i] = <d_i, residual>, summed in float64 in one fixed order (D-ODE, arXiv 2309.16421).

    Least squares over a large batch: add up G and r over its parts and solve G c = r.

    Args:
        directions: at most 16 tensors of the residual's shape and device, in any floating dtype.
        residual: ``[*]``, float32, float64, float16 or bfloat16.

    Returns:
        (G ``[J, J]``, r ``[J]``), float64; the same bits for every thread count.

    Raises:
        TypeError: no floating tensors.
        ValueError: shapes or devices differ, or more than 16 directions.
    """
    check_floating("solver_gram", "residual", residual)
    if len(directions) > MAX_DIRECTIONS:
        raise ValueError(f"solver_gram: at most {MAX_DIRECTIONS} directions, got {len(directions)}")
    for j, direction in enumerate(directions):
        check_floating("solver_gram", f"directions[{j}]", direction)
        if direction.shape != residual.shape:
            raise ValueError(
                f"solver_gram: directions[{j}] must have the residual's shape {list(residual.shape)},"
                f" got {list(direction.shape)}"
            )
        if direction.device != residual.device:
            raise ValueError(f"solver_gram: directions[{j}] must be on {residual.device}, got {direction.device}")
    out: tuple[Tensor, Tensor] = torch.ops.diffaccel.solver_gram(
        [direction.detach() for direction in directions], residual.detach()
    )
    return out
