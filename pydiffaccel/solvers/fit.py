"""Least squares on the coefficients of a table, update by update, streamed over batches.

Teacher and student run side by side on every batch and only their newest states are kept, with the outputs that later
updates still use: the memory does not grow with the steps of either. What is added up over the batches is a small
Gram matrix in float64, so the answer does not depend on how the samples are split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.ops import solver_gram
from pydiffaccel.solvers.corrections import Direction, changed
from pydiffaccel.solvers.plan import Plan, Update
from pydiffaccel.solvers.teacher import Teacher
from pydiffaccel.solvers.walk import Batch, Walk

__all__ = ["Fit", "compare", "fit"]

# Combinations of directions that are this much shorter than the longest, squared, are rounding, not information.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Fit:
    """What a fit found for each of the student's updates.

    Attributes:
        updates: the fitted updates.
        amounts: the amounts along the update's directions.
        errors_before: mean squared distance to the teacher with all earlier updates fitted and this one not.
        errors_after: the same with this one fitted as well.
    """

    updates: list[Update]
    amounts: list[list[float]]
    errors_before: list[float]
    errors_after: list[float]


@torch.inference_mode()
def fit(
    plan: Plan,
    directions: Sequence[Sequence[Direction]],
    teacher: Teacher,
    batches: Sequence[Batch],
    *,
    ridge: float = 0.0,
    progress: bool = False,
) -> Fit:
    """Fits every update in turn along its directions, on the states that the updates fitted before it lead to.

    Args:
        plan: the base table, without noise.
        directions: for each of ``plan.updates()``.
        teacher: what each update should reach.
        batches: models and starting noise.
        ridge: weight of staying at the base table, relative to each direction's own squared length; infinity is the
            base table.
        progress: shows a tqdm bar.
    """
    reach = [
        max([len(update.b), *(len(direction.b) for direction in free)])
        for (_, update), free in zip(plan.updates(), directions, strict=True)
    ]
    pairs = [(Walk(plan, *batch, reach), Walk(teacher.plan, *batch)) for batch in batches]
    found = Fit([], [], [], [])
    for place, (_, update) in enumerate(_bar(list(plan.updates()), progress)):
        free = directions[place]
        gram, rhs = np.zeros((len(free), len(free))), np.zeros(len(free))
        before = after = _MeanSquare()
        for student, reference in pairs:
            student.evaluate()
            residual = reference.advance(teacher.meetings[place]) - student.combine(update.base, update.a, update.b)
            before = before.plus(residual)
            if not math.isfinite(before.total):
                student.check_answers()
                reference.check_answers()
                raise ValueError(f"the distance to the teacher is {before.total} at update {place + 1}")
            if free:
                parts = solver_gram([student.combine(update.base, d.a, d.b) for d in free], residual)
                gram += parts[0].cpu().numpy()
                rhs += parts[1].cpu().numpy()
        amounts = _least_squares(gram, rhs, ridge)
        # The next states come from the fitted table itself, so the fit sees the states that sampling will see.
        fitted = changed(update, free, amounts)
        for student, reference in pairs:
            student.apply(fitted)
            after = after.plus(reference.x - student.x)
        found.updates.append(fitted)
        found.amounts.append(amounts)
        found.errors_before.append(before.value)
        found.errors_after.append(after.value)
    return found


@torch.inference_mode()
def compare(plans: Sequence[Plan], teacher: Teacher, batches: Sequence[Batch]) -> list[list[float]]:
    """Mean squared distance to the teacher along each plan's own trajectory, after each of its updates.

    The first plan is the teacher's student; one with other noise levels is only compared at its end.
    """
    student = plans[0]
    sums = [[_MeanSquare() for _ in plan.state_points[1:]] for plan in plans]
    for batch in batches:
        reference = Walk(teacher.plan, *batch)
        walks = [Walk(plan, *batch) for plan in plans]
        for place, meeting in enumerate(teacher.meetings):
            target = reference.advance(meeting)
            for walk, errors in zip(walks, sums, strict=True):
                if walk.plan.state_points == student.state_points:
                    errors[place] = errors[place].plus(target - walk.advance(place + 1))
        for walk, errors in zip(walks, sums, strict=True):
            if walk.plan.state_points != student.state_points:
                errors[-1] = errors[-1].plus(reference.x - walk.advance(len(errors)))
        for walk in (reference, *walks):
            walk.check_answers()
    return [[error.value for error in errors if error.count] for errors in sums]


@dataclass(frozen=True)
class _MeanSquare:
    total: float = 0.0
    count: int = 0

    def plus(self, x: Tensor) -> _MeanSquare:
        return _MeanSquare(self.total + float(x.double().square().sum()), self.count + x.numel())

    @property
    def value(self) -> float:
        return self.total / self.count


def _least_squares(gram: NDArray[np.float64], rhs: NDArray[np.float64], ridge: float) -> list[float]:
    """The least c of c G c - 2 c r + ridge sum_j G_jj c_j^2; of equally good ones the shortest, in scaled columns."""
    size = len(rhs)
    length = np.sqrt(np.diag(gram))
    if size == 0 or math.isinf(ridge) or not (length > 0).any():
        return [0.0] * size
    if size == 1:
        return [float(rhs[0] / (gram[0, 0] * (1.0 + ridge)))]
    unit = np.where(length > 0, length, 1.0)
    values, vectors = np.linalg.eigh(gram / np.outer(unit, unit))
    kept = values > _NEGLIGIBLE * values[-1]
    along = (vectors.T @ (rhs / unit))[kept] / (values[kept] + ridge)
    return [float(amount) for amount in (vectors[:, kept] @ along) / unit]


def _bar(rows: list[tuple[int, Update]], progress: bool) -> Iterable[tuple[int, Update]]:
    if not progress:
        return rows
    from tqdm.auto import tqdm

    bar: Iterable[tuple[int, Update]] = tqdm(rows, desc="fitting", unit="update")
    return bar
