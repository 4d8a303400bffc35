"""What every coupling shares: the interface and the checks of its arguments."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype

__all__ = ["Coupling", "check_count", "checked"]


class Coupling(ABC):
    """Noise for data, without gradient and without touching torch's generators.

    Arguments shared by ``__call__`` and ``pair``:
        x: the data that is diffused, ``[B, *]``, floating point. Half precision is compared in float32.
        labels: integer ``[B]``, the class of each sample.
        mask: bool, True where an element is real and False where it is padding; padding never enters a distance. Its
            dimensions are the leading ones of x, each of x's size or 1: ``[B, T]`` masks steps of ``[B, T, A]``.

    Instances are immutable, compare and hash by content, and survive ``coupling_from_dict(c.to_dict())``.
    """

    name: ClassVar[str]

    def __call__(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        step: int = 0,
        first_sample: int = 0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Noise of x's shape, dtype and device, drawn as a function of (seed, step, sample index) and x.

        Args:
            seed: any int64.
            step: the training step, 0 .. 2**32 - 1.
            first_sample: index of row 0 in the global batch.

        Raises:
            TypeError: x is no floating-point tensor, labels are not integers, or mask is not bool.
            ValueError: x has no batch dimension, or labels or mask do not fit it.
        """
        x, labels, mask = checked(x, labels, mask)
        with torch.no_grad():
            return self._draw(x, seed, step, first_sample, labels, mask)

    def pair(self, x: Tensor, noise: Tensor, *, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """For each row of x one of the noises that the caller drew; which shapes noise may have, the coupling says.

        Raises:
            TypeError, ValueError: as ``__call__``; ValueError also where the noise does not fit x.
        """
        x, labels, mask = checked(x, labels, mask)
        if not isinstance(noise, Tensor):
            raise TypeError(f"noise must be a tensor, got {type(noise).__name__}")
        with torch.no_grad():
            return self._pair(x, noise, labels, mask)

    def scale_data(self, x: Tensor) -> Tensor:
        """The data as it is diffused: x itself, except under ``Scaled``."""
        return x

    def unscale_data(self, x: Tensor) -> Tensor:
        """Samples of the trained model back in the range of the data: x itself, except under ``Scaled``."""
        return x

    @abstractmethod
    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """``__call__`` after validation; mask has x's shape."""

    @abstractmethod
    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """``pair`` after validation; mask has x's shape."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``coupling_from_dict`` reads it."""

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Coupling:
        """The coupling of a description without its name; inner couplings are made already."""
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


def checked(x: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Validated arguments: labels on x's device, the mask expanded to x's shape."""
    compute_dtype(x)
    if x.dim() == 0:
        raise ValueError("x must have a batch dimension, got a scalar")
    if labels is not None:
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels must have shape ({len(x)},), got {tuple(labels.shape)}")
        labels = labels.to(x.device)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at real elements, got dtype {mask.dtype}")
        leading = x.shape[: mask.dim()]
        sizes_fit = all(size in (1, full) for size, full in zip(mask.shape, leading, strict=False))
        if mask.dim() > x.dim() or not sizes_fit:
            raise ValueError(
                f"mask must have the leading dimensions of x, {tuple(x.shape)}, each or 1, got {tuple(mask.shape)}"
            )
        mask = mask.to(x.device).reshape(*mask.shape, *(1,) * (x.dim() - mask.dim())).expand(x.shape)
    return x, labels, mask


def check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
