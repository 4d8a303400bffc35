"""Karhunen-Loeve coefficients of every schedule and basis against the equations that define them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from pydiffaccel.schedule import (
    ContinuousVPSchedule,
    FlowSchedule,
    TruncatedVPSchedule,
    VPSchedule,
    kl_basis_derivatives,
    kl_basis_functions,
)
from pydiffaccel.schedule.kl_terms import GaussSineTerms, HaarTerms, kl_terms, rate_of

Array = NDArray[np.float64]
Schedules = VPSchedule | ContinuousVPSchedule

SCHEDULES: dict[str, Schedules] = {
    "constant": ContinuousVPSchedule.constant(6.0, T=2.0),
    "linear": ContinuousVPSchedule.linear(),
    "falling": ContinuousVPSchedule.linear(15.0, 0.5, T=0.7),
    "cosine": ContinuousVPSchedule.cosine(),
    "chain": VPSchedule.linear(60, 1e-3, 0.3),
    "cosine chain": VPSchedule.cosine(24),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
continuous = {name: schedule for name, schedule in SCHEDULES.items() if isinstance(schedule, ContinuousVPSchedule)}
every_continuous = pytest.mark.parametrize("schedule", continuous.values(), ids=continuous)
every_basis = pytest.mark.parametrize("basis", ["kl", "haar"])


def length(schedule: Schedules) -> float:
    return schedule.noisy_end - schedule.clean_end


def pieces(schedule: Schedules, count: int, end: float) -> Array:
    """Ends of intervals in [0, end] on which rate and basis are smooth: count is a power of 2."""
    cuts = np.linspace(0, length(schedule), count + 1)
    if isinstance(schedule, VPSchedule):
        cuts = np.union1d(cuts, np.arange(length(schedule)))
    return np.append(cuts[cuts < end - 1e-12], end)


def dense_quadrature(schedule: Schedules, num_terms: int, basis: str, end: float) -> Array:
    """c_k(end) = int_0^end exp(-(B(end) - B) / 2) sqrt(beta) phi_k' by 16 Gauss nodes on each of many pieces."""
    cuts, (nodes, gauss) = pieces(schedule, 512, end), np.polynomial.legendre.leggauss(16)
    s = cuts[:-1, None] + np.diff(cuts)[:, None] * (nodes + 1) / 2
    rate = rate_of(schedule)
    kernel = np.exp((rate.integral(s, np) - rate.integral(np.float64(end), np)) / 2) * np.sqrt(rate.beta(s, np))
    weight = (kernel * gauss / 2 * np.diff(cuts)[:, None]).reshape(-1)
    return np.asarray(weight @ kl_basis_derivatives(schedule, num_terms, basis, s.reshape(-1)))


@every_schedule
@every_basis
@pytest.mark.parametrize("part", [1e-4, 0.0137, 0.25, 0.6181, 1.0])
def test_coefficients_are_the_integral_that_defines_them(schedule: Schedules, basis: str, part: float) -> None:
    end = part * length(schedule)
    c = kl_terms(schedule, 12, basis).coefficients(schedule.clean_end + end)
    sigma = float(schedule.sigma(schedule.clean_end + end))
    # The Haar functions and the chains have closed forms; elsewhere 3-point quadrature leaves 1e-8 at most.
    exact = basis == "haar" or not isinstance(schedule, ContinuousVPSchedule)
    assert np.abs(c - dense_quadrature(schedule, 12, basis, end)).max() < (1e-10 * sigma if exact else 1e-8)


