"""The samplers behind k-diffusion's signature, against its loops written out from the papers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffaccel.k_diffusion as k
from pydiffaccel.schedule import EDMSchedule, VPSchedule
from pydiffaccel.solvers import integrate, make_plan, wrap_model
from pydiffaccel.solvers.distill import apply_lambdas

SIGMAS = torch.tensor([14.6, 9.0, 5.0, 2.5, 1.1, 0.4, 0.1, 0.0], dtype=torch.float64)
SAMPLERS = {name.removeprefix("sample_"): getattr(k, name) for name in k.__all__ if name != "sample_plan"}
DETERMINISTIC = [name for name in SAMPLERS if "sde" not in name]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


CENTRES = draw(5, 4, seed=9)


def model(x: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
    """The best data prediction for equally likely Gaussians of deviation 0.3."""
    assert sigma.shape == (len(x),)
    variance = 0.09 + sigma.to(x.dtype)[:, None, None] ** 2
    offset = x[:, None] - CENTRES.to(x.dtype)
    weight = torch.softmax(-offset.square().sum(-1, keepdim=True) / (2 * variance), dim=1)
    return (weight * (CENTRES.to(x.dtype) + 0.09 / variance * offset)).sum(1) + shift


def euler(x: Tensor, sigmas: list[float]) -> Tensor:
    for here, after in pairwise(sigmas):
        x = x + (after - here) * (x - model(x, torch.full((len(x),), here))) / here
    return x


def heun(x: Tensor, sigmas: list[float]) -> Tensor:
    for here, after in pairwise(sigmas):
        slope = (x - model(x, torch.full((len(x),), here))) / here
        guess = x + (after - here) * slope
        if after > 0:
            slope = 0.5 * (slope + (guess - model(guess, torch.full((len(x),), after))) / after)
        x = x + (after - here) * slope
    return x


def dpm_2(x: Tensor, sigmas: list[float]) -> Tensor:
    for here, after in pairwise(sigmas):
        slope = (x - model(x, torch.full((len(x),), here))) / here
        if after > 0:
            middle = math.sqrt(here * after)
            inner = x + (middle - here) * slope
            slope = (inner - model(inner, torch.full((len(x),), middle))) / middle
        x = x + (after - here) * slope
    return x


def dpmpp_2m(x: Tensor, sigmas: list[float]) -> Tensor:
    old, step_before = None, 0.0
    for here, after in pairwise(sigmas):
        data = model(x, torch.full((len(x),), here))
        if after == 0:
            return data
        step = math.log(here / after)
        used = data if old is None else (1 + step / (2 * step_before)) * data - step / (2 * step_before) * old
        x = after / here * x - math.expm1(-step) * used
        old, step_before = data, step
    return x


REFERENCES: dict[str, Callable[[Tensor, list[float]], Tensor]] = {
    "euler": euler,
    "ddim": euler,
    "heun": heun,
    "dpm_solver": dpm_2,
    "dpmpp_2m": dpmpp_2m,
}


@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("name", REFERENCES)
def test_loops_of_the_papers(name: str, end: float) -> None:
    sigmas = [*SIGMAS.tolist()[:-1], end]
    x = SIGMAS[0] * draw(6, 4)
    result = SAMPLERS[name](model, x, torch.tensor(sigmas, dtype=torch.float64), disable=True)
    torch.testing.assert_close(result, REFERENCES[name](x, sigmas), rtol=1e-6, atol=1e-6)  # float32 levels in the model


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_converges_to_the_fine_solution(name: str) -> None:
    x = 14.6 * draw(6, 4)

    def levels(steps: int) -> Tensor:
        ramp = torch.linspace(14.6 ** (1 / 7), 0.05 ** (1 / 7), steps + 1, dtype=torch.float64)
        return ramp**7

    fine = k.sample_heun(model, x, levels(2000), disable=True)
    coarse = [SAMPLERS[name](model, x, levels(steps), disable=True) for steps in (20, 80)]
    errors = [float((result - fine).abs().max()) for result in coarse]
    assert errors[1] < 0.05
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_signature_is_that_of_k_diffusion(name: str) -> None:
    parameters = inspect.signature(SAMPLERS[name]).parameters
    assert list(parameters)[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    assert all(parameters[key].default is None for key in ("extra_args", "callback", "disable"))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_callback_extra_args_and_dtype(name: str, dtype: torch.dtype) -> None:
    seen: list[dict[str, Any]] = []
    evaluated: list[tuple[Tensor, Tensor]] = []

    def kept(x: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
        evaluated.append((x, model(x, sigma, shift)))
        return evaluated[-1][1]

    x = (14.6 * draw(6, 4)).to(dtype)
    before = x.clone()
    result = SAMPLERS[name](kept, x, SIGMAS, {"shift": 0.25}, seen.append, True)
    assert result.dtype == dtype
    assert result.isfinite().all()
    assert torch.equal(x, before)
    assert all(state.dtype == dtype for state, _ in evaluated)
    assert [step["i"] for step in seen] == list(range(7))
    for step, sigma in zip(seen, SIGMAS, strict=False):
        assert float(step["sigma"]) == pytest.approx(float(sigma), rel=1e-6)
        assert float(step["sigma_hat"]) == pytest.approx(float(sigma), rel=1e-6)
        assert any(state is step["x"] and answer is step["denoised"] for state, answer in evaluated)
    assert torch.equal(seen[0]["x"], x)


def test_churn_is_that_of_the_paper() -> None:
    """Algorithm 2 of 2206.00364, with the noise of torch's generator."""
    sigmas, x = SIGMAS.tolist(), 14.6 * draw(6, 4)
    churn = {"s_churn": 2.0, "s_tmin": 0.2, "s_tmax": 10.0, "s_noise": 1.007}
    seen: list[dict[str, Any]] = []
    torch.manual_seed(5)
    result = k.sample_euler(model, x, SIGMAS, callback=seen.append, disable=True, **churn)
    torch.manual_seed(5)
    expected, gamma = x, min(2.0 / 7, math.sqrt(2) - 1)
    for i, (here, after) in enumerate(pairwise(sigmas)):
        hat = here
        if 0.2 <= here <= 10.0:
            hat = here * (1 + gamma)
            expected = expected + 1.007 * math.sqrt(hat**2 - here**2) * torch.randn_like(expected)
        assert float(seen[i]["sigma"]) == pytest.approx(here)
        assert float(seen[i]["sigma_hat"]) == pytest.approx(hat)
        torch.testing.assert_close(seen[i]["x"], expected, rtol=1e-6, atol=1e-6)
        expected = expected + (after - hat) * (expected - model(expected, torch.full((6,), hat))) / hat
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_noise_sampler_and_eta() -> None:
    x, calls = 14.6 * draw(6, 4), []

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        calls.append((float(sigma), float(sigma_next)))
        return draw(6, 4, seed=len(calls))

    first = k.sample_dpmpp_2m_sde(model, x, SIGMAS, disable=True, noise_sampler=noise_sampler)
    levels = SIGMAS.tolist()
    assert calls == [(pytest.approx(a), pytest.approx(b)) for a, b in pairwise(levels[:-1])]
    calls.clear()
    assert torch.equal(k.sample_dpmpp_2m_sde(model, x, SIGMAS, disable=True, noise_sampler=noise_sampler), first)
    ode = k.sample_dpmpp_2m_sde(model, x, SIGMAS, disable=True, eta=0.0)
    assert torch.equal(ode, k.sample_dpmpp_2m(model, x, SIGMAS, disable=True))
    assert not torch.equal(first, ode)
    with pytest.raises(ValueError, match=r"eta must be 0 or 1, got 0\.5"):
        k.sample_dpmpp_2m_sde(model, x, SIGMAS, eta=0.5)


