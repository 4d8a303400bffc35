"""Adams-Bashforth on flow-matching time: x_next = x + sum_j w_j v_j, orders 1 to 4.

The weights integrate the polynomial through the last velocities over the step (Hairer, Norsett, Wanner, Solving
Ordinary Differential Equations I, equation III.1.5, and section III.5 for unequal steps). The velocity is regular at
both ends of the path, so no step is of lower order but those of the start, and order 1 is Euler. NFE = N.

Those first steps, of orders 1, 2, .., bound the whole by order 2. ``runge_kutta=True`` makes them with the classical
Runge-Kutta method instead (their equation II.1.8), 4 evaluations each: NFE = N + 3 (order - 1), and the full order.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from pydiffaccel.solvers.family import Family, flag
from pydiffaccel.solvers.point import Point, points_at
from pydiffaccel.solvers.quadrature import lagrange_integrals
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["ADAMS_BASHFORTH"]

_VELOCITY = "flow"


def _runge_kutta(writer: TableWriter, here: Point, after: Point) -> int:
    base, h = writer.state, after.t - here.t
    middle = points_at(writer.schedule, [0.5 * (here.t + after.t)])[0]
    first = writer.evaluate(_VELOCITY)
    writer.update(middle, base, 1.0, {first: 0.5 * h})
    second = writer.evaluate(_VELOCITY)
    writer.update(middle, base, 1.0, {second: 0.5 * h})
    third = writer.evaluate(_VELOCITY)
    writer.update(after, base, 1.0, {third: h})
    fourth = writer.evaluate(_VELOCITY)
    writer.update(after, base, 1.0, {first: h / 6, second: h / 3, third: h / 3, fourth: h / 6})
    return first


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    runge_kutta = flag(options, "runge_kutta")
    history: list[int] = []
    for i, (here, after) in enumerate(pairwise(writer.points)):
        if runge_kutta and len(history) < order - 1 and after.sigma > 0:
            history.append(_runge_kutta(writer, here, after))
            continue
        base = writer.state
        history.append(writer.evaluate(_VELOCITY))
        used = history[: -order - 1 : -1]
        times = [writer.points[i - lag].t for lag in range(len(used))]
        factors = lagrange_integrals(times, np.array([here.t, after.t]))
        writer.update(after, base, 1.0, dict(zip(used, factors, strict=True)))
    return writer.finish()


ADAMS_BASHFORTH = Family(
    "adams_bashforth", _build, spacings={"flow": "uniform"}, orders=(2, 1, 3, 4), options={"runge_kutta": False}
)
