"""What PlanScheduler reads from a diffusers configuration: noise schedule, solver and time grid.

Importing this module does not import diffusers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.schedule import EDMSchedule, FlowSchedule, Schedule, VPSchedule
from pydiffaccel.solvers.denoiser import model_conversion
from pydiffaccel.solvers.plan import Plan
from pydiffaccel.solvers.point import Point

__all__ = [
    "NOISE_SCHEDULES",
    "SOURCES",
    "TimestepAxis",
    "check_fixed",
    "grid_of",
    "output_factors",
    "schedule_of",
    "source_of",
    "translated",
    "without_variance",
]

NOISE_SCHEDULES = ("vp", "flow", "edm")
_ROUNDED = 0.01  # how far, relatively, a noise level of a published list may be off
_WHOLE = ("leading", "linspace", "trailing")
_BETAS = {
    "linear": VPSchedule.linear,
    "scaled_linear": VPSchedule.scaled_linear,
}

_SINGLE_POINT = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
_IN_SIGMA: dict[str, dict[str, Any]] = {
    "EulerDiscreteScheduler": {"solver": "euler"},
    "EulerAncestralDiscreteScheduler": {"solver": "ddim", "solver_options": {"eta": 1.0}},  # the same noise, in sigma
    "HeunDiscreteScheduler": {"solver": "edm_heun"},
    "KDPM2DiscreteScheduler": {"solver": "dpm_solver", "solver_order": 2},
    "EDMEulerScheduler": {"solver": "euler"},
    "FlowMatchEulerDiscreteScheduler": {"solver": "euler"},
}
_MULTISTEP = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler",)
_SAME_KEYS = "KDPM2DiscreteScheduler"  # as LMSDiscreteScheduler and its own ancestral form, which no plan is
SOURCES = (*_SINGLE_POINT, *_IN_SIGMA, *_MULTISTEP, "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler")

# Settings that change a method in a way no plan has, and the values that leave it alone.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "thresholding": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "euler_at_final": (False, None),
    "lambda_min_clipped": (None, -math.inf),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
    "shift_terminal": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}
_KEPT = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "clip_sample",
    "clip_sample_range",
    "sigma_data",
    "rho",
    "shift",
    "use_dynamic_shifting",
)


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule that a PlanScheduler's configuration names.

    Raises:
        ValueError: an unknown noise_schedule or beta_schedule, or numbers that make none.
    """
    kind = config["noise_schedule"]
    if kind == "flow":
        return FlowSchedule()
    if kind == "edm":
        return EDMSchedule(config["sigma_max"])
    if kind != "vp":
        raise ValueError(f"unknown noise_schedule {kind!r}; known: {', '.join(NOISE_SCHEDULES)}")
    total, name = config["num_train_timesteps"], config["beta_schedule"]
    if config["trained_betas"] is not None:
        schedule = VPSchedule.from_betas(np.asarray(config["trained_betas"], dtype=np.float64))
        if schedule.num_train_timesteps != total:
            raise ValueError(f"trained_betas holds {schedule.num_train_timesteps} values for {total} training steps")
    elif name in _BETAS:
        schedule = _BETAS[name](total, config["beta_start"], config["beta_end"])
    elif name == "squaredcos_cap_v2":
        schedule = VPSchedule.cosine(total)
    else:
        raise ValueError(f"unknown beta_schedule {name!r}; known: {', '.join(_BETAS)}, squaredcos_cap_v2")
    return schedule.rescaled_to_zero_terminal_snr() if config["rescale_betas_zero_snr"] else schedule


def check_fixed(plan: Plan, num_steps: int | None, has_grid: bool) -> None:
    """Refuses what a scheduler that holds a plan cannot be asked for.

    Raises:
        ValueError: another number of steps, or a grid.
    """
    if has_grid:
        raise ValueError(f"this scheduler holds a {plan.solver} plan with timesteps of its own; give none")
    if num_steps is not None and num_steps != plan.num_steps:
        raise ValueError(
            f"this scheduler holds a {plan.solver} plan of {plan.num_steps} steps, got num_inference_steps ="
            f" {num_steps}"
        )


