"""The families' tables against their papers' algorithms, written out as loops."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.schedule import EDMSchedule, FlowSchedule, VPSchedule
from pydiffaccel.solvers import Plan, integrate, make_plan, wrap_model
from pydiffaccel.solvers.exponential import combine, phi
from pydiffaccel.solvers.quadrature import lagrange_integrals

VP = VPSchedule.linear()
EDM = EDMSchedule()
TIMES = [999.0, 700.0, 520.5, 350.5, 120.0, 40.0]
END = 10.0


def network(x: Tensor, t: float) -> Tensor:
    return torch.tanh(0.8 * x) + 0.3 * torch.cos(x * 2 + t / 300)


def run(plan: Plan, x: Tensor, kind: str = "epsilon") -> Tensor:
    return integrate(plan, wrap_model(lambda x, t: network(x, float(t[0])), prediction_type=kind), x)


def levels(t: float) -> tuple[float, float, float]:
    return float(VP.alpha(t)), float(VP.sigma(t)), float(VP.log_snr(t))


def ddim(x: Tensor, eps: Tensor, t: float, s: float) -> Tensor:
    alpha, sigma, _ = levels(t)
    alpha_s, sigma_s, _ = levels(s)
    return alpha_s / alpha * x + (sigma_s - sigma * alpha_s / alpha) * eps


def close(ours: Tensor, theirs: Tensor) -> None:
    # Model times are float32, so inner stages at real-valued times see 1e-7 of them.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-4)


def test_pndm(normal: Any) -> None:
    x = normal(0, 4, 6)
    ours = run(make_plan("pndm", VP, timesteps=TIMES, end=END), x)
    history: list[Tensor] = []
    for t, s in pairwise([*TIMES, END]):
        m = 0.5 * (t + s)
        first = network(x, t)
        if len(history) < 3:
            second = network(ddim(x, first, t, m), m)
            third = network(ddim(x, second, t, m), m)
            fourth = network(ddim(x, third, t, s), s)
            eps = (first + 2 * second + 2 * third + fourth) / 6
        else:
            eps = (55 * first - 59 * history[-1] + 37 * history[-2] - 9 * history[-3]) / 24
        history.append(first)
        x = ddim(x, eps, t, s)
    close(ours, x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm(normal: Any, order: int) -> None:
    x = normal(0, 4, 6)
    ours = run(make_plan("ipndm", VP, timesteps=TIMES, end=END, order=order), x)
    factors = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    history: list[Tensor] = []
    for t, s in pairwise([*TIMES, END]):
        history.insert(0, network(x, t))
        used = factors[min(order, len(history)) - 1]
        x = ddim(x, sum((f * m for f, m in zip(used, history, strict=False)), torch.zeros_like(x)), t, s)
    close(ours, x)


def test_dpm_solver_2(normal: Any) -> None:
    """2206.00927, algorithm 4, with r_1 = 0.3."""
    x, r = normal(0, 4, 6), 0.3
    ours = run(make_plan("dpm_solver", VP, timesteps=TIMES, end=END, order=2, r1=r), x)
    for s, t in pairwise([*TIMES, END]):
        (alpha, _, lam), (alpha_t, sigma_t, lam_t) = levels(s), levels(t)
        h = lam_t - lam
        middle = float(VP.time_of_log_snr(lam + r * h))
        alpha_m, sigma_m, _ = levels(middle)
        eps = network(x, s)
        u = alpha_m / alpha * x - sigma_m * math.expm1(r * h) * eps
        x = (
            alpha_t / alpha * x
            - sigma_t * math.expm1(h) * eps
            - sigma_t / (2 * r) * math.expm1(h) * (network(u, middle) - eps)
        )
    close(ours, x)


def test_dpm_solver_3(normal: Any) -> None:
    """2206.00927, algorithm 5, with r_1 = 1/3 and r_2 = 2/3."""
    x, r1, r2 = normal(0, 4, 6), 1 / 3, 2 / 3
    plan = make_plan("dpm_solver", VP, timesteps=TIMES, end=END, order=3)
    ours = run(plan, x)
    assert plan.nfe == 3 * len(TIMES)
    for s, t in pairwise([*TIMES, END]):
        (alpha, _, lam), (alpha_t, sigma_t, lam_t) = levels(s), levels(t)
        h = lam_t - lam
        s1, s2 = (float(VP.time_of_log_snr(lam + r * h)) for r in (r1, r2))
        (alpha_1, sigma_1, _), (alpha_2, sigma_2, _) = levels(s1), levels(s2)
        eps = network(x, s)
        u1 = alpha_1 / alpha * x - sigma_1 * math.expm1(r1 * h) * eps
        d1 = network(u1, s1) - eps
        weight = math.expm1(r2 * h) / (r2 * h) - 1
        u2 = alpha_2 / alpha * x - sigma_2 * math.expm1(r2 * h) * eps - sigma_2 * r2 / r1 * weight * d1
        d2 = network(u2, s2) - eps
        x = alpha_t / alpha * x - sigma_t * math.expm1(h) * eps - sigma_t / r2 * (math.expm1(h) / h - 1) * d2
    close(ours, x)


def test_dpm_solver_pp_2s(normal: Any) -> None:
    """2211.01095, algorithm 1, r = 1/2."""
    x = normal(0, 4, 6)
    ours = run(make_plan("dpm_solver++", VP, timesteps=TIMES, end=END, order=2, method="singlestep"), x, "sample")
    for s, t in pairwise([*TIMES, END]):
        (_, sigma, lam), (alpha_t, sigma_t, lam_t) = levels(s), levels(t)
        h = lam_t - lam
        middle = float(VP.time_of_log_snr(lam + 0.5 * h))
        alpha_m, sigma_m, _ = levels(middle)
        first = network(x, s)
        u = sigma_m / sigma * x - alpha_m * math.expm1(-0.5 * h) * first
        x = sigma_t / sigma * x - alpha_t * math.expm1(-h) * network(u, middle)
    close(ours, x)


@pytest.mark.parametrize("variable", ["t", "rho"])
@pytest.mark.parametrize("times", [[900.0, 700.0, 350.5, 120.0, 10.0], [90.0, 20.0, 3.5, 2.5, 0.0]])
def test_deis_integrals(times: list[float], variable: str) -> None:
    """2204.13902, equation 15, by the trapezoid rule in time; the last step goes to clean data."""
    plan = make_plan("deis", VP, timesteps=times, variable=variable)
    grid = [*times, -1.0]

    def rho(t: Any) -> Any:
        return VP.sigma(t) / VP.alpha(t)

    for i, row in enumerate(plan.evaluations):
        (update,) = row.updates
        nodes = np.array([grid[i - lag] for lag in range(len(update.b))])
        assert len(nodes) == min(i + 1, 3)
        t = np.linspace(grid[i], grid[i + 1], 1 + 400 * math.ceil(2 * (grid[i] - grid[i + 1])))
        seen, at = (nodes, t) if variable == "t" else (rho(nodes), rho(t))
        for j, factor in enumerate(update.b):
            basis = math.prod((at - seen[k]) / (seen[j] - seen[k]) for k in range(len(nodes)) if k != j) * np.ones_like(
                t
            )
            total = float((0.5 * (basis[1:] + basis[:-1]) * np.diff(rho(t))).sum())
            assert factor == pytest.approx(float(VP.alpha(grid[i + 1])) * total, rel=5e-5, abs=1e-8)


@pytest.mark.parametrize(("solver", "heun"), [("edm_heun", True), ("euler", False)])
def test_edm_with_churn(normal: Any, solver: str, heun: bool) -> None:
    """2206.00364, algorithm 2, with given noises; D(x; sigma) is the denoiser."""
    n, churn, low, high, s_noise = 8, 4.0, 0.05, 50.0, 1.003
    plan = make_plan(solver, EDM, n, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=s_noise)
    sigmas = [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)] + [0.0]
    x = 80 * normal(0, 4, 6)
    noises = iter([normal(10 + i, 4, 6) for i in range(n)])

    states, outputs = [x], []
    gammas = []
    for row in plan.evaluations:
        sigma = row.point.sigma
        denoised = network(states[-1], sigma)
        outputs.append((states[-1] - denoised) / sigma)
        for update in row.updates:
            new = update.a * states[update.base]
            for b, m in zip(update.b, reversed(outputs), strict=False):
                new = new + b * m
            if update.noise > 0:
                gammas.append(update.point.sigma / plan.state_points[update.base].sigma - 1)
                new = new + update.noise * next(noises)
            states.append(new)

    noises = iter([normal(10 + i, 4, 6) for i in range(n)])
    for sigma, after in pairwise(sigmas):
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * s_noise * next(noises)
        slope = (x - network(x, raised)) / raised
        new = x + (after - raised) * slope
        if heun and after > 0:
            new = x + (after - raised) * 0.5 * (slope + (new - network(new, after)) / after)
        x = new
    close(states[-1], x)
    assert gammas == pytest.approx([math.sqrt(2) - 1] * len(gammas))
    assert len(gammas) == sum(low <= sigma <= high for sigma in sigmas)


@pytest.mark.parametrize(
    ("schedule", "solver", "options"),
    [
        (VP, "ddim", {"eta": 1.0}),
        *(
            (schedule, solver, options)
            for schedule in (VP, EDMSchedule(20.0), FlowSchedule())
            for solver, options in (
                ("edm_heun", {"s_churn": 20.0}),
                ("euler", {"s_churn": 20.0}),
                ("dpm_solver++", {"stochastic": True}),
                ("dpm_solver++", {"stochastic": True, "order": 3}),
            )
        ),
    ],
)
def test_stochastic_solvers_reach_the_data_distribution(
    gaussian: Any, normal: Any, schedule: Any, solver: str, options: Any
) -> None:
    spacing = "uniform" if isinstance(schedule, FlowSchedule) else "log_snr"
    plan = make_plan(solver, schedule, 40, spacing=spacing, **options)
    assert plan.stochastic
    x = schedule.prior_std * normal(0, 1000, 4)
    result = integrate(plan, gaussian, x, seeds=range(1000))
    # Standard errors of 1,000 samples are 3 and 2 % of the deviation; the rest is the step's error.
    torch.testing.assert_close(result.mean(0), gaussian.mean, rtol=0, atol=0.1)
    first_order = solver in ("euler", "ddim")
    torch.testing.assert_close(result.std(0), gaussian.deviation, rtol=0.2 if first_order else 0.1, atol=0)


def test_phi_is_its_integral() -> None:
    for k in (1, 2, 3, 4):
        for z in (-40.0, -1.0001, -0.9999, -1e-9, 0.0, 1e-9, 0.9999, 1.0001, 6.0):
            nodes, weights = np.polynomial.legendre.leggauss(60)
            u = 0.5 * (nodes + 1)
            direct = 0.5 * weights @ (np.exp((1 - u) * z) * u ** (k - 1)) / math.factorial(k - 1)
            assert phi(k, z) == pytest.approx(direct, rel=1e-12)


def test_quadrature_and_combination_are_exact_for_polynomials() -> None:
    nodes, cubic = [0.0, -0.7, -1.1, -2.0], np.polynomial.Polynomial([0.3, -1.0, 0.5, 0.25])
    values = [float(cubic(node)) for node in nodes]
    integral = float(cubic.integ()(1.0) - cubic.integ()(0.0))
    factors = lagrange_integrals(nodes, np.array([0.0, 0.4, 1.0]))
    assert np.dot(factors, values) == pytest.approx(integral, rel=1e-13)
    # h = 1: the weights of m, m', m'', m''' in a Taylor expansion of the integral.
    weights = [1 / math.factorial(k + 1) for k in range(4)]
    assert np.dot(combine(weights, nodes), values) == pytest.approx(integral, rel=1e-13)
