"""Forward processes: how data and noise make a network's input, and what the network is to answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydiffaccel.forward.edm import EDMProcess
from pydiffaccel.forward.flow import FlowProcess
from pydiffaccel.forward.kl import KLProcess, kl_coefficients
from pydiffaccel.forward.process import Process, check_fields
from pydiffaccel.forward.vp import VPProcess
from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule, schedule_from_dict
from pydiffaccel.schedule.kl_terms import NUM_INTERVALS

__all__ = ["EDMProcess", "FlowProcess", "KLProcess", "Process", "VPProcess", "kl_coefficients", "process_from_dict"]


def process_from_dict(d: Mapping[str, Any]) -> Process:
    """The process that ``to_dict`` described.

    Raises:
        TypeError: d is no mapping.
        ValueError: the name is unknown, or a field is missing or invalid.
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"a process is described by a dict, got {type(d).__name__}")
    name = d.get("name")
    if name == FlowProcess.name:
        check_fields(d, set())
        return FlowProcess()
    if name == VPProcess.name:
        check_fields(d, {"schedule", "prediction_type"})
        return VPProcess(schedule=_vp_schedule(d), prediction_type=d["prediction_type"])
    if name == KLProcess.name:
        optional = {"renormalise": True, "num_intervals": NUM_INTERVALS}  # unknown to the first descriptions
        d = {**optional, **d}
        check_fields(d, {"schedule", "prediction_type", "num_terms", "basis", *optional})
        options = {key: d[key] for key in optional}
        return KLProcess(_vp_schedule(d), d["num_terms"], d["basis"], d["prediction_type"], **options)
    if name == EDMProcess.name:
        check_fields(d, {"sigma_data", "p_mean", "p_std", "sigma_max", "prediction_type"})
        return EDMProcess(**{key: value for key, value in d.items() if key != "name"})
    known = ", ".join(kind.name for kind in (EDMProcess, FlowProcess, KLProcess, VPProcess))
    raise ValueError(f"unknown process {name!r}; known: {known}")


def _vp_schedule(d: Mapping[str, Any]) -> VPSchedule | ContinuousVPSchedule:
    schedule = schedule_from_dict(d["schedule"])
    if not isinstance(schedule, (VPSchedule, ContinuousVPSchedule)):
        raise ValueError(f"a {d['name']} process needs a vp schedule, got {schedule.name}")
    return schedule
