"""Cheaper spaces to search an assignment in: average pooling and random projection."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling._assignment import as_rows
from pydiffaccel.noise import derive_seed, gaussian_noise

PROJECTIONS = ("pool", "random")


def projected(x: Tensor, noise: Tensor, size: int, projection: str) -> tuple[Tensor, Tensor] | None:
    """Rows ``[B, d]`` and ``[P, d]``, d <= size, whose inner products estimate those of x and noise.

    "pool" sums windows of the last two dimensions: the exact inner products of both, projected onto what is constant in
    each window. "random" multiplies both by one Gaussian matrix, without bias.

    Returns:
        The rows, or None where size is no less than the elements of a sample.

    Raises:
        ValueError: "pool" and no window that divides both dimensions is large enough.
    """
    shape = x.shape[1:]
    if size >= math.prod(shape):
        return None
    dtype = compute_dtype(x)
    if projection == "random":
        matrix = _matrix(math.prod(shape), size, dtype, x.device)
        with torch.autocast(x.device.type, enabled=False):
            return as_rows(x).to(dtype) @ matrix, as_rows(noise).to(dtype) @ matrix
    window = _window(shape, size)
    # Sums of both, over the square root of the window's size each.
    return as_rows(_window_sums(x.to(dtype), window)) / window**2, as_rows(_window_sums(noise.to(dtype), window))


def _window(shape: Sequence[int], size: int) -> int:
    """The side of the smallest square windows with at most size sums per sample."""
    if len(shape) < 2:
        raise ValueError(
            f"projection='pool' needs samples of two dimensions or more, got {tuple(shape)}; take projection='random'"
        )
    common = math.gcd(shape[-2], shape[-1])
    sizes = {side: math.prod(shape) // side**2 for side in range(1, common + 1) if common % side == 0}
    fitting = [side for side, count in sizes.items() if count <= size]
    if not fitting:
        raise ValueError(
            f"samples of shape {tuple(shape)} can be pooled to {', '.join(map(str, sizes.values()))} numbers, "
            f"none of which is at most project={size}"
        )
    return min(fitting)


def _window_sums(x: Tensor, side: int) -> Tensor:
    """``[N, *, H, W]`` to ``[N, *, H / side, W / side]``."""
    rows = x.unflatten(-2, (-1, side))
    total: Tensor = rows[..., 0, :]
    for offset in range(1, side):
        total = total + rows[..., offset, :]
    columns = total.unflatten(-1, (-1, side))
    total = columns[..., 0]
    for offset in range(1, side):
        total = total + columns[..., offset]
    return total


@functools.lru_cache(maxsize=4)
def _matrix(elements: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[elements, size]``, the same in every process; E[matrix matrix^T] is the identity."""
    rows = gaussian_noise(torch.empty(size, elements, dtype=dtype, device=device), derive_seed(0, "projection"))
    return (rows / math.sqrt(size)).T.contiguous()
