"""Checks of arguments that couplings share: one sentence with the value seen."""

from __future__ import annotations

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype


def checked(x: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Validated arguments: labels on x's device, the mask expanded to x's shape."""
    compute_dtype(x)
    if x.dim() == 0:
        raise ValueError("x must have a batch dimension, got a scalar")
    if labels is not None:
        labels = checked_labels("labels", labels, len(x)).to(x.device)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at real elements, got {_kind(mask)}")
        leading = x.shape[: mask.dim()]
        sizes_fit = all(size in (1, full) for size, full in zip(mask.shape, leading, strict=False))
        if mask.dim() > x.dim() or not sizes_fit:
            raise ValueError(
                f"mask must have the leading dimensions of x, {tuple(x.shape)}, each or 1, got {tuple(mask.shape)}"
            )
        mask = mask.to(x.device).reshape(*mask.shape, *(1,) * (x.dim() - mask.dim())).expand(x.shape)
    return x, labels, mask


def checked_labels(name: str, labels: Tensor, count: int) -> Tensor:
    """labels, which are count integers."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be integers, got {_kind(labels)}")
    if labels.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(labels.shape)}")
    return labels


def check_count(name: str, value: int, low: int = 1) -> None:
    """value is an int of at least low."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def check_noise(x: Tensor, noise: Tensor) -> None:
    """noise is a tensor of x's dtype on x's device."""
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a tensor, got {type(noise).__name__}")
    if noise.dtype != x.dtype:
        raise TypeError(f"noise must have the dtype of x, {x.dtype}, got {noise.dtype}")
    if noise.device != x.device:
        raise ValueError(f"noise must be on the device of x, {x.device}, got {noise.device}")


def _kind(value: object) -> str:
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