def grid_of(
    config: Mapping[str, Any],
    schedule: Schedule,
    num_steps: int | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
) -> dict[str, Any]:
    """Arguments of ``make_plan`` for the time grid of num_steps steps, or of the given noise levels.

    Raises:
        ValueError: sigmas of a flow schedule outside (0, 1].
    """
    if isinstance(schedule, FlowSchedule):
        return {"timesteps": _flow_times(config, num_steps, sigmas, mu)}
    grid: dict[str, Any] = {"num_steps": num_steps, "end": None}
    if isinstance(schedule, EDMSchedule):
        spacing = config["timestep_spacing"] or "karras"
        grid |= {"spacing": spacing, "sigma_min": config["sigma_min"]}
        if spacing == "karras":
            grid["rho"] = config["rho"]
        return grid if sigmas is None else {"sigmas": sigmas}
    spacing, total = config["timestep_spacing"], config["num_train_timesteps"]
    least = config["steps_offset"] if spacing == "leading" else 1 if config["drop_last"] else 0
    if not config["set_alpha_to_one"] and (spacing not in _WHOLE or least > 0):
        grid["end"] = 0.0  # the noise of training index 0
    if sigmas is not None:
        return {"sigmas": _trained_levels(schedule, sigmas), "end": None if sigmas[-1] == 0 else grid["end"]}
    if spacing == "linspace" and not config["whole_timesteps"] and num_steps is not None:
        times = np.linspace(0, total - 1, num_steps)[::-1]
        return {"timesteps": _floats(times), "end": grid["end"]}
    if spacing in ("leading", "linspace"):
        grid["drop_last"] = config["drop_last"]
    if spacing == "leading":
        grid["steps_offset"] = config["steps_offset"]
    return {**grid, "spacing": spacing}


def _trained_levels(schedule: Schedule, sigmas: Sequence[float]) -> list[float]:
    """The levels; those a little outside of training's range lie on its ends, since published lists are rounded."""
    ends = [
        float(schedule.sigma(t) / alpha) if (alpha := schedule.alpha(t)) > 0 else math.inf
        for t in (0.0, schedule.noisy_end)
    ]
    return [next((end for end in ends if 0 < abs(level / end - 1) < _ROUNDED), level) for level in sigmas]


def _flow_times(
    config: Mapping[str, Any], num_steps: int | None, sigmas: Sequence[float] | None, mu: float | None
) -> list[float]:
    """1 - sigma, where sigma is shifted towards more noise, as diffusers' flow-matching schedulers do."""
    if sigmas is None:
        least = _shifted(np.array([1.0 / config["num_train_timesteps"]]), config["shift"])[0]
        levels = np.linspace(1.0, least, num_steps or 0)
    else:
        levels = np.asarray(sigmas, dtype=np.float64)
        levels = levels[:-1] if levels.size and levels[-1] == 0 else levels
        if not ((levels > 0) & (levels <= 1)).all():
            raise ValueError(f"sigmas of a flow schedule must lie in (0, 1], got {_floats(sigmas)}")
    return _floats(1.0 - _shifted(levels, config["shift"] if mu is None else math.exp(mu)))


def _floats(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values]


def _shifted(sigmas: Any, shift: float) -> Any:
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


