"""DPM-Solver-1, -2 and -3 (Lu et al., 2206.00927): single steps in noise prediction.

Order 1 is DDIM (their equation 3.7); order 2 is their algorithm 1 and order 3 their algorithm 2, with the general r_1,
r_2 of algorithms 4 and 5. NFE = order x steps, and one evaluation for a step that ends in clean data. See
``singlestep`` for the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydiffaccel.solvers.exponential import NOISE
from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.singlestep import SINGLESTEP_OPTIONS, write_singlestep
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["DPM_SOLVER"]


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    return write_singlestep(writer, NOISE, order, options)


DPM_SOLVER = Family(
    "dpm_solver",
    _build,
    spacings={"vp": "log_snr", "flow": "uniform", "edm": "karras"},
    orders=(2, 1, 3),
    options=SINGLESTEP_OPTIONS,
)
