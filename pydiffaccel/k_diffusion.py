"""Plans behind the signature of k-diffusion's samplers: ``(model, x, sigmas, extra_args, callback, disable)``.

``model(x, sigma, **extra_args)`` is a denoiser of ``x = x_0 + sigma noise``: it takes the state ``[B, *]`` and its
noise level ``[B]`` and returns the data it predicts, as k-diffusion's wrappers and EDM's networks (2206.00364) do.
``sigmas`` ``[N + 1]`` falls strictly from the level of x to the level of the result, usually 0; the model is not
evaluated at the last. Each function writes the plan of its solver for these levels, in float64, and runs it with
``integrate``, so the state is float32 or float64, and no step waits for a device.

Random numbers of stochastic samplers come from torch's global generator, as in k-diffusion.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.ops import solver_step
from pydiffaccel.schedule import EDMSchedule
from pydiffaccel.solvers.denoiser import Denoiser, conversion
from pydiffaccel.solvers.integrate import integrate
from pydiffaccel.solvers.make import make_plan
from pydiffaccel.solvers.plan import Plan
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.tail import step_starts

__all__ = [
    "sample_ddim",
    "sample_deis",
    "sample_dpm_solver",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s",
    "sample_dpmpp_3m",
    "sample_euler",
    "sample_heun",
    "sample_ipndm",
    "sample_plan",
    "sample_unipc",
]

Model = Callable[..., Tensor]
Sigmas = Tensor | Sequence[float]
Callback = Callable[[dict[str, Any]], Any]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]

# EDM's churn raises a level by at most sqrt(2) - 1.
_HEADROOM = 1.5


def sample_plan(
    model: Model,
    x: Tensor,
    plan: Plan,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Runs any plan on EDM levels, distilled or not, with a k-diffusion denoiser.

    Args:
        model: ``model(x, sigma, **extra_args)``, see above.
        x: the state ``[B, *]`` at the plan's first level.
        plan: on an ``EDMSchedule``.
        extra_args: keyword arguments of the model, passed on as they are.
        callback: called at the first evaluation of each step with a dict: "x", the state; "i", the step; "sigma", the
            level the step starts from; "sigma_hat", the same after added noise; "denoised", the model's answer.
        disable: of the tqdm bar; None shows it on a terminal alone.
        noise_sampler: ``noise_sampler(sigma, sigma_next)`` returns the standard normal noise ``[B, *]`` of a step.

    Returns:
        ``[B, *]`` in x's dtype.

    Raises:
        TypeError: plan is no Plan.
        ValueError: the plan is for another schedule than EDM's, or the model's answer has another shape or is not
            finite.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
    if not isinstance(plan.schedule, EDMSchedule):
        raise ValueError(f"these samplers run plans on an edm schedule, got {plan.schedule.name}")
    denoiser = _Shell(model, dict(extra_args or {}), x, plan, callback)
    progress = not disable if disable is not None else sys.stderr.isatty()
    noise = _noise(plan, noise_sampler) if plan.stochastic else None
    return integrate(plan, denoiser, x, noise=noise, progress=progress).to(x.dtype)


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method with churn (2206.00364, algorithm 2 without its second half)."""
    churn: dict[str, Any] = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    return _sample("euler", model, x, sigmas, extra_args, callback, disable, **churn)


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method with churn (2206.00364, algorithms 1 and 2); 2 N - 1 evaluations."""
    churn: dict[str, Any] = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    return _sample("edm_heun", model, x, sigmas, extra_args, callback, disable, **churn)


def sample_ddim(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DDIM without noise (2010.02502), which in sigma is Euler's step."""
    return _sample("euler", model, x, sigmas, extra_args, callback, disable)


def sample_dpm_solver(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 2,
) -> Tensor:
    """DPM-Solver-1, -2 or -3 (2206.00927): `order` evaluations per step. Order 2 is k-diffusion's ``sample_dpm_2``."""
    return _sample("dpm_solver", model, x, sigmas, extra_args, callback, disable, order=order)


