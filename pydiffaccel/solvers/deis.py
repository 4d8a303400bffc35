"""DEIS with Adams-Bashforth extrapolation, tAB (Zhang and Chen, 2204.13902), orders 1 to 3.

In noise prediction x / alpha moves with rho = sigma / alpha as d(x / alpha) = eps d rho (their proposition 3 and
section 3.3), so with the polynomial through the last outputs

    x_next = (alpha_next / alpha) x + alpha_next sum_j C_j eps_j,     C_j = int L_j d rho over the step (equation 15).

``variable`` is what the polynomials are in: "t", the schedule's time (tAB); "rho" (rhoAB); or "log_rho", what diffusers
has, where the integrals have a closed form. For t they are computed by Gauss-Legendre quadrature in float64, panel by
panel between training indices. Order 1 is DDIM and NFE = N. With ``lower_order_final`` the last steps have orders 2
and 1; at clean data log rho is infinite and its step first order, t and rho are finite there and it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.churn import noise_to_signal
from pydiffaccel.solvers.exponential import (
    NOISE,
    combine,
    evaluate_form,
    moments,
    nodes,
    scale,
    step_orders,
)
from pydiffaccel.solvers.family import Family, choice, flag
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.quadrature import lagrange_integrals
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["DEIS"]

# Panels per step on a schedule without knots.
_PANELS = 8


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    variable = choice(options, "variable", ("t", "rho", "log_rho"))
    orders = step_orders(writer.points, order, flag(options, "lower_order_final"), singular_end=variable == "log_rho")
    for state, (here, after) in enumerate(pairwise(writer.points)):
        evaluation, form = evaluate_form(writer, NOISE)
        used = [writer.points[state - lag] for lag in range(orders[state])]
        if len(used) == 1:
            factors = moments(form, here, after, 1)
        elif variable == "log_rho":
            factors = combine(moments(NOISE, here, after, len(used)), nodes(here, after, used[1:]))
        else:
            factors = _integrals(writer.schedule, here, after, used, variable)
        outputs = {evaluation - lag: factor for lag, factor in enumerate(factors)}
        writer.update(after, state, scale(form, here, after), outputs)
    return writer.finish()


def _integrals(schedule: Schedule, here: Point, after: Point, used: Sequence[Point], variable: str) -> list[float]:
    first, last = noise_to_signal(here), noise_to_signal(after)
    if variable == "rho":
        integrals = lagrange_integrals([noise_to_signal(point) for point in used], np.array([first, last]))
    else:
        integrals = lagrange_integrals(
            [point.t for point in used],
            _panels(schedule, here, after),
            lambda rho: schedule.time_of_log_snr(-np.log(rho)),
        )
    return [after.alpha * integral for integral in integrals]


def _panels(schedule: Schedule, here: Point, after: Point) -> NDArray[np.float64]:
    """Noise-to-signal ratios between which the schedule is smooth."""
    first, last = noise_to_signal(here), noise_to_signal(after)
    if schedule.num_train_timesteps is None:
        times = np.linspace(here.t, after.t, _PANELS + 1)[1:-1]
        steep = np.geomspace(first, max(last, 1e-3 * first), _PANELS + 1)[1:-1]
    else:  # log alphabar is linear between training indices
        times = np.arange(math.ceil(here.t) - 1, math.floor(after.t), -1, dtype=np.float64)
        steep = np.empty(0)
    inner = np.concatenate((schedule.sigma(times) / schedule.alpha(times), steep))
    return np.concatenate(([first], np.unique(inner[(inner < first) & (inner > last)])[::-1], [last]))


DEIS = Family(
    "deis",
    _build,
    spacings={"vp": "quadratic", "flow": "uniform", "edm": "karras"},
    orders=(3, 2, 1),
    options={"variable": "t", "lower_order_final": False},
)
