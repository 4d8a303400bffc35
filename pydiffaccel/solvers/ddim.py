"""DDIM (Song et al., 2010.02502): the first-order step in noise prediction.

    x_next = (alpha_next / alpha) x + (sqrt(sigma_next^2 - s^2) - sigma alpha_next / alpha) eps + s z

with s = eta sigma_next / sigma sqrt(sigma^2 - (alpha sigma_next / alpha_next)^2), their equations 12 and 16 where
alpha^2 + sigma^2 = 1: the root is then sqrt(1 - alpha^2 / alpha_next^2). eta = 0 is deterministic and the same as
first-order DPM-Solver; eta = 1 has the variance of DDPM's posterior, for any alpha and sigma. At the clean end
the step gives the predicted data exactly and adds no noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.family import Family
from pydiffaccel.solvers.plan import Evaluation, Update
from pydiffaccel.solvers.point import Point

__all__ = ["DDIM"]


def _build(points: Sequence[Point], order: int, options: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    eta = options["eta"]
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        raise TypeError(f"eta must be a number, got {type(eta).__name__}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    evaluations = []
    for state, (here, after) in enumerate(pairwise(points)):
        ratio = after.alpha / here.alpha
        between = math.sqrt(max(0.0, here.sigma**2 - (after.sigma / ratio) ** 2))
        noise = eta * after.sigma / here.sigma * between if eta > 0 else 0.0
        kept = math.sqrt(max(0.0, after.sigma**2 - noise**2)) if noise > 0 else after.sigma
        update = Update(after, base=state, a=ratio, b=(kept - here.sigma * ratio,), noise=noise)
        evaluations.append(Evaluation(here, "epsilon", (update,)))
    return tuple(evaluations)


DDIM = Family("ddim", _build, spacings={"vp": "trailing"}, options={"eta": 0.0})