@every_schedule
@every_basis
def test_coefficients_solve_their_differential_equation(schedule: Schedules, basis: str) -> None:
    rate, c = rate_of(schedule), np.zeros(6)
    cuts = pieces(schedule, 8, length(schedule))
    for begin, end in pairwise(cuts):

        def slope(s: float, c: Array, begin: float = begin, end: float = end) -> Array:
            s = min(max(s, begin), np.nextafter(end, begin))  # on this side of a jump
            beta = float(rate.beta(np.float64(s), np))
            return np.asarray(-beta / 2 * c + np.sqrt(beta) * kl_basis_derivatives(schedule, 6, basis, s))

        c = solve_ivp(slope, (begin, end), c, method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
        expected = kl_terms(schedule, 6, basis).coefficients(schedule.clean_end + end)
        assert np.abs(c - expected).max() < 1e-8


def test_constant_rate_has_the_published_closed_form_and_the_recursion_agrees() -> None:
    beta, total = 6.0, 2.0
    schedule = ContinuousVPSchedule.constant(beta, total)
    t, w = np.linspace(0, total, 333)[:, None], (np.arange(1, 41) - 0.5) * np.pi / total
    bracket = beta / 2 * np.cos(w * t) + w * np.sin(w * t) - beta / 2 * np.exp(-beta * t / 2)
    formula = np.sqrt(2 * beta / total) * bracket / (beta**2 / 4 + w**2)
    assert np.abs(kl_terms(schedule, 40).coefficients(t[:, 0]) - formula).max() < 1e-13
    recursion = GaussSineTerms(schedule, 40, 1000).coefficients(t[:, 0])
    assert np.abs(recursion - formula).max() < 1e-8


@every_schedule
@every_basis
def test_more_terms_keep_the_first(schedule: Schedules, basis: str) -> None:
    t = np.linspace(schedule.clean_end, schedule.noisy_end, 57)
    assert np.array_equal(
        kl_terms(schedule, 9, basis).coefficients(t)[:, :4], kl_terms(schedule, 4, basis).coefficients(t)
    )


@every_schedule
@every_basis
def test_the_first_moments_of_time_are_accurate(schedule: Schedules, basis: str) -> None:
    # At t -> 0 the integral is sqrt(beta(0)) phi_k(t) to first order, also where t is far below an interval.
    t = 1e-9 * length(schedule)
    rate = rate_of(schedule)
    expected = np.sqrt(rate.beta(np.float64(0), np)) * kl_basis_functions(schedule, 5, basis, t)
    first = kl_terms(schedule, 5, basis).coefficients(schedule.clean_end + t)
    # Times of a chain start at -1: they resolve 1e-16.
    assert first == pytest.approx(expected, rel=1e-4 if isinstance(schedule, VPSchedule) else 1e-6, abs=0)


@every_schedule
@every_basis
def test_the_basis_makes_a_brownian_motion(schedule: Schedules, basis: str) -> None:
    total = length(schedule)
    t = np.linspace(0, total, 53)
    least, errors = np.minimum.outer(t, t), []
    for terms in (256, 1024):
        phi = kl_basis_functions(schedule, terms, basis, t)
        errors.append(np.abs(phi @ phi.T - least).max())
        assert (np.diag(phi @ phi.T) <= t + 1e-12 * total).all()
    assert errors[1] < 1e-3 * total
    assert errors[1] < 0.35 * errors[0]


@every_schedule
@every_basis
def test_the_derivatives_are_those_of_the_functions_and_orthonormal(schedule: Schedules, basis: str) -> None:
    total, h = length(schedule), 1e-6 * length(schedule)
    t = np.linspace(0.0131, 0.9873, 37) * total
    after, before = (kl_basis_functions(schedule, 17, basis, t + step) for step in (h, -h))
    slope = kl_basis_derivatives(schedule, 17, basis, t)
    assert (after - before) / (2 * h) == pytest.approx(slope, abs=1e-6 * np.abs(slope).max())
    cuts, (nodes, gauss) = pieces(schedule, 64, total), np.polynomial.legendre.leggauss(12)
    s = cuts[:-1, None] + np.diff(cuts)[:, None] * (nodes + 1) / 2
    weight = (gauss / 2 * np.diff(cuts)[:, None]).reshape(-1)
    slope = kl_basis_derivatives(schedule, 17, basis, s.reshape(-1))
    assert (slope * weight[:, None]).T @ slope == pytest.approx(np.eye(17), abs=1e-9)


@every_continuous
def test_parseval_of_the_sines(schedule: ContinuousVPSchedule) -> None:
    t = np.array([0.2, 0.53, 0.9, 1.0]) * schedule.T
    terms = 600
    square = np.cumsum(np.square(kl_terms(schedule, terms, num_intervals=2000).coefficients(t)), axis=1)
    missing = schedule.sigma(t)[:, None] ** 2 - square
    # Bessel; and the rest falls like 1 / M, from the jump of the integrand at s = t (it counts twice at T).
    assert missing.min() > -1e-7
    tail = schedule.beta(t) * schedule.T / np.pi**2 * np.array([1, 1, 1, 2])
    for count in (300, 600):
        ratio = missing[:, count - 1] * count / tail
        assert ratio[:3] == pytest.approx(np.ones(3), rel=0.02)
        assert ratio[3] == pytest.approx(1, rel=0.1)  # where the rate is steepest
    # Extrapolated over M that is Parseval's equality.
    assert np.all(np.abs(2 * missing[:, 599] - missing[:, 299]) < 0.1 * missing[:, 299])


@every_schedule
def test_parseval_of_the_haar_functions(schedule: Schedules) -> None:
    strata = (np.arange(4000) + np.random.default_rng(0).random(4000)) / 4000
    t = schedule.clean_end + strata * length(schedule)
    sigma2, tau = np.square(schedule.sigma(t)), np.square(schedule.sigma(t) / schedule.alpha(t))
    for terms in (1, 16, 4096, 65536):
        missing = sigma2 - np.square(kl_terms(schedule, terms, "haar").sigma(t))
        # What is missing between two dyadic times is the variance of a Brownian bridge in tau.
        step = length(schedule) / terms
        q = np.minimum(np.floor((t - schedule.clean_end) / step), terms - 1)
        left, right = (np.clip(schedule.clean_end + (q + i) * step, None, schedule.noisy_end) for i in (0, 1))
        ends = [np.square(schedule.sigma(end) / schedule.alpha(end)) for end in (left, right)]
        bridge = np.square(schedule.alpha(t)) * (tau - ends[0]) * (ends[1] - tau) / (ends[1] - ends[0])
        assert missing == pytest.approx(bridge, abs=1e-9)
    # For many terms alpha^2 times the step in tau is beta T / M, and x (1 - x) is 1 / 6 on average: 1 / M again.
    integral = -2 * math.log(float(schedule.alpha(schedule.noisy_end)))
    assert missing.mean() * 65536 == pytest.approx(integral / 6, rel=0.05)


@every_schedule
@pytest.mark.parametrize("terms", [1, 2, 3, 5, 8, 100, 1000])
def test_haar_terms_are_sparse_and_exact_at_dyadic_times(schedule: Schedules, terms: int) -> None:
    kl = kl_terms(schedule, terms, "haar")
    t = np.random.default_rng(0).uniform(schedule.clean_end, schedule.noisy_end, 500)
    c = kl.coefficients(t)
    most = 1 + math.ceil(math.log2(terms))
    assert np.count_nonzero(c, axis=1).max() <= most
    assert np.count_nonzero(c, axis=1).mean() > 0.6 * most
    assert kl.sigma(t) == pytest.approx(np.sqrt(np.square(c).sum(1)), rel=1e-12)
    assert np.count_nonzero(kl.coefficients(schedule.noisy_end)) == 1
    whole = 1 << (terms.bit_length() - 1)
    dyadic = schedule.clean_end + np.arange(whole + 1) / whole * length(schedule)
    assert kl.sigma(dyadic) == pytest.approx(schedule.sigma(dyadic), rel=1e-9, abs=0)
    assert float(kl.sigma(schedule.noisy_end)) == pytest.approx(float(schedule.sigma(schedule.noisy_end)), rel=1e-15)


def test_haar_terms_of_a_chain_that_starts_without_noise() -> None:
    schedule = VPSchedule([1.0, 0.9, 0.5, 0.1])
    c = kl_terms(schedule, 16, "haar").coefficients(np.arange(4))
    assert np.isfinite(c).all()
    assert np.array_equal(c[0], np.zeros(16))
    assert np.sqrt(np.square(c).sum(1)) == pytest.approx(schedule.sigma(np.arange(4)), abs=1e-15)
    assert np.isfinite(kl_basis_functions(schedule, 16, "haar", [0.5, 2.5])).all()


def test_haar_terms_of_very_much_noise_do_not_overflow() -> None:
    schedule = ContinuousVPSchedule.constant(5000.0)
    c = kl_terms(schedule, 64, "haar").coefficients(np.linspace(0, 1, 101))
    assert np.isfinite(c).all()
    assert np.square(c).sum(1).max() <= 1 + 1e-12


@every_continuous
@every_basis
@pytest.mark.parametrize("terms", [1, 3, 64])
def test_torch_computes_what_numpy_computes(schedule: ContinuousVPSchedule, basis: str, terms: int) -> None:
    kl = kl_terms(schedule, terms, basis)
    t = np.linspace(0, schedule.T, 301)
    tables = {key: torch.from_numpy(table) for key, table in kl.tables.items()}
    s = torch.from_numpy(t)
    assert kl.evaluate(s, tables, torch).numpy() == pytest.approx(kl.coefficients(t), abs=1e-13)
    assert kl.evaluate_sigma(s, tables, torch).numpy() == pytest.approx(kl.sigma(t), abs=1e-13)


@every_basis
def test_one_term(basis: str) -> None:
    schedule = SCHEDULES["linear"]
    c = kl_terms(schedule, 1, basis).coefficients(np.linspace(0, 1, 11))
    assert c.shape == (11, 1)
    assert (c[1:] > 0).all()
    assert kl_terms(schedule, 1, basis).coefficients(0.5).shape == (1,)


def test_many_terms_need_no_large_array(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = VPSchedule.linear(30)
    whole = kl_terms(schedule, 500).sigma(np.linspace(-1, 29, 97))
    monkeypatch.setattr("pydiffaccel.schedule.kl_terms._CHUNK", 2000)
    assert np.array_equal(kl_terms(schedule, 500).sigma(np.linspace(-1, 29, 97)), whole)


LINEAR = ContinuousVPSchedule.linear()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((LINEAR, 0), ValueError, "num_terms must be at least 1, got 0"),
        ((LINEAR, 2.0), TypeError, "num_terms must be an int, got float"),
        ((LINEAR, 2**24 + 1, "haar"), ValueError, r"num_terms must be at most 2\*\*24, got 16777217"),
        ((VPSchedule.linear(), 40_000), ValueError, r"40000 terms at 1000 times .* more than the 2\*\*25 that a table"),
        ((LINEAR, 9000, "kl", 36_000), ValueError, r"9000 terms at 72000 times .* more than the 2\*\*25 that a table"),
        ((LINEAR, True), TypeError, "num_terms must be an int, got bool"),
        ((LINEAR, 3, "cosine"), ValueError, "basis must be 'kl' or 'haar', got 'cosine'"),
        ((LINEAR, 3, None), ValueError, "basis must be 'kl' or 'haar', got None"),
        ((LINEAR, 3, "kl", 0), ValueError, "num_intervals must be at least 1, got 0"),
        ((LINEAR, 319), ValueError, "num_terms must be at most 318, got 319: 1000 intervals hold no more than one rad"),
        ((LINEAR, 10, "kl", 40), ValueError, "40 intervals leave an error of .* in the coefficients of 10 terms"),
        (
            (ContinuousVPSchedule.linear(1e-4), 4),
            ValueError,
            "1000 intervals leave an error of .*; give more",
        ),
        ((FlowSchedule(), 3), TypeError, "KL terms need a VPSchedule or a ContinuousVPSchedule, got FlowSchedule"),
        ((TruncatedVPSchedule(LINEAR, 2), 3), TypeError, "got TruncatedVPSchedule"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        kl_terms(*arguments)  # type: ignore[arg-type]


def test_the_last_resolved_number_of_terms_is_accurate() -> None:
    # The bound is not the quadrature's first failure: at one radian an interval it still holds 1e-8.
    fine = kl_terms(LINEAR, 318, num_intervals=8000).coefficients(np.linspace(0, 1, 41))
    assert np.abs(kl_terms(LINEAR, 318).coefficients(np.linspace(0, 1, 41)) - fine).max() < 1e-8
    assert isinstance(kl_terms(LINEAR, 10**6, "haar"), HaarTerms)


def test_a_chain_that_ends_without_signal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod .* got 0.* at index 1"):
        kl_terms(VPSchedule([0.9, 0.0]), 3)


def test_very_many_haar_terms_are_cheap() -> None:
    schedule = TruncatedVPSchedule(LINEAR, 1 << 20, "haar")
    t = np.linspace(0.01, 1, 50)
    assert schedule.sigma(t) == pytest.approx(LINEAR.sigma(t), rel=1e-3)
    assert schedule.terms.nonzero_terms == 21


def test_times_outside_are_refused() -> None:
    with pytest.raises(ValueError, match=r"time of a continuous_vp schedule must lie in \[0, 1\], got 1.5"):
        kl_terms(LINEAR, 3).coefficients([0.5, 1.5])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got -0.5"):
        kl_basis_functions(LINEAR, 3, "haar", [-0.5])
    with pytest.raises(ValueError, match="integral of at most 1000 for Haar functions, got 5000"):
        kl_basis_derivatives(ContinuousVPSchedule.constant(5000.0), 3, "haar", [0.5])
