"""Variance-preserving diffusion on a discrete chain (DDPM, 2006.11239)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pydiffaccel.forward.process import Process, timestep_uniforms, uniform_indices
from pydiffaccel.schedule import VPSchedule

__all__ = ["VPProcess"]

VP_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class VPProcess(Process):
    """``x_t = sqrt(alphabar_t) x_0 + sqrt(1 - alphabar_t) noise`` for integer t in 0 .. T-1 (2006.11239, equation 4).

    Args:
        betas: per-step variances ``[T]``, in (0, 1).
        alphas_cumprod: alphabar ``[T]`` instead of betas.
        schedule: a VPSchedule instead of either. With none of the three: 1000 linear betas, 1e-4 to 0.02.
        prediction_type: "epsilon", "sample" or "v_prediction".

    Raises:
        TypeError: schedule is no VPSchedule.
        ValueError: more than one description of the noise levels, an invalid one, or an unknown prediction type.
    """

    name: ClassVar[str] = "vp"

    def __init__(
        self,
        betas: ArrayLike | None = None,
        *,
        alphas_cumprod: ArrayLike | None = None,
        schedule: VPSchedule | None = None,
        prediction_type: str = "epsilon",
    ) -> None:
        given = {"betas": betas, "alphas_cumprod": alphas_cumprod, "schedule": schedule}
        named = [key for key, value in given.items() if value is not None]
        if len(named) > 1:
            raise ValueError(f"give one of betas, alphas_cumprod and schedule, got {' and '.join(named)}")
        if prediction_type not in VP_PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type of a {self.name} process must be one of {', '.join(VP_PREDICTION_TYPES)}, "
                f"got {prediction_type!r}"
            )
        if betas is not None:
            schedule = VPSchedule.from_betas(betas)
        elif alphas_cumprod is not None:
            schedule = VPSchedule(np.asarray(alphas_cumprod))
        elif schedule is None:
            schedule = VPSchedule.linear()
        elif not isinstance(schedule, VPSchedule):
            raise TypeError(f"a {self.name} process needs a VPSchedule, got {type(schedule).__name__}")
        super().__init__(schedule, prediction_type)
        self._vp_schedule = schedule
        index = np.arange(schedule.num_train_timesteps)
        levels = np.stack([schedule.alpha(index), schedule.sigma(index)])
        # alpha and sigma of every index, [2, T]: one copy per device, so that a training step copies nothing.
        self._levels = {torch.device("cpu"): torch.from_numpy(levels)}

    @property
    def schedule(self) -> VPSchedule:
        """The noise levels."""
        return self._vp_schedule

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels."""
        return self._vp_schedule.num_train_timesteps

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphabar) and sqrt(1 - alphabar) at integer indices t, float64 ``[B]``.

        Raises:
            TypeError: t is not of an integer dtype.
            ValueError: an index is outside 0 .. T-1 (looked for on the CPU alone).
        """
        t = self.checked_index(t)
        if t.device not in self._levels:
            self._levels[t.device] = self._levels[torch.device("cpu")].to(t.device)
        alpha, sigma = self._levels[t.device].index_select(1, t)
        return alpha, sigma

    def checked_index(self, t: Tensor) -> Tensor:
        """t as int64 indices; raises what ``levels`` raises."""
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"times of a {self.name} process are integer indices, got dtype {t.dtype}")
        t = t.long()
        if t.device.type == "cpu" and t.numel():
            low, high = (int(end) for end in t.aminmax())
            if low < 0 or high >= self.num_train_timesteps:
                bad = low if low < 0 else high
                raise ValueError(f"t must lie in 0 .. {self.num_train_timesteps - 1}, got {bad}")
        return t

    def sample_timesteps(
        self, n: int, *, seed: int, step: int, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n uniform indices, int64 ``[n]``: index j is a pure function of (seed, step, first_sample + j).

        They are drawn on the CPU, so that every device gets the same ones.
        """
        return uniform_indices(timestep_uniforms(n, seed, step, first_sample), self.num_train_timesteps).to(device)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "vp", "schedule": {...}, "prediction_type": ...}``."""
        return {"name": self.name, "schedule": self.schedule.to_dict(), "prediction_type": self.prediction_type}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r}, prediction_type={self.prediction_type!r})"
