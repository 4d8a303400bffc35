"""UniPC (Zhao et al., 2302.04867): a predictor UniP-p and a corrector UniC-p that costs no evaluation, orders 1 to 3.

After the predictor of order p has reached the next point and the model was evaluated there, the corrector repeats the
step with that output as one more node, and the next predictor starts from its result; the model is not evaluated
again (their theorem 3.1 and corollary 3.2). Both integrate the polynomial through their outputs in the half log-SNR,
whatever B(h) is. B(h) shows only where a single weight is left, which is 1/2 of it: in UniP-2 and UniC-1, with
B1(h) = h (``variant="bh1"``) or B2(h) = exp(h) - 1 ("bh2").

NFE = N. The last step has no corrector; all others together converge with order p + 1. Steps at an infinite log-SNR
are first order and are not corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.exponential import (
    DATA,
    NOISE,
    combine,
    evaluate_form,
    moments,
    nodes,
    scale,
    step_orders,
    step_size,
)
from pydiffaccel.solvers.family import Family, choice, flag
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["UNIPC"]


def _weights(form: str, start: Point, end: Point, count: int, variant: str, single: bool) -> list[float]:
    weights = moments(form, start, end, count)
    if single:
        step = end.alpha if form == DATA else -end.sigma
        weights[1] = 0.5 * (weights[0] if variant == "bh2" else step * step_size(start, end))
    return weights


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    variant = choice(options, "variant", ("bh1", "bh2"))
    form = {"data": DATA, "noise": NOISE}[choice(options, "prediction", ("data", "noise"))]
    corrector = flag(options, "corrector")
    points = writer.points
    orders = step_orders(points, order, flag(options, "lower_order_final"))
    base = 0  # the state that the last predictor started from
    for i, (here, after) in enumerate(pairwise(points)):
        evaluation, used = evaluate_form(writer, form)
        if corrector and i > 0 and points[i - 1].alpha > 0:
            before, p = points[i - 1], orders[i - 1]
            others = [here, *(points[i - 1 - lag] for lag in range(1, p))]
            weights = _weights(form, before, here, p + 1, variant, single=p == 1)
            factors = combine(weights, nodes(before, here, others))
            numbers = [evaluation - 1, evaluation, *(evaluation - 1 - lag for lag in range(1, p))]
            writer.update(here, base, scale(form, before, here), dict(zip(numbers, factors, strict=True)))
        base, p = writer.state, orders[i]
        if p == 1:
            factors = moments(used, here, after, 1)
        else:
            weights = _weights(form, here, after, p, variant, single=p == 2)
            factors = combine(weights, nodes(here, after, (points[i - lag] for lag in range(1, p))))
        outputs = {evaluation - lag: factor for lag, factor in enumerate(factors)}
        writer.update(after, base, scale(used, here, after), outputs)
    return writer.finish()


UNIPC = Family(
    "unipc",
    _build,
    spacings={"vp": "log_snr", "flow": "uniform", "edm": "karras"},
    orders=(2, 1, 3),
    options={"variant": "bh2", "prediction": "data", "corrector": True, "lower_order_final": True},
)
