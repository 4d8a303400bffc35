"""Data and measures that the tests of couplings share."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def data(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows(noise: Tensor) -> list[tuple[float, ...]]:
    """The rows as a sorted list: a multiset."""
    return sorted(tuple(row) for row in noise.flatten(1).tolist())


def total(x: Tensor, noise: Tensor, mask: Tensor | None = None) -> float:
    squares = (x.double() - noise.double()).square()
    return float((squares if mask is None else squares * mask).sum())
