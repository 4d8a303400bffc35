"""Adams-Bashforth on flow-matching time: x_next = x + sum_j w_j v_j, orders 1 to 4.

The weights integrate the polynomial through the last velocities over the step (Hairer, Norsett, Wanner, Solving
Ordinary Differential Equations I, section III.1 and III.5 for unequal steps). The velocity is regular at both ends of
the path, so no step is of lower order but those of the start, and order 1 is Euler. NFE = N.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.quadrature import lagrange_integrals
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["ADAMS_BASHFORTH"]


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    for state, (here, after) in enumerate(pairwise(writer.points)):
        evaluation = writer.evaluate("flow")
        usable = min(order, state + 1)
        times = [writer.points[state - lag].t for lag in range(usable)]
        factors = lagrange_integrals(times, np.array([here.t, after.t]))
        writer.update(after, state, 1.0, {evaluation - lag: factor for lag, factor in enumerate(factors)})
    return writer.finish()


ADAMS_BASHFORTH = Family("adams_bashforth", _build, spacings={"flow": "uniform"}, orders=(2, 1, 3, 4))
