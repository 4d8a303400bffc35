"""Distilled ODE solvers (Kim et al., 2309.16421): one scalar per evaluation, fitted to a teacher with smaller steps.

The noise that step i of DDIM uses, eps_i, becomes ``eps_i + lambda_i (eps_i - eps_(i-1))``; at the first step there is
no earlier output, and x_T, which is almost pure noise, stands for it. Each lambda is the exact least-squares answer to
"which multiple of this correction brings the step closest to the teacher", so there are no gradients and no epochs:
one pass over some 100 samples, (C + 1) N evaluations of each. In the table only coefficients change, so the result is
a plan like any other, with the same number of evaluations.

With b_0 the step's own coefficient of eps_i, a unit lambda adds d = b_0 (eps_i - eps_(i-1)). (The authors' code stores
b_0 lambda, the factor of the bare difference.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.ops import solver_gram, solver_step
from pydiffaccel.schedule import VPSchedule
from pydiffaccel.solvers.denoiser import Denoiser
from pydiffaccel.solvers.integrate import as_state, integrate
from pydiffaccel.solvers.make import make_plan
from pydiffaccel.solvers.plan import Evaluation, Plan
from pydiffaccel.solvers.point import Point

__all__ = ["apply_lambdas", "distill_plan"]

_GRIDS = ("aligned", "official")
_PARAMETERS = ("lambda",)


def distill_plan(
    plan: Plan,
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    teacher_multiplier: int = 10,
    grid: str = "aligned",
    parameters: str = "lambda",
    batch_size: int | None = None,
    teacher: Plan | None = None,
    held_out: Tensor | None = None,
    progress: bool = False,
) -> Plan:
    """Fits the corrections of a DDIM plan to a teacher with more steps and returns the corrected plan.

    Args:
        plan: a deterministic DDIM plan.
        denoiser: the model, from ``wrap_model``.
        x_T: starting noise ``[B, *]``, the samples of the fit; 100 are enough for a scalar per step.
        teacher_multiplier: C, teacher steps per student step, at least 1; 1 fits the plan to itself (all lambdas 0).
        grid: "aligned" subdivides every student interval into C equal steps in time, though none shorter than one
            training index, so that both meet at the same noise levels. "official" pairs by step count as the authors'
            code does: the teacher is the same spacing with min(T, C N) steps, and student step i is compared with
            teacher step i C even where the spacing ("leading") puts them at different noise levels.
        parameters: what is fitted; "lambda" is one scalar per evaluation.
        batch_size: how many samples the model sees at once; by default all of x_T.
        teacher: a plan of one's own as the teacher, which must pass through all of the student's noise levels from the
            same start. Then teacher_multiplier and grid do not apply.
        held_out: other starting noise ``[B', *]``; the report then has the errors of both plans on it.
        progress: shows tqdm bars.

    Returns:
        The distilled plan. ``metadata["distillation"]`` reports, per step, the lambdas and the mean squared distance to
        the teacher without and with the step's own correction (``step_error_before``, ``step_error_after``; earlier
        steps are corrected in both), the evaluations spent per sample, and under ``held_out`` the errors of the base
        and of the distilled plan along their own trajectories.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a plan that is not plain deterministic DDIM, an unknown grid or parameters, teacher_multiplier or
            batch_size below 1, no samples, or a teacher that does not meet the student.
    """
    _check_plan(plan)
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser (see wrap_model), got {type(denoiser).__name__}")
    if grid not in _GRIDS:
        raise ValueError(f"unknown grid {grid!r}; known: {', '.join(_GRIDS)}")
    if parameters not in _PARAMETERS:
        raise ValueError(f"unknown parameters {parameters!r}; known: {', '.join(_PARAMETERS)}")
    _check_count(teacher_multiplier, "teacher_multiplier")
    if batch_size is not None:
        _check_count(batch_size, "batch_size")
        denoiser = _Chunked(denoiser, batch_size)
    start = as_state(x_T)
    if len(start) == 0:
        raise ValueError(f"the fit needs at least one sample, got x_T of shape {tuple(start.shape)}")

    if teacher is not None:
        grid, meetings = "custom", _meetings(plan, teacher)
    elif grid == "aligned":
        teacher, meetings = _aligned_teacher(plan, teacher_multiplier)
    else:
        teacher, meetings = _official_teacher(plan, teacher_multiplier)
    fit = _fit(plan, denoiser, start, _states(teacher, denoiser, start, meetings, progress))
    distilled = apply_lambdas(plan, fit.lambdas)

    report: dict[str, Any] = {
        "parameters": parameters,
        "grid": grid,
        "teacher": {"solver": teacher.solver, "num_steps": teacher.num_steps, "nfe": teacher.nfe},
        "num_samples": len(start),
        "evaluations_per_sample": teacher.nfe + plan.nfe,
        "lambdas": fit.lambdas,
        "step_error_before": fit.errors_before,
        "step_error_after": fit.errors_after,
    }
    if held_out is not None:
        other = as_state(held_out, "held_out")
        if other.shape[1:] != start.shape[1:] or len(other) == 0:
            raise ValueError(f"held_out must be samples like x_T's {tuple(start.shape)}, got {tuple(other.shape)}")
        targets = _states(teacher, denoiser, other, meetings, progress)
        every_step = list(range(1, plan.nfe + 1))
        report["held_out"] = {
            "num_samples": len(other),
            "error_base": _errors(_states(plan, denoiser, other, every_step, progress), targets),
            "error_distilled": _errors(_states(distilled, denoiser, other, every_step, progress), targets),
        }
    return distilled.with_metadata(distillation=report)


def apply_lambdas(plan: Plan, lambdas: Sequence[float]) -> Plan:
    """The DDIM plan with the given corrections ``[nfe]``; a zero leaves its row as it is, bit for bit.

    Raises:
        ValueError: not one lambda per evaluation, or a plan that is not plain deterministic DDIM.
    """
    _check_plan(plan)
    if len(lambdas) != plan.nfe:
        raise ValueError(f"a plan of {plan.nfe} evaluations takes as many lambdas, got {len(lambdas)}")
    rows = [_corrected(row, i, float(lambdas[i])) for i, row in enumerate(plan.evaluations)]
    return replace(plan, evaluations=tuple(rows))


def _corrected(row: Evaluation, index: int, scalar: float) -> Evaluation:
    if scalar == 0:
        return row
    update = row.updates[0]
    own = update.b[0]
    if index == 0:  # the base state is x_T, which stands for the earlier output
        changed = replace(update, a=update.a - own * scalar, b=(own * (1.0 + scalar),))
    else:
        changed = replace(update, b=(own * (1.0 + scalar), -own * scalar))
    return replace(row, updates=(changed,))


@dataclass(frozen=True)
class _Fit:
    lambdas: list[float]
    errors_before: list[float]
    errors_after: list[float]


@torch.inference_mode()
def _fit(plan: Plan, denoiser: Denoiser, x: Tensor, targets: Sequence[Tensor]) -> _Fit:
    fit = _Fit([], [], [])
    earlier = x  # for noise prediction x_T is the output before the first
    for index, row in enumerate(plan.evaluations):
        update = row.updates[0]
        output = denoiser(x, row.point, row.output_type)
        uncorrected = solver_step(x, [output], update.a, list(update.b))
        residual = targets[index] - uncorrected
        direction = solver_step(output, [earlier], update.b[0], [-update.b[0]])
        gram, rhs = solver_gram([direction], residual)
        length, product = float(gram[0, 0]), float(rhs[0])
        scalar = product / length if length > 0 else 0.0
        # The next state comes from the corrected table itself, so the fit sees the states that sampling will see.
        step = _corrected(row, index, scalar).updates[0]
        x = solver_step(x, [output, earlier][: len(step.b)], step.a, list(step.b))
        earlier = output
        fit.lambdas.append(scalar)
        fit.errors_before.append(_mean_square(residual))
        fit.errors_after.append(_mean_square(targets[index] - x))
    return fit


def _aligned_teacher(plan: Plan, multiplier: int) -> tuple[Plan, list[int]]:
    """A teacher with `multiplier` equal steps in time per student interval; and the step that ends each interval."""
    times = [point.t for point in plan.state_points]
    cut: list[float] = []
    meetings: list[int] = []
    for first, last in pairwise(times):
        # Between two training indices, and below index 0, there is nothing that the model was trained on.
        pieces = max(1, min(multiplier, int(abs(first - last) + 1e-9)))
        cut.extend(np.linspace(first, last, pieces + 1)[:-1].tolist())
        meetings.append(len(cut))
    return make_plan("ddim", plan.schedule, timesteps=cut, end=times[-1]), meetings


def _official_teacher(plan: Plan, multiplier: int) -> tuple[Plan, list[int]]:
    spacing = plan.metadata.get("spacing", "custom")
    if spacing == "custom":
        raise ValueError('grid="official" needs a plan with a named spacing, because the teacher has the same one')
    assert isinstance(plan.schedule, VPSchedule)
    num_steps = min(plan.schedule.num_train_timesteps, multiplier * plan.num_steps)
    teacher = make_plan("ddim", plan.schedule, num_steps, spacing=spacing, end=plan.state_points[-1].t)
    stride = num_steps // plan.num_steps
    return teacher, [*(step * stride for step in range(1, plan.num_steps)), num_steps]


def _meetings(plan: Plan, teacher: Plan) -> list[int]:
    if not isinstance(teacher, Plan):
        raise TypeError(f"teacher must be a Plan, got {type(teacher).__name__}")
    if teacher.schedule != plan.schedule or teacher.start != plan.start:
        raise ValueError(f"teacher must start where the student does, at t = {plan.start.t:g} of the same schedule")
    reached = {row.updates[-1].point.t: done for done, row in enumerate(teacher.evaluations, start=1)}
    missed = [point.t for point in plan.state_points[1:] if point.t not in reached]
    if missed or teacher.stochastic:
        reason = "adds noise" if teacher.stochastic else f"has no state at t = {missed[0]:g}"
        raise ValueError(f"teacher must pass through the student's noise levels without noise, but it {reason}")
    return [reached[point.t] for point in plan.state_points[1:]]


def _states(plan: Plan, denoiser: Denoiser, x: Tensor, after: Sequence[int], progress: bool) -> list[Tensor]:
    """The plan's states after the given numbers of evaluations."""
    wanted: dict[int, Tensor] = {}

    def keep(done: int, point: Point, state: Tensor) -> None:
        if done in after_set:
            wanted[done] = state

    after_set = set(after)
    integrate(plan, denoiser, x, callback=keep, progress=progress)
    return [wanted[done] for done in after]


def _errors(states: Sequence[Tensor], targets: Sequence[Tensor]) -> list[float]:
    return [_mean_square(target - state) for state, target in zip(states, targets, strict=True)]


def _mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


@dataclass(frozen=True)
class _Chunked(Denoiser):
    denoiser: Denoiser
    batch_size: int

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        chunks = [x[i : i + self.batch_size] for i in range(0, len(x), self.batch_size)]
        return torch.cat([self.denoiser(chunk, point, output_type) for chunk in chunks])


def _check_plan(plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
    if plan.solver != "ddim":
        raise ValueError(f"only ddim plans can be distilled, got {plan.solver}")
    if plan.stochastic:
        raise ValueError("only deterministic plans can be distilled, but this one adds noise (eta > 0)")
    plain = not plan.initial_updates and all(
        row.output_type == "epsilon"
        and len(row.updates) == 1
        and len(row.updates[0].b) == 1
        and row.updates[0].base == i
        for i, row in enumerate(plan.evaluations)
    )
    if not plain or "distillation" in plan.metadata:
        raise ValueError("this ddim plan is already corrected; distill the plan that make_plan returned")


def _check_count(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
