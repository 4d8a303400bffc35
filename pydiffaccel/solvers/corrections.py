"""Which changes of a table a fit may make: the free directions of every update, read off the table itself.

A direction adds a multiple of (a, b_0, b_1, ...) to an update's factors of its base state and of the stored outputs.
Distilled ODE solvers (2309.16421) have one per update, O = D + lambda (D - D_earlier), with D what the update uses:

* An update that only uses outputs made since its base state (one step, or a stage of one) is corrected along its newest
  output minus the next one that it uses; where it uses one output alone, minus the output before. For DDIM that is
  eps_i - eps_(i-1); for single-step DPM-Solver lambda_1 is the intermediate stage's and the last lambda rescales the
  highest-order term; for EDM Heun the predictor is compared with the last corrector's output, the corrector with the
  predictor's.
* An update that uses outputs from before its base state (a multistep method: PNDM, iPNDM, DEIS, DPM-Solver++ 2M and 3M,
  UniPC, Adams-Bashforth) is corrected along its effective output, sum_j b_j m_j / sum_j b_j, minus that of the update
  before it. The stored outputs themselves are not changed.
* At the first evaluation there is no earlier output. On a VP schedule x_T, which is almost pure noise, stands for it as
  a noise prediction; elsewhere nothing does and the update stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.solvers.denoiser import conversion
from pydiffaccel.solvers.plan import Plan, Update
from pydiffaccel.solvers.point import output_parts

__all__ = ["Direction", "changed", "history_directions", "lambda_directions", "multistep", "with_updates"]

# Constraints that are fulfilled to this much, relative to their largest, count as fulfilled.
_RANK = 1e-12


@dataclass(frozen=True)
class Direction:
    """A unit step in the coefficients of one update.

    Attributes:
        a: change of the base state's factor.
        b: changes of the outputs' factors, newest first; may reach further back than the update itself.
    """

    a: float
    b: tuple[float, ...]


def changed(update: Update, directions: Sequence[Direction], amounts: Sequence[float]) -> Update:
    """The update moved by the given amounts along the directions; bit for bit the same where all amounts are 0."""
    moves = [(amount, d) for amount, d in zip(amounts, directions, strict=True) if amount != 0]
    if not moves:
        return update
    a, b = update.a, list(update.b)
    for amount, direction in moves:
        a += amount * direction.a
        b.extend([0.0] * (len(direction.b) - len(b)))
        for lag, factor in enumerate(direction.b):
            b[lag] += amount * factor
    return replace(update, a=a, b=tuple(b))


def with_updates(plan: Plan, updates: Sequence[Update]) -> Plan:
    """The plan with other coefficients: one update for each of ``plan.updates()``, in that order."""
    rest = iter(updates)
    first = tuple(next(rest) for _ in plan.initial_updates)
    rows = tuple(replace(row, updates=tuple(next(rest) for _ in row.updates)) for row in plan.evaluations)
    return replace(plan, initial_updates=first, evaluations=rows)


def multistep(plan: Plan) -> bool:
    """Whether any update uses outputs from before its base state."""
    table = list(plan.updates())
    return any(_looks_back(table, place) for place in range(len(table)))


def lambda_directions(plan: Plan) -> list[tuple[Direction, ...]]:
    """For each of ``plan.updates()`` its correction of 2309.16421, or nothing where it has none."""
    table = list(plan.updates())
    return [_correction(plan, table, place) for place in range(len(table))]


def history_directions(plan: Plan, *, consistent: bool) -> list[tuple[Direction, ...]]:
    """For each of ``plan.updates()`` independent directions that span all factors which a fit may choose.

    These are the factors of all outputs back to the oldest one that the update or its lambda correction uses, and of
    the base state where the lambda correction changes it: so a lambda is always one of the choices.

    Args:
        plan: the base table.
        consistent: only changes under which a perfect model of a single data point is still carried exactly from the
            base's noise level to the update's.
    """
    result: list[tuple[Direction, ...]] = []
    points = plan.state_points
    for (index, update), correction in zip(plan.updates(), lambda_directions(plan), strict=True):
        used = [lag for lag, factor in enumerate(update.b) if factor != 0]
        if not used:
            result.append(())
            continue
        reach = max([used[-1] + 1, *(len(direction.b) for direction in correction)])
        with_base = any(direction.a != 0 for direction in correction)
        # Columns: the base state, then the outputs newest first. Rows: what each holds of x_0 and of the noise.
        parts = [(points[update.base].alpha, points[update.base].sigma)] if with_base else []
        rows = [plan.evaluations[index - lag] for lag in range(reach)]
        parts.extend(output_parts(row.output_type, row.point.alpha, row.point.sigma) for row in rows)
        choices = _null_space(np.array(parts).T) if consistent else np.eye(len(parts))
        result.append(
            tuple(
                Direction(float(column[0]) if with_base else 0.0, tuple(column[with_base:].tolist()))
                for column in choices.T
            )
        )
    return result


def _null_space(constraints: NDArray[np.float64]) -> NDArray[np.float64]:
    _, sizes, rows = np.linalg.svd(constraints)
    rank = int((sizes > _RANK * sizes[0]).sum()) if sizes.size else 0
    return np.asarray(rows[rank:].T, dtype=np.float64)


def _correction(plan: Plan, table: Sequence[tuple[int, Update]], place: int) -> tuple[Direction, ...]:
    index, update = table[place]
    used = [lag for lag, factor in enumerate(update.b) if factor != 0]
    if not used:
        return ()
    if place > 0 and _looks_back(table, place):
        before, previous = table[place - 1]
        total, total_before = sum(update.b), sum(previous.b)
        if total != 0 and total_before != 0:
            lags = index - before
            b = [*update.b, *[0.0] * (lags + len(previous.b) - len(update.b))]
            for lag, factor in enumerate(previous.b, start=lags):
                b[lag] -= total / total_before * factor
            return _direction(plan, index, b)
    newest, factor = used[0], update.b[used[0]]
    other = used[1] if len(used) > 1 else newest + 1
    if index - other >= 0:
        return _direction(plan, index, [factor * ((lag == newest) - (lag == other)) for lag in range(other + 1)])
    return _first_correction(plan, index - newest, update)


def _looks_back(table: Sequence[tuple[int, Update]], place: int) -> bool:
    index, update = table[place]
    oldest = max((lag for lag, factor in enumerate(update.b) if factor != 0), default=-1)
    # The base was made after evaluation `made`, so outputs of later evaluations are from this very step.
    made = table[update.base - 1][0] if update.base > 0 else -1
    return oldest >= 0 and index - oldest <= made


def _direction(plan: Plan, index: int, b: Sequence[float]) -> tuple[Direction, ...]:
    """The direction, unless it would mix outputs of different types, or is nothing at all."""
    types = {plan.evaluations[index - lag].output_type for lag, factor in enumerate(b) if factor != 0}
    return (Direction(0.0, tuple(b)),) if len(types) == 1 else ()


def _first_correction(plan: Plan, index: int, update: Update) -> tuple[Direction, ...]:
    """b (eps - x_T) with x_T in the place of an earlier noise prediction, in the factors of x_T and of the output.

    Where sampling starts from noise that is not of unit variance, x_T is brought to it.
    """
    row = plan.evaluations[index]
    if plan.schedule.kind != "vp" or plan.state_points[update.base] != row.point:
        return ()
    try:
        c, d = conversion(row.output_type, "epsilon", row.point)  # eps = c x + d output
    except ValueError:
        return ()
    if d == 0:
        return ()
    factor = next(factor for factor in update.b if factor != 0)
    return (Direction(factor / d * (c - 1.0 / plan.schedule.prior_std_at(plan.start.t)), update.b),)
