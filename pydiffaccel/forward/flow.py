"""Flow matching on straight paths (2209.03003, 2210.02747)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import at_hand
from pydiffaccel.forward.process import Process, timestep_uniforms
from pydiffaccel.schedule import FlowSchedule

__all__ = ["FlowProcess"]


class FlowProcess(Process):
    """``x_t = (1 - t) noise + t x_0`` for t in [0, 1], target ``x_0 - noise``: t = 0 is noise, t = 1 is data.

    The network receives 1000 t, the range that the time embeddings of image networks are made for.
    """

    name: ClassVar[str] = "flow"
    time_scale: float = 1000.0

    def __init__(self) -> None:
        super().__init__(FlowSchedule(), "flow")

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t and 1 - t, float64 ``[B]``.

        Raises:
            TypeError: t is not of a floating-point dtype.
            ValueError: a time is outside [0, 1] (looked for on the CPU alone).
        """
        if not t.is_floating_point():
            raise TypeError(f"times of a flow process are floating-point numbers, got dtype {t.dtype}")
        t = t.double()
        if at_hand(t):
            outside = t[~((t >= 0) & (t <= 1))]
            if outside.numel():
                raise ValueError(f"t must lie in [0, 1], got {float(outside[0])}")
        return t, 1 - t

    def sample_timesteps(
        self, n: int, *, seed: int, step: int, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n uniform times in [0, 1), float64 ``[n]``: time j is a pure function of (seed, step, first_sample + j).

        They are drawn on the CPU, so that every device gets the same ones. float64, because float32 could round to 1.
        """
        return timestep_uniforms(n, seed, step, first_sample).to(device)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "flow"}``."""
        return {"name": self.name}

    def __repr__(self) -> str:
        return "FlowProcess()"
