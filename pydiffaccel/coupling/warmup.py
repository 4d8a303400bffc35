"""A coupling that is switched on after a number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pydiffaccel.coupling._checks import check_count
from pydiffaccel.coupling.base import Coupling, Wrapper, check_inner
from pydiffaccel.noise import gaussian_noise

__all__ = ["WarmUp"]


@dataclass(frozen=True, eq=False)
class WarmUp(Wrapper):
    """Plain noise before step start_step, bit for bit; from there on the coupling's.

    ``pair`` knows no step and always pairs.

    Args:
        start_step: the first step that is coupled, at least 0; 0 is the coupling itself.
        coupling: any coupling.

    Raises:
        TypeError: start_step is no int, or coupling no coupling.
        ValueError: start_step < 0.
    """

    name: ClassVar[str] = "warmup"

    start_step: int
    coupling: Coupling

    def __post_init__(self) -> None:
        check_count("start_step", self.start_step, 0)
        check_inner(self.coupling)

    @property
    def inner(self) -> Coupling:
        """The coupling that is switched on."""
        return self.coupling

    def is_plain(self, step: int) -> bool:
        """Whether the coupling has not begun, or draws plain noise itself."""
        return step < self.start_step or self.coupling.is_plain(step)

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if step < self.start_step:
            return gaussian_noise(x, seed, step, first_sample)
        return self.coupling._draw(x, seed, step, first_sample, labels, mask)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "warmup", "start_step": ..., "coupling": {...}}``."""
        return {"name": self.name, "start_step": self.start_step, "coupling": self.coupling.to_dict()}
