"""Variance-preserving diffusion: a discrete chain (DDPM, 2006.11239) or continuous time (2011.13456)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pydiffaccel._tensors import at_hand
from pydiffaccel.forward.process import Process, timestep_uniforms, uniform_indices
from pydiffaccel.schedule import ContinuousVPSchedule, Schedule, VPSchedule

__all__ = ["VPProcess"]

VP_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# Networks receive 0 .. 1000 whatever T is on continuous time, as on the usual chain.
_NETWORK_TIMES = 1000.0
# A time may exceed T by float32's rounding.
_ROUNDING = 1e-6


class VPProcess(Process):
    """``x_t = sqrt(alphabar_t) x_0 + sqrt(1 - alphabar_t) noise`` (2006.11239, equation 4).

    On a VPSchedule t is an integer index 0 .. T-1. On a ContinuousVPSchedule t is a floating-point time in [0, T];
    training draws it uniformly from [t_min, T] of the schedule, and the network receives 1000 t / T.

    Args:
        betas: per-step variances ``[T]``, in (0, 1).
        alphas_cumprod: alphabar ``[T]`` instead of betas.
        schedule: a VPSchedule or ContinuousVPSchedule instead of either. With none of the three: 1000 linear betas,
            1e-4 to 0.02.
        prediction_type: "epsilon", "sample" or "v_prediction".

    Raises:
        TypeError: schedule is neither.
        ValueError: more than one description of the noise levels, an invalid one, or an unknown prediction type.
    """

    name: ClassVar[str] = "vp"

    def __init__(
        self,
        betas: ArrayLike | None = None,
        *,
        alphas_cumprod: ArrayLike | None = None,
        schedule: VPSchedule | ContinuousVPSchedule | None = None,
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
        elif not isinstance(schedule, (VPSchedule, ContinuousVPSchedule)):
            raise TypeError(
                f"a {self.name} process needs a VPSchedule or a ContinuousVPSchedule, got {type(schedule).__name__}"
            )
        super().__init__(self._used_schedule(schedule), prediction_type)
        self._base_schedule = schedule
        # What levels are computed from: one copy per device, so that a training step copies nothing.
        self._tables: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self._cpu_tables()}
        if isinstance(schedule, ContinuousVPSchedule):
            self.time_scale = _NETWORK_TIMES / schedule.T

    def _used_schedule(self, base: VPSchedule | ContinuousVPSchedule) -> Schedule:
        """The schedule of the levels in use."""
        return base

    def _cpu_tables(self) -> dict[str, Tensor]:
        """On a chain alpha and sigma of every index, ``[2, T]``; nothing on continuous time."""
        if self.schedule.num_train_timesteps is None:
            return {}
        index = np.arange(self.schedule.num_train_timesteps)
        return {"levels": torch.from_numpy(np.stack([self.schedule.alpha(index), self.schedule.sigma(index)]))}

    def _tables_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._tables:
            on_cpu = self._tables[torch.device("cpu")]
            self._tables[device] = {key: table.to(device) for key, table in on_cpu.items()}
        return self._tables[device]

    @property
    def base_schedule(self) -> VPSchedule | ContinuousVPSchedule:
        """The VP schedule that the process was made from."""
        return self._base_schedule

    @property
    def is_continuous(self) -> bool:
        """Whether times are real numbers rather than indices."""
        return isinstance(self._base_schedule, ContinuousVPSchedule)

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels.

        Raises:
            ValueError: the process is on continuous time.
        """
        if isinstance(self._base_schedule, ContinuousVPSchedule):
            raise ValueError(f"a {self.name} process on continuous time has no number of training time steps")
        return self._base_schedule.num_train_timesteps

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphabar) and sqrt(1 - alphabar) at the times t, float64 ``[B]``.

        Raises:
            TypeError: t is not of an integer dtype, or on continuous time not of a floating-point one.
            ValueError: a time is outside 0 .. T-1, or [0, T] (looked for on the CPU alone).
        """
        t = self.checked_time(t)
        if isinstance(self._base_schedule, VPSchedule):
            alpha, sigma = self._tables_on(t.device)["levels"].index_select(1, t)
            return alpha, sigma
        integral = self._base_schedule.rate.integral(t, torch)
        return torch.exp(-0.5 * integral), self._continuous_sigma(t, integral)

    def _continuous_sigma(self, t: Tensor, integral: Tensor) -> Tensor:
        """sigma at times t, where beta has this integral, both float64 ``[B]``."""
        return torch.sqrt(-torch.expm1(-integral))

    def checked_time(self, t: Tensor) -> Tensor:
        """t as int64 indices, or on continuous time as float64; raises what ``levels`` raises."""
        if isinstance(self._base_schedule, ContinuousVPSchedule):
            return self._checked_real(t, self._base_schedule.T)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"times of a {self.name} process are integer indices, got dtype {t.dtype}")
        t = t.long()
        if at_hand(t) and t.numel():
            low, high = (int(end) for end in t.aminmax())
            if low < 0 or high >= self.num_train_timesteps:
                bad = low if low < 0 else high
                raise ValueError(f"t must lie in 0 .. {self.num_train_timesteps - 1}, got {bad}")
        return t

    def _checked_real(self, t: Tensor, total: float) -> Tensor:
        if not t.is_floating_point():
            raise TypeError(
                f"times of a {self.name} process on continuous time are floating point, got dtype {t.dtype}"
            )
        t = t.double()
        if at_hand(t):
            outside = t[~((t >= 0) & (t <= total * (1 + _ROUNDING)))]
            if outside.numel():
                raise ValueError(f"t must lie in [0, {total:g}], got {float(outside[0])}")
        return t.clamp(0.0, total)

    def sample_timesteps(
        self, n: int, *, seed: int, step: int, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n uniform times: time j is a pure function of (seed, step, first_sample + j).

        int64 ``[n]`` indices, or float64 ``[n]`` in [t_min, T) on continuous time. They are drawn on the CPU, so that
        every device gets the same ones.
        """
        u = timestep_uniforms(n, seed, step, first_sample)
        if isinstance(self._base_schedule, ContinuousVPSchedule):
            first, last = self._base_schedule.t_min, self._base_schedule.T
            return (first + (last - first) * u).to(device)
        return uniform_indices(u, self.num_train_timesteps).to(device)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "vp", "schedule": {...}, "prediction_type": ...}``."""
        return {"name": self.name, "schedule": self.base_schedule.to_dict(), "prediction_type": self.prediction_type}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r}, prediction_type={self.prediction_type!r})"
