"""DPM-Solver++ (Lu et al., 2211.01095): exponential integration of the data prediction, orders 1 to 3.

Multistep, with lambda the half log-SNR, h = lambda_next - lambda and r = h_previous / h, their algorithm 2 (2M) is

    x_next = (sigma_next / sigma) x + alpha_next (1 - exp(-h)) [(1 + 1 / (2 r)) D - 1 / (2 r) D_previous]

(``solver_type="midpoint"``; "heun" integrates the line through the two outputs exactly). Third order, 3M, integrates
the parabola through three outputs. The authors' code, and those who took it over, weigh the second derivative by half
of what that integral gives, which leaves second order; ``third_order="official"`` reproduces them.
``stochastic=True`` is SDE-DPM-Solver++, their algorithms for the diffusion SDE. ``method="singlestep"`` is algorithm 1
(2S) and its third-order analogue; see ``singlestep``.

Steps from, after or to an infinite log-SNR (noise only, clean data) have no slope in lambda and are first order: the
step to the clean end is x_next = D, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.exponential import DATA, combine, fresh_noise, moments, nodes, scale, step_orders
from pydiffaccel.solvers.family import Family, choice, flag
from pydiffaccel.solvers.singlestep import SINGLESTEP_OPTIONS, write_singlestep
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["DPM_SOLVER_PP"]

# Below this many steps the last ones are of lower order unless asked otherwise, as in the authors' code.
_FEW_STEPS = 15


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    stochastic = flag(options, "stochastic")
    solver_type = choice(options, "solver_type", ("midpoint", "heun"))
    third_order = choice(options, "third_order", ("exact", "official"))
    num_steps = len(writer.points) - 1
    if choice(options, "method", ("multistep", "singlestep")) == "singlestep":
        if stochastic or third_order != "exact":
            raise ValueError('stochastic=True and third_order="official" need method="multistep", got "singlestep"')
        return write_singlestep(writer, DATA, order, options)
    for name in ("stages", "r1", "r2"):
        if options[name] != SINGLESTEP_OPTIONS[name]:
            raise ValueError(f'{name} needs method="singlestep", got {name} = {options[name]!r}')
    lower_final = options["lower_order_final"]
    if lower_final is None:
        lower_final = num_steps < _FEW_STEPS
    if not isinstance(lower_final, bool):
        raise TypeError(f"lower_order_final must be True, False or None, got {lower_final!r}")

    orders = step_orders(writer.points, order, lower_final)
    for state, (here, after) in enumerate(pairwise(writer.points)):
        evaluation, k = writer.evaluate(DATA), orders[state]
        weights = moments(DATA, here, after, k, stochastic)
        if k == 2 and solver_type == "midpoint":
            weights[1] = 0.5 * weights[0]
        if k == 3 and third_order == "official":
            weights[2] *= 0.5
        earlier = [writer.points[state - lag] for lag in range(1, k)]
        factors = combine(weights, nodes(here, after, earlier)) if k > 1 else weights
        writer.update(
            after,
            state,
            scale(DATA, here, after, stochastic),
            {evaluation - lag: factor for lag, factor in enumerate(factors)},
            fresh_noise(here, after) if stochastic else 0.0,
        )
    return writer.finish()


DPM_SOLVER_PP = Family(
    "dpm_solver++",
    _build,
    spacings={"vp": "log_snr", "flow": "uniform", "edm": "karras"},
    orders=(2, 1, 3),
    options={
        "method": "multistep",
        "stochastic": False,
        "third_order": "exact",
        **SINGLESTEP_OPTIONS,
    },
)
