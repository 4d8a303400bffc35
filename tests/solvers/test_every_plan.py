"""What holds for every family on every grid: exact ends, no NaN, one image followed exactly, evaluations counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pydiffaccel.schedule import (
    ContinuousVPSchedule,
    EDMSchedule,
    FlowSchedule,
    Schedule,
    TruncatedVPSchedule,
    VPSchedule,
)
from pydiffaccel.solvers import Plan, integrate, load_plan, make_plan, wrap_model
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.point import PREDICTION_TYPES, output_parts, points_at
from pydiffaccel.solvers.spacing import SPACINGS

SCHEDULES: dict[str, Schedule] = {
    "vp": VPSchedule.cosine(100),
    "zero_snr": VPSchedule.scaled_linear(100).rescaled_to_zero_terminal_snr(),
    "continuous": ContinuousVPSchedule.linear(),
    "truncated": TruncatedVPSchedule(VPSchedule.linear(100, 1e-3, 0.2), 3),  # alpha^2 + sigma^2 below 1
    "flow": FlowSchedule(),
    "edm": EDMSchedule(),
}
PAIRS = [
    (solver, name)
    for solver, family in FAMILIES.items()
    for name, schedule in SCHEDULES.items()
    if schedule.kind in family.spacings
]
every_pair = pytest.mark.parametrize(("solver", "schedule"), PAIRS)


# All step counts on one schedule of each kind, some on the others.
STEPS = {name: range(1, 31) if name in ("vp", "flow", "edm") else (1, 2, 3, 4, 13) for name in SCHEDULES}


def grids(solver: str, schedule: Schedule, steps: Iterable[int]) -> Iterator[Plan]:
    for spacing, chosen in SPACINGS.items():
        if not chosen.discrete or schedule.num_train_timesteps is not None:
            for num_steps in steps:
                yield make_plan(solver, schedule, num_steps, spacing=spacing, order=max(FAMILIES[solver].orders))


def nfe(plan: Plan) -> int:
    """Evaluations of the highest order: what docs/solvers.md says."""
    solver, n, from_noise = plan.solver, plan.num_steps, int(plan.start.alpha == 0)
    if solver == "pndm":
        return n + 3 * min(3, n - 1 - from_noise if n > 1 + from_noise else 0)
    if solver == "edm_heun":
        return 2 * n - 1 - (from_noise if n > 1 else 0)
    if solver == "dpm_solver":
        return 3 * n - 2 - 2 * (from_noise if n > 1 else 0)
    return n


@every_pair
def test_all_step_counts_end_exactly_at_clean_data(gaussian: Any, normal: Any, solver: str, schedule: str) -> None:
    levels = SCHEDULES[schedule]
    x = levels.prior_std * normal(0, 2, 4)
    with np.errstate(all="raise"):
        for plan in grids(solver, levels, STEPS[schedule]):
            end = plan.state_points[-1]
            assert (end.t, end.alpha, end.sigma) == (levels.clean_end, 1, 0)
            assert plan.consistency_error() < 1e-9
            assert plan.nfe == nfe(plan), plan.metadata
            if plan.num_steps in (1, 2, 3, 4, 13):
                assert integrate(plan, gaussian, x).isfinite().all(), plan.metadata


@every_pair
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_model_of_one_image_gives_that_image(
    normal: Any, solver: str, schedule: str, prediction_type: str
) -> None:
    levels, image = SCHEDULES[schedule], normal(6, 1, 5).expand(3, 5)

    def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        (point,) = points_at(levels, [float(t[0])])
        p, q = output_parts(prediction_type, point.alpha, point.sigma)
        return p * image + q * (x - point.alpha * image) / point.sigma

    model = wrap_model(perfect, prediction_type=prediction_type)
    x = levels.prior_std * normal(7, 3, 5)
    for order in FAMILIES[solver].orders:
        plan = make_plan(solver, levels, 7, order=order)
        if prediction_type == "epsilon" and plan.start.alpha == 0:
            with pytest.raises(ValueError, match="'epsilon' does not determine"):
                integrate(plan, model, x)
            continue
        # The model's time is float32: 6e-8 of it, at sigma 80 and in the last 1e-3 of a path.
        torch.testing.assert_close(integrate(plan, model, x), image, rtol=0, atol=2e-4)


def test_first_order_is_one_table() -> None:
    """DDIM, and each family at order 1 without extras, bit for bit."""
    schedule = SCHEDULES["truncated"]
    ddim = make_plan("ddim", schedule, 6).evaluations
    for solver, options in (
        ("euler", {}),
        ("ipndm", {"order": 1}),
        ("dpm_solver", {"order": 1}),
        ("deis", {"order": 1}),
    ):
        assert make_plan(solver, schedule, 6, spacing="trailing", **options).evaluations == ddim
    data = make_plan("dpm_solver++", schedule, 6, order=1).evaluations
    for solver, options in (
        ("unipc", {"corrector": False}),
        ("dpm_solver++", {"method": "singlestep"}),
        ("dpm_solver++", {"third_order": "official"}),
    ):
        assert make_plan(solver, schedule, 6, order=1, **options).evaluations == data
    assert make_plan("edm_heun", schedule, 6, s_churn=0.0, s_noise=2.0).evaluations == (
        make_plan("edm_heun", schedule, 6).evaluations
    )


@every_pair
def test_files_bring_back_the_plan(tmp_path: Any, solver: str, schedule: str) -> None:
    plan = make_plan(solver, SCHEDULES[schedule], 5)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("solver", FAMILIES)
def test_user_levels_and_partial_runs(gaussian: Any, normal: Any, solver: str) -> None:
    kind = "vp" if "vp" in FAMILIES[solver].spacings else "flow"
    schedule, x = SCHEDULES[kind], normal(0, 3, 4)
    times = [99, 70.5, 30.0, 9] if kind == "vp" else [0, 0.25, 0.5, 0.9]
    for plan in (
        make_plan(solver, schedule, timesteps=times),
        make_plan(solver, schedule, timesteps=times[:-1], end=times[-1]),
        make_plan(solver, schedule, sigmas=[9.0, 2.0, 0.5, 0.1]),
        make_plan(solver, schedule, sigmas=[9.0, 2.0, 0.5, 0.1, 0.0]),
    ):
        assert integrate(plan, gaussian, x).isfinite().all()
    assert plan.num_steps == 4
    levels = {round(point.sigma / point.alpha, 9) for point in (plan.state_points[i] for i in plan.trajectory_states)}
    assert levels == {0, 0.1, 0.5, 2, 9}
