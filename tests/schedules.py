"""Schedules that several tests run on."""

from __future__ import annotations

from pydiffaccel.schedule import ContinuousVPSchedule, TruncatedVPSchedule, VPSchedule

VP = {"linear": VPSchedule.linear(), "scaled_linear": VPSchedule.scaled_linear(), "cosine": VPSchedule.cosine()}
CONTINUOUS = {
    "constant": ContinuousVPSchedule.constant(8.0, T=2.0),
    "continuous linear": ContinuousVPSchedule.linear(),
    "continuous cosine": ContinuousVPSchedule.cosine(),
}
TRUNCATED = {
    f"truncated {name} {basis} {terms}": TruncatedVPSchedule(base, terms, basis)
    for name, base in (("linear", VP["linear"]), ("continuous cosine", CONTINUOUS["continuous cosine"]))
    for basis in ("kl", "haar")
    for terms in (1, 3)
}
