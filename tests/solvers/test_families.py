"""First-order families and 2M bit by bit, the ends of the schedule, and bad input."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel import evaluate
from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import integrate, make_plan, wrap_model
from pydiffaccel.solvers.make import FAMILIES

VP = VPSchedule.linear()
FLOW = FlowSchedule()


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth, nonlinear stand-in for a network on training indices."""
    return torch.tanh(0.8 * x) + 0.3 * torch.cos(x * 2 + t.to(x.dtype)[:, None] / 300)


def test_ddim_is_the_published_formula(normal: Any) -> None:
    x = normal(0, 4, 6)
    plan = make_plan("ddim", VP, 10)
    result = integrate(plan, wrap_model(network, prediction_type="epsilon"), x)
    for t, after in zip(range(999, 0, -100), [*range(899, 0, -100), -1], strict=True):
        bar = VP.alphas_cumprod[t]
        bar_after = VP.alphas_cumprod[after] if after >= 0 else 1.0
        eps = network(x, torch.full((4,), float(t)))
        x_0 = (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
        x = np.sqrt(bar_after) * x_0 + np.sqrt(1 - bar_after) * eps
    torch.testing.assert_close(result, x, rtol=1e-10, atol=1e-10)


def test_ddim_with_eta_has_the_published_coefficients() -> None:
    plan = make_plan("ddim", VP, 5, eta=0.7)
    for row in plan.evaluations:
        update = row.updates[0]
        bar, bar_after = row.point.alpha**2, update.point.alpha**2
        s = 0.7 * np.sqrt((1 - bar_after) / (1 - bar)) * np.sqrt(1 - bar / bar_after)
        assert update.noise == pytest.approx(s, abs=1e-12)
        assert update.a == pytest.approx(np.sqrt(bar_after / bar))
        direction = np.sqrt(1 - bar_after - s**2) - np.sqrt(1 - bar) * np.sqrt(bar_after / bar)
        assert update.b == (pytest.approx(direction, abs=1e-12),)
    assert plan.evaluations[-1].updates[0].noise == 0
    assert plan.stochastic
    assert make_plan("ddim", VP, 5, eta=0.0) == make_plan("ddim", VP, 5)


def test_dpm_solver_pp_2m_is_the_published_algorithm(normal: Any) -> None:
    x = normal(0, 4, 6)
    times = [999.0, 700.0, 350.5, 120.0, 10.0]
    plan = make_plan("dpm_solver++", VP, timesteps=times, end=2.0, lower_order_final=False)
    result = integrate(plan, wrap_model(network, prediction_type="sample"), x)
    grid = [*times, 2.0]
    outputs: list[Tensor] = []
    for i, (t, after) in enumerate(pairwise(grid)):
        outputs.append(network(x, torch.full((4,), t)))
        h = VP.log_snr(after) - VP.log_snr(t)
        data = outputs[-1]
        if i > 0:
            r = (VP.log_snr(t) - VP.log_snr(grid[i - 1])) / h
            data = (1 + 1 / (2 * r)) * outputs[-1] - 1 / (2 * r) * outputs[-2]
        x = float(VP.sigma(after) / VP.sigma(t)) * x - float(VP.alpha(after) * np.expm1(-h)) * data
    torch.testing.assert_close(result, x, rtol=1e-9, atol=1e-9)


def test_first_order_dpm_solver_pp_is_ddim(normal: Any) -> None:
    x = normal(1, 4, 6)
    model = wrap_model(network, prediction_type="v_prediction")
    ddim = integrate(make_plan("ddim", VP, 7, spacing="linspace"), model, x)
    first = integrate(make_plan("dpm_solver++", VP, 7, spacing="linspace", order=1), model, x)
    torch.testing.assert_close(first, ddim, rtol=1e-9, atol=1e-9)


def test_flow_euler_is_the_plain_loop_bit_for_bit(normal: Any) -> None:
    x = normal(2, 5, 3, dtype=torch.float32)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) - t[:, None] / 1000 * x

    model = wrap_model(velocity, prediction_type="flow", time="unit", time_scale=1000)
    result = integrate(make_plan("euler", FLOW, 8), model, x)
    for i in range(8):
        x = x + 0.125 * velocity(x, torch.full((5,), 125.0 * i))
    assert torch.equal(result, x)


def test_dpm_solver_pp_on_flow_paths_starts_and_ends_in_first_order() -> None:
    plan = make_plan("dpm_solver++", FLOW, 20, lower_order_final=False)
    columns = [len(row.updates[0].b) for row in plan.evaluations]
    assert columns == [1, 1, *[2] * 17, 1]
    assert (plan.evaluations[0].updates[0].a, plan.evaluations[0].updates[0].b) == (0.95, (0.05,))
    assert (plan.evaluations[-1].updates[0].a, plan.evaluations[-1].updates[0].b) == (0.0, (1.0,))


