"""Data multiplied by a factor before it is diffused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pydiffaccel.coupling.base import Coupling, Wrapper, check_inner
from pydiffaccel.coupling.independent import Independent

__all__ = ["Scaled"]


@dataclass(frozen=True, eq=False)
class Scaled(Wrapper):
    """Data multiplied by a factor before it is diffused, noise untouched (2505.18521: factors 2 and 4).

    Equal to a shift of the log-SNR, 2 log(factor). The caller scales the data (``scale_data``) and undoes it on samples
    (``unscale_data``), clipping bounds included. ``__call__`` and ``pair`` take data that is scaled already and hand it
    to the inner coupling.

    Args:
        factor: positive and finite; 1 returns the data object itself.
        coupling: how the scaled data gets its noise; None is ``Independent()``.

    Raises:
        TypeError: factor is no number, or coupling no coupling.
        ValueError: factor is not positive and finite.
    """

    name: ClassVar[str] = "scaled"

    factor: float
    coupling: Coupling | None = None

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)):
            raise TypeError(f"factor must be a number, got {type(self.factor).__name__}")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"factor must be positive and finite, got {self.factor}")
        if self.coupling is not None:
            check_inner(self.coupling)
        object.__setattr__(self, "factor", float(self.factor))

    @property
    def inner(self) -> Coupling:
        """The coupling that draws the noise."""
        return Independent() if self.coupling is None else self.coupling

    def scale_data(self, x: Tensor) -> Tensor:
        """factor x, in x's dtype."""
        x = self.inner.scale_data(x)
        return x if self.factor == 1 else x * self.factor

    def unscale_data(self, x: Tensor) -> Tensor:
        """x / factor, in x's dtype."""
        x = x if self.factor == 1 else x / self.factor
        return self.inner.unscale_data(x)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "scaled", "factor": ..., "coupling": {...}}``."""
        return {"name": self.name, "factor": self.factor, "coupling": self.inner.to_dict()}
