"""Plans that start in their middle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pydiffaccel.schedule import EDMSchedule, FlowSchedule, VPSchedule
from pydiffaccel.solvers import Evaluation, Plan, Update, integrate, make_plan
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.point import points_at
from pydiffaccel.solvers.tail import step_starts, tail

VP, FLOW, EDM = VPSchedule.linear(), FlowSchedule(), EDMSchedule()
SCHEDULES = {"vp": VP, "flow": FLOW, "edm": EDM}
EVERY = [(name, kind) for name, family in FAMILIES.items() for kind in family.spacings]


@pytest.mark.parametrize(("solver", "kind"), EVERY)
def test_the_whole_plan_is_its_own_tail(solver: str, kind: str) -> None:
    plan = make_plan(solver, SCHEDULES[kind], 5)
    assert tail(plan, 0) is plan


@pytest.mark.parametrize(("solver", "kind"), EVERY)
def test_every_step_can_be_the_first(solver: str, kind: str) -> None:
    plan = make_plan(solver, SCHEDULES[kind], 6)
    starts = step_starts(plan)
    assert len(starts) >= plan.num_steps / 3  # blocks of DPM-Solver take several points of the grid
    for first in starts:
        rest = tail(plan, first)
        assert rest.nfe == plan.nfe - first
        assert rest.start == plan.evaluations[first].point
        assert rest.state_points[-1] == plan.state_points[-1]
        assert rest.consistency_error() < 1e-9
        assert rest.trajectory_states[0] == 0


@pytest.mark.parametrize(("solver", "kind"), EVERY)
def test_a_tail_follows_the_exact_trajectory(gaussian: Any, normal: Any, solver: str, kind: str) -> None:
    """From an exact state in the middle: close to the exact end, and closer with more steps."""
    errors = []
    for steps in (24, 96):
        plan = make_plan(solver, SCHEDULES[kind], steps)
        starts = step_starts(plan)
        first = starts[len(starts) // 2]
        rest, end = tail(plan, first), plan.state_points[-1]
        x = normal(0, 16, 4) * rest.start.sigma + rest.start.alpha * gaussian.mean
        result = integrate(rest, gaussian, x)
        errors.append(float((result - gaussian.exact(x, rest.start, end)).abs().max()))
    assert errors[1] < 0.05
    assert errors[1] < 0.6 * errors[0] or errors[0] < 1e-6


@pytest.mark.parametrize(("solver", "kind"), EVERY)
def test_starts_are_where_the_first_output_is_used(solver: str, kind: str) -> None:
    plan = make_plan(solver, SCHEDULES[kind], 6)
    expected = []
    for first in range(plan.nfe):
        try:
            row = tail(plan, first).evaluations[0]
        except ValueError:
            continue
        if any(update.b and update.b[0] for update in row.updates):
            expected.append(first)
    assert step_starts(plan) == expected


def test_one_step_methods_lose_nothing(normal: Any, mixture: Any) -> None:
    for plan in (make_plan("ddim", VP, 8), make_plan("dpm_solver", VP, 4), make_plan("edm_heun", VP, 4)):
        states = integrate(plan, mixture, normal(0, 3, 8), return_trajectory=True)
        middle = states[2]
        first = step_starts(plan)[2]
        assert torch.equal(integrate(tail(plan, first), mixture, middle), states[-1])


def test_multistep_starts_again_in_first_order() -> None:
    plan = make_plan("dpm_solver++", VP, 8)
    rest = tail(plan, 3)
    update, before = rest.evaluations[0].updates[0], plan.evaluations[3].updates[0]
    assert len(before.b) == 2
    assert update.b == (pytest.approx(sum(before.b)),)
    assert rest.evaluations[1].updates[0].b == plan.evaluations[4].updates[0].b


def test_a_corrector_of_the_start_is_left_out() -> None:
    plan = make_plan("unipc", VP, 6)
    assert [len(row.updates) for row in plan.evaluations] == [1, 2, 2, 2, 2, 2]
    rest = tail(plan, 2)
    assert [len(row.updates) for row in rest.evaluations] == [1, 2, 2, 2]
    assert rest.evaluations[0].updates[0].base == 0


def test_an_evaluation_for_a_corrector_alone_does_nothing(normal: Any, mixture: Any) -> None:
    """As where a pipeline counts steps and the plan evaluations."""
    for plan in (make_plan("edm_heun", VP, 4), make_plan("pndm", VP, 6, runge_kutta=False)):
        assert 1 not in step_starts(plan)
        assert 2 in step_starts(plan)
        x = normal(0, 3, 8)
        late, early = integrate(tail(plan, 2), mixture, x), integrate(tail(plan, 1), mixture, x)
        if plan.solver == "edm_heun":
            assert torch.equal(early, late)
        assert (early - late).abs().max() < 0.2


def test_noise_before_the_first_evaluation_is_left_out() -> None:
    plan = make_plan("edm_heun", EDM, 5, s_churn=10.0, s_tmax=50.0)
    rest = tail(plan, step_starts(plan)[1])
    assert plan.stochastic
    assert rest.stochastic
    assert not rest.initial_updates
    assert rest.start == plan.evaluations[2].point


def test_places_where_no_run_can_start() -> None:
    plan = make_plan("dpm_solver", VP, 4, order=2)
    assert step_starts(plan) == [0, 2, 4, 6]
    with pytest.raises(ValueError, match=r"plan cannot start at evaluation 1 \(t = .*\), inside a step"):
        tail(plan, 1)
    for first in (-1, plan.nfe):
        with pytest.raises(ValueError, match=rf"first must be an evaluation of the plan, 0 .. 6, got {first}"):
            tail(plan, first)
    with pytest.raises(TypeError, match="first must be an int, got float"):
        tail(plan, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        tail("ddim", 0)  # type: ignore[arg-type]
    points = points_at(VP, [999.0, 500.0, -1.0])
    rows = (
        Evaluation(points[0], "v_prediction", (Update(points[1], base=0, a=1.0, b=(1.0,)),)),
        Evaluation(points[1], "v_prediction", (Update(points[2], base=1, a=1.0, b=(1.0, 0.5)),)),
    )
    with pytest.raises(ValueError, match="outputs of type v_prediction cannot stand for each other"):
        tail(Plan("v", VP, 2, points[0], rows), 1)