@pytest.mark.parametrize(
    ("num_steps", "option", "expected"), [(14, None, 1), (15, None, 2), (20, True, 1), (5, False, 2)]
)
def test_lower_order_final(num_steps: int, option: bool | None, expected: int) -> None:
    plan = make_plan("dpm_solver++", VP, num_steps, end=0.0, lower_order_final=option)
    assert len(plan.evaluations[-1].updates[0].b) == expected
    assert len(plan.evaluations[-2].updates[0].b) == 2


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize(
    ("solver", "schedule", "options"),
    [
        ("ddim", VP, {}),
        ("ddim", VP, {"spacing": "log_snr"}),
        ("ddim", VP, {"eta": 1.0}),
        ("dpm_solver++", VP, {"order": 1}),
        ("dpm_solver++", VP, {"order": 2}),
        ("dpm_solver++", VP, {"order": 2, "spacing": "leading"}),
        ("dpm_solver++", FLOW, {"end": 1.0}),
        ("euler", FLOW, {}),
    ],
)
def test_a_perfect_model_of_one_image_gives_that_image(
    normal: Any, prediction_type: str, solver: str, schedule: Any, options: dict[str, Any]
) -> None:
    image = normal(6, 1, 5).expand(3, 5)

    def perfect(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
        noise = (x - alpha * image) / sigma
        v = alpha * noise - sigma * image
        return {"epsilon": noise, "sample": image, "v_prediction": v, "flow": image - noise}[prediction_type]

    plan = make_plan(solver, schedule, 8, **options)
    if schedule is FLOW and prediction_type == "epsilon":
        with pytest.raises(ValueError, match="'epsilon' does not determine"):
            integrate(plan, wrap_model(perfect, prediction_type=prediction_type), normal(7, 3, 5))
        return
    model = wrap_model(perfect, prediction_type=prediction_type)
    result = integrate(plan, model, normal(7, 3, 5), seeds=[1, 2, 3])
    # The time reaches the model as float32, so real-valued grids are off by 6e-8 of an index.
    torch.testing.assert_close(result, image, rtol=0, atol=1e-6)


def test_ddim_plans_end_exactly_at_the_clean_end() -> None:
    for plan in (make_plan("ddim", VP, 6), make_plan("dpm_solver++", VP, 6), make_plan("euler", FLOW, 6)):
        end = plan.state_points[-1]
        assert (end.alpha, end.sigma, end.log_snr) == (1, 0, np.inf)
        assert plan.consistency_error() < 1e-12


def test_command_lines_know_every_family() -> None:
    assert set(get_args(get_type_hints(evaluate.EvaluateOptions)["solver"])) == {"auto", *FAMILIES}


def test_process_like_objects_are_taken_for_their_schedule() -> None:
    class Process:
        schedule = VP

    assert make_plan("ddim", Process(), 4) == make_plan("ddim", VP, 4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make_plan("dim", VP, 4), "unknown solver 'dim'; known: ddim, pndm, ipndm, dpm_solver"),
        (lambda: make_plan("ddim", FLOW, 4), "ddim runs on vp schedules, got flow"),
        (lambda: make_plan("adams_bashforth", VP, 4), "adams_bashforth runs on flow schedules, got vp"),
        (lambda: make_plan("ddim", VP, 4, order=2), "ddim has order 1, got 2"),
        (lambda: make_plan("dpm_solver++", VP, 4, order=4), r"dpm_solver\+\+ has order 1 or 2 or 3, got 4"),
        (lambda: make_plan("ddim", VP, 0), "num_steps must be at least 1, got 0"),
        (lambda: make_plan("ddim", VP, -3), "num_steps must be at least 1, got -3"),
        (lambda: make_plan("euler", FLOW, 10**11), "num_steps must be at most 100000, got 100000000000"),
        (lambda: make_plan("ddim", VP, 1001), "at most one step per training index, got 1001 steps for 1000 indices"),
        (lambda: make_plan("deis", VP, 4, order=0), "deis has order 1 or 2 or 3, got 0"),
        (lambda: make_plan("unipc", VP, 4, order=4), "unipc has order 1 or 2 or 3, got 4"),
        (lambda: make_plan("ipndm", VP, 4, order=5), "ipndm has order 1 or 2 or 3 or 4, got 5"),
        (lambda: make_plan("pndm", FLOW, 4), "pndm runs on vp schedules, got flow"),
        (lambda: make_plan("unipc", VP, 4, spacing="karst"), "unknown spacing 'karst'; known: trailing, leading"),
        (lambda: make_plan("unipc", VP, 4, variant="bh3"), "unknown variant 'bh3'; known: bh1, bh2"),
        (lambda: make_plan("deis", VP, 4, variable="x"), "unknown variable 'x'; known: t, rho, log_rho"),
        (lambda: make_plan("dpm_solver", VP, 4, r1=1.5), r"r1 must lie in \[0, 1\], got 1.5"),
        (lambda: make_plan("dpm_solver", VP, 4, order=3, r1=0.8), "0 < r1 < r2 < 1, got 0.8, 0.666667"),
        (lambda: make_plan("dpm_solver", VP, 4, order=2, r2=0.8), "order 2 has no stage r2, got r2 = 0.8"),
        (lambda: make_plan("dpm_solver", VP, 4, stages="grid", r1=0.5), 'stages="grid" has no r1, got 0.5'),
        (lambda: make_plan("dpm_solver", VP, 4, lower_order_final=True), "has no lower_order_final, got True"),
        (
            lambda: make_plan("dpm_solver", VP, timesteps=[9, 0], end=-0.9),
            "evaluated at t = .*, below the least noisy time",
        ),
        (lambda: make_plan("dpm_solver++", VP, 4, r1=0.5), 'r1 needs method="singlestep", got r1 = 0.5'),
        (lambda: make_plan("dpm_solver++", VP, 4, method="singlestep", stochastic=True), 'need method="multistep"'),
        (lambda: make_plan("edm_heun", VP, 4, s_churn=-1.0), r"s_churn must lie in \[0, inf\], got -1.0"),
        (lambda: make_plan("euler", VP, 4, s_tmin=2.0, s_tmax=1.0), "s_tmin must not be above s_tmax, got 2 and 1"),
        (lambda: make_plan("ddim", VP, sigmas=[3.0, -1.0]), "sigmas must be 0 or positive, got -1.0 at index 1"),
        (lambda: make_plan("ddim", VP, sigmas=[1.0, 3.0]), "sigmas must fall strictly, got 1 at index 0 and then 3"),
        (lambda: make_plan("ddim", VP, timesteps=[5, 9]), "got 5 and then 9"),
        (lambda: make_plan("ddim", VP, sigmas=[3.0], timesteps=[9]), "give timesteps or sigmas, not both"),
        (lambda: make_plan("ddim", VP, 3, sigmas=[3.0]), "num_steps is 3, but there are 1 sigmas"),
        (lambda: make_plan("ddim", VP, 3, timesteps=[9, 5]), "num_steps is 3, but there are 2 timesteps"),
        (lambda: make_plan("ddim", VP, spacing="leading", timesteps=[9, 5]), "give spacing or timesteps, not both"),
        (lambda: make_plan("ddim", VP, 4, eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
        (lambda: make_plan("ddim", VPSchedule([1.0, 0.5]), 2), "at t = 0, where there is no noise left to remove"),
    ],
)
def test_bad_values(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make_plan("ddim", VP), "num_steps must be an int, got NoneType"),
        (lambda: make_plan("ddim", VP, 4.0), "num_steps must be an int, got float"),
        (lambda: make_plan("ddim", "linear", 4), "schedule must be a Schedule or have one as .schedule, got str"),
        (
            lambda: make_plan("euler", FLOW, 4, eta=0.5),
            "euler has no option 'eta', nor has spacing 'uniform'; known: s_churn",
        ),
        (
            lambda: make_plan("ddim", VP, 4, lower_order_final=True),
            "ddim has no option 'lower_order_final', nor has spacing 'trailing'; known: eta",
        ),
        (lambda: make_plan("ddim", VP, 4, eta="big"), "eta must be a number, got str"),
        (lambda: make_plan("deis", VP, 4, order=2.0), "order must be an int, got float"),
        (lambda: make_plan("deis", VP, 4, order=True), "order must be an int, got bool"),
        (lambda: make_plan("unipc", VP, 4, corrector=1), "corrector must be True or False, got 1"),
        (lambda: make_plan("ddim", VP, sigmas=["big"]), "sigmas must be a sequence of numbers"),
        (lambda: make_plan("ddim", VP, timesteps=[9], rho=7.0), "ddim has no option 'rho'; known: eta"),
        (lambda: make_plan("dpm_solver++", VP, 4, lower_order_final=1), "must be True, False or None, got 1"),
    ],
)
def test_bad_types(call: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        call()
