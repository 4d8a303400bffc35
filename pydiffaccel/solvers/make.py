"""make_plan: a plan from a solver's name, a schedule and a number of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.adams_bashforth import ADAMS_BASHFORTH
from pydiffaccel.solvers.ddim import DDIM
from pydiffaccel.solvers.deis import DEIS
from pydiffaccel.solvers.dpm_solver import DPM_SOLVER
from pydiffaccel.solvers.dpm_solver_pp import DPM_SOLVER_PP
from pydiffaccel.solvers.euler import EULER
from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.heun import EDM_HEUN
from pydiffaccel.solvers.ipndm import IPNDM
from pydiffaccel.solvers.plan import Plan
from pydiffaccel.solvers.pndm import PNDM
from pydiffaccel.solvers.point import points_at
from pydiffaccel.solvers.spacing import SPACINGS, custom_sigmas, custom_times, default_spacing, spaced_times
from pydiffaccel.solvers.table import TableWriter
from pydiffaccel.solvers.unipc import UNIPC

__all__ = ["FAMILIES", "make_plan"]

_ALL = (DDIM, PNDM, IPNDM, DPM_SOLVER, DPM_SOLVER_PP, DEIS, UNIPC, EDM_HEUN, EULER, ADAMS_BASHFORTH)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

# A table that misses its noise levels by more than rounding is a mistake in the family that wrote it.
_CONSISTENT = 1e-9
# A table takes some kilobytes of memory for each step.
_MOST_STEPS = 100_000


def make_plan(
    solver: str,
    schedule: Any,
    num_steps: int | None = None,
    *,
    order: int | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    end: float | None = None,
    **options: Any,
) -> Plan:
    """The table of a solver, computed once in float64.

    Args:
        solver: a family: "ddim", "pndm", "ipndm", "dpm_solver", "dpm_solver++", "deis", "unipc", "edm_heun", "euler" or
            "adams_bashforth". docs/solvers.md has their orders, schedules, evaluations per step and options.
        schedule: a ``Schedule``, or an object that has one as ``.schedule`` (a forward process).
        num_steps: intervals of the time grid. May be left out with timesteps or sigmas.
        order: order of the method; by default the family's own.
        spacing: the time grid: "trailing", "leading", "linspace", "log_snr", "exponential", "karras", "quadratic" or
            "uniform"; see ``spaced_times``. The default depends on the family and the schedule.
        timesteps: the evaluation times themselves, from noisy to clean, instead of a spacing; real-valued.
        sigmas: the evaluation levels sigma / alpha, falling, instead of a spacing; a last 0 is the clean end.
        end: the time at which the run ends; by default the clean end, where the last state is the predicted data.
        options: options of the family and of the spacing.

    Raises:
        TypeError: an argument of the wrong type, or an option that neither the solver nor the spacing has.
        ValueError: unknown solver, order or spacing, a schedule that the solver cannot run on, or an invalid grid.
    """
    if solver not in FAMILIES:
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(FAMILIES)}")
    family = FAMILIES[solver]
    schedule = getattr(schedule, "schedule", schedule)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a Schedule or have one as .schedule, got {type(schedule).__name__}")
    if schedule.kind not in family.spacings:
        raise ValueError(f"{solver} runs on {' and '.join(family.spacings)} schedules, got {schedule.kind}")
    order = family.orders[0] if order is None else order
    if isinstance(order, bool) or not isinstance(order, int):
        raise TypeError(f"order must be an int, got {type(order).__name__}")
    if order not in family.orders:
        raise ValueError(f"{solver} has order {' or '.join(map(str, sorted(family.orders)))}, got {order}")
    given = [
        name
        for name, value in (("spacing", spacing), ("timesteps", timesteps), ("sigmas", sigmas))
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"give {' or '.join(given)}, not both")
    if not given:
        spacing = default_spacing(schedule, family.spacings[schedule.kind])
    if spacing is not None and spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    spacing_known = SPACINGS[spacing].options if spacing is not None else {}
    for name in options:
        if name not in family.options and name not in spacing_known:
            where = f", nor has spacing {spacing!r}" if spacing is not None else ""
            known = ", ".join([*family.options, *spacing_known]) or "none"
            raise TypeError(f"{solver} has no option {name!r}{where}; known: {known}")
    settings = {name: options.get(name, default) for name, default in family.options.items()}
    layout = {name: value for name, value in options.items() if name in spacing_known}

    if spacing is not None:
        times = spaced_times(schedule, _positive(num_steps), spacing, end, layout)
    else:
        custom = custom_times(schedule, timesteps, end) if timesteps is not None else None
        times = custom if custom is not None else custom_sigmas(schedule, sigmas or (), end)
        if num_steps is not None and num_steps != len(times) - 1:
            raise ValueError(f"num_steps is {num_steps}, but there are {len(times) - 1} {given[0]}")

    points = points_at(schedule, times)
    clean = [point.t for point in points[:-1] if point.sigma == 0]
    if clean:
        raise ValueError(f"the model would be evaluated at t = {clean[0]:g}, where there is no noise left to remove")
    table = family.build(TableWriter(schedule, points), order, settings)
    plan = Plan(
        solver=solver,
        schedule=schedule,
        num_steps=len(times) - 1,
        start=points[0],
        evaluations=table.evaluations,
        initial_updates=table.initial_updates,
        metadata_json=json.dumps(
            {
                "order": order,
                "spacing": spacing or "custom",
                "spacing_options": layout,
                "options": {name: _json_ready(value) for name, value in settings.items()},
            }
        ),
    )
    _check_evaluations(plan)
    error = plan.consistency_error()
    if table.consistent and error > _CONSISTENT:
        raise ValueError(
            f"the {solver} table misses its noise levels by {error:.3g}; is the grid too fine for float64?"
        )
    return plan


def _check_evaluations(plan: Plan) -> None:
    """Inner stages, unlike the grid, are made by the family."""
    schedule = plan.schedule
    if schedule.cleanest_time == schedule.clean_end:
        return
    direction = 1.0 if schedule.clean_end > schedule.noisy_end else -1.0
    for row in plan.evaluations:
        if (row.point.t - schedule.cleanest_time) * direction > 0:
            raise ValueError(
                f"the model would be evaluated at t = {row.point.t:g}, below the least noisy time that training sees,"
                f" {schedule.cleanest_time:g}; choose an end before it, or the clean end"
            )


def _json_ready(value: Any) -> Any:
    """Infinite bounds are no JSON numbers."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _positive(num_steps: int | None) -> int:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int):
        raise TypeError(f"num_steps must be an int, got {type(num_steps).__name__}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if num_steps > _MOST_STEPS:
        raise ValueError(f"num_steps must be at most {_MOST_STEPS}, got {num_steps}")
    return num_steps
