"""A coupling that looks at data brought to one scale, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling.base import Coupling, Wrapper, check_inner
from pydiffaccel.coupling.distributed import Distributed

__all__ = ["Standardized"]

_LEAST_STD = 1e-6


@dataclass(frozen=True, eq=False)
class Standardized(Wrapper):
    """The noise that fits ``(x - mean) / std``; x itself is diffused as it is.

    For data whose coordinates have different units, such as action chunks ``[B, T, A]``: the largest coordinates would
    decide alone (2505.18521 standardises actions). The noise is not scaled.

    Args:
        coupling: chooses the noise for the standardised data.
        mean, std: statistics of the data, each of a shape that broadcasts to one sample; give both or none. None takes
            the mean and the population standard deviation of each coordinate over the batch, over real elements under
            a mask; then a row's noise depends on the whole batch. std is at least 1e-6.

    Raises:
        TypeError: coupling is no coupling, or a statistic no floating-point tensor.
        ValueError: only one statistic is given, one is not finite, std < 0, or there are none for ``Distributed``,
            whose ranks would each take their own.
    """

    name: ClassVar[str] = "standardized"

    coupling: Coupling
    mean: Tensor | None = None
    std: Tensor | None = None

    def __post_init__(self) -> None:
        check_inner(self.coupling)
        if (self.mean is None) != (self.std is None):
            given, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"mean and std come together, got {given} without {other}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise TypeError(
                    f"{name} must be None or a floating-point tensor, "
                    f"got {getattr(value, 'dtype', type(value).__name__)}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite")
            object.__setattr__(self, name, value.detach().clone())
        if self.std is not None and bool((self.std < 0).any()):
            raise ValueError(f"std must be at least 0, got {float(self.std.min())}")
        inner: Coupling = self.coupling
        while self.mean is None and isinstance(inner, Wrapper):
            if isinstance(inner, Distributed):
                raise ValueError("Standardized needs mean and std around Distributed: each rank would take its own")
            inner = inner.inner

    @property
    def inner(self) -> Coupling:
        """The coupling that sees the standardised data."""
        return self.coupling

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        return self.coupling._draw(self._standardized(x, mask), seed, step, first_sample, labels, mask).to(x.dtype)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        # The statistics are wider than half precision, what is compared with the noise has its dtype.
        return self.coupling._pair(self._standardized(x, mask).to(x.dtype), noise, labels, mask)

    def _standardized(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # Contiguous, so that the batch is summed in the same order whatever the memory format.
        wide = x.detach().to(compute_dtype(x)).contiguous()
        if len(x) == 0:
            return wide
        if self.mean is not None and self.std is not None:
            mean, std = (self._fitting(name, value, wide) for name, value in (("mean", self.mean), ("std", self.std)))
        elif mask is None:
            mean, std = wide.mean(0), wide.std(0, unbiased=False)
        else:
            real = mask.sum(0).clamp(min=1)
            mean = torch.where(mask, wide, 0).sum(0) / real
            std = (torch.where(mask, wide - mean, 0).square().sum(0) / real).sqrt()
        return (wide - mean) / std.clamp(min=_LEAST_STD)

    def _fitting(self, name: str, value: Tensor, x: Tensor) -> Tensor:
        try:
            return value.to(x.device, x.dtype).expand(x.shape[1:])
        except RuntimeError:
            raise ValueError(
                f"{name} must broadcast to one sample {tuple(x.shape[1:])}, got {tuple(value.shape)}"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "standardized", "coupling": {...}, "mean": ..., "std": ...}``, tensors as nested lists."""
        mean, std = (None if value is None else value.double().tolist() for value in (self.mean, self.std))
        return {"name": self.name, "coupling": self.coupling.to_dict(), "mean": mean, "std": std}

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Standardized:
        """``mean`` and ``std`` may be nested lists of floats."""
        statistics = {
            name: None if values[name] is None else torch.tensor(values[name], dtype=torch.float64)
            for name in ("mean", "std")
        }
        return cls(**{**values, **statistics})
