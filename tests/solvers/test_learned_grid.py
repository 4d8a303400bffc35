"""Learned time grids: the path is the best one, its prices are true, and it helps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from pydiffaccel.schedule import EDMSchedule, FlowSchedule, Schedule, VPSchedule
from pydiffaccel.solvers import distill_plan, integrate, load_plan, make_plan
from pydiffaccel.solvers.grid import best_path, candidates_of, step_costs, trajectory_gram
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.teacher import aligned_teacher
from pydiffaccel.solvers.walk import in_batches

VP = VPSchedule.linear()
SCHEDULES: dict[str, Schedule] = {"vp": VP, "flow": FlowSchedule(), "edm": EDMSchedule(20.0)}
# Every family's default order on every schedule, and its other orders on the first.
CASES = [
    pytest.param(name, order, kind, id=f"{name}-{order}-{kind}")
    for name, family in FAMILIES.items()
    for kind_number, kind in enumerate(family.spacings)
    for order in (family.orders if kind_number == 0 else family.orders[:1])
]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 7])
def test_the_best_path_is_the_best_of_all_paths(num_steps: int) -> None:
    costs = np.random.default_rng(num_steps).random((8, 8))
    paths = [[0, *inner, 7] for inner in itertools.combinations(range(1, 7), num_steps - 1)]
    price = [sum(costs[i, j] for i, j in itertools.pairwise(path)) for path in paths]
    assert best_path(costs, num_steps) == paths[int(np.argmin(price))]


def test_a_path_needs_places() -> None:
    with pytest.raises(ValueError, match="a path over 4 places has 1 to 3 steps, got 4"):
        best_path(np.zeros((4, 4)), 4)


@pytest.mark.parametrize(("solver", "kind"), [("ddim", "vp"), ("euler", "flow"), ("dpm_solver++", "vp")])
def test_prices_are_the_errors_of_real_steps(solver: str, kind: str, mixture: Any, normal: Any) -> None:
    schedule = SCHEDULES[kind]
    plan = make_plan(solver, schedule, 4, order=1)
    teacher = aligned_teacher(plan, 4).plan
    candidates = candidates_of(teacher)
    x = normal(0, 12, 8)
    costs = step_costs(plan, candidates, trajectory_gram(teacher, candidates, in_batches(mixture, x, 5))[0])
    states = integrate(teacher, mixture, x, return_trajectory=True)
    times = [point.t for point in candidates.points]
    for i, j in itertools.combinations(range(len(times)), 2):
        step = make_plan(solver, schedule, timesteps=[times[i]], end=times[j], order=1)
        error = float((integrate(step, mixture, states[i]) - states[j]).square().mean())
        assert costs[i, j] == pytest.approx(error, rel=1e-6, abs=1e-14)
    assert not np.isfinite(costs[np.tril_indices(len(times))]).any()


def test_a_multistep_price_has_predecessors_of_its_own_length(mixture: Any, normal: Any) -> None:
    plan = make_plan("dpm_solver++", VP, 4)
    teacher = aligned_teacher(plan, 4).plan
    candidates = candidates_of(teacher)
    x = normal(0, 12, 8)
    costs = step_costs(plan, candidates, trajectory_gram(teacher, candidates, in_batches(mixture, x))[0])
    states = integrate(teacher, mixture, x, return_trajectory=True)
    before, here, after = candidates.points[3], candidates.points[5], candidates.points[7]
    rows = make_plan("dpm_solver++", VP, timesteps=[before.t, here.t, after.t], end=-1.0).evaluations
    update = rows[1].updates[0]
    step = update.a * states[5] + update.b[0] * mixture(states[5], here, "sample")
    step += update.b[1] * mixture(states[3], before, "sample")
    assert len(update.b) == 2
    assert costs[5, 7] == pytest.approx(float((step - states[7]).square().mean()), rel=1e-6)


@pytest.mark.parametrize(("solver", "order", "kind"), CASES)
def test_learned_grid_is_never_worse_on_its_samples(
    solver: str, order: int, kind: str, mixture: Any, normal: Any
) -> None:
    plan = make_plan(solver, SCHEDULES[kind], 5, order=order)
    scale = plan.schedule.prior_std
    x, held_out = scale * normal(0, 50, 8), scale * normal(1, 50, 8)
    learned = distill_plan(
        plan, mixture, x, learn_grid=True, parameters="none", held_out=held_out, batch_size=20, teacher_multiplier=4
    )
    report = learned.metadata["distillation"]["learned_grid"]
    assert report["taken"] in report["error"]
    assert report["error"][report["taken"]] == min(report["error"].values()) <= report["error"]["given"]
    assert (learned.nfe, learned.num_steps, learned.start) == (plan.nfe, 5, plan.start)
    assert learned.state_points[-1] == plan.state_points[-1]
    assert [learned.state_points[state].t for state in learned.trajectory_states] == report["times"]
    assert learned.consistency_error() < 1e-9 * scale
    errors = learned.metadata["distillation"]["held_out"]
    assert len(errors["error_base"]) == (len(errors["error_distilled"]) if report["taken"] == "given" else 1)


def test_learned_grid_and_lambdas_help_on_other_seeds(mixture: Any, normal: Any, tmp_path: Any) -> None:
    plan = make_plan("ddim", VP, 10)
    x, held_out = normal(0, 100, 8), normal(1, 300, 8)
    fine = integrate(make_plan("ddim", VP, 1000), mixture, held_out)

    def error(tested: Any) -> float:
        return float((integrate(tested, mixture, held_out) - fine).square().mean())

    moved = distill_plan(plan, mixture, x, learn_grid=True, parameters="none")
    both = distill_plan(plan, mixture, x, learn_grid=True, held_out=held_out)
    assert error(moved) < 0.7 * error(plan)
    assert error(both) < 0.5 * error(moved)
    assert both.metadata["distillation"]["learned_grid"]["times"] == pytest.approx(
        moved.metadata["distillation"]["learned_grid"]["times"]
    )
    assert both.metadata["spacing"] == "custom"
    both.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == both


def test_cost_is_counted(mixture: Any, normal: Any, record: Any) -> None:
    recorder = record(mixture)
    distilled = distill_plan(make_plan("ddim", VP, 5), recorder, normal(0, 8, 8), learn_grid=True)
    report = distilled.metadata["distillation"]
    assert len(recorder.calls) == report["evaluations_per_sample"]


def test_batches_do_not_change_the_grid(mixture: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, 5)
    x = normal(0, 20, 8)
    times = [
        distill_plan(plan, mixture, x, learn_grid=True, parameters="none", batch_size=size).state_points
        for size in (None, 7)
    ]
    assert times[0] == times[1]


def test_plans_that_cannot_move(mixture: Any, normal: Any) -> None:
    from dataclasses import replace

    plan = replace(make_plan("ddim", VP, 3), solver="mine")
    with pytest.raises(ValueError, match=r"a grid can be learned for ddim, .* got 'mine'"):
        distill_plan(plan, mixture, normal(0, 4, 8), learn_grid=True)
    assert torch.isfinite(integrate(distill_plan(plan, mixture, normal(0, 4, 8)), mixture, normal(1, 2, 8))).all()
