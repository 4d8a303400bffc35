"""PlanScheduler from the configurations of diffusers' schedulers, against these schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pydiffaccel as da
from pydiffaccel.solvers import make_plan

diffusers = pytest.importorskip("diffusers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402
from tests.pipelines.parts import (  # noqa: E402
    BETAS,
    generator,
    loop,
    noise,
)

SOURCES: list[tuple[str, dict[str, Any], float]] = [
    ("DDIMScheduler", {"clip_sample": False}, 1e-5),
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False, **BETAS}, 1e-5),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 1e-5),
    (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
        1e-5,
    ),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **BETAS}, 1e-5),
    ("PNDMScheduler", {"steps_offset": 1, **BETAS}, 1e-5),
    ("EulerDiscreteScheduler", {}, 1e-5),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, 1e-5),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, 1e-5),
    ("KDPM2DiscreteScheduler", {}, 1e-5),
    ("DPMSolverMultistepScheduler", {}, 1e-5),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}, 1e-5),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}, 1e-5),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "timestep_spacing": "leading", "steps_offset": 1}, 1e-5),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 1e-5),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, 1e-5),
    ("DEISMultistepScheduler", {"solver_order": 2}, 1e-5),
    ("UniPCMultistepScheduler", {"solver_order": 3}, 1e-5),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "predict_x0": False, "final_sigmas_type": "sigma_min"}, 1e-5),
    ("EDMEulerScheduler", {}, 1e-5),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, 1e-5),
    ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential", "solver_order": 3}, 1e-5),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1e-5),
]


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(("name", "config", "tolerance"), SOURCES)
def test_configurations_of_diffusers(
    name: str, config: dict[str, Any], tolerance: float, saved: bool, tmp_path: Path
) -> None:
    """PlanScheduler from their configuration is their method, at their timesteps."""
    theirs = getattr(diffusers, name)(**config)
    if saved:
        theirs.save_pretrained(tmp_path)
        ours = PlanScheduler.from_pretrained(tmp_path)
    else:
        named = {"_class_name": name} if name.startswith("KDPM2") else {}
        ours = PlanScheduler.from_config({**theirs.config, **named})
    for steps in (5, 10):
        theirs.set_timesteps(steps)
        ours.set_timesteps(steps)
        start = noise(4, 3) * ours.init_noise_sigma
        # theirs hold x_0 + sigma noise, and some start a little off the noise level they name
        scale = float(theirs.sigmas.max() ** 2 + 1) ** 0.5 if name.startswith(("Euler", "Heun", "KDPM2")) else 1.0
        expected = loop(theirs, start * scale, steps)
        result = loop(ours, start, steps)
        assert float((result - expected).abs().max() / expected.abs().max()) < tolerance, steps
        if "use_karras_sigmas" not in config:  # theirs rounds the times of these to training indices
            places = 1e-3 if name.startswith("KDPM2") else 1e-5  # its inner times are interpolated in log sigma
            torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), rtol=places, atol=1e-5)
        assert ours.order == getattr(theirs, "order", 1)
        assert ours.init_noise_sigma == (80.0 if name.startswith("EDM") else 1.0)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    "first", ["PNDMScheduler", "DDIMScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"]
)
@pytest.mark.parametrize("second", ["DPMSolverMultistepScheduler", "DDIMScheduler", "UniPCMultistepScheduler"])
def test_a_scheduler_made_from_another_one(first: str, second: str) -> None:
    """As pipelines swap them, in memory: the configuration has keys of both and names no class."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipelines = getattr(diffusers, first)(**settings)
    theirs = getattr(diffusers, second).from_config(pipelines.config, clip_sample=False)
    ours = PlanScheduler.from_config(theirs.config)
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float())
    start = noise(4, 3)
    torch.testing.assert_close(loop(ours, start, 8), loop(theirs, start, 8), rtol=1e-4, atol=1e-4)


