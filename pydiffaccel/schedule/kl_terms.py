"""Coefficients of the truncated Karhunen-Loeve expansion of a VP process' noise (2503.17657), in float64.

On [0, T] the driving Brownian motion is W_t = sum_k Z_k phi_k(t), where the phi_k' are an orthonormal basis of L2[0, T]
and Z_k ~ N(0, I). Put into the variance-preserving SDE it gives

    x_t = alpha(t) x_0 + sum_k c_k(t) Z_k,    c_k' = -beta / 2 c_k + sqrt(beta) phi_k',    c_k(0) = 0.

All terms together have the variance of the SDE, sum_k c_k(t)^2 = 1 - exp(-B(t)); the first M have less.

Two bases. "kl": phi_k' = sqrt(2 / T) cos(omega_k t) with omega_k = (k - 1/2) pi / T. "haar": phi_k' = h_k sqrt(tau'),
with tau = sigma^2 / alpha^2 and h_k the Haar functions of the measure d tau on the dyadic intervals of [0, T] (the
construction of Levy and Ciesielski in the noise's own time). Then c_k = alpha int_0^t h_k d tau is zero outside the
interval of h_k, so that 1 + ceil(log2 M) terms at most are not zero at any time.

For a discrete chain time is the training index + 1, beta constant in between: -log alphabar is linear there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pydiffaccel.schedule._rates import Array, ChainRate, ConstantRate, Namespace, Rate
from pydiffaccel.schedule.base import Schedule
from pydiffaccel.schedule.continuous_vp import ContinuousVPSchedule
from pydiffaccel.schedule.vp import VPSchedule

__all__ = ["BASES", "NUM_INTERVALS", "KLTerms", "kl_terms"]

BASES = ("kl", "haar")
NUM_INTERVALS = 1000

# The coefficients' error that the quadrature may leave; they are at most 1.
_ACCURACY = 1e-8
# Nodes in [0, 1] and weights of 3-point Gauss quadrature: exact for polynomials of degree 5.
_GAUSS = tuple((0.5 + 0.5 * x, 0.5 * w) for x, w in ((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)))
# Elements of the largest array that a table over many times may take at once.
_CHUNK = 1 << 22
# As many terms as the operators know, and coefficients in a table of them (256 MiB).
_MOST_TERMS = 1 << 24
_MOST_ENTRIES = 1 << 25


class KLTerms(ABC):
    """c_1 .. c_M of one schedule and basis at any time of that schedule.

    Attributes:
        schedule: the VPSchedule or ContinuousVPSchedule.
        num_terms: M.
        tables: what ``evaluate`` reads; a caller on another device keeps copies there.
    """

    schedule: VPSchedule | ContinuousVPSchedule
    num_terms: int

    @property
    def tables(self) -> Mapping[str, NDArray[np.float64]]:
        """Float64 arrays that ``evaluate`` needs."""
        return {}

    @property
    def uses_quadrature(self) -> bool:
        """Whether the number of intervals matters: no closed form is known."""
        return False

    @property
    def nonzero_terms(self) -> int:
        """How many terms may be other than zero at one time."""
        return self.num_terms

    @abstractmethod
    def evaluate(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """c_k at times s ``[n]`` in [0, T], float64, as ``[n, M]``; everything in the namespace xp.

        Times of a discrete chain are NumPy only.
        """

    def evaluate_sigma(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """sigma_M = sqrt(sum_k c_k^2) at times s ``[n]``."""
        c = self.evaluate(s, tables, xp)
        return xp.sqrt((c * c).sum(1))

    def coefficients(self, t: ArrayLike) -> NDArray[np.float64]:
        """c_k at the schedule's times t of any shape, with one more axis of length M."""
        times = self._time(t)
        flat = np.asarray(self.evaluate(times.reshape(-1), self.tables, np), dtype=np.float64)
        return flat.reshape(*times.shape, self.num_terms)

    def sigma(self, t: ArrayLike) -> NDArray[np.float64]:
        """sigma_M at the schedule's times t, of any shape."""
        times = self._time(t)
        flat, rows = times.reshape(-1), max(1, _CHUNK // self.nonzero_terms)
        result = np.empty_like(flat)
        for i in range(0, flat.size, rows):
            result[i : i + rows] = self.evaluate_sigma(flat[i : i + rows], self.tables, np)
        return result.reshape(times.shape)

    def _time(self, t: ArrayLike) -> NDArray[np.float64]:
        self.schedule.alpha(t)  # refuses times outside the schedule
        times = np.asarray(t, dtype=np.float64) - self.schedule.clean_end
        return np.clip(times, 0.0, self.schedule.noisy_end - self.schedule.clean_end)


def kl_terms(schedule: Schedule, num_terms: int, basis: str = "kl", num_intervals: int = NUM_INTERVALS) -> KLTerms:
    """The coefficient functions of the first M terms.

    Args:
        schedule: VPSchedule or ContinuousVPSchedule.
        num_terms: M >= 1; more terms keep the first ones.
        basis: "kl" or "haar".
        num_intervals: intervals of [0, T] for the quadrature; used where no closed form is known, by the sines on a
            continuous schedule with a rate that is not constant.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown basis, a count below 1, more than 2**24 terms or 2**25 coefficients in a table, or more
            terms than the intervals resolve: an interval must hold no more than one radian of the fastest sine,
            num_terms <= num_intervals / pi + 1/2, and halving the intervals may move no coefficient by more than 1e-8.
    """
    base = checked_schedule(schedule, num_terms, basis)
    _check_count(num_intervals, "num_intervals")
    if basis == "haar":
        return HaarTerms(base, num_terms)
    if isinstance(base, VPSchedule):
        return ChainSineTerms(base, num_terms)
    if isinstance(base.rate, ConstantRate):
        return ConstantSineTerms(base, num_terms)
    return GaussSineTerms(base, num_terms, num_intervals)


def checked_schedule(schedule: Schedule, num_terms: int, basis: str) -> VPSchedule | ContinuousVPSchedule:
    """The schedule, one that has an expansion in that many terms of that basis; raises what ``kl_terms`` raises."""
    if not isinstance(schedule, (VPSchedule, ContinuousVPSchedule)):
        raise TypeError(f"KL terms need a VPSchedule or a ContinuousVPSchedule, got {type(schedule).__name__}")
    _check_count(num_terms, "num_terms")
    if num_terms > _MOST_TERMS:
        raise ValueError(f"num_terms must be at most 2**24, got {num_terms}")
    if basis not in BASES:
        raise ValueError(f"basis must be {' or '.join(map(repr, BASES))}, got {basis!r}")
    if isinstance(schedule, VPSchedule) and not schedule.alphas_cumprod[-1] > 0:
        raise ValueError(
            f"KL terms need alphas_cumprod above 0, got 0 at index {schedule.num_train_timesteps - 1}, where the noise"
            " rate is infinite"
        )
    return schedule


def check_table(times: int, num_terms: int) -> None:
    """A table of c_k at so many times is of a size that is meant.

    Raises:
        ValueError: it has more than 2**25 entries.
    """
    if times * num_terms > _MOST_ENTRIES:
        raise ValueError(
            f"{num_terms} terms at {times} times are {times * num_terms} coefficients, more than the 2**25 that a table"
            " may have"
        )


def _check_count(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def rate_of(schedule: VPSchedule | ContinuousVPSchedule) -> Rate:
    """beta and its integral on [0, T]."""
    return ChainRate.of(schedule.alphas_cumprod) if isinstance(schedule, VPSchedule) else schedule.rate


def frequencies(total: float, num_terms: int) -> NDArray[np.float64]:
    """omega_1 .. omega_M, angular."""
    return np.asarray((np.arange(1, num_terms + 1) - 0.5) * np.pi / total, dtype=np.float64)


def _constant_rate(omega: Array, beta: Array, start: Array, span: Array, total: float, xp: Namespace) -> Array:
    """What the interval [start, start + span] of constant beta adds to c_k at its end: a closed form.

    It is sqrt(2 beta / T) int exp(-beta (end - s) / 2) cos(omega s) ds; differences are written as products, so that
    nothing cancels on short intervals.
    """
    half, gone = xp.sin(0.5 * omega * span), xp.expm1(-0.5 * beta * span)
    middle = omega * (start + 0.5 * span)
    cos = -2.0 * half * xp.sin(middle) - gone * xp.cos(omega * start)
    sin = 2.0 * half * xp.cos(middle) - gone * xp.sin(omega * start)
    return xp.sqrt(2.0 / total * beta) * (0.5 * beta * cos + omega * sin) / (0.25 * beta * beta + omega * omega)


@dataclass(frozen=True)
class ConstantSineTerms(KLTerms):
    """Sines on a constant rate: one closed form."""

    schedule: ContinuousVPSchedule
    num_terms: int

    @property
    def tables(self) -> Mapping[str, NDArray[np.float64]]:
        """The frequencies."""
        return {"omega": frequencies(self.schedule.T, self.num_terms)}

    def evaluate(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """c_k at times s."""
        span = s[:, None]
        return _constant_rate(tables["omega"], self.schedule.rate.beta(span, xp), 0.0, span, self.schedule.T, xp)


@dataclass(frozen=True)
class ChainSineTerms(KLTerms):
    """Sines on a discrete chain: a closed form per interval, exact up to rounding at any number of terms."""

    schedule: VPSchedule
    num_terms: int
    _table: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        total, knots = self.schedule.num_train_timesteps, ChainRate.of(self.schedule.alphas_cumprod).knots
        check_table(total, self.num_terms)
        omega, beta = frequencies(total, self.num_terms), np.diff(knots)
        table = np.zeros((total + 1, self.num_terms))
        for i in range(total):
            added = _constant_rate(omega, beta[i], float(i), 1.0, total, np)
            table[i + 1] = np.exp(-0.5 * beta[i]) * table[i] + added
        object.__setattr__(self, "_table", table)

    def evaluate(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """c_k at times s; rows of the table at whole ones."""
        total, rate = self.schedule.num_train_timesteps, ChainRate.of(self.schedule.alphas_cumprod)
        i = s.astype(np.int64)
        span, beta = (s - i)[:, None], rate.beta(i, xp)[:, None]
        result = self._table[i]
        inside = np.flatnonzero(span)
        if inside.size:
            span, beta, omega = span[inside], beta[inside], frequencies(total, self.num_terms)
            added = _constant_rate(omega, beta, i[inside, None].astype(np.float64), span, total, np)
            result[inside] = np.exp(-0.5 * beta * span) * result[inside] + added
        return result


@dataclass(frozen=True)
class GaussSineTerms(KLTerms):
    """Sines on any smooth rate: over each interval c_k decays and gains a 3-point Gauss quadrature of its forcing."""

    schedule: ContinuousVPSchedule
    num_terms: int
    num_intervals: int
    _tables: Mapping[str, NDArray[np.float64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        most = int(self.num_intervals / np.pi + 0.5)
        if self.num_terms > most:
            raise ValueError(
                f"num_terms must be at most {most}, got {self.num_terms}: {self.num_intervals} intervals hold no more"
                f" than one radian each of that many sines; give more num_intervals"
            )
        check_table(2 * self.num_intervals, self.num_terms)
        table = self._tabulated(self.num_intervals)
        error = float(np.abs(table - self._tabulated(2 * self.num_intervals)[::2]).max())
        if not error <= _ACCURACY:
            raise ValueError(
                f"{self.num_intervals} intervals leave an error of {error:.2g} in the coefficients of"
                f" {self.num_terms} terms ({_ACCURACY:g} is allowed); give more num_intervals"
            )
        tables = {"omega": frequencies(self.schedule.T, self.num_terms), "knots": table}
        object.__setattr__(self, "_tables", tables)

    @property
    def tables(self) -> Mapping[str, NDArray[np.float64]]:
        """The frequencies and the coefficients at the ends of the intervals."""
        return self._tables

    @property
    def uses_quadrature(self) -> bool:
        """True."""
        return True

    def evaluate(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """c_k at times s: the knot before, and a partial interval."""
        step = self.schedule.T / self.num_intervals
        i = xp.floor(s / step)
        start = (i * step)[:, None]
        return self._advanced(tables["knots"][_index(i, xp)], tables["omega"], start, s[:, None] - start, xp)

    def _tabulated(self, num_intervals: int) -> NDArray[np.float64]:
        """c_k at all knots, ``[num_intervals + 1, M]``."""
        step = self.schedule.T / num_intervals
        start = np.arange(num_intervals)[:, None] * step
        omega = frequencies(self.schedule.T, self.num_terms)
        added = self._advanced(0.0, omega, start, step, np)
        rate = self.schedule.rate
        decay = np.exp(0.5 * (rate.integral(start, np) - rate.integral(start + step, np)))
        table = np.zeros((num_intervals + 1, self.num_terms))
        for i in range(num_intervals):
            table[i + 1] = decay[i] * table[i] + added[i]
        return table

    def _advanced(self, c: Array, omega: Array, start: Array, span: Array, xp: Namespace) -> Array:
        """c_k at start + span from c = c_k at start."""
        rate, scale = self.schedule.rate, math.sqrt(2.0 / self.schedule.T)
        end = rate.integral(start + span, xp)
        result = xp.exp(0.5 * (rate.integral(start, xp) - end)) * c
        for node, weight in _GAUSS:
            s = start + node * span
            force = xp.exp(0.5 * (rate.integral(s, xp) - end)) * xp.sqrt(rate.beta(s, xp))
            result = result + (weight * scale * span * force) * xp.cos(omega * s)
        return result


@dataclass(frozen=True)
class HaarTerms(KLTerms):
    """Haar functions in the noise's own time: closed forms of B on dyadic intervals, sparse.

    Term 1 is constant; term 2^j + q + 1 belongs to [q, q + 1] T / 2^j, for q = 0 .. 2^j - 1 at level j = 0, 1, ..
    With E(a, b) = 1 - exp(B(a) - B(b)), an interval [l, r] and its middle m, the normalisation of h_k gives

        c_k = exp((B(t) - B(m)) / 2) E(l, t) sqrt(E(m, r) / (E(l, m) E(l, r)))    for t in [l, m],
        c_k = exp((B(m) - B(t)) / 2) E(t, r) sqrt(E(l, m) / (E(m, r) E(l, r)))    for t in [m, r],

    whose exponents are never positive: tau itself may exceed 1e5 and is never formed.
    """

    schedule: VPSchedule | ContinuousVPSchedule
    num_terms: int

    @property
    def nonzero_terms(self) -> int:
        """1 + ceil(log2 M): one per level."""
        return 1 + (self.num_terms - 1).bit_length()

    def evaluate(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """c_k at times s."""
        columns, values = self.nonzero(s, xp)
        width = 1 << (self.num_terms - 1).bit_length()
        if xp is np:
            result = np.zeros((s.shape[0], width))
            np.put_along_axis(result, columns, values, axis=1)
            return np.ascontiguousarray(result[:, : self.num_terms])
        return values.new_zeros((s.shape[0], width)).scatter(1, columns, values)[:, : self.num_terms].contiguous()

    def evaluate_sigma(self, s: Array, tables: Mapping[str, Array], xp: Namespace) -> Array:
        """sigma_M at times s, from the terms that are not zero."""
        columns, values = self.nonzero(s, xp)
        return xp.sqrt((values * values * (columns < self.num_terms)).sum(1))

    def nonzero(self, s: Array, xp: Namespace) -> tuple[Array, Array]:
        """Columns (terms counted from 0) and values ``[n, nonzero_terms]`` of all terms that may not be zero at s.

        The last level is whole: columns of num_terms or more are no terms.
        """
        rate = rate_of(self.schedule)
        here, last = rate.integral(s, xp), rate.integral(0.0 * s + rate.T, xp)
        whole = -xp.expm1(-last)
        # The ratio first, so that sigma_M is sigma itself at the noisy end.
        columns, values = [_index(0.0 * s, xp)], [xp.exp(0.5 * (here - last)) * _ratio(-xp.expm1(-here), whole, xp)]
        values[0] = values[0] * xp.sqrt(whole)
        for level in range(self.nonzero_terms - 1):
            parts = 1 << level
            q = xp.clip(xp.floor(s / rate.T * parts), 0.0, parts - 1.0)  # the noisy end belongs to the last interval
            left, middle, right = (rate.integral((q + offset) * (rate.T / parts), xp) for offset in (0.0, 0.5, 1.0))
            first, second = -xp.expm1(left - middle), -xp.expm1(middle - right)
            both = -xp.expm1(left - right)
            rising = -xp.expm1(left - here) * xp.sqrt(_ratio(second, first * both, xp))
            falling = -xp.expm1(here - right) * xp.sqrt(_ratio(first, second * both, xp))
            value = xp.exp(-0.5 * abs(here - middle)) * xp.where(here <= middle, rising, falling)
            columns.append(_index(parts + q, xp))
            values.append(value)
        return xp.stack(columns, 1), xp.stack(values, 1)


def _index(x: Array, xp: Namespace) -> Array:
    """Whole numbers x as int64."""
    return x.astype(np.int64) if xp is np else x.long()


def _ratio(a: Array, b: Array, xp: Namespace) -> Array:
    """a / b, and 0 where b is 0: no noise is added there."""
    positive = b > 0
    return xp.where(positive, a / xp.where(positive, b, 1.0), 0.0)
