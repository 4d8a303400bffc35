"""Writing a solver's table: states and evaluations are numbered as they come; coefficients go to evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.plan import Evaluation, Update
from pydiffaccel.solvers.point import Point, points_at

__all__ = ["Table", "TableWriter"]


@dataclass(frozen=True)
class Table:
    """What a family writes.

    Attributes:
        evaluations, initial_updates: as in ``Plan``.
        consistent: whether a perfect model of a single data point is followed exactly; False only where the user asked
            for another amount of noise than the levels have.
    """

    evaluations: tuple[Evaluation, ...]
    initial_updates: tuple[Update, ...] = ()
    consistent: bool = True


class TableWriter:
    """Collects the rows of a table.

    Args:
        schedule: what inner stages are points of.
        points: the grid ``[N + 1]``; the table starts from the first.
    """

    def __init__(self, schedule: Schedule, points: Sequence[Point]) -> None:
        self.schedule = schedule
        self.points = tuple(points)
        self._states = [self.points[0]]
        self._evaluated: list[tuple[Point, str]] = []
        self._updates: list[list[Update]] = [[]]  # the first list comes before any evaluation

    @property
    def state(self) -> int:
        """Number of the newest state."""
        return len(self._states) - 1

    @property
    def here(self) -> Point:
        """Noise level of the newest state."""
        return self._states[-1]

    def levels(self, log_snrs: Sequence[float]) -> tuple[Point, ...]:
        """The schedule's points with these half log-SNRs; one call for many is quicker."""
        return points_at(self.schedule, self.schedule.time_of_log_snr(log_snrs))

    def evaluate(self, output_type: str) -> int:
        """Evaluates the model at the newest state; returns the number of the evaluation."""
        self._evaluated.append((self.here, output_type))
        self._updates.append([])
        return len(self._evaluated) - 1

    def update(
        self, point: Point, base: int, a: float, outputs: Mapping[int, float] | None = None, noise: float = 0.0
    ) -> int:
        """Appends the state a states[base] + sum of factor times output + noise z; returns its number."""
        newest = len(self._evaluated) - 1
        b = [0.0] * (newest - min(outputs) + 1 if outputs else 0)
        for number, factor in (outputs or {}).items():
            b[newest - number] = factor
        self._updates[-1].append(Update(point, base=base, a=a, b=tuple(b), noise=noise))
        self._states.append(point)
        return self.state

    def finish(self, consistent: bool = True) -> Table:
        """The table as written so far."""
        rows = tuple(
            Evaluation(point, output_type, tuple(updates))
            for (point, output_type), updates in zip(self._evaluated, self._updates[1:], strict=True)
        )
        return Table(rows, tuple(self._updates[0]), consistent)
