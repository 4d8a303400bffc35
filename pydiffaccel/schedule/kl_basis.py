"""The functions phi_k that a Karhunen-Loeve expansion writes the driving Brownian motion in, and their derivatives.

For checks and plots: the coefficients that training and sampling use come from ``kl_terms``. phi_k(t) is the integral
of phi_k', and the phi_k' are an orthonormal basis of L2[0, T], so that sum_k phi_k(s) phi_k(t) = min(s, t).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel.schedule._rates import ChainRate, Rate
from pydiffaccel.schedule.base import Schedule
from pydiffaccel.schedule.kl_terms import checked_schedule, frequencies, rate_of

__all__ = ["kl_basis_derivatives", "kl_basis_functions"]

Floats = NDArray[np.float64]

# exp(B / 2) stays finite up to here.
_MOST_NOISE = 1000.0
# Intervals and Gauss nodes per interval for the integral of a rate that is not piecewise constant.
_INTERVALS, _NODES = 1000, 8


def kl_basis_functions(schedule: Schedule, num_terms: int, basis: str, t: ArrayLike) -> Floats:
    """phi_1 .. phi_M at times t of any shape, with one more axis of length num_terms.

    Args:
        schedule: a VPSchedule or ContinuousVPSchedule; the sines depend on its T alone, the Haar functions on beta.
        num_terms: M.
        basis: "kl" or "haar".
        t: times in [0, T]. For a discrete chain T is the number of training indices, and index i is time i + 1.

    Raises:
        TypeError, ValueError: as ``kl_terms`` about the first three; or a time is outside [0, T].
    """
    rate, times = _checked(schedule, num_terms, basis, t)
    if basis == "kl":
        omega = frequencies(rate.T, num_terms)
        return np.asarray(np.sqrt(2.0 / rate.T) * np.sin(omega * times) / omega, dtype=np.float64)
    left, middle, right, rising, falling = _haar(rate, num_terms)
    ends = [_driving(rate, np.clip(times, low, high)) for low, high in ((left, middle), (middle, right))]
    starts = [_driving(rate, low) for low in (left, middle)]
    return np.asarray(rising * (ends[0] - starts[0]) - falling * (ends[1] - starts[1]), dtype=np.float64)


def kl_basis_derivatives(schedule: Schedule, num_terms: int, basis: str, t: ArrayLike) -> Floats:
    """phi_1' .. phi_M' at times t of any shape, with one more axis of length num_terms; arguments as above.

    Those of "haar" jump: at a jump the value is that after it.
    """
    rate, times = _checked(schedule, num_terms, basis, t)
    if basis == "kl":
        return np.asarray(np.sqrt(2.0 / rate.T) * np.cos(frequencies(rate.T, num_terms) * times), dtype=np.float64)
    left, middle, right, rising, falling = _haar(rate, num_terms)
    step = np.where((times >= left) & (times < middle), rising, 0.0)
    step = np.where((times >= middle) & ((times < right) | (right == rate.T)), -falling, step)
    growth = np.exp(0.5 * (rate.integral(times, np) - rate.integral(np.float64(rate.T), np)))
    return np.asarray(step * growth * np.sqrt(rate.beta(times, np)), dtype=np.float64)


def _checked(schedule: Schedule, num_terms: int, basis: str, t: ArrayLike) -> tuple[Rate, Floats]:
    rate = rate_of(checked_schedule(schedule, num_terms, basis))
    times = np.asarray(t, dtype=np.float64)
    if not ((times >= 0) & (times <= rate.T)).all():
        raise ValueError(f"t must lie in [0, {rate.T:g}], got {times[~((times >= 0) & (times <= rate.T))].flat[0]}")
    most = float(rate.integral(np.float64(rate.T), np))
    if basis == "haar" and most > _MOST_NOISE:
        raise ValueError(f"beta must have an integral of at most {_MOST_NOISE:g} for Haar functions, got {most:g}")
    return rate, times[..., None]


def _haar(rate: Rate, num_terms: int) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Left end, middle and right end of each h_k, and its heights before and (negated) after the middle, ``[M]``.

    The heights are times exp(B(T) / 2), for ``_driving``. The first function is constant: its middle is its end.
    """
    column = np.arange(1, num_terms)
    parts = 2.0 ** np.floor(np.log2(column))
    width = rate.T / parts
    start = (column - parts) * width
    left, middle, right = (np.append(end, start + part * width) for end, part in ((0.0, 0), (rate.T, 0.5), (rate.T, 1)))
    at_left, at_middle, at_right = (rate.integral(time, np) for time in (left, middle, right))
    first, second, both = -np.expm1(at_left - at_middle), -np.expm1(at_middle - at_right), -np.expm1(at_left - at_right)
    last = rate.integral(np.float64(rate.T), np)
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.exp(0.5 * (last - at_middle)) * np.sqrt(second / (first * both))
        falling = np.exp(0.5 * (last + at_middle) - at_right) * np.sqrt(first / (second * both))
    rising[0], falling[0] = 1.0 / np.sqrt(both[0]), 0.0
    noiseless = ~((first > 0) & (second > 0))
    noiseless[0] = False
    return left, middle, right, np.where(noiseless, 0.0, rising), np.where(noiseless, 0.0, falling)


def _driving(rate: Rate, s: Floats) -> Floats:
    """int_0^s exp((B - B(T)) / 2) sqrt(beta): what a Haar function of height 1 gives phi."""
    last = float(rate.integral(np.float64(rate.T), np))
    count = rate.knots.size - 1 if isinstance(rate, ChainRate) else _INTERVALS
    step = rate.T / count
    i = np.clip(np.floor(s / step), 0, count - 1).astype(np.int64)
    begin = np.asarray(np.arange(count) * step, dtype=np.float64)
    whole = np.append(0.0, np.cumsum(_piece(rate, begin, begin + step, last)))
    return np.asarray(whole[i] + _piece(rate, np.asarray(i * step, dtype=np.float64), s, last), dtype=np.float64)


def _piece(rate: Rate, begin: Floats, end: Floats, last: float) -> Floats:
    """The same integral over [begin, end], inside one interval."""
    span = end - begin
    if isinstance(rate, ChainRate):
        root = np.sqrt(rate.beta(begin, np))
        grown = np.exp(0.5 * (rate.integral(end, np) - last)) * -np.expm1(-0.5 * root**2 * span)
        return np.asarray(2.0 * grown / np.where(root > 0, root, 1.0), dtype=np.float64)
    total = np.zeros_like(span)
    for node, weight in zip(*np.polynomial.legendre.leggauss(_NODES), strict=True):
        s = begin + (0.5 + 0.5 * node) * span
        total += 0.5 * weight * span * np.exp(0.5 * (rate.integral(s, np) - last)) * np.sqrt(rate.beta(s, np))
    return total
