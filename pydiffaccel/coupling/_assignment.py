"""The problems that the Hungarian coupling solves: costs, and the blocks that classes cut the batch into."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.ops import hungarian


def as_rows(x: Tensor) -> Tensor:
    """``[B, *]`` as ``[B, D]``."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def assignment_cost(x: Tensor, noise: Tensor, mask: Tensor | None, squares: Tensor | None = None) -> Tensor:
    """Half the squared distances over real elements, up to what is the same for all assignments.

    x and mask ``[R, D]`` with noise ``[P, D]``, or a batch of such, ``[G, R, D]`` with ``[G, P, D]``; the cost is
    ``[R, P]`` or ``[G, R, P]``, in float32 or float64. Where the noise is a projection, squares ``[P]`` or ``[G, P]``
    holds the whole ``|n_j|^2``.
    """
    dtype = compute_dtype(x)
    x, noise = x.to(dtype), noise.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        if mask is not None:
            # |n_j|^2 over the real elements of x_i depends on the pair.
            return 0.5 * mask.to(dtype) @ noise.square().mT - torch.where(mask, x, 0) @ noise.mT
        cost = _negative_product(x, noise)
        if x.shape[-2] < noise.shape[-2]:
            cost += 0.5 * (noise.square().sum(-1) if squares is None else squares).unsqueeze(-2)
        return cost


def inner_product_cost(x: Tensor, noise: Tensor) -> Tensor:
    """``-<x_i, n_j>`` for x ``[R, D]`` and noise ``[P, D]``: ``[R, P]``, in float32 or float64."""
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _negative_product(x.to(dtype), noise.to(dtype))


def _negative_product(x: Tensor, noise: Tensor) -> Tensor:
    """-x noise^T by one matrix product: a negation of its own would pass over the cost once more."""
    nothing = x.new_empty(1)  # not read at beta = 0
    if x.dim() == 2:
        return torch.addmm(nothing, x, noise.mT, beta=0, alpha=-1)
    return torch.baddbmm(nothing, x, noise.mT, beta=0, alpha=-1)


def split_invariant_cost(x: Tensor, noise: Tensor, mask: Tensor | None, norms: bool) -> Tensor:
    """``assignment_cost`` whose entry (i, j) depends on row i and noise j alone, whatever block they are computed in.

    A matrix product adds up in an order that depends on its shape, and so do its last bits. Here every product and
    every partial sum is a multiple of one number and below 2**53 of it: float64 holds them all in whatever order.
    For that x is rounded to a bits below the largest of its row and noise to b bits below 8 (it stays under 6.8), with
    D 2**(a + b) <= 2**53. |n|^2 is exact up to 2**(59 - 2 b), which is more than 46 D (a bound) for D <= 512 and more
    than 16 D (a chi-square of D degrees of freedom does not get there) above.

    Args:
        x, mask: ``[R, D]``.
        noise: ``[P, D]``.
        norms: whether ``|n_j|^2`` (over real elements) is part of the cost; without, mask has no effect but on x.

    Returns:
        ``[R, P]`` in the dtype that x is computed in.
    """
    dtype = compute_dtype(x)
    budget = 53 - (max(1, x.shape[1]) - 1).bit_length()
    noise_bits = min(budget // 2 + 1, 22)
    bits = budget - noise_bits
    x = x.double() if mask is None else torch.where(mask, x, 0).double()
    # |x| <= 2**exponent; frexp is exact, and so are powers of two made from their bits. NaN makes a NaN of its row.
    _, exponent = torch.frexp(x.abs().amax(1, keepdim=True)) if x.numel() else (None, x.new_zeros(len(x), 1))
    exponent = exponent.long().clamp(-900, 900)
    x = (x * _power_of_two(bits - exponent)).round()
    noise = (noise.double() * 2.0 ** (noise_bits - 3)).round()
    with torch.autocast(x.device.type, enabled=False):
        cost = -(x @ noise.mT) * _power_of_two(exponent + (3 - bits - noise_bits))
        if norms:
            squares = noise.square()
            lengths = squares.sum(1).unsqueeze(0) if mask is None else mask.double() @ squares.mT
            cost += lengths * 2.0 ** (5 - 2 * noise_bits)
    return cost.to(dtype)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2 ** exponent for integers, float64, exactly on every device (library functions need not be exact)."""
    return ((exponent + 1023) << 52).view(torch.float64)


def solve(cost: Tensor, labels: Tensor | None, noise_labels: Tensor | None = None) -> Tensor:
    """The noise of each row, int64 ``[R]``, for a cost ``[R, P]``; with labels each class among its own noises."""
    if labels is None:
        return hungarian(cost).clamp_(min=0)
    chosen = torch.empty(len(cost), dtype=torch.int64, device=cost.device)
    for rows, columns in class_blocks(labels, cost.shape[1], noise_labels):
        block = cost[rows.unsqueeze(2), columns.unsqueeze(1)]
        chosen[rows] = columns.gather(1, hungarian(block).clamp_(min=0))
    return chosen


def class_blocks(labels: Tensor, pool: int, noise_labels: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Rows ``[G, R]`` and noises ``[G, P]`` of all G classes that have R rows and P noises, for each (R, P) there is.

    Classes of one size are solved together. Noise p of the pool belongs to the class noise_labels[p]; without them to
    that of row p modulo the batch size.

    Raises:
        ValueError: a class has more rows than noises.
    """
    classes, of_row = torch.unique(labels, return_inverse=True)
    if noise_labels is None:
        of_noise = of_row[torch.arange(pool, device=labels.device) % len(labels)]
    else:
        # Classes that no row has get one number of their own behind all others.
        place = torch.searchsorted(classes, noise_labels.to(classes.dtype)).clamp_(max=len(classes) - 1)
        of_noise = torch.where(classes[place] == noise_labels, place, len(classes))
    row_order, noise_order = of_row.argsort(stable=True), of_noise.argsort(stable=True)
    sizes = torch.stack([of_row.bincount(), of_noise.bincount(minlength=len(classes))[: len(classes)]], 1)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    first_row = first_noise = 0
    for number, (rows, noises) in enumerate(sizes.tolist()):
        if rows > noises:
            raise ValueError(f"class {int(classes[number])} has {rows} rows but only {noises} noises")
        groups.setdefault((rows, noises), []).append((first_row, first_noise))
        first_row, first_noise = first_row + rows, first_noise + noises
    blocks = []
    for (rows, noises), starts in groups.items():
        first = torch.tensor(starts, device=labels.device)
        row_block = row_order[first[:, :1] + torch.arange(rows, device=labels.device)]
        noise_block = noise_order[first[:, 1:] + torch.arange(noises, device=labels.device)]
        blocks.append((row_block, noise_block))
    return blocks
