"""Noise that does not look at the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pydiffaccel.coupling.base import Coupling
from pydiffaccel.noise import gaussian_noise

__all__ = ["Independent"]


@dataclass(frozen=True, eq=False)
class Independent(Coupling):
    """The baseline: noise that does not look at the data. ``pair`` returns the noise object it was given."""

    name: ClassVar[str] = "independent"

    def is_plain(self, step: int) -> bool:
        """True."""
        return True

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        return gaussian_noise(x, seed, step, first_sample)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        if noise.shape != x.shape:
            raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, got {tuple(noise.shape)}")
        return noise

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "independent"}``."""
        return {"name": self.name}
