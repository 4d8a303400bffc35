"""Euler's method on the straight paths of flow matching: x_next = x + (t_next - t) v."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.plan import Evaluation, Update
from pydiffaccel.solvers.point import Point

__all__ = ["EULER"]


def _build(points: Sequence[Point], order: int, options: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    return tuple(
        Evaluation(here, "flow", (Update(after, base=state, a=1.0, b=(after.t - here.t,)),))
        for state, (here, after) in enumerate(pairwise(points))
    )


EULER = Family("euler", _build, spacings={"flow": "uniform"})
