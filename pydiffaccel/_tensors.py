"""How tensors of any floating dtype are computed with."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that arithmetic on x runs in: float64 for float64, else float32.

    Raises:
        TypeError: x is no floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """values ``[B]`` as ``[B, 1, ...]`` to multiply x ``[B, *]`` with, on x's device in the dtype x is computed in."""
    return values.to(x.device, compute_dtype(x)).reshape(-1, *(1,) * (x.dim() - 1))


def at_hand(values: Tensor) -> bool:
    """Whether values can be looked at without a wait: they are on the CPU, and no graph is being compiled."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
