"""DPM-Solver++ in data prediction (Lu et al., 2211.01095): first order, and the second-order multistep method 2M.

With lambda the half log-SNR, h = lambda_next - lambda and r = h_previous / h, their algorithm 2 is

    x_next = (sigma_next / sigma) x + alpha_next (1 - exp(-h)) [(1 + 1 / (2 r)) D - 1 / (2 r) D_previous]

where alpha_next (1 - exp(-h)) = alpha_next - alpha sigma_next / sigma needs no logarithm. The first step has no
history, and a step from, after or to an infinite log-SNR (noise only, clean data) has no slope in lambda: these are
first order. The step to the clean end is x_next = D, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.plan import Evaluation, Update
from pydiffaccel.solvers.point import Point

__all__ = ["DPM_SOLVER_PP"]

# Below this many steps the last one is first order unless asked otherwise, as in the authors' code.
_FEW_STEPS = 15


def _build(points: Sequence[Point], order: int, options: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    num_steps = len(points) - 1
    lower_final = options["lower_order_final"]
    if lower_final is None:
        lower_final = num_steps < _FEW_STEPS
    if not isinstance(lower_final, bool):
        raise TypeError(f"lower_order_final must be True, False or None, got {lower_final!r}")
    evaluations: list[Evaluation] = []
    step_before = math.inf
    for state, (here, after) in enumerate(pairwise(points)):
        step = after.log_snr - here.log_snr
        ratio = after.sigma / here.sigma
        gain = after.alpha - here.alpha * ratio
        first_order = order == 1 or state == 0 or (lower_final and state == num_steps - 1)
        # 1 / (2 r); zero as well after an infinite step, infinite (so not usable) before one.
        slope = 0.0 if first_order or math.isinf(step) else 0.5 * step / step_before
        b = (gain,) if slope == 0 else (gain * (1.0 + slope), -gain * slope)
        evaluations.append(Evaluation(here, "sample", (Update(after, base=state, a=ratio, b=b),)))
        step_before = step
    return tuple(evaluations)


DPM_SOLVER_PP = Family(
    "dpm_solver++",
    _build,
    spacings={"vp": "log_snr", "flow": "uniform"},
    orders=(2, 1),
    options={"lower_order_final": None},
)
