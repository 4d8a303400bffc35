"""What a solver family is: a name, what it runs on, and the function that writes its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydiffaccel.solvers.plan import Evaluation
from pydiffaccel.solvers.point import Point

__all__ = ["Builder", "Family"]

# (points [N + 1], order, options) -> the evaluations of the table
Builder = Callable[[Sequence[Point], int, Mapping[str, Any]], tuple[Evaluation, ...]]


@dataclass(frozen=True)
class Family:
    """A solver family, as ``make_plan`` knows it.

    Attributes:
        name: what ``make_plan`` is asked for.
        build: writes the evaluations for a grid of points.
        spacings: default time grid per ``Schedule.kind``; the keys are the schedules that the family runs on.
        orders: the orders it has; the first is the default.
        options: further keyword arguments of ``make_plan`` and their defaults.
    """

    name: str
    build: Builder
    spacings: Mapping[str, str]
    orders: tuple[int, ...] = (1,)
    options: Mapping[str, Any] = field(default_factory=dict)
