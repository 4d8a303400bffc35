"""Learned time grids: where N steps do the least harm, by dynamic programming on a teacher's trajectories.

The candidates are the levels of a fine teacher, times t_0 (noise) to t_K (end). The cost of a step from t_i to t_j is
the mean squared distance between the student's step, taken from the teacher's state at t_i, and the teacher's state at
t_j: its local error. The teacher's states and outputs are known, and a step is linear in them, so a Gram matrix of them
all gives the K^2 / 2 costs without another evaluation. The best path with N steps then follows in O(N K^2).

A multistep method's step depends on the steps before it, which the path has yet to choose. Its cost is that of a step
whose predecessors were as long, counted in candidates. The outputs of inner stages, and of predicted states, are
replaced by the teacher's at the same level, interpolated in time between candidates. Both are proxies. So is adding up
local errors, which later steps stretch or shrink: several sums are minimised, each path is run once with the student
itself, and the one that ends nearest to the teacher on the samples of the fit is taken; the given grid is one of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.solvers.corrections import multistep
from pydiffaccel.solvers.denoiser import Denoiser, conversion
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.plan import Plan, Update
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.table import Table, TableWriter
from pydiffaccel.solvers.teacher import aligned_teacher, same_solver, settings_of
from pydiffaccel.solvers.walk import Batch, Walk

__all__ = ["Candidates", "best_path", "candidates_of", "learned_grid", "step_costs", "trajectory_gram"]

Matrix = NDArray[np.float64]

# Candidates are at most this many: the costs grow with their square.
_MOST_CANDIDATES = 240
# Steps before that of a multistep method that is priced; no family looks further back.
_PREDECESSORS = 3
# Numbers that are turned to float64 at once.
_CHUNK = 1 << 22


def learned_grid(
    plan: Plan, batches: Sequence[Batch], multiplier: int, teacher_solver: str | None = None
) -> tuple[Plan, dict[str, Any]]:
    """The plan's solver on the best grid found, with as many steps, and a report.

    Args:
        plan: the student on its given grid.
        batches: models and starting noise; one batch's teacher trajectory is in memory at a time.
        multiplier: candidates between two levels of the given plan, fewer where that would make more than 240.
        teacher_solver: of the teacher, by default the plan's own or, with inner stages, one of first order.

    Returns:
        (plan, report): the report has the candidates' number, the sum whose path was taken ("given" where none is
        better), the mean squared distance to the teacher at the end for each, and the evaluations spent per sample.

    Raises:
        ValueError: the plan's solver is unknown, so that it cannot be put on another grid.
    """
    if plan.solver not in FAMILIES:
        raise ValueError(f"a grid can be learned for {', '.join(FAMILIES)}, got {plan.solver!r}")
    levels = len({point.t for point in plan.state_points}) - 1
    pieces = max(2, min(multiplier, _MOST_CANDIDATES // levels))
    teacher = aligned_teacher(plan, pieces, teacher_solver).plan
    candidates = candidates_of(teacher)
    gram, ends = trajectory_gram(teacher, candidates, batches)
    costs = step_costs(plan, candidates, gram)
    alpha = np.array([point.alpha for point in candidates.points])
    sums = {"squares": costs, "distances": np.sqrt(costs)}
    if (alpha[1:] != alpha[-1]).any():
        # The same errors on the scale of the data.
        scale = np.append(1.0, alpha[1:])
        sums |= {"squares / alpha^2": costs / scale**2, "distances / alpha": np.sqrt(costs) / scale}
    grids = {"given": plan}
    for name, prices in sums.items():
        path = best_path(prices, plan.num_steps)
        times = [candidates.points[place].t for place in path]
        grids[name] = same_solver(plan, timesteps=times[:-1], end=times[-1])
    errors = {name: _end_error(grid, batches, ends) for name, grid in grids.items()}
    taken = min(errors, key=lambda name: errors[name])
    report = {
        "candidates": len(candidates.points),
        "taken": taken,
        "error": errors,
        "times": [grids[taken].state_points[state].t for state in grids[taken].trajectory_states],
        "evaluations_per_sample": teacher.nfe + sum(grid.nfe for grid in grids.values()),
    }
    return grids[taken], report


def best_path(costs: Matrix, num_steps: int) -> list[int]:
    """The places ``[num_steps + 1]`` from first to last whose steps cost the least in total.

    Args:
        costs: ``[K + 1, K + 1]``; entry (i, j) with i < j is the cost of a step from i to j. The rest is not looked at.
        num_steps: at least 1, at most K.

    Raises:
        ValueError: more steps than there are places.
    """
    size = len(costs)
    if not 1 <= num_steps < size:
        raise ValueError(f"a path over {size} places has 1 to {size - 1} steps, got {num_steps}")
    priced = np.where(np.triu(np.ones((size, size), dtype=bool), 1), costs, np.inf)
    total = priced[0].copy()
    came: list[NDArray[np.int64]] = []
    for _ in range(num_steps - 1):
        through = total[:, None] + priced
        came.append(np.asarray(through.argmin(axis=0), dtype=np.int64))
        total = through.min(axis=0)
    path = [size - 1]
    for places in reversed(came):
        path.append(int(places[path[-1]]))
    return [0, *reversed(path)]


@dataclass(frozen=True)
class Candidates:
    """The levels a grid may use.

    Attributes:
        points: from noise to the end ``[K + 1]``.
        states: which of the teacher's states lies there.
        output_types: of the teacher's outputs there, ``[K]``; at the end there is none.
    """

    points: tuple[Point, ...]
    states: tuple[int, ...]
    output_types: tuple[str, ...]


def step_costs(plan: Plan, candidates: Candidates, gram: Matrix) -> Matrix:
    """The local error of every step that the plan's solver could take between two candidates ``[K + 1, K + 1]``.

    Args:
        plan: tells solver, order and options.
        candidates: the levels.
        gram: ``[2 K + 1, 2 K + 1]``, mean products of the teacher's states 0 .. K and then of its outputs 0 .. K - 1.
    """
    family = FAMILIES[plan.solver]
    order, options = plan.metadata.get("order", family.orders[0]), {**family.options, **settings_of(plan)}

    def write(points: Sequence[Point]) -> Table:
        return family.build(TableWriter(plan.schedule, points), order, options)

    before = _PREDECESSORS if multistep(plan) else 0
    size = len(candidates.points)
    costs = np.full((size, size), np.inf)
    for i in range(size - 1):
        rows = np.stack([_weights(write, candidates, i, j, before) for j in range(i + 1, size)])
        costs[i, i + 1 :] = np.maximum(np.einsum("jk,kl,jl->j", rows, gram, rows, optimize=True), 0.0)
    return costs


def candidates_of(teacher: Plan) -> Candidates:
    """The levels of the states on the teacher's trajectory."""
    states = {teacher.state_points[state]: state for state in teacher.trajectory_states}
    outputs = {row.point: row.output_type for row in reversed(teacher.evaluations)}
    points = tuple(sorted(states, key=states.__getitem__))
    return Candidates(points, tuple(states[p] for p in points), tuple(outputs[p] for p in points[:-1]))