def test_a_configuration_that_names_no_scheduler() -> None:
    for config in (diffusers.LMSDiscreteScheduler().config, {"beta_schedule": "linear", "gamma": 3}):
        with pytest.raises(ValueError, match="names no scheduler and has the keys of none that is known"):
            PlanScheduler.from_config(config)
    own = PlanScheduler(solver="unipc", solver_order=3)
    assert PlanScheduler.from_config(own.config).config["solver"] == "unipc"


def test_ddpm_configuration_is_its_posterior() -> None:
    """All of DDPM's steps: mean and variance of its own scheduler, from the same noise."""
    theirs = diffusers.DDPMScheduler(20, beta_end=0.3, clip_sample=False)
    ours = PlanScheduler.from_config(theirs.config)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    a = b = noise(4, 3)
    source = [generator(1), generator(1)]
    for t in theirs.timesteps:
        a = theirs.step(torch.tanh(a), t, a, generator=source[0]).prev_sample
        b = ours.step(torch.tanh(b), t, b, generator=source[1]).prev_sample
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_euler_ancestral_configuration(spacing: str) -> None:
    theirs = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1)
    ours = PlanScheduler.from_config(theirs.config)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), rtol=1e-5, atol=1e-4)
    x = noise(4, 3)
    expected, source = x * float(theirs.sigmas[0] ** 2 + 1) ** 0.5, [generator(1), generator(1)]
    for ours_t, t in zip(ours.timesteps, theirs.timesteps, strict=True):
        answer = torch.tanh(theirs.scale_model_input(expected, t))
        expected = theirs.step(answer, t, expected, generator=source[0]).prev_sample
        x = ours.step(torch.tanh(x), ours_t, x, generator=source[1]).prev_sample
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_another_solver_on_a_configuration() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", solver_order=3)
    ours = PlanScheduler.from_config(theirs.config, solver="unipc", timestep_spacing="log_snr")
    ours.set_timesteps(6)
    expected = make_plan("unipc", da.VPSchedule.scaled_linear(), 6, spacing="log_snr")
    assert ours.plan == expected


def test_clipping_is_taken_over() -> None:
    """DDIM's use_clipped_model_output: the noise follows the clamped data."""
    theirs = diffusers.DDIMScheduler(clip_sample_range=0.7)
    ours = PlanScheduler.from_config(theirs.config)
    theirs.set_timesteps(10)
    x = noise(4, 3)
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(torch.tanh(expected), t, expected, use_clipped_model_output=True).prev_sample
    result = loop(ours, x, 10)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert result.abs().max() <= 0.7 + 1e-6
    ours.register_to_config(clip_sample=False)
    assert loop(ours, x, 10).abs().max() > 0.7


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("DDIMScheduler", {"thresholding": True}, "no plan has thresholding=True of this DDIMScheduler"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "no plan has use_lu_lambdas=True of this"),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True}, "no plan has euler_at_final=True of this"),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, "no plan has variance_type='fixed_large' of this DDPM"),
        (
            "DDPMScheduler",
            {"beta_schedule": "sigmoid"},
            "unknown beta_schedule 'sigmoid'; known: linear",
        ),
        ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}, "no plan has final_sigmas_type='sigma_min' of this"),
        ("LCMScheduler", {}, "PlanScheduler reads configurations of DDIMScheduler, .*, got 'LCMScheduler'"),
    ],
)
def test_configurations_that_no_plan_has(name: str, config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    getattr(diffusers, name)(**config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        PlanScheduler.from_pretrained(tmp_path)


def test_compatible_schedulers() -> None:
    names = {kind.__name__ for kind in PlanScheduler().compatibles}
    assert {"DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EDMEulerScheduler"} <= names
    back = diffusers.DDIMScheduler.from_config(PlanScheduler(**BETAS).config)
    assert back.config.beta_schedule == "scaled_linear"
    plan = make_plan("ddim", da.VPSchedule.scaled_linear(), 4)
    back = diffusers.DDIMScheduler.from_config(PlanScheduler.from_plan(plan).config)
    bar = torch.tensor(da.VPSchedule.scaled_linear().alphas_cumprod, dtype=torch.float32)
    torch.testing.assert_close(back.alphas_cumprod, bar, rtol=1e-4, atol=0)