def test_any_plan_runs() -> None:
    schedule, x = EDMSchedule(14.6), 14.6 * draw(6, 4)
    plan = make_plan("unipc", schedule, 6, order=3)
    expected = integrate(plan, wrap_model(model, prediction_type="denoised"), x)
    torch.testing.assert_close(k.sample_plan(model, x, plan, disable=True), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="these samplers run plans on an edm schedule, got vp"):
        k.sample_plan(model, x, apply_lambdas(make_plan("ddim", VPSchedule.linear(), 3), [0.1, 0.2, 0.3]))
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        k.sample_plan(model, x, "unipc")  # type: ignore[arg-type]


def test_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    x = 14.6 * draw(6, 4)
    k.sample_euler(model, x, SIGMAS)  # no terminal here
    assert capsys.readouterr().err == ""
    k.sample_euler(model, x, SIGMAS, disable=False)
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ([1.0], r"sigmas must hold at least two levels, the first and the last, got \[1.0\]"),
        ([1.0, -1.0], r"sigmas must be finite and not negative, the first positive, got \[1.0, -1.0\]"),
        ([0.0, 0.0], "the first positive"),
        ([1.0, math.nan, 0.0], "sigmas must be finite"),
        ([1.0, 2.0, 0.0], "sigmas must fall strictly, got 1 and then 2"),
    ],
)
def test_levels_that_are_none(sigmas: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        k.sample_euler(model, draw(6, 4), sigmas)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match=r"at sigma = 14.6 the model must return shape \(6, 4\), got \(3, 4\)"):
        k.sample_euler(lambda x, sigma: x[:3], draw(6, 4), SIGMAS)
    with pytest.raises(
        ValueError, match=r"at evaluation 1 of 7 \(t = 14.6\) the model returned values that are not fin"
    ):
        k.sample_euler(lambda x, sigma: x * math.nan, draw(6, 4), SIGMAS)
    with pytest.raises(TypeError, match="model must be callable, got str"):
        k.sample_euler("model", draw(6, 4), SIGMAS)  # type: ignore[arg-type]
