"""Karhunen-Loeve coefficients against closed forms, quadrature and the identities of the expansion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pydiffaccel.forward import KLProcess, VPProcess, kl_coefficients
from pydiffaccel.schedule import VPSchedule

Array = NDArray[np.float64]


def frequencies(num_steps: int, num_terms: int) -> Array:
    return (np.arange(1, num_terms + 1) - 0.5) * np.pi / num_steps


def constant_beta(beta: float, num_steps: int, num_terms: int) -> Array:
    """c_k at t = 1 .. T for beta constant over [0, T] (methods, section 2)."""
    w, t = frequencies(num_steps, num_terms), np.arange(1, num_steps + 1)[:, None]
    bracket = beta / 2 * np.cos(w * t) + w * np.sin(w * t) - beta / 2 * np.exp(-beta * t / 2)
    return np.asarray(np.sqrt(2 * beta / num_steps) * bracket / (beta**2 / 4 + w**2))


def gauss_recursion(schedule: VPSchedule, num_terms: int) -> Array:
    """The recursion over intervals with 3-point Gauss quadrature of the forcing term."""
    integral = np.concatenate(([0.0], -np.log(schedule.alphas_cumprod)))
    num_steps = schedule.num_train_timesteps
    w = frequencies(num_steps, num_terms)
    nodes, gauss = np.polynomial.legendre.leggauss(3)
    table, c = [], np.zeros(num_terms)
    for i, beta in enumerate(np.diff(integral)):
        c = c * np.exp(-beta / 2)
        for s, weight in zip((nodes + 1) / 2, gauss / 2, strict=True):
            derivative = np.sqrt(2 / num_steps) * np.cos(w * (i + s))
            c = c + weight * np.exp(-beta * (1 - s) / 2) * np.sqrt(beta) * derivative
        table.append(c)
    return np.array(table)


def dense_quadrature(schedule: VPSchedule, num_terms: int, index: int) -> Array:
    """c_k(t) = int_0^t exp(-(B_t - B_s) / 2) sqrt(beta(s)) phi_k'(s) ds at t = index + 1, 20 nodes an interval."""
    integral = np.concatenate(([0.0], -np.log(schedule.alphas_cumprod[: index + 1])))
    nodes, gauss = np.polynomial.legendre.leggauss(20)
    s = np.arange(index + 1)[:, None] + (nodes + 1) / 2
    beta = np.diff(integral)[:, None]
    accumulated = integral[:-1, None] + beta * (nodes + 1) / 2
    kernel = np.exp(-(integral[-1] - accumulated) / 2) * np.sqrt(beta) * (gauss / 2)
    w = frequencies(schedule.num_train_timesteps, num_terms)
    derivatives = np.sqrt(2 / schedule.num_train_timesteps) * np.cos(s.reshape(-1, 1) * w)
    return np.asarray(kernel.reshape(-1) @ derivatives)


SCHEDULES = [VPSchedule.linear(), VPSchedule.scaled_linear(400), VPSchedule.cosine(200), VPSchedule.linear(7, 0.1, 0.9)]


@pytest.mark.parametrize(("beta", "num_steps"), [(0.02, 300), (1e-4, 1000), (1.5, 40), (0.5, 1)])
def test_constant_beta_has_its_closed_form(beta: float, num_steps: int) -> None:
    schedule = VPSchedule.from_betas(np.full(num_steps, 1 - np.exp(-beta)))
    assert np.abs(kl_coefficients(schedule, 12) - constant_beta(beta, num_steps, 12)).max() < 1e-11


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_table_equals_dense_quadrature(schedule: VPSchedule) -> None:
    table = kl_coefficients(schedule, 10)
    for index in {0, schedule.num_train_timesteps // 3, schedule.num_train_timesteps - 1}:
        assert np.abs(table[index] - dense_quadrature(schedule, 10, index)).max() < 1e-11


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=repr)
def test_table_equals_the_gauss_recursion(schedule: VPSchedule) -> None:
    assert np.abs(kl_coefficients(schedule, 10) - gauss_recursion(schedule, 10)).max() < 1e-8


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_more_terms_keep_the_first(schedule: VPSchedule) -> None:
    assert np.array_equal(kl_coefficients(schedule, 9)[:, :4], kl_coefficients(schedule, 4))


