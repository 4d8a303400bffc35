"""Against diffusers' schedulers on the same grid: every state of a run, with their code in float64.

What a scheduler makes of the noise and of the network's outputs is linear in both, so fixed outputs, one unit vector
for each evaluation, compare whole tables: all their coefficients, with no model in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.ops import solver_step
from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Plan, integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at
from tests.solvers.conftest import MixtureDenoiser

pytest.importorskip("diffusers")
from tests.solvers.diffusers_cases import CASES, Case, in_float64, scheduler, vp

STEPS = range(1, 51)
# One configuration of each scheduler runs all of them. Orders at the end change at 15; after that nothing new comes.
SHORT = (*range(1, 11), 16)
LONG = {"ddim", "pndm-rk", "pndm", "dpm++3m-midpoint-clean", "dpmsolver++-3s-midpoint", "dpmsolver-2s-midpoint"}
LONG |= {"deis3", "unipc2-bh2-data", "heun", "euler"}
Predict = Callable[[Tensor, float], Tensor]


def difference(plan: Plan, theirs: Any, kind: str, scaled: bool = False) -> float:
    """Largest difference of a coefficient of a state, over the state's largest one."""
    unit = torch.eye(plan.nfe + 1, dtype=torch.float64)
    outputs = iter(unit[1:, None])
    ours: list[Tensor] = []
    alphas: list[float] = []

    def keep(done: int, point: Any, x: Tensor) -> None:
        ours.append(x.clone())
        alphas.append(point.alpha)

    integrate(plan, wrap_model(lambda x, t: next(outputs), prediction_type=kind), unit[:1], callback=keep)
    assert len(ours) == len(theirs.timesteps)
    state, worst = unit[:1] / (plan.start.alpha if scaled else 1.0), 0.0
    for t, output, mine, alpha in zip(theirs.timesteps, unit[1:, None], ours, alphas, strict=True):
        if hasattr(theirs, "scale_model_input"):
            theirs.scale_model_input(state, t)
        state = theirs.step(output, t, state, return_dict=False)[0]
        assert state.dtype == torch.float64
        other = state * alpha if scaled else state
        worst = max(worst, float((mine - other).abs().max() / other.abs().max()))
    return worst


def pairs(case: Case) -> Iterator[tuple[int, str, str]]:
    """(steps, spacing, prediction type): each number of steps in one spacing and type by turns, some in all of them."""
    both = [(spacing, kind) for spacing in case.spacings for kind in case.types]
    for num_steps in STEPS if case.label in LONG else SHORT:
        for turn, (spacing, kind) in enumerate(both):
            if (num_steps in (2, 5, 16) or (num_steps - turn) % len(both) == 0) and case.meets(num_steps, spacing):
                yield num_steps, spacing, kind


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_coefficient(case: Case) -> None:
    compared = set()
    with in_float64(case.module):
        for num_steps, spacing, kind in pairs(case):
            pair = case.pair(num_steps, spacing, kind)
            if pair is None:
                continue
            theirs, plan = pair
            if not (case.scaled and spacing == "linspace"):  # real-valued times there
                assert [row.point.t for row in plan.evaluations] == theirs.timesteps.tolist(), (spacing, num_steps)
            found = difference(plan, theirs, kind, case.scaled)
            assert found < 1e-11, (num_steps, spacing, kind, found)
            compared.add((spacing, kind))
    # Spacings of which a scheduler's last step never has a length are compared with another end.
    assert {kind for _, kind in compared} == set(case.types)


@pytest.mark.parametrize("curve", ["karras", "exponential"])
@pytest.mark.parametrize(
    ("module", "name", "solver"),
    [
        ("euler_discrete", "EulerDiscreteScheduler", "euler"),
        ("heun_discrete", "HeunDiscreteScheduler", "edm_heun"),
        ("dpmsolver_multistep", "DPMSolverMultistepScheduler", "dpm_solver++"),
        ("unipc_multistep", "UniPCMultistepScheduler", "unipc"),
    ],
)
def test_karras_and_exponential_levels(curve: str, module: str, name: str, solver: str) -> None:
    """The levels and what becomes of outputs; most of theirs round the times to an index."""
    with in_float64(module):
        for n in STEPS[1::3]:
            theirs = scheduler(module, name, n, **{f"use_{curve}_sigmas": True})
            found = difference(make_plan(solver, vp(theirs), n, spacing=curve), theirs, "epsilon", "discrete" in module)
            assert found < 1e-10, (n, found)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(mixture: Any, normal: Any, shift: float) -> None:
    for n in STEPS:
        with in_float64("flow_match_euler_discrete"):
            theirs = scheduler("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", n, shift=shift)
            times = (1 - theirs.sigmas[:-1].double()).tolist()
            plan = make_plan("euler", FlowSchedule(), timesteps=times)
            x = normal(0, 5, 8)
            ours, state = integrate(plan, mixture, x), x
            for t, mark in zip(times, theirs.timesteps, strict=True):  # their velocity points to the noise
                output = -mixture(state, points_at(plan.schedule, [t])[0], "flow")
                state = theirs.step(output, mark, state, return_dict=False)[0]
        found = float((ours - state).abs().max() / state.abs().max())
        assert found < 1e-10, (n, found)


