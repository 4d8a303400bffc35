"""EDM's Euler and Heun steps with churn (Karras et al., 2206.00364, algorithm 2), on any schedule.

With y = x / alpha and rho = sigma / alpha every schedule becomes theirs: dy / d rho = eps. Before a step from rho,
noise is added up to rho_hat = rho (1 + gamma), gamma = min(S_churn / N, sqrt(2) - 1) where S_tmin <= rho <= S_tmax, of
standard deviation S_noise sqrt(rho_hat^2 - rho^2) in y. No network was trained above the schedule's noisy end, so
rho_hat stops there; a step from the noisy end itself is not churned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydiffaccel.solvers.family import number
from pydiffaccel.solvers.point import Point, points_at
from pydiffaccel.solvers.table import TableWriter

__all__ = ["CHURN_OPTIONS", "Churn", "noise_to_signal"]

CHURN_OPTIONS: dict[str, Any] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}


def noise_to_signal(point: Point) -> float:
    """rho = sigma / alpha; infinite at pure noise."""
    return math.inf if point.alpha == 0 else point.sigma / point.alpha


class Churn:
    """The checked options S_churn, S_tmin, S_tmax (in rho) and S_noise."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.amount = number(options, "s_churn", 0.0, math.inf)
        self.lowest = number(options, "s_tmin", 0.0, math.inf)
        self.highest = number(options, "s_tmax", 0.0, math.inf)
        self.noise = number(options, "s_noise", 0.0, math.inf)
        if self.lowest > self.highest:
            raise ValueError(f"s_tmin must not be above s_tmax, got {self.lowest:g} and {self.highest:g}")

    def apply(self, writer: TableWriter) -> None:
        """Adds noise to the newest state where the options ask for it."""
        here = writer.here
        rho = noise_to_signal(here)
        gamma = min(self.amount / (len(writer.points) - 1), math.sqrt(2.0) - 1.0)
        if gamma == 0 or not self.lowest <= rho <= self.highest:
            return
        noisiest = points_at(writer.schedule, [writer.schedule.noisy_end])[0]
        raised = rho * (1.0 + gamma)
        up = writer.levels([-math.log(raised)])[0] if raised < noise_to_signal(noisiest) else noisiest
        added = noise_to_signal(up) ** 2 - rho**2
        if up.alpha == 0 or added <= 0:
            return
        deviation = self.noise * up.alpha * math.sqrt(added)
        writer.update(up, writer.state, up.alpha / here.alpha, noise=deviation)

    @property
    def consistent(self) -> bool:
        """Whether the noise added is that of the levels."""
        return self.amount == 0 or self.noise == 1.0
