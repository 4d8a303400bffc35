"""DDIM (Song et al., 2010.02502): the first-order step in noise prediction.

    x_next = (alpha_next / alpha) x + (sqrt(sigma_next^2 - s^2) - sigma alpha_next / alpha) eps + s z

with s = eta (sigma_next / sigma) sqrt(sigma^2 - (alpha / alpha_next)^2 sigma_next^2), their equations 12 and 16, whose
last root is that of 1 - alpha^2 / alpha_next^2 where alpha^2 + sigma^2 = 1. eta = 0 is deterministic and the same as
first-order DPM-Solver; eta = 1 has the variance of DDPM's posterior. At the clean end the step gives the predicted data
exactly and adds no noise. From pure noise (alpha = 0) the same step is written in data prediction, its limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.exponential import DATA, NOISE
from pydiffaccel.solvers.family import Family, number
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["DDIM"]


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    eta = number(options, "eta", 0.0, 1.0)
    for state, (here, after) in enumerate(pairwise(writer.points)):
        noise = 0.0
        if eta > 0:
            backward = max(0.0, here.sigma**2 - (here.alpha / after.alpha * after.sigma) ** 2)
            noise = eta * after.sigma / here.sigma * math.sqrt(backward)
        kept = math.sqrt(max(0.0, after.sigma**2 - noise**2)) if noise > 0 else after.sigma
        if here.alpha == 0:
            evaluation = writer.evaluate(DATA)
            writer.update(after, state, kept / here.sigma, {evaluation: after.alpha}, noise)
        else:
            ratio = after.alpha / here.alpha
            evaluation = writer.evaluate(NOISE)
            writer.update(after, state, ratio, {evaluation: kept - here.sigma * ratio}, noise)
    return writer.finish()


DDIM = Family("ddim", _build, spacings={"vp": "trailing"}, options={"eta": 0.0})
