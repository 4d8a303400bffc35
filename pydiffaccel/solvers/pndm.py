"""PNDM (Liu et al., 2202.09778): linear multistep of order 4 on noise predictions, with DDIM's step as transfer.

With phi(x, eps, t, s) the deterministic DDIM step from t to s (their equation 11):

    Runge-Kutta start (equation 13, "pseudo"), for the first three steps, m halfway in time between t and s:
        e1 at x; e2 at phi(x, e1, t, m); e3 at phi(x, e2, t, m); e4 at phi(x, e3, t, s)
        eps = (e1 + 2 e2 + 2 e3 + e4) / 6
    then (equation 12)  eps = (55 e_t - 59 e_(t-1) + 37 e_(t-2) - 9 e_(t-3)) / 24

of which only e1 of the start goes into the history. NFE = N + 9 (4 N for N <= 3). With ``runge_kutta=False`` the start
is that of latent diffusion's PLMS sampler: one improved Euler step and then orders 2 and 3, NFE = N + 1.

The factors are those of equal steps in sigma / alpha; on other smooth grids it converges with order 2, as the paper
proves. A step to clean data takes no stage there: it is DDIM's, with the history's combination where there is one. From
pure noise the first step is DDIM's in data prediction and its output is not part of the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydiffaccel.solvers.exponential import NOISE, first_order, moments, scale
from pydiffaccel.solvers.family import Family, flag
from pydiffaccel.solvers.point import Point, points_at
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["ADAMS_BASHFORTH", "PNDM", "multistep_factors"]

# Equal steps: factors of the outputs, newest first, orders 1 to 4.
ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def multistep_factors(history: list[int], order: int) -> dict[int, float]:
    """Adams-Bashforth's combination of the last evaluations, of the highest order up to `order` that they allow."""
    usable = min(order, len(history))
    return dict(zip(reversed(history[-usable:]), ADAMS_BASHFORTH[usable - 1], strict=True))


def _transfer(writer: TableWriter, base: int, start: Point, after: Point, outputs: Mapping[int, float]) -> None:
    gain = moments(NOISE, start, after, 1)[0]
    factors = {number: gain * factor for number, factor in outputs.items()}
    writer.update(after, base, scale(NOISE, start, after), factors)


def _runge_kutta(writer: TableWriter, here: Point, after: Point) -> int:
    base = writer.state
    middle = points_at(writer.schedule, [0.5 * (here.t + after.t)])[0]
    first = first_order(writer, NOISE, middle)
    second = writer.evaluate(NOISE)
    _transfer(writer, base, here, middle, {second: 1.0})
    third = writer.evaluate(NOISE)
    _transfer(writer, base, here, after, {third: 1.0})
    fourth = writer.evaluate(NOISE)
    _transfer(writer, base, here, after, {first: 1 / 6, second: 1 / 3, third: 1 / 3, fourth: 1 / 6})
    return first


def _improved_euler(writer: TableWriter, here: Point, after: Point) -> int:
    base = writer.state
    first = first_order(writer, NOISE, after)
    second = writer.evaluate(NOISE)
    _transfer(writer, base, here, after, {first: 0.5, second: 0.5})
    return first


def _build(writer: TableWriter, order: int, options: Mapping[str, Any]) -> Table:
    runge_kutta = flag(options, "runge_kutta")
    history: list[int] = []
    for here, after in pairwise(writer.points):
        if here.alpha == 0:
            first_order(writer, NOISE, after)
        elif after.sigma > 0 and len(history) < (3 if runge_kutta else 1):
            history.append((_runge_kutta if runge_kutta else _improved_euler)(writer, here, after))
        else:
            base = writer.state
            history.append(writer.evaluate(NOISE))
            _transfer(writer, base, here, after, multistep_factors(history, order))
    return writer.finish()


PNDM = Family("pndm", _build, spacings={"vp": "leading"}, orders=(4,), options={"runge_kutta": True})
