"""Distilled ODE solvers (Kim et al., 2309.16421): a solver's coefficients fitted to a teacher with smaller steps.

The noise that step i of DDIM uses, eps_i, becomes ``eps_i + lambda_i (eps_i - eps_(i-1))``; at the first step there is
no earlier output, and x_T, which is almost pure noise, stands for it. Each lambda is the exact least-squares answer to
"which multiple of this correction brings the step closest to the teacher", so there are no gradients and no epochs:
one pass over some 100 samples, (C + 1) N evaluations of each. In the table only coefficients change, so the result is
a plan like any other, with the same number of evaluations. What the correction is for other solvers is read off their
tables (``corrections``). ``parameters="history"`` frees all factors of a step's outputs, not one combination of them.

A unit lambda adds d = b_0 (eps_i - eps_(i-1)), with b_0 the step's own coefficient of eps_i. (The authors' code stores
b_0 lambda, the factor of the bare difference.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pydiffaccel.solvers.corrections import (
    Direction,
    changed,
    history_directions,
    lambda_directions,
    with_updates,
)
from pydiffaccel.solvers.denoiser import Denoiser
from pydiffaccel.solvers.fit import Fit, compare, fit
from pydiffaccel.solvers.grid import learned_grid
from pydiffaccel.solvers.integrate import as_state
from pydiffaccel.solvers.plan import Plan
from pydiffaccel.solvers.teacher import Teacher, aligned_teacher, custom_teacher, official_teacher
from pydiffaccel.solvers.walk import in_batches

__all__ = ["GRIDS", "PARAMETERS", "apply_lambdas", "distill_plan"]

GRIDS = ("aligned", "official")
PARAMETERS = ("lambda", "history", "none")

# Weight of the base table where the caller names none. Lambda is the plain least squares of the paper.
_RIDGES = {"lambda": 0.0, "history": 1e-4, "none": 0.0}


def distill_plan(
    plan: Plan,
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    teacher_multiplier: int = 10,
    grid: str = "aligned",
    parameters: str = "lambda",
    ridge: float | None = None,
    consistent: bool = False,
    learn_grid: bool = False,
    batch_size: int | None = None,
    teacher: Plan | None = None,
    teacher_solver: str | None = None,
    held_out: Tensor | None = None,
    held_out_denoiser: Denoiser | None = None,
    progress: bool = False,
) -> Plan:
    """Fits the coefficients of a plan to a teacher with more steps and returns the corrected plan.

    Args:
        plan: a plan without noise, of any solver, on any schedule.
        denoiser: the model, from ``wrap_model``. Where it holds a condition of each sample, the rows are those of x_T.
        x_T: starting noise ``[B, *]``, the samples of the fit; 100 are enough for a scalar per step. Teacher and
            student run side by side, so the memory is a few times that of x_T, however many steps they have.
        teacher_multiplier: C, teacher steps per student step, at least 1; 1 fits the plan to itself: nothing changes.
        grid: "aligned" subdivides every student interval into C equal steps in time (EDM: in sigma^(1/7)), though none
            shorter than one training index, so that both meet at the same noise levels. The teacher is the same
            solver; for one with inner stages it is of first order and passes through the stages' levels as well.
            "official" pairs by step count as the authors' code does: the teacher is the same spacing with min(T, C N)
            steps, and student step i is compared with teacher step i C even where the spacing ("leading") puts them at
            different noise levels.
        parameters: what is fitted: "lambda", one scalar per update; "history", all factors of the outputs that the
            update or its correction uses; "none", nothing (with learn_grid).
        ridge: weight of staying at the base coefficients, relative to each column's squared length: 0 is plain least
            squares and infinity the base plan, bit for bit. By default 0 for "lambda" and 1e-4 for "history".
        consistent: with "history", only changes that keep the plan exact for a model of a single data point.
        learn_grid: first moves the noise levels, by dynamic programming on the teacher's trajectories
            (``learned_grid``), and fits the coefficients on the new ones. Needs grid="aligned".
        batch_size: how many samples are computed at once; by default all of x_T.
        teacher: a plan of one's own as the teacher, which must pass through all of the student's noise levels from the
            same start. Then teacher_multiplier and grid do not apply.
        teacher_solver: another solver than the student's own for the teacher, as for ``make_plan``. A student of high
            order with inner stages may be nearer to the solution than its first-order teacher; "dpm_solver++" is then
            a better one.
        held_out: other starting noise ``[B', *]``; the report then has the errors of both plans on it.
        held_out_denoiser: the model with the conditions of held_out; by default denoiser itself.
        progress: shows tqdm bars.

    Returns:
        The distilled plan. ``metadata["distillation"]`` reports, for each of ``plan.updates()``, the ``lambdas`` (or
        the ``changes`` of the history's factors), the mean squared distance to the teacher without and with the
        update's own correction (``step_error_before``, ``step_error_after``; earlier updates are corrected in both),
        the evaluations spent per sample, and under ``held_out`` the errors of the base and of the distilled plan along
        their own trajectories (with a learned grid, where the base has other levels, at its end only).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a plan that adds noise or is distilled already, an unknown grid or parameters, teacher_multiplier or
            batch_size below 1, a negative ridge, no samples, options that exclude each other, or a teacher that does
            not meet the student.
    """
    _check_plan(plan)
    _check_denoiser(denoiser, plan, "denoiser")
    if held_out_denoiser is not None:
        _check_denoiser(held_out_denoiser, plan, "held_out_denoiser")
        if held_out is None:
            raise ValueError("held_out_denoiser needs held_out, the noise it is for")
    if grid not in GRIDS:
        raise ValueError(f"unknown grid {grid!r}; known: {', '.join(GRIDS)}")
    if parameters not in PARAMETERS:
        raise ValueError(f"unknown parameters {parameters!r}; known: {', '.join(PARAMETERS)}")
    _check_count(teacher_multiplier, "teacher_multiplier")
    if batch_size is not None:
        _check_count(batch_size, "batch_size")
    ridge = _checked_ridge(_RIDGES[parameters] if ridge is None else ridge)
    if learn_grid and (teacher is not None or grid != "aligned"):
        raise ValueError('learn_grid needs grid="aligned" and no teacher of one\'s own, because the levels move')
    if teacher is not None and teacher_solver is not None:
        raise ValueError(f"give teacher or teacher_solver, not both, got teacher_solver {teacher_solver!r}")
    start = as_state(x_T)
    if len(start) == 0:
        raise ValueError(f"the fit needs at least one sample, got x_T of shape {tuple(start.shape)}")
    other = None if held_out is None else as_state(held_out, "held_out")
    if other is not None and (other.shape[1:] != start.shape[1:] or len(other) == 0):
        raise ValueError(f"held_out must be samples like x_T's {tuple(start.shape)}, got {tuple(other.shape)}")

    batches = in_batches(denoiser, start, batch_size)
    base, grid_report = plan, None
    if learn_grid:
        plan, grid_report = learned_grid(base, batches, teacher_multiplier, teacher_solver)
    guide = _teacher(plan, grid, teacher_multiplier, teacher, teacher_solver)
    found = fit(plan, _directions(plan, parameters, consistent), guide, batches, ridge=ridge, progress=progress)
    distilled = with_updates(plan, found.updates)

    report: dict[str, Any] = {
        "parameters": parameters,
        "ridge": "infinity" if math.isinf(ridge) else ridge,
        "grid": "custom" if teacher is not None else grid,
        "teacher": {"solver": guide.plan.solver, "num_steps": guide.plan.num_steps, "nfe": guide.plan.nfe},
        "num_samples": len(start),
        "evaluations_per_sample": guide.plan.nfe + plan.nfe,
        **_amounts(found, parameters, consistent),
        "step_error_before": found.errors_before,
        "step_error_after": found.errors_after,
    }
    if grid_report is not None:
        report["learned_grid"] = grid_report
        report["evaluations_per_sample"] += grid_report["evaluations_per_sample"]
    if other is not None:
        distilled_errors, base_errors = compare(
            [distilled, base], guide, in_batches(held_out_denoiser or denoiser, other, batch_size)
        )
        report["held_out"] = {
            "num_samples": len(other),
            "error_base": base_errors,
            "error_distilled": distilled_errors,
        }
    return distilled.with_metadata(distillation=report)


def apply_lambdas(plan: Plan, lambdas: Sequence[float]) -> Plan:
    """The plan with the given corrections, one for each of ``plan.updates()``.

    A zero leaves its update as it is, bit for bit.

    Raises:
        ValueError: not one lambda per update, a lambda for an update that has no correction, or a plan that is
            distilled already or adds noise.
    """
    _check_plan(plan)
    directions = lambda_directions(plan)
    if len(lambdas) != len(directions):
        raise ValueError(f"a plan of {len(directions)} updates takes as many lambdas, got {len(lambdas)}")
    updates = []
    for place, ((_, update), free) in enumerate(zip(plan.updates(), directions, strict=True)):
        scalar = float(lambdas[place])
        if scalar != 0 and not free:
            raise ValueError(f"update {place} of this {plan.solver} plan has no correction, got lambda {scalar:g}")
        updates.append(changed(update, free, [scalar] * len(free)))
    if updates == [update for _, update in plan.updates()]:
        return plan
    return with_updates(plan, updates).with_metadata(lambdas=[float(scalar) for scalar in lambdas])


def _directions(plan: Plan, parameters: str, consistent: bool) -> Sequence[Sequence[Direction]]:
    if parameters == "lambda":
        return lambda_directions(plan)
    if parameters == "history":
        return history_directions(plan, consistent=consistent)
    return [() for _ in plan.updates()]


def _teacher(plan: Plan, grid: str, multiplier: int, own: Plan | None, solver: str | None) -> Teacher:
    if own is not None:
        return custom_teacher(plan, own)
    make = aligned_teacher if grid == "aligned" else official_teacher
    return make(plan, multiplier, solver)


def _amounts(found: Fit, parameters: str, consistent: bool) -> dict[str, Any]:
    if parameters == "lambda":
        return {"lambdas": [amounts[0] if amounts else 0.0 for amounts in found.amounts]}
    return {"consistent": consistent, "changes": found.amounts} if parameters == "history" else {}


def _check_plan(plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
    if plan.stochastic:
        raise ValueError(f"only deterministic plans can be distilled, but this {plan.solver} plan adds noise")
    if "distillation" in plan.metadata or "lambdas" in plan.metadata:
        raise ValueError(f"this {plan.solver} plan is already corrected; distill the plan that make_plan returned")


def _check_denoiser(denoiser: Denoiser, plan: Plan, name: str) -> None:
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"{name} must be a Denoiser (see wrap_model), got {type(denoiser).__name__}")
    if denoiser.schedule is not None and denoiser.schedule != plan.schedule:
        raise ValueError(f"the plan is for {plan.schedule!r}, but the model was trained on {denoiser.schedule!r}")


def _checked_ridge(ridge: float) -> float:
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)):
        raise TypeError(f"ridge must be a number, got {type(ridge).__name__}")
    if not ridge >= 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    return float(ridge)


def _check_count(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
