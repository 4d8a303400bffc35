"""diffusers' schedulers and the plans that are the same methods, on every grid that both define.

Their tables (sigmas, alphas) are float32. ``scheduler(..., double=True)`` makes one whose module sees torch and NumPy
through a lens in which float32 is float64, so the very same code runs in double precision.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pydiffaccel.schedule import VPSchedule
from pydiffaccel.solvers import Plan, make_plan

TRAINED = 1000
TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("trailing", "leading", "linspace")
# 1000 - 3 * 1000 / 48 is 937.5, which rounds to the even number here and by a rounding error of the sum there.
HALF_INDEX = (48, "trailing")


class Lens:
    """A module in which float32 means float64."""

    def __init__(self, module: Any, double: Any) -> None:
        self._module = module
        self.float32 = double

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def in_float64(module: str) -> Iterator[None]:
    """Inside, the code of diffusers.schedulers.scheduling_<module> computes in float64."""
    source: Any = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    before = {name: getattr(source, name) for name in ("torch", "np") if hasattr(source, name)}
    try:
        source.torch = Lens(torch, torch.float64)
        if "np" in before:
            source.np = Lens(np, np.float64)
        yield
    finally:
        for name, value in before.items():
            setattr(source, name, value)


def scheduler(module: str, name: str, num_steps: int, **config: Any) -> Any:
    """diffusers' scheduler with its timesteps set."""
    source = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    result = getattr(source, name)(TRAINED, **config)
    result.set_timesteps(num_steps)
    return result


def vp(theirs: Any) -> VPSchedule:
    return VPSchedule(theirs.alphas_cumprod.double().numpy())


@dataclass(frozen=True)
class Case:
    """A scheduler with a configuration, and our options for the same method.

    Attributes:
        label: short, for the name of the test.
        strides: steps are taken by T // N, so N must divide T where the grid does not step by that itself.
        extra_point: it lays out one time more than steps and leaves out the last.
        scaled: its states are x / alpha.
    """

    label: str
    module: str
    name: str
    solver: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    spacings: tuple[str, ...] = SPACINGS
    types: tuple[str, ...] = TYPES
    strides: bool = False
    extra_point: bool = False
    scaled: bool = False

    def meets(self, num_steps: int, spacing: str) -> bool:
        """Whether both define this grid."""
        if (num_steps, spacing) == HALF_INDEX:
            return False
        if self.config.get("skip_prk_steps") is False:  # halves of a step are whole indices
            stride = TRAINED // num_steps
            return num_steps > 3 and stride % 2 == 0 and (spacing == "leading" or TRAINED % num_steps == 0)
        return not self.strides or spacing == "leading" or TRAINED % num_steps == 0

    def pair(self, num_steps: int, spacing: str, kind: str) -> tuple[Any, Plan] | None:
        """The scheduler and the plan; None where the scheduler's last step would have no length."""
        keys = {} if self.module == "dpmsolver_singlestep" else {"timestep_spacing": spacing}
        theirs = scheduler(self.module, self.name, num_steps, prediction_type=kind, **keys, **self.config)
        if self.options.get("end") == 0.0 and theirs.timesteps[-1] == 0:
            return None
        return theirs, self.plan(theirs, num_steps, spacing)

    def plan(self, theirs: Any, num_steps: int, spacing: str) -> Plan:
        options = dict(self.options)
        if self.solver == "deis":
            options["lower_order_final"] = num_steps < 15
        if self.scaled and spacing == "linspace":
            # Their times are not rounded, and between indices theirs is linear in sigma: the levels themselves agree.
            levels = list(dict.fromkeys(theirs.sigmas.tolist()))
            return make_plan(self.solver, vp(theirs), sigmas=levels, **options)
        if self.extra_point and spacing != "trailing":
            options["drop_last"] = True
        return make_plan(self.solver, vp(theirs), num_steps, spacing=spacing, **options)


def _final(clean: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    return ({"final_sigmas_type": "zero"}, {}) if clean else ({"final_sigmas_type": "sigma_min"}, {"end": 0.0})


def _multistep() -> Iterator[Case]:
    for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")):
        for clean in (True, False):
            config, options = _final(clean)
            yield Case(
                f"dpm++{order}m-{kind}-{'clean' if clean else 'sigma_min'}",
                "dpmsolver_multistep",
                "DPMSolverMultistepScheduler",
                "dpm_solver++",
                {"solver_order": order, "solver_type": kind, **config},
                {"order": order, "solver_type": kind, "third_order": "official", **options},
                extra_point=True,
            )


def _singlestep() -> Iterator[Case]:
    for algorithm, order, kind in (
        (algorithm, order, kind)
        for algorithm in ("dpmsolver++", "dpmsolver")
        for order in (1, 2, 3)
        for kind in ("midpoint", "heun")
    ):
        noise = algorithm == "dpmsolver"  # which cannot end at clean data there
        config, options = _final(not noise)
        yield Case(
            f"{algorithm}-{order}s-{kind}",
            "dpmsolver_singlestep",
            "DPMSolverSinglestepScheduler",
            "dpm_solver" if noise else "dpm_solver++",
            {
                "solver_order": order,
                "solver_type": kind,
                "algorithm_type": algorithm,
                "lower_order_final": True,
                **config,
            },
            {
                "order": order,
                "solver_type": kind,
                "stages": "grid",
                **({} if noise else {"method": "singlestep"}),
                **options,
            },
            spacings=("linspace",),
            extra_point=True,
        )


def _unipc() -> Iterator[Case]:
    for order in (1, 2, 3):
        for variant, data in (("bh1", True), ("bh2", True), ("bh2", False)):
            config, options = _final(variant == "bh2" and data)  # theirs is 0 times infinity in the other cases
            yield Case(
                f"unipc{order}-{variant}-{'data' if data else 'noise'}",
                "unipc_multistep",
                "UniPCMultistepScheduler",
                "unipc",
                {"solver_order": order, "solver_type": variant, "predict_x0": data, **config},
                {"order": order, "variant": variant, "prediction": "data" if data else "noise", **options},
                extra_point=True,
            )


CASES: tuple[Case, ...] = (
    Case("ddim", "ddim", "DDIMScheduler", "ddim", {"clip_sample": False}, spacings=SPACINGS[:2], strides=True),
    *(
        Case(
            "pndm-rk" if start else "pndm",
            "pndm",
            "PNDMScheduler",
            "pndm",
            {"set_alpha_to_one": True, "skip_prk_steps": not start},
            {"runge_kutta": start},
            spacings=SPACINGS[:2],
            types=("epsilon",),  # theirs combines raw outputs of other types; see the differences
            strides=True,
        )
        for start in (True, False)
    ),
    *_multistep(),
    *_singlestep(),
    *(
        Case(
            f"deis{order}",
            "deis_multistep",
            "DEISMultistepScheduler",
            "deis",
            {"solver_order": order},
            {"order": order, "variable": "log_rho", "end": 0.0},
            extra_point=True,
        )
        for order in (1, 2, 3)
    ),
    *_unipc(),
    Case("heun", "heun_discrete", "HeunDiscreteScheduler", "edm_heun", scaled=True),
    Case("euler", "euler_discrete", "EulerDiscreteScheduler", "euler", scaled=True),
)
