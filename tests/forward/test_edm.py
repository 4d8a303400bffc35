"""EDM: preconditioning, training times and loss of 2206.00364."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from pydiffaccel.forward import EDMProcess
from pydiffaccel.forward.process import timestep_uniforms
from pydiffaccel.losses import diffusion_loss

TYPES = ["edm", "epsilon", "sample"]


def batch(size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(size, 4, 3, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x0 * 0.5, noise


def coefficients(t: Tensor, data: float) -> tuple[Tensor, ...]:
    """c_skip, c_out, c_in, c_noise and the weight lambda as the paper's table 1 spells them."""
    square = t**2 + data**2
    return data**2 / square, t * data / square.sqrt(), square.rsqrt(), t.log() / 4, square / (t * data) ** 2


def test_the_loss_is_the_papers() -> None:
    process = EDMProcess(0.6)
    x0, noise = batch(7)
    t = process.sample_timesteps(7, seed=1, step=2)
    skip, out, into, c_noise, weight = (value.view(-1, 1, 1) for value in coefficients(t, 0.6))

    def network(x: Tensor, time: Tensor) -> Tensor:
        assert torch.allclose(x, into * (x0 + t.view(-1, 1, 1) * noise), rtol=1e-12)
        assert torch.allclose(time, c_noise.flatten().float())
        return x.sin() * time.view(-1, 1, 1)

    loss = diffusion_loss(network, x0, t, process=process, noise=noise, reduction="none")
    noised = x0 + t.view(-1, 1, 1) * noise
    denoised = skip * noised + out * network(into * noised, c_noise.flatten().float())
    papers = (weight * (denoised - x0).square()).flatten(1).mean(1)
    assert torch.allclose(loss, papers, rtol=1e-9)
    answer = network(into * noised, c_noise.flatten().float())
    assert torch.allclose(process.denoised(answer, noised, t), denoised, rtol=1e-12)


def test_training_times_are_log_normal() -> None:
    process = EDMProcess(p_mean=-0.4, p_std=1.7)
    t = process.sample_timesteps(20_000, seed=1, step=2)
    assert t.dtype == torch.float64
    assert kstest(((t.log() + 0.4) / 1.7).numpy(), "norm").pvalue > 1e-3
    # The same draws as the times of every other process.
    u = timestep_uniforms(20_000, 1, 2, 0)
    assert torch.allclose(torch.special.ndtr((t.log() + 0.4) / 1.7), u, atol=1e-12)


def test_inputs_and_targets_have_unit_variance_at_every_level() -> None:
    process = EDMProcess()
    x0, noise = (torch.randn(4000, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x0 = 0.5 * x0
    for level in (0.002, 0.1, 0.5, 3.0, 80.0):
        t = torch.full((4000,), level, dtype=torch.float64)
        assert float(process.model_input(process.add_noise(x0, noise, t), t).std()) == pytest.approx(1, abs=0.02)
        assert float(process.target(x0, noise, t).std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_the_target_stands_for_the_data(kind: str, dtype: torch.dtype) -> None:
    process = EDMProcess(prediction_type=kind)
    x0, noise = batch(6, dtype)
    t = torch.tensor([0.01, 0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)
    x_t = process.add_noise(x0, noise, t)
    found = process.denoised(process.target(x0, noise, t), x_t, t)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    accuracy = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2}[dtype]
    assert torch.allclose(found, x0.to(found.dtype), atol=accuracy)
    assert process.model_input(x_t, t).dtype == dtype


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: EDMProcess(0.0), ValueError, "sigma_data must be finite and positive, got 0.0"),
        (lambda: EDMProcess("1"), TypeError, "sigma_data must be a number, got str"),
        (lambda: EDMProcess(p_std=-1.0), ValueError, "p_std must be finite and positive, got -1.0"),
        (lambda: EDMProcess(p_mean=math.nan), ValueError, "p_mean must be finite, got nan"),
        (lambda: EDMProcess(sigma_max=-1.0), ValueError, "sigma_max must be positive and finite, got -1.0"),
        (lambda: EDMProcess(prediction_type="flow"), ValueError, "of an edm process must be one of edm, .* got 'flow'"),
        (
            lambda: EDMProcess().levels(torch.tensor([1])),
            TypeError,
            "floating-point noise levels, got dtype torch.int6",
        ),
        (lambda: EDMProcess().levels(torch.tensor([0.0])), ValueError, "t must be a positive noise level, got 0.0"),
        (lambda: EDMProcess().levels(torch.tensor([torch.nan])), ValueError, "positive noise level, got nan"),
    ],
)
def test_bad_settings_and_times(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()
