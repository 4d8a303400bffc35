"""Solvers on VP schedules of continuous time and on truncated noise levels, where alpha^2 + sigma^2 < 1."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.forward import KLProcess, VPProcess
from pydiffaccel.noise import noise_for_seeds
from pydiffaccel.sampler import denoiser_of, sample
from pydiffaccel.schedule import ContinuousVPSchedule, TruncatedVPSchedule, VPSchedule
from pydiffaccel.solvers import integrate, make_plan
from pydiffaccel.solvers.denoiser import conversion
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.point import output_parts, points_at

BASES: dict[str, VPSchedule | ContinuousVPSchedule] = {
    "linear chain": VPSchedule.linear(200, 5e-4, 0.1),
    "constant": ContinuousVPSchedule.constant(9.0, T=2.0, t_min=1e-4),
    "linear": ContinuousVPSchedule.linear(),
    "cosine": ContinuousVPSchedule.cosine(),
}
# The command line's chains and rates, too.
LEVELS = BASES | {
    "cosine chain": VPSchedule.cosine(),
    "scaled linear chain": VPSchedule.scaled_linear(),
    "constant of the command line": ContinuousVPSchedule.constant(10.0),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
DEVIATION = 0.6


def exact_network(process: VPProcess, deviation: float) -> Any:
    """The best answer of a network for data N(0, deviation^2), from the state and the time that networks receive."""

    def network(x: Tensor, time: Tensor) -> Tensor:
        t = np.clip(time[0].item() / process.time_scale, process.schedule.clean_end, process.schedule.noisy_end)
        alpha, sigma = float(process.schedule.alpha(t)), float(process.schedule.sigma(t))
        data = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * x
        p, q = output_parts(process.prediction_type, alpha, sigma)
        return p * data + q * (x - alpha * data) / sigma

    return network


SETTINGS = [
    *itertools.product(("kl", "haar"), (True, False), ("epsilon",), (1, 2, 3, 10, 100)),
    *itertools.product(("kl", "haar"), (True, False), ("sample", "v_prediction"), (3,)),
]


@pytest.mark.parametrize("base", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize(("basis", "renormalise", "prediction_type", "terms"), SETTINGS)
def test_sampling_gives_the_variance_of_the_data(
    base: VPSchedule | ContinuousVPSchedule, basis: str, renormalise: bool, prediction_type: str, terms: int
) -> None:
    process = KLProcess(base, terms, basis, prediction_type, renormalise=renormalise)
    samples, plan = sample(exact_network(process, DEVIATION), (64,), [3, 4], process=process, num_steps=60)
    assert plan.solver == "dpm_solver++"
    # The probability-flow ODE multiplies by the ratio of deviations; it starts from the prior, which lacks alpha x_0.
    prior, alpha = process.schedule.prior_std, float(process.schedule.alpha(process.schedule.noisy_end))
    expected = prior * DEVIATION / math.hypot(alpha * DEVIATION, prior)
    factor = samples / noise_for_seeds((64,), [3, 4])
    assert torch.allclose(factor, torch.full_like(factor, expected), rtol=0.02)
    if not renormalise:
        truncated = TruncatedVPSchedule(base, terms, basis)
        assert process.schedule == truncated
        assert prior == pytest.approx(float(truncated.terms.sigma(base.noisy_end)), rel=1e-15)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if "vp" in family.spacings])
@every_base
def test_every_family_runs_on_truncated_levels(base: VPSchedule | ContinuousVPSchedule, name: str) -> None:
    process = KLProcess(base, 3, "kl", "v_prediction", renormalise=False)
    errors = []
    for steps in (20, 80):
        plan = make_plan(name, process, steps, spacing="log_snr")
        prior = process.schedule.prior_std_at(plan.start.t)
        x = torch.full((1, 1), prior, dtype=torch.float64)
        expected = prior * DEVIATION / math.hypot(plan.start.alpha * DEVIATION, prior)
        result = integrate(plan, denoiser_of(exact_network(process, DEVIATION), process), x, seeds=[1]).item()
        errors.append(abs(result / expected - 1))
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0] + 1e-3


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("basis", ["kl", "haar"])
def test_sampling_starts_from_the_noise_of_the_first_evaluation(basis: str, spacing: str) -> None:
    process = KLProcess(BASES["linear chain"], 3, basis, renormalise=False)
    plan = make_plan("dpm_solver++", process, 60, spacing=spacing)
    samples, _ = sample(exact_network(process, DEVIATION), (2,), [3], process=process, plan=plan)
    factor = (samples / noise_for_seeds((2,), [3]))[0, 0].item()
    # "leading" starts below the noisy end, where sigma_M is another one.
    start = plan.start
    assert (start.t < 199) == (spacing == "leading")
    expected = start.sigma * DEVIATION / math.hypot(start.alpha * DEVIATION, start.sigma)
    assert factor == pytest.approx(expected, rel=0.02)
    assert process.schedule.prior_std_at(start.t) == pytest.approx(start.sigma)
    assert process.base_schedule.prior_std_at(start.t) == 1


@every_base
@pytest.mark.parametrize("basis", ["kl", "haar"])
def test_the_wrong_prior_would_show(base: VPSchedule | ContinuousVPSchedule, basis: str) -> None:
    # The control of the test above: N(0, I) at the noisy end of truncated levels gives another variance.
    process = KLProcess(base, 3, basis, renormalise=False)
    plan = make_plan("dpm_solver++", process, 60)
    denoiser, x = denoiser_of(exact_network(process, DEVIATION), process), torch.ones(1, 1, dtype=torch.float64)
    right = integrate(plan, denoiser, x * process.schedule.prior_std).item()
    if basis == "kl":
        assert abs(integrate(plan, denoiser, x).item() / right - 1) > 0.3
    else:  # sigma_M is sigma at the noisy end
        assert integrate(plan, denoiser, x).item() == pytest.approx(right, rel=1e-3)


@pytest.mark.parametrize("terms", [1, 3, 10])
@pytest.mark.parametrize("basis", ["kl", "haar"])
@pytest.mark.parametrize("base", [VPSchedule.linear(), BASES["linear"]], ids=repr)
def test_ddim_with_eta_keeps_the_variance(base: VPSchedule | ContinuousVPSchedule, basis: str, terms: int) -> None:
    schedule = TruncatedVPSchedule(base, terms, basis)
    plan = make_plan("ddim", schedule, 1000, eta=1.0)
    assert plan.metadata["spacing"] == ("trailing" if isinstance(base, VPSchedule) else "uniform")
    variance, largest = schedule.prior_std**2 + float(schedule.alpha(schedule.noisy_end)) ** 2 * DEVIATION**2, 0.0
    for row in plan.evaluations:
        (update,) = row.updates
        here, after = row.point, update.point
        # The variance of x_next given x and x_0 on the chain whose steps have the ratio of the alphas.
        ratio = here.alpha / after.alpha
        posterior = after.sigma**2 / here.sigma**2 * (here.sigma**2 - (ratio * after.sigma) ** 2)
        assert update.noise**2 == pytest.approx(posterior, rel=1e-9, abs=1e-14)
        square = here.alpha**2 * DEVIATION**2 + here.sigma**2
        gain = here.alpha * DEVIATION**2 / square
        epsilon = (1 - here.alpha * gain) / here.sigma
        variance = (update.a + update.b[0] * epsilon) ** 2 * variance + update.noise**2
        expected = after.alpha**2 * DEVIATION**2 + after.sigma**2
        largest = max(largest, abs(variance / expected - 1))
    assert variance == pytest.approx(DEVIATION**2, rel=0.05)
    assert largest < 0.1


@every_base
def test_outputs_convert_exactly_at_truncated_levels(base: VPSchedule | ContinuousVPSchedule) -> None:
    schedule, rng = TruncatedVPSchedule(base, 3), np.random.default_rng(0)
    times = rng.uniform(schedule.cleanest_time, schedule.noisy_end, 20)
    for point in points_at(schedule, times):
        data, noise = rng.standard_normal(2)
        state = point.alpha * data + point.sigma * noise
        for have, want in itertools.permutations(("epsilon", "sample", "v_prediction", "flow"), 2):
            c, d = conversion(have, want, point)
            raw, expected = (
                p * data + q * noise
                for p, q in (output_parts(have, point.alpha, point.sigma), output_parts(want, point.alpha, point.sigma))
            )
            scale = 1 + abs(c * state) + abs(d * raw)
            assert c * state + d * raw == pytest.approx(expected, abs=1e-12 * scale)


@pytest.mark.parametrize("basis", ["kl", "haar"])
def test_a_plan_for_other_noise_levels_is_refused(basis: str) -> None:
    base = VPSchedule.linear(50)
    plain, truncated = VPProcess(schedule=base), KLProcess(base, 3, basis, renormalise=False)
    kl, fewer = KLProcess(base, 3, basis), KLProcess(base, 2, basis, renormalise=False)

    def network(x: Tensor, time: Tensor) -> Tensor:
        return x

    for trained, planned in ((truncated, plain), (plain, truncated), (kl, truncated), (truncated, fewer)):
        plan = make_plan("ddim", planned, 4)
        with pytest.raises(ValueError, match="the plan is for another noise schedule"):
            sample(network, (2,), [1], process=trained, plan=plan)
        with pytest.raises(ValueError, match=r"the plan is for .*, but the model was trained on"):
            integrate(plan, denoiser_of(network, trained), torch.ones(1, 2))
    # With renormalised noise the levels are those of the VP process.
    assert sample(network, (2,), [1], process=kl, plan=make_plan("ddim", plain, 4))[0].shape == (1, 2)


@pytest.mark.parametrize(
    "process",
    [
        VPProcess(schedule=BASES["constant"]),
        KLProcess(BASES["constant"], 3, renormalise=False),
        KLProcess(BASES["linear chain"], 3, renormalise=False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("spacing", ["log_snr", "uniform"])
def test_the_network_receives_the_times_of_training(process: VPProcess, spacing: str) -> None:
    seen = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        seen.append(time[0].item())
        return x

    plan = make_plan("dpm_solver++", process, 5, spacing=spacing)
    integrate(plan, denoiser_of(network, process), torch.ones(1, 2))
    times = torch.tensor([row.point.t for row in plan.evaluations], dtype=torch.float64)
    assert seen == process.model_time(times).tolist()
    total = 1000.0 if process.is_continuous else process.num_train_timesteps - 1.0
    assert seen[0] == pytest.approx(total)
    if spacing == "log_snr":
        assert times[-1] == process.schedule.cleanest_time
        steps = np.diff(process.schedule.log_snr(times.numpy()))
        assert steps == pytest.approx(steps[0], rel=1e-9)


def test_spacings_that_continuous_time_does_not_have() -> None:
    schedule = BASES["linear"]
    for name in ("trailing", "leading", "linspace"):
        with pytest.raises(ValueError, match=f"spacing '{name}' needs a discrete vp schedule, got cont"):
            make_plan("ddim", schedule, 5, spacing=name)
    with pytest.raises(ValueError, match=r"evaluated at t = 0\.0005, below the trained 0\.001"):
        make_plan("ddim", schedule, 2000)
    assert make_plan("ddim", TruncatedVPSchedule(VPSchedule.linear(10), 2), 5).metadata["spacing"] == "trailing"


@every_base
def test_plans_on_these_schedules_survive_a_round_trip(base: VPSchedule | ContinuousVPSchedule, tmp_path: Any) -> None:
    from pydiffaccel.solvers import load_plan

    plan = make_plan("dpm_solver++", KLProcess(base, 3, renormalise=False), 7)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
