"""iPNDM (Zhang and Chen, 2204.13902, appendix on PNDM): PNDM without its Runge-Kutta start.

The combination eps of the last outputs has Adams-Bashforth's factors for equal steps, of orders 1, 2, 3, 4 as the
history fills, and DDIM's step carries it over:
x_next = (alpha_next / alpha) x + (sigma_next - sigma alpha_next / alpha) eps.

NFE = N. The factors take no notice of unequal steps, so it converges with its order where sigma / alpha moves in equal
steps, and with order 2 at most on other smooth grids; DEIS has the factors of the grid itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.exponential import NOISE, first_order, moments, scale
from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.pndm import multistep_factors
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["IPNDM"]


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    history: list[int] = []
    for here, after in pairwise(writer.points):
        if here.alpha == 0:  # the output at pure noise is a data prediction and no part of the history
            first_order(writer, NOISE, after)
            continue
        base = writer.state
        history.append(writer.evaluate(NOISE))
        gain = moments(NOISE, here, after, 1)[0]
        factors = {number: gain * factor for number, factor in multistep_factors(history, order).items()}
        writer.update(after, base, scale(NOISE, here, after), factors)
    return writer.finish()


IPNDM = Family(
    "ipndm",
    _build,
    spacings={"vp": "trailing", "flow": "uniform", "edm": "karras"},
    orders=(4, 3, 2, 1),
)
