"""The finer solver that a distilled one is fitted to, and where the two meet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.make import FAMILIES, make_plan
from pydiffaccel.solvers.plan import Plan

__all__ = [
    "Teacher",
    "aligned_teacher",
    "custom_teacher",
    "official_teacher",
    "same_solver",
    "settings_of",
    "subdivided",
]

# Families that any student may have as its teacher: first order, one evaluation per step.
_FIRST_ORDER = ("ddim", "euler")
# EDM grids are fine where the noise is small: steps of equal size in sigma^(1/7) (2206.00364, equation 5).
_EDM_RHO = 7.0


@dataclass(frozen=True)
class Teacher:
    """A teacher's plan and, for each of the student's updates, the teacher's state that it should have made.

    Attributes:
        plan: the teacher.
        meetings: for each of the student's updates the number of updates that the teacher has done there; none falls.
    """

    plan: Plan
    meetings: tuple[int, ...]

    def __post_init__(self) -> None:
        back = [(first, last) for first, last in pairwise(self.meetings) if last < first]
        if back:
            raise ValueError("the student's updates must run from noisy to clean, but one goes back to more noise")


def aligned_teacher(student: Plan, multiplier: int, solver: str | None = None) -> Teacher:
    """The same solver (or another one) with every interval between two levels of the student in `multiplier` steps.

    A student with inner stages has a first-order teacher, which passes through the stages' levels as well: for
    DPM-Solver-k that is DDIM with multiplier x NFE steps (2309.16421). A multiplier of 1 is the student itself.
    """
    if multiplier == 1 and solver is None:
        return _paired(student)
    levels = _levels(student)
    cut: list[float] = []
    for first, last in pairwise(levels):
        cut.extend(subdivided(student.schedule, first, last, multiplier)[:-1])
    solver = solver or _teacher_solver(student)
    if solver == student.solver:
        plan = same_solver(student, timesteps=cut, end=levels[-1])
    else:
        plan = make_plan(solver, student.schedule, timesteps=cut, end=levels[-1])
    return custom_teacher(student, plan)


def official_teacher(student: Plan, multiplier: int, solver: str | None = None) -> Teacher:
    """The same spacing with more steps, at most the training's, paired by step count as in the authors' code.

    Raises:
        ValueError: the student has a grid of its own, so there is no spacing to share.
    """
    spacing = student.metadata.get("spacing", "custom")
    if spacing == "custom":
        raise ValueError('grid="official" needs a plan with a named spacing, because the teacher has the same one')
    if multiplier == 1 and solver is None:
        return _paired(student)
    solver = solver or _teacher_solver(student)
    places = _places(student)
    stages = round(1 / min((place % 1 for place in places if place % 1), default=1.0))
    num_steps = multiplier * student.num_steps * (1 if solver == student.solver else stages)
    if student.schedule.num_train_timesteps is not None:
        num_steps = min(student.schedule.num_train_timesteps, num_steps)
    layout = {"spacing": spacing, "end": student.state_points[-1].t, **student.metadata.get("spacing_options", {})}
    if solver == student.solver:
        plan = same_solver(student, num_steps=num_steps, **layout)
    else:
        plan = make_plan(solver, student.schedule, num_steps, **layout)
    stride = num_steps // student.num_steps
    steps = [num_steps if place == student.num_steps else round(place * stride) for place in places]
    trajectory = plan.trajectory_states
    return Teacher(plan, tuple(trajectory[min(step, len(trajectory) - 1)] for step in steps[1:]))


def custom_teacher(student: Plan, plan: Plan) -> Teacher:
    """Any plan without noise that passes through all of the student's levels from the same start.

    A table over the same levels as the student's is met update by update, inner stages and predictors too.

    Raises:
        TypeError: no plan.
        ValueError: the two do not meet, or the teacher adds noise.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"teacher must be a Plan, got {type(plan).__name__}")
    if plan.schedule != student.schedule or plan.start != student.start:
        raise ValueError(f"teacher must start where the student does, at t = {student.start.t:g} of the same schedule")
    if plan.state_points == student.state_points and not plan.stochastic:
        return _paired(plan)
    trajectory = set(plan.trajectory_states)
    reached = {point.t: state for state, point in enumerate(plan.state_points) if state in trajectory}
    missed = [point.t for point in student.state_points[1:] if point.t not in reached]
    if missed or plan.stochastic:
        reason = "adds noise" if plan.stochastic else f"has no state at t = {missed[0]:g}"
        raise ValueError(f"teacher must pass through the student's noise levels without noise, but it {reason}")
    return Teacher(plan, tuple(reached[point.t] for point in student.state_points[1:]))


def subdivided(schedule: Schedule, first: float, last: float, pieces: int) -> list[float]:
    """Times from first to last, both included, in at most that many steps: equal in time, on EDM in sigma^(1/7).

    None but the last is cleaner than what the model was trained on.
    """
    if schedule.num_train_timesteps is not None:
        # Between two training indices there is nothing that the model was trained on.
        pieces = max(1, min(pieces, int(abs(first - last) + 1e-9)))
    times = [float(t) for t in np.linspace(first, last, pieces + 1)]
    if schedule.kind == "edm":
        times = [float(t) for t in np.linspace(first ** (1 / _EDM_RHO), last ** (1 / _EDM_RHO), pieces + 1) ** _EDM_RHO]
    direction = 1.0 if schedule.clean_end > schedule.noisy_end else -1.0
    inner = [t for t in times[1:-1] if (t - schedule.cleanest_time) * direction <= 0]
    return [first, *inner, last]


def _paired(plan: Plan) -> Teacher:
    return Teacher(plan, tuple(range(1, len(plan.state_points))))


def _levels(student: Plan) -> list[float]:
    """The student's distinct times from noisy to clean, those of inner stages too."""
    times = {point.t for point in student.state_points}
    return sorted(times, reverse=student.schedule.clean_end < student.schedule.noisy_end)


def _places(student: Plan) -> list[float]:
    """For each state its place on the time grid: 2 after two steps, 2.5 for the one stage inside the third."""
    levels = _levels(student)
    grid = [levels.index(student.state_points[state].t) for state in student.trajectory_states]
    steps = sorted(set(grid))
    place: dict[float, float] = {levels[steps[-1]]: float(len(steps) - 1)}
    for step, (first, last) in enumerate(pairwise(steps)):
        for level in range(first, last):
            place[levels[level]] = step + (level - first) / (last - first)
    return [place[point.t] for point in student.state_points]


def _teacher_solver(student: Plan) -> str:
    inner = len(_levels(student)) > len({student.state_points[state].t for state in student.trajectory_states})
    if not inner and student.solver in FAMILIES:
        return student.solver
    for name in _FIRST_ORDER:
        if student.schedule.kind in FAMILIES[name].spacings:
            return name
    raise ValueError(f"no first-order solver runs on {student.schedule.kind} schedules to be the teacher of this plan")


def settings_of(plan: Plan) -> dict[str, Any]:
    """The options of the plan's family as ``make_plan`` takes them: infinite bounds are strings in the metadata."""
    options = plan.metadata.get("options", {})
    return {name: math.inf if value == "inf" else value for name, value in options.items()}


def same_solver(plan: Plan, **grid: Any) -> Plan:
    """The plan's solver with its order and options on another grid, given as for ``make_plan``."""
    return make_plan(plan.solver, plan.schedule, order=plan.metadata.get("order"), **grid, **settings_of(plan))
