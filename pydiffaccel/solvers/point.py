"""A noise level on a schedule, and what each prediction type is made of there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pydiffaccel.schedule import Schedule

__all__ = ["PREDICTION_TYPES", "Point", "finite", "output_parts", "points_at"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")


@dataclass(frozen=True)
class Point:
    """A noise level on a schedule.

    Attributes:
        t: the schedule's time (VP: real-valued training index; flow: 0 noise .. 1 data).
        unit: ``Schedule.unit_time(t)``, the same time in [0, 1].
        alpha: factor of the data.
        sigma: factor of the noise.
    """

    t: float
    unit: float
    alpha: float
    sigma: float

    def __post_init__(self) -> None:
        for name in ("t", "unit", "alpha", "sigma"):
            object.__setattr__(self, name, finite(getattr(self, name), f"{name} of a point"))
        if self.alpha < 0 or self.sigma < 0 or self.alpha + self.sigma == 0:
            raise ValueError(f"a point needs alpha, sigma >= 0, not both 0, got {self.alpha} and {self.sigma}")

    @property
    def log_snr(self) -> float:
        """Half log-SNR log(alpha / sigma); infinite at the ends."""
        if self.sigma == 0:
            return math.inf
        return -math.inf if self.alpha == 0 else math.log(self.alpha / self.sigma)


def points_at(schedule: Schedule, times: ArrayLike) -> tuple[Point, ...]:
    """The schedule's points at the given times ``[K]``."""
    t = np.asarray(times, dtype=np.float64)
    columns = (t, schedule.unit_time(t), schedule.alpha(t), schedule.sigma(t))
    return tuple(Point(*map(float, row)) for row in zip(*columns, strict=True))


def output_parts(prediction_type: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) such that a perfect model of this prediction type returns p x_0 + q noise at the level (alpha, sigma).

    Raises:
        ValueError: unknown prediction type.
    """
    parts = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma, alpha),  # progressive distillation, 2202.00512, appendix D
        "flow": (1.0, -1.0),
    }
    if prediction_type not in parts:
        raise ValueError(f"unknown prediction type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
    return parts[prediction_type]


def finite(value: Any, what: str) -> float:
    """value as a float; TypeError or ValueError, naming it as `what`, if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {value}")
    return float(value)
