"""Euler's method.

On flow matching x_next = x + (t_next - t) v, along the straight paths of 2209.03003. On EDM schedules, and through
x / alpha on VP, it is the deterministic or churned first-order sampler of 2206.00364 (``churn``); without churn that is
DDIM, with the time grid of one's choice. Churn on flow matching goes through x / alpha as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydiffaccel.schedule import FlowSchedule
from pydiffaccel.solvers.churn import CHURN_OPTIONS, Churn
from pydiffaccel.solvers.exponential import NOISE, first_order
from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["EULER"]


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    churn = Churn(options)
    straight = isinstance(writer.schedule, FlowSchedule) and churn.amount == 0
    for after in writer.points[1:]:
        if straight:
            here, base = writer.here, writer.state
            evaluation = writer.evaluate("flow")
            writer.update(after, base, 1.0, {evaluation: after.t - here.t})
        else:
            churn.apply(writer)
            first_order(writer, NOISE, after)
    return writer.finish(churn.consistent)


EULER = Family("euler", _build, spacings={"flow": "uniform", "vp": "trailing", "edm": "karras"}, options=CHURN_OPTIONS)
