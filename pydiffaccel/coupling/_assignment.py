"""The problems that the Hungarian coupling solves: costs, and the blocks that classes cut the batch into."""

from __future__ import annotations

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype


def assignment_cost(x: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
    """Half the squared distances over real elements, up to what is the same for all assignments.

    x and mask ``[R, D]`` with noise ``[P, D]``, or a batch of such, ``[G, R, D]`` with ``[G, P, D]``; the cost is
    ``[R, P]`` or ``[G, R, P]``, in float32 or float64.
    """
    dtype = compute_dtype(x)
    x, noise = x.to(dtype), noise.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        if mask is not None:
            # |n_j|^2 over the real elements of x_i depends on the pair.
            return 0.5 * mask.to(dtype) @ noise.square().mT - torch.where(mask, x, 0) @ noise.mT
        cost = -(x @ noise.mT)
        if x.shape[-2] < noise.shape[-2]:
            cost += 0.5 * noise.square().sum(-1).unsqueeze(-2)
        return cost


def inner_product_cost(x: Tensor, noise: Tensor) -> Tensor:
    """``-<x_i, n_j>`` for x ``[R, D]`` and noise ``[P, D]``: ``[R, P]``, in float32 or float64."""
    dtype = compute_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return -(x.to(dtype) @ noise.to(dtype).mT)


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
