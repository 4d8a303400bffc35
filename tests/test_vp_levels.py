"""VP schedules on continuous time and truncated levels: rates, inverses, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pydiffaccel.schedule import (
    ContinuousVPSchedule,
    FlowSchedule,
    TruncatedVPSchedule,
    VPSchedule,
)
from tests.schedules import CONTINUOUS, TRUNCATED, VP


@pytest.mark.parametrize("name", CONTINUOUS)
def test_rates_and_their_integrals(name: str) -> None:
    schedule = CONTINUOUS[name]
    t = np.linspace(0, schedule.T, 101)
    h = 1e-6 * schedule.T
    inner = t[1:-1]
    slope = (schedule.integral(inner + h) - schedule.integral(inner - h)) / (2 * h)
    np.testing.assert_allclose(slope, schedule.beta(inner), rtol=1e-6)
    np.testing.assert_allclose(schedule.alpha(t), np.exp(-schedule.integral(t) / 2), rtol=1e-14)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-14)
    # Accurate relative to itself where hardly any noise has been added.
    tiny = 1e-12 * schedule.T
    np.testing.assert_allclose(schedule.integral(tiny), schedule.beta(0.0) * tiny, rtol=1e-8)
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule.log_snr(tiny)), tiny, rtol=1e-6)
    assert (schedule.kind, schedule.prior_std, schedule.num_train_timesteps) == ("vp", 1, None)
    assert schedule.cleanest_time == schedule.t_min == schedule.T / 1000


def test_continuous_rates_are_their_formulas() -> None:
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(ContinuousVPSchedule.constant(3.0).integral(t), 3 * t)
    np.testing.assert_allclose(ContinuousVPSchedule.linear().beta(t), 0.1 + 19.9 * t)
    np.testing.assert_allclose(ContinuousVPSchedule.linear().integral(t), 0.1 * t + 9.95 * t**2, rtol=1e-14)
    angle = (0.008 + 0.9946 * t) / 1.008 * np.pi / 2
    bar = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    np.testing.assert_allclose(ContinuousVPSchedule.cosine().alpha(t) ** 2, bar, rtol=1e-11)
    # Stretched time, the same noise.
    stretched = ContinuousVPSchedule.cosine(T=4.0)
    np.testing.assert_allclose(stretched.alpha(4 * t), ContinuousVPSchedule.cosine().alpha(t), rtol=1e-13)


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_levels_keep_what_is_not_noise(name: str) -> None:
    schedule = TRUNCATED[name]
    base = schedule.base
    t = np.linspace(base.clean_end, base.noisy_end, 301)
    np.testing.assert_array_equal(schedule.alpha(t), base.alpha(t))
    np.testing.assert_array_equal(schedule.unit_time(t), base.unit_time(t))
    np.testing.assert_allclose(schedule.sigma(t), np.sqrt(np.square(schedule.terms.coefficients(t)).sum(1)), rtol=1e-12)
    assert (schedule.sigma(t) <= base.sigma(t) + 1e-12).all()
    assert schedule.prior_std == schedule.sigma(base.noisy_end)
    assert (schedule.kind, schedule.cleanest_time) == ("vp", base.cleanest_time)
    assert schedule.num_train_timesteps == base.num_train_timesteps
    # The inverse is exact in the log-SNR, also where that is flat in time.
    lam = np.linspace(float(schedule.log_snr(base.noisy_end)), 20, 999)
    np.testing.assert_allclose(schedule.log_snr(schedule.time_of_log_snr(lam)), lam, atol=1e-9)
    inner = lam[lam < 5]
    np.testing.assert_allclose(schedule.log_snr(schedule.time_of_log_snr(inner)), inner, atol=1e-12)


def test_truncated_levels_that_do_not_fall_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # No schedule of the package does this; a rate that switches off would.
    base = VPSchedule(np.exp(-np.concatenate((np.linspace(0.05, 2.0, 20), 2.0 + 1e-9 * np.arange(1, 81)))))
    with pytest.raises(ValueError, match=r"alpha / sigma_M must fall strictly .* 6 terms of basis 'kl' .* at t = "):
        TruncatedVPSchedule(base, 6)
    assert TruncatedVPSchedule(base, 6, "haar").prior_std == pytest.approx(float(base.sigma(99)))


def test_truncation_of_a_chain_that_starts_without_noise() -> None:
    schedule = TruncatedVPSchedule(VPSchedule([1.0, 0.9, 0.5]), 2)
    assert schedule.log_snr(0.0) == np.inf
    assert schedule.time_of_log_snr(np.inf) == -1
    assert 0 < schedule.time_of_log_snr(5.0) < 1
    with pytest.raises(ValueError, match=r"alpha / sigma_M must fall strictly with time .* at t = 0"):
        TruncatedVPSchedule(VPSchedule([1.0]), 2)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: ContinuousVPSchedule.constant(0.0), ValueError, "beta must be positive and finite, got 0"),
        (lambda: ContinuousVPSchedule.constant("3"), TypeError, "beta must be a number, got str"),
        (lambda: ContinuousVPSchedule.linear(T=0.0), ValueError, "T must be positive and finite, got 0"),
        (lambda: ContinuousVPSchedule.linear(T=-1), ValueError, "T must be positive and finite, got -1"),
        (lambda: ContinuousVPSchedule.linear(T=np.inf), ValueError, "T must be positive and finite, got inf"),
        (
            lambda: ContinuousVPSchedule.linear(beta_min=-0.1),
            ValueError,
            "beta_min must be positive and finite",
        ),
        (
            lambda: ContinuousVPSchedule.linear(beta_max=np.nan),
            ValueError,
            "beta_max must be positive .* got nan",
        ),
        (lambda: ContinuousVPSchedule.cosine(s=0.0), ValueError, "s must be positive and finite, got 0"),
        (lambda: ContinuousVPSchedule.cosine(end=1.0), ValueError, "end must lie below 1, .*, got 1"),
        (lambda: ContinuousVPSchedule.linear(t_min=1.0), ValueError, "t_min must lie between 0 and T = 1, got 1"),
        (lambda: ContinuousVPSchedule.linear(t_min=0.0), ValueError, "t_min must lie between 0 and T = 1, got 0"),
        (lambda: ContinuousVPSchedule("linear", 0.1), TypeError, "rate must be a noise rate, got str"),
        (lambda: ContinuousVPSchedule.constant(1e308, T=10.0), ValueError, "beta must have a finite integral"),
        (lambda: TruncatedVPSchedule(FlowSchedule(), 3), TypeError, "need a VPSchedule or a .*, got FlowSchedule"),
        (lambda: TruncatedVPSchedule(VP["linear"], 0), ValueError, "num_terms must be at least 1, got 0"),
    ],
)
def test_bad_continuous_schedules(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()
