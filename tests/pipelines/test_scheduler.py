"""PlanScheduler by itself: noise levels, states, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import pydiffaccel as da
from pydiffaccel.schedule import TruncatedVPSchedule
from pydiffaccel.solvers import integrate, make_plan, wrap_model

diffusers = pytest.importorskip("diffusers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402
from tests.pipelines.parts import (  # noqa: E402
    BETAS,
    PLANS,
    VP,
    Toy,
    loop,
    noise,
)


def test_plans_on_truncated_noise_levels() -> None:
    schedule = TruncatedVPSchedule(VP, num_terms=3)
    plan = make_plan("dpm_solver++", schedule, 5)
    scheduler = PlanScheduler.from_config(PlanScheduler.from_plan(plan).config)
    assert scheduler.init_noise_sigma == schedule.prior_std < 1
    x = noise(2, 3)
    expected = integrate(plan, Toy(), x * schedule.prior_std)
    assert torch.equal(loop(scheduler, x * scheduler.init_noise_sigma), expected)
    t = torch.tensor([999.0, 20.5])
    noised = scheduler.add_noise(torch.zeros(2, 3), torch.ones(2, 3), t)
    torch.testing.assert_close(noised[:, 0], torch.from_numpy(schedule.sigma(t.numpy())).float())


def test_copies_are_independent() -> None:
    first = PlanScheduler.from_plan(PLANS["dpm_solver++3M"])
    x = noise(2, 3)
    state = first.step(torch.tanh(x), first.timesteps[0], x).prev_sample
    second = copy.deepcopy(first)
    assert second.step_index == 1
    loop(second, x)
    assert first.step_index == 1
    assert first.step(torch.tanh(state), first.timesteps[1], state).prev_sample.isfinite().all()


def test_add_noise_and_velocity_are_those_of_training() -> None:
    theirs = diffusers.DDPMScheduler(**BETAS)
    ours = PlanScheduler(**BETAS)
    x, z, t = noise(6, 2, 3), noise(6, 2, 3, seed=4), torch.tensor([0, 1, 17, 500, 998, 999])
    torch.testing.assert_close(ours.add_noise(x, z, t), theirs.add_noise(x, z, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.get_velocity(x, z, t), theirs.get_velocity(x, z, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5, atol=0)
    real = torch.tensor([0.25, 12.5, 300.125, 998.75, 999.0, 0.0], dtype=torch.float64)
    schedule = da.VPSchedule.scaled_linear()
    alpha = torch.from_numpy(schedule.alpha(real.numpy()))[:, None, None]
    sigma = torch.from_numpy(schedule.sigma(real.numpy()))[:, None, None]
    torch.testing.assert_close(ours.add_noise(x.double(), z.double(), real), alpha * x + sigma * z)
    half = ours.add_noise(x.half(), z.half(), t)
    assert half.dtype == torch.float16
    rescaled = PlanScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert torch.equal(rescaled.add_noise(x, z, torch.full((6,), 999)), z)
    assert len(ours) == 1000


def test_flow_and_edm_levels() -> None:
    x, z = noise(2, 3), noise(2, 3, seed=4)
    flow = PlanScheduler(noise_schedule="flow", solver="euler", prediction_type="flow_prediction")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(10)
    t = theirs.timesteps[[2, 7]]
    torch.testing.assert_close(flow.scale_noise(x, t, z), theirs.scale_noise(x, t, z))
    assert torch.equal(flow.get_velocity(x, z, t), z - x)
    edm = PlanScheduler(noise_schedule="edm", solver="edm_heun")
    edm.set_timesteps(5)
    torch.testing.assert_close(edm.add_noise(x, z, edm.timesteps[:2]), x + edm.sigmas[:2, None] * z)


def test_dynamic_shifting() -> None:
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    ours = PlanScheduler.from_config(theirs.config)
    sigmas = torch.linspace(1.0, 0.1, 10).tolist()
    theirs.set_timesteps(sigmas=sigmas, mu=0.8)
    ours.set_timesteps(sigmas=sigmas, mu=0.8)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    with pytest.raises(ValueError, match="this scheduler shifts dynamically, so set_timesteps needs mu"):
        ours.set_timesteps(10)


def test_edm_network_is_that_of_wrap_model() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(3 * x) + t.reshape(-1, 1)

    scheduler = PlanScheduler(noise_schedule="edm", solver="edm_heun", sigma_max=40.0, sigma_data=0.7)
    scheduler.set_timesteps(6)
    plan = scheduler.plan
    assert plan is not None
    start = x = noise(4, 3) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    denoiser = wrap_model(network, prediction_type="edm", sigma_data=0.7)
    torch.testing.assert_close(x, integrate(plan, denoiser, start), rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_a_float32_state() -> None:
    plan = make_plan("dpm_solver++", VP, 40)
    scheduler = PlanScheduler.from_plan(plan)
    start = noise(8, 32)
    exact = integrate(plan, Toy(), start.bfloat16())
    with torch.no_grad():
        x = start.bfloat16()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x.float()), t, x).prev_sample
            assert x.dtype == torch.bfloat16
    kept = (x.float() - exact).square().mean()
    x = start.bfloat16()
    scheduler.set_timesteps()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x.float()), t, x.clone()).prev_sample
    lost = (x.float() - exact).square().mean()
    assert kept < 0.5 * lost


def test_a_changed_sample_replaces_the_state() -> None:
    """As inpainting does between steps, in place or not, in any precision."""
    plan = make_plan("ddim", VP, 4)
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for in_place in (True, False):
            scheduler, x = PlanScheduler.from_plan(plan), noise(3, 4).to(dtype)
            for index, t in enumerate(scheduler.timesteps):
                x = scheduler.step(torch.tanh(x), t, x).prev_sample
                if index == 1 and in_place:
                    x[:, 0] = 0.25
                elif index == 1:
                    x = torch.cat([torch.full_like(x[:, :1], 0.25), x[:, 1:]], dim=1)
            results.append(x)
        # the other columns of a half-precision state are rounded when it is replaced, in both
        assert torch.equal(results[0], results[1])


def test_no_step_asks_the_device_for_a_value() -> None:
    """On the meta device every question for a value raises."""
    for plan in (PLANS["dpm_solver++3M"], PLANS["heun"], make_plan("ddim", VP, 4, eta=1.0)):
        scheduler = PlanScheduler.from_plan(plan)
        scheduler.set_timesteps(plan.num_steps, device="meta")
        scheduler.set_begin_index(0)
        x = torch.empty(2, 3, device="meta")
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
        assert x.shape == (2, 3)
        assert scheduler.add_noise(x, x, scheduler.timesteps[:1].repeat(2)).device.type == "meta"


def test_what_is_refused() -> None:
    scheduler = PlanScheduler.from_plan(PLANS["ddim"])
    x = noise(2, 3)
    with pytest.raises(ValueError, match="holds a ddim plan of 5 steps, got num_inference_steps = 50"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="holds a ddim plan with timesteps of its own; give none"):
        scheduler.set_timesteps(timesteps=[1, 0])
    with pytest.raises(ValueError, match="timestep 998 is none of the run's: 999, 799, 599, 399, 199"):
        scheduler.step(x, 998, x)
    with pytest.raises(ValueError, match=r"model_output must have the sample's shape \(2, 3\), got \(2, 4\)"):
        scheduler.step(noise(2, 4), 999, x)
    loop(scheduler, x)
    with pytest.raises(ValueError, match="all 5 evaluations are done; call set_timesteps for another run"):
        scheduler.step(x, 199, x)
    scheduler.set_timesteps(5)
    scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match="step 1 of this run is at timestep 799, got 599"):
        scheduler.step(x, 599, x)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(9)
    with pytest.raises(ValueError, match="begin_index must be one of the 5 timesteps, got 9"):
        scheduler.step(x, 199, x)
    fresh = PlanScheduler()
    with pytest.raises(ValueError, match="call set_timesteps before the first step"):
        fresh.step(x, 999, x)
    for steps in (0, -1, None, 2.5):
        with pytest.raises(ValueError, match="num_inference_steps must be a positive int, got"):
            fresh.set_timesteps(steps)
    with pytest.raises(ValueError, match="give timesteps or sigmas, not both"):
        fresh.set_timesteps(timesteps=[1], sigmas=[1.0])
    with pytest.raises(ValueError, match="num_inference_steps is 3, but 2 steps were given"):
        fresh.set_timesteps(3, timesteps=[900, 100])
    with pytest.raises(ValueError, match="times must run strictly from the noisy end"):
        fresh.set_timesteps(timesteps=[100, 900])
    with pytest.raises(ValueError, match="sigmas must be 0 or positive"):
        fresh.set_timesteps(sigmas=[1.0, -1.0])
    for settings, sentence in (
        ({"prediction_type": "eps"}, "unknown prediction_type 'eps'; known: epsilon, sample"),
        ({"noise_schedule": "ve"}, "unknown noise_schedule 've'; known: vp, flow, edm"),
        ({"noise_schedule": "edm", "prediction_type": "sample"}, "an edm network predicts epsilon or v_prediction"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas holds 2 values for 1000 training steps"),
        ({"plan": {}}, "this is no pydiffaccel.plan file: its format is None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            PlanScheduler(**settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        PlanScheduler.from_plan("ddim")  # type: ignore[arg-type]
    stages = PlanScheduler.from_plan(PLANS["dpm_solver-2"])
    stages.set_begin_index(1)
    with pytest.raises(ValueError, match="this dpm_solver plan cannot start at evaluation 1"):
        stages.step(x, stages.timesteps[1], x)
