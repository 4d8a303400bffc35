"""Where we differ from diffusers' schedulers on purpose (docs/solvers.md): each difference, and why ours is meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.schedule import VPSchedule
from pydiffaccel.solvers import integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at

schedulers = pytest.importorskip("diffusers.schedulers")


def vp(theirs: Any) -> VPSchedule:
    return VPSchedule(theirs.alphas_cumprod.double().numpy())


def their_result(theirs: Any, denoise: Any, kind: str, x: Tensor, **step: Any) -> Tensor:
    schedule = vp(theirs)
    for t in theirs.timesteps:
        output = denoise(x, points_at(schedule, [float(t)])[0], kind)
        x = theirs.step(output, t, x, return_dict=False, **step)[0].double()
    return x


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_steps_to_the_next_time_of_its_grid(gaussian: Any, normal: Any, spacing: str) -> None:
    """Theirs steps from t to t - T // N, which is not where it evaluates next, so it does not converge."""
    num_steps = 300
    theirs = schedulers.DDIMScheduler(1000, timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(num_steps)
    gaps = -np.diff(theirs.timesteps.numpy())
    assert (gaps != 1000 // num_steps).any()
    x = normal(0, 50, 4)
    plan = make_plan("ddim", vp(theirs), num_steps, spacing=spacing)
    exact = gaussian.exact(x, plan.start, plan.state_points[-1])
    ours = (integrate(plan, gaussian, x) - exact).square().mean()
    other = (their_result(theirs, gaussian, "epsilon", x) - exact).square().mean()
    assert ours < 0.02 * other


def test_ddim_under_other_spacings_is_ours_where_the_strides_agree(gaussian: Any, normal: Any) -> None:
    theirs = schedulers.DDIMScheduler(1000, timestep_spacing="trailing", clip_sample=False)
    theirs.set_timesteps(8)
    x = normal(0, 5, 4)
    ours = integrate(make_plan("ddim", vp(theirs), 8), gaussian, x)
    torch.testing.assert_close(ours, their_result(theirs, gaussian, "epsilon", x), rtol=0, atol=1e-4)


def test_third_order_of_the_stochastic_solver(mixture: Any, normal: Any) -> None:
    """Their second derivative has the wrong sign in its weight, which then does not vanish with the step."""
    num_steps = 200
    theirs = schedulers.DPMSolverMultistepScheduler(
        1000, algorithm_type="sde-dpmsolver++", solver_order=3, timestep_spacing="trailing"
    )
    theirs.set_timesteps(num_steps)
    x = normal(0, 5, 8)
    results = []
    for order in (2, 3):
        plan = make_plan("dpm_solver++", vp(theirs), num_steps, spacing="trailing", order=order, stochastic=True)
        state, outputs = x, []
        for row in plan.evaluations:  # the mean of each step, noise left out
            outputs.append(mixture(state, row.point, row.output_type))
            (update,) = row.updates
            state = update.a * state + sum(b * m for b, m in zip(update.b, outputs[::-1], strict=False))
        results.append(state)
    second, third = results
    other = their_result(theirs, mixture, "epsilon", x, variance_noise=torch.zeros_like(x))
    assert (third - second).norm() < 0.1 * (other - second).norm()


def test_pndm_combines_noise_predictions_whatever_the_model_predicts(normal: Any) -> None:
    """Theirs combines the raw v of several noise levels, which even a perfect model of one image does not survive."""
    theirs = schedulers.PNDMScheduler(1000, prediction_type="v_prediction", set_alpha_to_one=True)
    theirs.set_timesteps(10)
    schedule = vp(theirs)
    image = normal(1, 1, 6).expand(4, 6)

    def perfect(x: Tensor, point: Any, kind: str) -> Tensor:
        assert kind == "v_prediction"
        return (point.alpha * x - image) / point.sigma  # alpha eps - sigma x_0, with eps = (x - alpha x_0) / sigma

    model = wrap_model(
        lambda x, t: perfect(x, points_at(schedule, [float(t[0])])[0], "v_prediction"), prediction_type="v_prediction"
    )
    x = normal(2, 4, 6)
    ours = integrate(make_plan("pndm", schedule, 10), model, x)
    torch.testing.assert_close(ours, image, rtol=0, atol=1e-6)
    assert float((their_result(theirs, perfect, "v_prediction", x) - image).abs().max()) > 0.01


def test_pndm_halves_an_odd_step(mixture: Any, normal: Any) -> None:
    """Theirs rounds the half down and then misses the next grid time by one index."""
    theirs = schedulers.PNDMScheduler(1000, set_alpha_to_one=True)
    theirs.set_timesteps(21)  # a stride of 47
    plan = make_plan("pndm", vp(theirs), 21)
    assert [plan.evaluations[i].point.t for i in (0, 1, 2, 3, 4)] == [940, 916.5, 916.5, 893, 893]
    assert theirs.timesteps[:5].tolist() == [940, 916, 916, 893, 893]
    x = normal(0, 5, 8)
    other = their_result(theirs, mixture, "epsilon", x)
    gap = float((integrate(plan, mixture, x) - other).abs().max())
    assert 1e-6 < gap < 1e-2


@pytest.mark.parametrize(("variant", "data"), [("bh1", True), ("bh2", False)])
def test_unipc_reaches_clean_data_in_every_variant(mixture: Any, normal: Any, variant: str, data: bool) -> None:
    """Theirs multiplies 0 by infinity, or stops, in the last step to sigma = 0."""
    theirs = schedulers.UniPCMultistepScheduler(1000, solver_type=variant, predict_x0=data, final_sigmas_type="zero")
    theirs.set_timesteps(6)
    x = normal(0, 5, 8)
    with pytest.raises(AssertionError):
        assert their_result(theirs, mixture, "epsilon", x).isfinite().all()
    plan = make_plan(
        "unipc", vp(theirs), 6, variant=variant, prediction="data" if data else "noise", spacing="linspace"
    )
    assert integrate(plan, mixture, x).isfinite().all()


def test_linspace_times_are_whole_indices(mixture: Any) -> None:
    """Heun and Euler there have real-valued times, and sigma linear in between; ours is linear in log alphabar."""
    theirs = schedulers.EulerDiscreteScheduler(1000, timestep_spacing="linspace")
    theirs.set_timesteps(7)
    assert (theirs.timesteps != theirs.timesteps.round()).any()
    plan = make_plan("euler", vp(theirs), 7, spacing="linspace")
    assert all(row.point.t == round(row.point.t) for row in plan.evaluations)
    at = float(theirs.timesteps[1])
    point = points_at(vp(theirs), [at])[0]
    assert 1e-8 < abs(point.sigma / point.alpha / float(theirs.sigmas[1]) - 1) < 1e-4


def test_karras_levels_are_evaluated_at_their_own_time() -> None:
    """Theirs rounds the times of most schedulers to an index."""
    theirs = schedulers.DPMSolverMultistepScheduler(1000, use_karras_sigmas=True)
    theirs.set_timesteps(8)
    plan = make_plan("dpm_solver++", vp(theirs), 8, spacing="karras")
    ours = np.array([row.point.t for row in plan.evaluations])
    assert theirs.timesteps.dtype == torch.int64
    assert (ours[1:-1] != ours[1:-1].round()).all()
    np.testing.assert_allclose(ours, theirs.timesteps.numpy(), atol=0.6)


def test_zero_terminal_snr_is_zero() -> None:
    """Theirs replaces the last alphabar by 2^-24; ours starts from pure noise in data prediction."""
    theirs = schedulers.EulerDiscreteScheduler(1000, rescale_betas_zero_snr=True)
    assert theirs.alphas_cumprod[-1] == 2**-24
    ours = VPSchedule.linear().rescaled_to_zero_terminal_snr()
    plan = make_plan("euler", ours, 10)
    assert (plan.start.alpha, plan.evaluations[0].output_type) == (0, "sample")


def test_ipndm_starts_from_pure_noise_by_the_predicted_data(mixture: Any, normal: Any) -> None:
    """Theirs takes the data as zero in the first step, whatever the network says: x / alpha with alpha = 0."""
    theirs = schedulers.IPNDMScheduler(1000)
    theirs.set_timesteps(8)
    x = normal(0, 5, 8)
    for output in (torch.zeros_like(x), x):
        theirs.set_timesteps(8)
        first = theirs.step(output, theirs.timesteps[0], x, return_dict=False)[0]
        torch.testing.assert_close(first, theirs.betas[1].double() * x)
    plan = make_plan("ipndm", VPSchedule.linear().rescaled_to_zero_terminal_snr(), 8)
    (update,) = plan.evaluations[0].updates
    after = plan.state_points[1]
    assert plan.evaluations[0].output_type == "sample"
    assert (update.a, update.b) == (after.sigma, pytest.approx((after.alpha,)))


def test_trailing_halves_are_rounded_to_even() -> None:
    """1000 - 3 * 1000 / 48 is 937.5, and so on; theirs adds up steps and falls below the half. No other up to 50."""
    theirs = schedulers.EulerDiscreteScheduler(1000, timestep_spacing="trailing")
    for num_steps in range(1, 51):
        theirs.set_timesteps(num_steps)
        ours = [row.point.t for row in make_plan("euler", vp(theirs), num_steps, spacing="trailing").evaluations]
        differ = [pair for pair in zip(ours, theirs.timesteps.tolist(), strict=True) if pair[0] != pair[1]]
        halves = [(float(t), float(t - 1)) for t in (937, 687, 437, 187)]
        assert differ == (halves if num_steps == 48 else []), num_steps
