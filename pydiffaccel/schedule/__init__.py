"""Noise schedules: how much signal and noise a state holds at a time, in float64 NumPy.

Every forward process of the package is ``x_t = alpha(t) x_0 + sigma(t) noise``. A schedule knows the two functions, the
half log-SNR ``lambda = log(alpha / sigma)`` that solvers step in, and the inverse of the latter. It holds no tensor:
plans are computed from it once, on the host, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydiffaccel.schedule.base import Schedule
from pydiffaccel.schedule.continuous_vp import ContinuousVPSchedule
from pydiffaccel.schedule.edm import EDMSchedule
from pydiffaccel.schedule.flow import FlowSchedule
from pydiffaccel.schedule.kl_basis import kl_basis_derivatives, kl_basis_functions
from pydiffaccel.schedule.truncated import TruncatedVPSchedule
from pydiffaccel.schedule.vp import VPSchedule

__all__ = [
    "ContinuousVPSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "Schedule",
    "TruncatedVPSchedule",
    "VPSchedule",
    "kl_basis_derivatives",
    "kl_basis_functions",
    "schedule_from_dict",
]


def schedule_from_dict(d: Mapping[str, Any]) -> Schedule:
    """The schedule that ``to_dict`` described.

    Raises:
        TypeError: d is no mapping.
        ValueError: the name is unknown, or a field is missing or invalid.
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"a schedule is described by a dict, got {type(d).__name__}")
    known: dict[str, tuple[Callable[..., Schedule], set[str]]] = {
        VPSchedule.name: (VPSchedule, {"alphas_cumprod"}),
        TruncatedVPSchedule.name: (_truncated, {"base", "num_terms", "basis", "num_intervals"}),
        FlowSchedule.name: (FlowSchedule, set()),
        EDMSchedule.name: (EDMSchedule, {"sigma_max"}),
    }
    name = d.get("name")
    if name == ContinuousVPSchedule.name:
        return ContinuousVPSchedule.from_dict(d)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(sorted({*known, ContinuousVPSchedule.name}))}")
    kind, expected = known[name]
    fields = {key: value for key, value in d.items() if key != "name"}
    if set(fields) != expected:
        raise ValueError(f"a {name} schedule has the fields {sorted(expected)}, got {sorted(fields)}")
    return kind(**fields)


def _truncated(base: Mapping[str, Any], num_terms: int, basis: str, num_intervals: int) -> Schedule:
    inner = schedule_from_dict(base)
    if not isinstance(inner, (VPSchedule, ContinuousVPSchedule)):
        raise ValueError(f"the base of a {TruncatedVPSchedule.name} schedule must be a vp schedule, got {inner.name}")
    return TruncatedVPSchedule(inner, num_terms, basis, num_intervals)