def sample_dpmpp_2s(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++ 2S (2211.01095, algorithm 1): two evaluations per step."""
    return _sample("dpm_solver++", model, x, sigmas, extra_args, callback, disable, order=2, method="singlestep")


def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++ 2M (2211.01095, algorithm 2): one evaluation per step."""
    return _sample("dpm_solver++", model, x, sigmas, extra_args, callback, disable, order=2, lower_order_final=False)


def sample_dpmpp_3m(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Third-order multistep DPM-Solver++: one evaluation per step."""
    return _sample("dpm_solver++", model, x, sigmas, extra_args, callback, disable, order=3, lower_order_final=False)


def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """SDE-DPM-Solver++ 2M (2211.01095). eta is 1 (the diffusion SDE) or 0 (``sample_dpmpp_2m``).

    Raises:
        ValueError: another eta.
    """
    if eta not in (0, 1):
        raise ValueError(f"eta must be 0 or 1, got {eta}")
    options: dict[str, Any] = {"stochastic": eta == 1, "solver_type": solver_type, "lower_order_final": False}
    arguments: Any = (model, x, sigmas, extra_args, callback, disable)
    return _sample("dpm_solver++", *arguments, order=2, noise_sampler=noise_sampler, **options)


def sample_ipndm(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """iPNDM (2202.09778, 2204.13902): Adams-Bashforth's factors for equal steps, one evaluation per step."""
    return _sample("ipndm", model, x, sigmas, extra_args, callback, disable, order=order)


def sample_deis(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 3,
) -> Tensor:
    """DEIS tAB (2204.13902): Adams-Bashforth in sigma for these very levels, one evaluation per step."""
    return _sample("deis", model, x, sigmas, extra_args, callback, disable, order=order)


def sample_unipc(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 3,
    variant: str = "bh2",
) -> Tensor:
    """UniPC (2302.04867), predictor and corrector, one evaluation per step; variant "bh1" or "bh2"."""
    return _sample("unipc", model, x, sigmas, extra_args, callback, disable, order=order, variant=variant)


def _sample(
    solver: str,
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    *,
    order: int | None = None,
    noise_sampler: NoiseSampler | None = None,
    **options: Any,
) -> Tensor:
    levels = [float(sigma) for sigma in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    if len(levels) < 2:
        raise ValueError(f"sigmas must hold at least two levels, the first and the last, got {levels}")
    bad = next((level for level in levels if not (level >= 0 and math.isfinite(level))), None)
    if bad is not None or levels[0] == 0:
        raise ValueError(f"sigmas must be finite and not negative, the first positive, got {levels}")
    rising = next(((a, b) for a, b in pairwise(levels) if not b < a), None)
    if rising is not None:
        raise ValueError(f"sigmas must fall strictly, got {rising[0]:g} and then {rising[1]:g}")
    schedule = EDMSchedule(_HEADROOM * levels[0])
    plan = make_plan(solver, schedule, timesteps=levels[:-1], end=levels[-1], order=order, **options)
    return sample_plan(model, x, plan, extra_args, callback, disable, noise_sampler=noise_sampler)


@dataclass
class _Shell(Denoiser):
    """The model as ``integrate`` calls it; counts evaluations, so it serves one run."""

    model: Model
    extra_args: Mapping[str, Any]
    given: Tensor
    plan: Plan
    callback: Callback | None
    done: int = 0
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise TypeError(f"model must be callable, got {type(self.model).__name__}")
        self.starts = step_starts(self.plan) if self.callback is not None else []

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        seen = x.to(self.given.dtype)
        level = torch.full((len(x),), point.sigma, dtype=x.dtype, device=x.device)
        denoised = self.model(seen, level, **self.extra_args)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            got = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            raise ValueError(f"at sigma = {point.sigma:g} the model must return shape {tuple(x.shape)}, got {got}")
        if self.done in self.starts and self.callback is not None:
            before = self._level_before(point)
            step = {"x": seen, "i": self.starts.index(self.done), "denoised": denoised}
            self.callback({**step, "sigma": level.new_full((), before), "sigma_hat": level[0]})
        self.done += 1
        c, d = conversion("sample", output_type, point)
        return solver_step(x, [denoised], c, [d])

    def _level_before(self, point: Point) -> float:
        """The level of this evaluation before noise was added for it."""
        updates = [update for index, update in self.plan.updates() if index == self.done - 1]
        if not updates or updates[-1].b or updates[-1].point != point:
            return point.sigma
        return self.plan.state_points[updates[-1].base].sigma


def _noise(plan: Plan, noise_sampler: NoiseSampler | None) -> Callable[[Tensor, int], Tensor]:
    if noise_sampler is None:
        return lambda like, number: torch.randn_like(like)
    updates = [update for _, update in plan.updates()]

    def noise(like: Tensor, number: int) -> Tensor:
        update = updates[number - 1]
        levels = (plan.state_points[update.base].sigma, update.point.sigma)
        return noise_sampler(*(like.new_full((), level) for level in levels)).to(like.dtype)

    return noise
