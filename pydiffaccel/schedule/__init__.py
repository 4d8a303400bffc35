"""Noise schedules: how much signal and noise a state holds at a time, in float64 NumPy.

Every forward process of the package is ``x_t = alpha(t) x_0 + sigma(t) noise``. A schedule knows the two functions, the
half log-SNR ``lambda = log(alpha / sigma)`` that solvers step in, and the inverse of the latter. It holds no tensor:
plans are computed from it once, on the host, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydiffaccel.schedule.base import Schedule
from pydiffaccel.schedule.edm import EDMSchedule
from pydiffaccel.schedule.flow import FlowSchedule
from pydiffaccel.schedule.vp import VPSchedule

__all__ = ["EDMSchedule", "FlowSchedule", "Schedule", "VPSchedule", "schedule_from_dict"]


def schedule_from_dict(d: Mapping[str, Any]) -> Schedule:
    """The schedule that ``to_dict`` described.

    Raises:
        TypeError: d is no mapping.
        ValueError: the name is unknown, or a field is missing or invalid.
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"a schedule is described by a dict, got {type(d).__name__}")
    fields = {key: value for key, value in d.items() if key != "name"}
    known: dict[str, tuple[type[Schedule], set[str]]] = {
        VPSchedule.name: (VPSchedule, {"alphas_cumprod"}),
        FlowSchedule.name: (FlowSchedule, set()),
        EDMSchedule.name: (EDMSchedule, {"sigma_max"}),
    }
    name = d.get("name")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(sorted(known))}")
    kind, expected = known[name]
    if set(fields) != expected:
        raise ValueError(f"a {name} schedule has the fields {sorted(expected)}, got {sorted(fields)}")
    return kind(**fields)
