"""Against diffusers' schedulers, on the same grid and model: in their own float32, and with their code in float64.

Their tables are float32 (sigmas, alphas), which is what limits the first comparison. For the second the schedulers'
modules see torch and NumPy through a lens in which float32 is float64, so the very same code runs in double precision.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.ops import solver_step
from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Plan, integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at
from tests.solvers.conftest import MixtureDenoiser

pytest.importorskip("diffusers")

STEPS = (1, 2, 3, 5, 10, 21, 50)
TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("trailing", "leading", "linspace")
Predict = Callable[[Tensor, float], Tensor]
Build = Callable[..., Any]


def tolerance(precision: str, num_steps: int, single: float = 1e-5) -> float:
    """Largest relative difference of the end states; `single` is that of float32 in 10 steps and more."""
    if precision == "float64":
        return 1e-10
    # At index 999 alpha is 0.006, so the first step multiplies float32 rounding by 157; few steps do not forget it, and
    # noise prediction subtracts what it multiplied.
    return single if num_steps >= 10 else 50 * single


class Lens:
    """A module in which float32 means float64."""

    def __init__(self, module: Any, double: Any) -> None:
        self._module = module
        self.float32 = double

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture(params=["float32", "float64"])
def precision(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, precision: str) -> Build:
    """build(module, class, steps, **config): a scheduler in the precision of the test, with its timesteps set."""

    def make(module: str, name: str, num_steps: int, **config: Any) -> Any:
        source: Any = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        if precision == "float64":
            monkeypatch.setattr(source, "torch", Lens(torch, torch.float64))
            monkeypatch.setattr(source, "np", Lens(np, np.float64))
        result = getattr(source, name)(1000, **config)
        result.set_timesteps(num_steps)
        return result

    return make


def vp(theirs: Any) -> VPSchedule:
    return VPSchedule(theirs.alphas_cumprod.double().numpy())


def exact(mixture: MixtureDenoiser, plan: Plan, kind: str) -> Predict:
    """The exact denoiser of a mixture, by time."""
    return lambda x, t: mixture(x, points_at(plan.schedule, [t])[0], kind)


def timeless(x: Tensor, t: float) -> Tensor:
    """For grids on which their model times are rounded or interpolated otherwise than the noise levels."""
    return torch.tanh(0.8 * x) + 0.3 * torch.cos(2 * x)


def difference(
    plan: Plan, theirs: Any, predict: Predict, kind: str, x: Tensor, precision: str, start: float = 1.0
) -> float:
    """Largest difference of the end states over the largest value; `start` scales the noise to their convention."""
    ours = integrate(plan, wrap_model(lambda x, t: predict(x, float(t[0])), prediction_type=kind), x)
    state = (start * x).to(getattr(torch, precision))
    for t in theirs.timesteps:
        seen = theirs.scale_model_input(state, t) if hasattr(theirs, "scale_model_input") else state
        output = predict(seen.double(), float(t)).to(state.dtype)
        state = theirs.step(output, t, state, return_dict=False)[0].to(state.dtype)
    assert state.isfinite().all()
    return float((ours - state.double()).abs().max() / state.abs().max())


def cases(precision: str, spacings: tuple[str, ...] = SPACINGS) -> Iterator[tuple[str, str, int]]:
    """(spacing, prediction type, steps): all types in 5 steps, all steps in one type; in float32 a sample of these."""
    for spacing, kind, num_steps in itertools.product(spacings, TYPES, STEPS):
        if num_steps == 5 or (kind == TYPES[0] and (precision == "float64" or num_steps in (2, 50))):
            yield spacing, kind, num_steps


def layout(spacing: str) -> dict[str, Any]:
    """Their multistep schedulers lay out one point more and leave out the last."""
    return {"spacing": spacing} if spacing == "trailing" else {"spacing": spacing, "drop_last": True}


def test_ddim(build: Build, precision: str, mixture: Any, normal: Any) -> None:
    for spacing, kind, n in cases(precision, ("trailing", "leading")):
        if spacing == "trailing" and 1000 % n:
            continue  # see test_their_ddim_steps_past_its_grid
        theirs = build("ddim", "DDIMScheduler", n, timestep_spacing=spacing, prediction_type=kind, clip_sample=False)
        plan = make_plan("ddim", vp(theirs), n, spacing=spacing)
        found = difference(plan, theirs, exact(mixture, plan, kind), kind, normal(0, 5, 8), precision)
        assert found < tolerance(precision, n), (spacing, kind, n, found)


@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpm_solver_pp_multistep(
    build: Build, precision: str, mixture: Any, normal: Any, order: int, solver_type: str, final: str
) -> None:
    for spacing, kind, n in cases(precision):
        theirs = build(
            "dpmsolver_multistep",
            "DPMSolverMultistepScheduler",
            n,
            solver_order=order,
            solver_type=solver_type,
            timestep_spacing=spacing,
            prediction_type=kind,
            final_sigmas_type=final,
        )
        if final == "sigma_min" and theirs.timesteps[-1] == 0:
            continue  # the last step would have no length
        plan = make_plan(
            "dpm_solver++",
            vp(theirs),
            n,
            order=order,
            solver_type=solver_type,
            third_order="official",
            end=0.0 if final == "sigma_min" else None,
            **layout(spacing),
        )
        assert [row.point.t for row in plan.evaluations] == theirs.timesteps.tolist()
        found = difference(plan, theirs, exact(mixture, plan, kind), kind, normal(0, 5, 8), precision)
        assert found < tolerance(precision, n), (spacing, kind, n, found)


@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dpm_solver_singlestep(
    build: Build, precision: str, mixture: Any, normal: Any, order: int, solver_type: str, algorithm: str
) -> None:
    for _, kind, n in cases(precision, ("linspace",)):
        final = "sigma_min" if algorithm == "dpmsolver" else "zero"
        theirs = build(
            "dpmsolver_singlestep",
            "DPMSolverSinglestepScheduler",
            n,
            solver_order=order,
            solver_type=solver_type,
            algorithm_type=algorithm,
            prediction_type=kind,
            final_sigmas_type=final,
            lower_order_final=True,
        )
        options: dict[str, Any] = {"solver_type": solver_type, "stages": "grid"}
        if algorithm == "dpmsolver++":
            plan = make_plan(
                "dpm_solver++", vp(theirs), n, order=order, method="singlestep", **layout("linspace"), **options
            )
        else:
            plan = make_plan("dpm_solver", vp(theirs), n, order=order, end=0.0, **layout("linspace"), **options)
        assert plan.nfe == n
        found = difference(plan, theirs, exact(mixture, plan, kind), kind, normal(0, 5, 8), precision)
        single = 1e-4 if algorithm == "dpmsolver" else 1e-5  # differences of close exponentials
        assert found < tolerance(precision, n, single), (kind, n, found)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(build: Build, precision: str, mixture: Any, normal: Any, order: int) -> None:
    for spacing, kind, n in cases(precision):
        theirs = build(
            "deis_multistep",
            "DEISMultistepScheduler",
            n,
            solver_order=order,
            timestep_spacing=spacing,
            prediction_type=kind,
        )
        if theirs.timesteps[-1] == 0:
            continue  # it ends at index 0, so the last step would have no length
        plan = make_plan(
            "deis",
            vp(theirs),
            n,
            order=order,
            variable="log_rho",
            lower_order_final=n < 15,
            end=0.0,
            **layout(spacing),
        )
        found = difference(plan, theirs, exact(mixture, plan, kind), kind, normal(0, 5, 8), precision)
        # Their integrals are differences of products of logarithms.
        assert found < tolerance(precision, n, 1e-4), (spacing, kind, n, found)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("variant", "data"), [("bh1", True), ("bh2", True), ("bh2", False)])
def test_unipc(build: Build, precision: str, mixture: Any, normal: Any, order: int, variant: str, data: bool) -> None:
    final = "zero" if variant == "bh2" and data else "sigma_min"  # theirs is 0 times infinity in the other cases
    for spacing, kind, n in cases(precision):
        theirs = build(
            "unipc_multistep",
            "UniPCMultistepScheduler",
            n,
            solver_order=order,
            solver_type=variant,
            predict_x0=data,
            timestep_spacing=spacing,
            prediction_type=kind,
            final_sigmas_type=final,
        )
        if final == "sigma_min" and theirs.timesteps[-1] == 0:
            continue
        plan = make_plan(
            "unipc",
            vp(theirs),
            n,
            order=order,
            variant=variant,
            prediction="data" if data else "noise",
            end=None if final == "zero" else 0.0,
            **layout(spacing),
        )
        found = difference(plan, theirs, exact(mixture, plan, kind), kind, normal(0, 5, 8), precision)
        assert found < tolerance(precision, n), (spacing, kind, n, found)


@pytest.mark.parametrize(("name", "solver"), [("Heun", "edm_heun"), ("Euler", "euler")])
def test_heun_and_euler(build: Build, precision: str, mixture: Any, normal: Any, name: str, solver: str) -> None:
    for spacing, kind, n in cases(precision):
        theirs = build(
            f"{name.lower()}_discrete", f"{name}DiscreteScheduler", n, timestep_spacing=spacing, prediction_type=kind
        )
        if spacing == "linspace":
            # Their times are not rounded, and between indices theirs is linear in sigma: the levels themselves agree.
            levels = list(dict.fromkeys(theirs.sigmas.tolist()))
            plan, predict = make_plan(solver, vp(theirs), sigmas=levels), timeless
        else:
            plan = make_plan(solver, vp(theirs), n, spacing=spacing)
            predict = exact(mixture, plan, kind)
        # They work on x / alpha, and start from other multiples of the noise.
        start = 1 / plan.start.alpha
        found = difference(plan, theirs, predict, kind, normal(0, 5, 8), precision, start)
        assert found < tolerance(precision, n), (spacing, kind, n, found)


@pytest.mark.parametrize("curve", ["karras", "exponential"])
@pytest.mark.parametrize(
    ("module", "name", "solver", "options"),
    [
        ("euler_discrete", "EulerDiscreteScheduler", "euler", {}),
        ("heun_discrete", "HeunDiscreteScheduler", "edm_heun", {}),
        ("dpmsolver_multistep", "DPMSolverMultistepScheduler", "dpm_solver++", {}),
        ("unipc_multistep", "UniPCMultistepScheduler", "unipc", {}),
    ],
)
def test_karras_and_exponential_levels(
    build: Build, precision: str, normal: Any, curve: str, module: str, name: str, solver: str, options: Any
) -> None:
    for n in STEPS[1:]:
        theirs = build(module, name, n, **{f"use_{curve}_sigmas": True})
        plan = make_plan(solver, vp(theirs), n, spacing=curve, **options)
        start = 1 / plan.start.alpha if "discrete" in module else 1.0
        found = difference(plan, theirs, timeless, "epsilon", normal(0, 5, 8), precision, start)
        assert found < tolerance(precision, n), (n, found)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(build: Build, precision: str, mixture: Any, normal: Any, shift: float) -> None:
    for n in STEPS:
        theirs = build("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", n, shift=shift)
        times = (1 - theirs.sigmas[:-1].double()).tolist()
        plan = make_plan("euler", FlowSchedule(), timesteps=times)
        x = normal(0, 5, 8)
        ours = integrate(plan, mixture, x)
        state = x.to(getattr(torch, precision))
        for t, mark in zip(times, theirs.timesteps, strict=True):  # their velocity points to the noise
            output = -mixture(state.double(), points_at(plan.schedule, [t])[0], "flow").to(state.dtype)
            state = theirs.step(output, mark, state, return_dict=False)[0].to(state.dtype)
        found = float((ours - state.double()).abs().max() / state.abs().max())
        assert found < tolerance(precision, n), (n, found)


@pytest.mark.parametrize("runge_kutta", [True, False])
def test_pndm(build: Build, precision: str, mixture: Any, normal: Any, runge_kutta: bool) -> None:
    # Their halves of a step are whole indices and only epsilon is combined as published; see the tests below.
    for n in (4, 5, 10, 20, 25, 50) if runge_kutta else STEPS:
        theirs = build("pndm", "PNDMScheduler", n, set_alpha_to_one=True, skip_prk_steps=not runge_kutta)
        plan = make_plan("pndm", vp(theirs), n, runge_kutta=runge_kutta)
        assert plan.nfe == len(theirs.timesteps) == n + (9 if runge_kutta else n > 1)
        found = difference(plan, theirs, exact(mixture, plan, "epsilon"), "epsilon", normal(0, 5, 8), precision)
        assert found < tolerance(precision, n), (n, found)


def test_pndm_from_an_offset_to_index_0(build: Build, precision: str, mixture: Any, normal: Any) -> None:
    """The configuration of latent diffusion: steps_offset 1, ends at index 0."""
    theirs = build("pndm", "PNDMScheduler", 20, skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear")
    plan = make_plan("pndm", vp(theirs), 20, runge_kutta=False, steps_offset=1, end=0.0)
    found = difference(plan, theirs, exact(mixture, plan, "epsilon"), "epsilon", normal(0, 5, 8), precision)
    assert found < tolerance(precision, 20), found


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
    build: Build,
    precision: str,
    mixture: Any,
    normal: Any,
    module: str,
    name: str,
    solver: str,
    config: Any,
    options: Any,
    step: Any,
) -> None:
    for n in (1, 2, 5, 20):
        theirs = build(module, name, n, timestep_spacing="trailing", **config)
        plan = make_plan(solver, vp(theirs), n, spacing="trailing", **options)
        predict = exact(mixture, plan, "epsilon")
        x, noises = normal(0, 5, 8), [normal(100 + i, 5, 8) for i in range(n)]
        ours = replay(plan, predict, "epsilon", x, noises)
        state = x.to(getattr(torch, precision))
        for t, z in zip(theirs.timesteps, noises, strict=True):
            output = predict(state.double(), float(t)).to(state.dtype)
            state = theirs.step(output, t, state, variance_noise=z.to(state.dtype), return_dict=False, **step)[0]
        found = float((ours - state.double()).abs().max() / state.abs().max())
        assert found < tolerance(precision, n), (n, found)
