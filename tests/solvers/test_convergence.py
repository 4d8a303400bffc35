"""Order of convergence: the slope of the error over the step on Gaussian data, against the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pydiffaccel.schedule import FlowSchedule, Schedule, VPSchedule
from pydiffaccel.solvers import integrate, make_plan

VP = VPSchedule.linear()
FLOW = FlowSchedule()


def errors(gaussian: Any, x: Any, schedule: Schedule, solver: str, steps: list[int], **options: Any) -> list[float]:
    result = []
    for num_steps in steps:
        plan = make_plan(solver, schedule, num_steps, **options)
        exact = gaussian.exact(x, plan.start, plan.state_points[-1])
        result.append(float((integrate(plan, gaussian, x) - exact).abs().max()))
    return result


def slope(steps: list[int], error: list[float]) -> float:
    return float(-np.polyfit(np.log(steps), np.log(error), 1)[0])


@pytest.mark.parametrize(
    ("solver", "schedule", "options", "order"),
    [
        ("ddim", VP, {"spacing": "log_snr", "end": 20.0}, 1),
        ("ddim", VP, {"spacing": "uniform", "end": 100.0}, 1),
        ("dpm_solver++", VP, {"order": 1, "spacing": "log_snr", "end": 20.0}, 1),
        ("dpm_solver++", VP, {"order": 2, "spacing": "log_snr", "end": 20.0}, 2),
        ("dpm_solver++", VP, {"order": 2, "spacing": "uniform", "end": 100.0}, 2),
        ("euler", FLOW, {}, 1),
        ("euler", FLOW, {"end": 0.9}, 1),
        ("dpm_solver++", FLOW, {"order": 1, "end": 0.9}, 1),
    ],
)
def test_order(gaussian: Any, normal: Any, solver: str, schedule: Schedule, options: Any, order: int) -> None:
    steps = [40, 80, 160, 320]
    error = errors(gaussian, normal(0, 5, 4), schedule, solver, steps, **options)
    assert abs(slope(steps, error) - order) < 0.15, error
    assert error[-1] < 0.02


def test_second_order_is_more_accurate_in_few_steps(gaussian: Any, normal: Any) -> None:
    first = errors(gaussian, normal(1, 5, 4), VP, "dpm_solver++", [10, 20], order=1)
    second = errors(gaussian, normal(1, 5, 4), VP, "dpm_solver++", [10, 20], order=2)
    assert second[0] < 0.5 * first[0]
    assert second[1] < 0.25 * first[1]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "log_snr", "uniform"])
@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++"])
def test_every_grid_reaches_the_data_distribution(gaussian: Any, normal: Any, solver: str, spacing: str) -> None:
    x = normal(2, 5, 4)
    coarse, fine = errors(gaussian, x, VP, solver, [50, 500], spacing=spacing)
    assert fine < 0.02
    assert fine < 0.5 * coarse
