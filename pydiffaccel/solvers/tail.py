"""The rest of a plan, for a run that starts in its middle (image to image, a pipeline's begin_index)."""

from __future__ import annotations

import math
from dataclasses import replace

from pydiffaccel.solvers.plan import Evaluation, Plan, Update
from pydiffaccel.solvers.point import Point

__all__ = ["step_starts", "tail"]

# Types whose perfect prediction for one data point is the same at every noise level.
_LEVEL_FREE = ("epsilon", "sample", "flow")


def tail(plan: Plan, first: int) -> Plan:
    """The plan from the evaluation with index `first` on, for a state at that evaluation's noise level.

    Outputs from before the start do not exist: their coefficients go to the first output that does, which leaves a
    consistent method of lower order for the steps concerned. A corrector of the starting state has nothing to correct
    and is left out (Heun's second evaluation is then for nothing: see ``step_starts``), and so are updates made before
    the first evaluation. ``tail(plan, 0)`` is the plan itself where there are none of these.

    Raises:
        TypeError: plan is no Plan, or first no int.
        ValueError: first is no evaluation of the plan, or one inside a step, whose earlier state does not exist; or the
            outputs are of types that cannot stand for each other.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
    if isinstance(first, bool) or not isinstance(first, int):
        raise TypeError(f"first must be an int, got {type(first).__name__}")
    if not 0 <= first < plan.nfe:
        raise ValueError(f"first must be an evaluation of the plan, 0 .. {plan.nfe - 1}, got {first}")
    if first == 0 and not plan.initial_updates:
        return plan
    newest = len(plan.initial_updates) + sum(len(row.updates) for row in plan.evaluations[:first])
    start = plan.evaluations[first].point
    renamed, count = {newest: 0}, 0  # the numbers of the states: in the plan, in its tail
    inside = f"a run of this {plan.solver} plan cannot start at evaluation {first} (t = {start.t:g}), inside a step"
    rows = []
    for index in range(first, plan.nfe):
        row = plan.evaluations[index]
        kept: list[Update] = []
        for update in row.updates:
            newest += 1
            if index == first and _corrects(update, start, update.base not in renamed, kept):
                renamed[newest] = 0
                continue
            if update.base not in renamed:
                raise ValueError(inside)
            count += 1
            renamed[newest] = count
            kept.append(replace(update, base=renamed[update.base], b=_folded(plan, update, index, first)))
        if not kept:  # all that this evaluation was for is the corrector
            count += 1
            kept.append(Update(start, base=0, a=1.0))
        rows.append(Evaluation(row.point, row.output_type, tuple(kept)))
    rest = replace(plan, start=start, evaluations=tuple(rows), initial_updates=(), num_steps=1)
    return replace(rest, num_steps=max(1, len(rest.trajectory_states) - 1))


def step_starts(plan: Plan) -> list[int]:
    """Indices of the evaluations that a run can start at: the first of each step."""
    types = {row.output_type for row in plan.evaluations}
    foldable = len(types) == 1 and types <= set(_LEVEL_FREE)
    starts: list[int] = []
    oldest, newest = math.inf, len(plan.state_points) - 1  # the oldest base of all later updates
    for index in reversed(range(plan.nfe)):
        row = plan.evaluations[index]
        newest -= len(row.updates)
        kept: list[Update] = []
        for update in row.updates:
            if not _corrects(update, row.point, update.base < newest, kept):
                kept.append(update)
        used = any(update.b and update.b[0] for update in kept)
        if used and min([oldest, *(update.base for update in kept)]) >= newest and (foldable or _has_tail(plan, index)):
            starts.append(index)
        oldest = min([oldest, *(update.base for update in row.updates)])
    return starts[::-1]


def _has_tail(plan: Plan, first: int) -> bool:
    try:
        tail(plan, first)
    except ValueError:
        return False
    return True


def _corrects(update: Update, start: Point, older: bool, kept: list[Update]) -> bool:
    """Whether the update only corrects the starting state, from an older one."""
    return older and update.point == start and not kept


def _folded(plan: Plan, update: Update, index: int, first: int) -> tuple[float, ...]:
    available = index - first + 1
    if len(update.b) <= available:
        return update.b
    lost = update.b[available:]
    if any(lost):
        types = {plan.evaluations[index - lag].output_type for lag in range(available - 1, len(update.b))}
        if len(types) > 1 or not types <= set(_LEVEL_FREE):
            raise ValueError(
                f"a run cannot start at evaluation {first} of this {plan.solver} plan, because outputs of type"
                f" {', '.join(sorted(types))} cannot stand for each other"
            )
    return (*update.b[: available - 1], update.b[available - 1] + sum(lost))