@pytest.mark.parametrize("schedule", [VPSchedule.linear(100, 1e-3, 0.2), VPSchedule.cosine(100)], ids=repr)
def test_parseval(schedule: VPSchedule) -> None:
    variance = 1 - schedule.alphas_cumprod
    square = np.cumsum(np.square(kl_coefficients(schedule, 8000)), axis=1)
    missing = variance[:, None] - square
    # Bessel: the terms never have more than the variance of the process. With all of them they have all of it.
    assert missing.min() > -1e-12
    # What is missing: the integrand exp(-(B_t - B_s) / 2) sqrt(beta(s)) jumps to 0 at s = t and a little between steps,
    # so c_k^2 falls like 1 / k^2 and the rest like T / (pi^2 M) times the squared jumps. At t = T the last jump counts
    # twice: there sin^2(omega_k t) is 1, elsewhere 1 / 2 on average.
    integral = -np.log(schedule.alphas_cumprod)
    num_steps, beta = integral.size, np.diff(integral, prepend=0.0)
    between = np.square(np.diff(np.sqrt(beta)))
    jumps = [beta[i] + np.exp(integral[:i] - integral[i]) @ between[:i] for i in range(num_steps)]
    jumps[-1] += beta[-1]
    for terms in (4000, 8000):
        assert missing[:, terms - 1] == pytest.approx(np.array(jumps) * num_steps / (np.pi**2 * terms), rel=0.02)
    # Extrapolated over M that is Parseval's equality.
    assert np.all(np.abs(2 * missing[:, 7999] - missing[:, 3999]) < 2e-3 * missing[:, 3999])


def test_truncation_is_as_large_as_the_design_says() -> None:
    # VP with beta 0.1 .. 20 on [0, 1]; ratio of the truncated variance at t = 0.01, 0.5, 1.
    grid = np.arange(1, 1001) / 1000
    schedule = VPSchedule(np.exp(-(0.1 * grid + 9.95 * grid**2)))
    index = np.array([9, 499, 999])
    for terms, expected in ((3, (0.059, 0.718, 0.185)), (10, (0.193, 0.888, 0.624))):
        process = KLProcess(schedule, terms)
        ratio = process.sigma.numpy()[index] ** 2 / (1 - schedule.alphas_cumprod[index])
        assert ratio == pytest.approx(expected, abs=2e-3)


def test_process_holds_the_table() -> None:
    schedule = VPSchedule.cosine(30)
    process = KLProcess(schedule, 4, prediction_type="v_prediction")
    table = kl_coefficients(schedule, 4)
    assert process.num_terms == 4
    assert process.basis == "kl"
    assert process.coefficients.dtype == process.sigma.dtype == torch.float64
    assert np.array_equal(process.coefficients.numpy(), table)
    assert np.allclose(process.sigma.numpy(), np.sqrt((table**2).sum(1)), rtol=1e-15)
    t = torch.tensor([29, 0, 5])
    assert torch.equal(process.terms(t), process.coefficients[t])
    with pytest.raises(ValueError, match=r"t must lie in 0 \.\. 29, got 30"):
        process.terms(torch.tensor([30]))


def test_process_noises_like_the_vp_process() -> None:
    schedule = VPSchedule.linear(50)
    kl, vp = KLProcess(schedule, 4), VPProcess(schedule=schedule)
    x0, noise = torch.ones(3, 2), torch.full((3, 2), -0.7)
    t = kl.sample_timesteps(3, seed=1, step=2)
    assert torch.equal(t, vp.sample_timesteps(3, seed=1, step=2))
    assert torch.equal(kl.add_noise(x0, noise, t), vp.add_noise(x0, noise, t))
    assert kl.schedule == vp.schedule


def test_no_noise_at_the_first_index_is_allowed() -> None:
    schedule = VPSchedule(np.array([1.0, 0.9, 0.5]))
    table = kl_coefficients(schedule, 3)
    assert np.array_equal(table[0], np.zeros(3))
    assert np.isfinite(table).all()


def test_a_path_of_the_expansion_solves_the_sde_noise_free() -> None:
    # dx/dt = -beta / 2 x + sqrt(beta) sum_k Z_k phi_k'(t) by small Euler steps, for one draw of Z.
    schedule, terms, fine = VPSchedule.linear(20, 0.01, 0.3), 3, 20_000
    z, x0 = np.array([0.7, -1.2, 0.4]), 0.9
    beta, w = -np.log(1 - schedule.betas), frequencies(20, terms)
    x = x0
    for step in range(20 * fine // 20):
        s = (step + 0.5) * 20 / fine
        derivative = np.sqrt(2 / 20) * np.cos(w * s) @ z
        rate = beta[int(s)]
        x += 20 / fine * (-rate / 2 * x + np.sqrt(rate) * derivative)
    expected = schedule.alpha(19) * x0 + kl_coefficients(schedule, terms)[-1] @ z
    assert x == pytest.approx(float(expected), abs=1e-3)
