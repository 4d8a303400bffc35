"""Exponential integrators in the half log-SNR, shared by DPM-Solver, DPM-Solver++, DEIS (log rho), UniPC and PNDM.

Along a sampling path both forms of the probability-flow ODE are linear in the model's output m (2206.00927,
proposition 3.1; 2211.01095, proposition 4.1). With lambda the half log-SNR, h = lambda_t - lambda_s > 0:

    noise prediction   x_t = (alpha_t / alpha_s) x_s - sigma_t int exp(lambda_t - lambda) m d lambda
    data prediction    x_t = (sigma_t / sigma_s) x_s + alpha_t int exp(lambda - lambda_t) m d lambda

and for the stochastic equation in data prediction (2211.01095, appendix on SDE solvers) the factor of x_s gains
exp(-h), the weight becomes 2 exp(2 (lambda - lambda_t)), and fresh noise sigma_t sqrt(1 - exp(-2 h)) comes in. None of
this needs alpha^2 + sigma^2 = 1. If m is a polynomial in u = (lambda - lambda_s) / h, the integrals of u^k / k! are
the ``moments`` of a step; they follow from phi_k(z) = sum_j z^j / (j + k)!. The zeroth is a difference of alphas and
sigmas and stays right where log-SNRs are infinite: a step from pure noise or to clean data is first order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.table import TableWriter

__all__ = [
    "DATA",
    "NOISE",
    "combine",
    "evaluate_form",
    "first_order",
    "fresh_noise",
    "moments",
    "nodes",
    "scale",
    "step_orders",
    "step_size",
]

NOISE, DATA = "epsilon", "sample"


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum_j z^j / (j + k)!: phi_0 = exp, phi_k = (phi_(k-1) - 1 / (k-1)!) / z; by the series near 0."""
    if abs(z) < 1.0:
        term = 1.0 / math.factorial(k)
        total = term
        for j in range(1, 20):
            term *= z / (j + k)
            total += term
        return total
    value = math.exp(z)
    for j in range(1, k + 1):
        value = (value - 1.0 / math.factorial(j - 1)) / z
    return value


def step_size(start: Point, end: Point) -> float:
    """h, infinite from pure noise or to clean data."""
    return math.inf if start.alpha == 0 or end.sigma == 0 else end.log_snr - start.log_snr


def scale(form: str, start: Point, end: Point, stochastic: bool = False) -> float:
    """The factor of x_s."""
    if form == NOISE:
        return end.alpha / start.alpha
    ratio = end.sigma / start.sigma
    return ratio * _decay(start, end) if stochastic else ratio


def moments(form: str, start: Point, end: Point, count: int, stochastic: bool = False) -> list[float]:
    """Weights ``[count]`` of m, h m', h^2 m'' in the update; more than one needs a finite step."""
    ratio = scale(form, start, end, stochastic)
    first = end.sigma - start.sigma * ratio if form == NOISE else end.alpha - start.alpha * ratio
    if count == 1:
        return [first]
    h = step_size(start, end)
    if form == NOISE:
        return [first, *(-end.sigma * h * phi(k, h) for k in range(2, count + 1))]
    length = 2.0 * h if stochastic else h
    return [first, *(end.alpha * length * phi(k, -length) for k in range(2, count + 1))]


def fresh_noise(start: Point, end: Point) -> float:
    """Standard deviation of the noise that the stochastic step adds: sigma_t sqrt(1 - exp(-2 h))."""
    return end.sigma * math.sqrt(max(0.0, 1.0 - _decay(start, end) ** 2))


def _decay(start: Point, end: Point) -> float:
    """exp(-h), without a logarithm."""
    return (start.alpha * end.sigma) / (end.alpha * start.sigma)


def combine(weights: Sequence[float], nodes: Sequence[float]) -> list[float]:
    """Factors of the outputs at the nodes, for the polynomial through them with these weights of its derivatives.

    Args:
        weights: of m, h m', h^2 m'', .. at the start of the step (``moments``), ``[count]``.
        nodes: u = (lambda - lambda_s) / h of the outputs, ``[count]``, the first 0, all different.
    """
    count = len(nodes)
    rows = np.vander(np.asarray(nodes, dtype=np.float64), count, increasing=True)
    taylor = np.array([weight * math.factorial(k) for k, weight in enumerate(weights)])
    factors = np.linalg.solve(rows.T, taylor).tolist()
    factors[0] = weights[0] - sum(factors[1:])  # a constant output is exact to the last bit
    return [float(factor) for factor in factors]


def nodes(start: Point, end: Point, others: Iterable[Point]) -> list[float]:
    """u = (lambda - lambda_s) / h of the start itself, 0, and of the other points."""
    h = step_size(start, end)
    return [0.0, *((point.log_snr - start.log_snr) / h for point in others)]


def step_orders(points: Sequence[Point], order: int, lower_final: bool, singular_end: bool = True) -> list[int]:
    """The order of each step of a multistep method: as many as there are outputs, fewer towards the end if asked.

    An output at pure noise belongs to no later step. With singular_end a step to clean data is first order.
    """
    num_steps = len(points) - 1
    first = int(points[0].alpha == 0)
    orders = []
    for i in range(num_steps):
        k = max(1, min(order, i + 1 - first))
        if lower_final:
            k = min(k, num_steps - i)
        orders.append(1 if singular_end and points[i + 1].sigma == 0 else k)
    return orders


def evaluate_form(writer: TableWriter, form: str) -> tuple[int, str]:
    """Evaluates the newest state in this form; pure noise only as data, because noise prediction is empty there."""
    used = DATA if writer.here.alpha == 0 else form
    return writer.evaluate(used), used


def first_order(writer: TableWriter, form: str, after: Point) -> int:
    """Evaluates the newest state and makes DDIM's step from it, the same in both forms; returns the evaluation."""
    base, here = writer.state, writer.here
    evaluation, used = evaluate_form(writer, form)
    writer.update(after, base, scale(used, here, after), {evaluation: moments(used, here, after, 1)[0]})
    return evaluation
