"""Karhunen-Loeve diffusion: the VP process whose noise is a sum of a few smooth terms (2503.17657)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.forward.vp import VPProcess
from pydiffaccel.schedule import ContinuousVPSchedule, Schedule, TruncatedVPSchedule, VPSchedule
from pydiffaccel.schedule.kl_terms import NUM_INTERVALS, check_table, kl_terms

__all__ = ["KLProcess", "kl_coefficients"]


def kl_coefficients(schedule: VPSchedule, num_terms: int, basis: str = "kl") -> NDArray[np.float64]:
    """c_k at every training index, float64 ``[T, num_terms]``; column k - 1 belongs to term k.

    Exact for this schedule up to rounding, at any number of terms.

    Raises:
        TypeError: schedule is no VPSchedule, or num_terms is no int.
        ValueError: num_terms < 1, or an unknown basis.
    """
    if not isinstance(schedule, VPSchedule):
        raise TypeError(f"a table of KL coefficients needs a VPSchedule, got {type(schedule).__name__}")
    return kl_terms(schedule, num_terms, basis).coefficients(np.arange(schedule.num_train_timesteps))


class KLProcess(VPProcess):
    """The VP process seen through the first M terms of the expansion of its noise, sum_k c_k(t) Z_k.

    M terms have the variance sigma_M^2 = sum_k c_k^2, less than the sigma^2 of the VP process. Either the noise is
    scaled up to sigma (``renormalise=True``): then levels, prior and plans are those of the VP process. Or the levels
    are (alpha, sigma_M), ``schedule`` is a TruncatedVPSchedule, sampling starts from N(0, sigma_M(T)^2), and a plan
    for the VP process is refused.

    Args:
        schedule: the noise levels of the VP process: a VPSchedule or ContinuousVPSchedule.
        num_terms: M >= 1.
        basis: "kl", the sines, or "haar", sparse in time (``pydiffaccel.schedule.kl_terms``).
        prediction_type: "epsilon", "sample" or "v_prediction".
        renormalise: whether the noise is scaled up to the level of the VP process.
        num_intervals: of the quadrature of coefficients that have no closed form: sines on continuous time with a rate
            that is not constant.

    Raises:
        TypeError: schedule is neither, or num_terms or renormalise is of the wrong type.
        ValueError: num_terms < 1, more than the intervals resolve or too many for a table (``kl_terms``), an unknown
            basis or prediction type; without renormalise also levels that do not fall strictly.
    """

    name: ClassVar[str] = "kl"

    def __init__(
        self,
        schedule: VPSchedule | ContinuousVPSchedule,
        num_terms: int,
        basis: str = "kl",
        prediction_type: str = "epsilon",
        *,
        renormalise: bool = True,
        num_intervals: int = NUM_INTERVALS,
    ) -> None:
        if not isinstance(schedule, (VPSchedule, ContinuousVPSchedule)):
            raise TypeError(
                f"a {self.name} process needs a VPSchedule or a ContinuousVPSchedule, got {type(schedule).__name__}"
            )
        if not isinstance(renormalise, bool):
            raise TypeError(f"renormalise must be True or False, got {renormalise!r}")
        self._terms = kl_terms(schedule, num_terms, basis, num_intervals)
        self._basis, self._renormalise, self._num_intervals = basis, renormalise, num_intervals
        super().__init__(schedule=schedule, prediction_type=prediction_type)

    def _used_schedule(self, base: VPSchedule | ContinuousVPSchedule) -> Schedule:
        if self._renormalise:
            return base
        return TruncatedVPSchedule(base, self.num_terms, self._basis, self._num_intervals)

    def _cpu_tables(self) -> dict[str, Tensor]:
        """Those of the levels, and on a chain c_k of every index, ``[T, M]``, else what the formulas read."""
        tables = super()._cpu_tables()
        if self.schedule.num_train_timesteps is None:
            return tables | {key: torch.from_numpy(table) for key, table in self._terms.tables.items()}
        check_table(self.schedule.num_train_timesteps, self.num_terms)
        index = np.arange(self.schedule.num_train_timesteps)
        return tables | {"coefficients": torch.from_numpy(self._terms.coefficients(index))}

    @property
    def num_terms(self) -> int:
        """M, the number of terms."""
        return self._terms.num_terms

    @property
    def basis(self) -> str:
        """The orthogonal family: "kl" or "haar"."""
        return self._basis

    @property
    def renormalise(self) -> bool:
        """Whether the noise is scaled up to the level of the VP process."""
        return self._renormalise

    @property
    def coefficients(self) -> Tensor:
        """c_k at every training index, float64 ``[T, M]`` on the CPU.

        Raises:
            ValueError: the process is on continuous time.
        """
        if self.is_continuous:
            raise ValueError("a kl process on continuous time has no table of coefficients; use terms(t)")
        return self._tables[torch.device("cpu")]["coefficients"]

    @property
    def sigma(self) -> Tensor:
        """The truncated noise level sigma_M = sqrt(sum_k c_k^2) at every training index, float64 ``[T]`` on the CPU.

        Raises:
            ValueError: the process is on continuous time.
        """
        if self.is_continuous:
            raise ValueError("a kl process on continuous time has no table of noise levels; use terms(t)")
        return torch.from_numpy(self._terms.sigma(np.arange(self.num_train_timesteps)))

    def terms(self, t: Tensor) -> Tensor:
        """c_k at the times t ``[B]``, float64 ``[B, M]`` on t's device; raises what ``levels`` raises.

        They are those of the expansion itself: ``renormalise`` does not change them.
        """
        t = self.checked_time(t)
        tables = self._tables_on(t.device)
        if not self.is_continuous:
            return tables["coefficients"].index_select(0, t)
        result: Tensor = self._terms.evaluate(t, tables, torch)
        return result

    def _continuous_sigma(self, t: Tensor, integral: Tensor) -> Tensor:
        if self._renormalise:
            return super()._continuous_sigma(t, integral)
        result: Tensor = self._terms.evaluate_sigma(t, self._tables_on(t.device), torch)
        return result

    def to_dict(self) -> dict[str, Any]:
        """The VP process' description with "num_terms", "basis", "renormalise" and, where used, "num_intervals"."""
        own = {"num_terms": self.num_terms, "basis": self.basis, "renormalise": self.renormalise}
        if self._terms.uses_quadrature:
            own["num_intervals"] = self._num_intervals
        return super().to_dict() | own

    def __repr__(self) -> str:
        return (
            f"KLProcess({self.base_schedule!r}, num_terms={self.num_terms}, basis={self.basis!r}, "
            f"prediction_type={self.prediction_type!r}, renormalise={self.renormalise})"
        )