def _weights(write: Callable[[Sequence[Point]], Table], all_: Candidates, i: int, j: int, before: int) -> Matrix:
    """The error of the step i -> j as factors of the states and outputs of ``step_costs``' Gram matrix."""
    size, step = len(all_.points), j - i
    places = [place for place in range(i - before * step, i, step) if place >= 0] + [i, j]
    if before and j < size - 1:  # one more step, so that this one is not the last of its run, and is corrected
        places.append(min(j + step, size - 1))
    table = write([all_.points[place] for place in places])
    rows = table.evaluations
    index, update = _reaching(table, all_.points[i], all_.points[j])
    weights = np.zeros(2 * size - 1)
    weights[i] += update.a
    weights[j] -= 1.0
    for lag, factor in enumerate(update.b):
        if factor != 0:
            row = rows[index - lag]
            for place, share in _nearby(all_, row.point):
                c, d = conversion(all_.output_types[place], row.output_type, all_.points[place])
                weights[place] += factor * share * c
                weights[size + place] += factor * share * d
    return weights


def _reaching(table: Table, here: Point, after: Point) -> tuple[int, Update]:
    """The last update of a table that makes the state at `after` from that at `here`, and its evaluation."""
    points = [table.evaluations[0].point, *(update.point for update in table.initial_updates)]
    found: tuple[int, Update] | None = None
    for index, row in enumerate(table.evaluations):
        for update in row.updates:
            if update.point == after and points[update.base] == here:
                found = index, update
            points.append(update.point)
    if found is None:
        raise ValueError(f"the table has no step from t = {here.t:g} to {after.t:g}")
    return found


def _nearby(all_: Candidates, point: Point) -> list[tuple[int, float]]:
    """The candidates with an output that stand for the level, and their shares."""
    last = len(all_.output_types) - 1
    sign = 1.0 if all_.points[-1].t > all_.points[0].t else -1.0
    times = [sign * candidate.t for candidate in all_.points[: last + 1]]
    right = bisect_right(times, sign * point.t)
    if right == 0 or right > last or times[right - 1] == sign * point.t:
        return [(max(0, min(right - 1, last)), 1.0)]
    share = (sign * point.t - times[right - 1]) / (times[right] - times[right - 1])
    return [(right - 1, 1.0 - share), (right, share)]


@dataclass(frozen=True)
class _Keeping(Denoiser):
    """Keeps the first output of every level."""

    denoiser: Denoiser
    outputs: dict[Point, Tensor]

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        output = self.denoiser(x, point, output_type)
        self.outputs.setdefault(point, output)
        return output


@torch.inference_mode()
def trajectory_gram(teacher: Plan, candidates: Candidates, batches: Sequence[Batch]) -> tuple[Matrix, list[Tensor]]:
    """The Gram matrix that ``step_costs`` needs, in float64, and the teacher's last state of each batch."""
    size = 2 * len(candidates.points) - 1
    total, count = np.zeros((size, size)), 0
    ends: list[Tensor] = []
    for denoiser, x in batches:
        keeping = _Keeping(denoiser, {})
        walk = Walk(teacher, keeping, x)
        states = [walk.advance(state).reshape(-1) for state in candidates.states]
        walk.check_answers()
        ends.append(walk.x)
        table = [*states, *(keeping.outputs[point].reshape(-1) for point in candidates.points[:-1])]
        width = max(1, _CHUNK // size)
        for begin in range(0, x.numel(), width):
            part = torch.stack([row[begin : begin + width] for row in table]).double()
            total += (part @ part.T).cpu().numpy()
        count += x.numel()
    return total / count, ends


@torch.inference_mode()
def _end_error(plan: Plan, batches: Sequence[Batch], ends: Sequence[Tensor]) -> float:
    total = 0.0
    for batch, end in zip(batches, ends, strict=True):
        last = Walk(plan, *batch).advance(len(plan.state_points) - 1)
        total += float((last - end).double().square().sum())
    return total / sum(end.numel() for end in ends)