class TimestepAxis:
    """How the times of a schedule read as diffusers' timesteps.

    VP: the training index. Flow: sigma times the training steps. EDM: log(sigma) / 4.
    """

    def __init__(self, schedule: Schedule, num_train_timesteps: int) -> None:
        self._schedule, self._total = schedule, num_train_timesteps
        if isinstance(schedule, VPSchedule):  # sqrt(alphabar) at the times -1 .. T-1
            bar = np.concatenate(([1.0], schedule.alphas_cumprod))
            self._root_bar = torch.from_numpy(np.sqrt(bar))

    def timestep(self, point: Point) -> float:
        """The timestep of a noise level."""
        if isinstance(self._schedule, FlowSchedule):
            return point.sigma * self._total
        return math.log(point.sigma) / 4 if isinstance(self._schedule, EDMSchedule) else point.t

    def time(self, timestep: float) -> float:
        """The schedule's time at a timestep."""
        if isinstance(self._schedule, FlowSchedule):
            return 1.0 - timestep / self._total
        return math.exp(4 * timestep) if isinstance(self._schedule, EDMSchedule) else timestep

    def sigma(self, point: Point) -> float:
        """The noise level as diffusers' ``sigmas`` name it: sigma / alpha, for flow sigma."""
        if isinstance(self._schedule, FlowSchedule):
            return point.sigma
        return point.sigma / point.alpha if point.alpha > 0 else math.inf

    def levels(self, timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps ``[B]``, to multiply x ``[B, *]`` with; made on its device.

        Continuous VP and truncated expansions have no table and are evaluated on the host.
        """
        t = timesteps.to(x.device, torch.float64).reshape(-1)
        if isinstance(self._schedule, FlowSchedule):
            sigma = t / self._total
            alpha = 1.0 - sigma
        elif isinstance(self._schedule, EDMSchedule):
            sigma, alpha = (4 * t).exp(), torch.ones_like(t)
        elif not isinstance(self._schedule, VPSchedule):
            times = t.cpu().numpy()
            alpha, sigma = (
                torch.from_numpy(f(times)).to(t.device) for f in (self._schedule.alpha, self._schedule.sigma)
            )
        else:
            alpha = self._vp_alpha(t)
            sigma = (1.0 - alpha.square()).clamp(min=0).sqrt()
        shape = (-1, *(1,) * (x.dim() - 1))
        return alpha.to(x.dtype).reshape(shape), sigma.to(x.dtype).reshape(shape)

    def _vp_alpha(self, t: Tensor) -> Tensor:
        table = self._root_bar.to(t.device)
        lower = t.floor().clamp(-1, len(table) - 3).long()
        part = t - lower
        below, above = table[lower + 1], table[lower + 2]
        # log alphabar is linear between indices; down to zero terminal SNR alpha itself is
        between = torch.where(above > 0, below * (above / below) ** part, below * (1 - part))
        return torch.where(part == 0, below, torch.where(part == 1, above, between))


def source_of(config: Mapping[str, Any]) -> str | None:
    """The diffusers scheduler that a configuration is of; None if it is PlanScheduler's own or none at all.

    A configuration that was never saved holds no class name; then its keys tell. It has all parameters of its
    scheduler, may have more of another one that it was made from, and names those that were left at their defaults.

    Raises:
        ValueError: the keys are of no known scheduler.
    """
    name = config.get("_class_name")
    if name is not None:
        return None if name == "PlanScheduler" else str(name)
    import diffusers

    keys = {key for key in config if not key.startswith("_")}
    defaults = set(config.get("_use_default_values", ()))
    found: list[tuple[int, str]] = []
    for source in SOURCES:
        if source == _SAME_KEYS:
            continue
        parameters = set(inspect.signature(getattr(diffusers, source).__init__).parameters) - {"self"}
        if defaults <= parameters <= keys:
            found.append((len(parameters), source))
    if found:
        return max(found)[1]
    if "noise_schedule" not in keys and keys - set(_KEPT):
        raise ValueError(
            f"this configuration names no scheduler and has the keys of none that is known ({', '.join(SOURCES)});"
            f" save the scheduler, or give its _class_name"
        )
    return None


def without_variance(model_output: Tensor, x: Tensor) -> Tensor:
    """The model's output ``[B, C, *]`` for x ``[B, C, *]``, out of ``[B, 2 C, *]`` where the variance was learned too.

    Raises:
        ValueError: another shape.
    """
    if model_output.dim() == x.dim() and model_output.dim() > 1 and model_output.shape[1] == 2 * x.shape[1]:
        model_output = model_output[:, : x.shape[1]]
    if model_output.shape != x.shape:
        raise ValueError(f"model_output must have the sample's shape {tuple(x.shape)}, got {tuple(model_output.shape)}")
    return model_output


def output_factors(
    schedule: Schedule, prediction_type: str, want: str, point: Point, sigma_data: float
) -> tuple[float, float]:
    """(c, d) such that the wanted prediction is c x + d model_output, for diffusers' prediction types."""
    turned = prediction_type == "flow_prediction"  # noise - data there
    have = "flow" if turned else prediction_type
    if isinstance(schedule, EDMSchedule):
        have, turned = "edm", prediction_type == "v_prediction"
    c, d = model_conversion(have, want, point, sigma_data)
    return c, -d if turned else d


def translated(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of PlanScheduler that make it the method of the named scheduler's configuration.

    Raises:
        ValueError: a scheduler without a counterpart, or a setting of it that no plan has.
    """
    if name not in SOURCES:
        raise ValueError(f"PlanScheduler reads configurations of {', '.join(SOURCES)}, got {name!r}")
    import diffusers

    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    given = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty} | dict(config)
    for key, neutral in _NEUTRAL.items():
        if key in given and given[key] not in neutral:
            raise ValueError(f"no plan has {key}={given[key]!r} of this {name}")
    result = {key: given[key] for key in _KEPT if key in given}
    if given.get("use_karras_sigmas"):
        result["timestep_spacing"] = "karras"
    elif given.get("use_exponential_sigmas"):
        result["timestep_spacing"] = "exponential"
    result |= _method(name, given)
    if name in _EDM:
        if given["final_sigmas_type"] != "zero":
            raise ValueError(f"no plan has final_sigmas_type={given['final_sigmas_type']!r} of this {name}")
        result |= {"noise_schedule": "edm", "sigma_min": given["sigma_min"], "sigma_max": given["sigma_max"]}
        result["timestep_spacing"] = given["sigma_schedule"]
    elif name in _FLOW:
        result |= {"noise_schedule": "flow", "prediction_type": "flow_prediction"}
    elif "final_sigmas_type" in given:
        result["set_alpha_to_one"] = given["final_sigmas_type"] == "zero"
    return result


def _method(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """solver, solver_order, solver_options and where the timesteps lie."""
    if name == "DDIMScheduler":
        return {"solver": "ddim"}
    if name == "DDPMScheduler":
        if not str(given["variance_type"]).startswith(("fixed_small", "learned")):
            raise ValueError(f"no plan has variance_type={given['variance_type']!r} of this {name}")
        return {"solver": "ddim", "solver_options": {"eta": 1.0}}  # DDPM's posterior on any subset of its times
    if name == "PNDMScheduler":
        return {"solver": "pndm", "solver_options": {"runge_kutta": not given["skip_prk_steps"]}}
    if name in _IN_SIGMA:
        return {**_IN_SIGMA[name], "whole_timesteps": False}
    result = {"solver_order": given["solver_order"], "drop_last": True}
    final = {"lower_order_final": given["lower_order_final"]}
    if name == "DEISMultistepScheduler":
        options = {**final, "variable": "log_rho"}
        return {**result, "solver": "deis", "solver_options": options, "set_alpha_to_one": False}  # it ends at index 0
    if name == "UniPCMultistepScheduler":
        prediction = "data" if given["predict_x0"] else "noise"
        return {
            **result,
            "solver": "unipc",
            "solver_options": {**final, "variant": given["solver_type"], "prediction": prediction},
        }
    algorithm, singlestep = given["algorithm_type"], name == "DPMSolverSinglestepScheduler"
    solver = "dpm_solver" if algorithm.endswith("dpmsolver") else "dpm_solver++"
    if algorithm.startswith("sde-") and (singlestep or solver == "dpm_solver"):
        raise ValueError(f"no plan has algorithm_type={algorithm!r} of this {name}")
    if solver == "dpm_solver" and not singlestep:
        raise ValueError(f"no plan has algorithm_type={algorithm!r} of this {name}, DPM-Solver in several steps")
    options = {**final, "solver_type": given["solver_type"]}
    if singlestep:
        result["timestep_spacing"] = given.get("timestep_spacing", "linspace")
        options |= {"stages": "grid"} | ({"method": "singlestep"} if solver == "dpm_solver++" else {})
    else:
        options |= {"stochastic": algorithm.startswith("sde-")}
        options |= {"third_order": "official"} if given["solver_order"] == 3 else {}
    return {**result, "solver": solver, "solver_options": options}
