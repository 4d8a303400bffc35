"""EDM's Heun sampler with churn (Karras et al., 2206.00364, algorithms 1 and 2), on any schedule through x / alpha.

With y = x / alpha and rho = sigma / alpha: y_next = y + (rho_next - rho) (eps + eps_next) / 2, where eps_next is
evaluated after Euler's step. Order 2; NFE = 2 N - 1, because a step to clean data (rho_next = 0) has no second slope
and a step from pure noise (rho infinite) no first one: these are Euler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydiffaccel.solvers.churn import CHURN_OPTIONS, Churn, noise_to_signal
from pydiffaccel.solvers.exponential import NOISE, first_order
from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["EDM_HEUN"]


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    churn = Churn(options)
    for after in writer.points[1:]:
        churn.apply(writer)
        here, base = writer.here, writer.state
        slope = first_order(writer, NOISE, after)
        if after.sigma > 0 and here.alpha > 0:
            half = 0.5 * after.alpha * (noise_to_signal(after) - noise_to_signal(here))
            corrected = writer.evaluate(NOISE)
            writer.update(after, base, after.alpha / here.alpha, {slope: half, corrected: half})
    return writer.finish(churn.consistent)


EDM_HEUN = Family(
    "edm_heun",
    _build,
    spacings={"edm": "karras", "vp": "karras", "flow": "uniform"},
    orders=(2,),
    options=CHURN_OPTIONS,
)
