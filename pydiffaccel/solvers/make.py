"""make_plan: a plan from a solver's name, a schedule and a number of steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.ddim import DDIM
from pydiffaccel.solvers.dpm_solver import DPM_SOLVER_PP
from pydiffaccel.solvers.euler import EULER
from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.plan import Plan
from pydiffaccel.solvers.point import points_at
from pydiffaccel.solvers.spacing import custom_times, default_spacing, spaced_times

__all__ = ["FAMILIES", "make_plan"]

FAMILIES: dict[str, Family] = {family.name: family for family in (DDIM, DPM_SOLVER_PP, EULER)}

# A table that misses its noise levels by more than rounding is a mistake in the family that wrote it.
_CONSISTENT = 1e-9


def make_plan(
    solver: str,
    schedule: Any,
    num_steps: int | None = None,
    *,
    order: int | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    end: float | None = None,
    **options: Any,
) -> Plan:
    """The table of a solver, computed once in float64.

    Args:
        solver: "ddim" (VP; option eta, default 0), "dpm_solver++" (VP and flow; order 2, the multistep 2M, or 1; option
            lower_order_final, by default True below 15 steps) or "euler" (flow matching).
        schedule: a ``Schedule``, or an object that has one as ``.schedule`` (a forward process).
        num_steps: intervals of the time grid. May be left out with timesteps.
        order: order of the method; by default the highest in this family.
        spacing: the time grid: "trailing" (default of ddim on training indices), "leading", "linspace", "log_snr"
            (default of dpm_solver++ on VP, whose step it makes constant) or "uniform" (default on flow, and of ddim on
            continuous time); see ``spaced_times``.
        timesteps: the evaluation times themselves, from noisy to clean, instead of a spacing; real-valued.
        end: the time at which the run ends; by default the clean end, where the last state is the predicted data.

    Raises:
        TypeError: an argument of the wrong type, or an option that the solver does not have.
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
    if order not in family.orders:
        raise ValueError(f"{solver} has order {' or '.join(map(str, sorted(family.orders)))}, got {order}")
    unknown = sorted(set(options) - set(family.options))
    if unknown:
        raise TypeError(f"{solver} has no option {unknown[0]!r}; it has: {', '.join(family.options) or 'none'}")
    settings = {**family.options, **options}

    if timesteps is not None:
        if spacing is not None:
            raise ValueError(f"give spacing or timesteps, not both, got spacing {spacing!r}")
        times = custom_times(schedule, timesteps, end)
        if num_steps is not None and num_steps != len(times) - 1:
            raise ValueError(f"num_steps is {num_steps}, but there are {len(times) - 1} timesteps")
        spacing = "custom"
    else:
        spacing = default_spacing(schedule, family.spacings[schedule.kind]) if spacing is None else spacing
        times = spaced_times(schedule, _positive(num_steps), spacing, end)

    points = points_at(schedule, times)
    clean = [point.t for point in points[:-1] if point.sigma == 0]
    if clean:
        raise ValueError(f"the model would be evaluated at t = {clean[0]:g}, where there is no noise left to remove")
    plan = Plan(
        solver=solver,
        schedule=schedule,
        num_steps=len(times) - 1,
        start=points[0],
        evaluations=family.build(points, order, settings),
        metadata_json=json.dumps({"order": order, "spacing": spacing, "options": settings}),
    )
    error = plan.consistency_error()
    if error > _CONSISTENT:
        raise ValueError(
            f"the {solver} table misses its noise levels by {error:.3g}; is the grid too fine for float64?"
        )
    return plan


def _positive(num_steps: int | None) -> int:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int):
        raise TypeError(f"num_steps must be an int, got {type(num_steps).__name__}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return num_steps
