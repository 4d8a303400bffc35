"""Distillation of every solver: what holds for any table."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.schedule import (
    ContinuousVPSchedule,
    EDMSchedule,
    FlowSchedule,
    Schedule,
    TruncatedVPSchedule,
    VPSchedule,
)
from pydiffaccel.solvers import Denoiser, Plan, Point, distill_plan, integrate, make_plan
from pydiffaccel.solvers.corrections import history_directions, lambda_directions, with_updates
from pydiffaccel.solvers.distill import apply_lambdas
from pydiffaccel.solvers.fit import fit
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.teacher import aligned_teacher
from pydiffaccel.solvers.walk import in_batches

SCHEDULES: dict[str, Schedule] = {"vp": VPSchedule.linear(), "flow": FlowSchedule(), "edm": EDMSchedule(20.0)}
# Where each step ends nearer to the teacher and the end still does not: docs/distillation.md.
GREEDY_LOSES = {("ipndm", 4, "edm"), ("adams_bashforth", 3, "flow")}
# Every family's default order on every schedule, and its other orders on the first.
CASES = [
    pytest.param(name, order, kind, id=f"{name}-{order}-{kind}")
    for name, family in FAMILIES.items()
    for kind_number, kind in enumerate(family.spacings)
    for order in (family.orders if kind_number == 0 else family.orders[:1])
]
every_solver = pytest.mark.parametrize(("solver", "order", "kind"), CASES)


def plan_of(solver: str, order: int, kind: str, num_steps: int) -> Plan:
    return make_plan(solver, SCHEDULES[kind], num_steps, order=order)


def start(plan: Plan, noise: Tensor) -> Tensor:
    return noise * plan.schedule.prior_std_at(plan.start.t)


def planted(plan: Plan) -> list[float]:
    """A lambda for every update that has a correction."""
    return [0.1 * math.cos(2 * place) if free else 0.0 for place, free in enumerate(lambda_directions(plan))]


@every_solver
def test_no_correction_is_the_base_bit_for_bit(solver: str, order: int, kind: str, mixture: Any, normal: Any) -> None:
    plan = plan_of(solver, order, kind, 6)
    x = start(plan, normal(0, 6, 8))
    assert apply_lambdas(plan, [0.0] * len(planted(plan))) is plan
    for parameters in ("lambda", "history"):
        held = distill_plan(plan, mixture, x, parameters=parameters, ridge=math.inf, teacher_multiplier=2)
        assert held.evaluations == plan.evaluations
        assert torch.equal(integrate(held, mixture, x), integrate(plan, mixture, x))
    near = distill_plan(plan, mixture, x, parameters="history", ridge=1e12, teacher_multiplier=2)
    torch.testing.assert_close(integrate(near, mixture, x), integrate(plan, mixture, x), rtol=0, atol=1e-9)


@every_solver
@pytest.mark.parametrize("parameters", ["lambda", "history"])
def test_a_teacher_like_the_student_changes_nothing(
    solver: str, order: int, kind: str, parameters: str, mixture: Any, normal: Any
) -> None:
    plan = plan_of(solver, order, kind, 6)
    for grid in ("aligned", "official"):
        distilled = distill_plan(
            plan, mixture, start(plan, normal(0, 6, 8)), teacher_multiplier=1, grid=grid, parameters=parameters
        )
        assert distilled.evaluations == plan.evaluations


@every_solver
def test_planted_lambdas_are_recovered(solver: str, order: int, kind: str, mixture: Any, normal: Any) -> None:
    plan = plan_of(solver, order, kind, 6)
    lambdas = planted(plan)
    assert sum(value != 0 for value in lambdas) >= 4
    teacher = apply_lambdas(plan, lambdas)
    x = start(plan, normal(0, 32, 8))
    report = distill_plan(plan, mixture, x, teacher=teacher).metadata["distillation"]
    assert report["lambdas"] == pytest.approx(lambdas, abs=1e-7)
    assert max(report["step_error_after"]) < 1e-14 * plan.schedule.prior_std**2
    # The history can make every lambda, too.
    report = distill_plan(plan, mixture, x, teacher=teacher, parameters="history", ridge=0).metadata["distillation"]
    assert max(report["step_error_after"]) < 1e-14 * plan.schedule.prior_std**2


@every_solver
@pytest.mark.parametrize("grid", ["aligned", "official"])
def test_no_step_gets_worse_and_history_is_the_best(
    solver: str, order: int, kind: str, grid: str, mixture: Any, normal: Any
) -> None:
    plan = plan_of(solver, order, kind, 6)
    x = start(plan, normal(0, 32, 8))
    first_changes = []
    for parameters in ("lambda", "history"):
        distilled = distill_plan(plan, mixture, x, grid=grid, parameters=parameters, ridge=0)
        report = distilled.metadata["distillation"]
        assert distilled.nfe == plan.nfe
        assert distilled.state_points == plan.state_points
        for before, after in zip(report["step_error_before"], report["step_error_after"], strict=True):
            assert after <= before * (1 + 1e-9) + 1e-20
        changed = [free != () for free in lambda_directions(plan)].index(True)
        if changed == 0:
            first_changes.append(report["step_error_after"][0])
    # From the same states (those before the first fitted update) more free factors leave less error.
    if first_changes:
        assert first_changes[1] <= first_changes[0] * (1 + 1e-9)


@every_solver
@pytest.mark.parametrize("parameters", ["lambda", "history"])
def test_what_is_left_is_orthogonal_to_every_direction(
    solver: str, order: int, kind: str, parameters: str, mixture: Any, normal: Any
) -> None:
    plan = plan_of(solver, order, kind, 6)
    batches = in_batches(mixture, start(plan, normal(0, 30, 8)), 20)
    free = lambda_directions(plan) if parameters == "lambda" else history_directions(plan, consistent=True)
    teacher = aligned_teacher(plan, 4)
    once = fit(plan, free, teacher, batches)
    # From the fitted table and along the same directions there is nothing left to gain.
    twice = fit(with_updates(plan, once.updates), free, teacher, batches)
    assert max(abs(amount) for amounts in once.amounts for amount in amounts) > 1e-3
    for first, second in zip(once.amounts, twice.amounts, strict=True):
        assert second == pytest.approx([0.0] * len(first), abs=1e-4 * (1 + max(map(abs, first), default=0.0)))
    assert twice.errors_after == pytest.approx(once.errors_after, rel=1e-6, abs=1e-20)


@pytest.mark.parametrize(
    "schedule",
    [
        VPSchedule.linear().rescaled_to_zero_terminal_snr(),
        ContinuousVPSchedule.linear(),
        TruncatedVPSchedule(VPSchedule.linear(), 200),
    ],
    ids=["zero terminal SNR", "continuous", "truncated"],
)
def test_other_vp_schedules(schedule: Schedule, mixture: Any, normal: Any) -> None:
    for solver in ("ddim", "dpm_solver++", "unipc", "dpm_solver"):
        plan = make_plan(solver, schedule, 5)
        x, held_out = start(plan, normal(0, 50, 8)), start(plan, normal(1, 100, 8))
        distilled = distill_plan(plan, mixture, x, held_out=held_out, learn_grid=True)
        cleanest = [row.point.t for row in distilled.evaluations][-1]
        assert cleanest >= schedule.cleanest_time
        errors = distilled.metadata["distillation"]["held_out"]
        assert errors["error_distilled"][-1] < errors["error_base"][-1]


@every_solver
def test_consistent_histories_keep_a_single_point(
    solver: str, order: int, kind: str, mixture: Any, normal: Any
) -> None:
    plan = plan_of(solver, order, kind, 8)
    x = start(plan, normal(0, 32, 8))
    kept = distill_plan(plan, mixture, x, parameters="history", consistent=True, ridge=0)
    free = distill_plan(plan, mixture, x, parameters="history", ridge=0)
    assert kept.consistency_error() < 1e-9 * plan.schedule.prior_std < free.consistency_error()
    assert kept.evaluations != plan.evaluations
    assert sum(map(len, history_directions(plan, consistent=True))) < sum(
        map(len, history_directions(plan, consistent=False))
    )


@every_solver
@pytest.mark.parametrize("parameters", ["lambda", "history"])
def test_lambdas_hold_on_other_seeds(
    solver: str, order: int, kind: str, parameters: str, mixture: Any, normal: Any
) -> None:
    plan = plan_of(solver, order, kind, 5)
    x, held_out = start(plan, normal(0, 100, 8)), start(plan, normal(1, 200, 8))
    # Clusters that overlap: no sample is near a watershed, so errors are those of the steps.
    smooth = type(mixture)(0.5 * mixture.centres, 0.5)
    report = distill_plan(plan, smooth, x, held_out=held_out, parameters=parameters).metadata["distillation"]
    if parameters == "history" or (solver, order, kind) not in GREEDY_LOSES:
        assert report["held_out"]["error_distilled"][-1] < report["held_out"]["error_base"][-1]
    assert report["held_out"]["error_distilled"][-1] < 2 * report["step_error_after"][-1]


@pytest.mark.parametrize("order", [2, 3])
def test_a_better_teacher_for_inner_stages(order: int, mixture: Any, normal: Any) -> None:
    plan = plan_of("dpm_solver", order, "vp", 10)
    smooth = type(mixture)(0.5 * mixture.centres, 0.5)
    x, held_out = normal(0, 100, 8), normal(1, 200, 8)
    fine = integrate(make_plan("dpm_solver++", SCHEDULES["vp"], 500), smooth, held_out)
    errors = {}
    for teacher in (None, "dpm_solver++"):
        distilled = distill_plan(plan, smooth, x, teacher_solver=teacher)
        assert distilled.metadata["distillation"]["teacher"]["solver"] == (teacher or "ddim")
        errors[teacher] = float((integrate(distilled, smooth, held_out) - fine).square().mean())
    assert errors["dpm_solver++"] < 0.2 * errors[None]


@every_solver
def test_batch_size_does_not_change_the_fit(solver: str, order: int, kind: str, mixture: Any, normal: Any) -> None:
    plan = plan_of(solver, order, kind, 4)
    x, held_out = start(plan, normal(0, 10, 8)), start(plan, normal(1, 7, 8))
    for parameters in ("lambda", "history"):
        reports = [
            distill_plan(
                plan, mixture, x, parameters=parameters, batch_size=size, held_out=held_out, teacher_multiplier=3
            ).metadata["distillation"]
            for size in (None, 3)
        ]
        whole, parts = reports
        assert parts["step_error_after"] == pytest.approx(whole["step_error_after"], rel=1e-6, abs=1e-20)
        for key in ("error_base", "error_distilled"):
            assert parts["held_out"][key] == pytest.approx(whole["held_out"][key], rel=1e-6)


@dataclass
class CountAlive(Denoiser):
    """Counts how many of its inputs and outputs are alive at once, at most."""

    inner: Denoiser
    alive: set[int] = field(default_factory=set)
    most: int = 0
    made: int = 0

    def _watch(self, x: Tensor) -> None:
        self.made += 1
        self.alive.add(self.made)
        weakref.finalize(x, self.alive.discard, self.made)
        self.most = max(self.most, len(self.alive))

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        output = self.inner(x, point, output_type)
        self._watch(x)
        self._watch(output)
        return output


@every_solver
@pytest.mark.parametrize("parameters", ["lambda", "history"])
def test_memory_does_not_grow_with_the_steps(
    solver: str, order: int, kind: str, parameters: str, mixture: Any, normal: Any
) -> None:
    peaks = []
    for num_steps, multiplier in ((8, 4), (16, 8)):
        plan = plan_of(solver, order, kind, num_steps)
        counter = CountAlive(mixture)
        x = start(plan, normal(0, 4, 8))
        distill_plan(plan, counter, x, parameters=parameters, teacher_multiplier=multiplier, batch_size=2)
        peaks.append((counter.most, counter.made))
    assert peaks[1][1] > 2.5 * peaks[0][1]
    assert peaks[1][0] <= peaks[0][0] <= 40
