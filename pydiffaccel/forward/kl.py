"""Karhunen-Loeve diffusion: the driving Brownian motion as a sum of a few smooth terms (2503.17657).

On [0, T] the Brownian motion is W_t = sum_k Z_k phi_k(t) with omega_k = (k - 1/2) pi / T, phi_k(t) = sqrt(2 / T)
sin(omega_k t) / omega_k and Z_k ~ N(0, I). Put into the variance-preserving SDE it gives

    x_t = alpha(t) x_0 + sum_k c_k(t) Z_k,    c_k' = -beta / 2 c_k + sqrt(beta) phi_k',    c_k(0) = 0.

All terms together have the variance of the SDE, sum_k c_k(t)^2 = 1 - alphabar(t); the first M have less.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.forward.vp import VPProcess
from pydiffaccel.schedule import VPSchedule

__all__ = ["KLProcess", "kl_coefficients"]


def kl_coefficients(schedule: VPSchedule, num_terms: int) -> NDArray[np.float64]:
    """c_k at every training index, float64 ``[T, num_terms]``; column k - 1 belongs to term k.

    Time runs over [0, T] with one unit per training step, and the integral of beta is -log alphabar_i at time i + 1,
    linear in between: beta is constant on each interval, where the equation of c_k has a closed solution. The table is
    therefore exact for this schedule up to rounding, at any number of terms.

    Raises:
        TypeError: schedule is no VPSchedule, or num_terms is no int.
        ValueError: num_terms < 1.
    """
    if not isinstance(schedule, VPSchedule):
        raise TypeError(f"KL coefficients need a VPSchedule, got {type(schedule).__name__}")
    if isinstance(num_terms, bool) or not isinstance(num_terms, int):
        raise TypeError(f"num_terms must be an int, got {type(num_terms).__name__}")
    if num_terms < 1:
        raise ValueError(f"num_terms must be at least 1, got {num_terms}")
    num_steps = schedule.num_train_timesteps
    integral = -np.log(schedule.alphas_cumprod)
    beta = np.diff(integral, prepend=0.0)
    omega = (np.arange(1, num_terms + 1) - 0.5) * np.pi / num_steps
    # Rows 0 .. T at the ends of the intervals. omega_k t is at most M pi, so its sine and cosine are accurate.
    angle = np.arange(num_steps + 1)[:, None] * omega
    cos, sin = np.cos(angle), np.sin(angle)
    decay = np.exp(-0.5 * beta)
    table = np.empty((num_steps, num_terms))
    c = np.zeros(num_terms)
    for i in range(num_steps):
        # The integral of exp(-beta (1 - s) / 2) cos(omega (i + s)) over s in [0, 1].
        forcing = 0.5 * beta[i] * (cos[i + 1] - decay[i] * cos[i]) + omega * (sin[i + 1] - decay[i] * sin[i])
        c = decay[i] * c + np.sqrt(2 / num_steps * beta[i]) * forcing / (0.25 * beta[i] ** 2 + omega**2)
        table[i] = c
    return table


class KLProcess(VPProcess):
    """The VP process seen through the first M terms of the Karhunen-Loeve expansion of its noise.

    ``add_noise``, ``target`` and ``schedule`` are those of the VP process: a network trained with ``kl_loss`` at its
    default ``sigma="schedule"`` is sampled like any other.

    Args:
        schedule: the noise levels of the VP process.
        num_terms: M >= 1.
        basis: "kl", the sines above.
        prediction_type: "epsilon", "sample" or "v_prediction".

    Raises:
        TypeError: schedule is no VPSchedule, or num_terms is no int.
        ValueError: num_terms < 1, an unknown basis or prediction type.
    """

    name: ClassVar[str] = "kl"

    def __init__(
        self, schedule: VPSchedule, num_terms: int, basis: str = "kl", prediction_type: str = "epsilon"
    ) -> None:
        if basis != "kl":
            raise ValueError(f"basis must be 'kl', got {basis!r}")
        table = kl_coefficients(schedule, num_terms)
        super().__init__(schedule=schedule, prediction_type=prediction_type)
        self._basis = basis
        self._coefficients = {torch.device("cpu"): torch.from_numpy(table)}
        self._sigma = torch.from_numpy(np.sqrt(np.square(table).sum(1)))

    @property
    def num_terms(self) -> int:
        """M, the number of terms."""
        return self.coefficients.shape[1]

    @property
    def basis(self) -> str:
        """The orthogonal family: "kl"."""
        return self._basis

    @property
    def coefficients(self) -> Tensor:
        """c_k at every training index, float64 ``[T, M]`` on the CPU."""
        return self._coefficients[torch.device("cpu")]

    @property
    def sigma(self) -> Tensor:
        """The truncated noise level sigma_M = sqrt(sum_k c_k^2) at every training index, float64 ``[T]`` on the CPU."""
        return self._sigma

    def terms(self, t: Tensor) -> Tensor:
        """c_k at integer indices t ``[B]``, float64 ``[B, M]`` on t's device; raises what ``levels`` raises."""
        t = self.checked_index(t)
        if t.device not in self._coefficients:
            self._coefficients[t.device] = self.coefficients.to(t.device)
        return self._coefficients[t.device].index_select(0, t)

    def to_dict(self) -> dict[str, Any]:
        """The VP process' description with "num_terms" and "basis"."""
        return super().to_dict() | {"num_terms": self.num_terms, "basis": self.basis}