def test_pndm_from_an_offset_to_index_0() -> None:
    """The configuration of latent diffusion: steps_offset 1, ends at index 0."""
    with in_float64("pndm"):
        for n in STEPS[1:]:  # one step is one evaluation there
            theirs = scheduler(
                "pndm", "PNDMScheduler", n, skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"
            )
            plan = make_plan("pndm", vp(theirs), n, runge_kutta=False, steps_offset=1, end=0.0)
            found = difference(plan, theirs, "epsilon")
            assert found < 1e-11, (n, found)


def ipndm(sigmas: Tensor) -> Any:
    """Their scheduler on levels of one's own, which it takes as trained_betas (the last one: where the run ends)."""
    with in_float64("ipndm"):
        return scheduler("ipndm", "IPNDMScheduler", len(sigmas) - 1, trained_betas=sigmas.tolist())


@pytest.mark.parametrize("grid", ["vp", "own"])
def test_ipndm(grid: str) -> None:
    """Theirs takes v predictions. Its own levels, sin^2, start in pure noise, which is a difference: here the next."""
    linear = VPSchedule.linear()
    for n in STEPS:
        if grid == "vp":
            plan = make_plan("ipndm", linear, n)
        else:
            own = torch.sin(torch.linspace(1, 0, n + 2, dtype=torch.float64) * torch.pi / 2) ** 2
            schedule = VPSchedule((1 - own[1:-1].flip(0) ** 2).numpy())
            plan = make_plan("ipndm", schedule, timesteps=[float(t) for t in range(n - 1, -1, -1)])
        points = [row.point for row in plan.evaluations]
        theirs = ipndm(torch.tensor([*(point.sigma for point in points), 0.0], dtype=torch.float64))
        angles = torch.tensor([point.sigma for point in points], dtype=torch.float64).asin() * 2 / torch.pi
        torch.testing.assert_close(theirs.timesteps, angles, rtol=0, atol=1e-12)
        found = difference(plan, theirs, "v_prediction")
        assert found < 1e-11, (n, found)


def exact(mixture: MixtureDenoiser, plan: Plan, kind: str) -> Predict:
    """The exact denoiser of a mixture, by time."""
    return lambda x, t: mixture(x, points_at(plan.schedule, [t])[0], kind)


def replay(plan: Plan, predict: Predict, kind: str, x: Tensor, noises: list[Tensor]) -> Tensor:
    """The plan's table with given noises, one per update."""
    denoiser = wrap_model(lambda x, t: predict(x, float(t[0])), prediction_type=kind)
    states, outputs = [x], []
    for row in plan.evaluations:
        outputs.append(denoiser(states[-1], row.point, row.output_type))
        for update in row.updates:
            new = solver_step(states[update.base], outputs[: -len(update.b) - 1 : -1], update.a, list(update.b))
            states.append(new + update.noise * noises[len(states) - 1])
    return states[-1]


@pytest.mark.parametrize(
    ("module", "name", "solver", "config", "options", "step"),
    [
        ("ddim", "DDIMScheduler", "ddim", {"clip_sample": False}, {"eta": 0.6}, {"eta": 0.6}),
        *(
            (
                "dpmsolver_multistep",
                "DPMSolverMultistepScheduler",
                "dpm_solver++",
                {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": kind},
                {"stochastic": True, "order": order, "solver_type": kind},
                {},
            )
            for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"))
        ),
    ],
)
def test_stochastic_solvers(
    mixture: Any, normal: Any, module: str, name: str, solver: str, config: Any, options: Any, step: Any
) -> None:
    """With the same noises; a nonlinear model, evaluated at the times that each of the two says."""
    for n in (1, 2, 5, 20):
        x, noises = normal(0, 5, 8), [normal(100 + i, 5, 8) for i in range(n)]
        with in_float64(module):
            theirs = scheduler(module, name, n, timestep_spacing="trailing", **config)
            plan = make_plan(solver, vp(theirs), n, spacing="trailing", **options)
            predict = exact(mixture, plan, "epsilon")
            ours, state = replay(plan, predict, "epsilon", x, noises), x
            for t, z in zip(theirs.timesteps, noises, strict=True):
                output = predict(state, float(t))
                state = theirs.step(output, t, state, variance_noise=z, return_dict=False, **step)[0]
        found = float((ours - state).abs().max() / state.abs().max())
        assert found < 1e-10, (n, found)
